"""Discrete speech units: speech as strings of characters that share one vocabulary with text.

Features of a speech encoder, k-means, repeats removed, SentencePiece (arXiv 2309.15826, section 2). Look into the
files by what they do: `sources`, `kmeans`, `fit`, `encode`, `pieces`, `directory`, `encoded`, `lengths`, `measures`.
"""

"""Discrete speech units: speech as strings of characters that share one vocabulary with text.

Features of a speech encoder, k-means, repeats removed, SentencePiece (arXiv 2309.15826, section 2). Units are made
(`fit`, with `kmeans` and `pieces`), measured (`measures`), and corpora become examples of them (`encoded`, `dataset`,
`lengths`). What a trained model needs of them is in `sprachbund.models.tokens`.
"""

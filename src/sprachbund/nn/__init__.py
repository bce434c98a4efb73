"""Torch parts: no files, no corpora, no languages."""

"""Dual-scale training: a small network that drafts on the key/value cache (arXiv 2508.11189)."""

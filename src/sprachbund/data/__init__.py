"""Manifests and batches: the one form of a corpus on disk, and what training reads of it."""

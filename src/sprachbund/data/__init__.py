"""Manifests, corpora, the phrasebook generator and batching."""

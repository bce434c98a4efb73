"""Corpora: readers of public ones, the phrasebook in sound, and recorded prompts."""

"""Multilingual speech-to-text translation: offline, any language of a model to any other."""

__version__ = "0.1.0"

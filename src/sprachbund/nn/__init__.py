"""Torch parts: no files, no corpora, no languages."""

from sprachbund.nn.transducer import transducer_loss

__all__ = ["transducer_loss"]

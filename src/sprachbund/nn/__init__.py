"""Torch parts: no files, no corpora, no languages."""

from sprachbund.nn.transducer_loss import transducer_loss

__all__ = ["transducer_loss"]

"""The Seamless family: the speech-to-text part of SeamlessM4T, versions 1 and 2, through transformers."""

from sprachbund.models.seamless.io import from_transformers, load, save
from sprachbund.models.seamless.model import Seamless, num_parameters
from sprachbund.models.seamless.tokens import SeamlessTokens

__all__ = ["Seamless", "SeamlessTokens", "from_transformers", "load", "num_parameters", "save"]

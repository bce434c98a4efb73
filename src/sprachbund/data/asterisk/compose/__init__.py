"""Composes longer utterances from recorded digits, numbers, dates, times and prompts, as a telephone exchange
does.
"""

from sprachbund.data.asterisk.compose.composer import COMPOSABLE, Composed, compose
from sprachbund.data.asterisk.compose.stream import ComposedUtterance, composed_utterances

__all__ = ["COMPOSABLE", "Composed", "ComposedUtterance", "compose", "composed_utterances"]

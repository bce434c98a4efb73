"""Which languages are where in mixed speech: told to the losses, and read off the router.

Shapes: B utterances, P speech tokens, G groups, S source languages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprachbund.data.language_spans import Stretch
from sprachbund.models.family import Memory


@dataclass(frozen=True, kw_only=True)
class RoutedMemory(Memory):
    """Speech tokens, and where the router sent them.

    Attributes:
        group_probs: (B, P, G) mass of each group, the mean over the layers; zeros on padding.
    """

    group_probs: Tensor

    def select(self, rows: Tensor) -> "RoutedMemory":
        """The utterances at the indices `rows` (b,)."""
        values: dict[str, Tensor | None] = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {name: None if v is None else v[rows] for name, v in values.items()}
        return RoutedMemory(**chosen)


def token_languages(spans: Sequence[tuple[float, float, int]], num_tokens: int, token_s: float) -> Tensor:
    """Number of the language at the middle of each speech token (P,); -1 where no span is."""
    middles = (torch.arange(num_tokens) + 0.5) * token_s
    found = torch.full((num_tokens,), -1)
    for start_s, end_s, language in spans:
        found[(middles >= start_s) & (middles < end_s)] = language
    return found


def stretches(group_probs: Tensor, names: Sequence[str], token_s: float, duration_s: float) -> list[Stretch]:
    """The groups of the likeliest mass, token by token, those that follow each other joined.

    Args:
        group_probs: (P, G) of one utterance's valid tokens.
        names: (G,) what each group is called.
        token_s: seconds of a speech token.
        duration_s: of the speech, where the last token is cut.
    """
    likeliest = group_probs.argmax(-1).tolist()
    found: list[Stretch] = []
    place = 0
    for group, run in groupby(likeliest):
        end = place + len(list(run))
        found.append((place * token_s, min(end * token_s, duration_s), names[group]))
        place = end
    return [stretch for stretch in found if stretch[0] < stretch[1]]


def smoothed(group_probs: Tensor, num_tokens: int) -> Tensor:
    """Group mass (P, G) averaged over `num_tokens` neighbours (odd), so that no span is shorter than can be said."""
    if num_tokens < 2 or not len(group_probs):
        return group_probs
    from scipy.ndimage import uniform_filter1d

    values = uniform_filter1d(group_probs.detach().float().cpu().numpy(), num_tokens, axis=0, mode="nearest")
    return torch.from_numpy(np.ascontiguousarray(values))

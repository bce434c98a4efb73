"""The parasite as a draft (arXiv 2508.11189): it reads the model's own key/value cache.

More than one guess is drawn by running it again on its own guess, which then has no keys of its own to be seen.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from pydantic import RootModel
from torch import Tensor

from sprachbund.decoding.draft import RowsSoFar, StatelessRun, check_cache, torch_decoder
from sprachbund.decoding.drafts.network import NetworkDraft
from sprachbund.decoding.rules import likeliest
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family, Memory, Target
from sprachbund.nn.decoder import TextDecoder, allowed_frames
from sprachbund.nn.feed_forward import ACTIVATIONS
from sprachbund.nn.parasite import CrossCache, Parasite, ParasiteShape
from sprachbund.util.files import validate

KIND = "parasite"


class ParasiteDraft(NetworkDraft):
    """A parasite and the description of the model it lives on."""

    name = KIND
    title = "parasite"
    network: Parasite

    @staticmethod
    def build(shape: dict[str, Any]) -> Parasite:
        """An untrained parasite from what `sizes` gave."""
        activation = shape.pop("activation", "gelu")
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise SprachbundError(
                f"activation is {repr(activation)[:60]}; known here: {', '.join(ACTIVATIONS)}"
            )
        return Parasite(validate(RootModel[ParasiteShape], shape, "shape").root, activation)

    @staticmethod
    def sizes(network: Parasite) -> dict[str, Any]:
        """Its shape and activation."""
        return {**asdict(network.shape), "activation": network.activation}

    def start(
        self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int
    ) -> "ParasiteRun":
        """Make the cross keys and values; the rest is the model's."""
        decoder = torch_decoder(family, KIND)
        parasite: Parasite = self.beside(decoder)
        allowed = allowed_frames(memory.states, memory.num_frames)
        return ParasiteRun(parasite, decoder, parasite.remember(memory.states, allowed))


class ParasiteRun(StatelessRun):
    """A parasite on the rows of one search."""

    def __init__(self, parasite: Parasite, decoder: TextDecoder, cross: CrossCache) -> None:
        self._parasite, self._decoder, self._cross = parasite, decoder, cross

    def propose(self, rows: RowsSoFar, count: int) -> Tensor:
        """The likeliest token after each row, and so on from there; (R, count)."""
        shape = self._parasite.shape
        heads = (shape.num_heads, shape.width // shape.num_heads)
        check_cache(rows.cache, num_layers=shape.num_layers, heads=heads[0], head_width=heads[1], draft=KIND)
        tokens = [rows.newest()[:, 0]]
        for ahead in range(count):
            place = rows.on_device(np.minimum(rows.lengths - 1 + ahead, self._decoder.max_tokens - 1))
            h = self._parasite.guess(self._decoder, tokens[-1], place, rows.cache, self._cross)
            logits = self._parasite.logits(self._decoder, h)[:, 0]
            tokens.append(likeliest(rows.suppressed(logits.float())))
        return torch.stack(tokens[1:], dim=1)

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Drop the cross keys and values of the other memories."""
        self._cross.keep(memories)

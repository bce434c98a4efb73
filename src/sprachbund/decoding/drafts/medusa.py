"""Medusa heads as a draft (arXiv 2401.10774): they read the decoder's last hidden state."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic import RootModel
from torch import Tensor, nn

from sprachbund.decoding.draft import Integers, RowsSoFar, StatelessRun, no_guesses, torch_decoder
from sprachbund.decoding.drafts.network import NetworkDraft
from sprachbund.decoding.rules import likeliest
from sprachbund.models.family import Family, Memory, Target
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.medusa import MedusaHeads, MedusaShape
from sprachbund.util.files import validate

KIND = "medusa"


class MedusaDraft(NetworkDraft):
    """Medusa heads and the description of the model they sit on."""

    name = KIND
    title = "set of Medusa heads"
    network: MedusaHeads

    @staticmethod
    def build(shape: dict[str, Any]) -> MedusaHeads:
        """Untrained heads from what `sizes` gave."""
        return MedusaHeads(validate(RootModel[MedusaShape], shape, "shape").root)

    @staticmethod
    def sizes(network: MedusaHeads) -> dict[str, Any]:
        """Their shape."""
        return asdict(network.shape)

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> "MedusaRun":
        """Begin to watch the decoder."""
        decoder = torch_decoder(family, KIND)
        return MedusaRun(self.beside(decoder), decoder)


class MedusaRun(StatelessRun):
    """Heads on the rows of one search; guesses nothing until the decoder has taken its first step.

    The hidden states are those that the decoder's last norm gives out, at whatever place the search asks for: a
    forward hook sees them without a second way through the decoder.
    """

    def __init__(self, heads: MedusaHeads, decoder: TextDecoder) -> None:
        self._heads, self._decoder = heads, decoder
        self._seen: Tensor | None = None
        self._hidden: Tensor | None = None  # (R, D), behind the newest token's predecessor
        self._hook = decoder.norm.register_forward_hook(self._watch)

    def _watch(self, module: nn.Module, given: Any, hidden: Tensor) -> None:
        self._seen = hidden

    def propose(self, rows: RowsSoFar, count: int) -> Tensor:
        """The likeliest token (R, k) of each head, of as many as there are."""
        if self._hidden is None:
            return no_guesses(rows)
        logits = self._heads.logits(self._decoder, self._hidden, count).transpose(0, 1)
        return likeliest(rows.suppressed(logits.float()))

    def observe(self, place: Integers) -> None:
        """Keep the hidden state at which the newest token was chosen."""
        if self._seen is not None:
            places = np.minimum(place, self._seen.shape[1] - 1)
            self._hidden = self._seen[np.arange(len(place)), places]

    def reorder(self, rows: Tensor) -> None:
        """Follow the rows."""
        self._hidden = None if self._hidden is None else self._hidden[rows]
        self._seen = None if self._seen is None else self._seen[rows]

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Follow the rows."""
        self.reorder(rows)

    def close(self) -> None:
        """Stop watching."""
        self._hook.remove()

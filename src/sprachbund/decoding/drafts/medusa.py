"""Medusa heads as a draft (arXiv 2401.10774): they read the decoder's last hidden state."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.decoding.draft import (
    NO_GUESS,
    RowsSoFar,
    StatelessRun,
    check_vocabulary,
    torch_decoder,
)
from sprachbund.errors import SprachbundError
from sprachbund.models.drafts import DraftCard, read_draft, write_draft
from sprachbund.models.family import Family, Memory, Target
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.medusa import MedusaHeads, MedusaShape

KIND = "medusa"


class MedusaDraft:
    """Medusa heads and the description of the model they sit on."""

    name = KIND

    def __init__(self, heads: MedusaHeads, card: DraftCard) -> None:
        self.heads = heads.eval()
        self.card = card
        self.acceptance = dict(card.acceptance)

    @classmethod
    def around(cls, heads: MedusaHeads, decoder: TextDecoder, **known: dict[str, object]) -> "MedusaDraft":
        """A draft out of heads made for this decoder; `known` are fields of its card."""
        card = DraftCard(
            kind=KIND,
            vocabulary_size=decoder.embedding.num_embeddings,
            num_layers=len(decoder.layers),
            width=heads.shape.width,
            shape=asdict(heads.shape),
            **known,  # type: ignore[arg-type]
        )
        return cls(heads, card)

    @classmethod
    def load(cls, path: Path) -> "MedusaDraft":
        """Read a file written by `save`. Raises SprachbundError when it does not hold what its head says."""
        card, arrays = read_draft(path)
        try:
            heads = MedusaHeads(MedusaShape(**card.shape))
            heads.load_state_dict({name: array.float() for name, array in arrays.items()})
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise SprachbundError(f"{path} does not hold the Medusa heads it describes: {reason}") from error
        return cls(heads, card)

    def save(self, path: Path) -> None:
        """Write the draft in half precision."""
        write_draft(path, self.card, {n: w.half() for n, w in self.heads.state_dict().items()})

    def check(self, family: Family) -> None:
        """Raise the SprachbundError that names what does not fit."""
        decoder = torch_decoder(family, KIND)
        check_vocabulary(family, KIND, self.card.vocabulary_size)
        seen = (len(decoder.layers), decoder.embedding.embedding_dim)
        if seen != (self.card.num_layers, self.card.width):
            raise SprachbundError(
                f"the Medusa heads sit on a decoder of {self.card.num_layers} layers of width {self.card.width}, "
                f"this one has {seen[0]} of width {seen[1]}; train them for this model"
            )

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> "MedusaRun":
        """Begin to watch the decoder."""
        return MedusaRun(self.heads, torch_decoder(family, KIND))


class MedusaRun(StatelessRun):
    """Heads on the rows of one search; guesses nothing until the decoder has taken its first step.

    The hidden states are those that the decoder's last norm gives out, at whatever place the search asks for: a
    forward hook sees them without a second way through the decoder.
    """

    def __init__(self, heads: MedusaHeads, decoder: TextDecoder) -> None:
        self._heads, self._embedding = heads, decoder.embedding.weight
        self._seen: Tensor | None = None
        self._hidden: Tensor | None = None  # (R, D), behind the newest token's predecessor
        self._hook = decoder.norm.register_forward_hook(self._watch)

    def _watch(self, module: nn.Module, given: Any, hidden: Tensor) -> None:
        self._seen = hidden

    def propose(self, rows: RowsSoFar, count: int) -> Tensor:
        """The likeliest token of each head; `NO_GUESS` behind the last one."""
        guesses = torch.full((len(rows.lengths), count), NO_GUESS, device=rows.lengths.device)
        if self._hidden is not None:
            logits = self._heads.logits(self._hidden, self._embedding)[:count]
            found = logits.masked_fill(rows.suppressed, -torch.inf).argmax(-1)
            guesses[:, : len(found)] = found.T
        return guesses

    def observe(self, place: Tensor) -> None:
        """Keep the hidden state at which the newest token was chosen."""
        if self._seen is not None:
            rows = torch.arange(len(place), device=place.device)
            self._hidden = self._seen[rows, place.clamp(max=self._seen.shape[1] - 1)]

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

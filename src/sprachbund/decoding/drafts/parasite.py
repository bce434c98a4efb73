"""The parasite as a draft (arXiv 2508.11189): it reads the model's own key/value cache.

More than one guess is drawn by running it again on its own guess, which then has no keys of its own to be seen.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from sprachbund.decoding.draft import RowsSoFar, StatelessRun, check_cache, check_vocabulary, torch_decoder
from sprachbund.errors import SprachbundError
from sprachbund.models.drafts import DraftCard, read_draft, write_draft
from sprachbund.models.family import Family, Memory, Target
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.parasite import CrossCache, Parasite, ParasiteShape

KIND = "parasite"


class ParasiteDraft:
    """A parasite and the description of the model it lives on."""

    name = KIND

    def __init__(self, parasite: Parasite, card: DraftCard) -> None:
        self.parasite = parasite.eval()
        self.card = card
        self.acceptance = dict(card.acceptance)

    @classmethod
    def around(cls, parasite: Parasite, decoder: TextDecoder, **known: dict[str, object]) -> "ParasiteDraft":
        """A draft out of a parasite made for this decoder; `known` are fields of its card."""
        shape = parasite.shape
        card = DraftCard(
            kind=KIND,
            vocabulary_size=decoder.embedding.num_embeddings,
            num_layers=shape.num_layers,
            width=shape.width,
            shape={**asdict(shape), "activation": parasite.activation},
            **known,  # type: ignore[arg-type]
        )
        return cls(parasite, card)

    @classmethod
    def load(cls, path: Path) -> "ParasiteDraft":
        """Read a file written by `save`. Raises SprachbundError when it does not hold what its head says."""
        card, arrays = read_draft(path)
        shape = dict(card.shape)
        activation = shape.pop("activation", "gelu")
        try:
            parasite = Parasite(ParasiteShape(**shape), activation)
            parasite.load_state_dict({name: array.float() for name, array in arrays.items()})
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise SprachbundError(f"{path} does not hold the parasite it describes: {reason}") from error
        return cls(parasite, card)

    def save(self, path: Path) -> None:
        """Write the draft in half precision."""
        write_draft(path, self.card, {n: w.half() for n, w in self.parasite.state_dict().items()})

    def check(self, family: Family) -> None:
        """Raise the SprachbundError that names what does not fit."""
        decoder = torch_decoder(family, KIND)
        check_vocabulary(family, KIND, self.card.vocabulary_size)
        seen = (len(decoder.layers), decoder.embedding.embedding_dim)
        if seen != (self.card.num_layers, self.card.width):
            raise SprachbundError(
                f"the parasite lives on a decoder of {self.card.num_layers} layers of width {self.card.width}, "
                f"this one has {seen[0]} of width {seen[1]}; train one for this model"
            )

    def start(
        self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int
    ) -> "ParasiteRun":
        """Make the cross keys and values; the rest is the model's."""
        decoder = torch_decoder(family, KIND)
        allowed = None
        if memory.num_frames is not None:
            frames = torch.arange(memory.states.shape[1], device=memory.states.device)
            allowed = (frames < memory.num_frames[:, None])[:, None, None, :]
        return ParasiteRun(self.parasite, decoder, self.parasite.remember(memory.states, allowed))


class ParasiteRun(StatelessRun):
    """A parasite on the rows of one search."""

    def __init__(self, parasite: Parasite, decoder: TextDecoder, cross: CrossCache) -> None:
        self._parasite, self._decoder, self._cross = parasite, decoder, cross

    def propose(self, rows: RowsSoFar, count: int) -> Tensor:
        """The likeliest token after each row, and so on from there; (R, count)."""
        shape = self._parasite.shape
        heads = (shape.num_heads, shape.width // shape.num_heads)
        check_cache(rows.cache, num_layers=shape.num_layers, heads=heads[0], head_width=heads[1], draft=KIND)
        token, place = rows.last(1)[:, 0], rows.lengths - 1
        guesses = []
        for _ in range(count):
            h = self._parasite.guess(self._decoder, token, place, rows.cache, self._cross)
            logits = self._parasite.logits(self._decoder, h)[:, 0]
            token = logits.masked_fill(rows.suppressed, -torch.inf).argmax(-1)
            guesses.append(token)
            place = (place + 1).clamp(max=self._decoder.max_tokens - 1)
        return torch.stack(guesses, dim=1)

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Drop the cross keys and values of the other memories."""
        self._cross.keep(memories)

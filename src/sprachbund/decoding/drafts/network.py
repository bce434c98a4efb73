"""What drafts out of a trained network have in common: they fit one decoder, and lie in one file."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import RootModel
from torch import Tensor, nn

from sprachbund.decoding.drafts.base import (
    DraftRun,
    Integers,
    RowsSoFar,
    StatelessRun,
    check_cache,
    check_vocabulary,
    no_guesses,
    torch_decoder,
)
from sprachbund.decoding.logits_process import likeliest
from sprachbund.engines.torch_layers import Precision, keep, recast
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.drafts import DraftCard, read_draft, write_draft
from sprachbund.models.weights import check_finite, check_weights
from sprachbund.nn.decoder import TextDecoder, allowed_frames
from sprachbund.nn.drafts import CrossCache, MedusaHeads, MedusaShape, Parasite, ParasiteShape
from sprachbund.nn.feed_forward import ACTIVATIONS
from sprachbund.util.files import validate


class NetworkDraft(ABC):
    """A network and the description of the model that it reads in.

    Attributes:
        name: of the kind.
        title: of the kind, in sentences.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    guesses: int | None = None

    def __init__(self, network: nn.Module, card: DraftCard) -> None:
        self.network = network.eval()
        self.card = card
        self.acceptance = dict(card.acceptance)
        self._beside: dict[Precision, Any] = {}

    def beside(self, decoder: TextDecoder) -> Any:
        """The network as it runs beside a decoder: in its precision, with products as fast as the decoder's."""
        precision: Precision = "bf16" if decoder.positions.dtype == torch.bfloat16 else "fp32"
        if precision not in self._beside:
            self._beside[precision] = recast(self.network, precision, keep)
        return self._beside[precision]

    @staticmethod
    @abstractmethod
    def build(shape: dict[str, Any]) -> nn.Module:
        """An untrained network from what `sizes` gave. Raises SprachbundError for anything else."""

    @staticmethod
    @abstractmethod
    def sizes(network: Any) -> dict[str, Any]:
        """The network's shape as plain values."""

    @abstractmethod
    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> DraftRun:
        """See `sprachbund.decoding.drafts.base.Draft`."""

    @classmethod
    def around(cls, network: nn.Module, decoder: TextDecoder, **known: Any) -> Self:
        """A draft out of a network made for this decoder; `known` are fields of its card."""
        card = DraftCard(
            kind=cls.name,
            vocabulary_size=decoder.embedding.num_embeddings,
            num_layers=len(decoder.layers),
            width=decoder.embedding.embedding_dim,
            shape=cls.sizes(network),
            **known,
        )
        return cls(network, card)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file written by `save`. Raises SprachbundError when it does not hold what its head says."""
        card, arrays = read_draft(path)
        try:
            with torch.device("meta"):
                network = cls.build(dict(card.shape))
            weights = {name: array.float() for name, array in arrays.items() if array.is_floating_point()}
            check_weights(weights, network.state_dict(), path)
            check_finite(weights, path)
            network.load_state_dict(weights, assign=True)
        except (SprachbundError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise SprachbundError(f"{path} does not hold the {cls.title} it describes: {reason}") from error
        return cls(network, card)

    def save(self, path: Path) -> None:
        """Write the draft in half precision."""
        write_draft(path, self.card, {n: w.half() for n, w in self.network.state_dict().items()})

    def check(self, family: Family) -> None:
        """Raise the SprachbundError that names what does not fit."""
        decoder = torch_decoder(family, self.name)
        check_vocabulary(family, self.name, self.card.vocabulary_size)
        seen = (len(decoder.layers), decoder.embedding.embedding_dim)
        if seen != (self.card.num_layers, self.card.width):
            raise SprachbundError(
                f"the {self.title} was made for a decoder of {self.card.num_layers} layers of width "
                f"{self.card.width}, this one has {seen[0]} of width {seen[1]}; train one for this model"
            )


# The parasite as a draft (arXiv 2508.11189): it reads the model's own key/value cache.
#
# More than one guess is drawn by running it again on its own guess, which then has no keys of its own to
# be seen.

PARASITE = "parasite"


class ParasiteDraft(NetworkDraft):
    """A parasite and the description of the model it lives on."""

    name = PARASITE
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
        decoder = torch_decoder(family, PARASITE)
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
        check_cache(
            rows.cache, num_layers=shape.num_layers, heads=heads[0], head_width=heads[1], draft=PARASITE
        )
        tokens = [rows.newest()[:, 0]]
        for ahead in range(count):
            place = rows.on_device(np.minimum(rows.lengths - 1 + ahead, self._decoder.max_tokens - 1))
            h = self._parasite.predict(self._decoder, tokens[-1], place, rows.cache, self._cross)
            logits = self._parasite.logits(self._decoder, h)[:, 0]
            tokens.append(likeliest(rows.suppressed(logits.float())))
        return torch.stack(tokens[1:], dim=1)

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Drop the cross keys and values of the other memories."""
        self._cross.keep(memories)


# Medusa heads as a draft (arXiv 2401.10774): they read the decoder's last hidden state.

MEDUSA = "medusa"


class MedusaDraft(NetworkDraft):
    """Medusa heads and the description of the model they sit on."""

    name = MEDUSA
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
        decoder = torch_decoder(family, MEDUSA)
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

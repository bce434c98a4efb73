"""What drafts out of a trained network have in common: they fit one decoder, and lie in one file."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from sprachbund.decoding.draft import DraftRun, check_vocabulary, torch_decoder
from sprachbund.errors import SprachbundError
from sprachbund.models.drafts import DraftCard, read_draft, write_draft
from sprachbund.models.family import Family, Memory, Target
from sprachbund.models.weights import check_finite, check_weights
from sprachbund.nn.decoder import TextDecoder
from sprachbund.runtime.torch_linear import Precision, keep, recast


class NetworkDraft(ABC):
    """A network and the description of the model that it reads in.

    Attributes:
        name: of the kind.
        title: of the kind, in sentences.
    """

    name: ClassVar[str]
    title: ClassVar[str]

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
        """See `sprachbund.decoding.draft.Draft`."""

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

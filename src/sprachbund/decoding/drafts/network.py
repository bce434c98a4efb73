"""Drafts that are trained networks: the parasite (arXiv 2508.11189) and Medusa heads (arXiv 2401.10774).

Each fits one decoder and is saved as one file. The parasite reads the model's own key/value cache; further draft tokens
come from running it again on its own token, which then has no keys of its own to be seen. Medusa heads read the
decoder's last hidden state.

Shapes: R rows, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import RootModel
from torch import Tensor, nn

from sprachbund.decoding.drafts.base import (
    DecodingState,
    DraftRun,
    Integers,
    MeasuredDraft,
    StatelessRun,
    check_cache,
    check_vocabulary,
    no_draft_tokens,
    torch_decoder,
)
from sprachbund.decoding.logits_process import likeliest
from sprachbund.engines.extension import native
from sprachbund.engines.native_engine import NativeDecoder, NativeParasite
from sprachbund.engines.packing import pack_matrix
from sprachbund.engines.torch_layers import Precision, keep, recast
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.drafts import DraftCard, read_draft, write_draft
from sprachbund.models.weights import check_finite, check_weights
from sprachbund.nn.decoder import TextDecoder, allowed_frames
from sprachbund.nn.drafts import CrossCache, MedusaHeads, MedusaShape, Parasite, ParasiteShape
from sprachbund.nn.feed_forward import ACTIVATIONS
from sprachbund.util.files import validate


class NetworkDraft(MeasuredDraft, ABC):
    """A network and the description of the model that it belongs to.

    Attributes:
        name: name of the kind.
        title: title of the kind, in sentences.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    num_draft_tokens: int | None = None

    def __init__(self, network: nn.Module, card: DraftCard) -> None:
        super().__init__(card)
        self.network = network.eval()
        self._by_precision: dict[Precision, Any] = {}

    def for_decoder(self, decoder: TextDecoder) -> Any:
        """The network in the precision of a decoder, with linear layers as fast as the decoder's."""
        precision: Precision = "bf16" if decoder.positions.dtype == torch.bfloat16 else "fp32"
        if precision not in self._by_precision:
            network = self.network.to(decoder.positions.device)
            self._by_precision[precision] = recast(network, precision, keep)
        return self._by_precision[precision]

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
        """See `sprachbund.decoding.drafts.base.Draft`, arguments included."""

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

    def decoder_size(self, family: Family) -> tuple[int, int]:
        """Layers and width of the decoder. Raises SprachbundError for one that the network cannot read."""
        native_decoder = family.capabilities.decoder
        if isinstance(native_decoder, NativeDecoder):
            return native_decoder.shape.num_layers, native_decoder.shape.width
        decoder = torch_decoder(family, self.name)
        return len(decoder.layers), decoder.embedding.embedding_dim

    def check(self, family: Family) -> None:
        """Raise the SprachbundError that names what does not fit."""
        seen = self.decoder_size(family)
        check_vocabulary(family, self.name, self.card.vocabulary_size)
        if seen != (self.card.num_layers, self.card.width):
            raise SprachbundError(
                f"the {self.title} was made for a decoder of {self.card.num_layers} layers of width "
                f"{self.card.width}, this one has {seen[0]} of width {seen[1]}; train one for this model"
            )


# The parasite.

PARASITE = "parasite"


class ParasiteDraft(NetworkDraft):
    """A parasite and the description of its model."""

    name = PARASITE
    title = "parasite"
    network: Parasite
    _packed: tuple[NativeDecoder, NativeParasite] | None = None

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
        """Shape and activation of the parasite."""
        return {**asdict(network.shape), "activation": network.activation}

    def check(self, family: Family) -> None:
        """Raise the SprachbundError that names what does not fit."""
        super().check(family)
        decoder, shape = family.capabilities.decoder, self.network.shape
        if isinstance(decoder, NativeDecoder):
            made_for = (shape.num_heads, shape.memory_width)
            if (seen := (decoder.shape.heads, decoder.shape.memory_width)) != made_for:
                raise SprachbundError(
                    f"the {self.title} was made for {made_for[0]} heads and a memory of width {made_for[1]}, this "
                    f"decoder has {seen[0]} and {seen[1]}; train one for this model"
                )

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> DraftRun:
        """Compute the cross-attention keys and values; see `NetworkDraft.start` for the arguments."""
        native_decoder = family.capabilities.decoder
        if isinstance(native_decoder, NativeDecoder):
            return NativeParasiteRun(self.packed_for(native_decoder), native_decoder, memory)
        decoder = torch_decoder(family, PARASITE)
        parasite: Parasite = self.for_decoder(decoder)
        allowed = allowed_frames(memory.states, memory.num_frames)
        return ParasiteRun(parasite, decoder, parasite.remember(memory.states, allowed))

    def packed_for(self, decoder: NativeDecoder) -> NativeParasite:
        """The parasite as the native engine reads it, in 8 bits; packed once for a decoder."""
        if self._packed is None or self._packed[0] is not decoder:
            self._packed = decoder, NativeParasite(self.network, decoder)
        return self._packed[1]


class InsideSearch(StatelessRun):
    """A run that the native engine makes itself, and nobody from outside its search.

    Attributes:
        name: the draft as the subject of a sentence, with its verb.
    """

    name: ClassVar[str]

    def propose(self, state: DecodingState, count: int) -> Tensor:
        """Raises SprachbundError: there is nothing to read outside the engine's own search."""
        raise SprachbundError(
            f"in the native engine, {self.name} for greedy search with exact "
            "acceptance; change that, or use --engine torch or --draft none"
        )

    def native_draft(self, prompts: Sequence[int]) -> Any:
        """See `sprachbund.decoding.drafts.base.NativeRun`."""
        raise NotImplementedError


class NativeParasiteRun(InsideSearch):
    """A parasite inside the native engine's own search.

    Args:
        packed: the parasite.
        decoder: decoder whose keys and values it reads.
        memory: memory of the utterances.
        planted: a text for every row whose tokens are proposed in place of its own, for measurements; or none.
    """

    name = "a parasite drafts"

    def __init__(
        self,
        packed: NativeParasite,
        decoder: NativeDecoder,
        memory: Memory,
        planted: Sequence[Sequence[int]] = (),
    ) -> None:
        self._packed, self._decoder = packed, decoder
        self._remembered = packed.remember(memory.states, memory.num_frames)
        self._planted = [list(text) for text in planted]

    def native_draft(self, prompts: Sequence[int]) -> Any:
        """See `sprachbund.decoding.drafts.base.NativeRun`."""
        return self._decoder.parasite_draft(self._packed, self._remembered, self._planted, list(prompts))


class ParasiteRun(StatelessRun):
    """A parasite on the rows of one search."""

    def __init__(self, parasite: Parasite, decoder: TextDecoder, cross: CrossCache) -> None:
        self._parasite, self._decoder, self._cross = parasite, decoder, cross

    def propose(self, state: DecodingState, count: int) -> Tensor:
        """The likeliest token after each row, and so on from there; (R, count)."""
        shape = self._parasite.shape
        heads = (shape.num_heads, shape.width // shape.num_heads)
        check_cache(
            state.cache, num_layers=shape.num_layers, heads=heads[0], head_width=heads[1], draft=PARASITE
        )
        tokens = [state.newest()[:, 0]]
        for ahead in range(count):
            position = state.on_device(np.minimum(state.lengths - 1 + ahead, self._decoder.max_tokens - 1))
            h = self._parasite.predict(self._decoder, tokens[-1], position, state.cache, self._cross)
            logits = self._parasite.logits(self._decoder, h)[:, 0]
            tokens.append(likeliest(state.suppressed(logits.float())))
        return torch.stack(tokens[1:], dim=1)

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Drop the cross keys and values of the other memories."""
        self._cross.keep(memories)


# Medusa heads.

MEDUSA = "medusa"


class MedusaDraft(NetworkDraft):
    """Medusa heads and the description of their model."""

    name = MEDUSA
    title = "set of Medusa heads"
    network: MedusaHeads

    @staticmethod
    def build(shape: dict[str, Any]) -> MedusaHeads:
        """Untrained heads from what `sizes` gave."""
        return MedusaHeads(validate(RootModel[MedusaShape], shape, "shape").root)

    @staticmethod
    def sizes(network: MedusaHeads) -> dict[str, Any]:
        """Shape of the Medusa heads."""
        return asdict(network.shape)

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> DraftRun:
        """Hook into the decoder's last norm, if torch computes it; see `NetworkDraft.start` for the arguments."""
        decoder = family.capabilities.decoder
        if isinstance(decoder, NativeDecoder):
            return NativeMedusaRun(self.packed, decoder)
        in_torch = torch_decoder(family, MEDUSA)
        return MedusaRun(self.for_decoder(in_torch), in_torch)

    @cached_property
    def packed(self) -> Any:
        """The heads as the native engine reads them, in 8 bits."""
        shape, arrays = self.network.shape, dict[str, Tensor]()
        for name, weight in self.network.state_dict().items():
            head, block = name.split(".")[1:3]
            if name.endswith(".weight"):
                bias = self.network.state_dict()[name.removesuffix("weight") + "bias"]
                arrays |= pack_matrix(f"{head}.{block}", weight.float(), bias.float())
        return native().Heads(arrays, heads=shape.num_heads, blocks=shape.num_blocks, width=shape.width)


class NativeMedusaRun(InsideSearch):
    """Heads inside the native engine's own search.

    Args:
        packed: the heads.
        decoder: decoder whose states they read.
        planted: a text for every row whose tokens are proposed in place of the heads' own, for measurements; or none.
    """

    name = "Medusa heads draft"

    def __init__(self, packed: Any, decoder: NativeDecoder, planted: Sequence[Sequence[int]] = ()) -> None:
        self._packed, self._decoder = packed, decoder
        self._planted = [list(text) for text in planted]

    def native_draft(self, prompts: Sequence[int]) -> Any:
        """See `sprachbund.decoding.drafts.base.NativeRun`."""
        return self._decoder.heads_draft(self._packed, self._planted, list(prompts))


class MedusaRun(StatelessRun):
    """Heads on the rows of one search; no draft tokens until the decoder has taken its first step.

    The hidden states are the outputs of the decoder's last norm. A forward hook reads them without a second pass of the
    decoder.
    """

    def __init__(self, heads: MedusaHeads, decoder: TextDecoder) -> None:
        self._heads, self._decoder = heads, decoder
        self._seen: Tensor | None = None
        self._hidden: Tensor | None = None  # (R, D), behind the newest token's predecessor
        self._hook = decoder.norm.register_forward_hook(self._watch)

    def _watch(self, module: nn.Module, inputs: Any, hidden: Tensor) -> None:
        self._seen = hidden

    def propose(self, state: DecodingState, count: int) -> Tensor:
        """The likeliest token (R, k) of each head, of as many as there are."""
        if self._hidden is None:
            return no_draft_tokens(state)
        logits = self._heads.logits(self._decoder, self._hidden, count).transpose(0, 1)
        return likeliest(state.suppressed(logits.float()))

    def observe(self, last_query: Integers) -> None:
        """Keep the hidden state at which the newest token was chosen."""
        if self._seen is not None:
            queries = np.minimum(last_query, self._seen.shape[1] - 1)
            self._hidden = self._seen[np.arange(len(queries)), queries]

    def reorder(self, rows: Tensor) -> None:
        """Follow the rows."""
        self._hidden = None if self._hidden is None else self._hidden[rows]
        self._seen = None if self._seen is None else self._seen[rows]

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Follow the rows."""
        self.reorder(rows)

    def close(self) -> None:
        """Remove the hook."""
        self._hook.remove()

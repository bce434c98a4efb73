"""Parameters and memory of a size of the comparison of discrete units: every head on the meta device.

Shapes: S source tokens, T frames, U target tokens, W tokens that may be written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, computed_field
from torch import Tensor

from sprachbund.models.tokens.config import MBART_50, MBART_50_TOKENS, MbartConfig, TokenConfig
from sprachbund.models.tokens.conformer import TokenConformer
from sprachbund.models.tokens.mbart import TokenMbart
from sprachbund.nn.text_to_text import MbartDecoder
from sprachbund.research.discrete_units.options import DiscreteUnitsRecipe
from sprachbund.research.discrete_units.rates import trials
from sprachbund.research.estimate import (
    FLOAT_BYTES,
    PASSES,
    MemoryEstimate,
    TrainingEstimate,
    count_parameters,
    moments_bytes,
    weights_bytes,
)
from sprachbund.training.memory import forward_on_meta

SOURCE_S, SOURCE_TOKENS, TARGET_TOKENS = 6.3, 100, 25
"""Lengths of the published sentences, of 18 words."""


class Sized(BaseModel):
    """Parts of a model.

    Attributes:
        parts: parameters of its parts.
    """

    model_config = ConfigDict(frozen=True)

    parts: dict[str, int]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return sum(self.parts.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fixed_bytes(self) -> int:
        """Weights, gradients and the moments of AdamW."""
        return weights_bytes(self.parameters) + moments_bytes(self.parameters)


class UnitsTraining(Sized):
    """Estimate of the training of one head.

    Attributes:
        head: name of the head.
        kept_bytes: bytes that a sentence keeps for the backward pass, in 32 bits, without its logits.
        logits_bytes: bytes of its largest logits.
        sentences: sentences of that length in a batch.
        flops: floating-point operations of all steps, over such batches.
    """

    head: str
    kept_bytes: int
    logits_bytes: int
    sentences: int
    flops: float


class FromMbart(Sized):
    """A model that starts from mBART-50.

    Attributes:
        tokens: tokens of mBART-50.
        whole: parameters of encoder and decoder with all of them.
        kept: tokens that are kept, taken to be as many as may be written.
        units: rows that are new.
    """

    tokens: int
    whole: int
    kept: int
    units: int


class DiscreteUnitsEstimate(MemoryEstimate):
    """Sizes of all heads.

    Attributes:
        vocabulary: ids that are read.
        written: ids that may be written.
        heads: every head.
        mbart: the start from mBART-50; None in sizes without a text start.
        trainings: models that are trained over all seeds and learning rates, equal arms once.
        source_tokens: tokens of the source of the sentence that memory is estimated for.
        target_tokens: tokens of its target.
    """

    vocabulary: int
    written: int
    heads: tuple[UnitsTraining, ...]
    mbart: FromMbart | None
    trainings: int
    source_tokens: int = SOURCE_TOKENS
    target_tokens: int = TARGET_TOKENS

    @property
    def of_trainings(self) -> tuple[TrainingEstimate, ...]:
        """Memory of a training with each head."""
        return tuple(
            TrainingEstimate(
                name=one.head,
                fixed_bytes=one.fixed_bytes,
                batch_bytes=(one.kept_bytes + one.logits_bytes) * one.sentences,
                utterances=one.sentences,
                flops=one.flops,
            )
            for one in self.heads
        )


class PlannedVocabulary:
    """A vocabulary of which only the sizes are known; satisfies `sprachbund.models.tokens.text_input.Vocabulary`."""

    def __init__(self, text_pieces: int, unit_pieces: int, languages: Sequence[str]) -> None:
        size = 1 + text_pieces + unit_pieces
        self.end, self._languages = size, list(languages)
        ids = np.arange(size + 1)
        self.is_unit = (ids > text_pieces) & (ids < size)
        self.suppressed = self.is_unit.copy()

    def __len__(self) -> int:
        return self.end + 1

    def language_id(self, language: str) -> int:
        """Language tokens follow the unknown."""
        return 2 + self._languages.index(language)

    def decode_text(self, ids: Sequence[int]) -> str:
        """There is no text."""
        raise NotImplementedError


class PlannedReader:
    """Reads nothing; satisfies `sprachbund.models.tokens.text_input.Reader`."""

    directory = Path()

    def __init__(self, vocabulary: PlannedVocabulary) -> None:
        self.vocabulary = vocabulary

    def speech(self, samples: Sequence[np.ndarray]) -> list[list[int]]:
        """There is no encoder."""
        raise NotImplementedError

    def text(self, texts: Sequence[str]) -> list[list[int]]:
        """There are no pieces."""
        raise NotImplementedError


def estimate_memory(recipe: DiscreteUnitsRecipe) -> DiscreteUnitsEstimate:
    """Estimate a recipe by building every head."""
    units = recipe.units
    languages = tuple(sorted({*recipe.sources, recipe.target}))
    vocabulary = PlannedVocabulary(units.text_pieces, units.unit_pieces or units.kmeans.clusters, languages)
    models = {head: _planned(recipe, head, vocabulary) for head in recipe.heads}
    from_text = any(arm.text == "start" for arm in recipe.all_arms.values())
    return DiscreteUnitsEstimate(
        languages=languages,
        vocabulary=len(vocabulary),
        written=len(next(iter(models.values())).written),
        heads=tuple(_training(recipe, head, model) for head, model in models.items()),
        mbart=_from_mbart(recipe, vocabulary) if from_text else None,
        trainings=_trainings(recipe),
    )


def _trainings(recipe: DiscreteUnitsRecipe) -> int:
    """Models that are trained: one of those that try an arm's learning rates is that of the first seed.

    Those with rates beyond the given ones are not known before.
    """
    tuned = recipe.tuned()
    tried = sum(seed == recipe.seeds[0] and arm in tuned for _, seed, arm in recipe.models())
    return len(recipe.models()) - tried + len(trials(recipe)) + len(recipe.text_models())


def _planned(recipe: DiscreteUnitsRecipe, head: Any, vocabulary: PlannedVocabulary) -> TokenConformer:
    shape = recipe.model.model_copy(update={"head": head})
    with torch.device("meta"):
        return TokenConformer(
            TokenConfig(**shape.model_dump(), pairs=recipe.pairs), PlannedReader(vocabulary)
        )


def _from_mbart(recipe: DiscreteUnitsRecipe, vocabulary: PlannedVocabulary) -> FromMbart:
    config = MbartConfig(**MBART_50.model_dump(), pairs=recipe.pairs)
    with torch.device("meta"):
        model = TokenMbart(config, PlannedReader(vocabulary))
        whole = [model.encoder, MbartDecoder(MBART_50_TOKENS, MBART_50)]
    return FromMbart(
        tokens=MBART_50_TOKENS,
        whole=sum(map(count_parameters, whole)),
        kept=len(model.written),
        units=model.unit_embedding.num_embeddings,
        parts={name: count_parameters(part) for name, part in model.named_children()},
    )


def _training(recipe: DiscreteUnitsRecipe, head: str, model: TokenConformer) -> UnitsTraining:
    model.train()
    frames = -(-SOURCE_TOKENS // 2**model.config.strides)
    num_logits = {"attention": TARGET_TOKENS, "transducer": frames * TARGET_TOKENS}
    largest = num_logits.get(head, max(frames, TARGET_TOKENS))
    options, passed = recipe.training, forward_on_meta(model, lambda: _forward(model))
    sentences = max(1, min(options.max_utterances, int(options.batch_s // SOURCE_S)))
    of_logits = 2 * model.config.width * largest * len(model.written)
    return UnitsTraining(
        head=head,
        parts={name: count_parameters(part) for name, part in model.named_children()},
        kept_bytes=passed.kept_bytes,
        logits_bytes=FLOAT_BYTES * largest * len(model.written),
        sentences=sentences,
        flops=PASSES * (passed.flops + of_logits) * sentences * options.steps,
    )


def _forward(model: TokenConformer) -> Tensor:
    """The passes over one sentence, but for logits; masks would be drawn, which cannot be done on this device."""
    model.encoder.time_masks = 0
    with torch.device("meta"):
        source = torch.zeros(1, SOURCE_TOKENS, dtype=torch.long)
        encoded = model.encoder(source, torch.full((1,), SOURCE_TOKENS))
        target = torch.zeros(1, TARGET_TOKENS, dtype=torch.long)
        total: Tensor = encoded.states.sum()
        if model.decoder is not None:
            total = total + model.decoder(target, encoded.states, None).sum()
        if model.config.head == "transducer":
            total = total + model.transducer.prediction(target).sum()
    return total

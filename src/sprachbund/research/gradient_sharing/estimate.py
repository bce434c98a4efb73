"""Parameters and memory of a size of the comparison: models of the true shape on the meta device.

Parameters are counted and plans are fitted on the modules that would be trained; activations are counted by a forward
pass on that device. Shapes: B utterances, T frames, M mel bins, U tokens of a row.
"""

from collections.abc import Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.models.conformer import Conformer, ConformerConfig, ConformerShape
from sprachbund.models.sharing_plan import SharingPlan, Split
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.research.estimate import (
    FLOAT_BYTES,
    PASSES,
    MemoryEstimate,
    TrainingEstimate,
    TrainingMemory,
    count_parameters,
    estimate_of,
    moments_bytes,
    weights_bytes,
)
from sprachbund.research.gradient_sharing.analyses import FEW
from sprachbund.research.gradient_sharing.gradients import choose_modules, make_projection
from sprachbund.research.gradient_sharing.options import (
    ARMS,
    ENCODER,
    GradientSharingRecipe,
    SharingArm,
    last_layers,
)
from sprachbund.research.gradient_sharing.plan_options import RATIOS
from sprachbund.training.lora import add_lora, rank_for
from sprachbund.training.memory import Forward, forward_on_meta
from sprachbund.training.options import TrainingOptions
from sprachbund.training.recipe import ExampleRecipe

_INPUT = {
    "conformer": (100, ConformerShape().num_mel_bins, ExampleRecipe().rows_per_utterance),
    "seamless": (50, 160, 1),
}
"""Family to frames a second, bins, and rows of an utterance."""


class SharingTraining(TrainingMemory):
    """One training of the comparison.

    `kept_bytes` are those of the longest batch before the split, which keeps less.

    Attributes:
        name: name of the arm, or "first".
        split: module to inner widths, shared and private; empty where nothing is split.
        parameters: parameters in all.
        trained: parameters that are trained.
        utterances: utterances in the largest batch.
    """

    name: str
    split: dict[str, tuple[int, ...]]
    parameters: int
    trained: int
    utterances: int


class Collecting(BaseModel):
    """The analysis: passes forward and backward, and the memory of the gradients beside a training step's.

    Attributes:
        modules: modules that are analysed.
        vectors: vectors of each language.
        passes: passes in all.
        coordinates: coordinates of a gradient.
        gradients_bytes: held at a time.
        dense_bytes: bytes of the projection matrix that is never made.
    """

    model_config = ConfigDict(frozen=True)

    modules: tuple[str, ...]
    vectors: int
    passes: int
    coordinates: int
    gradients_bytes: int
    dense_bytes: int


class GradientSharingEstimate(MemoryEstimate):
    """Sizes of all trainings and of the analysis.

    Attributes:
        model: description of the model.
        worst_case: whether arms split by gradients have the plan with the most parameters.
        seeds: number of seeds, each of which repeats everything.
        trainings: the first one, then every arm.
        collecting: the analysis, which a recipe with a plan leaves out.
    """

    model: str
    worst_case: bool
    seeds: int
    trainings: tuple[SharingTraining, ...]
    collecting: Collecting

    @property
    def of_trainings(self) -> tuple[TrainingEstimate, ...]:
        """Memory of each training."""
        return tuple(estimate_of(one.name, one, one.utterances) for one in self.trainings)


def estimate_memory(recipe: GradientSharingRecipe) -> GradientSharingEstimate:
    """Estimate a recipe; every arm's plan is fitted to the shape.

    A plan that gradients would decide is replaced by the one with the most parameters: the largest number of groups
    and the largest shared branch.

    Raises:
        SprachbundError: for a plan that does not fit, naming module and reason, or a pattern without a match.
    """
    model = _shape(recipe)
    return GradientSharingEstimate(
        model=f"SeamlessM4T {recipe.seamless}" if recipe.seamless else "conformer",
        worst_case=recipe.plan is None,
        languages=recipe.languages,
        seeds=len(recipe.seeds),
        trainings=(
            _training("first", model, recipe.first, recipe.first.trainable),
            *(_arm(recipe, name, deepcopy(model)) for name in recipe.all_arms if ARMS[name].goes_on),
        ),
        collecting=_collecting(recipe, model),
    )


def _shape(recipe: GradientSharingRecipe) -> Any:
    """The recipe's model, without memory."""
    if recipe.seamless is None:
        config = ConformerConfig(
            source_languages=recipe.languages, target_languages=recipe.languages, **recipe.model.model_dump()
        )
        with torch.device("meta"):  # of the tokenizers, the numbers of pieces decide
            vocabularies = (recipe.vocabulary_size, recipe.transcript_vocabulary_size)
            return Conformer(config, *(cast(Any, range(size)) for size in vocabularies))
    from sprachbund.models.seamless import Seamless

    model = Seamless.shape(recipe.seamless).to("meta")
    model.source_languages = recipe.languages
    return model


def _arm(recipe: GradientSharingRecipe, name: str, model: Any) -> SharingTraining:
    arm = ARMS[name]
    plan = _plan(recipe, arm, model)
    layers = last_layers(len(model.encoder.layers))
    moving = tuple(f"{module}.*" for module in (*layers, *(split.module for split in plan.splits)))
    if arm.split == "lora":
        size = sum(p.numel() for p in _set_trained(model, moving))
        add_lora(model, ENCODER, rank_for(model, ENCODER, size))
        moving = ("*lora_*",)
    return _training(name, model, recipe.second, () if arm.whole else moving, plan)


def _plan(recipe: GradientSharingRecipe, arm: SharingArm, model: nn.Module) -> SharingPlan:
    if arm.split in ("none", "lora"):
        return SharingPlan()
    ratio = max(RATIOS) if arm.shared_ratio is None else arm.shared_ratio
    if recipe.plan is not None:
        splits = recipe.plan.splits
        if arm.shared_ratio is not None:
            splits = tuple(s.model_copy(update={"shared_ratio": ratio}) for s in splits)
    else:
        tags = recipe.languages
        count = 2 if len(tags) <= FEW else len(tags) - 1
        groups = (*((tag,) for tag in tags[: count - 1]), tags[count - 1 :])
        modules = list(choose_modules(model, recipe.analysis.modules))[-recipe.num_modules :]
        splits = tuple(Split(module=name, groups=groups, shared_ratio=ratio) for name in modules)
    if arm.split == "languages":
        alone = tuple((tag,) for tag in sorted(recipe.languages))
        splits = tuple(Split(module=s.module, groups=alone, shared_ratio=s.shared_ratio) for s in splits)
    return SharingPlan(splits=splits)


def _training(
    name: str,
    model: Any,
    options: TrainingOptions,
    moving: Sequence[str],
    plan: SharingPlan | None = None,
) -> SharingTraining:
    _set_trained(model, moving)
    count, kept = _forward_of_batch(model, options)
    splits = plan.splits if plan else ()
    if splits:
        split_feed_forwards(model, SharingPlan(splits=splits))
    trained = sum(parameter.numel() for parameter in _set_trained(model, moving))
    parameters = count_parameters(model)
    return SharingTraining(
        name=name,
        split={split.module: _widths(model.get_submodule(split.module)) for split in splits},
        parameters=parameters,
        trained=trained,
        weights_bytes=weights_bytes(parameters),
        moments_bytes=moments_bytes(trained),
        kept_bytes=kept.kept_bytes,
        flops=PASSES * kept.flops * options.steps,
        utterances=count,
    )


def _widths(module: Any) -> tuple[int, ...]:
    return tuple(branch.expand.out_features for branch in (module.shared, *module.private))


def _set_trained(model: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    """Track what matches, everything if there are no patterns, and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not patterns or any(fnmatchcase(name, pattern) for pattern in patterns))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _forward_of_batch(model: Any, options: TrainingOptions) -> tuple[int, Forward]:
    """Utterances of a batch of the longest ones, and their forward pass with the longest rows, on the meta device."""
    seconds = min(options.max_duration_s, model.max_window_s, options.batch_s)
    count = min(options.max_utterances, int(options.batch_s // seconds))
    model.train()
    with torch.device("meta"):
        return count, forward_on_meta(model, lambda: _forward(model, count, seconds))


def _forward(model: Any, count: int, seconds: float) -> Tensor:
    """The loss of `count` utterances with the longest rows."""
    rate, bins, repeats = _INPUT[model.name]
    length = int(seconds * rate)
    states = model.encoder(torch.zeros(count, length, bins), torch.full((count,), length))
    memory = [part.repeat_interleave(repeats, 0) for part in states]
    rows = torch.zeros(count * repeats, model.max_tokens, dtype=torch.long)
    logits = model.decoder.logits(model.decoder(rows, *memory)).float()
    return F.cross_entropy(logits.flatten(0, 1), rows.flatten())


def _collecting(recipe: GradientSharingRecipe, model: nn.Module) -> Collecting:
    model.requires_grad_(True)
    options = recipe.collecting(recipe.seeds[0])
    modules = choose_modules(model, options.modules)
    size = sum(parameter.numel() for inside in modules.values() for parameter in inside.values())
    block = min(make_projection(options.projection, options.dimensions, 0).block(size), options.vectors)
    return Collecting(
        modules=tuple(modules),
        vectors=options.vectors,
        passes=len(recipe.languages) * options.vectors * options.accumulate,
        coordinates=size,
        gradients_bytes=FLOAT_BYTES * size * (block + 2),
        dense_bytes=FLOAT_BYTES * size * options.dimensions,
    )

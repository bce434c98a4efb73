"""The four stages of training as values: parts that are trained, data and losses (arXiv 2511.10670).

That there are four, and their names' order, is published; contents and numbers are ours. Everything here is a pure
function or a value, so that a recipe reads as a loop over stages, and any of them can be left out.
"""

import hashlib
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import nn

from sprachbund.errors import SprachbundError
from sprachbund.models.speech_llm.config import LossWeights, Options

Trained = Literal["projector", "encoder adapters", "llm adapters"]
Data = Literal["monolingual asr", "monolingual st", "code-switched st"]
Side = Literal["previous", "next"]

PATTERNS: dict[Trained, str] = {
    "projector": "projector.*",
    "encoder adapters": "encoder.*.lora_*",
    "llm adapters": "llm.*.lora_*",
}
"""Names of the parameters of each part, as `TrainingOptions.trainable` takes them."""
_ALL: tuple[Trained, ...] = ("projector", "encoder adapters", "llm adapters")


class Stage(Options):
    """A stage of the training.

    Attributes:
        name: in reports and on the command line.
        data: data that it learns from; in a transition, the data that it moves to.
        coming_from: in a transition, the data of the stage before; else none.
        trained: parts that move; everything else is frozen.
        losses: weights beside cross-entropy.
        learning_rate: highest.
        warmup_steps: steps in which the rate rises from 0.
        clip_norm: largest norm of the gradients.
    """

    name: str
    data: tuple[Data, ...]
    coming_from: tuple[Data, ...] = ()
    trained: tuple[Trained, ...] = _ALL
    losses: LossWeights = LossWeights()
    learning_rate: PositiveFloat
    warmup_steps: NonNegativeInt = 1000
    clip_norm: PositiveFloat = 1.0

    @property
    def patterns(self) -> tuple[str, ...]:
        """Names of the parameters that move, `*` for anything."""
        return tuple(PATTERNS[part] for part in self.trained)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, then a cosine down to a tenth."""
        rising = min(1.0, (step + 1) / max(1, self.warmup_steps))
        done = max(0, step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.learning_rate * rising * (0.55 + 0.45 * math.cos(math.pi * min(1.0, done)))


STAGES: tuple[Stage, ...] = (
    Stage(name="align", data=("monolingual asr",), trained=("projector",), learning_rate=1e-4),
    Stage(name="monolingual", data=("monolingual st",), learning_rate=5e-5),
    Stage(
        name="transition",
        data=("code-switched st",),
        coming_from=("monolingual st",),
        learning_rate=5e-5,
    ),
    Stage(name="code-switched", data=("code-switched st", "monolingual st"), learning_rate=2e-5),
)


def stages_without(skipped: Sequence[str]) -> tuple[Stage, ...]:
    """The stages but those of these names. Raises SprachbundError for a name that no stage has."""
    names = [stage.name for stage in STAGES]
    if unknown := [name for name in skipped if name not in names]:
        raise SprachbundError(
            f"there is no stage {unknown[0]!r} to leave out; the stages are {', '.join(names)}"
        )
    return tuple(stage for stage in STAGES if stage.name not in skipped)


def enter(model: Any, stage: Stage) -> int:
    """Let move what the stage trains, freeze everything else, and take its weights of losses.

    Returns:
        the number of parameters that move.

    Raises:
        SprachbundError: the model has no parameter of a part that the stage trains.
    """
    for part in stage.trained:
        if not any(fnmatchcase(name, PATTERNS[part]) for name, _ in model.named_parameters()):
            raise SprachbundError(f"the stage {stage.name!r} trains {part}, but the model has none")
    model.losses = stage.losses
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_moves(name, stage))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def frozen_digest(model: nn.Module, stage: Stage) -> str:
    """SHA-256 of all that the stage may not change, buffers too: equal before and after, or something moved."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not _moves(name, stage):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def transition_weights(step: int, steps: int) -> tuple[float, float]:
    """(1 - u/U, u/U): what the losses on the previous and on the next data count at step u of U.

    Raises:
        ValueError: a step that is not between 0 and U.
    """
    if not 0 <= step <= steps or steps < 1:
        raise ValueError(f"step {step} does not lie between 0 and {steps}")
    share = step / steps
    return 1.0 - share, share


def transition_side(step: int, steps: int, *, seed: int) -> Side:
    """The data that step u learns from in the sampled form: the next with probability u/U.

    Half the work, the same expected gradient. A function of seed and step, so that a resumed run draws the same.

    Args:
        step: u, from 0.
        steps: U of the transition.
        seed: seed of the draws.
    """
    _, after = transition_weights(step, steps)
    return "next" if np.random.default_rng((seed, step)).random() < after else "previous"


def _moves(name: str, stage: Stage) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in stage.patterns)

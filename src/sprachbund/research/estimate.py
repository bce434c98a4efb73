"""Estimates of memory that every system's `--check` prints before anything is trained.

Each system counts parameters on modules of the true shape on the meta device, which take no memory, and fills a
`MemoryEstimate` of its own.
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, computed_field
from torch import nn

FLOAT_BYTES = 4
"""Bytes of a weight in 32 bits."""
ADAMW_MOMENTS = 2
"""Tensors that AdamW keeps of every weight. Muon keeps one of matrices, so estimates are upper bounds."""


PASSES = 3
"""A forward pass and a backward one, of twice as many operations; fewer where weights are frozen."""


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """The memory and operations that a training needs of the GPU of its process.

    Attributes:
        name: name of the training.
        fixed_bytes: weights, gradients and moments.
        batch_bytes: activations of the largest batch, kept for the backward pass in 32 bits.
        utterances: utterances in it.
        flops: floating-point operations of all steps.
    """

    name: str
    fixed_bytes: int
    batch_bytes: int
    utterances: int
    flops: float

    def accumulate(self, memory: int) -> int | None:
        """The smallest `training.accumulate` with which it fits into so many bytes; None where nothing fits."""
        parts = 1
        while self.fixed_bytes + self.batch_bytes // parts > memory:
            parts *= 2
            if parts > self.utterances:
                return None
        return parts


class MemoryEstimate(BaseModel):
    """Parameters and memory of one size of a recipe; each system adds its own fields.

    Attributes:
        languages: languages of the recipe.
    """

    model_config = ConfigDict(frozen=True)

    languages: tuple[str, ...]

    @property
    def of_trainings(self) -> tuple[TrainingEstimate, ...]:
        """Memory of each training that has a process of its own."""
        return ()


class TrainingMemory(BaseModel):
    """Memory of one training in 32 bits with AdamW.

    Attributes:
        weights_bytes: bytes of all weights.
        moments_bytes: gradients and the optimizer's moments of the trained weights.
        kept_bytes: activations that are kept for the backward pass; see the subclass for the number of utterances.
        flops: floating-point operations of all steps, over batches of the longest utterances.
    """

    model_config = ConfigDict(frozen=True)

    weights_bytes: int
    moments_bytes: int
    kept_bytes: int
    flops: float

    @property
    def batch_bytes(self) -> int:
        """Activations of a whole batch."""
        return self.kept_bytes

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes(self) -> int:
        """Memory of the training in one process."""
        return self.weights_bytes + self.moments_bytes + self.batch_bytes


def estimate_of(name: str, memory: TrainingMemory, utterances: int) -> TrainingEstimate:
    """Return the estimate of a training.

    Args:
        name: name of the training.
        memory: memory of the training.
        utterances: utterances in the largest batch.
    """
    return TrainingEstimate(
        name=name,
        fixed_bytes=memory.weights_bytes + memory.moments_bytes,
        batch_bytes=memory.batch_bytes,
        utterances=utterances,
        flops=memory.flops,
    )


def count_parameters(module: nn.Module | None) -> int:
    """Number of parameters; 0 for None."""
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def weights_bytes(num_parameters: int) -> int:
    """Bytes of weights in 32 bits."""
    return FLOAT_BYTES * num_parameters


def moments_bytes(num_trained: int) -> int:
    """Bytes of gradients and AdamW's moments in 32 bits."""
    return FLOAT_BYTES * (1 + ADAMW_MOMENTS) * num_trained

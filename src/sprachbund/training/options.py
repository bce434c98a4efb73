"""Settings of a training run, and the learning rate they describe."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


class TrainingOptions(BaseModel):
    """How long, how fast, how often.

    Attributes:
        steps: optimizer steps in all.
        optimizer: "muon" for the linear layers or "adamw" for everything; see `make_optimizers`.
        learning_rate: highest rate.
        muon_ratio: Muon's rate is so many times the others'.
        warmup_steps: rate rises linearly from 0.
        decay_share: last share of the steps in which the rate falls linearly to 0; before, it is constant, so
            that a longer run can branch off before the fall.
        weight_decay: of AdamW (arXiv 1711.05101), on matrices only.
        clip_norm: gradients are scaled down to this norm.
        precision: bf16 is mixed precision on fp32 weights.
        recompute: keep only the inputs of layers and run them again for their gradients (arXiv 1604.06174): much less
            memory, about a third more time.
        batch_s: padded seconds of speech in a batch, over all processes.
        max_utterances: most utterances in a batch.
        max_duration_s: longer utterances are left out.
        num_workers: processes that make batches.
        log_every: steps between progress lines.
        evaluate_every: steps between losses on the dev data.
        save_every: steps between checkpoints to resume from.
        keep_best: checkpoints with the lowest dev loss that are kept and averaged at the end.
        trainable: patterns of the names of the parameters that are trained, `*` for anything; all if none.
        rates: pattern to the highest rate of the parameters it matches, in place of `learning_rate`; of several that
            match, the first counts. Warm-up and decay are those of the run.
        patience: stop after so many losses on the dev data without a lower one; 0 never stops.
        seed: of weights, order, augmentation and dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    muon_ratio: float = Field(default=2.5, gt=0)
    warmup_steps: int = 500
    decay_share: float = Field(default=0.3, ge=0, le=1)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    precision: Literal["no", "bf16"] = "bf16"
    recompute: bool = False
    batch_s: float = 160.0
    max_utterances: int = 128
    max_duration_s: float = 20.0
    num_workers: int = 1
    log_every: int = 50
    evaluate_every: int = 500
    save_every: int = 500
    keep_best: int = 3
    trainable: tuple[str, ...] = ()
    rates: dict[str, PositiveFloat] = {}
    patience: int = Field(default=0, ge=0)
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        return self.learning_rate * min(1.0, rising, falling)

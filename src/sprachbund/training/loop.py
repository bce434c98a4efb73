"""The one training loop.

All that a run has to remember is its weights, the optimizer's moments and a step number: the order of the data,
the augmentation and the dropout are functions of seed and step. So a run that was killed goes on at once, and
ends with the same bits as one that was not. Processes share every batch between them and give the gradients
that one process would.
"""

import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from sprachbund.data.batch import Batch
from sprachbund.data.loading import Corpus, batches
from sprachbund.data.plan import PlanOptions
from sprachbund.nn.moe import has_experts
from sprachbund.nn.shared_private import is_split
from sprachbund.training.activations import keep_layers, recompute_layers
from sprachbund.training.checkpoint import BestCheckpoints, load_resume, save_resume
from sprachbund.training.footprint import measure
from sprachbund.training.memory import keep_freed_memory
from sprachbund.training.optimizers import freeze_others, make_optimizers, set_rates
from sprachbund.training.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One line of the log: what the last `log_every` steps did.

    Losses are per target token (attention, parts), per transcript token (ctc) and per utterance (language).
    """

    step: int
    steps: int
    epoch: int
    attention: float
    ctc: float
    language: float
    learning_rate: float
    gradient_norm: float
    utterances_per_s: float
    real_time: float
    padding: float
    memory_gib: float
    left_s: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        left = f"{int(self.left_s // 3600)}:{int(self.left_s // 60 % 60):02d}:{int(self.left_s % 60):02d}"
        parts = "".join(f"{name} {value:.3f} " for name, value in self.parts.items())
        return (
            f"step {self.step}/{self.steps} epoch {self.epoch} loss {self.attention:.3f} {parts}ctc {self.ctc:.3f} "
            f"lang {self.language:.3f} rate {self.learning_rate:.2e} norm {self.gradient_norm:.2f} | "
            f"{self.utterances_per_s:.0f} utt/s {self.real_time:.0f}x real time | padding {self.padding:.1%} | "
            f"{self.memory_gib:.1f} GiB | {left} left"
        )


def train(
    model: nn.Module,
    corpus: Corpus,
    options: TrainingOptions,
    directory: Path,
    *,
    dev: Corpus | None = None,
    report: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> nn.Module:
    """Train a model, or take up the run that `directory` holds, and return it with its best weights averaged.

    Args:
        model: a family's module, whose `loss(batch)` gives its `Loss`.
        corpus: training data.
        options: see `TrainingOptions`.
        directory: keeps the resume file, the best checkpoints and the TensorBoard log.
        dev: data whose loss ranks the checkpoints; without it the last weights are returned.
        report: takes each progress line.
        stop_after: stop, resumable, after this many steps in all.
    """
    keep_freed_memory()
    run = _Run(model, corpus, options, directory, dev, report)
    run.tell_size()
    run.resume()
    if options.recompute:
        recompute_layers(model)
    run.go_on(min(options.steps, stop_after or options.steps))
    keep_layers(model)
    return run.finish()


class _Run:
    """A training run under way."""

    def __init__(
        self,
        model: nn.Module,
        corpus: Corpus,
        options: TrainingOptions,
        directory: Path,
        dev: Corpus | None,
        report: Callable[[str], None],
    ) -> None:
        # A branch whose languages are absent from a process's share of a batch has no gradient there, and no more
        # has an expert that nobody chose.
        absent = DistributedDataParallelKwargs(find_unused_parameters=is_split(model) or has_experts(model))
        self.accelerator = Accelerator(
            kwargs_handlers=[absent],
            mixed_precision="no",  # `_LossOf` sees to it: Accelerate holds a process to its first choice
            cpu=not torch.cuda.is_available(),
            step_scheduler_with_optimizer=False,
        )
        self.options, self.directory, self.dev, self.report = options, directory, dev, report
        self.corpus = corpus
        self.plan = PlanOptions(
            batch_s=options.batch_s,
            max_utterances=options.max_utterances,
            max_duration_s=options.max_duration_s,
            seed=options.seed,
        )
        freeze_others(model, options.trainable)
        # Wrappers get the loss; weights, names and states are those of the model itself.
        self.plain_model, self.loss_of = model, _LossOf(model, options)
        self.model = self.accelerator.prepare(self.loss_of)
        self.optimizers: list[Any] = [self.accelerator.prepare(o) for o in make_optimizers(model, options)]
        self.best = BestCheckpoints(directory / "best", options.keep_best)
        self.step = self.epoch = self.batch = 0
        self.lowest, self.num_worse = math.inf, 0  # dev loss, and losses since that were not lower
        self.meter = _Meter(corpus.examples.frames_per_s)
        self._writer: Any = None

    @property
    def out_of_patience(self) -> bool:
        """Whether the dev loss has not fallen for as long as the options allow."""
        return 0 < self.options.patience <= self.num_worse

    def tell_size(self) -> None:
        """Say how many weights are trained, and about how much memory that takes."""
        accelerator, options = self.accelerator, self.options
        footprint = measure(
            self.plain_model,
            self.loss_of,
            self.corpus,
            self.plan,
            self.optimizers,
            device=accelerator.device,
            num_processes=accelerator.num_processes,
        )
        for line in (
            footprint.lines(recompute=options.recompute, batch_s=options.batch_s) if footprint else ()
        ):
            self._say(line)

    def resume(self) -> None:
        """Take up the state in the directory, if there is one."""
        if state := load_resume(self.directory):
            self.plain_model.load_state_dict(state["model"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
            self.lowest, self.num_worse = state.get("lowest", math.inf), state.get("num_worse", 0)
            self._say(f"resumed at step {self.step}")

    def go_on(self, until: int) -> None:
        """Train until a step, an epoch after the other, or until patience is at its end."""
        while self.step < until and not self.out_of_patience:
            for batch in self._batches():
                self._train_step(batch)
                self._housekeeping(until)
                if self.step == until or self.out_of_patience:
                    return
            self.epoch, self.batch = self.epoch + 1, 0

    def finish(self) -> nn.Module:
        """Average the best checkpoints into the model when the run is over."""
        model = self.plain_model
        self.accelerator.wait_for_everyone()
        best = BestCheckpoints(self.best.directory, self.best.keep)  # the main process wrote them
        if (self.step == self.options.steps or self.out_of_patience) and best.losses:
            model.load_state_dict(best.average())
        return model

    def _batches(self) -> Iterator[Batch]:
        share = (self.accelerator.process_index, self.accelerator.num_processes)
        return batches(
            self.corpus, self.plan, self.epoch, self.batch, num_workers=self.options.num_workers, share=share
        )

    def _train_step(self, batch: Batch) -> None:
        options = self.options
        self.model.train()
        # Dropout too is a function of the step, so nothing about random numbers needs to be saved.
        torch.manual_seed((options.seed * 1_000_003 + self.step) * 64 + self.accelerator.process_index)
        rate = options.rate(self.step)
        set_rates(self.optimizers, rate)
        loss = self.model(batch.to(self.accelerator.device))
        tokens = torch.tensor(float(loss.num_tokens), device=self.accelerator.device)
        all_tokens = self.accelerator.reduce(tokens, reduction="sum").clamp(min=1)
        # Processes' gradients are averaged; sums over the whole batch are wanted.
        self.accelerator.backward(loss.total * self.accelerator.num_processes / all_tokens)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), options.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step, self.batch = self.step + 1, self.batch + 1
        self.meter.add(batch, loss, float(norm or 0.0), rate)

    def _housekeeping(self, until: int) -> None:
        options, step = self.options, self.step
        if step % options.log_every == 0 or step == until:
            self._log(self.meter.progress(step, options.steps, self.epoch))
        if self.dev is not None and (step % options.evaluate_every == 0 or step == options.steps):
            self._weigh(self.dev_loss())
        last = step == until or self.out_of_patience
        if (step % options.save_every == 0 or last) and self.accelerator.is_main_process:
            save_resume(self.directory, self._state())

    def _weigh(self, loss: float) -> None:
        """Keep the weights if their dev loss is among the lowest; count how long it has not fallen."""
        self.num_worse = 0 if loss < self.lowest else self.num_worse + 1
        self.lowest = min(self.lowest, loss)
        if self.accelerator.is_main_process:
            kept = self.best.offer(self.step, loss, self.plain_model.state_dict())
            self._say(f"step {self.step} dev loss {loss:.4f}{' (kept)' if kept else ''}")
            self._scalar("dev/loss", loss)
        if self.out_of_patience:
            self._say(f"stopped at step {self.step}: {self.num_worse} dev losses without a lower one")

    @torch.no_grad()
    def dev_loss(self) -> float:
        """Cross-entropy per target token over the dev data."""
        assert self.dev is not None
        self.plain_model.eval()
        total = tokens = 0.0
        for batch in batches(self.dev, self.plan, 0, num_workers=0):
            loss = self.loss_of(batch.to(self.accelerator.device))
            total += float(loss.attention)
            tokens += loss.num_tokens
        # All processes have to stop at the same step, so all have to see the same number.
        mean = torch.tensor(total / max(tokens, 1), dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(mean, reduction="mean"))

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.plain_model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "lowest": self.lowest,
            "num_worse": self.num_worse,
        }

    def _log(self, progress: Progress) -> None:
        self._say(str(progress))
        for name in (
            "attention",
            "ctc",
            "language",
            "learning_rate",
            "gradient_norm",
            "utterances_per_s",
            "padding",
        ):
            self._scalar(f"train/{name}", getattr(progress, name))
        for name, value in progress.parts.items():
            self._scalar(f"train/{name}", value)

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            self.report(line)

    def _scalar(self, name: str, value: float) -> None:
        if not self.accelerator.is_main_process:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory / "tensorboard"))
        self._writer.add_scalar(name, value, self.step)
        self._writer.flush()


class _LossOf(nn.Module):
    """A family's loss, in the precision of the options, as the `forward` that wrappers for several processes watch."""

    def __init__(self, model: Any, options: TrainingOptions) -> None:
        super().__init__()
        self.model = model
        self.in_bf16 = options.precision == "bf16"

    def forward(self, batch: Batch) -> Any:
        """`Loss` of a batch."""
        with torch.autocast(batch.features.device.type, torch.bfloat16, enabled=self.in_bf16):
            return self.model.loss(batch)


class _Meter:
    """Adds up what happened since the last progress line; a second of speech is `frames_per_s` frames."""

    def __init__(self, frames_per_s: int) -> None:
        self.frames_per_s = frames_per_s
        self.reset()

    def reset(self) -> None:
        self.began = time.monotonic()
        self.sums: dict[str, float] = {}
        self.parts: dict[str, float] = {}
        self.norm = self.rate = 0.0
        self.steps = 0

    def add(self, batch: Batch, loss: Any, norm: float, rate: float) -> None:
        seen = {
            "attention": float(loss.attention.detach()),
            "ctc": float(loss.ctc.detach()),
            "language": float(loss.language.detach()),
            "tokens": loss.num_tokens,
            "transcript": loss.num_transcript,
            "utterances": batch.num_utterances,
            "frames": float(batch.num_frames.sum()),
            "padded": batch.features.shape[0] * batch.features.shape[1],
        }
        for key, value in seen.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        for name, part in loss.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + float(part)
        self.norm, self.rate, self.steps = norm, rate, self.steps + 1

    def progress(self, step: int, steps: int, epoch: int) -> Progress:
        took = time.monotonic() - self.began
        sums = self.sums
        progress = Progress(
            step=step,
            steps=steps,
            epoch=epoch,
            attention=sums["attention"] / max(sums["tokens"], 1),
            ctc=sums["ctc"] / max(sums["transcript"], 1),
            language=sums["language"] / max(sums["utterances"], 1),
            learning_rate=self.rate,
            gradient_norm=self.norm,
            utterances_per_s=sums["utterances"] / took,
            real_time=sums["frames"] / self.frames_per_s / took,
            padding=1 - sums["frames"] / sums["padded"],
            memory_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            left_s=(steps - step) * took / self.steps,
            parts={name: value / max(sums["tokens"], 1) for name, value in self.parts.items()},
        )
        self.reset()
        return progress

"""The training loop: progress lines, evaluations on the dev data, and the run.

All that a run has to remember is its weights, the optimizer's moments and a step number: the order of the data,
the augmentation and the dropout are functions of seed and step. So a run that was killed goes on at once, and
ends with the same bits as one that was not.

Processes share every batch between them. Losses are sums, and they are divided by the target tokens of all processes
together, so that the gradient is that of one process on the whole batch, whatever the shares. Not the same are the
draws of dropout, the balance loss of a mixture of experts and the running means of batch norms (docs/train.md).
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NoReturn, Self

import torch
from pydantic import ConfigDict, RootModel, model_validator
from torch import nn

from sprachbund.data.batch import Batch
from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import TrainingDataset, batches
from sprachbund.engines.benchmark import peak_mib
from sprachbund.errors import SprachbundError
from sprachbund.models.base import LearnsFromModels, Loss, PartlyTrained
from sprachbund.training.check import NO_BATCH, lines_of, measure_shape, memory_of, verdict
from sprachbund.training.checkpoint import BestCheckpoints, ResumeFiles, digest_of, frozen_names
from sprachbund.training.memory import keep_layers, layers_of, recompute_layers
from sprachbund.training.optimizers import freeze_others, make_optimizers, set_rates
from sprachbund.training.options import TrainingOptions
from sprachbund.training.parallel import LossOf, MovingAverage, Parallel, in_16_bits
from sprachbund.util.devices import is_fast_in_bf16
from sprachbund.util.distributed import (
    is_first_rank,
    joined_processes,
    of_all_ranks,
    own_device,
    refuse_different,
    wait_for_all_ranks,
    world_size,
)
from sprachbund.util.files import read_model, write_text
from sprachbund.util.memory import keep_freed_memory, remember_few_products
from sprachbund.util.options import renamed
from sprachbund.util.progress import Report, nothing
from sprachbund.util.provenance import versions

# The log.


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line of the log, over the last `log_every` steps.

    Losses are per target token (attention, parts); those of `heads`, by name, per what each head counts: tokens of the
    transcript (ctc) or utterances (language). `kinds` holds the first of them for each kind of data. `real_time` is of
    speech alone, and None where the data hold none.
    """

    step: int
    steps: int
    epoch: int
    attention: float
    learning_rate: float
    gradient_norm: float
    utterances_per_s: float
    real_time: float | None
    padding: float
    memory_gib: float
    left_s: float
    heads: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        left = f"{int(self.left_s // 3600)}:{int(self.left_s // 60 % 60):02d}:{int(self.left_s % 60):02d}"
        losses = {**self.kinds, **self.parts, **self.heads}
        parts = "".join(f"{name} {value:.3f} " for name, value in losses.items())
        counts = "".join(f"{name} {count} | " for name, count in self.counts.items() if count)
        speech = (
            "" if self.real_time is None else f" {self.real_time:.0f}x real time | padding {self.padding:.1%}"
        )
        return (
            f"step {self.step}/{self.steps} epoch {self.epoch} loss {self.attention:.3f} {parts}"
            f"rate {self.learning_rate:.2e} norm {self.gradient_norm:.2f} | "
            f"{counts}{self.utterances_per_s:.0f} utt/s{speech} | "
            f"{self.memory_gib:.1f} GiB | {left} left"
        )


@dataclass(kw_only=True)
class _Sums:
    """Sums since the last line, by name; `heads` and `kinds` are losses with the number that they are means over."""

    sums: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    heads: dict[str, tuple[float, int]] = field(default_factory=dict)
    kinds: dict[str, tuple[float, int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, other: "_Sums") -> None:
        """Add what another process counted."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for name, value in other.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value
        for mine, others in ((self.heads, other.heads), (self.kinds, other.kinds)):
            for name, (value, number) in others.items():
                total, known = mine.get(name, (0.0, 0))
                mine[name] = total + value, known + number
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count


class Meter:
    """Adds up what happened since the last progress line.

    Args:
        frames_per_s: frames of a second of speech; 0 for texts alone.
    """

    def __init__(self, frames_per_s: int) -> None:
        self.frames_per_s = frames_per_s
        self.reset()

    def reset(self) -> None:
        """Begin the next line."""
        self.began = time.monotonic()
        self.sums = _Sums()
        self.norm = self.rate = 0.0
        self.steps = 0

    def step(self, norm: float, rate: float) -> None:
        """Count a step, by the norm of its gradient and its rate; one whose norm is not finite was skipped."""
        self.rate, self.steps = rate, self.steps + 1
        if math.isfinite(norm):
            self.norm = norm
        elif is_first_rank():
            self.sums.add(_Sums(counts={SKIPPED: 1}))

    def add(self, batch: Batch, loss: Loss) -> None:
        """Count a batch, or a part of one, and its loss."""
        if batch.is_placeholder:
            return
        frames = float(batch.num_frames.sum())
        seen = {
            "attention": float(loss.attention.detach()),
            "tokens": loss.num_tokens,
            "utterances": batch.num_utterances,
            "frames": frames,
            "speech": frames if batch.is_speech else 0.0,
            "padded": batch.features.shape[0] * batch.features.shape[1],
        }
        heads = {name: (float(head.total), head.count) for name, head in loss.heads.items()}
        kinds = {batch.kind: (seen["attention"], loss.num_tokens)} if batch.kind else {}
        parts = {name: float(part) for name, part in loss.parts.items()}
        self.sums.add(_Sums(sums=seen, parts=parts, heads=heads, kinds=kinds, counts=dict(loss.counts)))

    def line(self, step: int, steps: int, epoch: int) -> LogLine:
        """The line after a step, of all processes together, and the beginning of the next one.

        Args:
            step: steps made.
            steps: steps of the run.
            epoch: passes through the training data so far.
        """
        took = time.monotonic() - self.began
        everything = _Sums()
        for own in of_all_ranks(self.sums):
            everything.add(own)
        sums = everything.sums
        for name in ("attention", "tokens", "utterances", "frames", "speech", "padded"):
            sums.setdefault(name, 0.0)  # where every step was skipped
        line = LogLine(
            step=step,
            steps=steps,
            epoch=epoch,
            attention=sums["attention"] / max(sums["tokens"], 1),
            learning_rate=self.rate,
            gradient_norm=self.norm,
            utterances_per_s=sums["utterances"] / took,
            real_time=sums["speech"] / self.frames_per_s / took if self.frames_per_s else None,
            padding=1 - sums["frames"] / sums["padded"] if sums["padded"] else 0.0,
            memory_gib=peak_mib() / 2**10,
            left_s=(steps - step) * took / max(self.steps, 1),
            heads={
                name: total / max(number, 1) for name, (total, number) in sorted(everything.heads.items())
            },
            parts={name: value / max(sums["tokens"], 1) for name, value in everything.parts.items()},
            kinds={
                kind: total / max(tokens, 1) for kind, (total, tokens) in sorted(everything.kinds.items())
            },
            counts=everything.counts,
        )
        self.reset()
        return line


# Evaluations on the dev data. They are part of the resume file, so a run that patience stopped stays stopped.

_DIGEST = "SHA-256 of lengths and texts, or of the shards' indices"
SKIPPED = "skipped"
"""Name in the log of the steps whose gradient was not finite."""
CONVERGENCE_FILE = "convergence.json"
_FORMER_NAMES = {"judge": "metric_for_best_model", "judgements": "evaluations"}


@dataclass(frozen=True, kw_only=True)
class DevEvaluation:
    """Loss or score on the dev data; less is better.

    Attributes:
        step: after so many steps.
        epoch: passes through the training data by then.
        value: loss or score.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    step: int
    epoch: float
    value: float


@dataclass(kw_only=True)
class Evaluations:
    """All evaluations of a run, in order.

    Attributes:
        patience: so many evaluations without a better one end the run; 0 never does.
        made: so far.
        lowest: value so far.
        num_worse: evaluations since the lowest one.
    """

    patience: int = 0
    made: list[DevEvaluation] = field(default_factory=list)
    lowest: float = math.inf
    num_worse: int = 0

    @property
    def at_an_end(self) -> bool:
        """Whether the patience is at an end."""
        return 0 < self.patience <= self.num_worse

    @property
    def best(self) -> DevEvaluation | None:
        """The first of the lowest ones; a value that is not a number is above all others."""
        return min(self.made, key=lambda one: (math.isnan(one.value), one.value), default=None)

    def add(self, evaluation: DevEvaluation) -> None:
        """Add an evaluation, and count how many were no better than the best."""
        self.num_worse = 0 if evaluation.value < self.lowest else self.num_worse + 1
        self.lowest = min(self.lowest, evaluation.value)
        self.made.append(evaluation)

    def state(self) -> dict[str, Any]:
        """Return the state that a run resumes from."""
        made = [[one.step, one.epoch, one.value] for one in self.made]
        return {"lowest": self.lowest, "num_worse": self.num_worse, "evaluations": made}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.lowest, self.num_worse = state.get("lowest", math.inf), state.get("num_worse", 0)
        rows = renamed(state, _FORMER_NAMES, "the resume file").get("evaluations", [])
        self.made = [DevEvaluation(step=step, epoch=epoch, value=value) for step, epoch, value in rows]


class DivergedError(SprachbundError):
    """The gradient was not finite in too many steps in a row."""


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """Best evaluation of a finished run, and all others.

    Attributes:
        metric_for_best_model: "loss" or "score".
        steps: steps made in all.
        stopped_early: whether patience ended it.
        best: the evaluation that was best, None where there was none.
        evaluations: all of them.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
    metric_for_best_model: str
    steps: int
    stopped_early: bool
    best: DevEvaluation | None
    evaluations: tuple[DevEvaluation, ...]

    def __str__(self) -> str:
        done = f"{'stopped early' if self.stopped_early else 'done'} after {self.steps} steps"
        if self.best is None:
            return done
        best = self.best
        value = f"best dev {self.metric_for_best_model} {best.value:.4f}"
        return f"{done}; {value} at step {best.step}, epoch {best.epoch:.1f}"

    def write(self, directory: Path) -> None:
        """Write it beside the run."""
        write_text(directory / CONVERGENCE_FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the file of `write`. Raises SprachbundError when there is none, or it is broken."""
        path = directory / CONVERGENCE_FILE
        convergence = read_model(
            path, _File, advice="it says where a run converged: train it to its end, or copy the file again"
        ).root
        return cls(**vars(convergence))


class _File(RootModel[Convergence]):
    """The content of the file."""

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: Any) -> Any:
        return renamed(values, _FORMER_NAMES, CONVERGENCE_FILE) if isinstance(values, dict) else values


def train(
    model: nn.Module,
    corpus: TrainingDataset,
    options: TrainingOptions,
    directory: Path,
    *,
    dev: TrainingDataset | None = None,
    score: Callable[[Any], float] | None = None,
    report: Report = print,
    stop_after: int | None = None,
    on_step: Callable[[int, int], None] = nothing,
) -> nn.Module:
    """Train a model, or resume the run that `directory` holds, and return it with its best weights averaged.

    A run that is over leaves its `Convergence` in the directory. After SIGTERM it saves its state and ends the process
    with exit code 143.

    Args:
        model: a family's module, whose `loss(batch)` gives its `Loss`.
        corpus: training data.
        options: see `TrainingOptions`.
        directory: keeps the resume file, the best checkpoints and the TensorBoard log.
        dev: data whose loss ranks the checkpoints; without it, and without a score, the last weights are returned.
        score: score of the model as it stands, less is better; ranks the checkpoints where
            `options.metric_for_best_model` is "score".
        report: takes each progress line.
        stop_after: stop, resumable, after this many steps in all.
        on_step: called with the steps made, and with all of them.

    Raises:
        DivergedError: the gradient was not finite in too many steps in a row.
        SprachbundError: when the options want a score and there is none, the frozen weights are not those that the run
            began with, or another process of the run failed.
    """
    if options.metric_for_best_model == "score" and score is None:
        raise SprachbundError(
            'training.metric_for_best_model is "score", but nothing scores here; set it to "loss"'
        )
    if options.shard and score is not None and options.metric_for_best_model == "score":
        raise SprachbundError(
            'training.metric_for_best_model is "score", for which a process needs all weights; set it to "loss", or '
            "leave training.shard out"
        )
    keep_freed_memory()
    remember_few_products()
    with joined_processes(), _signals_to_end() as signal_to_end:
        _refuse_different_runs(options, corpus, dev)
        run = _Run(model, corpus, options, directory, dev, report)
        run.score = score if options.metric_for_best_model == "score" else None
        run.signal_to_end = signal_to_end
        run.report_size()
        run.resume()
        run.connect()
        try:
            run.go_on(min(options.steps, stop_after or options.steps), on_step)
        finally:
            run.close_logs()
        return run.finish()


@contextmanager
def _signals_to_end() -> Iterator[Callable[[], int]]:
    """Number of the signal that came, SIGTERM or Ctrl-C's SIGINT, in place of ending at once; 0 of none.

    A second SIGINT ends at once. A thread that is not the main one hears none, and SIGINT stays ignored where it was.
    """
    came: list[int] = []
    process = os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:  # one that was forked, to render or to load
            os._exit(128 + number)
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.append(number)

    heard = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        heard.append(signal.SIGINT)
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        _end_by(came[0])


def _end_by(number: int) -> NoReturn:
    """End the process as a signal would have, at a moment at which nothing is lost."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signal.SIGTERM)


def _refuse_different_runs(
    options: TrainingOptions, corpus: TrainingDataset, dev: TrainingDataset | None
) -> None:
    """See that all processes have the same versions, options and data."""
    installed = versions(("sprachbund", "torch"))
    refuse_different(
        {
            **{f"the version of {name}": version for name, version in installed.items()},
            "[training]": options.model_dump_json(),
            f"the training data ({_DIGEST})": corpus.digest[:12],
            f"the dev data ({_DIGEST})": "none" if dev is None else dev.digest[:12],
        }
    )


_UNTRAINED = {
    "frozen": "the weights that are not trained",
    "learned_from": "the weights of the model that is learned from",
}
"""Key in a checkpoint of a digest, and what it is of."""


def _digests(model: nn.Module, frozen: set[str]) -> dict[str, str]:
    """Digests of the weights that stay as they are, by the keys of `_UNTRAINED`."""
    digests = {"frozen": digest_of(model, frozen)}
    if isinstance(model, LearnsFromModels):
        digests["learned_from"] = " ".join(digest_of(one) for one in model.learns_from)
    return digests


class _Run:
    """A training run under way."""

    def __init__(
        self,
        model: nn.Module,
        corpus: TrainingDataset,
        options: TrainingOptions,
        directory: Path,
        dev: TrainingDataset | None,
        report: Report,
    ) -> None:
        self.options, self.directory, self.dev, self.report = options, directory, dev, report
        self.corpus = corpus
        self.step = 0
        self.plan = BatchingOptions(
            batch_s=options.batch_s,
            max_utterances=options.max_utterances,
            max_duration_s=options.max_duration_s,
            seed=options.seed,
        )
        freeze_others(model, options.trainable)
        untrained = model.untrained if isinstance(model, PartlyTrained) else ()
        frozen = frozen_names(model)
        self.digests = _digests(model, frozen) if is_first_rank() else {}
        self._in_32_bits = in_16_bits(model) if options.frozen_bf16 else None
        loss_of = LossOf(model, options)
        self._sizes: list[str] = []
        if options.shard:  # while the weights are whole
            self._sizes = self._measured(loss_of, make_optimizers(model, options))
        self.plain_model, self.parallel = model, Parallel(loss_of, options)
        self.model = self.parallel.model
        self.moved = [name for name in self.model.state_dict() if name not in frozen]
        self.optimizers: list[Any] = list(make_optimizers(self.model, options))
        if not options.shard:
            self._sizes = self._measured(loss_of, self.optimizers)
        # Frozen behind the optimizers, which skip what has no gradient: their states keep the layout of earlier runs.
        for part in untrained:
            part.requires_grad_(False)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.average = MovingAverage(trained, options.ema) if options.ema else None
        self.best = BestCheckpoints(directory / "best", options.keep_best)
        self.files = ResumeFiles(
            directory, self.model, self.optimizers, self.moved, is_sharded=self.parallel.is_sharded
        )
        self.epoch = self.batch = self.skipped = 0
        self.evaluations = Evaluations(patience=options.patience)
        self.score: Callable[[Any], float] | None = None
        self.signal_to_end: Callable[[], int] = lambda: 0
        self.meter = Meter(corpus.frames_per_s)
        self._writer: Any = None
        self._wandb: Any = None

    @property
    def out_of_patience(self) -> bool:
        """Whether no evaluation was better for as long as the options allow."""
        return self.evaluations.at_an_end

    def _measured(self, loss_of: LossOf, optimizers: Sequence[Any]) -> list[str]:
        """Lines with the number of trained weights, their approximate memory, and what fits if this does not."""
        options, count, available = self.options, world_size(), memory_of(own_device())
        measured = partial(
            measure_shape, loss_of, self.corpus, options, optimizers, num_parts=count * options.accumulate
        )
        try:
            if (shape := measured(recompute=(options.recompute,))) is None:
                return []
            chosen = shape.strategy(
                count, shard=options.shard, recompute=options.recompute, accumulate=options.accumulate
            )
            lines = lines_of(shape, chosen, available)
            if chosen.total > available and (shape := measured()) is not None:
                lines.append(f"this does not fit; {verdict(shape.strategies(count, available), available)}")
            return lines
        except torch.OutOfMemoryError as error:
            raise self._full() from error

    def _full(self) -> SprachbundError:
        """The error of a device without free memory, with the next step."""
        return SprachbundError(
            f"the memory of {own_device()} is full at step {self.step + 1}; set training.accumulate = "
            f"{2 * self.options.accumulate}, or training.recompute = true; `train --check` says what fits"
        )

    def report_size(self) -> None:
        """Say how many weights are trained, about how much memory that takes, and what a CPU without bf16 does."""
        for line in self._sizes:
            self._say(line)
        if is_fast_in_bf16(own_device()):
            return
        if self.parallel.loss_of.in_bf16:
            self._say(
                "bf16 is slow here, slower than fp32: this device has no fast instructions for it; "
                'training.precision = "auto" computes in fp32 on such a device'
            )
        elif self.options.precision == "auto":
            self._say("fp32: this device has no fast instructions for bf16")

    def resume(self) -> None:
        """Resume from the state in the directory, if there is one."""
        digests = of_all_ranks(self.digests)[0]
        if state := self.files.load(self.average):
            for name, digest in digests.items():
                if state.get(name, digest) != digest:  # an earlier version wrote down fewer
                    raise SprachbundError(
                        f"{_UNTRAINED[name]} are not those that the run in {self.directory} began with; start from the "
                        "same model, or choose another folder"
                    )
            self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
            self.skipped = state.get("skipped", 0)
            self.evaluations.load(state)
            self._say(f"resumed at step {self.step}")

    def connect(self) -> None:
        """Make the model ready for its first step."""
        if self.options.recompute:
            recompute_layers(self.model)
        if self.options.compile:
            for layer in layers_of(self.model):
                layer.compile(dynamic=True)
        self.parallel.connect()

    def go_on(self, until: int, on_step: Callable[[int, int], None]) -> None:
        """Train until a step, an epoch after the other, or until patience is at its end."""
        on_step(self.step, until)
        empty = 0  # epochs, or windows of tar shards, in a row of which no batch was made
        while self.step < until and not self.out_of_patience:
            empty += 1
            for parts in self._batches():
                try:
                    empty, asked = 0, self._train_step(parts)
                except torch.OutOfMemoryError as error:
                    raise self._full() from error
                on_step(self.step, until)
                self._housekeeping(until)
                if asked:
                    self._end_early()
                if self.step == until or self.out_of_patience:
                    return
            if empty > self.corpus.windows:  # one more, as a run may go on from the end of an epoch
                raise SprachbundError(NO_BATCH)
            self.epoch, self.batch = self.epoch + 1, 0

    def finish(self) -> nn.Module:
        """Average the best checkpoints into the model when the run is over."""
        keep_layers(self.model)
        self.files.finish()
        if self.average is not None:
            self.average.exchange()
        self.parallel.give_back()
        if self._in_32_bits is not None:
            self._in_32_bits()
        model = self.plain_model
        wait_for_all_ranks()
        best = BestCheckpoints(self.best.directory, self.best.keep)  # the first process wrote them
        if self.step < self.options.steps and not self.out_of_patience:
            return model
        if best.losses:
            state = model.state_dict()
            for name, mean in best.average():
                state[name].copy_(mean)
        wait_for_all_ranks()  # the first process may tidy the folder away, and another still read from it
        if is_first_rank():
            convergence = self._convergence()
            convergence.write(self.directory)
            self._say(str(convergence))
        return model

    def _convergence(self) -> Convergence:
        return Convergence(
            metric_for_best_model=self.options.metric_for_best_model,
            steps=self.step,
            stopped_early=self.step < self.options.steps,
            best=self.evaluations.best,
            evaluations=tuple(self.evaluations.made),
        )

    def _batches(self) -> Iterator[tuple[Batch, ...]]:
        """This process's share of each batch, in as many parts as the options say."""
        began, each = self.step - self.batch, self.options.accumulate
        parts = batches(
            self.corpus,
            self.plan,
            self.epoch,
            self.batch,
            num_workers=self.options.num_workers,
            share=(self.parallel.rank, self.parallel.count),
            parts=each,
            strength=lambda number: self.options.mask_strength(began + number),
        )
        return zip(*[parts] * each, strict=True)

    def _train_step(self, parts: Sequence[Batch]) -> bool:
        """Train on a batch; whether any process was asked to end."""
        options, parallel = self.options, self.parallel
        self.model.train()
        rate = options.rate(self.step)
        set_rates(self.optimizers, rate)
        if len(parts) > 1 and any(part.sides is not None for part in parts):
            raise SprachbundError(
                "training.accumulate is above 1, and batches mix data whose losses have weights of their own; set "
                "training.accumulate to 1"
            )
        losses: list[Loss] = []
        for number, part in enumerate(parts):
            # Dropout too is a function of the step, so nothing about random numbers needs to be saved.
            seed = (options.seed * 1_000_003 + self.step) * 64 + parallel.rank * len(parts) + number
            torch.manual_seed(seed % 2**64)
            loss, exchanging = parallel.loss(part.to(parallel.device), exchange=number == len(parts) - 1)
            with exchanging:
                (loss.total * part.weight).backward()
            losses.append(loss)
        tokens, asked = parallel.sums(sum(loss.num_tokens for loss in losses), self.signal_to_end())
        # Processes' gradients are averaged; sums over the whole batch are wanted.
        parallel.scale_gradients(parallel.count / max(1.0, tokens))
        norm = parallel.clip(options.clip_norm)
        if math.isfinite(norm):
            self.skipped = 0
            for optimizer in self.optimizers:
                optimizer.step()
            if self.average is not None:
                self.average.update()
            for part, loss in zip(parts, losses, strict=True):
                self.meter.add(part, loss)
        else:
            self.skipped += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step, self.batch = self.step + 1, self.batch + 1
        self.meter.step(norm, rate)
        if self.skipped > options.max_skipped:
            raise DivergedError(
                f"the gradient was not finite in {self.skipped} steps in a row, up to step {self.step}; lower "
                "training.learning_rate, or look for damaged utterances"
            )
        return bool(asked)

    def _end_early(self) -> None:
        """Save the state and end the process, as a signal to one of the processes asked."""
        self._save()
        self.files.finish()
        by = "Ctrl-C" if self.signal_to_end() == signal.SIGINT else "SIGTERM"
        self._say(f"ended by {by} at step {self.step}, saved; the same command goes on from there")
        _end_by(self.signal_to_end())

    def _housekeeping(self, until: int) -> None:
        options, step = self.options, self.step
        if step % options.log_every == 0 or step == until:
            self._log(self.meter.line(step, options.steps, self.epoch // self.corpus.windows))
        evaluated = self.dev is not None or self.score is not None
        if evaluated and (step % options.evaluate_every == 0 or step == options.steps):
            self._evaluate()
        last = step == until or self.out_of_patience
        if step % options.save_every == 0 or last:
            self._save()

    def _record_evaluation(self, value: float) -> None:
        """Keep the weights if they are among the best; count how long none was better."""
        batches_of_epoch = max(1, len(self.corpus.plan(self.plan, self.epoch)))
        epoch = (self.epoch + self.batch / batches_of_epoch) / self.corpus.windows
        self.evaluations.add(DevEvaluation(step=self.step, epoch=epoch, value=value))
        metric = self.options.metric_for_best_model
        if kept := self.best.accepts(value):
            # Every process has to hand its shard of each tensor over; the first one holds them all.
            whole = {
                name: value.detach().cpu() if is_first_rank() else value.new_empty(0)
                for name, value in self.parallel.whole(self.moved)
            }
            self.best.offer(self.step, value, whole)
        self._say(f"step {self.step} dev {metric} {value:.4f}{' (kept)' if kept else ''}")
        self._scalar(f"dev/{metric}", value)
        best = self.evaluations.best
        if self.out_of_patience and best is not None:
            self._say(
                f"stopped at step {self.step}: {self.evaluations.num_worse} times no better dev {metric} "
                f"than {best.value:.4f} at step {best.step}, epoch {best.epoch:.1f}"
            )

    def _evaluate(self) -> None:
        """Measure the model as it would be kept, and record it."""
        if self.average is not None:
            self.average.exchange()
        self._record_evaluation(self.dev_loss() if self.score is None else self._dev_score(self.score))
        if self.average is not None:
            self.average.exchange()

    @torch.no_grad()
    def _dev_score(self, score: Callable[[Any], float]) -> float:
        """The recipe's score of the model as it stands."""
        self.model.eval()
        kind, rounded = self.parallel.device.type, self.options.frozen_bf16
        with torch.autocast(kind, torch.bfloat16, enabled=rounded):  # 16-bit weights take no 32-bit input
            own = score(self.model)
        # All processes have to stop at the same step, so all have to see the same number.
        [total] = self.parallel.sums(own)
        return total / self.parallel.count

    @torch.no_grad()
    def dev_loss(self) -> float:
        """Cross-entropy per target token over the dev data, of which every process takes its share."""
        assert self.dev is not None
        self.model.eval()
        total = tokens = 0.0
        share = (self.parallel.rank, self.parallel.count)
        for batch in batches(self.dev, self.plan, 0, num_workers=0, share=share):
            loss = self.parallel.loss_of(batch.to(self.parallel.device))
            if not batch.is_placeholder:
                total += float(loss.attention)
                tokens += loss.num_tokens
        total, tokens = self.parallel.sums(total, tokens)
        if not tokens:
            raise SprachbundError(
                "no token of the dev data counts, so no checkpoint could be chosen; look at their targets, and at "
                "training.max_duration_s: longer utterances are left out"
            )
        return total / tokens

    def _save(self) -> None:
        state = {
            **self.digests,
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "skipped": self.skipped,
            **self.evaluations.state(),
        }
        self.files.save(state, self.average)

    def _log(self, line: LogLine) -> None:
        self._say(str(line))
        for name in ("attention", "learning_rate", "gradient_norm", "utterances_per_s", "padding"):
            self._scalar(f"train/{name}", getattr(line, name))
        for name, value in {**line.parts, **line.heads}.items():
            self._scalar(f"train/{name}", value)

    def _say(self, line: str) -> None:
        if is_first_rank():
            self.report(line)

    def _scalar(self, name: str, value: float) -> None:
        if not is_first_rank():
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory / "tensorboard"))
        self._writer.add_scalar(name, value, self.step)
        self._writer.flush()
        if self.options.wandb:
            if self._wandb is None:
                self._wandb = _wandb_run(self.directory, self.options)
            self._wandb.log({name: value, "step": self.step})

    def close_logs(self) -> None:
        """Write what the logs hold back; a later line opens them again."""
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


def _wandb_run(directory: Path, options: TrainingOptions) -> Any:
    """A run of Weights & Biases in a folder of the run; nothing is sent unless WANDB_MODE asks for it."""
    import wandb

    return wandb.init(
        project="sprachbund",
        name=directory.name,
        dir=directory,
        config=options.model_dump(mode="json"),
        mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )

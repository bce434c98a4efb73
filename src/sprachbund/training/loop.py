"""The one training loop.

All that a run has to remember is its weights, the optimizer's moments and a step number: the order of the data,
the augmentation and the dropout are functions of seed and step. So a run that was killed goes on at once, and
ends with the same bits as one that was not.

Processes share every batch between them. Losses are sums, and they are divided by the target tokens of all processes
together, so that the gradient is that of one process on the whole batch, whatever the shares. Not the same are the
draws of dropout, the balance loss of a mixture of experts and the running means of batch norms (docs/train.md).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from sprachbund.data.batch import Batch
from sprachbund.data.loading import Supply, batches
from sprachbund.data.plan import PlanOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.loss import PartlyTrained
from sprachbund.nn.moe import has_experts
from sprachbund.nn.shared_private import is_split
from sprachbund.training.activations import keep_layers, recompute_layers
from sprachbund.training.checkpoint import BestCheckpoints, load_resume, save_resume
from sprachbund.training.footprint import measure
from sprachbund.training.judging import Convergence, Judgement, Judgements
from sprachbund.training.memory import keep_freed_memory
from sprachbund.training.optimizers import freeze_others, make_optimizers, set_rates
from sprachbund.training.options import TrainingOptions
from sprachbund.training.progress import Meter, Progress
from sprachbund.util.distributed import joined_processes


def train(
    model: nn.Module,
    corpus: Supply,
    options: TrainingOptions,
    directory: Path,
    *,
    dev: Supply | None = None,
    score: Callable[[Any], float] | None = None,
    report: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> nn.Module:
    """Train a model, or take up the run that `directory` holds, and return it with its best weights averaged.

    A run that is over leaves its `Convergence` in the directory.

    Args:
        model: a family's module, whose `loss(batch)` gives its `Loss`.
        corpus: training data.
        options: see `TrainingOptions`.
        directory: keeps the resume file, the best checkpoints and the TensorBoard log.
        dev: data whose loss ranks the checkpoints; without it, and without a score, the last weights are returned.
        score: of the model as it stands, less is better; ranks the checkpoints where `options.judge` is "score".
        report: takes each progress line.
        stop_after: stop, resumable, after this many steps in all.

    Raises:
        SprachbundError: when the options want a score and there is none, or another process of the run failed.
    """
    if options.judge == "score" and score is None:
        raise SprachbundError('training.judge is "score", but nothing scores here; set it to "loss"')
    keep_freed_memory()
    with joined_processes():
        run = _Run(model, corpus, options, directory, dev, report)
        run.score = score if options.judge == "score" else None
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
        corpus: Supply,
        options: TrainingOptions,
        directory: Path,
        dev: Supply | None,
        report: Callable[[str], None],
    ) -> None:
        partly = model if isinstance(model, PartlyTrained) else None
        # A branch whose languages are absent from a process's share of a batch has no gradient there, and no more
        # has an expert that nobody chose.
        has_unused = partly is not None and partly.has_unused_parameters
        absent = DistributedDataParallelKwargs(
            find_unused_parameters=has_unused or is_split(model) or has_experts(model)
        )
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
        optimizers = make_optimizers(model, options)
        # Frozen behind the optimizers, which skip what has no gradient: their states keep the layout of earlier runs.
        for part in () if partly is None else partly.untrained:
            part.requires_grad_(False)
        self.model = self.accelerator.prepare(self.loss_of)
        self.optimizers: list[Any] = [self.accelerator.prepare(one) for one in optimizers]
        self.best = BestCheckpoints(directory / "best", options.keep_best)
        self.step = self.epoch = self.batch = 0
        self.judgements = Judgements(patience=options.patience)
        self.score: Callable[[Any], float] | None = None
        self.meter = Meter(corpus.frames_per_s)
        self._writer: Any = None

    @property
    def out_of_patience(self) -> bool:
        """Whether no judgement was better for as long as the options allow."""
        return self.judgements.at_an_end

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
            self.judgements.load(state)
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
        if self.step < self.options.steps and not self.out_of_patience:
            return model
        if best.losses:
            model.load_state_dict(best.average())
        if self.accelerator.is_main_process:
            found = self._convergence()
            found.write(self.directory)
            self._say(str(found))
        return model

    def _convergence(self) -> Convergence:
        return Convergence(
            judge=self.options.judge,
            steps=self.step,
            stopped_early=self.step < self.options.steps,
            best=self.judgements.best,
            judgements=tuple(self.judgements.made),
        )

    def _batches(self) -> Iterator[Batch]:
        began = self.step - self.batch
        return batches(
            self.corpus,
            self.plan,
            self.epoch,
            self.batch,
            num_workers=self.options.num_workers,
            share=(self.accelerator.process_index, self.accelerator.num_processes),
            strength=lambda number: self.options.mask_strength(began + number),
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
        weight = batch.weight * self.accelerator.num_processes
        self.accelerator.backward(loss.total * weight / all_tokens)
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
        judged = self.dev is not None or self.score is not None
        if judged and (step % options.evaluate_every == 0 or step == options.steps):
            self._weigh(self.dev_loss() if self.score is None else self._dev_score(self.score))
        last = step == until or self.out_of_patience
        if (step % options.save_every == 0 or last) and self.accelerator.is_main_process:
            save_resume(self.directory, self._state())

    def _weigh(self, value: float) -> None:
        """Keep the weights if they are among the best; count how long none was better."""
        batches_of_epoch = max(1, len(self.corpus.plan(self.plan, self.epoch)))
        epoch = self.epoch + self.batch / batches_of_epoch
        self.judgements.add(Judgement(step=self.step, epoch=epoch, value=value))
        judge = self.options.judge
        if self.accelerator.is_main_process:
            kept = self.best.offer(self.step, value, self.plain_model.state_dict())
            self._say(f"step {self.step} dev {judge} {value:.4f}{' (kept)' if kept else ''}")
            self._scalar(f"dev/{judge}", value)
        best = self.judgements.best
        if self.out_of_patience and best is not None:
            self._say(
                f"stopped at step {self.step}: {self.judgements.num_worse} times no better dev {judge} "
                f"than {best.value:.4f} at step {best.step}, epoch {best.epoch:.1f}"
            )

    @torch.no_grad()
    def _dev_score(self, score: Callable[[Any], float]) -> float:
        """What the recipe measures of the model as it stands."""
        self.plain_model.eval()
        return self._agreed(score(self.plain_model))

    def _agreed(self, value: float) -> float:
        """All processes have to stop at the same step, so all have to see the same number."""
        mean = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(mean, reduction="mean"))

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
        return self._agreed(total / max(tokens, 1))

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.plain_model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            **self.judgements.state(),
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

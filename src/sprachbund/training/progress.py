"""What a run says of itself while it runs: one line for every so many steps."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sprachbund.data.batch import Batch
from sprachbund.runtime.measure import peak_mib
from sprachbund.util.distributed import of_all_ranks


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One line of the log: what the last `log_every` steps did.

    Losses are per target token (attention, parts), per transcript token (ctc) and per utterance (language); `kinds`
    holds the first of them for each kind of data.
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
    kinds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        left = f"{int(self.left_s // 3600)}:{int(self.left_s // 60 % 60):02d}:{int(self.left_s % 60):02d}"
        parts = "".join(f"{name} {value:.3f} " for name, value in {**self.kinds, **self.parts}.items())
        counts = "".join(f"{name} {count} | " for name, count in self.counts.items() if count)
        return (
            f"step {self.step}/{self.steps} epoch {self.epoch} loss {self.attention:.3f} {parts}ctc {self.ctc:.3f} "
            f"lang {self.language:.3f} rate {self.learning_rate:.2e} norm {self.gradient_norm:.2f} | "
            f"{counts}{self.utterances_per_s:.0f} utt/s {self.real_time:.0f}x real time | padding {self.padding:.1%} | "
            f"{self.memory_gib:.1f} GiB | {left} left"
        )


@dataclass(kw_only=True)
class _Sums:
    """What was counted since the last line, by name; `kinds` are losses and their tokens."""

    sums: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, tuple[float, int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, other: "_Sums") -> None:
        """Add what another process counted."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for name, value in other.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value
        for name, (value, tokens) in other.kinds.items():
            total, known = self.kinds.get(name, (0.0, 0))
            self.kinds[name] = total + value, known + tokens
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count


class Meter:
    """Adds up what happened since the last progress line; a second of speech is `frames_per_s` frames."""

    def __init__(self, frames_per_s: int) -> None:
        self.frames_per_s = frames_per_s
        self.reset()

    def reset(self) -> None:
        """Begin the next line."""
        self.began = time.monotonic()
        self.sums = _Sums()
        self.norm = self.rate = 0.0
        self.steps = 0

    def add(self, batch: Batch, loss: Any, norm: float, rate: float) -> None:
        """Count a step: its batch and loss, the norm of its gradient, its learning rate."""
        self.norm, self.rate, self.steps = norm, rate, self.steps + 1
        if batch.is_placeholder:
            return
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
        kinds = {batch.kind: (seen["attention"], loss.num_tokens)} if batch.kind else {}
        parts = {name: float(part) for name, part in loss.parts.items()}
        self.sums.add(_Sums(sums=seen, parts=parts, kinds=kinds, counts=dict(loss.counts)))

    def progress(self, step: int, steps: int, epoch: int) -> Progress:
        """The line after a step, of all processes together, and the beginning of the next one."""
        took = time.monotonic() - self.began
        everything = _Sums()
        for own in of_all_ranks(self.sums):
            everything.add(own)
        sums = everything.sums
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
            memory_gib=peak_mib() / 2**10,
            left_s=(steps - step) * took / self.steps,
            parts={name: value / max(sums["tokens"], 1) for name, value in everything.parts.items()},
            kinds={
                kind: total / max(tokens, 1) for kind, (total, tokens) in sorted(everything.kinds.items())
            },
            counts=everything.counts,
        )
        self.reset()
        return progress

"""When a run was at its best: judgements on the dev data, the patience that they end, and where the run converged.

They are part of what a run resumes from, so a run that patience stopped stays stopped, and its convergence point is
that of a run that was never broken off.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import RootModel

from sprachbund.util.files import read_model, write_text

CONVERGENCE_FILE = "convergence.json"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A judgement; less is better.

    Attributes:
        step: after so many steps.
        epoch: passes through the training data by then.
        value: loss or score.
    """

    step: int
    epoch: float
    value: float


@dataclass(kw_only=True)
class Judgements:
    """All judgements of a run, in order.

    Attributes:
        patience: so many judgements without a better one end the run; 0 never does.
        made: so far.
        lowest: value so far.
        num_worse: judgements since the lowest one.
    """

    patience: int = 0
    made: list[Judgement] = field(default_factory=list)
    lowest: float = math.inf
    num_worse: int = 0

    @property
    def at_an_end(self) -> bool:
        """Whether patience is."""
        return 0 < self.patience <= self.num_worse

    @property
    def best(self) -> Judgement | None:
        """The first of the lowest ones."""
        return min(self.made, key=lambda one: one.value, default=None)

    def add(self, judgement: Judgement) -> None:
        """Count a judgement."""
        self.num_worse = 0 if judgement.value < self.lowest else self.num_worse + 1
        self.lowest = min(self.lowest, judgement.value)
        self.made.append(judgement)

    def state(self) -> dict[str, Any]:
        """What a run resumes from."""
        made = [[one.step, one.epoch, one.value] for one in self.made]
        return {"lowest": self.lowest, "num_worse": self.num_worse, "judgements": made}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.lowest, self.num_worse = state.get("lowest", math.inf), state.get("num_worse", 0)
        rows = state.get("judgements", [])
        self.made = [Judgement(step=step, epoch=epoch, value=value) for step, epoch, value in rows]


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """Where a finished run was best.

    Attributes:
        judge: "loss" or "score".
        steps: made in all.
        stopped_early: whether patience ended it.
        best: the judgement that was best, None where there was none.
        judgements: all of them.
    """

    judge: str
    steps: int
    stopped_early: bool
    best: Judgement | None
    judgements: tuple[Judgement, ...]

    def __str__(self) -> str:
        done = f"{'stopped early' if self.stopped_early else 'done'} after {self.steps} steps"
        if self.best is None:
            return done
        best = self.best
        return f"{done}; best dev {self.judge} {best.value:.4f} at step {best.step}, epoch {best.epoch:.1f}"

    def write(self, directory: Path) -> None:
        """Write it beside the run."""
        write_text(directory / CONVERGENCE_FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """What `write` wrote. Raises SprachbundError when there is none, or it is broken."""
        path = directory / CONVERGENCE_FILE
        found = read_model(path, _File, advice="it says where a run converged: train it to its end").root
        return cls(**vars(found))


class _File(RootModel[Convergence]):
    """What the file holds."""

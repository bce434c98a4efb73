"""What a run needs to go on, and what it keeps: written whole or not at all."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, RootModel
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.util.files import atomic_path, read_model, write_text
from sprachbund.util.tensors import load_tensors, save_tensors

RESUME_FILE = "resume.pt"


def save_resume(directory: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run; the old one stays until the new one is whole on disk."""
    with atomic_path(directory / RESUME_FILE) as partial, partial.open("wb") as file:
        torch.save(_apart(dict(state)), file)


def _apart(value: Any) -> Any:
    """The same value without an object that is met twice, and with every text met twice.

    Pickle writes an object that it has met before as a reference. Which equal objects are one object depends on whether
    the run was resumed; the bytes of the file must not.
    """
    if type(value) is str:
        return sys.intern(value)
    if type(value) is dict:
        return {_apart(key): _apart(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_apart, value))
    return value


def load_resume(directory: Path) -> dict[str, Any] | None:
    """The state a run left behind, None when there is none.

    Raises:
        SprachbundError: when the file cannot be read.
    """
    path = directory / RESUME_FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and zip raise a dozen kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise SprachbundError(f"cannot resume from {path} ({reason}); delete it to start anew") from error
    if not isinstance(state, dict):
        raise SprachbundError(f"cannot resume from {path} (it holds no state); delete it to start anew")
    return state


class _Losses(RootModel[dict[Annotated[str, Field(pattern=r"^best\.\d+\.safetensors$")], float]]):
    """File of weights to its loss."""


class BestCheckpoints:
    """The checkpoints with the lowest loss or score, as weight files named by step, with an index beside them."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = keep
        self._index = directory / "best.json"
        self.losses: dict[str, float] = {}
        if self._index.exists():
            advice = f"delete it and the best.*.safetensors in {directory}, and the next evaluations are kept"
            self.losses = read_model(self._index, _Losses, advice=advice).root

    def offer(self, step: int, loss: float, weights: Mapping[str, Tensor]) -> bool:
        """Keep these weights if they are among the best; says whether they were.

        Args:
            step: after which they were evaluated.
            loss: or score; less is better.
            weights: by name.
        """
        ranked = sorted([*self.losses.values(), loss])
        if self.keep == 0 or loss > ranked[: self.keep][-1]:
            return False
        name = f"best.{step:08d}.safetensors"
        # A run that is killed between two of these lines, and taken up, has no file too few in its index.
        save_tensors(self.directory / name, weights)
        self.losses[name] = loss
        for worse in sorted(self.losses, key=lambda n: self.losses[n])[self.keep :]:
            del self.losses[worse]
        write_text(self._index, json.dumps(self.losses, indent=1))
        for path in self.directory.glob("best.*.safetensors"):
            if path.name not in self.losses:
                path.unlink(missing_ok=True)
        return True

    def average(self) -> dict[str, Tensor]:
        """Mean of the kept checkpoints' weights.

        Raises:
            SprachbundError: when none was kept.
        """
        if not self.losses:
            raise SprachbundError(f"no checkpoint in {self.directory} to average; train past one evaluation")
        total: dict[str, Tensor] = {}
        for name in self.losses:
            advice = f"delete it and {self._index}, and train on to the next evaluation"
            for key, value in load_tensors(self.directory / name, advice=advice).items():
                total[key] = total.get(key, torch.zeros_like(value, dtype=torch.float64)) + value.double()
        return {key: (value / len(self.losses)).float() for key, value in total.items()}


# What a training in a folder of its own leaves there: a log while it runs, and no more than its result
# afterwards.

LOG_FILE = "log.txt"
_OF_A_RUN = (RESUME_FILE, "best", "tensorboard")
"""What only a run that goes on needs."""


@contextmanager
def run_log(folder: Path) -> Iterator[Callable[[str], None]]:
    """Takes lines into a file of the folder, which is made: several are trained at a time, and each tells its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
        yield lambda line: print(line, file=log, flush=True)


def forget_run(folder: Path) -> None:
    """Delete what only a run that goes on needs; its model, log and convergence stay.

    A process that is killed amid this leaves some of it, and the finished run is not taken up again. So a comparison
    does it once more for all its runs when they are finished.
    """
    for name in _OF_A_RUN:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

"""What a run needs to go on, and what it keeps: written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, RootModel
from safetensors.torch import save_file
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.util.files import read_model
from sprachbund.util.tensors import load_tensors

RESUME_FILE = "resume.pt"


def save_resume(directory: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run; the old one stays until the new one is whole on disk."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{RESUME_FILE}.partial"
    with partial.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(directory / RESUME_FILE)


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
    """The checkpoints that were judged best (lowest), as weight files named by step, with an index beside them."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = keep
        self._index = directory / "best.json"
        self.losses: dict[str, float] = {}
        if self._index.exists():
            advice = f"delete it and the best.*.safetensors in {directory}, and the next judgements are kept"
            self.losses = read_model(self._index, _Losses, advice=advice).root

    def offer(self, step: int, loss: float, weights: Mapping[str, Tensor]) -> bool:
        """Keep these weights if they are among the best; says whether they were."""
        ranked = sorted([*self.losses.values(), loss])
        if self.keep == 0 or loss > ranked[: self.keep][-1]:
            return False
        self.directory.mkdir(parents=True, exist_ok=True)
        name = f"best.{step:08d}.safetensors"
        # Tied weights share their memory, which the file cannot.
        apart = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in weights.items()}
        save_file(apart, self.directory / name)
        self.losses[name] = loss
        for worse in sorted(self.losses, key=lambda n: self.losses[n])[self.keep :]:
            del self.losses[worse]
            (self.directory / worse).unlink(missing_ok=True)
        self._index.write_text(json.dumps(self.losses, indent=1))
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
            advice = f"delete it and {self._index}, and train on to the next judgement"
            for key, value in load_tensors(self.directory / name, advice=advice).items():
                total[key] = total.get(key, torch.zeros_like(value, dtype=torch.float64)) + value.double()
        return {key: (value / len(self.losses)).float() for key, value in total.items()}

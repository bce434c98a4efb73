"""Recipes by two processes: `python -m tests.training.recipe_ranks DIRECTORY` runs them, `test_ranks` looks at them.

DIRECTORY/CASE/2/failure.RANK.txt is what ended a process, DIRECTORY/CASE/2/writes.RANK.json what it wrote.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import StreamingPart, TransducerPart
from sprachbund.training.loop import train
from sprachbund.training.translator import TranslatorRecipe, run
from sprachbund.util.distributed import rank
from tests.training import made
from tests.training.ranks import fork_ranks

STEPS = 4
BROKEN = "utterance 3 cannot be read"


def streaming_recipe(root: Path) -> TranslatorRecipe:
    """A streaming transducer whose CTC head has no weight, on batches of one and two utterances."""
    shape = made.make_model().config.model_dump(exclude={"source_languages", "target_languages"})
    data = [{"path": root / "data"}]
    parts = {
        "streaming": StreamingPart(left_context=16, right_contexts=(6, 1), stem_channels=8),
        "transducer": TransducerPart(prediction_width=24, prediction_layers=1, joint_width=32),
        "ctc_weight": 0.0,
    }
    training = made.options(STEPS, max_utterances=2, evaluate_every=2, keep_best=2, log_every=1)
    return TranslatorRecipe.model_validate(
        {
            "languages": made.LANGUAGES,
            "train": data,
            "dev": data,
            "bits": 32,
            "vocabulary_size": 40,
            "transcript_vocabulary_size": 30,
            "model": {**shape, **parts},
            "examples": {"rows_per_utterance": 2, "time_masks": 0, "frequency_masks": 0},
            "training": training.model_dump(),
            "card": {"name": "streaming"},
        }
    )


def watch_writes(root: Path) -> list[str]:
    """Everything below a folder that this process makes, opens to write, renames or removes from now on."""
    seen: list[str] = []

    def note(event: str, given: tuple[Any, ...]) -> None:
        writes = event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and str(given[0]).startswith(
            str(root)
        ):
            # of a renaming the new name: files are written under a temporary one
            seen.append(str(given[1] if event == "os.rename" else given[0]))

    sys.addaudithook(note)
    return seen


def whole_and_in_parts(root: Path, out: Path) -> None:
    recipe, silent = streaming_recipe(root), lambda line: None
    seen = watch_writes(out)
    run(recipe, out / "whole", report=silent)
    run(recipe, out / "parts", report=silent, stop_after=2)
    run(recipe, out / "parts", report=silent)
    written, seen = sorted(set(seen)), []
    (out.parent / f"{out.name}.writes.{rank()}.json").write_text(json.dumps(written))


class Broken:
    """A corpus of which one process cannot read an utterance."""

    def __init__(self, corpus: Any) -> None:
        self._corpus = corpus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._corpus, name)

    def __getitem__(self, place: Any) -> Any:
        if rank() == 1 and place[0] == 1:  # in the second epoch
            raise SprachbundError(BROKEN)
        return self._corpus[place]


def broken_data(root: Path, out: Path) -> None:
    corpus = Broken(made.make_training_data(root / "data"))
    train(made.make_model(), corpus, made.options(100, max_utterances=8), out / "run")  # type: ignore[arg-type]


def full_disk(root: Path, out: Path) -> None:
    def report(line: str) -> None:
        if line.startswith("step 3/"):
            raise OSError(28, "No space left on device", "resume.pt")

    chosen = made.options(100, log_every=1)
    train(made.make_model(), made.make_training_data(root / "data"), chosen, out / "run", report=report)


CASES: dict[str, Callable[[Path, Path], None]] = {
    "whole and in parts": whole_and_in_parts,
    "broken data": broken_data,
    "full disk": full_disk,
}


def main() -> None:
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    made.make_corpus(root / "data", 16)
    found = {}
    for name, case in CASES.items():
        began = time.monotonic()
        codes = fork_ranks(
            [2], lambda rank, count, case=case, name=name: case(root, root / name / "out"), root / name
        )  # type: ignore[misc]
        found[name] = {"codes": list(codes.values()), "seconds": time.monotonic() - began}
    (root / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

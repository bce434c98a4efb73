"""Two processes and one recipe: one of them writes, a run goes on to the same bits, an error in one ends both."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sprachbund.cli import USAGE, main
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import StreamingPart, TransducerPart
from sprachbund.research.discrete_units import recipe as discrete_units
from sprachbund.research.dual_scale import recipe as dual_scale
from sprachbund.research.encoder_transfer import recipe as encoder_transfer
from sprachbund.research.gradient_sharing import recipe as gradient_sharing
from sprachbund.training.loop import train
from sprachbund.training.preparation import prepare_model
from sprachbund.training.recipe import TranslatorRecipe
from sprachbund.training.translator import run
from sprachbund.util.distributed import rank
from tests.training import made
from tests.training.ranks import fork_ranks

STEPS = 4
BROKEN = "utterance 3 cannot be read"


def streaming_recipe(root: Path, ctc_weight: float = 0.0) -> TranslatorRecipe:
    """A streaming transducer, by default with a CTC head of no weight, on batches of one and two utterances."""
    shape = made.make_model().config.model_dump(exclude={"source_languages", "target_languages"})
    data = [{"path": root / "data"}]
    parts = {
        "streaming": StreamingPart(left_context=16, right_contexts=(6, 1), stem_channels=8),
        "transducer": TransducerPart(prediction_width=24, prediction_layers=1, joint_width=32),
        "ctc_weight": ctc_weight,
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


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_transcripts_are_read_for_a_ctc_head_alone(tmp_path: Path, weight: float) -> None:
    made.make_corpus(tmp_path / "data")
    recipe = streaming_recipe(tmp_path, weight)
    prepared = prepare_model(recipe, tmp_path, [Manifest(tmp_path / "data")])
    assert (prepared.examples.transcript("eins") is None) == (weight == 0)
    assert (prepared.ctc_frame_s is None) == (weight == 0)


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

    def __getitem__(self, key: Any) -> Any:
        if rank() == 1 and key[0] == 1:  # in the second epoch
            raise SprachbundError(BROKEN)
        return self._corpus[key]


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


Ended = dict[str, dict[str, Any]]
"""Of each case: the exit codes of both processes, the last line of each one's error, seconds."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recipes")
    made.make_corpus(directory / "data", 16)
    return directory


@pytest.fixture(scope="module")
def ended(root: Path) -> Ended:
    result = {}
    for name, case in CASES.items():

        def work(rank: int, count: int, name: str = name, case: Callable[[Path, Path], None] = case) -> None:
            case(root, root / name / "out")

        began = time.monotonic()
        codes = fork_ranks([2], work, root / name)
        seconds = time.monotonic() - began
        paths = [root / name / "2" / f"failure.{rank}.txt" for rank in (0, 1)]
        errors = [path.read_text().strip().splitlines()[-1] if path.exists() else "" for path in paths]
        result[name] = {"codes": [*codes.values()], "seconds": seconds, "errors": errors}
    return result


@pytest.mark.slow
def test_a_streaming_recipe_without_ctc_goes_on_to_the_same_bits(root: Path, ended: Ended) -> None:
    result = ended["whole and in parts"]
    assert result["codes"] == [0, 0], result["errors"]
    out = root / "whole and in parts" / "out"
    whole, parts = (load_file(out / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(whole[name].equal(parts[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.usefixtures("ended")
def test_files_are_written_by_the_first_process_alone(root: Path) -> None:
    first, second = (
        json.loads((root / "whole and in parts" / f"out.writes.{rank}.json").read_text()) for rank in (0, 1)
    )
    assert any(path.endswith("recipe.json") for path in first)
    assert any("best" in path for path in first)
    assert second == []


@pytest.mark.slow
def test_data_that_one_process_cannot_read_end_both_with_its_message(ended: Ended) -> None:
    result = ended["broken data"]
    assert result["codes"] == [1, 1]
    assert result["errors"][1].endswith(BROKEN)
    assert result["errors"][0].endswith(f"process 1 of 2 failed: {BROKEN}")
    assert result["seconds"] < 60


@pytest.mark.slow
def test_an_error_in_the_process_that_writes_ends_both(ended: Ended) -> None:
    result = ended["full disk"]
    assert result["codes"] == [1, 1]
    assert "No space left on device" in result["errors"][0]
    assert "process 0 of 2" in result["errors"][1]
    assert result["seconds"] < 60


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun")
@pytest.mark.parametrize("module", [discrete_units, dual_scale, encoder_transfer, gradient_sharing])
def test_a_recipe_that_starts_its_own_processes_refuses_torchrun(module: Any, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"is one process, and 2 were started; run it without torchrun"):
        module.run(None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("torchrun")
@pytest.mark.parametrize(
    "command",
    [
        "units fit CORPUS --encoder MODEL --out OUT",
        "data make phrasebook --out OUT",
        "recipe discrete_units --data DATA --out OUT",
        "share plan FILE.npz --out OUT",
    ],
)
def test_a_command_whose_files_every_process_would_write_refuses_torchrun(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == USAGE
    assert "is one process, and 2 were started; run it without torchrun" in capsys.readouterr().err

"""An evaluation by several processes, one of them killed, has every byte of one by one process."""

import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.manifest import differences, read_manifest
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.replay import replay
from sprachbund.evaluation.run import BEGUN, PARTS, EvaluationResult, evaluate
from sprachbund.evaluation.tables import speed_line
from sprachbund.util.computing import Computing
from tests.evaluation.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def options(tiny_options: EvaluationOptions) -> EvaluationOptions:
    return replace(tiny_options, engine="torch", batch_size=2)


@pytest.fixture(scope="module")
def whole(
    corpus: Path, model_directory: Path, options: EvaluationOptions, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What one process writes, with as many threads as each of several has."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    evaluate([corpus], model_directory, options, out=out)
    return out


def check_same(evaluation: EvaluationResult, whole: Path) -> None:
    """Every file but the manifest has the same bytes, and the manifest the same numbers."""
    out = evaluation.out
    assert out is not None
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == files
    for name in files - {Path("scores.json")}:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    old, new = read_manifest(whole), read_manifest(out)
    assert (new.numbers, new.failures) == (old.numbers, old.failures)
    assert (new.data, new.model, new.configuration) == (old.data, old.model, old.configuration)
    assert not differences(old, new)
    # Processes that share a machine have no speed of the model, so the manifest has none.
    assert old.measured["real_time_factor"]
    assert new.measured == {}
    assert "an evaluation by one process measures it" in speed_line(new)


def kill_one() -> Callable[[str, int, int], None]:
    """Kills a process when the first batch is done."""
    killed: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if not killed and what == "decoding" and done:
            process = multiprocessing.active_children()[0]
            process.kill()
            killed.append(process.pid or 0)

    return progress


@pytest.mark.slow
def test_several_processes_one_of_them_killed(
    corpus: Path, model_directory: Path, options: EvaluationOptions, whole: Path, tmp_path: Path
) -> None:
    computing = Computing(workers=2, block=3)
    evaluation = evaluate(
        [corpus], model_directory, options, out=tmp_path, computing=computing, progress=kill_one()
    )
    check_same(evaluation, whole)
    assert replay(tmp_path).same


@pytest.mark.slow
def test_parts_that_are_there_are_kept_and_never_mixed(
    corpus: Path, model_directory: Path, options: EvaluationOptions, whole: Path, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("scoring"):
            raise StopError

    computing = Computing(workers=2, block=100)
    with pytest.raises(StopError):
        evaluate([corpus], model_directory, options, out=tmp_path, computing=computing, progress=stop)
    parts = sorted((tmp_path / PARTS).glob("*.jsonl"))
    assert len(parts) == 2  # of speech, and of sounds without speech
    before = [path.stat().st_mtime_ns for path in parts]

    def look(what: str, done: int, total: int) -> None:
        assert [path.stat().st_mtime_ns for path in parts] == before

    begun = json.loads((tmp_path / PARTS / BEGUN).read_text())
    del begun["asked"]["decoding"]["tempos"]  # as an earlier version, which had no such option, left it
    (tmp_path / PARTS / BEGUN).write_text(json.dumps(begun))
    other = save_tiny_model(tmp_path / "other", seed=1)
    for change, model, named in (
        ({"seed": 7}, model_directory, "seed"),
        ({}, other, "model"),
    ):
        with pytest.raises(SprachbundError, match=f"parts of an evaluation with another {named}"):
            evaluate([corpus], model, replace(options, **change), out=tmp_path, computing=computing)
    with pytest.raises(SprachbundError, match=r"computed with 1 threads; give --threads 1, or delete it"):
        evaluate([corpus], model_directory, options, out=tmp_path, computing=replace(computing, threads=2))
    shutil.rmtree(other)
    evaluation = evaluate(
        [corpus], model_directory, options, out=tmp_path, computing=computing, progress=look
    )
    check_same(evaluation, whole)


def test_a_comet_that_is_not_there_is_said_before_the_work_and_another_one_goes_on(
    corpus: Path,
    model_directory: Path,
    options: EvaluationOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []

    class Unavailable:
        def __init__(self, name: str, *, offline: bool = False) -> None:
            tried.append(name)
            raise SprachbundError(f"{name} is no COMET model")

    def work(what: str, done: int, total: int) -> None:
        pytest.fail(f"{what} was begun")

    monkeypatch.setattr("sprachbund.evaluation.run.comet_signature", lambda name: name)
    monkeypatch.setattr("sprachbund.evaluation.scoring.Comet", Unavailable)
    computing = Computing(workers=2, block=100)
    for name in ("/wrong", "/right"):  # the second is not refused for the first
        asked = replace(options, comet=name)
        with pytest.raises(SprachbundError, match=f"{name} is no COMET model"):
            evaluate([corpus], model_directory, asked, out=tmp_path, computing=computing, progress=work)
    assert tried == ["/wrong", "/right"]


def test_a_ray_cluster_evaluates_alike(
    corpus: Path, model_directory: Path, options: EvaluationOptions, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(SprachbundError, match="needs a folder that its machines share; give --out"):
        evaluate([corpus], model_directory, options, computing=Computing(ray="10.0.0.1:6379"))
    pytest.importorskip("ray")
    computing = Computing(workers=2, block=3, ray="local")
    check_same(evaluate([corpus], model_directory, options, out=tmp_path, computing=computing), whole)

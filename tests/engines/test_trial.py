"""The trial of engines: who is chosen by given times, what is remembered, and what happens where little is there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sprachbund import api
from sprachbund.engines import choice, trial
from sprachbund.engines.choice import engine_for
from sprachbund.engines.options import EngineChoice, EngineWarning
from sprachbund.engines.trial import Candidate, Trial, TrialFile, fastest, thread_counts, try_candidates
from sprachbund.models.base import Family
from sprachbund.models.io import load
from tests.engines.support import needs_native
from tests.models import speech_llm_support
from tests.models.whisper_support import TINY, make_directory, make_transformers_model, transplanted

GB = 10**9


class Clock:
    """Works that take given times; counts how often each was run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
        self.runs: list[str] = []
        self.now = 0.0

        class Work:
            def __init__(work, family: Any) -> None:  # noqa: N805
                work.family = family
                work.seconds = seconds[family]

            def short(work) -> float:  # noqa: N805
                return work.seconds / 10

            def whole(work, fill: bool) -> float:  # noqa: N805
                self.runs.append(work.family)
                self.now += work.seconds
                return work.seconds

        monkeypatch.setattr(trial, "_Work", Work)
        monkeypatch.setattr(trial, "_recording", lambda works, short_s: "clip")
        monkeypatch.setattr(trial.time, "perf_counter", lambda: self.now)


def candidates(*names: str, build: Callable[[str], Any] = lambda name: name) -> list[Candidate]:
    made = []
    for name in names:
        engine, _, threads = name.partition(" ")
        made.append(
            Candidate(
                engine=engine,  # type: ignore[arg-type]
                build=lambda name=name: build(name),
                num_bytes=0,
                threads=int(threads) if threads else None,
            )
        )
    return made


def test_thread_counts_are_powers_of_two_half_and_all() -> None:
    assert thread_counts(1) == [1]
    assert thread_counts(2) == [1, 2]
    assert thread_counts(6) == [1, 2, 3, 4, 6]
    assert thread_counts(64) == [1, 2, 4, 8, 16, 32, 64]


def test_of_equal_ones_the_first_is_taken() -> None:
    assert fastest({"torch": 1.0, "native 1": 0.98, "native 2": 0.99}) == "torch"
    assert fastest({"torch": 1.0, "native 1": 0.9, "native 2": 0.89}) == "native 1"
    assert fastest({"torch": 1.0, "native 1": 0.9, "native 2": 0.5}) == "native 2"


def test_the_fastest_wins_and_slow_ones_are_run_less(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"torch": 0.10, "torch-fp32": 0.08, "native 1": 0.05, "torch-bf16": 0.60, "torch-int8": 0.12}
    clock = Clock(monkeypatch, seconds)
    result, family = try_candidates(candidates(*seconds))
    assert (result.chosen, family) == ("native 1", "native 1")
    assert "torch-bf16" not in clock.runs  # left out after half a second of sound
    assert clock.runs.count("torch-int8") == 1  # and this after a round
    assert clock.runs.count("native 1") == clock.runs.count("torch-fp32") == 7
    assert result.seconds.keys() == {"torch", "torch-fp32", "native 1"}
    assert result.ratio("torch", "native 1") == pytest.approx(2.0)
    assert result.ratio("torch-bf16", "native 1") == pytest.approx(12.0)  # by the half second
    assert result.fastest_of(["torch-bf16"]) == "torch-bf16"
    assert result.engines == ("torch", "torch-fp32", "native", "torch-bf16", "torch-int8")


def test_rounds_end_when_their_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {"torch": 1.0, "native 1": 0.8})
    try_candidates(candidates("torch", "native 1"))
    assert clock.runs == ["torch", "native 1", "torch", "native 1"]


def test_those_that_cannot_run_or_find_no_memory_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, {"torch": 0.1, "torch-bf16": 0.2})

    def build(name: str) -> str:
        if name == "torch-int8":
            raise RuntimeError("didn't find engine for operation")
        return name

    tried = candidates("torch", "torch-bf16", "torch-int8", build=build)
    big = Candidate(engine="torch-fp32", build=lambda: pytest.fail("not built"), num_bytes=10 * GB)
    monkeypatch.setattr(trial, "available_memory", lambda: 12 * GB)
    result, _ = try_candidates([*tried, big])
    assert result.chosen == "torch"
    assert result.failed["torch-int8"] == "RuntimeError: didn't find engine for operation"
    assert result.failed["torch-fp32"] == "its weights take 10.0 GB, and 12.0 GB of memory are free"


def test_where_none_can_run_none_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "available_memory", lambda: 0)
    result, family = try_candidates(
        [Candidate(engine="torch", build=lambda: pytest.fail("not built"), num_bytes=1)]
    )
    assert (result.chosen, family) == (None, None)
    assert result.engines == ()


FOUND = Trial(seconds={"torch": 0.2}, short_s={"torch": 0.02}, refused={"native 1": "no"}, chosen="torch")


def file(folder: Path, **more: Any) -> TrialFile:
    return TrialFile(**{"folder": folder, "kernels": "avx2", "model": "0" * 64, "asked": "auto", **more})


def test_a_trial_is_remembered_under_processor_version_and_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new"
    assert file(folder).read() is None
    file(folder).write(FOUND)
    assert file(folder).read() == FOUND
    for other in ({"kernels": "avx512"}, {"model": "1" * 64}, {"asked": "native"}):
        assert file(folder, **other).read() is None
    monkeypatch.setattr("platform.node", lambda: "another host")
    assert file(folder).read() == FOUND
    (key,) = json.loads((folder / "trials.json").read_text())
    assert trial.processor_name() in key
    assert f"torch {torch.__version__.split('+')[0]}" in key
    for name, value in (
        ("processor_name", lambda: "Another CPU"),
        ("instruction_flags", lambda: ("sse",)),
        ("usable_cores", lambda: 99),
        ("versions", lambda libraries: {"sprachbund": "9", "torch": "9"}),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(trial, name, value)
            assert file(folder).read() is None
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert file(folder).read() is None
    file(folder).write(FOUND)  # both stay
    monkeypatch.delenv("DNNL_MAX_CPU_ISA")
    assert file(folder).read() == FOUND


@pytest.mark.parametrize(
    "content", ["{", "[1]", "null", '{"KEY": 3}', '{"KEY": {"chosen": "torch"}}', "\ufffd"]
)
def test_a_damaged_file_is_as_none(tmp_path: Path, content: str) -> None:
    file(tmp_path).path.write_text(content.replace("KEY", file(tmp_path)._key))
    assert file(tmp_path).read() is None
    file(tmp_path).write(FOUND)
    assert file(tmp_path).read() == FOUND


# Whole models.


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_directory(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Trials with given times, by one thread; `asked` lists the candidates of each."""
    state: dict[str, Any] = {"asked": [], "seconds": {}}

    def decide(tried: list[Candidate]) -> tuple[Trial, Family | None]:
        names = [c.name for c in tried]
        state["asked"].append(names)
        seconds = {name: state["seconds"].get(name.partition(" ")[0], 1.0) for name in names}
        chosen = fastest(seconds)
        family = next(c for c in tried if c.name == chosen).build()
        return Trial(seconds=seconds, short_s=seconds, refused={}, chosen=chosen), family

    monkeypatch.setattr(choice, "try_candidates", decide)
    monkeypatch.setattr(choice, "choose_threads", lambda wanted: wanted or 1)
    return state


ALL = ["torch", "torch-fp32", "native 1", "torch-bf16", "torch-int8"]


@needs_native
@pytest.mark.parametrize("fastest_engine", ["native", "torch", "torch-bf16"])
def test_auto_is_the_fastest_and_is_tried_once(
    directory: Path, tmp_path: Path, decided: dict[str, Any], fastest_engine: str
) -> None:
    torch.set_num_threads(1)  # no note of more threads than cores
    decided["seconds"] = {fastest_engine: 0.5}
    for _ in range(2):
        engine = engine_for(load(directory), directory=directory, cache=tmp_path / "cache")
        assert engine.name == fastest_engine
        assert "fastest of 5 on this processor" in engine.why
        assert ("2.0 times as fast as torch" in engine.why) == (fastest_engine != "torch")
        assert (engine.notes, engine.warnings) == ((), ())
    assert decided["asked"] == [ALL]


@needs_native
def test_an_engine_that_is_slower_than_torch_is_warned_of(
    directory: Path, tmp_path: Path, decided: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decided["seconds"] = {"native": 2.0, "torch-bf16": 12.0, "torch-fp32": 1.01}
    monkeypatch.setattr("sprachbund.engines.packed_cache.default_cache", lambda: tmp_path / "cache")
    for name, ratio in (("native", "2.0"), ("torch-bf16", "12.0"), ("torch-bf16", "12.0")):
        with pytest.warns(EngineWarning, match=f"engine {name} takes {ratio} times as long as torch"):
            assert api.load(directory, engine=name).engine.name == name  # type: ignore[arg-type, union-attr]
    assert decided["asked"] == [["torch", "native 1"], ["torch", "torch-bf16"]]
    model = load(directory)
    assert engine_for(model, "torch-fp32", directory=directory).warnings == ()
    assert engine_for(model, "auto", directory=directory).name == "torch"
    assert engine_for(model, "torch", directory=directory).warnings == ()


@needs_native
def test_a_real_trial_of_a_small_model(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "choose_threads", lambda wanted: wanted or 2)
    model, cache = load(directory), tmp_path / "cache"
    first = engine_for(model, directory=directory, cache=cache)
    (result,) = json.loads((cache / "trials.json").read_text()).values()
    assert result["short_s"].keys() == {*ALL, "native 2"}
    assert result["chosen"].partition(" ")[0] == first.name
    if result["seconds"]:
        assert result["seconds"][result["chosen"]] <= 1.03 * min(result["seconds"].values())
    assert not model.real_length  # type: ignore[attr-defined]
    again = engine_for(model, directory=directory, cache=cache)
    assert (again.name, again.why) == (first.name, first.why)


def test_a_cache_that_cannot_be_written_costs_time_only(
    directory: Path, tmp_path: Path, decided: dict[str, Any]
) -> None:
    (tmp_path / "file").write_text("")
    for count in (1, 2):
        engine = engine_for(load(directory), directory=directory, cache=tmp_path / "file")
        assert any("each start tries again" in note for note in engine.notes)
        assert len(decided["asked"]) == count


def test_half_a_core_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "usable_cores", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert choice.choose_threads(None) == 1
    (note,) = engine_for(transplanted(make_transformers_model(TINY), TINY), "torch").notes
    assert "16 threads" in note
    assert "OMP_NUM_THREADS=1" in note


def test_the_command_keeps_torch_within_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    from sprachbund.cli import startup

    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(startup, "core_quota", lambda: None)
    startup.stay_within_quota()
    assert os.environ == {}
    monkeypatch.setattr(startup, "core_quota", lambda: 0.5)
    monkeypatch.setattr(startup, "usable_cores", lambda: 1)
    startup.stay_within_quota()
    assert os.environ == {"OMP_NUM_THREADS": "1"}
    os.environ["OMP_NUM_THREADS"] = "7"
    startup.stay_within_quota()
    assert os.environ == {"OMP_NUM_THREADS": "7"}


def test_every_engine_is_a_candidate_or_left_out_on_purpose() -> None:
    known = set(EngineChoice.__args__)  # type: ignore[attr-defined]
    assert known - {*choice._EXACT, *choice._ROUNDED} == {"auto", "native-int4"}


@needs_native
def test_models_that_read_the_languages_first_are_tried() -> None:
    model = speech_llm_support.make_model()
    tried, family = try_candidates(
        [
            Candidate(engine="torch", build=lambda: model, num_bytes=0),
            Candidate(
                engine="native",
                build=lambda: engine_for(model, "native", threads=1).family,
                num_bytes=0,
                threads=1,
            ),
        ]
    )
    assert tried.refused == {}
    assert tried.short_s.keys() == {"torch", "native 1"}
    assert family is not None

"""Threads are tried once for a machine and model, and fewer are taken where more gain nothing."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sprachbund.engines import choice as thread_choice
from sprachbund.engines.choice import candidates, engine_for, fastest, fastest_threads
from sprachbund.models.base import Family
from sprachbund.models.io import load
from tests.engines.support import needs_native
from tests.models.whisper_support import make_directory


def work(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def test_candidates_are_powers_of_two_half_and_all() -> None:
    assert candidates(1) == [1]
    assert candidates(2) == [1, 2]
    assert candidates(6) == [1, 2, 3, 4, 6]
    assert candidates(64) == [1, 2, 4, 8, 16, 32, 64]


def test_the_fastest_is_taken_and_fewer_threads_where_more_gain_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert fastest({1: work(0.3), 2: work(0.01), 4: work(0.2)}) == 2
    clock = iter(range(1000))  # every work takes as long as any other
    monkeypatch.setattr(thread_choice, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert fastest({2: lambda: None, 1: lambda: None, 4: lambda: None}) == 1


def test_a_trial_is_made_once_and_forgotten_when_the_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(thread_choice, "_work", lambda family: work(0.0))
    monkeypatch.setattr(thread_choice, "fastest", lambda works: max(works))

    def family_with(count: int) -> Family:
        asked.append(count)
        return None  # type: ignore[return-value]

    def choose(most: int, model: str = "a") -> int:
        return fastest_threads(most, family_with, model=model, cache=tmp_path / "new")

    assert choose(1) == 1
    assert not asked
    assert choose(4) == 4
    assert asked == [1, 2, 4]
    assert choose(4) == 4
    assert asked == [1, 2, 4]
    choose(4, "b")
    choose(2)  # another limit is another question
    assert asked == [1, 2, 4, 1, 2, 4, 1, 2]
    for content in ("{", "[1]", json.dumps({"x": "y"})):
        (tmp_path / "new" / "threads.json").write_text(content)
        asked.clear()
        assert choose(4) == 4
        assert asked == [1, 2, 4]


def test_where_nothing_can_be_written_every_start_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_choice, "_work", lambda family: work(0.0))
    (tmp_path / "file").write_text("")
    chosen = fastest_threads(2, lambda count: None, model="a", cache=tmp_path / "file")  # type: ignore[arg-type, return-value]
    assert chosen in (1, 2)


@needs_native
def test_an_engine_of_a_directory_chooses_by_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_directory(tmp_path / "model")
    monkeypatch.setattr("sprachbund.engines.choice.choose_threads", lambda wanted: wanted or 2)
    model, asked = load(tmp_path / "model"), []
    original = fastest

    def counted(works: dict[int, Callable[[], None]]) -> int:
        asked.append(sorted(works))
        return original(works)

    monkeypatch.setattr(thread_choice, "fastest", counted)
    for threads in (None, None, 1):
        engine = engine_for(
            model, "native", threads=threads, directory=tmp_path / "model", cache=tmp_path / "cache"
        )
        assert "thread" in engine.why
    assert asked == [[1, 2]]
    assert not model.real_length

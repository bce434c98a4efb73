"""`sprachbund bench`: what is refused before anything is measured, and is said once."""

from collections.abc import Callable
from typing import Any, get_args

import pytest

from sprachbund.engines.benchmark import EngineName
from sprachbund.engines.extension import missing_because
from sprachbund.errors import SprachbundError
from sprachbund.util import jobs
from tests.stories.support import command


def measure_by(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., Any]) -> None:
    monkeypatch.setattr(jobs, "run_apart", measure)


def test_help_names_every_engine() -> None:
    text = " ".join(command("bench", "--help").out.split()).replace("- ", "-")  # a line may end within a name
    assert ", ".join(get_args(EngineName)) in text


@pytest.mark.skipif(missing_because() is not None, reason="kernels are of the native engine")
@pytest.mark.parametrize("engine", [(), ("--engine", "torch")])
def test_an_unknown_instruction_set(engine: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any) -> None:
        raise AssertionError("it began to measure")

    measure_by(monkeypatch, measure)
    monkeypatch.setenv("SPRACHBUND_INSTRUCTION_SET", "none")
    ran = command("bench", *engine)
    [line] = ran.err.splitlines()
    assert line.startswith(
        "sprachbund: error: SPRACHBUND_INSTRUCTION_SET is 'none', and no such kernels run on"
    )
    assert ran.code == 2


def test_a_refusal_of_every_engine_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise SprachbundError("it has no memory")

    measure_by(monkeypatch, refuse)
    ran = command("bench")
    assert (ran.code, ran.err) == (1, "sprachbund: error: it has no memory\n")

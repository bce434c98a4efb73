"""Heavy imports are not disturbed by the garbage collector, and all is as before afterwards; threads sleep soon."""

import atexit
import gc
import subprocess
import sys

import pytest

from sprachbund.cli.startup import SPINS, undisturbed
from tests.engines.support import needs_native


@pytest.fixture
def at_exit(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is asked to be done at exit."""
    asked: list[object] = []
    monkeypatch.setattr(atexit, "register", asked.append)
    return asked


def test_nothing_is_collected_while_modules_are_imported(
    monkeypatch: pytest.MonkeyPatch, at_exit: list[object]
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    frozen = gc.get_freeze_count()
    with undisturbed():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(made)
    assert at_exit == [gc.unfreeze]


def test_a_process_with_torch_and_one_that_never_collects_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, at_exit: list[object]
) -> None:
    frozen = gc.get_freeze_count()
    with undisturbed():
        assert gc.isenabled()
    monkeypatch.delitem(sys.modules, "torch")
    gc.disable()
    try:
        with undisturbed():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert gc.get_freeze_count() <= frozen  # some may have died since
    assert at_exit == []


@pytest.mark.slow
@needs_native
def test_a_process_that_loads_a_model_ends_without_a_word() -> None:
    code = """
from sprachbund.cli.startup import SPINS, undisturbed
with undisturbed():
    from sprachbund import load
print(load(engine="native", threads=1).engine.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("native\n", "")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({}, SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ],
)
def test_threads_of_torch_sleep_soon_unless_the_user_chose(chosen: dict[str, str], said: str) -> None:
    code = (
        "import os, sys; from sprachbund.cli import main; main(['--version']); "
        "assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=chosen, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == said

"""Shared work whose process dies, or fails in a way that nobody foresaw, ends with one line."""

import os
import signal
from collections.abc import Callable

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.util.jobs import run_processes


def killed(share: tuple[int, int], progress: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failed(share: tuple[int, int], progress: object) -> None:
    raise KeyError("a key")


@pytest.mark.parametrize(
    ("work", "wanted"),
    [
        (killed, r"SIGKILL, as a system short of memory.*fewer --workers"),
        (failed, r"KeyError: 'a key' \(test_"),
    ],
)
def test_shared_work_says_how_a_process_ended(
    work: Callable[..., None], wanted: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SprachbundError, match=wanted):
        run_processes(work, [(0, 1)], lambda: None)
    assert "Traceback" not in capfd.readouterr().err

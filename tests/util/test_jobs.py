"""Shared work whose process dies, or fails in a way that nobody foresaw, ends with one line."""

import os
import signal
import sys
from collections.abc import Callable

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.util.jobs import run_apart, run_processes


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


def pid_and_blocked(times: int) -> tuple[int, bool]:
    return times * os.getpid(), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def refused() -> None:
    raise SprachbundError("no, thank you")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_function_apart_runs_in_another_process() -> None:
    pid, blocked = run_apart(pid_and_blocked, 1)
    assert pid != os.getpid()
    assert blocked == (sys.platform != "win32")  # Ctrl-C is the parent's to answer
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_what_a_function_apart_raises_is_raised_here() -> None:
    with pytest.raises(SprachbundError, match="no, thank you"):
        run_apart(refused)
    with pytest.raises(SprachbundError, match="a process was killed by SIGKILL"):
        run_apart(dies)

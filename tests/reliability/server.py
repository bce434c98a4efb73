"""Runs commands of sprachbund in forked copies of a process that has imported them already.

A line of JSON comes in for each: `argv`, `environment`, `output` (a file), `timeout_s`; its exit code goes out, less
than 0 for a signal. Every command has a process group of its own, which is killed at the end.
"""

import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module

import torch

torch.set_num_threads(1)

for name in (
    "matplotlib.figure",
    "sacrebleu",
    "sklearn.cluster",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "transformers",
    "sprachbund.evaluation.run",
    "sprachbund.training.translator",
    "sprachbund.units.fit",
):
    import_module(name)  # what commands need is imported once

from sprachbund.cli import main  # noqa: E402


def run(job: dict[str, object]) -> int:
    """The exit code of a command."""
    process = os.fork()
    if process == 0:
        _be(job)
    until = time.monotonic() + float(job["timeout_s"])  # type: ignore[arg-type]
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            break
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    if not ended:
        _, status = os.waitpid(process, 0)
        return -signal.SIGALRM
    return os.waitstatus_to_exitcode(status)


def _be(job: dict[str, object]) -> None:
    """Become a command."""
    code = 70
    try:
        os.setsid()
        output = os.open(str(job["output"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for number in (1, 2):
            os.dup2(output, number)
        os.environ.update(job["environment"])  # type: ignore[call-overload]
        sys.argv = ["sprachbund", *job["argv"]]  # type: ignore[misc]
        ctypes.CDLL(None).killing_begin()
        code = main() or 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)

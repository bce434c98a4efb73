"""First steps of a command: standard streams that are open; waiting of torch's threads; no garbage collection.

For the command alone: in a library, all this would be decided over its user's head.
"""

import atexit
import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sprachbund.util.processor import core_quota, usable_cores

SPINS = "5000"
"""Number of times that a thread of torch looks for the others before it sleeps; measured by benchmarks/waiting.py."""


def open_closed_streams() -> None:
    """Put something in the place of standard streams that were closed (`sprachbund … >&-`).

    Python has none there, and the first file opened would take the number of a closed one: what a library prints would
    stand in it. As with GNU's tools, reading from a closed stdin and printing to a closed stdout fail with "bad file
    descriptor", for these are opened the wrong way round. What a closed stderr would have said is lost.
    """
    if sys.stdin is None:
        unreadable = io.FileIO(os.open(os.devnull, os.O_WRONLY), "r")
        unreadable.name = "<stdin>"
        sys.stdin = io.TextIOWrapper(io.BufferedReader(unreadable), encoding="utf-8")
    if sys.stdout is None:
        unwritable = io.FileIO(os.open(os.devnull, os.O_RDONLY), "w")
        # unbuffered, so that nothing is left that would fail again at the end
        sys.stdout = io.TextIOWrapper(unwritable, encoding="utf-8", write_through=True)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process


def wait_briefly() -> None:
    """Let torch's threads sleep soon: beside a core that another process holds, spinning ones stop nearly all work.

    libgomp reads it when torch is loaded. What the user's environment says stands.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def stay_within_quota() -> None:
    """Let torch take as many threads as its container may keep busy; by itself it counts the cores of the machine.

    Under a quota of half a core, the threads of 64 cores use up a period of it in a moment, and then stand still.
    OpenMP reads the variable when torch is loaded. What the user's environment says stands.
    """
    if core_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Context manager for heavy imports: the garbage collector is off meanwhile, and never looks at what they leave.

    The modules of torch live as long as the process. Looking through them for garbage takes as long as a tenth of
    importing them, several times while they are imported and whenever all is looked through later. Garbage from before
    is collected first, so none is kept. Where torch was imported already, or nothing is ever collected, all stays as
    it is. In a library, what its user's program holds would be kept with the modules.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # at the end everything is to be taken down in order

"""What has to be said before torch is imported: how its threads wait; no collecting of garbage meanwhile.

For the command alone: in a library, both would be decided over its user's head.
"""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SPINS = "5000"
"""How often a thread of torch looks for the others before it sleeps; measured by benchmarks/waiting.py."""


def wait_briefly() -> None:
    """Let torch's threads sleep soon: beside a core that another process holds, spinning ones stop nearly all work.

    libgomp reads it when torch is loaded. What the user's environment says stands.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


@contextmanager
def undisturbed() -> Iterator[None]:
    """For heavy imports: nothing is collected meanwhile, and what they leave is never looked at again.

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

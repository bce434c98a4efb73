"""Importing torch without the garbage collector, which looks through all of it again and again meanwhile."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """For heavy imports: nothing is collected meanwhile, and what they leave is never looked at again.

    The modules of torch live as long as the process. Looking through them for garbage takes as long as a tenth of
    importing them, several times while they are imported and whenever all is looked through later. Garbage from before
    is collected first, so none is kept. Where torch was imported already, or nothing is ever collected, all stays as
    it is. Not for a library: what its user's program holds would be kept with the modules.
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

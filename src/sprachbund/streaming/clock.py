"""When things happen in a live session: by the wall, or simulated so that a talk need not be sat through.

A simulated clock moves by the audio that has been spoken; whether computing takes time on it is the difference between
ideal and computation-aware latency.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Clock(Protocol):
    """Seconds since the talk began."""

    def now_s(self) -> float:
        """The time."""
        ...

    def wait_until(self, second: float) -> None:
        """Let the time pass, if it has not."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """Around computation."""
        ...


class WallClock:
    """Real time."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def now_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._began

    def wait_until(self, second: float) -> None:
        """Sleep."""
        time.sleep(max(0.0, second - self.now_s()))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time passes by itself."""
        yield


class SimulatedClock:
    """Time that passes only where it has to.

    Attributes:
        computing: whether the seconds that computation takes are counted; without them a run is deterministic.
    """

    def __init__(self, *, computing: bool = False) -> None:
        self.computing = computing
        self._now_s = 0.0

    def now_s(self) -> float:
        """The time."""
        return self._now_s

    def wait_until(self, second: float) -> None:
        """Jump there."""
        self._now_s = max(self._now_s, second)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count what it takes, if that is to be counted."""
        began = time.perf_counter()
        yield
        if self.computing:
            self._now_s += time.perf_counter() - began

"""How many may come at once: rates by client, places to work at, a queue with an end. Who is refused is told when to
come again."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from prometheus_client import Gauge

from sprachbund.serving.refusals import RefusalError
from sprachbund.serving.settings import Limits

_MOST_CLIENTS = 10_000


class Rates:
    """A bucket of tokens for each client: a minute's worth at most, filled evenly."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._most, self._clock = per_minute / 60, max(1.0, per_minute), clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """One request of `client`. Raises RefusalError: 429, with the time after which one is left."""
        now = self._clock()
        left, seen = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - seen) * self._per_s)
        self._left[client] = (max(left - 1, 0.0) if left >= 1 else left, now)
        while len(self._left) > _MOST_CLIENTS:  # a client not seen for longest; it begins anew
            self._left.popitem(last=False)
        if left < 1:
            raise RefusalError(
                429,
                f"more than {self._most:.0f} requests in a minute; slow down",
                code="rate_limit_exceeded",
                retry_after_s=(1 - left) / self._per_s,
            )


class Places:
    """Where requests work: so many at a time, so many waiting, and the next refused."""

    def __init__(self, limits: Limits, gauge: Gauge) -> None:
        self._limits, self._gauge = limits, gauge
        self._free = asyncio.Semaphore(limits.max_working)
        self._taken = 0
        self._mean_s = 1.0

    @property
    def taken(self) -> int:
        """Requests at work or waiting."""
        return self._taken

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Be one of those at work or waiting. Raises RefusalError: 429, when there are too many already."""
        if self._taken >= self._limits.max_working + self._limits.max_waiting:
            raise RefusalError(
                429,
                f"{self._taken} requests are at work or waiting, which is all there is room for; come again later",
                code="queue_full",
                retry_after_s=self._mean_s * self._taken / self._limits.max_working,
            )
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Wait for a place to work at, and hold it."""
        async with self._free:
            began = time.monotonic()
            try:
                yield
            finally:
                self._mean_s += 0.1 * (time.monotonic() - began - self._mean_s)

    def _count(self, change: int) -> None:
        self._taken += change
        self._gauge.set(self._taken)

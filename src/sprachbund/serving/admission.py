"""Limits by client: request rates, bodies being received, requests at work. No client may hold more than its share; a
refusal has the time after which to retry.

A client is the owner of a key, or a network address where there are no keys.
"""

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from prometheus_client import Gauge

from sprachbund.serving.schemas import RefusalError
from sprachbund.serving.settings import Limits

_MOST_CLIENTS = 10_000
_SLOW_S = 10.0


def network_of(address: str) -> str:
    """The key of a client: an IPv4 address, or the /64 network of an IPv6 address, which one host may have."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a name that a proxy made up, or no network at all
        return address[:100]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    mapped = parsed.ipv4_mapped
    return str(mapped or ipaddress.ip_network((parsed, 64), strict=False))


class Rates:
    """Token bucket for each client: holds `per_minute` tokens at most, and fills evenly."""

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


class Intake:
    """Request bodies on their way: their number, and the bytes that are kept for requests that still need them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._coming: Counter[str] = Counter()
        self._stored: Counter[str] = Counter()

    @property
    def coming(self) -> int:
        """Bodies that are being received."""
        return self._coming.total()

    @property
    def stored_bytes(self) -> int:
        """The bytes of all bodies that came, as far as their requests are not over."""
        return self._stored.total()

    @contextmanager
    def receiving(self, client: str) -> Iterator[None]:
        """Receive a body. Raises RefusalError: 429, when too many are on their way already."""
        limits = self._limits
        if self.coming >= limits.max_receiving:
            raise _no_room(f"{self.coming} bodies are being received", _SLOW_S)
        _check_share(self._coming[client], 1, limits.share(limits.max_receiving), "bodies on their way")
        self._coming[client] += 1
        try:
            yield
        finally:
            _count_down(self._coming, client, 1)

    def store(self, client: str, num_bytes: int) -> None:
        """Keep so many bytes more. Raises RefusalError: 429, when there are too many; none are kept then."""
        limits, kept = self._limits, self._stored
        _check_share(
            kept[client], num_bytes, limits.share(limits.max_stored_bytes), "bytes of recordings here"
        )
        if self.stored_bytes + num_bytes > limits.max_stored_bytes:
            raise _no_room(f"{self.stored_bytes} bytes of recordings are kept", _SLOW_S)
        kept[client] += num_bytes

    def release(self, client: str, num_bytes: int) -> None:
        """So many bytes are not needed any more."""
        _count_down(self._stored, client, num_bytes)


class ConcurrencyLimiter:
    """Limits the requests at work (`max_working`) and waiting (`max_waiting`); the next is refused.

    A free slot goes to the client with the fewest at work; among equals, to the one whose turn is longest ago.
    """

    def __init__(self, limits: Limits, gauge: Gauge) -> None:
        self._limits, self._gauge = limits, gauge
        self._working: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of their turns
        self._mean_s = 1.0

    @property
    def taken(self) -> int:
        """Requests at work or waiting."""
        return self._working.total() + self._num_waiting

    def check(self, client: str) -> None:
        """Raises RefusalError: 429, when one more request of `client` would have to be refused now."""
        if self._has_slot(client):
            return
        limits, waiting = self._limits, len(self._waiting.get(client, ()))
        retry_after_s = self._mean_s * self.taken / limits.max_working
        if self._num_waiting >= limits.max_waiting:
            raise _no_room(f"{self.taken} requests are at work or waiting", retry_after_s)
        _check_share(waiting, 1, limits.share(limits.max_waiting), "requests that wait", retry_after_s)

    @asynccontextmanager
    async def working(self, client: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it. Raises RefusalError: 429, as of `check`."""
        self.check(client)
        if self._has_slot(client):
            self._working[client] += 1
            self._count()
        else:
            await self._wait_turn(client)
        began = time.monotonic()
        try:
            yield
        finally:
            self._mean_s += 0.1 * (time.monotonic() - began - self._mean_s)
            self._release_slot(client)

    @property
    def _num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _has_slot(self, client: str) -> bool:
        """Whether `client` may take a free slot. If so, nobody waits who might take it."""
        limits = self._limits
        free = self._working.total() < limits.max_working
        return free and self._working[client] < limits.share(limits.max_working)

    async def _wait_turn(self, client: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._count()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the slot was given a moment ago
                self._release_slot(client)
            elif turn in (turns := self._waiting.get(client, deque())):
                turns.remove(turn)
                if not turns:
                    del self._waiting[client]
                self._count()
            raise

    def _release_slot(self, client: str) -> None:
        """Release a slot, and give free slots to waiting clients."""
        _count_down(self._working, client, 1)
        while clients := [waiting for waiting in self._waiting if self._has_slot(waiting)]:
            following = min(clients, key=lambda waiting: self._working[waiting])  # the first of equals
            turns = self._waiting.pop(following)
            turn = turns.popleft()
            if turns:
                self._waiting[following] = turns  # at the end
            if not turn.cancelled():  # whoever waited may have gone, and not noticed yet
                self._working[following] += 1
                turn.set_result(None)
        self._count()

    def _count(self) -> None:
        self._gauge.set(self.taken)


def _check_share(held: int, more: int, share: int, what: str, retry_after_s: float = _SLOW_S) -> None:
    if held + more > share:
        raise RefusalError(
            429,
            f"you have {held} {what}, and {share} are one client's share; try again later",
            code="share_used_up",
            retry_after_s=retry_after_s,
        )


def _no_room(what: str, retry_after_s: float) -> RefusalError:
    return RefusalError(
        429,
        f"{what}, which is all there is room for; try again later",
        code="queue_full",
        retry_after_s=retry_after_s,
    )


def _count_down(counter: Counter[str], client: str, number: int) -> None:
    """Clients who hold nothing are forgotten."""
    counter[client] -= number
    if counter[client] <= 0:
        del counter[client]

"""The state that all routes share: settings, keys, limits, models, live sessions, counters."""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path

from starlette.requests import HTTPConnection

from sprachbund.api import Model
from sprachbund.audio.spans import VoiceActivity
from sprachbund.errors import SprachbundError
from sprachbund.serving.admission import ConcurrencyLimiter, Intake, Rates, network_of
from sprachbund.serving.live import SessionManager
from sprachbund.serving.metrics import Meters
from sprachbund.serving.models import ModelStore
from sprachbund.serving.schemas import RefusalError, stopping_refusal
from sprachbund.serving.settings import Settings
from sprachbund.streaming.engine import LiveEngine

# Keys from a file, compared in constant time.

_SHORTEST = 16


class Keys:
    """The keys of a service; without keys, every client is admitted."""

    def __init__(self, keys: tuple[str, ...] | None = None) -> None:
        self._digests = None if keys is None else [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path | None) -> "Keys":
        """Read keys from a file with one key a line; empty lines and those beginning with # do not count.

        Raises:
            SprachbundError: the file cannot be read, has no key, or one that is easily guessed.
        """
        if path is None:
            return cls()
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise SprachbundError(f"the key file {path} cannot be read ({error}); check the path") from error
        keys = tuple(line for line in lines if line and not line.startswith("#"))
        if not keys:
            raise SprachbundError(f"the key file {path} holds no key; write one a line")
        for number, key in enumerate(keys, 1):
            if len(key) < _SHORTEST or not key.isascii() or any(c.isspace() or c in ',"' for c in key):
                raise SprachbundError(
                    f"key {number} of {path} is too short or has spaces, commas or quotes in it; "
                    f"take at least {_SHORTEST} letters and digits"
                )
        return cls(keys)

    @property
    def wanted(self) -> bool:
        """Whether a key is needed."""
        return self._digests is not None

    def check(self, key: str | None) -> str | None:
        """A name for the key's owner, safe to write down; None where no key is needed.

        Raises:
            RefusalError: 401, no key or a wrong one.
        """
        if self._digests is None:
            return None
        if not key:
            raise RefusalError(
                401, "a key is needed; send it as 'Authorization: Bearer KEY'", code="no_api_key"
            )
        seen = _digest(key)
        # All are compared, whichever fits, and digests of equal length: the time says nothing about any key.
        if not sum([hmac.compare_digest(seen, known) for known in self._digests]):
            raise RefusalError(401, "the key is not known here; check it", code="invalid_api_key")
        return seen.hex()[:8]


def bearer(header: str | None) -> str | None:
    """The key in an `Authorization` header."""
    scheme, _, key = (header or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


# The service itself.

log = logging.getLogger("sprachbund.serving")
_SWEEP_S = 1.0
_POLL_S = 0.05
LAST_S = 1.0
"""Least seconds of a stop for sending last answers, and for threads to end, where `stop_s` is used up."""


class Service:
    """One service; made with the app, opened and closed by its lifespan.

    Args:
        settings: settings of the service.
        loader: gives a model by its name; by default `sprachbund.load` as the settings say.
        engine_for: makes the engine of a model's live sessions.

    Attributes:
        draining: whether the service is being stopped: requests under way are finished, others refused.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        loader: Callable[[str], Model] | None = None,
        engine_for: Callable[[Model], LiveEngine] | None = None,
    ) -> None:
        self.settings, self.meters = settings, Meters()
        self.keys = Keys.read(settings.key_file)
        self._keys_changed_ns = _changed_ns(settings.key_file)
        self.rates = Rates(settings.limits.requests_per_minute)
        self.intake = Intake(settings.limits)
        self.limiter = ConcurrencyLimiter(settings.limits, self.meters.in_progress)
        self.store = ModelStore(settings, self.meters, loader=loader, engine_for=engine_for)
        self.sessions = SessionManager(settings, self.store, self.meters)
        self.threads = ThreadPoolExecutor(settings.limits.max_working, thread_name_prefix="recording")
        self.requests = 0
        self.draining, self._stop_at_s = False, 0.0

    @property
    def ready(self) -> bool:
        """Whether the first model has been loaded, at the start or by a request, or is not to be."""
        return not self.settings.preload or self.store.default_was_loaded

    @cached_property
    def activity(self) -> VoiceActivity:
        """Shared by all recordings."""
        return VoiceActivity()

    def admit(self, connection: HTTPConnection, key: str | None = None) -> str:
        """Authenticate a client and count its request.

        Args:
            connection: connection of the request.
            key: one that did not come in a header.

        Returns:
            The owner of the key, or the network address where there are no keys.

        Raises:
            RefusalError: 401 for a key that is missing or wrong, 429 for too many requests, 503 while stopping.
        """
        self._check_stopping()
        address = network_of(connection.client.host) if connection.client else "unknown"
        try:
            owner = self.keys.check(bearer(connection.headers.get("authorization")) or key)
        except RefusalError:
            self.rates.take(f"unauthenticated {address}")  # so that trying keys is limited too
            raise
        client = owner or address
        self.rates.take(client)
        return client

    def admit_address(self, address: str) -> None:
        """Count a request of a client that no key is asked of. Raises RefusalError: 429 and 503, as of `admit`."""
        self._check_stopping()
        self.rates.take(address)

    def _check_stopping(self) -> None:
        if self.draining:
            raise stopping_refusal()

    def reload_keys(self) -> None:
        """Read the key file again if it has changed; where it cannot be read, the keys of before stay."""
        changed_ns = _changed_ns(self.settings.key_file)
        if changed_ns in (None, self._keys_changed_ns):
            return
        self._keys_changed_ns = changed_ns
        try:
            self.keys = Keys.read(self.settings.key_file)
        except SprachbundError as error:
            log.error(json.dumps({"event": "the keys of before stay", "error": str(error)}))
        else:
            log.info(json.dumps({"event": "keys read again"}))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The time between start and stop."""
        tasks = [asyncio.ensure_future(self._sweep())]
        if self.settings.preload:
            tasks.append(asyncio.ensure_future(self._preload()))
        try:
            yield
        finally:
            await self.drain()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.store.close(max(self.stop_left_s, LAST_S))
            self.threads.shutdown(wait=False)

    @property
    def stop_left_s(self) -> float:
        """Seconds of `stop_s` that are left, once the stop has begun."""
        return max(0.0, self._stop_at_s - time.monotonic())

    async def drain(self) -> None:
        """Refuse what is new and finish what was begun, as far as `stop_left_s` allows; may be called twice."""
        if not self.draining:
            self.draining, self._stop_at_s = True, time.monotonic() + self.settings.timeouts.stop_s
        await self.sessions.close(self.stop_left_s)
        try:
            async with asyncio.timeout(self.stop_left_s):
                while self.requests:
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            log.warning(json.dumps({"event": "stopped with requests at work", "requests": self.requests}))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.reload_keys()
            self.store.sweep()
            await self.sessions.sweep()

    async def _preload(self) -> None:
        try:
            # In a thread: the first recording would otherwise hold up all connections while it loads.
            await asyncio.to_thread(lambda: self.activity)
            async with self.store.lease(self.store.default):
                pass
        except RefusalError as error:
            log.error(
                json.dumps(
                    {
                        "event": "the first model cannot be loaded; the next request tries again",
                        "error": error.message,
                    }
                )
            )


def _changed_ns(path: Path | None) -> int | None:
    """Time of a file's last change; None without a file."""
    try:
        return None if path is None else path.stat().st_mtime_ns
    except OSError:
        return None


def service_of(connection: HTTPConnection) -> Service:
    """The service that a request or WebSocket came to."""
    service: Service = connection.app.state.service
    return service

"""What the routes of one service share: settings, keys, places, models, live sessions, measures."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

from starlette.requests import HTTPConnection

from sprachbund.api import Model
from sprachbund.audio.activity import VoiceActivity
from sprachbund.serving.admission import Intake, Places, Rates, network_of
from sprachbund.serving.keys import Keys, bearer
from sprachbund.serving.live import LiveRoom
from sprachbund.serving.meters import Meters
from sprachbund.serving.models import ModelStore
from sprachbund.serving.refusals import RefusalError
from sprachbund.serving.settings import Settings

log = logging.getLogger("sprachbund.serving")
_SWEEP_S = 1.0
_POLL_S = 0.05


class Service:
    """One service; made with the app, opened and closed by its lifespan.

    Args:
        settings: of the service.
        loader: gives a model by its name; by default `sprachbund.load` as the settings say.
        engine_for: gives what steps a model's live sessions.

    Attributes:
        ready: whether the first model is loaded, or is not to be.
        draining: whether the service is being stopped: what was begun is finished, the rest refused.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        loader: Callable[[str], Model] | None = None,
        engine_for: Callable[[Model], Any] | None = None,
    ) -> None:
        self.settings, self.meters = settings, Meters()
        self.keys = Keys.read(settings.key_file)
        self.rates = Rates(settings.limits.requests_per_minute)
        self.intake = Intake(settings.limits)
        self.places = Places(settings.limits, self.meters.in_progress)
        self.store = ModelStore(settings, self.meters, loader=loader, engine_for=engine_for)
        self.room = LiveRoom(settings, self.store, self.meters)
        self.threads = ThreadPoolExecutor(settings.limits.max_working, thread_name_prefix="recording")
        self.requests = 0
        self.ready, self.draining = not settings.preload, False

    @cached_property
    def activity(self) -> VoiceActivity:
        """Shared by all recordings."""
        return VoiceActivity()

    def admit(self, connection: HTTPConnection, key: str | None = None) -> str:
        """Who asks, if it may.

        Args:
            connection: of the request.
            key: one that came otherwise than in a header.

        Raises:
            RefusalError: 401 for a key that is missing or wrong, 429 for too many requests, 503 while stopping.
        """
        if self.draining:
            raise RefusalError(503, "the service is being stopped; come again later", retry_after_s=30)
        address = network_of(connection.client.host) if connection.client else "unknown"
        try:
            owner = self.keys.check(bearer(connection.headers.get("authorization")) or key)
        except RefusalError:
            self.rates.take(f"stranger {address}")  # guessing keys is not free either
            raise
        client = owner or address
        self.rates.take(client)
        return client

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
            await self.store.close(self.settings.timeouts.stop_s)
            self.threads.shutdown(wait=False)

    async def drain(self) -> None:
        """Refuse what is new and finish what was begun, as far as the time allows; may be called twice."""
        self.draining = True
        timeout_s = self.settings.timeouts.stop_s
        try:
            async with asyncio.timeout(timeout_s):
                await self.room.close(timeout_s)
                while self.requests:
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            log.warning(json.dumps({"event": "stopped with requests at work", "requests": self.requests}))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.store.sweep()
            await self.room.sweep()

    async def _preload(self) -> None:
        try:
            async with self.store.lease(self.store.default):
                # In a thread: the first recording would otherwise hold up all connections while it loads.
                await asyncio.to_thread(lambda: self.activity)
                self.ready = True
        except RefusalError as error:
            log.error(json.dumps({"event": "the first model cannot be loaded", "error": error.message}))


def service_of(connection: HTTPConnection) -> Service:
    """The service that a request or WebSocket came to."""
    service: Service = connection.app.state.service
    return service

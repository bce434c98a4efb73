"""The models of a service: loaded on demand, unloaded when idle."""

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sprachbund.api import Model, load
from sprachbund.decoding.options import DecodingOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.io import locate
from sprachbund.models.licence import Licence, licences
from sprachbund.serving.metrics import Meters
from sprachbund.serving.schemas import RefusalError
from sprachbund.serving.settings import Settings
from sprachbund.serving.worker import ModelWorker
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.writing import policies_of
from sprachbund.text.languages import language_name
from sprachbund.util.processor import core_groups

OWNER = "sprachbund"
log = logging.getLogger("sprachbund.serving")


class _Slot:
    """A model that may be asked for, and its workers while it is loaded."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers: tuple[ModelWorker, ...] = ()
        self.users: Counter[ModelWorker | None] = Counter()  # None while they wait for the workers
        self.loading = threading.Lock()  # one after the other: the trial of the first decides for all
        self.last_used_s = time.monotonic()
        self.was_loaded = False


class ModelStore:
    """All models of a service, by the id that requests name.

    Args:
        settings: settings of the service.
        meters: meters of the service.
        loader: gives a model by its name.
        engine_for: makes the engine of a model's live sessions.

    Attributes:
        default: the first model.
        aliases: further names of the models.

    Raises:
        SprachbundError: two models or aliases of one name, or an alias of a model that is not served.
    """

    def __init__(
        self,
        settings: Settings,
        meters: Meters,
        *,
        loader: Callable[[str], Model] | None = None,
        engine_for: Callable[[Model], LiveEngine] | None = None,
    ) -> None:
        self._settings, self._meters = settings, meters
        self._load = loader or self._load_named
        self._engine_for = engine_for or partial(live_engine, batch_size=settings.batch_size)
        self._slots = {identifier(name): _Slot(name) for name in settings.models}
        if len(self._slots) < len(settings.models):
            raise SprachbundError(
                f"two of the models {', '.join(settings.models)} have the same name; rename a directory"
            )
        self._cores: Sequence[Sequence[int] | None] = [None]
        if settings.workers > 1:
            self._cores = groups = core_groups(settings.workers)
            if (fewest := min(map(len, groups))) < (settings.threads or 1):
                raise SprachbundError(
                    f"{settings.workers} workers have {fewest} cores each, and {settings.threads} threads were "
                    "asked for; lower one of the two"
                )
        self.default = next(iter(self._slots))
        self.aliases: dict[str, str] = {}
        for name, _, model in (alias.partition("=") for alias in settings.aliases):
            if name in self._slots or name in self.aliases:
                raise SprachbundError(f"the alias {name} is the name of a model already; choose another")
            self.aliases[name] = self._checked_id(model)

    @property
    def ids(self) -> list[str]:
        """Names of the models; requests may use these and `aliases`."""
        return list(self._slots)

    def id_of(self, model: str) -> str:
        """Name of the model that a request means by its name or an alias."""
        return self.aliases.get(model, model)

    def _checked_id(self, model: str) -> str:
        """The name of a model of the settings, in which directories are named by their path."""
        name = model if model in self._slots else identifier(model)
        if name not in self._slots:
            raise SprachbundError(
                f"an alias is for {model}, which is not served; serve it with --model {model}"
            )
        return name

    @property
    def loaded(self) -> list[str]:
        """Return the names of the models in memory."""
        return [name for name, slot in self._slots.items() if slot.workers]

    @property
    def default_was_loaded(self) -> bool:
        """Whether the first model is in memory, or was before it was idle for long."""
        return self._slots[self.default].was_loaded

    def loaded_worker(self, model: str) -> ModelWorker | None:
        """A worker of a model that is in memory."""
        ready = (w for w in self._slot(model).workers if w.ready.done() and not w.closed)
        return next(ready, None)

    def card(self, model: str) -> Card:
        """The card of a model; only its name where it has no card. Raises RefusalError: 404."""
        slot, model = self._slot(model), self.id_of(model)
        if worker := self.loaded_worker(model):
            return worker.model.card
        try:
            return Card.read(locate(slot.name, offline=True)) or Card(name=model)
        except SprachbundError:  # not downloaded yet
            return Card(name=model)

    def licences(self, model: str) -> tuple[Licence, ...]:
        """Licences of a model's weights, of both halves of a cascade. Raises RefusalError: 404."""
        return licences(self._slot(model).name)

    @asynccontextmanager
    async def lease(self, model: str) -> AsyncIterator[ModelWorker]:
        """A worker of a model, loaded first if need be, which stays as long as it is held: the one with fewest users.

        Raises:
            RefusalError: 404 for a model not known here; 429 when all that may be in memory are in use; 503 when
                it cannot be loaded.
        """
        slot, model = self._slot(model), self.id_of(model)
        held: ModelWorker | None = None
        slot.users[held] += 1
        try:
            workers = await self._ready(model, slot)
            slot.users[held] -= 1
            held = min(workers, key=slot.users.__getitem__)
            slot.users[held] += 1
            yield held
        finally:
            slot.users[held] -= 1
            slot.users += Counter()  # forgets workers without users
            slot.last_used_s = time.monotonic()

    def sweep(self, *, now_s: float | None = None) -> None:
        """Unload models that were idle for `unload_s`."""
        now_s = time.monotonic() if now_s is None else now_s
        unload_s = self._settings.timeouts.unload_s
        for slot in self._slots.values():
            if slot.workers and not slot.users.total() and now_s - slot.last_used_s >= unload_s:
                self._unload(slot)

    def stop(self) -> list[ModelWorker]:
        """Let all workers end after what they are at; what waits for them fails. Gives those that were there."""
        workers = [worker for slot in self._slots.values() for worker in slot.workers]
        for slot in self._slots.values():
            self._unload(slot)
        return workers

    async def close(self, timeout_s: float) -> None:
        """End all workers, and wait for their threads for `timeout_s` at most."""
        end_s = time.monotonic() + timeout_s
        for worker in self.stop():
            await asyncio.to_thread(worker.join, max(0.0, end_s - time.monotonic()))

    def check(self, model: str) -> None:
        """Raises RefusalError: 404 for a model not known here."""
        self._slot(model)

    def _slot(self, model: str) -> _Slot:
        if (name := self.id_of(model)) not in self._slots:
            known = ", ".join([*self._slots, *self.aliases])
            raise RefusalError(
                404,
                f"there is no model {model[:200]!r} here; choose from {known}",
                code="model_not_found",
                param="model",
            )
        return self._slots[name]

    async def _ready(self, model: str, slot: _Slot) -> tuple[ModelWorker, ...]:
        if not slot.workers:
            self._make_room()
        workers = slot.workers = self._open_workers(model, slot)
        self._meters.models_loaded.set(len(self.loaded))
        try:
            for worker in workers:
                await asyncio.shield(asyncio.wrap_future(worker.ready))
        except Exception as error:
            # One that somebody uses goes on; at the next request, those that an error has closed are made again.
            used = any(worker is not None for worker in +slot.users)
            if slot.workers == workers and not used:
                self._unload(slot)
            if not isinstance(error, SprachbundError):
                log.exception("the model %s cannot be loaded", model)
            why = error if isinstance(error, SprachbundError) else "the log of the service says why"
            raise RefusalError(
                503, f"the model {model} cannot be loaded: {why}", code="model_broken"
            ) from error
        slot.was_loaded = True
        return workers

    def _open_workers(self, model: str, slot: _Slot) -> tuple[ModelWorker, ...]:
        """The workers of a model, with new ones where there are none yet or an error has closed them."""

        def load() -> Model:
            with slot.loading:
                return self._load(slot.name)

        return tuple(
            worker
            if worker is not None and not worker.closed
            else ModelWorker(
                model,
                load,
                self._engine_for,
                batch_size=self._settings.batch_size,
                meters=self._meters,
                cores=cores,
            )
            for worker, cores in zip(slot.workers or [None] * len(self._cores), self._cores, strict=True)
        )

    def _make_room(self) -> None:
        loaded = [slot for slot in self._slots.values() if slot.workers]
        if len(loaded) < self._settings.limits.max_loaded:
            return
        idle = [slot for slot in loaded if not slot.users.total()]
        if not idle:
            raise RefusalError(
                429,
                f"{len(loaded)} models are in use, which is all there is room for; try again later",
                code="models_busy",
                retry_after_s=5,
            )
        self._unload(min(idle, key=lambda slot: slot.last_used_s))

    def _unload(self, slot: _Slot) -> None:
        for worker in slot.workers:
            worker.close()
        slot.workers = ()
        self._meters.models_loaded.set(len(self.loaded))

    def _load_named(self, name: str) -> Model:
        settings = self._settings
        model = load(
            name,
            offline=settings.offline,
            engine=settings.engine,
            threads=settings.threads,
            device=settings.device,
            real_length=settings.real_length,
        )
        if (engine := model.engine) is not None:
            event = {"event": "model loaded", "model": name, "engine": engine.as_dict()}
            log.info(json.dumps({**event, "notes": engine.notes, "warnings": engine.warnings}))
        return model


def identifier(name: str) -> str:
    """Name of a model in requests: of a directory its last part, which says nothing about this machine's folders."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def live_engine(model: Model, batch_size: int) -> LiveEngine:
    """The engine of a model's live sessions."""
    return LiveEngine(model.family, DecodingOptions(batch_size=batch_size))


def described_model(store: ModelStore, model: str) -> dict[str, Any]:
    """A model in the form of OpenAI's list, with what a user should know before choosing it."""
    card, worker = store.card(model), store.loaded_worker(model)
    return {
        "id": model,
        "object": "model",
        "created": 0,
        "owned_by": OWNER,
        "description": card.description,
        "licence": " and ".join(one.name for one in store.licences(model) if one.name),
        "source_languages": card.source_languages,
        "target_languages": card.target_languages,
        "limits": card.limits,
        "alias_of": store.aliases.get(model),
        "loaded": store.id_of(model) in store.loaded,
        "engine": None if worker is None or worker.model.engine is None else worker.model.engine.as_dict(),
    }


def languages_of(model: Model) -> dict[str, Any]:
    """Languages a model hears and writes, with their names, its pairs, and how it writes live text."""
    return {
        "sources": [_named(tag) for tag in sorted({source for source, _ in model.pairs})],
        "targets": [_named(tag) for tag in sorted({target for _, target in model.pairs})],
        "pairs": [list(pair) for pair in model.pairs],
        "policies": list(policies_of(model.family)),
    }


def _named(tag: str) -> dict[str, str]:
    return {"tag": tag, "name": language_name(tag)}

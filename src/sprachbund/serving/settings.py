"""Settings of the service, checked before it listens."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from sprachbund.engines.options import EngineChoice
from sprachbund.errors import SprachbundError
from sprachbund.models.catalogue import BUNDLED
from sprachbund.util.devices import CPU, check_device_name
from sprachbund.util.options import Option, OptionValueError, Range, check

LOOPBACK = "127.0.0.1"
_MEGABYTE = 1e6
_POSITIVE = Range(0, above=True)
ANY_ORIGIN = "*"
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):)?(?P<port>\d{1,5})")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@?#]+")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a request; more is refused with the value seen and the limit.

    Attributes:
        max_upload_bytes: size of one request, which holds a recording.
        max_duration_s: seconds of audio of one recording; also stops a small file that decodes to hours.
        max_connections: connections open at the same time; as many fewer as the system's limit of open files wants.
        max_connections_per_address: connections of one network address; behind a proxy, all have the proxy's.
        max_receiving: requests whose bodies are being received at the same time.
        max_stored_bytes: size of all recordings that were received and are worked on or wait.
        max_working: recordings that are worked on at the same time.
        max_waiting: requests that wait until one of those is done; the next is refused.
        max_live: live sessions open at the same time.
        max_share: the share of the limits of receiving, stored bytes, working, waiting and live sessions that one
            client may hold (a key, or an address where there are no keys), rounded up; 1 lets one client take all.
        max_live_waiting_s: seconds of audio of a live session that may wait; beyond it the client is asked to pause,
            and beyond four times as much the server stops reading.
        max_message_bytes: size of one WebSocket message.
        max_targets: languages of one live session.
        max_texts: texts of one request for text translation.
        max_text_chars: characters of one of those texts.
        max_loaded: models in memory at the same time.
        requests_per_minute: requests of one key, or of one address where there are no keys; as many may come at once.
    """

    max_upload_bytes: Annotated[int, _POSITIVE, Option("--max-upload-mb", metavar="MB", unit=_MEGABYTE)] = (
        100_000_000
    )
    max_duration_s: Annotated[float, _POSITIVE, Option("--max-duration-s", metavar="S")] = 4 * 3600.0
    max_connections: Annotated[int, _POSITIVE, Option("--max-connections", metavar="N")] = 1000
    max_connections_per_address: Annotated[int, _POSITIVE, Option("--max-per-address", metavar="N")] = 128
    max_receiving: Annotated[int, _POSITIVE, Option("--max-receiving", metavar="N")] = 128
    max_stored_bytes: Annotated[int, _POSITIVE, Option("--max-stored-mb", metavar="MB", unit=_MEGABYTE)] = (
        8_000_000_000
    )
    max_working: Annotated[int, _POSITIVE, Option("--max-working", metavar="N")] = 8
    max_waiting: Annotated[int, Range(0), Option("--max-waiting", metavar="N")] = 64
    max_live: Annotated[int, _POSITIVE, Option("--max-live", metavar="N")] = 16
    max_share: Annotated[float, Range(0, 1, above=True), Option("--max-share", metavar="PART")] = 0.75
    max_live_waiting_s: Annotated[float, _POSITIVE] = 30.0
    max_message_bytes: Annotated[int, _POSITIVE] = 1 << 20
    max_targets: Annotated[int, _POSITIVE] = 16
    max_texts: Annotated[int, _POSITIVE] = 256
    max_text_chars: Annotated[int, _POSITIVE] = 2000
    max_loaded: Annotated[int, _POSITIVE, Option("--max-loaded", metavar="N")] = 2
    requests_per_minute: Annotated[float, _POSITIVE, Option("--max-per-minute", metavar="N")] = 600.0

    def __post_init__(self) -> None:
        check(self)

    def share(self, limit: int) -> int:
        """The part of a limit that one client may use."""
        return math.ceil(self.max_share * limit)


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Times that the service waits, in seconds.

    Attributes:
        header_s: time for the head of each request, and for the first message of a live session.
        idle_s: seconds after an answer for which a connection is kept for the next request. Proxies keep connections
            to a service for about 60 seconds, and report 502 for a request sent into one that the service just closed.
        upload_grace_s: seconds for which an upload may be as slow as it likes.
        upload_bytes_per_s: rate that an upload has to have kept up after these seconds.
        answer_s: seconds in which a client has to take something of an answer that waits to be sent.
        live_silent_s: seconds in which a live session has to send a second of audio.
        resume_s: seconds for which a live session is kept after its connection broke.
        unload_s: seconds without use after which a model is unloaded.
        stop_s: time to finish the work that was begun when the service is stopped.
    """

    header_s: Annotated[float, _POSITIVE, Option("--header-s", metavar="S")] = 10.0
    idle_s: Annotated[float, _POSITIVE] = 75.0
    upload_grace_s: Annotated[float, _POSITIVE] = 20.0
    upload_bytes_per_s: Annotated[float, _POSITIVE] = 16_000.0
    answer_s: Annotated[float, _POSITIVE] = 30.0
    live_silent_s: Annotated[float, _POSITIVE] = 300.0
    resume_s: Annotated[float, _POSITIVE] = 60.0
    unload_s: Annotated[float, _POSITIVE, Option("--unload-s", metavar="S")] = 600.0
    stop_s: Annotated[float, _POSITIVE, Option("--stop-s", metavar="S")] = 60.0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the service.

    Attributes:
        host: address to listen at; by default only this machine reaches it, 0.0.0.0 is every network.
        port: port to listen at; 0 takes one that is free.
        models: models that may be asked for: bundled, directories, Hugging Face ids. The first is loaded at the start,
            and is taken where a live session names none.
        aliases: further names of these models for requests, such as whisper-1=bundled.
        cors: origins of pages on other sites that may use the service, such as https://example.org; * is every page,
            and needs keys.
        key_file: file of the keys that clients need, one a line; without it, every client is let in.
        wyoming: address of a second port for the Wyoming protocol of Home Assistant, HOST:PORT, or the port alone for
            this machine; the protocol has no keys.
        engine: computes the model: auto, native, torch and the others of `translate`.
        threads: threads to compute with; of each worker, where there are several.
        workers: copies of each model that compute beside each other, each on cores of its own (Linux). Requests go to
            the one with the fewest: more of them at a time, but each takes longer.
        device: computes the models: cpu, cuda, cuda:1 for the second GPU, or mps.
        real_length: whether Whisper encodes speech at its own length, not as 30 s; all models have to be able to.
        offline: never use the network.
        preload: load the first model at the start.
        batch_size: speech spans that go through a model together.
        limits: limits of what a client may ask for.
        timeouts: times that the service waits.
    """

    host: Annotated[str, Option("--host", metavar="ADDRESS")] = LOOPBACK
    port: Annotated[int, Option("--port", metavar="N")] = 8000
    models: Annotated[tuple[str, ...], Option("--model", metavar="MODEL,…")] = (BUNDLED,)
    aliases: Annotated[tuple[str, ...], Option("--alias", metavar="NAME=MODEL,…")] = ()
    cors: Annotated[tuple[str, ...], Option("--cors", metavar="ORIGIN,…")] = ()
    key_file: Annotated[Path | None, Option("--key-file", metavar="FILE")] = None
    wyoming: Annotated[str | None, Option("--wyoming", metavar="HOST:PORT")] = None
    engine: Annotated[EngineChoice, Option("--engine", metavar="NAME")] = "auto"
    threads: Annotated[int | None, Range(1), Option("--threads", metavar="N")] = None
    workers: Annotated[int, Range(1), Option("--workers", metavar="N")] = 1
    device: Annotated[str, Option("--device", metavar="NAME")] = CPU
    real_length: Annotated[bool, Option("--real-length")] = False
    offline: Annotated[bool, Option("--offline")] = False
    preload: bool = True
    batch_size: Annotated[int, Range(1)] = 8
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        check(self)
        check_device_name(self.device)
        if not self.models:
            raise SprachbundError("no model to serve; name at least one")
        if not 0 <= self.port < 1 << 16:
            raise OptionValueError("port", self.port, "give 1 to 65535, or 0 for a free one")
        if self.wyoming is not None and not (
            (match := _ADDRESS.fullmatch(self.wyoming)) and int(match["port"]) < 1 << 16
        ):
            raise OptionValueError("wyoming", self.wyoming, "give HOST:PORT, such as 127.0.0.1:10300")
        for origin in self.cors:
            if origin == ANY_ORIGIN:
                if self.key_file is None:
                    raise OptionValueError(
                        "cors", origin, "name the origins, or give keys, which pages then need"
                    )
            elif not _ORIGIN.fullmatch(origin):
                raise OptionValueError(
                    "cors", origin, "give scheme and host, such as https://example.org:8080"
                )
        for alias in self.aliases:
            name, equals, model = alias.partition("=")
            if not (name and equals and model):
                raise OptionValueError("aliases", alias, "give NAME=MODEL, such as whisper-1=bundled")

    @property
    def wyoming_address(self) -> tuple[str, int] | None:
        """Host and port of the Wyoming protocol."""
        match = None if self.wyoming is None else _ADDRESS.fullmatch(self.wyoming)
        return None if match is None else ((match["host"] or LOOPBACK).strip("[]"), int(match["port"]))

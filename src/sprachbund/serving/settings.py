"""What a service may be told, in one value that is checked before anything listens."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.models.io import BUNDLED

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a client may ask for; what lies beyond is refused with the value seen and the limit.

    Attributes:
        max_upload_bytes: of one request.
        max_duration_s: audio of one recording; also stops a small file that decodes to hours.
        max_connections: open at the same time; as many fewer as the system's limit of open files wants.
        max_connections_per_address: of one network address; behind a proxy, all connections have the proxy's.
        max_receiving: requests whose bodies are being received at the same time.
        max_stored_bytes: of all recordings that were received and are worked on or wait.
        max_working: recordings that are worked on at the same time.
        max_waiting: requests that wait for one of those places; the next is refused.
        max_live: live sessions open at the same time.
        max_share: the part of max_receiving, max_stored_bytes, max_working, max_waiting and max_live that one client
            may hold (a key, or an address where there are no keys), rounded up; 1 lets one client take all.
        max_live_waiting_s: audio of a live session that may wait; beyond it the server stops reading.
        max_message_bytes: of one WebSocket message.
        max_targets: languages of one live session.
        max_texts: texts of one request for text translation.
        max_text_chars: characters of one of those texts.
        max_loaded: models in memory at the same time.
        requests_per_minute: of one key, or of one address where there are no keys; so many may also come at once.
    """

    max_upload_bytes: int = 100_000_000
    max_duration_s: float = 4 * 3600.0
    max_connections: int = 1000
    max_connections_per_address: int = 128
    max_receiving: int = 128
    max_stored_bytes: int = 8_000_000_000
    max_working: int = 8
    max_waiting: int = 64
    max_live: int = 16
    max_share: float = 0.75
    max_live_waiting_s: float = 30.0
    max_message_bytes: int = 1 << 20
    max_targets: int = 16
    max_texts: int = 256
    max_text_chars: int = 2000
    max_loaded: int = 2
    requests_per_minute: float = 600.0

    def __post_init__(self) -> None:
        _all_positive(self, besides=("max_waiting",))
        if self.max_waiting < 0:
            raise SprachbundError(f"max_waiting is {self.max_waiting}; give 0 or more")
        if self.max_share > 1:
            raise SprachbundError(f"max_share is {self.max_share}; give a part, above 0 and up to 1")

    def share(self, places: int) -> int:
        """How many of so many places one client may hold."""
        return math.ceil(self.max_share * places)


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long the service waits for what, in seconds.

    Attributes:
        header_s: for the head of each request, and for the first message of a live session.
        upload_grace_s: an upload may be as slow as it likes for so long ...
        upload_bytes_per_s: ... and has to have kept up this rate after that.
        answer_s: in so long, a client has to take something of an answer that waits to be sent.
        live_silent_s: in so long, a live session has to send a second of audio.
        resume_s: a live session whose connection broke is kept for so long.
        unload_s: a model that nobody uses is unloaded after so long.
        stop_s: what was begun may take so long when the service is stopped.
    """

    header_s: float = 10.0
    upload_grace_s: float = 20.0
    upload_bytes_per_s: float = 16_000.0
    answer_s: float = 30.0
    live_silent_s: float = 300.0
    resume_s: float = 60.0
    unload_s: float = 600.0
    stop_s: float = 60.0

    def __post_init__(self) -> None:
        _all_positive(self)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A service.

    Attributes:
        host: address to listen at; by default only this machine reaches it.
        port: 0 takes one that is free.
        models: those that may be asked for: "bundled", directories, Hugging Face ids. The first is loaded at the start
            and is meant where a live session names none.
        key_file: a file with one key a line; None lets everybody in.
        engine: what computes, see `sprachbund.load`.
        threads: see `sprachbund.load`.
        offline: never use the network.
        preload: load the first model at the start.
        batch_size: speech spans that go through a model together.
        limits: how much a client may ask for.
        timeouts: how long the service waits.
    """

    host: str = LOOPBACK
    port: int = 8000
    models: tuple[str, ...] = (BUNDLED,)
    key_file: Path | None = None
    engine: str = "auto"
    threads: int | None = None
    offline: bool = False
    preload: bool = True
    batch_size: int = 8
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        if not self.models:
            raise SprachbundError("no model to serve; name at least one")
        if not 0 <= self.port < 1 << 16:
            raise SprachbundError(f"port is {self.port}; give 1 to 65535, or 0 for a free one")
        if self.batch_size < 1:
            raise SprachbundError(f"batch_size is {self.batch_size}; give 1 or more")


def _all_positive(values: object, besides: tuple[str, ...] = ()) -> None:
    for one in fields(values):  # type: ignore[arg-type]
        value = getattr(values, one.name)
        if one.name not in besides and not 0 < value < math.inf:
            raise SprachbundError(f"{one.name} is {value}; give a number above 0")

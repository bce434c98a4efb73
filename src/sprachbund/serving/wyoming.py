"""Live text over the Wyoming protocol, by which Home Assistant talks to speech services.

An event is a line of JSON, with the lengths of further JSON and of bytes that follow it. A client asks `describe`, or
sends `transcribe`, `audio-start`, `audio-chunk` and `audio-stop`, and gets a `transcript`. The `wyoming` package writes
the events of the service. Events of clients are read here: its reader takes lines and payloads of any length.

The protocol has no keys, so that whoever reaches the address is let in. A client is its network address.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from wyoming.asr import Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.error import Error
from wyoming.event import Event, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Info
from wyoming.ping import Pong

from sprachbund import __version__
from sprachbund.decoding.options import TRANSCRIBE
from sprachbund.serving.admission import network_of
from sprachbund.serving.live import SILENCE_S, ResumableSession, Start
from sprachbund.serving.schemas import (
    ANY_JSON,
    RefusalError,
    field_fault,
    refusal_of,
    stopping_refusal,
)
from sprachbund.serving.service import Service

log = logging.getLogger("sprachbund.serving")
PATH = "wyoming"
_MAX_LINE = 1 << 16
_MAX_DATA = 1 << 16
_LINGER_S = 2.0
_TYPES = ("describe", "transcribe", "audio-start", "audio-chunk", "audio-stop", "ping")

# Events of a client.


class _Head(BaseModel):
    """The line of an event; the version and other fields of the client do not matter."""

    type: Annotated[str, Field(min_length=1, max_length=100)]
    data: dict[str, Any] | None = None
    data_length: Annotated[int, Field(ge=0, strict=True)] | None = None
    payload_length: Annotated[int, Field(ge=0, strict=True)] | None = None


class _Transcribe(BaseModel):
    """A request for a transcript; other fields of the protocol are hints, which the model does not take."""

    name: Annotated[str | None, Field(max_length=300)] = None
    language: Annotated[str | None, Field(max_length=100)] = None


class _Format(BaseModel):
    """Of the sound: 16-bit, mono."""

    rate: Annotated[int, Field(ge=8_000, le=192_000, strict=True)]
    width: Annotated[int, Field(ge=2, le=2, strict=True)]
    channels: Annotated[int, Field(ge=1, le=1, strict=True)]


@dataclass(frozen=True, kw_only=True)
class ClientEvent:
    """An event of a client, whole and within the limits."""

    type: str
    data: dict[str, Any]
    payload: bytes


async def read_event(
    reader: asyncio.StreamReader, *, max_payload: int, patience_s: float
) -> ClientEvent | None:
    """The next event; None at the end of the connection.

    Args:
        reader: reader made with a limit of `_MAX_LINE`.
        max_payload: bytes of sound in one event.
        patience_s: for the rest of an event behind its line.

    Raises:
        RefusalError: 400 for what is no event, 408 for one that comes too slowly, 413 for one that is too large.
    """
    try:
        line = await reader.readline()
    except ValueError as error:  # longer than the limit of the reader
        raise RefusalError(
            413, f"the line of an event has {_MAX_LINE} bytes at most", code="too_big"
        ) from error
    if not line:
        return None
    if not line.endswith(b"\n"):
        raise _half_event()
    try:
        head = _Head.model_validate_json(line)
    except ValidationError as error:
        fault = field_fault(error.errors())
        reason = fault.reason if fault.field else "a line that is no JSON object"
        raise RefusalError(
            400, f"no event of the Wyoming protocol: {reason}"[:300], code="bad_event"
        ) from error
    for what, size, most in (
        ("data", head.data_length, _MAX_DATA),
        ("payload", head.payload_length, max_payload),
    ):
        if (size or 0) > most:
            raise RefusalError(
                413, f"{what} of {size} bytes in an event; {most} are the most", code="too_big"
            )
    try:
        async with asyncio.timeout(patience_s):
            more = await reader.readexactly(head.data_length or 0)
            payload = await reader.readexactly(head.payload_length or 0)
    except TimeoutError:
        raise RefusalError(
            408, f"half an event, and no more of it in {patience_s:g} s", code="too_slow"
        ) from None
    except asyncio.IncompleteReadError as error:
        raise _half_event() from error
    data = dict(head.data or {})
    if more:
        try:
            parsed = ANY_JSON.validate_json(more)
        except ValueError as error:
            raise RefusalError(400, "the data of an event are no JSON", code="bad_event") from error
        if not isinstance(parsed, dict):
            raise RefusalError(400, "the data of an event are no JSON object", code="bad_event")
        data |= parsed
    return ClientEvent(type=head.type, data=data, payload=payload)


def _half_event() -> RefusalError:
    return RefusalError(400, "the connection ended within an event", code="bad_event")


_Data = TypeVar("_Data", bound=BaseModel)


def _parsed(kind: type[_Data], event: ClientEvent) -> _Data:
    try:
        return kind.model_validate(event.data)
    except ValidationError as error:
        reason = field_fault(error.errors()).reason
        raise RefusalError(400, f"{event.type}: {reason}"[:500], code="bad_event") from error


# The server.


class WyomingServer:
    """Answers all connections of the Wyoming protocol.

    Args:
        service: service whose models, limits and live sessions it uses.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._of_address: Counter[str] = Counter()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self, sock: Any) -> None:
        """Accept connections at a bound socket."""
        self._server = await asyncio.start_server(self._connected, sock=sock, limit=_MAX_LINE)

    async def close(self, timeout_s: float) -> None:
        """Accept no more, and end the connections; sessions have been ended before, by the service.

        Args:
            timeout_s: for the reason that connections without a session are given.
        """
        if self._server is not None:
            self._server.close()
        if self._connections:
            await asyncio.wait(self._connections, timeout=timeout_s)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def info(self) -> Info:
        """The models and their languages. A name MODEL:LANGUAGE asks for text in that language."""
        store = self._service.store
        cards = {name: store.card(name) for name in [*store.ids, *store.aliases]}
        models = [
            AsrModel(
                name=title,
                attribution=Attribution(name=" and ".join(map(str, store.licences(name))), url=""),
                installed=True,
                description=card.description or title,
                version=None,
                languages=card.source_languages,
            )
            for name, card in cards.items()
            for title in (name, *(f"{name}:{target}" for target in card.target_languages))
        ]
        program = AsrProgram(
            name="sprachbund",
            attribution=Attribution(name="sprachbund", url=""),
            installed=True,
            description="speech to text in any language of a model",
            version=__version__,
            models=models,
            supports_transcript_streaming=True,
        )
        return Info(asr=[program])

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writer.transport.set_write_buffer_limits(high=0)  # so that all that waits to be sent is noticed
        host = str((writer.get_extra_info("peername") or ("unknown",))[0])
        address = network_of(host)
        self._of_address[address] += 1
        began, connection = time.monotonic(), _Connection(self, self._service, reader, writer, address)
        status = 200
        try:
            self._check_room(address)
            await connection.run()
            await _end_answers(reader, writer)
        except (ConnectionError, TimeoutError):
            status = 499
        except Exception as error:
            refusal = refusal_of(error)
            status = refusal.status
            if status >= 500 and not isinstance(error, RefusalError):
                log.exception("a connection failed")
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(self._service.settings.timeouts.header_s):
                    await async_write_event(Error(refusal.message, refusal.code).event(), writer)
                    await _end_answers(reader, writer)
        finally:
            self._connections.discard(task)
            self._of_address[address] -= 1
            self._of_address += Counter()  # drops those at 0
            await connection.drop()
            if writer.transport.get_write_buffer_size():  # a close would wait until the client takes it
                writer.transport.abort()
            else:
                writer.close()
            self._service.meters.requests.labels(PATH, str(status)).inc()
            line = {
                "client": host,
                "path": PATH,
                "status": status,
                "seconds": round(time.monotonic() - began, 3),
                "audio_s": round(connection.audio_s, 3),
            }
            log.info(json.dumps(line))

    def _check_room(self, address: str) -> None:
        limits = self._service.settings.limits
        if self._of_address[address] > limits.max_connections_per_address:
            raise RefusalError(
                429, f"{self._of_address[address] - 1} connections of {address} are open; try again later"
            )
        if self._of_address.total() > limits.max_connections:
            raise RefusalError(503, f"{self._of_address.total() - 1} connections are open; try again later")


async def _end_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say that no more comes, and throw away what the client still sends: closed upon it, answers would be lost."""
    with suppress(OSError):  # the client has gone, or sends on for long
        writer.write_eof()
        async with asyncio.timeout(_LINGER_S):
            while await reader.read(_MAX_LINE):
                pass


class _Connection:
    """A connection: any number of transcripts, one after the other.

    Attributes:
        audio_s: seconds of sound received.
    """

    def __init__(
        self,
        server: WyomingServer,
        service: Service,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        owner: str,
    ) -> None:
        self._server, self._service, self._reader, self._writer = server, service, reader, writer
        self._owner = owner
        self._asked, self._rate = _Transcribe(), 0
        self._live: ResumableSession | None = None
        self._writing: asyncio.Task[tuple[str, str | None]] | None = None
        self.audio_s = 0.0

    async def run(self) -> None:
        """Answer events until the client ends the connection; raises RefusalError where the service stops."""
        reading: asyncio.Task[ClientEvent | None] | None = None
        stopping = asyncio.ensure_future(self._service.sessions.wait_closing())
        since_s, heard_s = time.monotonic(), self.audio_s
        silent_s = self._service.settings.timeouts.live_silent_s
        try:
            while True:
                if self._live is None and self._service.sessions.closing:
                    raise stopping_refusal()
                reading = reading or asyncio.ensure_future(self._read())
                waiting: set[asyncio.Task[Any]] = {reading, self._writing or stopping}
                left_s = max(0.0, since_s + silent_s - time.monotonic())
                done, _ = await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if self._writing in done:  # the session has ended by itself: an error, or the service stops
                    await self._finish()
                    return
                if reading in done:
                    event, reading = reading.result(), None
                    if event is None:
                        return
                    await self._answer(event)
                if time.monotonic() - since_s >= silent_s:
                    if self.audio_s - heard_s < SILENCE_S:
                        raise RefusalError(
                            408, f"less than {SILENCE_S:g} s of sound came in {silent_s:g} s", code="silent"
                        )
                    since_s, heard_s = time.monotonic(), self.audio_s
        finally:
            ending = [task for task in (reading, stopping) if task is not None]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def _read(self) -> ClientEvent | None:
        settings = self._service.settings
        return await read_event(
            self._reader,
            max_payload=settings.limits.max_message_bytes,
            patience_s=settings.timeouts.upload_grace_s,
        )

    async def drop(self) -> None:
        """Forget the session under way."""
        live, self._live = self._live, None
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        if live is not None:
            self._service.sessions.disconnect(live.name)
            await self._service.sessions.give_up(live.name)

    async def _answer(self, event: ClientEvent) -> None:
        match event.type:
            case "describe":
                await self._write(self._server.info().event())
            case "ping":
                text = event.data.get("text")
                await self._write(Pong(text[:1000] if isinstance(text, str) else None).event())
            case "transcribe":
                if self._live is not None:
                    raise RefusalError(
                        400, "transcribe within a recording; send audio-stop first", code="bad_event"
                    )
                self._asked = _parsed(_Transcribe, event)
            case "audio-start":
                await self._begin(_parsed(_Format, event))
            case "audio-chunk":
                await self._hear(event)
            case "audio-stop":
                await self._finish()
            case _:
                raise RefusalError(
                    400, f"the event {event.type[:60]!a} is not known here; there are {', '.join(_TYPES)}",
                    code="bad_event",
                )  # fmt: skip

    async def _begin(self, sound: _Format) -> None:
        """Open a session for a recording."""
        if self._live is not None:
            raise RefusalError(400, "audio-start within a recording; send audio-stop first", code="bad_event")
        self._service.admit_address(self._owner)
        store, name = self._service.store, self._asked.name or self._service.store.default
        target = TRANSCRIBE
        if name not in (*store.ids, *store.aliases) and ":" in name:
            name, _, target = name.rpartition(":")
        start = Start(
            type="start",
            model=name,
            targets=[target],
            source=self._asked.language or None,
            sample_rate=sound.rate,
        )
        self._rate = sound.rate
        self._live = await self._service.sessions.open(start, self._owner)
        self._writing = asyncio.ensure_future(self._write_text(self._live))
        self._service.sessions.connect(self._live.name)

    async def _hear(self, event: ClientEvent) -> None:
        """Sound; the format is that of audio-start."""
        if self._live is None:
            raise RefusalError(400, "audio-chunk without audio-start", code="bad_event")
        if (rate := _parsed(_Format, event).rate) != self._rate:
            raise RefusalError(
                400,
                f"audio-chunk: rate is {rate}, and that of audio-start was {self._rate}; send one rate",
                code="bad_event",
            )
        if not event.payload:
            raise RefusalError(
                400, "audio-chunk without sound; its samples come as the payload", code="bad_event"
            )
        if self._live.ended:  # meanwhile, by a stop of the service: `run` sends what there is
            return
        before_s = self._live.sound.received_s
        self._live.add(self._live.sound.decode(event.payload))
        self.audio_s += self._live.sound.received_s - before_s
        await self._service.sessions.wait_for_room(self._live)

    async def _finish(self) -> None:
        """The end of a recording, and its transcript."""
        live, writing = self._live, self._writing
        if live is None or writing is None:
            raise RefusalError(400, "audio-stop without audio-start", code="bad_event")
        live.end()
        text, language = await writing
        await self._write(Transcript(text, language=language).event())
        await self._write(TranscriptStop().event())
        self._asked = _Transcribe()
        await self.drop()

    async def _write_text(self, live: ResumableSession) -> tuple[str, str | None]:
        """Send text as it is committed; all of it, and its language."""
        text, language = "", None
        async for message in live.messages():
            if message["type"] != "text" or not message["committed"]:
                continue
            language = message["target_language"]
            if not text:
                await self._write(TranscriptStart(language=language).event())
            text += message["committed"]
            await self._write(TranscriptChunk(message["committed"]).event())
        return text.strip(), language

    async def _write(self, event: Event) -> None:
        async with asyncio.timeout(self._service.settings.timeouts.answer_s):
            await async_write_event(event, self._writer)

"""OpenAI's realtime transcription sessions over a WebSocket: events of a client in, events of the server out.

The protocol is that of the Realtime API (developers.openai.com/api/reference/resources/realtime): `session.update` with
`type: transcription`, and the older `transcription_session.update`. A stretch of speech, or with `turn_detection: null`
all sound up to a commit, is an item of the conversation. Text is that of a live session, which counts towards the same
limits as one of /v1/live.

The target language of a translation is `session.audio.output.language`, which OpenAI has in translation sessions only.
"""

import asyncio
import base64
import binascii
import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from sprachbund.audio.span_options import SpanOptions
from sprachbund.decoding.options import TRANSCRIBE
from sprachbund.errors import SprachbundError
from sprachbund.serving.live import (
    BROKEN,
    CLOSE_CODES,
    NORMAL,
    REFUSED,
    SILENCE_S,
    Check,
    Encoding,
    ResumableSession,
    SessionManager,
    Start,
    receive,
)
from sprachbund.serving.schemas import (
    ANY_JSON,
    NO_OBJECT,
    HotWordList,
    RefusalError,
    as_json,
    field_fault,
    log_probs_of,
    named_as_sent,
    refusal_of,
    stopping_refusal,
    unknown_type,
    usage,
)
from sprachbund.serving.settings import Settings

log = logging.getLogger("sprachbund.serving")
PATH = "/v1/realtime"
TRANSLATIONS_PATH = f"{PATH}/translations"
"""Path at which OpenAI has sessions whose output is sound; here they are refused, with the way to translated text."""
SUBPROTOCOL = "realtime"
_KEY_PROTOCOL = "openai-insecure-api-key."
_BETA_PROTOCOL = "openai-beta.realtime-v1"
_QUERY = ("model", "intent")
_LEAST_COMMIT_S = 0.1
"""Least sound of an item that a client commits."""
_MOST_REASON = 123
"""Bytes of the reason in a close frame (RFC 6455); clients that were sending see it alone, without the error event."""
_MOST_ERRORS = 32
"""Refused events after which a connection is closed; a client that errs so often does not read the answers."""

# The session that a client configures, in OpenAI's names.


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Format(_Strict):
    """Encoding of the sound: 16-bit samples at 24 kHz, or G.711 at 8 kHz."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Literal[24000, 8000] | None = None

    @model_validator(mode="after")
    def _set_rate(self) -> "Format":
        known = 24_000 if self.type == "audio/pcm" else 8_000
        if self.rate not in (None, known):
            raise ValueError(f"{self.type} comes at {known} Hz, and rate is {self.rate}")
        self.rate = 24_000 if known == 24_000 else 8_000
        return self

    @property
    def encoding(self) -> Encoding:
        """Name of the encoding in /v1/live."""
        names: dict[str, Encoding] = {"audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}
        return names.get(self.type, "pcm_s16le")


class Transcription(_Strict):
    """The model, the languages that may be spoken, and the words that the search prefers: `keywords`."""

    model: str | None = None
    language: Annotated[str | None, Field(max_length=100)] = None
    languages: Annotated[list[str] | None, Field(max_length=100)] = None
    prompt: Annotated[str | None, Field(max_length=10_000)] = None
    keywords: HotWordList | None = None
    delay: None = None


class ServerVad(_Strict):
    """Turns by voice activity: a pause of `silence_duration_ms` ends an item."""

    type: Literal["server_vad"] = "server_vad"
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5_000)] = 200
    silence_duration_ms: Annotated[int, Field(ge=1, le=10_000)] = 400
    create_response: Literal[False] | None = None
    interrupt_response: Literal[False] | None = None
    idle_timeout_ms: None = None

    @property
    def used(self) -> "ServerVad":
        """The same with the padding that is used: it stands on both sides, and may not reach into the next stretch."""
        return self.model_copy(
            update={"prefix_padding_ms": min(self.prefix_padding_ms, self.silence_duration_ms // 2)}
        )

    @property
    def spans(self) -> SpanOptions:
        """Options of the detector of speech."""
        return SpanOptions(
            threshold=self.threshold,
            release=min(SpanOptions().release, self.threshold),
            min_silence_s=self.silence_duration_ms / 1000,
            padding_s=self.used.prefix_padding_ms / 1000,
        )


class SemanticVad(_Strict):
    """Turns by what is said: a pause ends an item the sooner, the likelier the speaker has finished.

    Attributes:
        eagerness: bounds the wait for a speaker who has not finished, to 8, 4 or 2 seconds; auto is medium.
    """

    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: Literal[False] | None = None
    interrupt_response: Literal[False] | None = None

    @property
    def settings(self) -> dict[str, float | int | str]:
        """Settings of a live session."""
        most_s = {"low": 8.0, "medium": 4.0, "high": 2.0, "auto": 4.0}[self.eagerness]
        return {"turn_end": "sentence", "max_pause_s": most_s}

    @property
    def spans(self) -> SpanOptions:
        """Options of the detector of speech."""
        return SpanOptions()


def _kind_of_turns(value: Any) -> Any:
    """Kind of turn detection; by pauses, where a client names none."""
    if isinstance(value, dict):
        return value.get("type", "server_vad")
    return "semantic_vad" if isinstance(value, SemanticVad) else "server_vad"


_TURN_DETECTIONS = ("server_vad", "semantic_vad")
TurnDetection = Annotated[
    Annotated[ServerVad, Tag("server_vad")] | Annotated[SemanticVad, Tag("semantic_vad")],
    Discriminator(_kind_of_turns),
]


class Input(_Strict):
    """Sound of the client."""

    format: Format = Format()
    noise_reduction: None = None
    transcription: Transcription | None = Transcription()
    turn_detection: TurnDetection | None = ServerVad()


class Output(_Strict):
    """Text of the server."""

    language: Annotated[str | None, Field(max_length=100)] = None


class Audio(_Strict):
    """Audio of both directions."""

    input: Input = Input()
    output: Output = Output()


class Session(_Strict):
    """The configuration of a session.

    Attributes:
        type: no other sessions are offered.
        audio: sound and languages; `audio.output.language` is the language wanted, the one spoken if not given.
        include: further fields of events.
    """

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: Annotated[
        list[Literal["item.input_audio_transcription.logprobs"]] | None, Field(max_length=1)
    ] = None

    @property
    def sent(self) -> Mapping[str, tuple[str, Any]]:
        """Name and value of the fields that set options of a live session, by the names of these."""
        source = self.audio.input
        spoken = source.transcription or Transcription()
        turns = None if source.turn_detection is None else source.turn_detection.type
        return {
            "hot_words": ("audio.input.transcription.keywords", spoken.keywords),
            "turn_end": ("audio.input.turn_detection.type", turns),
            "word_timestamps": ("include", self.include),
        }

    @property
    def languages_sent(self) -> Mapping[str, Collection[str]]:
        """Languages in the session, by the name of their field."""
        spoken = self.audio.input.transcription or Transcription()
        return {
            "session.audio.output.language": [self.audio.output.language or ""],
            "session.audio.input.transcription.language": [spoken.language or ""],
            "session.audio.input.transcription.languages": spoken.languages or (),
        }

    def start(self, default_model: str) -> Start:
        """First message of the live session."""
        source = self.audio.input
        spoken = source.transcription or Transcription()
        turns = source.turn_detection
        return Start(
            type="start",
            model=spoken.model or default_model,
            targets=[self.audio.output.language or TRANSCRIBE],
            source=spoken.language or None,
            languages=spoken.languages or None,
            settings=turns.settings if isinstance(turns, SemanticVad) else {},
            prompt=spoken.prompt or None,
            hot_words=spoken.keywords,
            word_timestamps=bool(self.include),
            encoding=source.format.encoding,
            sample_rate=source.format.rate or 24_000,
        )


class _BetaSession(_Strict):
    """The configuration of `transcription_session.update`."""

    input_audio_format: Literal["pcm16", "g711_ulaw", "g711_alaw"] = "pcm16"
    input_audio_transcription: dict[str, Any] | None = None
    input_audio_noise_reduction: None = None
    turn_detection: dict[str, Any] | None = None
    include: list[str] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    client_secret: None = None

    def changes(self) -> dict[str, Any]:
        """The fields that were given, in the names of `Session`."""
        given, sound = self.model_dump(exclude_unset=True), dict[str, Any]()
        if "input_audio_format" in given:
            sound["format"] = {"type": _FORMATS[self.input_audio_format], "rate": None}
        for name, key in (
            ("transcription", "input_audio_transcription"),
            ("turn_detection", "turn_detection"),
        ):
            if key in given:
                sound[name] = given[key]
        changes: dict[str, Any] = {"audio": {"input": sound}}
        return changes | ({"include": given["include"]} if "include" in given else {})


_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}


def updated(session: Session, changes: dict[str, Any]) -> Session:
    """A session with some fields changed; fields that are not named stay. Raises RefusalError: 400."""
    try:
        return Session.model_validate(_merged(session.model_dump(), changes))
    except ValidationError as error:
        fault = field_fault(error.errors(), inside="session", tags=_TURN_DETECTIONS)
        raise RefusalError(400, fault.reason[:500], code="invalid_value", param=fault.field[:200]) from error


def _merged(before: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = dict(before)
    for name, value in changes.items():
        known = before.get(name)
        # With another type, it is another kind of thing, with fields of its own.
        if (
            isinstance(known, dict)
            and isinstance(value, dict)
            and value.get("type", known.get("type")) == known.get("type")
        ):
            both[name] = _merged(known, value)
        else:
            both[name] = value
    return both


# Events of a client.


class _Event(_Strict):
    event_id: Annotated[str | None, Field(max_length=512)] = None


class SessionUpdate(_Event):
    """Change the session; fields that are not named stay."""

    type: Literal["session.update"]
    session: dict[str, Any]


class TranscriptionSessionUpdate(_Event):
    """The same, in the older form."""

    type: Literal["transcription_session.update"]
    session: _BetaSession


class Append(_Event):
    """Sound, in base64."""

    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(_Event):
    """All sound so far is an item."""

    type: Literal["input_audio_buffer.commit"]


class Clear(_Event):
    """Forget the sound that is in no item yet."""

    type: Literal["input_audio_buffer.clear"]


ClientEvent = SessionUpdate | TranscriptionSessionUpdate | Append | Commit | Clear
_TYPES = [name for event in get_args(ClientEvent) for name in get_args(event.model_fields["type"].annotation)]
_EVENTS: TypeAdapter[ClientEvent] = TypeAdapter(Annotated[ClientEvent, Field(discriminator="type")])


def parse_event(text: str) -> ClientEvent:
    """An event of a client. Raises RefusalError: 400, which names what is wrong with it."""
    try:
        return _EVENTS.validate_json(text)
    except ValidationError as error:
        fault = field_fault(error.errors(), tagged=True)
        if fault.kind == "json_invalid" or (not fault.field and fault.kind in NO_OBJECT):
            raise RefusalError(
                400, "the event is no JSON object; sound comes in base64, in input_audio_buffer.append",
                code="invalid_json",
            ) from error  # fmt: skip
        if unknown := unknown_type(error, _TYPES):
            raise RefusalError(
                400,
                f"the event cannot be read: {unknown}; this is a transcription session",
                code="invalid_event_type",
                param="type",
            ) from error
        raise RefusalError(400, fault.reason[:500], code="invalid_value", param=fault.field[:200]) from error


def _event_id_of(text: str) -> str | None:
    """The id of an event that was refused, where it has one."""
    try:
        value = ANY_JSON.validate_json(text)
    except ValueError:
        return None
    event_id = value.get("event_id") if isinstance(value, dict) else None
    return event_id[:512] if isinstance(event_id, str) else None


# A connection.


class _Turn:
    """A live session of a connection, from its first sound to a commit, a clear, or a change of the settings.

    Attributes:
        live: the session.
        forwarding: sends its text to the client.
        items: ids of the items under way, by number of the stretch; by None without turn detection.
        texts: texts of these items so far.
        log_probs: log-probabilities of their words, where they are wanted.
        began_s: start of the speech of items, in seconds.
        dropped: lines about speech of items that has no text.
        notices: lines about the session that no item has sent yet.
    """

    def __init__(self, live: ResumableSession) -> None:
        self.live = live
        self.forwarding: asyncio.Task[None] | None = None
        self.items: dict[int | None, str] = {}
        self.texts: dict[str, str] = {}
        self.log_probs: dict[str, list[dict[str, Any]]] = {}
        self.began_s: dict[str, float] = {}
        self.dropped: dict[str, list[str]] = {}
        self.notices: list[str] = []

    def take_warnings(self, item: str) -> list[str]:
        """Lines for the end of an item, each sent once."""
        notices, self.notices = self.notices, []
        return [*self.dropped.pop(item, ()), *notices]


class RealtimeConnection:
    """All of a connection, from `session.created` to its close.

    Args:
        socket: accepted.
        sessions: sessions of the service.
        settings: settings of the service.
        default_model: id of the model that is used if the client names none.
    """

    def __init__(
        self, socket: WebSocket, sessions: SessionManager, settings: Settings, default_model: str
    ) -> None:
        self._socket, self._sessions, self._settings, self._default = (
            socket,
            sessions,
            settings,
            default_model,
        )
        self._id = f"sess_{secrets.token_hex(12)}"
        self._session, self._owner = Session(), ""
        self._beta = _is_beta(socket)
        self._turn: _Turn | None = None
        self._last: ResumableSession | None = None
        self._receiving: asyncio.Future[str | bytes] | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._heard_s = 0.0  # in the turns before this one
        # A second of sound has to come in the time from here on.
        self._since_s, self._heard_then_s = time.monotonic(), 0.0
        self._previous_item: str | None = None
        self._num_errors = 0

    async def serve(self, check: Check) -> None:
        """Serve the client until one of the two ends the connection."""
        began, status = time.monotonic(), NORMAL
        self._sessions.connect(self._id)
        try:
            self._owner = check(offered_key(self._socket))
            self._session = self._first_session()
            self._sessions.check_limits(self._owner)
            await self._send_session("session.created")
            await self._run()
        except WebSocketDisconnect as end:
            status = end.code
        except Exception as error:
            refusal = refusal_of(error)
            status = refusal.status
            if status >= 500 and not isinstance(error, RefusalError):
                log.exception("a connection failed")
            await self._drop_turn()  # first: the client may take long to read the refusal, or never do
            await self._close(refusal)
        finally:
            for waiting in (self._receiving, self._stopping):
                if waiting is not None:
                    waiting.cancel()
            await self._drop_turn()
            self._sessions.disconnect(self._id)
            self._sessions.log_connection(self._socket, PATH, self._last, status, time.monotonic() - began)

    def _first_session(self) -> Session:
        """The session before any update, as the address asks for it."""
        if self._socket.url.path == TRANSLATIONS_PATH:
            raise RefusalError(
                400,
                f"translation sessions, which speak, are not offered; open {PATH} and set audio.output.language",
                code="not_offered",
            )
        query = self._socket.query_params
        if unknown := sorted(set(query) - {*_QUERY}):
            raise RefusalError(
                400,
                f"the address has {unknown[0][:100]!a}; there are {', '.join(_QUERY)}",
                code="unknown_parameter",
            )
        if (intent := query.get("intent", "transcription")) != "transcription":
            raise RefusalError(
                400,
                f"intent is {intent[:100]!a}; only transcription is offered",
                code="invalid_value",
                param="intent",
            )
        model = query.get("model") or self._default
        self._sessions.check_model(model)
        return updated(Session(), {"audio": {"input": {"transcription": {"model": model}}}})

    # Events of the client.

    async def _run(self) -> None:
        while True:
            message = await self._next_message()
            try:
                if not isinstance(message, str):
                    raise RefusalError(
                        400,
                        "events are text; sound comes in base64, in input_audio_buffer.append",
                        code="invalid_json",
                    )
                await self._handle(parse_event(message))
            except SprachbundError as error:
                refusal = refusal_of(error)
                await self._send_error(refusal, _event_id_of(message) if isinstance(message, str) else None)
                self._num_errors += 1
                if refusal.status >= 500 or self._num_errors >= _MOST_ERRORS:
                    raise RefusalError(
                        refusal.status, f"{self._num_errors} events were refused, the last: {refusal.message}"
                    ) from error

    async def _next_message(self) -> str | bytes:
        """The next message; ends the turn whose session has ended meanwhile."""
        silent_s = self._settings.timeouts.live_silent_s
        while True:
            if self._turn is None and self._sessions.closing:
                raise stopping_refusal()
            if self._receiving is None:
                self._receiving = asyncio.ensure_future(receive(self._socket))
            if self._stopping is None:
                self._stopping = asyncio.ensure_future(self._sessions.wait_closing())
            waiting: set[asyncio.Future[Any]] = {self._receiving}
            if self._turn is not None and self._turn.forwarding is not None:
                waiting.add(self._turn.forwarding)
            else:
                waiting.add(self._stopping)
            left_s = self._since_s + silent_s - time.monotonic()
            done, _ = await asyncio.wait(
                waiting, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED
            )
            if self._receiving in done:
                received, self._receiving = self._receiving, None
                return received.result()
            if done:  # the session has ended by itself: an error, or the service stops
                await self._finish_turn()
            elif self._received_s - self._heard_then_s < SILENCE_S:
                raise RefusalError(
                    408, f"less than {SILENCE_S:g} s of sound came in {silent_s:g} s", code="silent"
                )
            else:
                self._since_s, self._heard_then_s = time.monotonic(), self._received_s

    async def _handle(self, event: ClientEvent) -> None:
        match event:
            case SessionUpdate():
                await self._update(event.session, "session.updated")
            case TranscriptionSessionUpdate():
                self._beta = True
                await self._update(event.session.changes(), "transcription_session.updated")
            case Append():
                await self._append(event.audio)
            case Commit():
                await self._commit()
            case Clear():
                await self._drop_turn()
                await self._send("input_audio_buffer.cleared")

    async def _update(self, changes: dict[str, Any], answer: str) -> None:
        """Change the session. What cannot be is refused, and leaves all as it was."""
        session = updated(self._session, changes)
        if self._turn is not None and self._turn.live.sound.received_s > 0:
            if self._session.audio.input.turn_detection is None:
                raise RefusalError(
                    409,
                    "there is sound that is in no item; commit or clear it before a change",
                    code="buffer_not_empty",
                )
            await self._finish_turn()
        await self._drop_turn()
        self._turn = await self._open(session)  # says at once what this model or service does not have
        self._session = session
        await self._send_session(answer)

    async def _append(self, audio: str) -> None:
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RefusalError(
                400, f"audio: no base64 ({error}); send the bytes of the sound in base64", code="invalid_value",
                param="audio",
            ) from error  # fmt: skip
        most = self._settings.limits.max_message_bytes
        if len(data) > most:
            raise RefusalError(
                413,
                f"audio: {len(data)} bytes in an event; {most} are the most",
                code="too_big",
                param="audio",
            )
        if self._turn is None:
            self._turn = await self._open(self._session)
        turn = self._turn
        if turn.live.ended:  # meanwhile, by a stop of the service: the text of what came before is sent first
            await self._finish_turn()
            raise stopping_refusal()
        turn.live.add(turn.live.sound.decode(data))
        await self._sessions.wait_for_room(turn.live)

    async def _commit(self) -> None:
        turn = self._turn
        heard_s = 0.0 if turn is None else turn.live.sound.received_s
        if turn is None or heard_s < _LEAST_COMMIT_S:
            raise RefusalError(
                400,
                f"{heard_s * 1000:.0f} ms of sound are in the buffer; a commit needs {_LEAST_COMMIT_S * 1000:.0f}",
                code="input_audio_buffer_commit_empty",
            )
        if self._by_pauses:
            before = self._previous_item
            await self._finish_turn()
            if self._previous_item == before:  # no speech was in it, and the client waits for an item
                await self._send_empty_item()
            return
        await self._send_committed(self._item_of(turn, None))
        await self._finish_turn()

    # Turns.

    @property
    def _by_pauses(self) -> bool:
        return self._session.audio.input.turn_detection is not None

    @property
    def _received_s(self) -> float:
        """Seconds of sound received on this connection."""
        return self._heard_s + (0.0 if self._turn is None else self._turn.live.sound.received_s)

    async def _open(self, session: Session) -> _Turn:
        vad = session.audio.input.turn_detection
        with named_as_sent(session.sent, session.languages_sent):
            live = await self._sessions.open(
                session.start(self._default),
                self._owner,
                spans=None if vad is None else vad.spans,
                marks=vad is not None,
            )
        self._last, turn = live, _Turn(live)
        turn.forwarding = asyncio.ensure_future(self._forward(turn, by_pauses=vad is not None))
        return turn

    async def _finish_turn(self) -> None:
        """End the sound of the turn, and wait until its text is sent. An error of its session fails its items."""
        turn = self._turn
        if turn is None or turn.forwarding is None:
            return
        turn.live.end()
        try:
            await turn.forwarding
        except WebSocketDisconnect:
            raise
        except Exception as error:
            refusal = refusal_of(error)
            if not isinstance(error, RefusalError):
                log.exception("a live session failed")
            for item in [*turn.items.values()]:
                await self._send_failed(item, refusal)
            if not turn.items or refusal.status >= 500:
                raise refusal from error
        finally:
            await self._drop_turn()

    async def _drop_turn(self) -> None:
        """Forget the turn with all that is left of it."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        self._heard_s += turn.live.sound.received_s
        if turn.forwarding is not None:
            turn.forwarding.cancel()
            await asyncio.gather(turn.forwarding, return_exceptions=True)
        await self._sessions.give_up(turn.live.name)

    async def _forward(self, turn: _Turn, *, by_pauses: bool) -> None:
        """Send what a live session says, in OpenAI's events."""
        offset_s = self._heard_s
        async for message in turn.live.messages():
            segment = message.get("segment") if by_pauses else None
            if message["type"] == "speech":
                item, ms = self._item_of(turn, segment), round((offset_s + message["second"]) * 1000)
                if message["begins"]:
                    turn.began_s[item] = message["second"]
                    await self._send("input_audio_buffer.speech_started", item_id=item, audio_start_ms=ms)
                else:
                    await self._send("input_audio_buffer.speech_stopped", item_id=item, audio_end_ms=ms)
                    await self._send_committed(item)
            elif message["type"] == "text":
                await self._forward_text(turn, self._item_of(turn, segment), message, by_pauses=by_pauses)
            elif message["type"] == "notice" and message["kind"] != "error":
                turn.notices.append(message["message"])
        if not by_pauses and (item_id := turn.items.pop(None, None)) is not None:
            await self._send_completed(
                item_id,
                turn.texts.get(item_id, ""),
                turn.live.sound.received_s,
                log_probs=turn.log_probs.get(item_id),
                warnings=turn.take_warnings(item_id),
            )
        if turn.notices:  # that came after the end of the last item
            await self._send_empty_item(turn.notices)

    async def _forward_text(
        self, turn: _Turn, item: str, message: dict[str, Any], *, by_pauses: bool
    ) -> None:
        before, piece = turn.texts.get(item, ""), message["committed"]
        delta = piece if before else piece.lstrip()
        turn.texts[item] = before + delta
        extra: dict[str, Any] = {}
        if self._session.include:
            words = [(word["text"], word["probability"]) for word in message["words"]]
            extra["logprobs"] = log_probs_of(words, message["target_language"], begins=not before)
            turn.log_probs.setdefault(item, []).extend(extra["logprobs"])
        if delta:
            await self._send(
                "conversation.item.input_audio_transcription.delta",
                item_id=item,
                content_index=0,
                delta=delta,
                **extra,
            )
        if message["dropped"]:
            begin_s, end_s = (self._heard_s + message[name] for name in ("start_s", "end_s"))
            line = f"sound from {begin_s:.1f} to {end_s:.1f} s has no text ({message['dropped']})"
            turn.dropped.setdefault(item, []).append(line)
        if not (message["final"] and by_pauses):
            return
        del turn.items[message["segment"]]
        if not turn.texts[item] and (reason := message["dropped"]) and reason.startswith(_LOST):
            turn.dropped.pop(item, None)  # the failure says it
            await self._send_failed(item, RefusalError(400, reason, code="not_transcribed"))
            return
        duration_s = message["end_s"] - turn.began_s.get(item, message["start_s"])
        await self._send_completed(
            item,
            turn.texts.pop(item),
            duration_s,
            languages=[message["source_language"]],
            log_probs=turn.log_probs.pop(item, None),
            out_of_domain=message["out_of_domain"],
            warnings=turn.take_warnings(item),
        )

    def _item_of(self, turn: _Turn, segment: int | None) -> str:
        return turn.items.setdefault(segment, _new_item())

    # Events of the server.

    async def _send(self, kind: str, **values: Any) -> None:
        event = {"type": kind, "event_id": f"event_{secrets.token_hex(10)}", **values}
        await self._socket.send_text(as_json(event))

    async def _send_session(self, kind: str) -> None:
        """Say what holds from now on."""
        values: dict[str, Any] = {"id": self._id, "object": "realtime.transcription_session"}
        sound = self._session.audio.input
        turns = (
            sound.turn_detection.used if isinstance(sound.turn_detection, ServerVad) else sound.turn_detection
        )
        if kind == "transcription_session.updated" or (self._beta and kind == "session.created"):
            kind = (
                "transcription_session.updated"
                if kind.startswith("trans")
                else "transcription_session.created"
            )
            values |= {
                "input_audio_format": {new: old for old, new in _FORMATS.items()}[sound.format.type],
                "input_audio_transcription": _plain(sound.transcription, "model", "language", "prompt"),
                "turn_detection": _plain(
                    turns, "type", "threshold", "prefix_padding_ms", "silence_duration_ms"
                ),
                "modalities": ["text"],
            }
        else:
            values |= self._session.model_dump()
            values["audio"]["input"]["turn_detection"] = turns and turns.model_dump()
        await self._send(kind, session=values)

    async def _send_committed(self, item: str) -> None:
        """An item has all of its sound."""
        before, self._previous_item = self._previous_item, item
        await self._send("input_audio_buffer.committed", item_id=item, previous_item_id=before)
        message = {
            "id": item,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        kinds = ("created",) if self._beta else ("added", "done")
        for kind in kinds:
            await self._send(f"conversation.item.{kind}", previous_item_id=before, item=message)

    async def _send_empty_item(self, warnings: Sequence[str] = ()) -> None:
        """Send an item of no sound, whose end has the warnings."""
        item = _new_item()
        await self._send_committed(item)
        await self._send_completed(item, "", 0.0, warnings=warnings)

    async def _send_completed(
        self,
        item: str,
        text: str,
        duration_s: float,
        *,
        languages: Sequence[str] = (),
        log_probs: list[dict[str, Any]] | None = None,
        out_of_domain: float | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """Send the end of an item; the last two are extensions, there only where they are known."""
        await self._send(
            "conversation.item.input_audio_transcription.completed",
            item_id=item,
            content_index=0,
            transcript=text,
            usage=usage(duration_s),
            languages=[{"code": language} for language in languages],
            **({} if log_probs is None else {"logprobs": log_probs}),
            **({} if out_of_domain is None else {"out_of_domain": round(out_of_domain, 4)}),
            **({"warnings": list(warnings)} if warnings else {}),
        )

    async def _send_failed(self, item: str, refusal: RefusalError) -> None:
        await self._send(
            "conversation.item.input_audio_transcription.failed",
            item_id=item,
            content_index=0,
            error=refusal.body()["error"],
        )

    async def _send_error(self, refusal: RefusalError, event_id: str | None) -> None:
        await self._send("error", error={**refusal.body()["error"], "event_id": event_id})

    async def _close(self, refusal: RefusalError) -> None:
        with suppress(RuntimeError, WebSocketDisconnect):
            if self._socket.application_state == WebSocketState.CONNECTED:
                await self._send_error(refusal, None)
                default = BROKEN if refusal.status >= 500 else REFUSED
                reason = refusal.message.encode()[:_MOST_REASON].decode("utf-8", "ignore")
                await self._socket.close(CLOSE_CODES.get(refusal.status, default), reason)


_LOST = ("overload", "unknown pair")
"""Reasons for which a stretch has no text although it may be speech; what the guard drops is an empty text."""


def _new_item() -> str:
    return f"item_{secrets.token_hex(10)}"


def _plain(part: BaseModel | None, *names: str) -> dict[str, Any] | None:
    return None if part is None else part.model_dump(include=set(names))


def offered_protocol(socket: WebSocket) -> str | None:
    """The subprotocol to accept: browsers offer `realtime` together with their key, and want one of them chosen."""
    return SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None


def offered_key(socket: WebSocket) -> str | None:
    """The key that a browser sends, which cannot send headers: as a subprotocol."""
    offered: list[str] = socket.scope["subprotocols"]
    keys = (name.removeprefix(_KEY_PROTOCOL) for name in offered if name.startswith(_KEY_PROTOCOL))
    return next(keys, None)


def _is_beta(socket: WebSocket) -> bool:
    """Whether the client speaks the older form of the protocol."""
    header = socket.headers.get("openai-beta", "")
    return _BETA_PROTOCOL in socket.scope["subprotocols"] or header == "realtime=v1"

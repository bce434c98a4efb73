"""What is fuzzed: a valid example of every format that comes from outside, and what becomes of a mutant of it.

Recordings, the files of a model directory, the messages of the live protocols, and bytes on the wire: WebSocket frames,
forms of uploads, events of the Wyoming protocol. No subtitle format is read by the package.
"""

import asyncio
import base64
import hashlib
import json
import logging
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING

from sprachbund.errors import SprachbundError
from sprachbund.serving.schemas import RefusalError
from tests.audio import mutants as audio

if TYPE_CHECKING:
    from sprachbund.models.whisper import Whisper

Read = Callable[[bytes], str]
"""A mutant to "read", "refused", or the name of an error that is not ours."""
ALIVE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format.

    Attributes:
        seed: a valid example; may write into a folder.
        reader: the time in which mutants are read, with a service where they go to one.
    """

    seed: Callable[[Path], bytes]
    reader: Callable[[], "contextmanager[Read]"]


@contextmanager
def _alone(read: Callable[[bytes], object]) -> Iterator[Read]:
    """By a function that raises one line, or nothing."""
    yield partial(_outcome, read)


def _outcome(read: Callable[[bytes], object], content: bytes) -> str:
    try:
        read(content)
    except RefusalError as refusal:  # what the client is sent
        return "refused" if "\n" not in refusal.message else "refused in two lines"
    except SprachbundError as error:
        return "refused" if "\n" not in str(error) else "refused in two lines"
    except Exception as error:
        return f"{type(error).__module__}.{type(error).__name__}: {error}"[:200]
    return "read"


# Recordings.


@contextmanager
def _audio_reader() -> Iterator[Read]:
    yield audio.outcome


# Files of a model directory.


def _model_file(family: str, name: str, folder: Path) -> bytes:
    from tests.models.mutants import make_directory

    make_directory(family, folder / "model")
    return (folder / "model" / name).read_bytes()


@contextmanager
def _model_reader(family: str, name: str) -> Iterator[Read]:
    """The whole directory, in which one file is another."""
    from tests.models.mutants import load_directory, make_directory

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        make_directory(family, directory)

        def read(content: bytes) -> None:
            (directory / name).write_bytes(content)
            load_directory(directory)

        yield partial(_outcome, read)


# Packed weights. An attacker can make the checksum of a head anew, as mutants have it; its arrays go to the kernels.


def _tiny_whisper() -> "Whisper":
    import torch

    from tests.models.whisper_support import TINY, make_transformers_model, transplanted

    torch.manual_seed(1)
    return transplanted(make_transformers_model(TINY), TINY)


def _packed_weights(folder: Path) -> bytes:
    from sprachbund.engines.native_engine import pack
    from sprachbund.engines.packed_cache import write_packed

    write_packed(folder / "packed", pack(_tiny_whisper()))
    return (folder / "packed").read_bytes()


def _with_checksum(content: bytes) -> bytes:
    """With the checksum that fits the head, where the file still says how long its head is."""
    from sprachbund.engines.packed_cache import _FIXED, _HEAD

    if len(content) < _HEAD:
        return content
    *_, length = _FIXED.unpack_from(content)
    fixed, head = content[: _FIXED.size], content[_HEAD : _HEAD + length]
    return fixed + hashlib.sha256(fixed + head).digest() + content[_HEAD:]


@contextmanager
def _packed_reader() -> Iterator[Read]:
    """A model computes with them: an encoder pass, the prompt and a token."""
    import numpy as np
    import torch

    from sprachbund.engines.extension import instruction_sets, native
    from sprachbund.engines.native_engine import with_native_modules
    from sprachbund.engines.packed_cache import read_packed
    from sprachbund.models.base import Target

    family, team, kernels = _tiny_whisper(), native().Team(1), instruction_sets()[0]
    features = family.features([np.linspace(-1, 1, 16_000, dtype=np.float32)])
    asked = [Target(language="de", source="de")]
    prompt = family.prompt(asked[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packed"

        def read(content: bytes) -> None:
            path.write_bytes(_with_checksum(content))
            computing = with_native_modules(family, read_packed(path), team, kernels)
            with torch.inference_mode():
                memory = computing.encode(features)
                cache = computing.start(memory, capacity=len(prompt) + 2, targets=asked)
                computing.step(torch.tensor([prompt]), cache)
                computing.step(torch.tensor([prompt[:1]]), cache)

        yield partial(_outcome, read)


# Messages of the live protocols, as they are parsed.

START = {
    "type": "start",
    "model": "tiny",
    "targets": ["de", "en"],
    "source": "fr",
    "languages": None,
    "policy": "local-agreement",
    "settings": {"step_s": 0.5, "agreement": 2, "mask_words": 1},
    "encoding": "pcm_s16le",
    "sample_rate": 16_000,
}
VOCABULARY = {
    "hot_words": ["Ada", "Lovelace"],
    "hot_words_weight": 2.5,
    "glossary": "hound = Hund; cat = Katze",
}
"""Fields of `START` that the tiny model of the frames refuses; they are parsed."""
UPDATE = {
    "type": "session.update",
    "event_id": "event_1",
    "session": {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24_000},
                "transcription": {"model": "tiny", "language": "fr", "prompt": ""},
                "turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 500},
            },
            "output": {"language": "de"},
        },
        "include": ["item.input_audio_transcription.logprobs"],
    },
}


def _read_live(content: bytes) -> None:
    from sprachbund.serving.live import Start, live_options, parse_message

    message = parse_message(content.decode("utf-8", "replace"))
    if isinstance(message, Start):
        live_options(message)


def _read_realtime(content: bytes) -> None:
    from sprachbund.serving.realtime import Session, SessionUpdate, parse_event, updated

    event = parse_event(content.decode("utf-8", "replace"))
    if isinstance(event, SessionUpdate):
        vad = updated(Session(), event.session).audio.input.turn_detection
        if vad is not None:
            assert vad.spans


def _read_wyoming(content: bytes) -> None:
    from sprachbund.serving.wyoming import read_event

    async def read() -> None:
        reader = asyncio.StreamReader(limit=1 << 16)
        reader.feed_data(content)
        reader.feed_eof()
        while await read_event(reader, max_payload=1 << 20, patience_s=5.0) is not None:
            pass

    asyncio.run(read())


def _wyoming_events(folder: Path) -> bytes:
    sound = {"rate": 16_000, "width": 2, "channels": 1}
    lines = [
        {"type": "transcribe", "data": {"language": "fr"}, "version": "1.0"},
        {"type": "audio-start", "data": sound},
        {"type": "audio-chunk", "data": sound, "payload_length": 3200},
    ]
    heads = [json.dumps(line).encode() + b"\n" for line in lines]
    return b"".join(heads) + bytes(3200) + b'{"type": "audio-stop"}\n'


# Bytes on the wire, to a service with a tiny model.


class _Faults(logging.Handler):
    """Tracebacks that the service writes."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.seen.append(f"{record.getMessage()}: {record.exc_info[1]!r}"[:200])


@contextmanager
def _wire_reader(exchange: Callable[[int, bytes], bytes | None], *, wyoming: bool = False) -> Iterator[Read]:
    """Sends a mutant over a connection of its own; an answer, or its end, has to come before long."""
    from sprachbund.serving.settings import Limits, Settings, Timeouts
    from tests.serving.support import serving, tiny_model

    limits = Limits(requests_per_minute=1e9, max_live=64, max_share=1.0)
    timeouts = Timeouts(header_s=0.3, upload_grace_s=0.3, live_silent_s=2.0, resume_s=0.1, answer_s=2.0)
    settings = Settings(port=0, models=("tiny",), limits=limits, timeouts=timeouts, wyoming="0")
    faults = _Faults()
    logging.getLogger().addHandler(faults)
    with serving(settings, loader=tiny_model) as running:
        port = running.server.wyoming_socket.getsockname()[1] if wyoming else running.port

        def read(content: bytes) -> str:
            answer = exchange(port, content)
            if faults.seen:
                return faults.seen.pop()
            if answer is None:
                return "no end"
            return "read" if answer.startswith((b"HTTP/1.1 101", b"200", b'{"type": "trans')) else "refused"

        yield read
        logging.getLogger().removeHandler(faults)


def until_closed(port: int, content: bytes) -> bytes | None:
    """What a service answers before it ends the connection; None where it does not end it."""
    with socket.create_connection(("127.0.0.1", port), timeout=ALIVE_S) as connection:
        answer = b""
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                answer += part
        except TimeoutError:
            return None
        except OSError:  # refused and closed while it was being sent
            return answer
        return answer


def one_answer(port: int, content: bytes) -> bytes | None:
    """The status of the first answer; empty where the connection ends without one, None where nothing comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=ALIVE_S) as connection:
        try:
            connection.sendall(content)
            response = HTTPResponse(connection)
            response.begin()
            response.read()
        except TimeoutError:
            return None
        except (OSError, HTTPException):
            return b""
        return str(response.status).encode()


def _upload(folder: Path) -> bytes:
    """A whole request to transcribe a recording."""
    from tests.serving.support import noise, wav

    parts = b""
    for name, value in (("model", b"tiny"), ("language", b"fr"), ("response_format", b"verbose_json")):
        parts += b'--border\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (
            name.encode(),
            value,
        )
    parts += b'--border\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    parts += wav(noise(0.1)) + b"\r\n--border--\r\n"
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=border\r\nContent-Length: {len(parts)}\r\n\r\n"
    )
    return head.encode() + parts


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole frame of a client (RFC 6455), masked by zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


def _frames(path: str, frames: list[bytes], folder: Path) -> bytes:
    head = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    return head.encode() + b"".join(frames) + frame(8, (1000).to_bytes(2, "big"))


_SOUND = base64.b64encode(bytes(4800)).decode()
LIVE_FRAMES = [frame(1, json.dumps(START).encode()), frame(2, bytes(3200)), frame(1, b'{"type": "stop"}')]
REALTIME_FRAMES = [
    frame(1, json.dumps(UPDATE).encode()),
    frame(1, json.dumps({"type": "input_audio_buffer.append", "audio": _SOUND}).encode()),
    frame(1, b'{"type": "input_audio_buffer.commit"}'),
]

FORMATS: dict[str, Format] = {
    **{kind: Format(seed=partial(audio.seed, kind), reader=_audio_reader) for kind in audio.KINDS},
    **{
        f"{kind}: {name}": Format(
            seed=partial(_model_file, family, name), reader=partial(_model_reader, family, name)
        )
        for kind, family, name in (
            ("model", "conformer", "config.json"),
            ("model", "conformer", "model.safetensors"),
            ("model without checksum", "whisper", "model.safetensors"),
        )
    },
    "message of /v1/live": Format(
        seed=lambda folder: json.dumps(START | VOCABULARY).encode(), reader=partial(_alone, _read_live)
    ),
    "event of /v1/realtime": Format(
        seed=lambda folder: json.dumps(UPDATE).encode(), reader=partial(_alone, _read_realtime)
    ),
    "Wyoming events": Format(seed=_wyoming_events, reader=partial(_alone, _read_wyoming)),
    "frames to /v1/live": Format(
        seed=partial(_frames, "/v1/live", LIVE_FRAMES), reader=partial(_wire_reader, until_closed)
    ),
    "frames to /v1/realtime": Format(
        seed=partial(_frames, "/v1/realtime", REALTIME_FRAMES), reader=partial(_wire_reader, until_closed)
    ),
    "multipart upload": Format(seed=_upload, reader=partial(_wire_reader, one_answer)),
    "Wyoming connection": Format(
        seed=_wyoming_events, reader=partial(_wire_reader, until_closed, wyoming=True)
    ),
    "packed weights": Format(seed=_packed_weights, reader=_packed_reader),
}

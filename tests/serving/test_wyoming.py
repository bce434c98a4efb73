"""The Wyoming server: by the protocol's own client, and by clients that err."""

import asyncio
import json
import socket
import threading
from typing import Any

import numpy as np
import pytest
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming.ping import Ping

from sprachbund.cli.console import UsageError
from sprachbund.cli.serve import _check_reach
from sprachbund.errors import SprachbundError
from sprachbund.serving.settings import Limits, Settings, Timeouts
from sprachbund.util.options import OptionValueError
from tests.serving.live_support import text_of
from tests.serving.support import pcm, serving, tiny_model, wait_for

FORMAT = {"rate": 16_000, "width": 2, "channels": 1}


@pytest.fixture(scope="module")
def running(bundled):
    settings = Settings(
        port=0,
        wyoming="0",
        aliases=("whisper-1=bundled",),
        limits=Limits(max_live=2, max_share=1.0, max_connections_per_address=3),
        timeouts=Timeouts(upload_grace_s=0.5, live_silent_s=20.0),
    )
    with serving(settings, loader=lambda name: bundled) as result:
        yield result


def port_of(running) -> int:
    return running.server.wyoming_socket.getsockname()[1]


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 60))


async def transcribed(client: AsyncTcpClient, samples: np.ndarray, asked: Transcribe) -> tuple[str, str]:
    """The transcript of a recording, and the text that came before it piece by piece."""
    await client.write_event(asked.event())
    await client.write_event(AudioStart(**FORMAT).event())
    for start in range(0, len(samples), 1024):
        await client.write_event(AudioChunk(**FORMAT, audio=pcm(samples[start : start + 1024])).event())
    await client.write_event(AudioStop().event())
    pieces = ""
    while not Transcript.is_type((event := await client.read_event()).type):
        assert event.type in ("transcript-start", "transcript-chunk"), event
        pieces += event.data.get("text", "")
    assert (await client.read_event()).type == "transcript-stop"
    return Transcript.from_event(event).text, pieces


def test_its_own_client_gets_the_text_of_the_library(running, bundled, spoken):
    async def scenario():
        async with AsyncTcpClient("127.0.0.1", port_of(running)) as client:
            await client.write_event(Describe().event())
            info = Info.from_event(await client.read_event())
            await client.write_event(Ping("hello").event())
            assert (await client.read_event()).data["text"] == "hello"
            spanish = await transcribed(client, spoken["es"], Transcribe(language="es"))
            german = await transcribed(client, spoken["es"], Transcribe(name="bundled:de", language="es"))
            return info, spanish, german

    info, (spanish, pieces), (german, _) = run(scenario())
    (program,) = info.asr
    names = {model.name: model.languages for model in program.models}
    assert {"bundled", "bundled:de", "whisper-1"} <= names.keys()
    assert "es" in names["bundled"]
    assert pieces.strip() == spanish
    assert spanish == bundled.transcribe(spoken["es"], source="es", sample_rate=16_000).text
    assert german == text_of(bundled, spoken["es"])


def line(kind: str, payload: bytes = b"", **data) -> bytes:
    head = {"type": kind, "data": data} | ({"payload_length": len(payload)} if payload else {})
    return json.dumps(head).encode() + b"\n" + payload


START = line("audio-start", **FORMAT)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "no event of the Wyoming protocol"),
        (b"[1]\n", "no JSON object"),
        (b"\xff\xfe\n", "no event"),
        (b"[" * 60_000 + b"\n", "no event"),
        (b"x" * 70_000, "65536 bytes at most"),
        (b'{"data": {}}\n', "the field 'type' is missing"),
        (b'{"type": "describe", "data_length": -1}\n', "data_length"),
        (b'{"type": "describe", "data_length": 999999999999}\n', "999999999999 bytes"),
        (b'{"type": "audio-chunk", "payload_length": 99999999999}\n', "99999999999 bytes"),
        (b'{"type": "describe", "data_length": 3}\n[1]', "no JSON object"),
        (b'{"type": "describe", "data_length": 3}\nabc', "no JSON"),
        (b'{"type": "ping", "data_length": 18}\n{"text": "\\ud800"}', "no JSON"),  # half a character
        (b'{"type": "audio-chunk", "payload_length": 100}\nhalf', "half an event"),
        (line("make-coffee"), "'make-coffee' is not known here"),
        (line("audio-stop"), "without audio-start"),
        (line("audio-chunk", b"\0\0", **FORMAT), "without audio-start"),
        (
            line("audio-start", rate="fast", width=2, channels=1),
            "rate is 'fast'; it should be a valid integer",
        ),
        (line("audio-start", rate=16_000, width=4, channels=1), "width"),
        (line("audio-start", rate=16_000, width=2, channels=2), "channels"),
        (START + START, "within a recording"),
        (START + line("audio-chunk", **FORMAT, audio="some words"), "without sound"),
        (START + b'{"type": "audio-chunk", "data": "some words"}\n', "data"),
        (START + line("audio-chunk", b"\0\0", **FORMAT | {"rate": 48_000}), "that of audio-start was 16000"),
        (line("transcribe", name="/etc") + START, "choose from bundled"),
        (line("transcribe", name="bundled:xx") + START, "'xx'"),
        (line("transcribe", language="tlh") + START, "'tlh'"),
        (line("transcribe", language=3), "language is 3; it should be a valid string"),
    ],
)
def test_what_is_no_event_is_refused_in_one_line(running, sent, says):
    async def scenario():
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
        writer.write(sent)
        head = json.loads(await reader.readline())
        text = json.loads(await reader.readexactly(head["data_length"]))["text"]
        assert head["type"] == "error"
        assert says in text
        assert "\n" not in text
        assert await reader.read() == b""  # and closed
        writer.close()

    run(scenario())
    wait_for(lambda: running.service.sessions.count == 0 and not running.service.sessions._connections)


def test_a_client_that_vanishes_leaves_nothing_and_others_go_on(running, bundled, spoken):
    async def scenario():
        async with AsyncTcpClient("127.0.0.1", port_of(running)) as good:
            _, bad = await asyncio.open_connection("127.0.0.1", port_of(running))
            bad.write(START + line("audio-chunk", pcm(spoken["es"]), **FORMAT) + b'{"type": "audio-')
            await bad.drain()
            bad.transport.abort()
            return await transcribed(good, spoken["es"], Transcribe(language="es"))

    text, _ = run(scenario())
    assert text == bundled.transcribe(spoken["es"], source="es", sample_rate=16_000).text
    wait_for(lambda: running.service.sessions.count == 0)


def test_a_client_that_reads_nothing_is_closed():
    settings = Settings(port=0, models=("tiny",), wyoming="0", timeouts=Timeouts(answer_s=0.5))
    with serving(settings, loader=lambda name: tiny_model()) as running, socket.socket() as sock:
        running.server.wyoming_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.1)
        sock.connect(("127.0.0.1", port_of(running)))

        def reset():
            try:
                sock.sendall(line("ping", text="x" * 1000) * 100)
            except TimeoutError:
                return False
            except ConnectionError:
                return True
            return False

        wait_for(reset, 60)
        assert not running.server._wyoming._of_address


def test_limits_are_those_of_live_sessions(running):
    """Of three connections two may have a session; a fourth is one too many for an address."""

    async def scenario():
        clients = [await asyncio.open_connection("127.0.0.1", port_of(running)) for _ in range(3)]
        for _, writer in clients:
            writer.write(START + line("ping", text="here"))
        heads = [json.loads(await reader.readline())["type"] for reader, _ in clients]
        assert sorted(heads) == ["error", "pong", "pong"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
        head = json.loads(await reader.readline())
        assert head["type"] == "error"
        assert b"3 connections" in await reader.readexactly(head["data_length"])
        for _, other in [*clients, (reader, writer)]:
            other.close()

    run(scenario())
    wait_for(lambda: running.service.sessions.count == 0)


def test_a_stopping_service_sends_the_transcript(bundled, spoken):
    settings = Settings(port=0, wyoming="127.0.0.1:0")

    async def scenario(running):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
        writer.write(
            line("transcribe", language="es") + START + line("audio-chunk", pcm(spoken["es"]), **FORMAT)
        )
        sessions = running.service.sessions._sessions
        await asyncio.to_thread(wait_for, lambda: any(s.sound.received_s > 5 for s in [*sessions.values()]))
        running.server.should_exit = True
        kinds = []
        while head := await reader.readline():
            event = json.loads(head)
            await reader.readexactly(event.get("data_length", 0))
            kinds.append(event["type"])
        writer.close()
        return kinds

    with serving(settings, loader=lambda name: bundled) as running:
        kinds = run(scenario(running))
    assert "transcript" in kinds
    assert kinds[-1] == "transcript-stop"


def test_a_stopping_service_hears_out_who_sends_on():
    """A close upon what still comes would reset the connection, which can cost the client its transcript."""
    settings = Settings(port=0, models=("tiny",), wyoming="0")
    ended = threading.Event()

    def talk(sock):
        sock.sendall(START)
        while not ended.is_set():
            sock.sendall(line("ping") * 50)

    with (
        serving(settings, loader=lambda name: tiny_model()) as running,
        socket.create_connection(("127.0.0.1", port_of(running)), 20) as sock,
    ):
        talking = threading.Thread(target=talk, args=[sock])
        talking.start()
        came = b""
        try:
            while data := sock.recv(1 << 16):
                came += data
                running.server.should_exit = running.server.should_exit or running.service.sessions.count > 0
        finally:
            ended.set()
            talking.join(20)
    assert b'"transcript-stop"' in came


@pytest.mark.parametrize("asked", [b"", line("describe")])
def test_a_stopping_service_says_so_to_a_client_without_a_recording(asked):
    settings = Settings(port=0, models=("tiny",), wyoming="127.0.0.1:0")

    async def scenario(running):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
        writer.write(asked)
        if asked:
            await event_of(reader)
        else:
            await asyncio.to_thread(wait_for, lambda: running.server._wyoming._connections)
        running.server.should_exit = True
        kind, data = await event_of(reader)
        assert kind == "error"
        assert data["text"].startswith("the service is being stopped")
        assert await reader.read() == b""
        writer.close()

    with serving(settings, loader=lambda name: tiny_model()) as running:
        run(scenario(running))


async def event_of(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    event = json.loads(await reader.readline())
    data = await reader.readexactly(event.get("data_length", 0))
    return event["type"], json.loads(data or "{}")


def test_the_address_is_checked(bundled):
    assert Settings(wyoming="10300").wyoming_address == ("127.0.0.1", 10300)
    assert Settings(wyoming="[::1]:10300").wyoming_address == ("::1", 10300)
    for wrong in ("", "host", "host:99999", "a b:1"):
        with pytest.raises(OptionValueError, match=r"127\.0\.0\.1:10300"):
            Settings(wyoming=wrong)
    with pytest.raises(UsageError, match="no keys"):
        _check_reach(Settings(wyoming="0.0.0.0:10300"), no_key=False)
    _check_reach(Settings(wyoming="0.0.0.0:10300"), no_key=True)
    with serving(Settings(port=0, wyoming="0"), loader=lambda name: bundled) as running:
        from sprachbund.serving.server import make_server

        with pytest.raises(SprachbundError, match="choose another --wyoming"):
            make_server(Settings(port=0, wyoming=str(port_of(running)))).listen()

"""Live captions over a real socket: text as of a recording, breaks lose nothing, bad input hurts nobody else."""

import asyncio
import contextlib
import json
import logging
import threading
import time
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from sprachbund.audio.load import load
from sprachbund.decoding.options import DecodingOptions
from sprachbund.serving.live import ResumableSession, Resume, SoundDecoder, Start, Stop
from sprachbund.serving.metrics import Meters
from sprachbund.serving.schemas import RefusalError
from sprachbund.streaming.engine import LiveEngine
from tests.documented import documented_fields
from tests.not_understood import sounds
from tests.serving.conftest import SPOKEN_S
from tests.serving.live_support import SPAN, said, text_of, whole
from tests.serving.support import noise, pcm, talking, wait_for


def test_text_that_waits_for_the_end_of_speech_is_that_of_the_recording(running, bundled, spoken):
    client = asyncio.run(whole(running, spoken["es"]))
    assert said(client) == text_of(bundled, spoken["es"])
    numbers = [m["seq"] for m in client.seen if "seq" in m]
    assert numbers == list(range(1, len(numbers) + 1))
    texts = [m for m in client.seen if m["type"] == "text"]
    assert all(m["final"] and m["delay_s"] >= 0 for m in texts)
    assert client.seen[-1]["audio_s"] == pytest.approx(SPOKEN_S, abs=1e-3)


def test_words_have_the_times_of_the_recording(running, bundled, spoken):
    client = asyncio.run(whole(running, spoken["es"], {**SPAN, "word_timestamps": True}))
    words = [word for m in client.seen if m["type"] == "text" for word in m["words"]]
    options = DecodingOptions(word_timestamps=True)
    expected = bundled.translate(spoken["es"], to="de", source="es", options=options, sample_rate=16_000)
    every = [asdict(word) for segment in expected.segments for word in segment.words]
    assert len(words) == len(every) > 0
    for word, known in zip(words, every, strict=True):
        assert word == known | {"probability": pytest.approx(known["probability"], rel=1e-4)}


def test_every_field_of_a_message_is_documented(running, spoken):
    """Of the server: of speech that is understood, of speech that is not, and of a first message that is none."""

    async def scenario():
        clients = [await whole(running, samples) for samples in (spoken["es"], spoken["es"][::-1])]
        async with talking(running, {"targets": []}) as refused:
            await refused.hear()
        return [message for client in (*clients, refused) for message in client.seen]

    known = documented_fields("serve.md", "message of the server")
    messages = asyncio.run(scenario())
    assert {message["type"] for message in messages} == known.keys() - {"pause", "continue"}
    for message in messages:
        assert message.keys() - {"type"} == known[message["type"]]
    of_client = {"start": Start, "resume": Resume, "stop": Stop}
    assert documented_fields("serve.md", "message of the client") == {
        name: set(kind.model_fields) - {"type"} for name, kind in of_client.items()
    }


@pytest.mark.slow
def test_what_nobody_understands_is_not_written(running, recordings):
    """Speech backwards, babble, music and noises; the language is identified, as on the page."""
    speech = {language: load(path) for language, path in recordings.items()}
    heard = {"speech": speech["es"], **sounds(speech["es"], [speech["it"], speech["en"]])}

    async def scenario():
        first = {"targets": ["de"]}
        return await asyncio.gather(*(whole(running, samples, first) for samples in heard.values()))

    speech_client, *others = asyncio.run(scenario())
    assert len(said(speech_client).split()) > 20
    assert [said(client) for client in others] == [""] * len(others)
    dropped = [m["dropped"] for client in others for m in client.seen if m["type"] == "text" and m["dropped"]]
    assert any(reason.startswith("out of domain") for reason in dropped)


def test_planted_hot_words_are_written_as_in_a_recording(running, bundled, spoken):
    """The session beside it, in the same batches, has none."""
    hot = {"hot_words": ["diesen"], "hot_words_weight": 5}

    async def scenario():
        return await asyncio.gather(
            whole(running, spoken["es"], {**SPAN, **hot}), whole(running, spoken["es"])
        )

    planted, plain = asyncio.run(scenario())
    options = DecodingOptions(hot_words=("diesen",), hot_words_weight=5)
    expected = bundled.translate(spoken["es"], to="de", source="es", options=options, sample_rate=16_000)
    assert said(planted) == " ".join(segment.text for segment in expected.segments)
    assert "diesen" in said(planted)
    assert said(plain) == text_of(bundled, spoken["es"])


@pytest.mark.slow
def test_several_sessions_at_once_get_what_each_gets_alone(running, bundled, spoken):
    async def scenario():
        firsts = [(language, {**SPAN, "source": language}) for language in spoken]
        return await asyncio.gather(*(whole(running, spoken[language], first) for language, first in firsts))

    for language, client in zip(spoken, asyncio.run(scenario()), strict=True):
        assert said(client) == text_of(bundled, spoken[language], source=language)


def test_other_encodings_and_rates(running, bundled, spoken):
    async def scenario():
        first = {**SPAN, "encoding": "pcm_f32le", "sample_rate": 8000}
        async with talking(running, first) as client:
            await client.socket.send(spoken["es"][::2].astype("<f4").tobytes())
            await client.tell(type="stop")
            done = await client.until("done")
            assert done["audio_s"] == pytest.approx(SPOKEN_S, abs=0.01)
            return said(client)

    assert asyncio.run(scenario())


def test_a_break_loses_nothing_and_repeats_what_was_not_seen(running, bundled, spoken):
    samples, half = spoken["es"], 5 * 16_000

    async def scenario():
        async with talking(running, SPAN) as client:
            session = (await client.until("started"))["session"]
            await client.send(samples[:half])
            await client.until("text")
            first = list(client.seen)
            client.socket.transport.abort()
        wait_for(lambda: session not in running.service.sessions._connections)
        async with talking(running) as again:
            await again.tell(type="resume", session=session, after=0)
            started = await again.until("started")
            assert started["session"] == session
            reached = round(started["received_s"] * 16_000)
            assert reached == half
            await again.send(samples[reached:])
            await again.tell(type="stop")
            await again.until("done")
            repeated = [m for m in again.seen if m.get("seq") == 1]
            assert repeated == [m for m in first if m.get("seq") == 1]
            return again

    assert said(asyncio.run(scenario())) == text_of(bundled, samples)


def test_what_is_left_is_computed_while_nobody_is_there(running, bundled, spoken):
    async def scenario():
        async with talking(running, SPAN) as client:
            session = (await client.until("started"))["session"]
            await client.send(spoken["es"])
            await client.tell(type="stop")
            client.socket.transport.abort()
        live = running.service.sessions._sessions[session]
        wait_for(lambda: live.done)
        async with talking(running) as again:
            await again.tell(type="resume", session=session, after=0)
            await again.until("done")
            return again

    assert said(asyncio.run(scenario())) == text_of(bundled, spoken["es"])


def test_a_second_connection_takes_over_from_one_that_has_not_noticed_its_break(running):
    async def scenario():
        async with talking(running, SPAN) as old, talking(running) as new:
            session = (await old.until("started"))["session"]
            await new.tell(type="resume", session=session)
            await new.until("started")
            assert (await old.until("error"))["message"].endswith("taken up by another connection")
            await new.tell(type="stop")
            await new.until("done")

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_session_is_given_up_when_nobody_comes_back(small_live):
    async def scenario(running):
        async with talking(running, SPAN) as client:
            session = (await client.until("started"))["session"]
            client.socket.transport.abort()
        await asyncio.to_thread(wait_for, lambda: running.service.sessions.count == 0)
        async with talking(running) as again:
            await again.tell(type="resume", session=session)
            assert "no such session" in (await again.until("error"))["message"]
            assert await again.closed() == 1008

    with small_live(timeouts={"resume_s": 0.3}) as running:
        asyncio.run(scenario(running))
        assert not running.service.store._slots["bundled"].users


@pytest.mark.slow
def test_a_hundred_times_real_time_is_held_back_and_nothing_is_lost(small_live, bundled, spoken):
    samples = np.tile(spoken["es"], 6)  # half a minute, as fast as the socket takes them
    process = psutil.Process()

    async def scenario(running):
        sessions, most, before = running.service.sessions._sessions, 0.0, process.memory_info().rss
        async with talking(running, SPAN) as client:
            await client.until("started")
            sending = asyncio.ensure_future(client.send(samples, block_s=1.0))
            hearing = asyncio.ensure_future(client.until("done"))
            while not sending.done():
                await asyncio.sleep(0.005)
                most = max(most, *(live.waiting_s for live in sessions.values()))
            await client.tell(type="stop")
            await hearing
        kinds = [m["type"] for m in client.seen]
        assert kinds.count("pause") > 0
        # The text may be complete before a client that has stopped is told that it may go on.
        assert kinds.count("pause") - kinds.count("continue") in (0, 1)
        assert most < 4 * 4.0 + 1.0 + 0.1  # four times the limit, and a message
        assert client.seen[-1]["audio_s"] == pytest.approx(len(samples) / 16_000, abs=1e-3)
        assert process.memory_info().rss - before < 150e6
        return client

    with small_live() as running:
        client = asyncio.run(scenario(running))
    assert said(client) == text_of(bundled, samples)


@pytest.mark.slow
def test_who_sends_on_in_a_pause_keeps_the_connection(small_live, bundled, spoken, monkeypatch):
    """As most clients do: they know no pauses, and close a connection whose pings are not answered."""
    stalled, advance = threading.Event(), ResumableSession.advance
    stalled.set()
    monkeypatch.setattr(ResumableSession, "advance", lambda live: not stalled.is_set() and advance(live))

    async def scenario(running):
        async with talking(running, SPAN, ping_interval=0.5, ping_timeout=3.0) as client:
            await client.until("started")
            await client.send(spoken["es"])
            await client.until("pause")
            await client.send(spoken["es"])
            await asyncio.sleep(4.5)  # an unanswered ping would end the connection in the meantime
            stalled.clear()
            await client.tell(type="stop")
            await client.until("done")
        return client

    with small_live() as running:
        client = asyncio.run(scenario(running))
    assert said(client) == text_of(bundled, np.tile(spoken["es"], 2))


def test_who_stops_in_the_middle_of_a_word_or_goes_away_leaves_others_alone(running, bundled, spoken):
    async def vandal(number):
        try:
            async with talking(running, {**SPAN, "policy": "local-agreement"}) as client:
                await client.send(spoken["es"][: 16_000 * (1 + number % 3)])
                if number % 2:
                    client.socket.transport.abort()
                else:
                    await client.socket.send("nonsense")
                    await client.until("error")
        except ConnectionClosed:
            pass

    async def scenario():
        good = asyncio.ensure_future(whole(running, spoken["es"]))
        await asyncio.gather(*(vandal(number) for number in range(6)))
        return await good

    assert said(asyncio.run(scenario())) == text_of(bundled, spoken["es"])


def test_stopping_gives_live_sessions_what_is_left(small_live, bundled, spoken):
    async def scenario(running):
        async with talking(running, SPAN) as client, talking(running, SPAN) as other:
            await client.until("started")
            await other.until("started")
            await client.send(spoken["es"])
            await asyncio.sleep(0.3)
            running.server.should_exit = True
            with contextlib.suppress(ConnectionClosed):  # a microphone does not stop by itself
                while client.socket.close_code is None and not running.service.draining:
                    await client.send(np.zeros(1600, np.float32))
                    await asyncio.sleep(0.02)
                await client.send(np.zeros(3200, np.float32))
            await client.until("done")
            await other.until("done")
            assert await client.closed() == 1000
            return client

    with small_live() as running:
        client = asyncio.run(scenario(running))
        running.thread.join(10)
        assert not running.thread.is_alive()
    silence = np.zeros(round((client.seen[-1]["audio_s"] - SPOKEN_S) * 16_000), np.float32)
    assert said(client) == text_of(bundled, np.concatenate([spoken["es"], silence]))


def test_a_stopping_service_says_so_to_a_client_that_has_not_begun(small_live):
    async def scenario(running):
        async with connect(running.live) as socket:
            running.server.should_exit = True
            assert "stopped" in json.loads(await socket.recv())["message"]
            await asyncio.wait_for(socket.wait_closed(), 15)
            assert socket.close_code == 1013

    with small_live() as running:
        asyncio.run(scenario(running))


def test_a_session_that_is_being_opened_when_the_service_stops_is_refused(small_live):
    blocked = threading.Event()

    async def scenario(running):
        sessions = running.service.sessions
        running.service.store.loaded_worker("bundled").call(blocked.wait)
        async with talking(running, SPAN) as client:
            await asyncio.to_thread(wait_for, lambda: sessions._opening)
            running.server.should_exit = True
            await asyncio.to_thread(wait_for, lambda: sessions.closing)
            blocked.set()
            assert "stopped" in (await client.until("error"))["message"]
            assert await client.closed() == 1013
            assert not sessions._sessions

    with small_live() as running:
        asyncio.run(scenario(running))
        running.thread.join(20)
        assert not running.service.store._slots["bundled"].users


def opened(running, clock=time.monotonic):
    """A session without a connection, and the engine that steps its session."""
    engine = LiveEngine(running.service.store.loaded_worker("bundled").model.family)
    session = engine.open(["de"], "es")
    decoder = SoundDecoder("pcm_s16le", 16_000)
    live = ResumableSession(
        "x", "me", "bundled", session, decoder, lambda: None, keep_s=60, meters=Meters(), clock=clock
    )
    return engine, live


def test_messages_said_while_others_go_out_go_out_too(running, spoken):
    sent = []

    async def scenario():
        engine, live = opened(running)

        def compute():
            going_on = live.advance()
            if going_on:
                live.emit(engine.step([live.session])[0])
            return going_on

        async def send_text(text):
            live.end()
            while compute():  # everything else is said while the first message is on its way
                pass
            sent.append(json.loads(text)["type"])

        async def close(code):
            sent.append(code)

        live.add(spoken["es"])
        while not live.since(0):
            assert compute()
        socket = SimpleNamespace(send_text=send_text, close=close)
        await asyncio.wait_for(running.service.sessions._send_messages(live, 0, socket), 15)

    asyncio.run(scenario())
    assert sent[0] == "text"
    assert sent[-2:] == ["done", 1000]


def test_nothing_is_kept_of_messages_without_a_whole_sample(running):
    async def scenario():
        _, live = opened(running)
        for _ in range(100):
            live.add(live.sound.decode(b""))
        assert not live._arrivals
        assert not live._sound_waiting

    asyncio.run(scenario())


@pytest.mark.slow
def test_old_messages_are_not_kept_for_ever(running, spoken):
    now = [0.0]

    async def scenario():
        engine, live = opened(running, clock=lambda: now[0])
        for _ in range(12):
            now[0] += 20.0
            live.add(spoken["es"])
            while live.advance():
                live.emit(engine.step([live.session])[0])
            live.mark_sent(live._last_seq)
        assert len(live._messages) < live._last_seq / 2
        assert len(live._arrivals) < 5
        with pytest.raises(RefusalError, match="those kept are"):
            live.since(0)
        with pytest.raises(RefusalError, match="those kept are"):
            live.since(10**9)
        assert [n for n, _ in live.since(live._last_seq - 2)] == [live._last_seq - 1, live._last_seq]

    asyncio.run(scenario())


def test_pieces_of_any_size_are_the_same_sound(running, bundled, spoken):
    async def scenario():
        data, rng = pcm(spoken["es"]), np.random.default_rng(0)
        async with talking(running, SPAN) as client:
            await client.until("started")
            place = 0
            while place < len(data):
                size = int(rng.integers(1, 9_000))
                await client.socket.send(data[place : place + size])
                place += size
            await client.tell(type="stop")
            await client.until("done")
            return client

    assert said(asyncio.run(scenario())) == text_of(bundled, spoken["es"])


def test_measures_and_log_of_live_sessions(running, spoken, caplog):
    before = running.metric("live_delay_seconds_count")
    with caplog.at_level(logging.INFO, logger="sprachbund.serving"):
        client = asyncio.run(whole(running, spoken["es"]))
        wait_for(lambda: any("audio_s" in message for message in caplog.messages))
    line = next(json.loads(message) for message in caplog.messages if "audio_s" in message)
    assert (line["path"], line["status"], line["audio_s"]) == ("/v1/live", 1000, SPOKEN_S)
    assert client.seen[0]["session"] not in str(caplog.messages)
    assert running.metric("live_delay_seconds_count") > before
    assert running.metric("audio_seconds_total", kind="live") >= SPOKEN_S
    wait_for(lambda: running.metric("live_sessions") == running.service.sessions.count)
    assert noise(0.1).size

"""OpenAI's realtime transcription sessions: by their own client, by a browser's means, and by clients that err."""

import asyncio
import base64
import contextlib
import json
import re
from dataclasses import replace

import numpy as np
import openai
import pytest
import soxr
from openai.types.beta.realtime import TranscriptionSessionUpdatedEvent
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import SpanStream
from sprachbund.models.calibration import TurnEnds
from sprachbund.serving.live import SoundDecoder, live_options
from sprachbund.serving.realtime import ServerVad, Session, updated
from tests.serving.live_support import text_of
from tests.serving.support import noise, pcm, wait_for, wav

EVENTS = TypeAdapter(RealtimeServerEvent)
NO_TURNS = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"


def run(scenario):
    """A scenario ends within a minute, or with an error."""
    return asyncio.run(asyncio.wait_for(scenario, 60))


def base64_of(samples: np.ndarray) -> str:
    """At 16 kHz to what the protocol wants: 16 bits at 24 kHz."""
    return base64.b64encode(pcm(soxr.resample(samples, 16_000, 24_000).clip(-1, 1))).decode()


class Talk:
    """A WebSocket whose events are all checked by OpenAI's models."""

    def __init__(self, socket) -> None:
        self.socket, self.seen = socket, []

    async def send(self, kind: str, **values) -> None:
        await self.socket.send(json.dumps({"type": kind, **values}))

    async def append(self, samples: np.ndarray) -> None:
        for start in range(0, len(samples), 8_000):
            await self.send("input_audio_buffer.append", audio=base64_of(samples[start : start + 8_000]))

    async def hear(self) -> dict:
        event = json.loads(await asyncio.wait_for(self.socket.recv(), 15))
        checked(event)
        self.seen.append(event)
        return event

    async def until(self, kind: str) -> dict:
        while (event := await self.hear())["type"] != kind:
            pass
        return event

    def of(self, kind: str) -> list[dict]:
        return [event for event in self.seen if event["type"] == kind]


def checked(event: dict) -> None:
    """The event as OpenAI's own models read it, field by field."""
    if event["type"].startswith("transcription_session"):
        # The older model wants a secret that, as its documentation says, is not sent over WebSockets.
        secret = {"client_secret": {"expires_at": 0, "value": ""}}
        older = {**event, "type": "transcription_session.updated", "session": event["session"] | secret}
        if spoken := older["session"]["input_audio_transcription"]:  # and knows no models but OpenAI's
            older["session"]["input_audio_transcription"] = {**spoken, "model": "whisper-1"}
        TranscriptionSessionUpdatedEvent.model_validate(older, strict=True)
    else:
        EVENTS.validate_json(json.dumps(event), strict=True)


class talking:  # noqa: N801 - used like a function
    def __init__(self, running, query: str = "?intent=transcription", **options) -> None:
        self._connection = connect(
            f"ws://127.0.0.1:{running.port}/v1/realtime{query}", close_timeout=0.2, **options
        )

    async def __aenter__(self) -> Talk:
        return Talk(await self._connection.__aenter__())

    async def __aexit__(self, *error) -> None:
        await self._connection.__aexit__(*error)


def test_the_official_client_gets_the_text_of_the_library(running, bundled, spoken):
    """Its own `realtime.connect`, with turns by voice activity."""
    samples = np.concatenate([spoken["es"], np.zeros(24_000, np.float32)])

    async def scenario():
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="unused")
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as talk:
            assert (await talk.recv()).type == "session.created"
            await talk.session.update(
                session={
                    "type": "transcription",
                    "audio": {
                        "input": {
                            "format": {"type": "audio/pcm", "rate": 24000},
                            "transcription": {"model": "bundled", "language": "es"},
                            "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
                        }
                    },
                }
            )
            session = (await talk.recv()).session
            assert session.audio.input.transcription.language == "es"
            for start in range(0, len(samples), 8_000):
                await talk.input_audio_buffer.append(audio=base64_of(samples[start : start + 8_000]))
            texts, deltas, started, committed = [], {}, [], []
            async for event in talk:
                match event.type:
                    case "input_audio_buffer.speech_started":
                        started.append(event.item_id)
                    case "input_audio_buffer.committed":
                        committed.append((event.item_id, event.previous_item_id))
                    case "conversation.item.input_audio_transcription.delta":
                        deltas[event.item_id] = deltas.get(event.item_id, "") + event.delta
                    case "conversation.item.input_audio_transcription.completed":
                        assert event.transcript == deltas.get(event.item_id, "")
                        assert event.usage.seconds >= 0
                        texts.append(event.transcript)
                        if len(texts) == len(expected):
                            break
            items = [item for item, _ in committed]
            assert items == started
            assert [before for _, before in committed] == [None, *items[:-1]]
            return texts

    whole = bundled.transcribe(samples, source="es", sample_rate=16_000)
    expected = [segment.text for segment in whole.segments]
    assert run(scenario()) == expected


def test_without_turn_detection_a_commit_makes_the_item(running, bundled, spoken):
    """The text that comes meanwhile is part of it; the next item follows on it."""

    async def scenario():
        async with talking(running) as talk:
            await talk.send("session.update", session=NO_TURNS)
            assert (await talk.until("session.updated"))["session"]["audio"]["input"][
                "turn_detection"
            ] is None
            for language in ("es", "en"):
                await talk.append(spoken[language])
                await talk.send("input_audio_buffer.commit")
                await talk.until(COMPLETED)
            return talk

    talk = run(scenario())
    first, second = (event["item_id"] for event in talk.of("input_audio_buffer.committed"))
    assert [event["previous_item_id"] for event in talk.of("conversation.item.added")] == [None, first]
    assert not talk.of("input_audio_buffer.speech_started")
    for item in (first, second):
        (completed,) = (event for event in talk.of(COMPLETED) if event["item_id"] == item)
        deltas = [event["delta"] for event in talk.of(DELTA) if event["item_id"] == item]
        assert completed["transcript"] == "".join(deltas) != ""
        assert completed["usage"]["seconds"] == pytest.approx(6, abs=0.01)


def test_log_probabilities_are_those_of_the_words(running, spoken):
    async def scenario():
        async with talking(running) as talk:
            session = {**NO_TURNS, "include": ["item.input_audio_transcription.logprobs"]}
            await talk.send("session.update", session=session)
            await talk.append(spoken["es"])
            await talk.send("input_audio_buffer.commit")
            return await talk.until(COMPLETED), talk

    completed, talk = run(scenario())
    assert "".join(entry["token"] for entry in completed["logprobs"]) == completed["transcript"] != ""
    assert [entry for event in talk.of(DELTA) for entry in event["logprobs"]] == completed["logprobs"]
    assert all(entry["logprob"] <= 0 for entry in completed["logprobs"])


def test_the_language_wanted_is_that_of_the_output(running, bundled, spoken):
    async def scenario():
        async with talking(running) as talk:
            session = {
                "type": "transcription",
                "audio": {"input": {"transcription": {"language": "es"}}, "output": {"language": "de"}},
            }
            await talk.send("session.update", session=session)
            await talk.append(np.concatenate([spoken["es"], np.zeros(16_000, np.float32)]))
            await talk.until(COMPLETED)
            await talk.send("input_audio_buffer.commit")
            while (
                len(talk.of(COMPLETED)) < len(talk.of("input_audio_buffer.committed"))
                or len(talk.of(COMPLETED)) < 2
            ):
                await talk.hear()
            return " ".join(event["transcript"] for event in talk.of(COMPLETED) if event["transcript"])

    text = run(scenario())
    assert text
    assert set(text.lower().split()) & set(text_of_german(bundled, spoken).lower().split())


def test_keywords_are_hot_words(running, spoken):
    keywords = {"audio": {"input": {"transcription": {"language": "es", "keywords": ["marque", "llamar"]}}}}
    assert updated(Session(), keywords).start("bundled").hot_words == ["marque", "llamar"]

    async def scenario():
        async with talking(running) as talk:
            await talk.send("session.update", session={"type": "transcription", **keywords})
            session = (await talk.until("session.updated"))["session"]
            assert session["audio"]["input"]["transcription"]["keywords"] == ["marque", "llamar"]
            await talk.append(np.concatenate([spoken["es"], np.zeros(16_000, np.float32)]))
            return (await talk.until(COMPLETED))["transcript"]

    assert {"marque", "llamar"} <= set(run(scenario()).split())


@pytest.mark.parametrize(("eagerness", "most_s"), [("low", 8), (None, 4), ("medium", 4), ("high", 2)])
def test_eagerness_bounds_the_pause(eagerness: str | None, most_s: float) -> None:
    turns = {"type": "semantic_vad"} | ({} if eagerness is None else {"eagerness": eagerness})
    session = updated(Session(), {"audio": {"input": {"turn_detection": turns}}})
    options = live_options(session.start("bundled"))
    assert (options.turn_end, options.max_pause_s) == ("sentence", most_s)
    back = updated(session, {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}})
    assert back == Session()


def test_turns_end_with_sentences(small_live, bundled, spoken, monkeypatch):
    """The item of a speaker who, by the model, has not finished goes on behind the pause; other models refuse."""
    samples = np.concatenate([spoken["es"], np.zeros(5 * 16_000, np.float32)])

    async def scenario(running):
        async with talking(running) as talk:
            await talk.hear()
            for turns in ({"type": "semantic_vad", "eagerness": "high"}, {"type": "server_vad"}):
                sound = {"transcription": {"language": "es"}, "turn_detection": turns}
                await talk.send(
                    "session.update", session={"type": "transcription", "audio": {"input": sound}}
                )
                answer = await talk.hear()
                if answer["type"] == "error":
                    return answer["error"]["message"]
                assert answer["session"]["audio"]["input"]["turn_detection"]["type"] == turns["type"]
                talk.seen.clear()
                await talk.append(samples)
                await talk.until(COMPLETED)
                start_ms = talk.of("input_audio_buffer.speech_started")[0]["audio_start_ms"]
                lengths_ms.append(talk.of("input_audio_buffer.speech_stopped")[0]["audio_end_ms"] - start_ms)
            return None

    lengths_ms: list[int] = []
    family, own = bundled.family, bundled.family.calibration
    width = len(own.turns.whole)
    never = TurnEnds(bias=-50, whole=[0.0] * width, last=[0.0] * width)
    with small_live() as running:
        monkeypatch.setattr(family, "calibration", replace(own, turns=never))
        assert run(scenario(running)) is None
        assert lengths_ms[0] > lengths_ms[1] + 1000
        monkeypatch.setattr(family, "calibration", replace(own, turns=None))
        assert run(scenario(running)).startswith(
            "audio.input.turn_detection.type is 'semantic_vad', and the model "
        )


def text_of_german(bundled, spoken) -> str:
    return text_of(bundled, spoken["es"])


def test_the_older_form_of_the_protocol(running, spoken):
    """Its update, its session and its item event; the sound is mu-law of a telephone."""

    async def scenario():
        headers = {"OpenAI-Beta": "realtime=v1"}
        async with talking(running, "", additional_headers=headers) as talk:
            assert (await talk.hear())["type"] == "transcription_session.created"
            session = {
                "input_audio_format": "g711_ulaw",
                "input_audio_transcription": {"model": "bundled", "language": "es"},
                "turn_detection": None,
            }
            await talk.send("transcription_session.update", session=session)
            answer = await talk.until("transcription_session.updated")
            assert answer["session"]["input_audio_format"] == "g711_ulaw"
            sound = wav(soxr.resample(spoken["es"], 16_000, 8_000), subtype="ULAW", format="RAW")
            await talk.send("input_audio_buffer.append", audio=base64.b64encode(sound).decode())
            await talk.send("input_audio_buffer.commit")
            completed = await talk.until(COMPLETED)
            assert completed["usage"]["seconds"] == pytest.approx(6, abs=0.01)
            assert len(talk.of("conversation.item.created")) == 1
            return completed["transcript"]

    assert run(scenario())


@pytest.mark.parametrize("turns", [True, False])
def test_speech_that_is_dropped_is_said_in_warnings(running, spoken, turns):
    """Backwards, nobody understands it; items that have their text have no warnings. Times are those of the session."""

    async def scenario():
        async with talking(running) as talk:
            if not turns:
                await talk.send("session.update", session=NO_TURNS)
            for samples in (spoken["es"], spoken["es"][::-1]):
                await talk.append(samples)
                await talk.send("input_audio_buffer.commit")
                await talk.until(COMPLETED)
            while not any("warnings" in event for event in talk.of(COMPLETED)):
                await talk.hear()
            return talk.of(COMPLETED)

    first, *others = run(scenario())
    assert first["transcript"]
    assert "warnings" not in first
    warnings = [line for event in others for line in event.get("warnings", [])]
    said = re.match(r"sound from (\d+\.\d) to (\d+\.\d) s has no text \(out of domain", warnings[0])
    assert said
    assert 5.9 < float(said[1]) < float(said[2]) < 12.2


@pytest.mark.parametrize("end", ["input_audio_buffer.commit", "session.update"])
def test_a_warning_behind_the_last_item_is_sent_in_an_empty_one(running, spoken, end):
    """The speech has ended before the session does."""
    samples = np.concatenate([spoken["es"][::-1], np.zeros(32_000, np.float32)])
    stretches = len(SpanStream(SpanOptions()).push(samples))

    async def scenario():
        async with talking(running) as talk:
            await talk.append(samples)
            while len(talk.of(COMPLETED)) < stretches:
                await talk.hear()
            await talk.send(end, **({"session": NO_TURNS} if end == "session.update" else {}))
            await talk.until(COMPLETED)
            return talk

    talk = run(scenario())
    *items, last = talk.of(COMPLETED)
    assert len(items) == stretches > 0
    assert all(line.startswith("sound from") for item in items for line in item.get("warnings", ()))
    assert last["transcript"] == ""
    (warning,) = last["warnings"]
    assert "they are not of the kind that this model knows" in warning
    assert last["item_id"] == talk.of("input_audio_buffer.committed")[-1]["item_id"]


def test_the_end_of_a_stretch_has_the_probability_that_its_text_is_wrong(running, spoken):
    async def scenario():
        async with talking(running) as talk:
            for samples in (spoken["es"], spoken["es"][::-1]):
                await talk.append(samples)
                await talk.send("input_audio_buffer.commit")
                await talk.until(COMPLETED)
            await talk.send("session.update", session=NO_TURNS)
            await talk.until("session.updated")
            await talk.append(spoken["es"])
            await talk.send("input_audio_buffer.commit")
            return talk, await talk.until(COMPLETED)

    talk, committed = run(scenario())
    right, *others = (event["out_of_domain"] for event in talk.of(COMPLETED) if event["languages"])
    assert 0 <= right < 0.5 < max(others) <= 1
    assert "out_of_domain" not in committed  # it may hold several stretches


def test_cleared_sound_is_in_no_item(running, spoken):
    async def scenario():
        async with talking(running) as talk:
            await talk.send("session.update", session=NO_TURNS)
            await talk.append(spoken["es"])
            await talk.send("input_audio_buffer.clear")
            await talk.until("input_audio_buffer.cleared")
            await talk.send("input_audio_buffer.commit", event_id="mine")
            error = (await talk.until("error"))["error"]
            assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")
            await talk.append(np.zeros(16_000, np.float32))
            await talk.send("input_audio_buffer.commit")
            assert (await talk.until(COMPLETED))["transcript"] == ""

    run(scenario())


TURNS, HEARD = "session.audio.input.turn_detection", "session.audio.input.transcription"


def _heard(**values) -> dict:
    return {"audio": {"input": {"transcription": values}}}


def _turns(**values) -> dict:
    return {"audio": {"input": {"turn_detection": values}}}


@pytest.mark.parametrize(
    ("event", "code", "param", "says"),
    [
        ("hello", "invalid_json", None, "no JSON object"),
        ("[1]", "invalid_json", None, "no JSON object"),
        ("[" * 5000, "invalid_json", None, "no JSON object"),
        ('{"type": "response.create"}', "invalid_event_type", "type", "response.create"),
        ('{"type": "input_audio_buffer.append", "audio": "some words"}', "invalid_value", "audio", "no base64"),
        ('{"type": "input_audio_buffer.append", "audio": 1}', "invalid_value", "audio", "string"),
        ('{"type": "input_audio_buffer.commit", "colour": 1}', "invalid_value", "colour", "colour"),
        ('{"type": "session.update", "session": null}', "invalid_value", "session", "session is None; it should be"),
        ({"type": "realtime"}, "invalid_value", "session.type", "'transcription'"),
        ({"colour": "red"}, "invalid_value", "session.colour", "colour"),
        ({"audio": {"input": {"noise_reduction": {"type": "near_field"}}}}, "invalid_value", None, "is not offered"),
        (_turns(type="semantic_vad", eagerness="very"), "invalid_value", f"{TURNS}.eagerness", "is 'very'; it should"),
        (_turns(type="semantic_vad", threshold=0.5), "invalid_value", f"{TURNS}.threshold", "threshold"),
        (_turns(type="none"), "invalid_value", TURNS, "'server_vad'"),
        (_turns(threshold=0), "invalid_value", f"{TURNS}.threshold", f"{TURNS}.threshold is 0; it should be gr"),
        ({"audio": {"input": {"turn_detection": "server_vad"}}}, "invalid_value", TURNS, "should be an object"),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000}}}}, "invalid_value", None, "24000 Hz"),
        ({"audio": {"input": {"transcription": {"model": "whisper-1"}}}}, "model_not_found", "model", "bundled"),
        ({"audio": {"input": {"transcription": {"model": "/etc"}}}}, "model_not_found", "model", "bundled"),
        (_heard(language="tlh"), "unknown_language", f"{HEARD}.language", "'tlh'"),
        (_heard(languages=["xx"]), "unknown_language", f"{HEARD}.languages", "'xx'"),
        ({"audio": {"output": {"language": "xx"}}}, "unknown_language", "session.audio.output.language", "'xx'"),
        ({"audio": {"input": {"transcription": {"prompt": "Ada"}}}}, None, None, "no room for a prompt"),
        ({"include": ["tokens"]}, "invalid_value", None, "logprobs"),
        ({"audio": {"input": {"transcription": {"keywords": [""]}}}}, "invalid_value", None, "keywords.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_and_the_session_goes_on(running, event, code, param, says):
    async def scenario():
        async with talking(running) as talk:
            await talk.hear()
            if isinstance(event, str):
                await talk.socket.send(event)
            else:
                await talk.send("session.update", session={"type": "transcription", **event})
            error = (await talk.hear())["error"]
            assert says in error["message"]
            assert "\n" not in error["message"]
            assert error["code"] == code
            if param:
                assert error["param"] == param
            await talk.append(np.zeros(16_000, np.float32))
            await talk.send("input_audio_buffer.commit")
            assert (await talk.until(COMPLETED))["transcript"] == ""

    run(scenario())


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?model=whisper-1", "choose from bundled"),
        ("?intent=conversation", "only transcription"),
        ("?call_id=3", "call_id"),
        ("/translations?model=gpt-realtime-translate", "open /v1/realtime and set audio.output.language"),
    ],
)
def test_addresses_that_are_none(running, query, says):
    async def scenario():
        async with talking(running, query) as talk:
            assert says in (await talk.hear())["error"]["message"]
            await asyncio.wait_for(talk.socket.wait_closed(), 15)
            assert says in talk.socket.close_reason
            return talk.socket.close_code

    assert run(scenario()) == 1008


def test_a_client_that_only_errs_is_closed_and_others_are_not(running):
    async def scenario():
        async with talking(running) as bad, talking(running) as good:
            for _ in range(40):
                await bad.socket.send(b"\x00")
            with contextlib.suppress(ConnectionClosed):
                async for message in bad.socket:
                    assert json.loads(message)["type"] in ("session.created", "error")
            await good.append(np.zeros(16_000, np.float32))
            await good.send("input_audio_buffer.commit")
            await good.until(COMPLETED)
            return bad.socket.close_code

    before = running.service.sessions.count  # of other tests, whose sessions may still be taken up
    assert run(scenario()) == 1008
    wait_for(lambda: running.service.sessions.count <= before)


def test_a_browser_sends_its_key_as_a_subprotocol(small_live, tmp_path):
    (tmp_path / "keys").write_text("first-long-enough-key\n")

    async def scenario(running):
        for key, kind in (("first-long-enough-key", "session.created"), ("another-long-enough", "error")):
            offered = ["realtime", f"openai-insecure-api-key.{key}"]
            async with talking(running, subprotocols=offered) as talk:
                assert talk.socket.subprotocol == "realtime"
                event = await talk.hear()
                assert event["type"] == kind
        assert event["error"]["type"] == "authentication_error"
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="first-long-enough-key")
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as talk:
            assert (await talk.recv()).type == "session.created"

    with small_live(key_file=tmp_path / "keys") as running:
        run(scenario(running))


def test_it_counts_as_a_live_session(small_live):
    """With one more than there is room for, the error names the limit; a turn that ends makes room."""

    async def scenario(running):
        async with (
            talking(running) as a,
            talking(running) as b,
            talking(running) as c,
            talking(running) as late,
        ):
            for talk in (a, b, c):
                await talk.append(np.zeros(8_000, np.float32))
                await talk.send("session.update", session=NO_TURNS)
                await talk.until("session.updated")
            await late.append(np.zeros(8_000, np.float32))
            assert (await late.until("error"))["error"]["type"] == "rate_limit_error"
            await a.append(np.zeros(8_000, np.float32))
            await a.send("input_audio_buffer.commit")
            await a.until(COMPLETED)
            await late.append(np.zeros(8_000, np.float32))
            await late.send("input_audio_buffer.commit")
            await late.until(COMPLETED)

    with small_live() as running:
        run(scenario(running))


def test_a_stopping_service_sends_the_text_that_is_left(small_live, spoken):
    async def scenario(running):
        async with talking(running) as talk:
            await talk.send("session.update", session=NO_TURNS)
            await talk.append(spoken["es"])
            live = lambda: next(iter(running.service.sessions._sessions.values()), None)  # noqa: E731
            await asyncio.to_thread(wait_for, lambda: live() is not None and live().sound.received_s > 5.9)
            running.server.should_exit = True
            assert (await talk.until(COMPLETED))["transcript"]
            assert "stopped" in (await talk.until("error"))["error"]["message"]

    with small_live() as running:
        run(scenario(running))


@pytest.mark.parametrize("begun", [False, True])
def test_a_stopping_service_says_so_to_a_client_that_is_silent(small_live, begun):
    async def scenario(running):
        async with talking(running) as talk:
            await talk.until("session.created")
            if begun:
                await talk.send("session.update", session=NO_TURNS)
                await talk.until("session.updated")
                await talk.send("input_audio_buffer.clear")
                await talk.until("input_audio_buffer.cleared")
            running.server.should_exit = True
            assert "stopped" in (await talk.until("error"))["error"]["message"]
            await asyncio.wait_for(talk.socket.wait_closed(), 15)
            assert talk.socket.close_code == 1013
            assert talk.socket.close_reason.startswith("the service is being stopped")

    with small_live() as running:
        run(scenario(running))


def test_a_stopping_service_says_so_even_if_it_is_slow(small_live, spoken):
    async def scenario(running):
        sessions = running.service.sessions
        drop = sessions.give_up

        async def drop_slowly(name):
            await asyncio.sleep(1)
            await drop(name)

        sessions.give_up = drop_slowly
        async with talking(running) as talk:
            await talk.send("session.update", session=NO_TURNS)
            await talk.append(spoken["es"])
            await asyncio.to_thread(
                wait_for, lambda: sum(s.sound.received_s for s in [*sessions._sessions.values()]) > 5.9
            )
            running.server.should_exit = True
            assert "stopped" in (await talk.until("error"))["error"]["message"]

    with small_live() as running:
        run(scenario(running))


def test_a_stopping_service_sends_the_text_to_a_client_that_goes_on_speaking(small_live, spoken):
    async def scenario(running):
        async def go_on(talk):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await talk.append(spoken["es"][:800])
                    await asyncio.sleep(0.02)

        sessions = running.service.sessions
        async with talking(running) as talk:
            await talk.send("session.update", session=NO_TURNS)
            await talk.append(spoken["es"])
            await asyncio.to_thread(
                wait_for, lambda: sum(s.sound.received_s for s in [*sessions._sessions.values()]) > 5.9
            )
            speaking = asyncio.ensure_future(go_on(talk))
            running.server.should_exit = True
            assert (await talk.until(COMPLETED))["transcript"]
            assert "stopped" in (await talk.until("error"))["error"]["message"]
            speaking.cancel()

    with small_live() as running:
        run(scenario(running))


def test_a_client_that_vanishes_leaves_no_session(running):
    async def scenario():
        async with talking(running) as talk:
            await talk.append(noise(2.0))
            await talk.hear()
            talk.socket.transport.abort()

    before = running.service.sessions.count
    run(scenario())
    wait_for(lambda: running.service.sessions.count <= before)


def test_silence_is_given_up(small_live):
    async def scenario(running):
        async with talking(running) as talk:
            await talk.hear()
            assert (await talk.hear())["error"]["code"] == "silent"

    with small_live(timeouts={"live_silent_s": 0.3}) as running:
        run(scenario(running))


def test_events_without_sound_are_silence_too(small_live):
    async def talk_without_sound(talk):
        for _ in range(100):
            await talk.send("input_audio_buffer.append", audio="")
            await asyncio.sleep(0.1)

    async def scenario(running):
        async with talking(running) as talk:
            await talk.hear()
            with pytest.raises(ConnectionClosed):
                await talk_without_sound(talk)
            assert (await talk.hear())["error"]["code"] == "silent"

    with small_live(timeouts={"live_silent_s": 0.5}) as running:
        run(scenario(running))


def test_an_event_with_half_a_character_is_refused_and_the_session_goes_on(running):
    async def scenario():
        async with talking(running) as talk:
            await talk.hear()
            await talk.send("input_audio_buffer.clear", event_id="\ud800")
            error = (await talk.hear())["error"]
            assert (error["code"], error["event_id"]) == ("invalid_json", None)
            await talk.send("input_audio_buffer.clear")
            await talk.until("input_audio_buffer.cleared")

    run(scenario())


def test_padding_may_not_reach_into_the_next_stretch():
    """OpenAI's defaults would; the session says what holds, and a longer pause gives the padding back."""
    vad = ServerVad(prefix_padding_ms=300, silence_duration_ms=500)
    assert (vad.used.prefix_padding_ms, vad.spans.padding_s, vad.spans.min_silence_s) == (250, 0.25, 0.5)
    session = Session()
    for pause_ms, padding_ms in ((100, 50), (800, 200)):
        session = updated(
            session, {"audio": {"input": {"turn_detection": {"silence_duration_ms": pause_ms}}}}
        )
        assert session.audio.input.turn_detection.used.prefix_padding_ms == padding_ms
    assert ServerVad().spans == SpanOptions()
    off = updated(Session(), {"audio": {"input": {"turn_detection": None}}})
    assert off.audio.input.turn_detection is None
    assert updated(off, {"audio": {"output": {"language": "de"}}}).audio.input.turn_detection is None


@pytest.mark.parametrize(("encoding", "subtype"), [("pcm_mulaw", "ULAW"), ("pcm_alaw", "ALAW")])
def test_g711_is_that_of_libsndfile(encoding, subtype, tmp_path):
    import soundfile

    every = np.arange(256, dtype=np.uint8).tobytes()
    path = tmp_path / "codes.raw"
    path.write_bytes(every)
    expected, _ = soundfile.read(
        path, dtype="float32", samplerate=8000, channels=1, format="RAW", subtype=subtype
    )
    result = SoundDecoder(encoding, 16_000).decode(every)
    np.testing.assert_array_equal(result, expected)

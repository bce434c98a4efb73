"""Limits, bad input and order of business over HTTP, with a small model and small limits."""

import asyncio
import json
import logging
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from starlette.requests import Request

from sprachbund.decoding.texts import translate_texts
from sprachbund.serving.schemas import RefusalError, TranscriptionForm
from sprachbund.serving.settings import Limits, Settings, Timeouts
from sprachbund.serving.uploads import read_form
from sprachbund.serving.worker import ModelWorker
from tests.documented import documented_fields
from tests.serving.support import noise, read_text, serving, tiny_model, wait_for, wav

KEY = "correct-horse-battery"
AUDIO = wav(noise(1.0))
LIMITS = Limits(max_upload_bytes=400_000, max_duration_s=5.0, max_working=2, max_waiting=6, max_share=1.0)
FIELDS = {"model": "tiny", "language": "en"}


@pytest.fixture(scope="module")
def small():
    settings = Settings(
        port=0,
        models=("tiny",),
        limits=LIMITS,
        timeouts=Timeouts(header_s=1.0, upload_grace_s=1.0, upload_bytes_per_s=1e6),
    )
    with serving(settings, loader=lambda name: tiny_model()) as running:
        yield running


def post(running, file=AUDIO, fields=FIELDS, path="v1/audio/transcriptions", name="a.wav", **options):
    return httpx.post(
        f"{running.url}/{path}", files={"file": (name, file)}, data=fields, timeout=20, **options
    )


def reason(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


def test_a_good_request_passes(small):
    assert post(small).status_code == 200


def test_bytes_that_are_not_audio(small):
    rng = np.random.default_rng(0)
    for file in (rng.bytes(5000), b"Dear service,\n" * 50, b"\x00" * 3000):
        assert "is not audio that can be decoded" in reason(post(small, file), 400)
    assert "is empty" in reason(post(small, b""), 400)


@pytest.mark.parametrize("container", ["FLAC", "WAV", "OGG"])
def test_half_a_file_is_refused_unless_what_is_there_is_wanted(small, container):
    whole = wav(noise(3.0), format=container)
    half = whole[: len(whole) // 2]
    assert "allow_damaged=true" in reason(post(small, half), 422)
    fields = {**FIELDS, "response_format": "verbose_json", "allow_damaged": "true"}
    answer = post(small, half, fields)
    assert answer.status_code == 200
    assert any("cut off" in w or "damaged" in w for w in answer.json()["warnings"])
    streamed = post(small, half, {**FIELDS, "stream": "true"})
    assert '"code": "damaged_audio"' in streamed.text
    assert reason(post(small, whole[:20]), 400)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "C:\\windows\\win.ini", "a\r\nX-Evil: 1.wav", "é" * 300, ".."]
)
def test_names_of_files_are_only_names(small, name):
    assert post(small, name=name).status_code == 200
    message = reason(post(small, b"nonsense" * 100, name=name), 400)
    assert "/etc" not in message
    assert "\n" not in message
    assert len(message) < 400


def test_a_file_that_is_too_big_is_refused_before_it_is_read(small):
    big = b"\x00" * (LIMITS.max_upload_bytes + 1)
    assert f"{LIMITS.max_upload_bytes} are the most" in reason(post(small, big), 413)


@pytest.mark.parametrize("kind", ["multipart/form-data", "Multipart/Form-Data"])
def test_a_file_that_does_not_say_how_big_it_is_is_stopped_at_the_limit(small, kind):
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield b"\x00" * 100_000

    answer = httpx.post(
        f"{small.url}/v1/audio/transcriptions",
        content=endless(),
        headers={"content-type": f"{kind}; boundary=x"},
        timeout=20,
    )
    assert f"{LIMITS.max_upload_bytes} are the most" in reason(answer, 413)


def test_audio_that_is_too_long_is_refused_with_its_length(small):
    assert "lasts 8 s, and 5 s are the most" in reason(post(small, wav(noise(8.0))), 413)


def test_a_small_file_that_decodes_to_hours_is_stopped_while_it_is_decoded(small):
    hours = wav(np.zeros(16_000 * 3600, np.float32), format="FLAC")
    assert len(hours) < LIMITS.max_upload_bytes
    streamed = hours[:18] + struct.pack(">Q", 0x0F42F000000000 << 8)[:8] + hours[26:]
    for file in (hours, _without_length(hours)):
        read = small.metric("audio_seconds_total", kind="file")
        assert "5 s are the most" in reason(post(small, file), 413)
        assert small.metric("audio_seconds_total", kind="file") - read <= 60
    assert streamed


def _without_length(flac: bytes) -> bytes:
    """A FLAC file whose header leaves open how long it is: 36 bits from the 108th of STREAMINFO."""
    info = bytearray(flac)
    start = 4 + 4 + 13
    info[start] &= 0xF0
    info[start + 1 : start + 5] = bytes(4)
    return bytes(info)


def test_a_field_too_long_or_twice(small):
    url = f"{small.url}/v1/audio/transcriptions"
    two = [("file", ("a.wav", AUDIO)), ("file", ("b.wav", AUDIO))]
    assert "Too many files" in reason(httpx.post(url, files=two, data=FIELDS), 400)
    assert reason(post(small, fields={**FIELDS, "prompt": "a" * 70_000}), 400)
    assert "twice" in reason(post(small, fields={"model": ["tiny", "tiny"]}), 400)


def form_of(more):
    """The form of a request, read without a service."""
    sent = httpx.Request("POST", "http://x", files={"file": ("a.wav", AUDIO)}, data={**FIELDS, **more})
    headers = [(name.lower(), value) for name, value in sent.headers.raw]
    body = sent.read()

    async def receive():
        return {"type": "http.request", "body": body}

    async def read():
        request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
        async with read_form(request, TranscriptionForm) as (form, _):
            return form

    return asyncio.run(read())


def test_as_many_hot_words_are_read_as_there_may_be():
    words = [f"word {number}" for number in range(1000)]
    assert form_of({"hot_words[]": words}).hot_words == words


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"hot_words[]": ["word"] * 1001}, "at most 1000 items"),
        ({"f[]": ["x"] * 1200}, "Too many fields"),
        ({"f[]": ["x" * 60_000] * 20}, "Fields exceeded"),
    ],
)
def test_fields_are_bounded_together(more, says):
    with pytest.raises(RefusalError, match=says) as refused:
        form_of(more)
    assert refused.value.status == 400


def test_a_field_that_cannot_be_is_told_with_its_value(small):
    assert reason(post(small, fields={"language": "en"}), 400) == "the field 'model' is missing; send it"
    said = reason(post(small, fields={**FIELDS, "response_format": "docx"}), 400)
    assert said == ("response_format is 'docx'; it should be 'json', 'verbose_json', 'text', 'srt' or 'vtt'")
    said = reason(post(small, fields={**FIELDS, "temperature": "warm"}), 400)
    assert said == "temperature is 'warm'; it should be a valid number"
    assert len(reason(post(small, fields={**FIELDS, "temperature": "9" * 5000}), 400)) < 200


def test_fields_left_empty_are_as_not_sent(small):
    names = [
        "language", "languages[]", "prompt", "hot_words[]", "response_format", "temperature", "digits", "stream",
        "timestamp_granularities[]", "include[]", "chunking_strategy",
    ]  # fmt: skip
    empty = {"model": "tiny", "target_language": "de", **dict.fromkeys(names, "")}
    answer = post(small, fields=empty, path="v1/audio/translations")
    assert answer.status_code == 200, answer.text
    without = {"model": "tiny", "target_language": "de"}
    assert answer.json() == post(small, fields=without, path="v1/audio/translations").json()
    assert reason(post(small, fields={"model": ""}), 400) == "the field 'model' is missing; send it"
    assert "the field 'colour' is not known here" in reason(post(small, fields={**FIELDS, "colour": ""}), 400)


@pytest.mark.parametrize(
    ("field", "value"),
    [("language", "xx"), ("languages[]", "xx"), ("target_language", "xx"), ("language", "auto")],
)
def test_a_language_that_no_model_knows_is_refused_with_its_field(small, field, value):
    fields = {"model": "tiny", "target_language": "de", field: value}
    answer = post(small, fields=fields, path="v1/audio/translations")
    said = reason(answer, 400)
    assert repr(value) in said
    assert ("leave it out, and the language spoken is identified" in said) == (value == "auto")
    assert answer.json()["error"]["param"] == field


def test_bodies_of_another_kind(small):
    url = f"{small.url}/v1/audio/transcriptions"
    assert "send multipart/form-data" in reason(httpx.post(url, json={"model": "tiny"}), 415)
    assert "there is no file" in reason(httpx.post(url, files={"model": (None, "tiny")}), 400)
    text = {"content-type": "multipart/form-data; boundary=x"}
    assert reason(httpx.post(url, content=b"garbage", headers=text), 400)
    assert reason(httpx.post(url, content=b"garbage", headers={"content-type": "multipart/form-data"}), 400)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 2000])
def test_a_body_that_comes_byte_by_byte_is_given_up(small, size):
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        "Content-Length: 100000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as sock:
        part = '--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        sock.sendall((head + part).encode() + b"-" * size)
        began, answer = time.monotonic(), b""
        sock.settimeout(0.2)
        while time.monotonic() - began < 60 and b"slow" not in answer:
            try:
                sock.sendall(b"-")
                answer += sock.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                break
        assert b"too slow" in answer
        assert time.monotonic() - began > 0.8


@pytest.mark.slow
def test_a_head_that_comes_byte_by_byte_is_given_up(small):
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as sock:
        began = time.monotonic()
        # The system may notice at any of these.
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012
            while time.monotonic() - began < 60:
                sock.sendall(b"G")
                time.sleep(0.2)
    assert 0.8 < time.monotonic() - began < 30
    assert httpx.get(f"{small.url}/health").status_code == 200


def test_who_goes_away_in_the_middle_leaves_nothing_behind(small):
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        "Content-Length: 100000\r\n\r\n"
    )
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", small.port)) as sock:
            sock.sendall(head.encode() + b"-" * 500)
    wait_for(lambda: small.service.requests == 0 and small.service.limiter.taken == 0)
    assert post(small).status_code == 200


def test_who_goes_away_in_the_queue_leaves_it():
    settings = Settings(port=0, models=("tiny",), limits=Limits(max_working=1, max_waiting=1, max_share=1.0))
    with serving(settings, loader=lambda name: tiny_model()) as running, ThreadPoolExecutor(1) as threads:
        limiter, blocked = running.service.limiter, threading.Event()
        running.service.store.loaded_worker("tiny").call(blocked.wait)
        at_work = threads.submit(post, running)
        wait_for(lambda: limiter.taken == 1)
        request = httpx.Request(
            "POST", f"{running.url}/v1/audio/transcriptions", files={"file": AUDIO}, data=FIELDS
        )
        head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
        head += "".join(f"{name}: {request.headers[name]}\r\n" for name in ("content-type", "content-length"))
        with socket.create_connection(("127.0.0.1", running.port)) as sock:
            sock.sendall(head.encode() + b"\r\n" + request.read())
            wait_for(lambda: limiter.taken == 2)
        wait_for(lambda: limiter.taken == 1 and running.service.requests == 1)
        assert not at_work.done()
        blocked.set()
        assert at_work.result().status_code == 200


def test_who_goes_away_has_no_more_texts_translated():
    """Of three parts the first is at work; the others are never begun, and what it holds is let go."""
    settings = Settings(port=0, models=("tiny",))
    with serving(settings, loader=lambda name: tiny_model()) as running:
        worker, blocked = running.service.store.loaded_worker("tiny"), threading.Event()
        read_text(worker.model.family)
        worker.call(blocked.wait)
        wait_for(lambda: not worker._calls)
        body = {"model": "tiny", "input": ["one"] * 48, "target_language": "de", "source_language": "en"}
        content = json.dumps(body).encode()
        head = "POST /v1/text/translations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", running.port)) as sock:
            sock.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            wait_for(lambda: worker._calls)
        wait_for(lambda: running.service.limiter.taken == 0 and running.service.requests == 0)
        ((_, begun),) = worker._calls
        assert begun.cancelled()
        blocked.set()
        assert (
            httpx.post(f"{running.url}/v1/text/translations", json=body | {"input": "two"}).status_code == 200
        )


def test_more_than_there_is_room_for_is_told_to_come_again(small):
    blocked = threading.Event()
    worker = small.service.store.loaded_worker("tiny")
    worker.call(blocked.wait)
    room = LIMITS.max_working + LIMITS.max_waiting
    with ThreadPoolExecutor(room + 4) as threads:
        answers = [threads.submit(post, small) for _ in range(room + 4)]
        wait_for(lambda: sum(answer.done() for answer in answers) == 4)
        blocked.set()
        statuses = sorted(answer.result().status_code for answer in answers)
    assert statuses == [200] * room + [429] * 4
    refused = next(a.result() for a in answers if a.result().status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert "room" in reason(refused, 429)


def test_requests_have_an_id_which_is_in_the_answer_and_in_the_log(small, caplog):
    with caplog.at_level(logging.INFO, logger="sprachbund.serving"):
        answer = httpx.get(f"{small.url}/v1/models", headers={"x-request-id": "mine-1"})
        other = httpx.get(f"{small.url}/v1/models", headers={"x-request-id": 'bad "id" {}'})
        # the line of a request that an earlier test made may come among them
        wait_for(lambda: any("mine-1" in message for message in caplog.messages))
    assert answer.headers["x-request-id"] == "mine-1"
    assert len(other.headers["x-request-id"]) == 32
    line = json.loads(next(message for message in caplog.messages if "mine-1" in message))
    assert (line["request"], line["status"], line["path"]) == ("mine-1", 200, "/v1/models")


def test_unknown_places_and_methods_have_the_same_kind_of_body(small):
    assert "nothing at /v2" in reason(httpx.get(f"{small.url}/v2"), 404)
    answer = httpx.delete(f"{small.url}/v1/models")
    assert "/v1/models does not take DELETE; send GET" in reason(answer, 405)
    assert answer.headers["allow"] == "GET"


def test_measures_are_counted(small):
    before = small.metric("requests_total", route="/v1/audio/transcriptions", status="200")
    post(small)
    wait_for(lambda: small.service.requests == 0)
    text = httpx.get(f"{small.url}/metrics").text
    assert f'sprachbund_requests_total{{route="/v1/audio/transcriptions",status="200"}} {before + 1}' in text
    for name in (
        "first_text_seconds",
        "live_sessions",
        "live_delay_seconds",
        "waiting_spans",
        "audio_seconds",
    ):
        assert f"sprachbund_{name}" in text
    assert "process_resident_memory_bytes" in text


def test_languages_of_a_model(small):
    actual = httpx.get(f"{small.url}/v1/languages", params={"model": "tiny"}).json()
    assert {"tag": "de", "name": "German"} in actual["sources"]
    assert ["en", "fr"] in actual["pairs"]
    assert actual["policies"] == ["local-agreement", "alignatt", "wait-k", "retranslation", "span"]
    assert httpx.get(f"{small.url}/v1/languages").json() == actual
    assert reason(httpx.get(f"{small.url}/v1/languages", params={"model": "none"}), 404)


def test_every_field_of_models_and_languages_is_documented(small):
    models = httpx.get(f"{small.url}/v1/models").json()["data"]
    languages = httpx.get(f"{small.url}/v1/languages").json()
    known = documented_fields("serve.md", "route")
    assert known == {"/v1/models": models[0].keys(), "/v1/languages": languages.keys()}


def test_texts_are_translated_by_models_that_can(small):
    body = {"model": "tiny", "input": ["one", "two"], "target_language": "German"}
    url = f"{small.url}/v1/text/translations"
    assert "cannot translate text; none of those loaded can" in reason(httpx.post(url, json=body), 501)
    family = small.service.store.loaded_worker("tiny").model.family
    before = family.capabilities
    read_text(family)
    try:
        answer = httpx.post(url, json=body).json()
        wanted = [row[0].text for row in translate_texts(family, ["one", "two"], ["de"])]
        assert wanted[0]
        assert answer["data"] == [{"index": 0, "text": wanted[0]}, {"index": 1, "text": wanted[1]}]
        assert httpx.post(url, json={**body, "input": "two"}).json()["data"][0]["text"] == wanted[1]
        for field in ("target_language", "source_language"):
            answer = httpx.post(url, json={**body, field: "xx"})
            assert "'xx'" in reason(answer, 400)
            assert answer.json()["error"]["param"] == field
        assert reason(httpx.post(url, json={**body, "input": []}), 400)
    finally:
        family.capabilities = before
    assert reason(httpx.post(url, content=b"[" * 100_000, headers={"content-type": "application/json"}), 400)
    assert "send application/json" in reason(httpx.post(url, content=b"{}"), 415)
    assert "are the most" in reason(httpx.post(url, json={**body, "input": "x" * 3_000_000}), 413)


def test_keys_and_rates(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEY)
    settings = Settings(
        port=0, models=("tiny",), key_file=path, limits=Limits(requests_per_minute=10), preload=False
    )
    with serving(settings, loader=lambda name: tiny_model()) as running:
        url = f"{running.url}/v1/models"
        assert "a key is needed" in reason(httpx.get(url), 401)
        assert "not known here" in reason(httpx.get(url, headers={"authorization": "Bearer wrong"}), 401)
        assert "a key is needed" in reason(post(running), 401)
        assert reason(httpx.get(f"{running.url}/metrics"), 401)
        for open_place in ("health", "ready"):
            assert httpx.get(f"{running.url}/{open_place}").status_code == 200
        mine = {"authorization": f"Bearer {KEY}"}
        statuses = [httpx.get(url, headers=mine).status_code for _ in range(12)]
        assert statuses == [200] * 10 + [429] * 2
        assert int(httpx.get(url, headers=mine).headers["retry-after"]) > 0


@pytest.mark.slow
def test_keys_are_read_again_when_their_file_changes(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text(KEY)
    settings = Settings(port=0, models=("tiny",), key_file=path, preload=False)
    with serving(settings, loader=lambda name: tiny_model()) as running:

        def status(key):
            return httpx.get(
                f"{running.url}/v1/models", headers={"authorization": f"Bearer {key}"}
            ).status_code

        assert status(KEY) == 200
        path.write_text(f"{KEY[::-1]}\n")
        os.utime(path, ns=(1, 1))  # whatever the steps of the file system's clock
        wait_for(lambda: status(KEY[::-1]) == 200)
        assert status(KEY) == 401
        path.write_text("short\n")
        os.utime(path, ns=(2, 2))
        wait_for(lambda: "the keys of before stay" in caplog.text)
        path.unlink()
        assert status(KEY[::-1]) == 200


@pytest.mark.parametrize("name", ["key", "api_key", "API-Key", "token", "access_token"])
def test_a_key_in_an_address_is_refused_and_not_written_down(small, caplog, name):
    answer = httpx.get(f"{small.url}/v1/models?x=1&{name}={KEY}")
    assert "send the key as 'Authorization: Bearer KEY'" in reason(answer, 400)
    assert KEY not in answer.text
    assert KEY not in caplog.text
    assert httpx.get(f"{small.url}/v1/models?x=1").status_code == 200


def test_stopping_finishes_what_was_begun_and_refuses_the_rest():
    settings = Settings(port=0, models=("tiny",))
    with serving(settings, loader=lambda name: tiny_model()) as running:
        blocked = threading.Event()
        running.service.store.loaded_worker("tiny").call(blocked.wait)
        with ThreadPoolExecutor(1) as threads:
            begun = threads.submit(post, running)
            wait_for(lambda: running.service.limiter.taken == 1)
            running.server.should_exit = True
            wait_for(lambda: running.service.draining)
            assert "being stopped" in reason(post(running), 503)
            assert reason(httpx.get(f"{running.url}/ready"), 503)
            assert httpx.get(f"{running.url}/health").json() == {"status": "stopping"}
            blocked.set()
            assert begun.result().status_code == 200
        running.thread.join(10)
        assert not running.thread.is_alive()


def test_a_stop_has_one_deadline_and_says_why_it_breaks_off(monkeypatch):
    """Everything that waits has what is left of `stop_s`; the model is busy for longer."""
    joined_s, join = [], ModelWorker.join
    monkeypatch.setattr(
        ModelWorker, "join", lambda worker, timeout_s: joined_s.append(timeout_s) or join(worker, timeout_s)
    )
    settings = Settings(port=0, models=("tiny",), timeouts=Timeouts(stop_s=3.0))
    body = {"model": "tiny", "input": "hello", "target_language": "de", "source_language": "en"}
    with serving(settings, loader=lambda name: tiny_model()) as running, ThreadPoolExecutor(1) as threads:
        worker, blocked = running.service.store.loaded_worker("tiny"), threading.Event()
        read_text(worker.model.family)
        worker.call(blocked.wait)
        wait_for(lambda: not worker._calls)
        begun = threads.submit(httpx.post, f"{running.url}/v1/text/translations", json=body, timeout=60)
        wait_for(lambda: worker._calls)
        running.server.should_exit = True
        running.thread.join(60)
        assert not running.thread.is_alive()
        assert "being stopped" in reason(begun.result(), 503)
        blocked.set()
    assert running.server.config.timeout_graceful_shutdown == 1
    assert len(joined_s) == 1
    assert joined_s[0] <= 1.0


def test_an_error_in_the_middle_of_a_stream_is_told_in_it(small):
    """The length is found out only while reading, after the first text has gone out."""
    small_block = small.service.settings.limits.max_duration_s
    samples = np.concatenate([noise(0.2)] + [np.zeros(16_000, np.float32)] * int(small_block))
    file = _without_length(wav(samples, format="FLAC"))
    fields = {**FIELDS, "stream": "true"}
    answer = post(small, file, fields)
    assert answer.status_code == 200
    assert '"status": 413' in answer.text
    assert "[DONE]" not in answer.text


def test_the_page_is_served_from_here_alone(small):
    answer = httpx.get(small.url)
    assert answer.status_code in (200, 404)
    if answer.status_code == 200:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert httpx.get(f"{small.url}/static/../../app.py").status_code == 404
        assert httpx.get(f"{small.url}/static/%2e%2e/settings.py").status_code == 404


def test_a_request_from_many_clients_at_once_is_answered_for_each(small):
    async def scenario():
        async with httpx.AsyncClient(timeout=30) as client:

            async def one():
                while True:
                    answer = await client.post(
                        f"{small.url}/v1/audio/transcriptions", files={"file": ("a.wav", AUDIO)}, data=FIELDS
                    )
                    if answer.status_code != 429:
                        return answer.status_code
                    await asyncio.sleep(0.05)

            assert await asyncio.gather(*(one() for _ in range(30))) == [200] * 30

    asyncio.run(scenario())

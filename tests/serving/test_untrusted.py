"""Recordings sent to do harm: the service reads nothing for them, opens nothing, and goes on."""

import errno
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from sprachbund.audio import isolated
from sprachbund.audio.sandbox import DecodingLimits
from sprachbund.serving.settings import Limits, Settings
from tests.serving.support import noise, serving, tiny_model, wav

FIELDS = {"model": "tiny", "language": "en"}


@pytest.fixture(scope="module")
def small():
    settings = Settings(port=0, models=("tiny",), limits=Limits(max_working=8))
    with serving(settings, loader=lambda name: tiny_model()) as running:
        yield running


def post(running, name, file, timeout_s=20.0):
    url = f"{running.url}/v1/audio/transcriptions"
    return httpx.post(url, files={"file": (name, file)}, data=FIELDS, timeout=timeout_s)


def good(running):
    answer = post(running, "a.wav", wav(noise(1.0)))
    assert answer.status_code == 200, answer.text


def test_playlists_make_the_service_connect_to_nothing_and_read_no_file(small, tmp_path):
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(noise(1.0)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for name, text in (
            ("talk.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n"),
            ("talk.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n"),
            ("talk.ffconcat", f"ffconcat version 1.0\nfile {secret}\n"),
        ):
            answer = post(small, name, text.encode())
            assert answer.status_code == 400
            assert "is not audio that can be decoded" in answer.json()["error"]["message"]
        server.settimeout(0.3)
        with pytest.raises(TimeoutError, match="timed out"):
            server.accept()


def test_eight_uploads_that_wait_for_a_port_do_not_stop_the_work(small):
    text = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {} RTP/AVP 0\n"
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(8) as pool:
        playlist = (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:{silent.getsockname()[1]}/a.ts\n"
        )
        sent = [("t.sdp", text.format(49_152 + 2 * n)) if n % 2 else ("t.m3u8", playlist) for n in range(8)]
        answers = pool.map(lambda one: post(small, one[0], one[1].encode()), sent)
        assert [answer.status_code for answer in answers] == [400] * 8
    good(small)


@pytest.mark.parametrize(("name", "reason"), [("crash.wav", "crashed"), ("exit.wav", "exit code 3")])
def test_a_decoder_gone_wrong_is_one_refusal_and_the_service_goes_on(small, monkeypatch, name, reason):
    isolated.stop()
    monkeypatch.setattr(isolated, "_SERVER", "tests.audio.misbehaving")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    answer = post(small, name, wav(noise(1.0)), timeout_s=60.0)
    assert (answer.status_code, reason in answer.json()["error"]["message"]) == (400, True), answer.text
    good(small)
    isolated.stop()


@pytest.mark.slow
def test_eight_hanging_decoders_are_ended(small, monkeypatch):
    isolated.stop()
    monkeypatch.setattr(isolated, "_SERVER", "tests.audio.misbehaving")
    monkeypatch.setattr(
        "sprachbund.serving.routes.audio.DecodingLimits", partial(DecodingLimits, stall_s=1.0)
    )
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(small, "hang.wav", wav(noise(1.0)), timeout_s=60.0), range(8)))
    assert [answer.status_code for answer in answers] == [400] * 8
    assert all("was stopped" in answer.json()["error"]["message"] for answer in answers)
    good(small)
    isolated.stop()


def test_a_decoder_that_cannot_be_started_is_the_services_fault(small, monkeypatch):
    def none_left(descriptor):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(isolated, "_begin", none_left)
        answer = post(small, "a.wav", wav(noise(1.0)))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_decoder"
    assert answer.headers["retry-after"] == "5"
    good(small)


def test_a_channel_flood_is_refused_with_its_number(small):
    answer = post(small, "a.wav", wav(np.zeros((10, 1024), np.float32)))
    assert answer.status_code == 400
    assert "a.wav has 1024 channels, and 64 are the most" in answer.json()["error"]["message"]


def test_the_name_chooses_no_format(small):
    assert post(small, "a.sdp", wav(noise(1.0))).status_code == 200
    assert post(small, "a.m3u8", wav(noise(1.0), format="FLAC")).status_code == 200


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_no_descriptor_is_left(small):
    good(small)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        good(small)
        post(small, "a.wav", b"nonsense" * 99)
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # those of connections kept open

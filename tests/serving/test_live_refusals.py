"""Sessions that are refused or ended, each with a reason, and who pays for it."""

import asyncio
import json
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.serving.live_support import SPAN
from tests.serving.support import talking


async def refused(running, *sent, first=SPAN, status, code, says):
    """The session ends with a reason."""
    async with talking(running, first) as client:
        for message in sent:
            await client.socket.send(message)
        error = await client.until("error")
        assert error["status"] == status, error
        assert says in error["message"]
        assert await client.closed() == code


@pytest.mark.parametrize(
    ("sent", "status", "code", "says"),
    [
        (["hello"], 400, 1008, "sound is binary"),
        (['{"type": "start", "targets": ["de"]}'], 400, 1008, "has begun"),
        ([b"\x00" * ((1 << 20) + 2)], 413, 1009, "are the most"),
    ],
)
def test_what_does_not_belong_in_a_session_ends_it(running, sent, status, code, says):
    asyncio.run(refused(running, *sent, status=status, code=code, says=says))


def test_sound_that_is_none(running):
    first = {**SPAN, "encoding": "pcm_f32le"}
    data = np.full(100, np.nan, np.float32).tobytes()
    asyncio.run(refused(running, data, first=first, status=415, code=1003, says="not a number"))


@pytest.mark.parametrize(
    ("first", "status", "says"),
    [
        ({"targets": ["xx"]}, 400, "'xx' is not among those of this model"),
        ({"targets": ["de"], "source": "tlh"}, 400, "'tlh'"),
        ({"targets": ["de"], "languages": ["xx"]}, 400, "'xx'"),
        ({"targets": []}, 400, "targets"),
        ({}, 400, """the field 'targets' is missing; send it, as in {"type": "start", "targets": ["de"]}"""),
        (
            {"targets": "de"},
            400,
            """is 'de'; it should be a valid array, as in {"type": "start", "targets": ["de"]}""",
        ),
        ({"targets": ["de"] * 17}, 400, "16 are the most"),
        ({"targets": ["de"], "model": "whisper-1"}, 404, "choose from bundled"),
        ({"targets": ["de"], "policy": "fastest"}, 400, "policy"),
        ({"targets": ["de"], "settings": {"colour": 1}}, 400, "'colour' is not known"),
        ({"targets": ["de"], "sample_rate": 1}, 400, "sample_rate"),
        ({"targets": ["de"], "prompt": "names: Ada"}, 400, "no room for a prompt"),
        ({"targets": ["de"], "colour": "red"}, 400, "colour"),
        ({"targets": ["de"], "hot_words": "Ada"}, 400, "hot_words"),
        ({"targets": ["de"], "hot_words": [""]}, 400, "hot_words.0"),
        ({"targets": ["de"], "hot_words": ["Ada"], "hot_words_weight": 21}, 400, "hot_words_weight"),
        ({"targets": ["de"], "glossary": "hound = Hund"}, 400, "takes no glossary"),
    ],
)
def test_sessions_that_cannot_be_are_refused_with_a_reason(running, first, status, says):
    asyncio.run(refused(running, first=first, status=status, code=1008, says=says))


@pytest.mark.parametrize("message", [b"\x00\x00", '{"type": "stop"}', "{", '{"type": "resume"}'])
def test_a_first_message_that_is_none(running, message):
    async def scenario():
        async with talking(running) as client:
            await client.socket.send(message)
            assert (await client.hear())["status"] == 400
            assert await client.closed() == 1008

    asyncio.run(scenario())


def test_no_first_message(small_live):
    async def scenario(running):
        async with talking(running) as client:
            assert (await client.hear())["status"] == 408

    with small_live(timeouts={"header_s": 0.3}) as running:
        asyncio.run(scenario(running))


def test_pages_of_other_sites_may_not_open_a_socket(running):
    async def scenario():
        with pytest.raises(InvalidStatus) as caught:
            async with talking(running, SPAN, origin="https://evil.example"):
                pass
        assert caught.value.response.status_code == 403
        async with talking(running, SPAN, origin=running.url) as client:
            await client.until("started")

    asyncio.run(scenario())


def test_keys(small_live, tmp_path):
    (tmp_path / "keys").write_text("first-long-enough-key\nsecond-long-enough-key\n")

    async def scenario(running):
        for key in (None, "wrong"):
            async with talking(running, {**SPAN, "key": key}) as client:
                assert (await client.hear())["status"] == 401
        header = {"authorization": "Bearer first-long-enough-key"}
        async with talking(running, SPAN, additional_headers=header) as client:
            session = (await client.until("started"))["session"]
            async with talking(running) as thief:
                await thief.tell(type="resume", session=session, key="second-long-enough-key")
                assert (await thief.hear())["status"] == 404
            async with talking(running) as owner:
                await owner.tell(type="resume", session=session, key="first-long-enough-key")
                assert (await owner.hear())["type"] == "started"

    with small_live(key_file=tmp_path / "keys") as running:
        asyncio.run(scenario(running))


def test_no_more_sessions_than_there_is_room_for(small_live):
    async def scenario(running):
        async with talking(running, SPAN) as a, talking(running, SPAN) as b, talking(running, SPAN) as c:
            for client in (a, b, c):
                await client.until("started")
            async with talking(running, SPAN) as late:
                assert (await late.hear())["status"] == 429
                assert await late.closed() == 1013
            await a.tell(type="stop")
            await a.until("done")
            await a.closed()
            async with talking(running, SPAN) as later:
                assert (await later.hear())["type"] == "started"

    with small_live() as running:
        asyncio.run(scenario(running))


@pytest.mark.slow
def test_a_byte_a_second_is_given_up_and_a_pause_is_not(small_live):
    async def scenario(running):
        async with talking(running, SPAN) as slow, talking(running, SPAN) as steady:
            began = time.monotonic()
            with pytest.raises(ConnectionClosed):  # noqa: PT012 - at any of these
                while time.monotonic() - began < 60:
                    await slow.socket.send(b"\x00")
                    await steady.send(np.zeros(16_000, np.float32))
                    await asyncio.sleep(0.1)
            await steady.tell(type="stop")
            await steady.until("done")
            error = json.loads([m async for m in slow.socket][-1]) if slow.socket.close_code is None else None
            return error, slow.socket.close_code, time.monotonic() - began

    with small_live(timeouts={"live_silent_s": 0.8}) as running:
        error, code, took_s = asyncio.run(scenario(running))
    assert code == 1008
    assert took_s < 3
    assert error is None

"""What clients of other services expect: a temperature, the name whisper-1, pages of another origin."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from sprachbund.api import Model
from sprachbund.data.synthesis import Voice, speak
from sprachbund.decoding.options import DecodingOptions
from sprachbund.errors import SprachbundError
from sprachbund.serving.app import create_app
from sprachbund.serving.settings import Settings
from tests.decoding.tiny_family import TinyFamily
from tests.serving.support import Running, noise, serving, tiny_model, wav

PAGE, OTHER = "https://captions.example", "https://evil.example"


@pytest.fixture(scope="module")
def open_service() -> Iterator[Running]:
    settings = Settings(port=0, aliases=("whisper-1=bundled",), cors=(PAGE,))
    with serving(settings, loader=tiny_model) as running:
        yield running


def sent(running: Running, path: str = "audio/transcriptions", **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{running.url}/v1/{path}",
        data={"model": "bundled", "language": "de", **fields},
        files={"file": ("a.wav", wav(noise(1.0)))},
        headers={"origin": PAGE},
    )


def test_a_temperature_is_taken(open_service: Running) -> None:
    assert "no effect" not in sent(open_service, temperature=1).headers.get("x-note", "")
    for wrong in (-0.1, 1.1):
        refused = sent(open_service, temperature=wrong)
        assert refused.status_code == 400
        assert "temperature" in refused.json()["error"]["message"]


def test_a_temperature_is_said_to_do_nothing_where_no_tokens_are_drawn(
    monkeypatch: pytest.MonkeyPatch, open_service: Running
) -> None:
    monkeypatch.setattr("sprachbund.serving.schemas.draws_tokens", lambda family: False)
    plain, warm = (sent(open_service, response_format="verbose_json", temperature=t) for t in (0, 0.2))
    note = "temperature 0.2 has no effect: tiny writes without drawing tokens"
    assert note in warm.headers["x-note"]
    assert note not in plain.headers.get("x-note", "")
    cold, hot = plain.json(), warm.json()
    assert hot.pop("warnings") == [*cold.pop("warnings"), note]
    assert hot == cold
    streamed = sent(open_service, response_format="verbose_json", stream="true", temperature=0.2)
    assert streamed.headers["x-note"] == note
    [done] = [line for line in streamed.text.splitlines() if "transcript.text.done" in line]
    assert json.loads(done.removeprefix("data: "))["warnings"][-1] == note


def test_a_prompt_that_the_model_does_not_read_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, open_service: Running
) -> None:
    asked = partial(sent, open_service, response_format="verbose_json")
    plain, empty = asked(), asked(prompt="")
    assert plain.json() == empty.json()
    assert "prompt" not in asked(prompt="Ada").headers.get("x-note", "")
    deaf = property(lambda family: replace(family._capabilities, decoder=family.decoder, reads_context=False))
    monkeypatch.setattr(TinyFamily, "capabilities", deaf)
    prompted = asked(prompt="Ada")
    note = "the model tiny has no room for a prompt; it was not used"
    assert prompted.status_code == 200
    assert note in prompted.headers["x-note"]
    without, told = plain.json(), prompted.json()
    assert told.pop("warnings") == [*without.pop("warnings"), note]
    assert told == without
    assert asked(prompt="").json() == plain.json()


def test_every_format_has_the_warnings_in_its_header_and_json_in_its_body(open_service: Running) -> None:
    nobody = {"file": ("é.wav", wav(np.zeros(16_000, np.float32)))}
    fields = {"model": "bundled", "language": "de"}
    warning = "no speech found in 1.0 s of audio"
    url = f"{open_service.url}/v1/audio/transcriptions"
    for wanted in ("json", "verbose_json", "text", "srt", "vtt"):
        answer = httpx.post(url, data={**fields, "response_format": wanted}, files=nobody)
        assert answer.headers["x-note"] == warning
        if "json" in wanted:
            assert answer.json()["warnings"] == [warning]
    streamed = httpx.post(url, data={**fields, "stream": "true"}, files=nobody)
    [done] = [line for line in streamed.text.splitlines() if "transcript.text.done" in line]
    assert json.loads(done.removeprefix("data: "))["warnings"] == [warning]


def test_the_service_says_when_the_model_does_not_understand() -> None:
    dutch = speak("De regering heeft gisteren een nieuw plan voorgesteld", Voice(language="nl"))
    with serving(Settings(port=0)) as running:
        answer = httpx.post(
            f"{running.url}/v1/audio/translations",
            data={"model": "bundled", "target_language": "de"},
            files={"file": ("a.wav", wav(dutch))},
            timeout=60,
        ).json()
    assert answer["text"] == ""
    assert "not of the kind that this model knows" in answer["warnings"][0]
    assert "translate FILE --to de --model whisper" in answer["warnings"][0]


def test_an_alias_is_the_model(open_service: Running) -> None:
    with openai.OpenAI(base_url=f"{open_service.url}/v1", api_key="unused", max_retries=0) as client:
        sound = ("a.wav", wav(noise(1.0)))
        texts = [
            client.audio.transcriptions.create(file=sound, model=model, language="de").text
            for model in ("whisper-1", "bundled")
        ]
        assert texts[0] == texts[1]
        listed = {model.id: model.model_extra for model in client.models.list()}
        assert listed.keys() == {"bundled", "whisper-1"}
        assert listed["whisper-1"]["alias_of"] == "bundled"  # type: ignore[index]
        assert listed["whisper-1"]["loaded"]  # type: ignore[index]
        with pytest.raises(openai.NotFoundError, match="choose from bundled, whisper-1"):
            client.audio.transcriptions.create(file=sound, model="whisper-2")
    assert open_service.service.store.loaded == ["bundled"]


@pytest.mark.parametrize(
    ("aliases", "says"),
    [
        (("whisper-1",), "give NAME=MODEL"),
        (("=bundled",), "give NAME=MODEL"),
        (("whisper-1=large",), "large, which is not served; serve it with --model large"),
        (("bundled=bundled",), "is the name of a model already"),
        (("a=bundled", "a=bundled"), "is the name of a model already"),
    ],
)
def test_aliases_that_cannot_be(aliases: tuple[str, ...], says: str) -> None:
    with pytest.raises(SprachbundError, match=says):
        create_app(Settings(aliases=aliases))


def test_a_page_of_the_origin_named_may_ask(open_service: Running) -> None:
    asked = httpx.options(
        f"{open_service.url}/v1/audio/transcriptions",
        headers={
            "origin": PAGE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, x-stainless-lang",
        },
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
    answer, refusal = sent(open_service), sent(open_service, model="none")
    assert (answer.status_code, refusal.status_code) == (200, 404)
    for one in (answer, refusal):  # a page can read refusals too
        assert one.headers["access-control-allow-origin"] == PAGE
        assert "x-request-id" in one.headers["access-control-expose-headers"]
    with connect(open_service.live, origin=PAGE) as socket:  # type: ignore[arg-type]
        socket.send(json.dumps({"type": "start", "targets": ["de"], "source": "de"}))
        assert json.loads(socket.recv())["type"] == "started"


def test_pages_of_other_origins_may_not(open_service: Running) -> None:
    asked = httpx.options(
        f"{open_service.url}/v1/models", headers={"origin": OTHER, "access-control-request-method": "GET"}
    )
    assert asked.status_code == 400
    got = httpx.get(f"{open_service.url}/v1/models", headers={"origin": OTHER})
    assert got.status_code == 403
    assert "--cors" in got.json()["error"]["message"]
    assert "access-control-allow-origin" not in got.headers
    with pytest.raises(InvalidStatus, match="HTTP 403"), connect(open_service.live, origin=OTHER):  # type: ignore[arg-type]
        pass


def test_every_origin_needs_keys(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="name the origins, or give keys"):
        Settings(cors=("*",))
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-some-length-0123456789\n")
    keys.chmod(0o600)
    with serving(Settings(port=0, cors=("*",), key_file=keys), loader=tiny_model) as running:
        url = f"{running.url}/v1/models"
        assert httpx.get(url, headers={"origin": OTHER}).status_code == 401
        key = {"authorization": "Bearer a-key-of-some-length-0123456789"}
        assert httpx.get(url, headers={"origin": OTHER, **key}).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", ["example.org", "https://", "https://a/b", "https://u@a", ""])
def test_origins_that_are_none(origin: str) -> None:
    with pytest.raises(SprachbundError, match="give scheme and host"):
        Settings(cors=(origin,))


@pytest.mark.slow
def test_punctuation_is_that_of_the_command(running: Running, bundled: Model, clip: Path) -> None:
    def text(**fields: str) -> str:
        answer = httpx.post(
            f"{running.url}/v1/audio/transcriptions",
            data={"model": "bundled", "language": "es", **fields},
            files={"file": ("a.wav", clip.read_bytes())},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["text"])

    options = DecodingOptions(punctuate="bundled", digits=True)
    written = text(punctuate="true", digits="true")
    assert written == bundled.transcribe(clip, source="es", options=options).text
    assert written[-1] in ".?!"
    assert "." not in text()


def test_punctuation_of_a_model_that_writes_it_is_refused(open_service: Running) -> None:
    refused = sent(open_service, punctuate="true")
    assert refused.status_code == 400
    assert "nothing to restore" in refused.json()["error"]["message"]

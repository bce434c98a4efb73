"""The official client, unchanged, against a real server: what it gets is what the library gives."""

import math

import openai
import pytest

from sprachbund.decoding.formats import render
from sprachbund.decoding.options import DecodingOptions


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def spanish(bundled, clip):
    return bundled.translate(clip, to=["en", "de", "transcribe"])


def test_a_transcription_is_that_of_the_library(client, clip, spanish):
    result = client.audio.transcriptions.create(file=clip, model="bundled")
    assert result.text == spanish["transcribe"].text
    assert result.usage.seconds == pytest.approx(11.5, abs=0.01)


def test_a_translation_is_into_english_unless_another_language_is_asked_for(client, clip, spanish):
    assert client.audio.translations.create(file=clip, model="bundled").text == spanish["en"].text
    german = client.audio.translations.create(
        file=clip, model="bundled", extra_body={"target_language": "German", "language": "es"}
    )
    assert german.text == spanish["de"].text


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_are_those_of_the_library(client, clip, spanish, form):
    result = client.audio.transcriptions.create(file=clip, model="bundled", response_format=form)
    assert result == render(spanish["transcribe"], form)


def test_plain_text(client, clip, spanish):
    result = client.audio.transcriptions.create(file=clip, model="bundled", response_format="text")
    assert result == spanish["transcribe"].text + "\n"


def test_verbose_json_has_segments_and_words(client, bundled, clip):
    result = client.audio.transcriptions.create(
        file=clip,
        model="bundled",
        language="es",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    options = DecodingOptions(word_timestamps=True)
    expected = bundled.transcribe(clip, source="es", options=options)
    assert result.language == "es"
    assert result.duration == pytest.approx(expected.duration_s, abs=1e-3)
    assert [(s.text, s.start) for s in result.segments] == [
        (s.text, pytest.approx(s.start_s, abs=1e-3)) for s in expected.segments
    ]
    assert [s.model_extra["out_of_domain"] for s in result.segments] == [
        pytest.approx(s.out_of_domain, abs=1e-3) for s in expected.segments
    ]
    assert [w.word for w in result.words] == [w.text for s in expected.segments for w in s.words]
    assert [w.start for w in result.words] == sorted(w.start for w in result.words)


def test_at_a_temperature_tokens_are_drawn(client, clip):
    """The same request gives the same text."""
    cold, hot, again = (
        client.audio.transcriptions.create(
            file=clip, model="bundled", response_format="verbose_json", temperature=temperature
        )
        for temperature in (0, 1, 1)
    )
    assert {segment.temperature for segment in cold.segments} == {0.0}
    assert {one["temperature"] for one in hot.model_extra["dropped"]} | {
        s.temperature for s in hot.segments
    } == {1}
    assert (hot.text, hot.segments) == (again.text, again.segments)
    assert hot.segments != cold.segments


def test_verbose_json_of_a_translation(client, clip, spanish):
    result = client.audio.translations.create(file=clip, model="bundled", response_format="verbose_json")
    assert (result.language, result.text) == ("en", spanish["en"].text)
    assert len(result.segments) == len(spanish["en"].segments)


def test_a_stream_of_deltas_is_the_text(client, clip, spanish):
    events = list(client.audio.transcriptions.create(file=clip, model="bundled", stream=True))
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert len(deltas) == len(spanish["transcribe"].segments)
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text == spanish["transcribe"].text


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_words(client, bundled, clip):
    result = client.audio.transcriptions.create(
        file=clip, model="bundled", language="es", include=["logprobs"]
    )
    expected = bundled.transcribe(clip, source="es", options=DecodingOptions(word_timestamps=True))
    words = [word for segment in expected.segments for word in segment.words]
    assert [entry.token.strip() for entry in result.logprobs] == [word.text for word in words]
    assert [math.exp(entry.logprob) for entry in result.logprobs] == pytest.approx(
        [word.probability for word in words], abs=1e-3
    )
    assert bytes(map(int, result.logprobs[1].bytes)).decode() == result.logprobs[1].token
    *deltas, done = client.audio.transcriptions.create(
        file=clip, model="bundled", language="es", include=["logprobs"], stream=True
    )
    streamed = [entry.model_dump() for event in deltas for entry in event.logprobs]
    assert streamed == [entry.model_dump() for entry in done.logprobs]
    assert len(deltas) > 1
    for event in deltas:
        assert "".join(entry.token for entry in event.logprobs) == event.delta
    assert "".join(entry.token for entry in done.logprobs) == done.text
    plain = client.audio.transcriptions.create(file=clip, model="bundled", language="es")
    assert plain.logprobs is None


def test_segments_of_a_stream_have_the_types_of_the_client(client, clip):
    events = client.audio.transcriptions.create(
        file=clip, model="bundled", stream=True, response_format="verbose_json"
    )
    segments = [event for event in events if event.type == "transcript.text.segment"]
    assert [event.id for event in segments] == [str(number) for number in range(len(segments))]
    for event in segments:
        assert type(event).model_validate(event.model_dump(), strict=True)
        assert 0 <= event.model_extra["out_of_domain"] <= 1


def test_allowed_languages_are_an_argument(client, clip):
    result = client.audio.transcriptions.create(
        file=clip,
        model="bundled",
        response_format="verbose_json",
        extra_body={"languages": ["it"]},
    )
    assert {segment.source_language for segment in result.segments} == {"it"}


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["bundled"]
    assert client.models.retrieve("bundled").licence == "CC-BY-SA-3.0"


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"model": "whisper-1"}, openai.NotFoundError, "choose from bundled"),
        ({"language": "tlh"}, openai.BadRequestError, "'tlh' is not among those of this model"),
        ({"temperature": 1.2}, openai.BadRequestError, "temperature"),
        ({"response_format": "diarized_json"}, openai.BadRequestError, "response_format"),
        ({"timestamp_granularities": ["word"]}, openai.BadRequestError, "verbose_json only"),
        ({"stream": True, "response_format": "srt"}, openai.BadRequestError, "srt cannot be streamed"),
        ({"include": ["tokens"]}, openai.BadRequestError, "logprobs"),
        (
            {"include": ["logprobs"], "response_format": "verbose_json"},
            openai.BadRequestError,
            "log-probabilities come in json only",
        ),
        ({"model": "/etc"}, openai.NotFoundError, "choose from bundled"),
        ({"model": "openai/whisper-tiny"}, openai.NotFoundError, "choose from bundled"),
        (
            {"extra_body": {"model": "bundled", "colour": "red"}},
            openai.BadRequestError,
            "'colour' is not known",
        ),
    ],
)
def test_what_is_not_offered_is_refused_with_a_reason(client, clip, wrong, error, says):
    with pytest.raises(error, match=says) as caught:
        client.audio.transcriptions.create(**{"file": clip, "model": "bundled", **wrong})
    assert caught.value.body["message"]


def test_an_unknown_target_lists_those_there_are(client, clip):
    with pytest.raises(openai.BadRequestError, match=r"'xx'.*it knows de \(German\)"):
        client.audio.translations.create(file=clip, model="bundled", extra_body={"target_language": "xx"})

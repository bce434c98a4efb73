"""The parser of messages gives a message or a refusal, whatever comes; sound is put together from any pieces."""

import contextlib
import json

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.serving.live import Resume, SoundDecoder, Start, Stop, live_options, parse_message
from sprachbund.serving.schemas import RefusalError
from tests.serving.support import noise

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from([*Start.model_fields, *Resume.model_fields, "colour"])
kinds = st.sampled_from(["start", "resume", "stop", "begin", ""])


def parsed(text: str) -> Start | Resume | Stop | None:
    try:
        return parse_message(text)
    except RefusalError as refusal:
        if refusal.status != 400 or len(refusal.message) > 500 or "\n" in refusal.message:
            raise AssertionError(refusal.message) from refusal
        return None


@given(st.text() | st.binary().map(lambda b: b.decode("utf-8", "replace")))
def test_any_text_is_parsed_or_refused(text):
    assert isinstance(parsed(text), Start | Resume | Stop | None)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.dictionaries(names, values), kinds)
def test_any_message_is_parsed_or_refused(fields, kind):
    message = parsed(json.dumps({**fields, "type": kind}))
    if isinstance(message, Start):
        assert message.targets
        assert 8_000 <= message.sample_rate <= 192_000
        with contextlib.suppress(SprachbundError):
            live_options(message)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"type":' * 5_000, '{"type": "start", "targets": [' + '"a",' * 5]
)
def test_deep_and_broken_json(text):
    assert parsed(text) is None


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ('{"targets": ["de"]}', "has no type"),
        ('{"type": "begin", "targets": ["de"]}', "has the type 'begin'"),
    ],
)
def test_a_message_without_a_known_type_is_told_the_types(text: str, seen: str) -> None:
    with pytest.raises(RefusalError, match=f"it {seen}; choose from start, resume, stop$"):
        parse_message(text)


def test_messages_mean_what_the_page_of_the_service_says():
    start = parse_message(
        '{"type": "start", "targets": ["de"], "settings": {"step_s": 0.5}, "policy": "span"}'
    )
    assert isinstance(start, Start)
    assert (start.encoding, start.sample_rate, start.source, start.languages) == (
        "pcm_s16le",
        SAMPLE_RATE,
        None,
        None,
    )
    options = live_options(start)
    assert (options.policy, options.step_s) == ("span", 0.5)
    assert parse_message('{"type": "resume", "session": "x", "after": 3}') == Resume(
        type="resume", session="x", after=3
    )
    assert parse_message('{"type": "stop"}') == Stop(type="stop")


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"steps": 1}, "'steps' is not known; there are policy, "),
        ({"step_s": "soon"}, "^settings.step_s is 'soon'; it should be a valid number$"),
        ({"agreement": 2.5}, "agreement"),
        ({"policy": "fastest"}, "policy"),
        ({"step_s": 0.0}, "step_s is 0"),
    ],
)
def test_settings_that_cannot_be_are_named(settings_, says):
    start = parse_message(json.dumps({"type": "start", "targets": ["de"], "settings": settings_}))
    with pytest.raises(SprachbundError, match=says):
        live_options(start)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 999), max_size=10), st.sampled_from(["pcm_s16le", "pcm_f32le"]))
def test_where_messages_are_cut_does_not_matter(cuts, encoding):
    samples = noise(0.05)
    data = samples.tobytes() if encoding == "pcm_f32le" else (samples * 32767).astype("<i2").tobytes()
    decoder, places = SoundDecoder(encoding, SAMPLE_RATE), sorted({min(c, len(data)) for c in cuts})
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    result = np.concatenate([*(decoder.decode(piece) for piece in pieces), decoder.finish()])
    np.testing.assert_allclose(result, samples, atol=1e-4)
    assert decoder.received_s == len(samples) / SAMPLE_RATE


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates_are_resampled_as_a_whole_would_be(rate):
    samples = np.random.default_rng(0).normal(size=rate).astype(np.float32) * 0.1
    decoder = SoundDecoder("pcm_f32le", rate)
    pieces = [decoder.decode(samples[i : i + 1000].tobytes()) for i in range(0, len(samples), 1000)]
    result = np.concatenate([*pieces, decoder.finish()])
    whole = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    assert abs(len(result) - len(whole)) <= 1
    np.testing.assert_allclose(result[: len(whole)], whole[: len(result)], atol=1e-4)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1e30])
def test_numbers_that_are_no_sound_are_refused(wrong):
    samples = np.zeros(10, np.float32)
    samples[3] = wrong
    with pytest.raises(RefusalError) as caught:
        SoundDecoder("pcm_f32le", SAMPLE_RATE).decode(samples.tobytes())
    assert caught.value.status == 415

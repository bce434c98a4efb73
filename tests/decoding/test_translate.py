"""Long form over planted speech, with a loudness detector in place of the network."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile

from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW
from sprachbund.audio.span_options import SpanOptions
from sprachbund.decoding.long_form import translate, translate_file
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.result import Segment, build_translation
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from tests.decoding.tiny_family import TinyFamily

LENIENT = GuardOptions(hopeless_mean_log_probability=-1e9, max_characters_per_s=1e9, max_repetition=1.0)
OPTIONS = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1)


class Loudness:
    """Calls every loud window speech."""

    def stream(self):
        return _LoudnessStream()


class _LoudnessStream:
    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)

    def feed(self, block):
        samples = np.concatenate([self._rest, block])
        whole = len(samples) // VAD_WINDOW * VAD_WINDOW
        self._rest = samples[whole:]
        windows = samples[:whole].reshape(-1, VAD_WINDOW)
        return (np.abs(windows).mean(1) > 0.01).astype(np.float32)

    def finish(self):
        return np.zeros(1 if len(self._rest) else 0, np.float32)


def recording(*speech_s: tuple[float, float], duration_s: float = 20.0, seed: int = 0) -> np.ndarray:
    """Silence with noise in the given stretches."""
    samples = np.zeros(int(duration_s * SAMPLE_RATE), np.float32)
    rng = np.random.default_rng(seed)
    for start_s, end_s in speech_s:
        begin, end = int(start_s * SAMPLE_RATE), int(end_s * SAMPLE_RATE)
        samples[begin:end] = rng.normal(size=end - begin) * 0.3
    return samples


SPEECH = [(1.0, 2.5), (4.0, 5.0), (7.0, 10.0), (12.0, 13.0), (15.0, 18.0)]


def run(targets, source=None, options=OPTIONS, family=None, samples=None):
    family = family or TinyFamily(seed=3)
    samples = recording(*SPEECH) if samples is None else samples
    return translate(family, samples, targets, source, options, sample_rate=SAMPLE_RATE, activity=Loudness())


def test_the_test_family_is_a_family():
    assert isinstance(TinyFamily(), Family)


def test_segments_lie_where_speech_was_planted():
    translation = run(["de"], "en")["de"]
    assert len(translation.segments) == len(SPEECH)
    for segment, (start_s, end_s) in zip(translation.segments, SPEECH, strict=True):
        assert segment.start_s == pytest.approx(start_s, abs=0.3)
        assert segment.end_s == pytest.approx(end_s, abs=0.3)
        assert (segment.source_language, segment.target_language) == ("en", "de")
        assert segment.language_probability is None
        assert segment.text
        assert segment.speech_probability > 0.9
        assert segment.no_speech_probability is not None
    assert translation.duration_s == pytest.approx(20.0)
    assert translation.text == " ".join(s.text for s in translation.segments)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batching_changes_nothing(batch_size):
    options = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1, batch_size=batch_size)
    translation, expected = run(["de", "transcribe"], None, options), run(["de", "transcribe"])
    for target in ("de", "transcribe"):
        assert [s.text for s in translation[target].segments] == [s.text for s in expected[target].segments]
        assert [s.source_language for s in translation[target].segments] == [
            s.source_language for s in expected[target].segments
        ]


def test_all_targets_share_one_encoder_pass():
    family, calls = TinyFamily(seed=3), []
    encode = family.encode
    family.encode = lambda features: calls.append(1) or encode(features)
    together = run(["de", "en", "fr"], "en", family=family)
    num_batches = len(calls)
    for target in together:
        calls.clear()
        alone = run([target], "en", family=family)[target]
        assert len(calls) == num_batches
        assert [(s.text, s.start_s) for s in alone.segments] == [
            (s.text, s.start_s) for s in together[target].segments
        ]


def test_results_appear_while_the_file_is_still_being_read():
    read: list[float] = []
    family = TinyFamily(seed=3)
    options = DecodingOptions(guard=LENIENT, max_tokens=4, batch_size=1)
    samples = recording(*((s, s + 1.0) for s in range(1, 290, 10)), duration_s=300.0)
    work = translate_file(
        family, samples, ["de"], "en", options, sample_rate=SAMPLE_RATE, activity=Loudness()
    )
    blocks = work._audio.blocks
    work._audio.blocks = lambda: (read.append(len(b) / SAMPLE_RATE) or b for b in blocks())
    first = next(work)
    assert first.start_s < 2.0
    assert sum(read) < 100.0
    assert work.finished_s <= first.end_s
    rest = list(work)
    assert len(rest) == 28
    assert work.finished_s == pytest.approx(300.0)


def test_transcription_follows_the_language_of_every_span():
    family = TinyFamily(seed=3)
    translation = run(["transcribe"], family=family)["transcribe"]
    assert len({s.source_language for s in translation.segments}) > 1
    for segment in translation.segments:
        assert segment.target_language == segment.source_language
        assert segment.language_probability is not None
    allowed = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1, allowed_languages=("French",))
    only = run(["transcribe"], None, allowed)["transcribe"]
    assert {s.source_language for s in only.segments} == {"fr"}
    assert only.source_language == "fr"


def test_a_model_that_cannot_tell_the_language_says_und_and_refuses_to_transcribe():
    family = TinyFamily(seed=3)
    family.language_log_probs = lambda memory: memory.states.new_zeros(memory.states.shape[0], 3)
    assert {s.source_language for s in run(["de"], family=family)["de"].segments} == {"und"}
    with pytest.raises(SprachbundError, match="name the source language"):
        run(["transcribe"], family=family)


def test_long_speech_is_split_to_the_window_of_the_model():
    translation = run(["de"], "en", samples=recording((1.0, 18.0)))["de"]
    assert len(translation.segments) >= 4
    assert all(s.end_s - s.start_s <= 5.0 + 1e-6 for s in translation.segments)


def test_words_lie_inside_their_segments():
    options = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1, word_timestamps=True)
    for num_times in (0, 51):
        translation = run(["de"], "en", options, TinyFamily(seed=4, num_times=num_times))["de"]
        assert translation.segments
        for segment in translation.segments:
            seconds = [
                segment.start_s,
                *(t for w in segment.words for t in (w.start_s, w.end_s)),
                segment.end_s,
            ]
            assert seconds == sorted(seconds)
            assert " ".join(w.text for w in segment.words) == segment.text


def test_segments_of_timestamps_are_monotone_and_inside_the_audio():
    translation = run(["de"], "en", family=TinyFamily(seed=4, num_times=51))["de"]
    bounds = [t for s in [*translation.segments] for t in (s.start_s, s.end_s)]
    assert bounds == sorted(bounds)
    assert bounds[0] >= 0.0
    assert bounds[-1] <= translation.duration_s


def test_silence_gives_no_text_and_a_warning():
    translation = run(["de"], "en", samples=recording())["de"]
    assert (translation.text, translation.segments, translation.dropped, translation.source_language) == (
        "",
        (),
        (),
        "en",
    )
    assert "no speech found in 20.0 s" in translation.warnings[0]


def test_what_the_guard_drops_is_kept_with_its_reason():
    guard = GuardOptions(hopeless_mean_log_probability=0.0, min_mean_log_probability=0.0)
    translation = run(["de"], "en", DecodingOptions(guard=guard, max_tokens=8, min_tokens=1))["de"]
    assert translation.text == ""
    assert len(translation.dropped) == len(SPEECH)
    assert all(s.text and s.dropped and s.dropped.startswith("guessing") for s in translation.dropped)
    first = translation.dropped[0]
    times = f"{first.start_s:.1f} to {first.end_s:.1f} s"
    assert f"dropped by the guard (guessing): {times}" in translation.warnings[0]
    assert "--" not in translation.warnings[0]


def test_the_warning_of_dropped_segments_has_the_first_three_times():
    segment = {"text": "x", "source_language": "en", "target_language": "de", "mean_log_probability": -1.0}
    segments = [
        Segment(**segment, start_s=10.0 * i, end_s=10.0 * i + 2.25, dropped="loop: so it is")
        for i in range(5)
    ]
    (warning,) = build_translation(segments, target="de", source="en", duration_s=60.0).warnings
    times = "0.0 to 2.2 s, 10.0 to 12.2 s, 20.0 to 22.2 s and 2 more"
    assert warning == f"5 of 5 segments dropped by the guard (loop): {times}"


def test_segments_that_are_likely_wrong_are_named_unless_advice_takes_their_place():
    segment = {"text": "x", "source_language": "en", "target_language": "de"}
    segments = [
        Segment(**segment, start_s=10.0 * i, end_s=10.0 * i + 2.25, out_of_domain=doubt)
        for i, doubt in enumerate((None, 0.5, 0.51, 0.9))
    ]
    (warning,) = build_translation(segments, target="de", source="en", duration_s=60.0).warnings
    assert warning == "2 of 4 segments have a text that is likely wrong: 20.0 to 22.2 s, 30.0 to 32.2 s"
    advised = build_translation(segments, target="de", source="en", duration_s=60.0, advice="take another")
    assert advised.warnings == ("take another",)


def test_a_pair_the_model_does_not_know_is_refused_with_those_it_does():
    family = TinyFamily(seed=3)
    family.known_pairs = frozenset({("de", "de"), ("de", "en"), ("en", "en"), ("fr", "fr"), ("fr", "en")})
    with pytest.raises(
        SprachbundError, match=r"en to de; from en it knows en \(English\); into de it knows de"
    ):
        run(["de"], "en", family=family)
    with pytest.raises(
        SprachbundError, match=r"writes de only for speech in de; .*choose from en \(English\)"
    ):
        run(["de"], family=family)


def test_speech_from_which_the_target_is_not_known_is_never_given_another_language():
    family = TinyFamily(seed=3)
    spoken = [s.source_language for s in run(["transcribe"], family=family)["transcribe"].segments]
    family.known_pairs -= {(spoken[0], "de")}
    translations = run(["de", "en"], family=family)
    unknown = [s for s in translations["de"].dropped if s.dropped == f"unknown pair: {spoken[0]} to de"]
    assert len(unknown) == spoken.count(spoken[0])
    assert len(translations["en"].segments) == len(SPEECH)


def test_a_recording_in_no_language_the_target_is_known_from_is_an_error():
    family = TinyFamily(seed=3)
    family.known_pairs -= {("fr", "de")}
    options = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1, allowed_languages=("fr",))
    with pytest.raises(SprachbundError, match="does not know the pair fr to de"):
        run(["de"], None, options, family)


def test_languages_that_may_be_spoken_are_refused_beside_a_source():
    for allowed, message in [
        (("en", "de"), "the source is fr, and the languages that may be spoken are en, de; add fr"),
        (
            ("en", "French"),
            "the languages that may be spoken are en, fr, from which the model tiny has nothing to",
        ),
    ]:
        with pytest.raises(SprachbundError, match=message):
            run(["de"], "French", replace(OPTIONS, allowed_languages=allowed))


def test_bad_requests_fail_before_any_work():
    family = TinyFamily()
    samples = recording()
    for targets, source, message in [
        (["klingon"], None, "klingon"),
        (["de"], "xx", "'xx'"),
        ([], None, "no target language"),
    ]:
        with pytest.raises(SprachbundError, match=message):
            translate_file(family, samples, targets, source, sample_rate=SAMPLE_RATE)
    with pytest.raises(SprachbundError, match="does not exist"):
        translate_file(family, "/nowhere.wav", ["de"])


def test_a_file_gives_what_its_samples_give(tmp_path):
    samples = np.clip(recording(*SPEECH), -0.99, 0.99)
    path = tmp_path / "talk.wav"
    soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    options = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1, spans=SpanOptions(max_span_s=4.0))
    from_file = translate(TinyFamily(seed=3), path, "German", "en", options, activity=Loudness())
    assert from_file["de"] == run(["de"], "en", options, samples=samples)["de"]


def test_rows_cut_by_the_limit_still_get_words():
    options = DecodingOptions(guard=LENIENT, min_tokens=15, word_timestamps=True)
    for num_times in (0, 51):
        family = TinyFamily(seed=4, max_tokens=20, num_times=num_times)
        assert all(s.words for s in run(["de"], "en", options, family)["de"].segments)


def test_a_prompt_that_the_model_cannot_read_is_refused():
    options = DecodingOptions(guard=LENIENT, max_tokens=8, prompt="abc")
    assert run(["de"], "en", options) != run(["de"], "en", replace(options, prompt=None))
    family = TinyFamily(seed=3)
    family.capabilities = replace(family.capabilities, reads_context=False)
    with pytest.raises(SprachbundError, match="the model tiny has no room for a prompt; leave it out"):
        run(["de"], "en", options, family)


@pytest.mark.parametrize("kind", ["silence", "hiss", "chord", "clicks"])
def test_the_real_detector_finds_no_speech_where_there_is_none(kind):
    rng, time_s = np.random.default_rng(0), np.arange(8 * SAMPLE_RATE) / SAMPLE_RATE
    samples = {
        "silence": np.zeros(len(time_s)),
        "hiss": rng.normal(size=len(time_s)) * 0.1,
        "chord": sum(np.sin(2 * np.pi * f * time_s) for f in (220.0, 277.2, 329.6)) * 0.1,
        "clicks": (rng.random(len(time_s)) > 0.9995) * 0.8,
    }[kind]
    translation = translate(TinyFamily(), samples.astype(np.float32), ["de"], "en", sample_rate=SAMPLE_RATE)[
        "de"
    ]
    assert translation.text == ""

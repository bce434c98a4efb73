"""A transducer that streams: live text is that of the whole under each tier, alone and together, for any blocks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW
from sprachbund.audio.span_options import SpanOptions
from sprachbund.compression.onnx_export import export
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions, GuardOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.calibration import Calibration, Domain
from sprachbund.models.conformer import Conformer, ConformerConfig, StreamingPart, TransducerPart
from sprachbund.models.io import load, save
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveNotice, LiveText
from sprachbund.streaming.options import LiveOptions
from sprachbund.text.tokenizer import Tokenizer
from tests.decoding.test_translate import Loudness, recording
from tests.evaluation.tiny_model import LANGUAGES, SENTENCES
from tests.shared import made_once

SPEECH = [(1.0, 4.5), (6.0, 7.0), (9.0, 16.0)]
OPEN = DecodingOptions(guard=GuardOptions(enabled=False))
TARGETS = ["de", "ru"]
BLANK_BIAS = -1.0


def tiny_transducer(seed: int = 0, **changes: object) -> Conformer:
    """Random weights that write a token at about every third frame."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train([text for s in SENTENCES for text in s.values()], LANGUAGES, 120)
    values: dict[str, object] = {
        "source_languages": LANGUAGES,
        "target_languages": LANGUAGES,
        "num_mel_bins": 40,
        "width": 32,
        "num_heads": 2,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
        "feed_forward_width": 32,
        "kernel_size": 5,
        "streaming": StreamingPart(left_context=28, right_contexts=(6, 1, 0), stem_channels=8),
        "transducer": TransducerPart(prediction_width=24, prediction_layers=1, joint_width=24),
    }
    model = Conformer(ConformerConfig(**{**values, **changes}), tokenizer, tokenizer).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.transducer.joint.parameters():
            parameter.mul_(4.0)
        model.transducer.joint.out.bias[0] += BLANK_BIAS
    return model


def exported() -> Path:
    """The graphs of `tiny_transducer`; to trace them takes some ten seconds."""
    return made_once("tiny-transducer-onnx", lambda folder: export(tiny_transducer(), folder))


def hear(engine: LiveEngine, session, samples: np.ndarray, block: int) -> dict[str, list[str]]:
    result: dict[tuple[str, int], str] = defaultdict(str)
    for begin in range(0, len(samples), block):
        session.push(samples[begin : begin + block])
        while session.due:
            for event in engine.step([session])[0]:
                assert isinstance(event, LiveText)
                assert event.tentative == ""
                result[event.target, event.segment] += event.committed
    session.finish()
    while not session.finished:
        for event in engine.step([session])[0]:
            assert isinstance(event, LiveText)
            result[event.target, event.segment] += event.committed
    return {t: [text.strip() for (target, _), text in sorted(result.items()) if target == t] for t in TARGETS}


def calibrated(layers: Sequence[int] = (1, 2)) -> Conformer:
    """A model that doubts by all that a calibration may read, and writes little."""
    model, rng = tiny_transducer(), np.random.default_rng(3)
    domain = Domain(
        threshold=0.5,
        bias=0.0,
        signals={"mean_log_probability": -0.5, "ctc_disagreement": 2.0},
        encoder=rng.normal(0, 0.5, 32 * max(1, len(layers))).tolist(),
        layers=list(layers),
    )
    model.calibration = Calibration(domain=domain)
    return model


def texts_of(
    model: Conformer, samples: np.ndarray, source: str | None, options: LiveOptions
) -> list[LiveText]:
    engine = LiveEngine(model, OPEN, activity=Loudness())
    session = engine.open(TARGETS, source, options)
    session.push(samples)
    session.finish()
    events = []
    while not session.finished:
        events += engine.step([session])[0]
    return [event for event in events if isinstance(event, LiveText)]


@cache
def talk() -> tuple[Conformer, np.ndarray]:
    return tiny_transducer(), recording(*SPEECH, seed=4)


@cache
def talk_as_a_whole(right: int) -> dict[str, list[str]]:
    return whole(*talk(), right)


def whole(
    model: Conformer, samples: np.ndarray, right: int, options: DecodingOptions = OPEN
) -> dict[str, list[str]]:
    model.encoder.tier = next(tier for tier in model.encoder.tiers if tier.right == right)
    result = translate(model, samples, TARGETS, "en", options, sample_rate=SAMPLE_RATE, activity=Loudness())
    return {target: [s.text for s in result[target].segments] for target in TARGETS}


@pytest.mark.slow
@pytest.mark.parametrize("right", [6, 1, 0])
@pytest.mark.parametrize("block", [1600, 777, 40_000])
def test_live_text_is_that_of_the_whole(right, block):
    model, samples = talk()
    engine = LiveEngine(model, OPEN, activity=Loudness())
    session = engine.open(TARGETS, "en", LiveOptions(right_context=right))
    result = hear(engine, session, samples, block)
    expected = talk_as_a_whole(right)
    assert result == expected
    assert all(len(text) > 5 for texts in expected.values() for text in texts)


@pytest.mark.parametrize("right", [6, 0])
@pytest.mark.parametrize("block", [1600, 777])
def test_the_model_hears_on_through_pauses_shorter_than_those_that_end_a_stretch(right, block):
    model, samples = tiny_transducer(), recording(*SPEECH[:2], duration_s=7.1, seed=4)
    options = replace(OPEN, max_symbols=1)  # random weights write more than a recording may have
    engine = LiveEngine(model, options, activity=Loudness())
    session = engine.open(TARGETS, "en", LiveOptions(right_context=right, pause_s=3.0))
    through = hear(engine, session, samples, block)
    cut = SpanOptions(min_silence_s=3.0)
    assert through == whole(model, samples, right, replace(options, spans=cut))
    assert [len(texts) for texts in through.values()] == [1, 1]
    assert [len(texts) for texts in whole(model, samples, right, options).values()] == [2, 2]


@pytest.mark.parametrize(("source", "layers"), [("en", [1, 2]), (None, [0, 1]), ("en", [])])
def test_the_end_of_a_stretch_is_doubted_as_the_span_of_a_recording_is(source, layers):
    model, samples = calibrated(layers), recording(*SPEECH, seed=4)
    whole = translate(model, samples, TARGETS, source, OPEN, sample_rate=SAMPLE_RATE, activity=Loudness())
    texts = texts_of(model, samples, source, LiveOptions())
    for target in TARGETS:
        ends = [text for text in texts if text.target == target and text.final]
        expected = [segment.out_of_domain for segment in whole[target].segments]
        assert len({round(one, 2) for one in expected}) == len(SPEECH)
        assert [text.out_of_domain for text in ends] == pytest.approx(expected, abs=1e-4)
    assert all(text.out_of_domain is None for text in texts if not text.final)


@pytest.mark.parametrize(("source", "allowed"), [("en", None), (None, ["de", "en"])])
def test_speech_that_sounds_like_another_language_gives_a_warning(source, allowed):
    model, samples = tiny_transducer(), recording(*SPEECH, seed=4)
    with torch.no_grad():
        model.language_head.bias[LANGUAGES.index("ru")] += 20.0
    engine = LiveEngine(model, replace(OPEN, max_symbols=1), activity=Loudness())
    session = engine.open(["de"], source, LiveOptions(right_context=6), allowed_languages=allowed)
    session.push(samples)
    session.finish()
    events = [event for _ in range(20) if not session.finished for event in engine.step([session])[0]]
    (notice,) = (event for event in events if isinstance(event, LiveNotice) and event.kind == "warning")
    assert notice.message.startswith("3 of 3 spans of speech sound like ru (Russian)")


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_a_recording_is_heard_by_the_tier_that_the_model_was_loaded_with(tmp_path, engine):
    model, samples = talk()
    save(model, tmp_path)
    texts = {}
    for right in (6, 0):
        loaded = sprachbund.load(tmp_path, engine=engine, right_context=right).family
        translated = translate(
            loaded, samples, TARGETS, "en", OPEN, sample_rate=SAMPLE_RATE, activity=Loudness()
        )
        texts[right] = {target: [s.text for s in translated[target].segments] for target in TARGETS}
        if engine == "torch":
            assert texts[right] == talk_as_a_whole(right)
    assert texts[6] != texts[0]


def test_a_tier_that_is_not_there_is_refused(tmp_path):
    save(tiny_transducer(), tmp_path)
    with pytest.raises(SprachbundError, match=r"no tier of 3 frames ahead.*trained for 0, 1, 6 frames"):
        sprachbund.load(tmp_path, right_context=3)
    with pytest.raises(
        SprachbundError, match="for transducers that stream, and conformer hears a recording as a whole"
    ):
        sprachbund.load(right_context=1)


def test_a_language_head_that_was_not_trained_is_not_asked():
    assert tiny_transducer().capabilities.hears_language
    assert not tiny_transducer(language_weight=0.0).capabilities.hears_language


@pytest.mark.parametrize(("pause_s", "hears_pause"), [(None, False), (3.0, True)])
def test_last_words_do_not_wait_for_the_end_of_a_long_pause(pause_s, hears_pause):
    model, samples = tiny_transducer(), recording((1.0, 4.5), duration_s=7.4, seed=4)
    engine = LiveEngine(model, replace(OPEN, max_symbols=1), activity=Loudness())
    session = engine.open(["de"], "en", LiveOptions(right_context=6, pause_s=pause_s))
    heard_s = []
    for begin in range(0, len(samples), 1600):
        session.push(samples[begin : begin + 1600])
        heard_s += [session.audio_s for event in engine.step([session])[0] if event.committed]
    assert any(4.5 < second < 5.5 for second in heard_s)
    assert any(second > 6 for second in heard_s) == hears_pause  # random weights write in the pause itself


def test_pauses_too_short_for_what_is_kept_on_either_side_are_refused():
    with pytest.raises(SprachbundError, match=r"pause_s is 0.3.*0.4 or more"):
        LiveOptions(pause_s=0.3)


def test_blocks_of_no_samples_change_nothing():
    model, samples = tiny_transducer(), recording(*SPEECH[:2], seed=4)
    engine = LiveEngine(model, OPEN, activity=Loudness())
    plain, other = (engine.open(TARGETS, "en", LiveOptions(right_context=1)) for _ in range(2))
    for _ in range(3):
        other.push(np.zeros(0, np.float32))
        engine.step([other])
    result = hear(engine, other, samples, 1600)
    assert result == hear(engine, plain, samples, 1600)
    assert any(result.values())


@pytest.mark.slow
def test_streams_together_write_what_each_writes_alone():
    model = tiny_transducer(1)
    talks = [recording(*SPEECH[n:], seed=n) for n in range(3)]
    rights = [6, 1, 6]
    engine = LiveEngine(model, OPEN, activity=Loudness())
    sessions = [engine.open(TARGETS, "en", LiveOptions(right_context=right)) for right in rights]
    result: list[dict[tuple[str, int], str]] = [defaultdict(str) for _ in talks]
    for begin in range(0, len(talks[0]), 3200):
        for session, samples in zip(sessions, talks, strict=True):
            session.push(samples[begin : begin + 3200])
        for own, events in zip(result, engine.step(sessions), strict=True):
            for event in events:
                own[event.target, event.segment] += event.committed
    for session in sessions:
        session.finish()
    while not all(session.finished for session in sessions):
        for own, events in zip(result, engine.step(sessions), strict=True):
            for event in events:
                own[event.target, event.segment] += event.committed
    for own, samples, right in zip(result, talks, rights, strict=True):
        for target, texts in whole(model, samples, right).items():
            assert [text.strip() for (t, _), text in sorted(own.items()) if t == target] == texts


@pytest.mark.slow
def test_tokens_at_one_frame_have_a_limit_in_recordings_and_live():
    model, samples = tiny_transducer(4), recording(*SPEECH[:2], seed=4)
    with torch.no_grad():
        model.transducer.joint.out.bias[0] -= 4.0  # several tokens at a frame
    lengths = []
    for max_symbols in (1, 2, None):
        options = replace(OPEN, max_symbols=max_symbols)
        engine = LiveEngine(model, options, activity=Loudness())
        result = hear(engine, engine.open(TARGETS, "en", LiveOptions(right_context=1)), samples, 1600)
        assert result == whole(model, samples, 1, options)
        lengths.append(sum(len(text) for texts in result.values() for text in texts))
    assert lengths[0] < lengths[1] < lengths[2]


class Murmur(Loudness):
    """Is sure of speech in its first second; behind that, sound only keeps a stretch open."""

    def stream(self):
        self._loud, self._heard = super().stream(), 0
        return self

    def feed(self, block):
        loud = self._loud.feed(block)
        unsure = self._heard + np.arange(len(loud)) > SAMPLE_RATE / VAD_WINDOW
        self._heard += len(loud)
        return np.where(unsure, loud * np.float32(0.4), loud)

    def finish(self):
        return self._loud.finish()


@pytest.mark.slow
@pytest.mark.parametrize("activity", [Loudness(), Murmur()])
def test_speech_without_a_pause_holds_a_bounded_memory(monkeypatch, activity):
    monkeypatch.setattr("sprachbund.streaming.by_frames._LATEST", 40)
    model = calibrated()
    engine = LiveEngine(model, OPEN, activity=activity)
    session = engine.open(["de"], "en", LiveOptions(right_context=1))
    samples, most = recording((0.5, 30.0), duration_s=31.0), 0
    for begin in range(0, len(samples), 1600):
        session.push(samples[begin : begin + 1600])
        while session.due:
            engine.step([session])
        stretch = session._open
        if stretch is not None:
            most = max(most, len(stretch.samples))
            assert stretch.number == 0
            assert stretch.stream is None or stretch.stream.latest.num_frames < 40 + 2  # and a chunk of two
    assert most < 3 * SAMPLE_RATE


@pytest.mark.slow
def test_a_model_survives_the_disk_and_writes_the_same(tmp_path: Path):
    model, samples = tiny_transducer(2), recording(*SPEECH, seed=1)
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.capabilities.transducer is not None
    assert whole(again, samples, 6) == whole(model, samples, 6)  # type: ignore[arg-type]


def test_a_beam_finds_at_least_what_greedy_does():
    model, samples = tiny_transducer(3), recording((1.0, 4.0), duration_s=5.0)
    scores = []
    for beam_size in (1, 6):
        options = DecodingOptions(guard=GuardOptions(enabled=False), beam_size=beam_size)
        result = translate(
            model, samples, ["de"], "en", options, sample_rate=SAMPLE_RATE, activity=Loudness()
        )
        scores.append(result["de"].segments[0].mean_log_probability)
    assert len(scores) == 2
    assert all(np.isfinite(scores))


@pytest.mark.parametrize(
    ("options", "targets", "message"),
    [
        (LiveOptions(right_context=3), ["de"], "0, 1, 6"),
        (LiveOptions(policy="alignatt"), ["de"], "auto, frames, span"),
        (LiveOptions(), [TRANSCRIBE], "name the language spoken"),
    ],
)
def test_what_cannot_be_is_said_when_a_session_opens(options, targets, message):
    engine = LiveEngine(tiny_transducer(), OPEN, activity=Loudness())
    with pytest.raises(SprachbundError, match=message):
        engine.open(targets, "en", options)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"guard": GuardOptions(min_speech_probability=0.7)},
            "min_speech_probability is 0.7, and .* before the guard",
        ),
        ({"guard": GuardOptions(max_repetition=0.2)}, "max_repetition is 0.2, and .* before the guard"),
        ({"spans": SpanOptions(max_span_s=10.0)}, "max_span_s is 10.0, and .* that pauses alone end"),
        ({"language_windows": 5}, "language_windows is 5, and .* language of each stretch by itself"),
    ],
)
def test_what_would_change_nothing_frame_by_frame_is_refused(asked, says):
    decoding = DecodingOptions(**asked)
    engine = LiveEngine(tiny_transducer(), decoding, activity=Loudness())
    with pytest.raises(SprachbundError, match=says):
        engine.open(["de"], "en")
    assert engine.open(["de"], "en", LiveOptions(policy="span")).options.policy == "span"


def test_a_longest_span_of_one_session_is_refused_frame_by_frame():
    engine = LiveEngine(tiny_transducer(), OPEN, activity=Loudness())
    with pytest.raises(SprachbundError, match=r"max_span_s is 9.0"):
        engine.open(["de"], "en", spans=SpanOptions(max_span_s=9.0))


def test_live_text_by_frames_is_greedy():
    engine = LiveEngine(tiny_transducer(), DecodingOptions(beam_size=3), activity=Loudness())
    with pytest.raises(
        SprachbundError, match="beam_size is 3, and live text of conformer frame by frame is greedy; give 1"
    ):
        engine.open(["de"], "de")
    engine.open(["de"], "de", LiveOptions(policy="span"))


def test_an_attention_model_has_no_frames():
    from tests.decoding.tiny_family import TinyFamily

    with pytest.raises(SprachbundError, match="local-agreement"):
        LiveEngine(TinyFamily(), activity=Loudness()).open(["de"], options=LiveOptions(policy="frames"))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"min_tokens": 2}, "frame by frame"),
        ({"word_timestamps": True}, "frame by frame"),
        ({"prompt": "Zug"}, "no room for a prompt"),
    ],
)
def test_options_of_attention_decoders_are_refused(field, message):
    options = DecodingOptions(guard=GuardOptions(enabled=False), **field)
    with pytest.raises(SprachbundError, match=message):
        translate(
            tiny_transducer(),
            recording(*SPEECH),
            ["de"],
            "en",
            options,
            sample_rate=SAMPLE_RATE,
            activity=Loudness(),
        )


def test_a_model_without_a_transducer_has_no_limit_at_a_frame():
    from tests.decoding.tiny_family import TinyFamily

    with pytest.raises(SprachbundError, match="max_symbols is 2, and the model tiny has no transducer"):
        translate(TinyFamily(), recording(*SPEECH), ["de"], "en", replace(OPEN, max_symbols=2))

"""Spans that a calibrated model does not understand are heard again at other tempos."""

from dataclasses import replace

import pytest

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.tempo import change_tempo
from sprachbund.decoding import long_form, pipeline
from sprachbund.decoding.guard import OUT_OF_DOMAIN
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.result import Segment
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import BatchDecoder
from sprachbund.models.calibration import Calibration, Domain
from sprachbund.streaming.engine import LiveEngine
from tests.decoding.test_translate import LENIENT, SPEECH, Loudness, recording
from tests.decoding.tiny_family import TinyFamily

OPTIONS = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1, word_timestamps=True)
TEMPOS = (1.3, 1.6)
AGAIN = replace(OPTIONS, tempos=TEMPOS)


def calibrated() -> TinyFamily:
    family = TinyFamily(seed=3)
    family.calibration = Calibration(domain=Domain(threshold=0.8, bias=0.0, signals={}, encoder=[0.0] * 16))
    return family


@pytest.fixture
def doubts_long_spans(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """A model that is sure of spans up to 1.25 s, and doubts others by their length; the batches that it evaluated."""
    evaluated: list[list[float]] = []

    def doubts(family, memory, sources, hypotheses, durations_s, targets, latest, ended):
        evaluated.append(list(durations_s))
        return [[doubt(seconds)] * len(row) for seconds, row in zip(durations_s, targets, strict=True)]

    monkeypatch.setattr(pipeline, "out_of_domain", doubts)
    return evaluated


def doubt(seconds: float) -> float:
    return 0.05 if seconds < 1.25 else min(0.99, 0.3 * seconds)


def segments(
    options: DecodingOptions, family: TinyFamily | None = None, to: tuple[str, ...] = ("de",)
) -> list[Segment]:
    translations = long_form.translate(
        family or calibrated(),
        recording(*SPEECH),
        list(to),
        "en",
        options,
        sample_rate=SAMPLE_RATE,
        activity=Loudness(),
    )
    return sorted(
        (segment for one in translations.values() for segment in (*one.segments, *one.dropped)),
        key=lambda segment: (segment.target_language, segment.start_s),
    )


def test_what_is_in_doubt_is_heard_at_every_tempo_and_the_least_doubt_stands(doubts_long_spans) -> None:
    plain = segments(OPTIONS)
    doubts_long_spans.clear()
    again = segments(AGAIN)
    durations = [segment.end_s - segment.start_s for segment in plain]
    assert len({round(duration_s, 1) for duration_s in durations}) >= 3
    changed = []
    for before, after, own_s in zip(plain, again, durations, strict=True):
        assert (before.dropped or "").startswith(OUT_OF_DOMAIN) == (doubt(own_s) > 0.8)
        # Of other tempos only what is likelier right than not: the model's own threshold would let 0.8 pass.
        tried = {
            tempo: doubt(own_s / tempo)
            for tempo in TEMPOS
            if doubt(own_s / tempo) <= 0.5 and doubt(own_s) > 0.1
        }
        best = min(tried, key=lambda tempo: tried[tempo], default=1.0)
        assert after.tempo == best
        assert after.out_of_domain == pytest.approx(tried.get(best, doubt(own_s)), abs=1e-3)
        changed.append(best != 1.0)
        if best == 1.0:
            assert after == before
    assert 0 < sum(changed) < len(changed)
    evaluated = sorted(d for batch in doubts_long_spans for d in batch)
    wanted = [*durations, *(d / tempo for d in durations if doubt(d) > 0.1 for tempo in TEMPOS)]
    assert evaluated == pytest.approx(sorted(wanted), abs=1e-3)


def test_what_is_heard_again_is_the_text_of_the_faster_copy_at_the_times_of_the_recording(
    doubts_long_spans,
) -> None:
    again = next(segment for segment in segments(AGAIN) if segment.tempo != 1.0)
    plain = next(segment for segment in segments(OPTIONS) if segment.start_s == again.start_s)
    assert again.end_s == pytest.approx(plain.end_s, abs=1e-4)
    samples = recording(*SPEECH)[round(plain.start_s * SAMPLE_RATE) : round(plain.end_s * SAMPLE_RATE)]
    faster = change_tempo(samples, again.tempo)
    alone = long_form.translate(
        calibrated(), faster, ["de"], "en", OPTIONS, sample_rate=SAMPLE_RATE, activity=Loudness()
    )["de"]
    assert again.text == alone.text != ""
    assert again.text != plain.text
    assert again.words
    assert [word.text for word in again.words] == [word.text for word in alone.segments[0].words]
    for word, heard in zip(again.words, alone.segments[0].words, strict=True):
        assert word.start_s == pytest.approx(plain.start_s + again.tempo * heard.start_s, abs=1e-4)
        assert word.end_s == pytest.approx(plain.start_s + again.tempo * heard.end_s, abs=1e-4)
        assert plain.start_s <= word.start_s <= word.end_s <= plain.end_s + 1e-4
    assert again.to_dict()["tempo"] == again.tempo
    assert Segment.from_dict(again.to_dict()).tempo == again.tempo
    assert "tempo" not in plain.to_dict()


def test_spans_of_several_targets_and_batches_have_the_same_texts(doubts_long_spans) -> None:
    together = segments(AGAIN, to=("de", "fr"))
    one_by_one = segments(replace(AGAIN, batch_size=1), to=("de", "fr"))
    assert [(s.text, s.tempo, s.dropped) for s in together] == [
        (s.text, s.tempo, s.dropped) for s in one_by_one
    ]
    assert [(s.text, s.tempo) for s in together if s.target_language == "de"] == [
        (s.text, s.tempo) for s in segments(AGAIN)
    ]


def test_what_is_measured_is_what_is_served(doubts_long_spans) -> None:
    samples = recording((0.0, 1.6), duration_s=1.6)
    options = replace(AGAIN, word_timestamps=False)
    decoder = BatchDecoder(calibrated(), options)
    decoder._activity = Loudness()  # type: ignore[assignment]
    [[(text, evidence)]] = decoder.decode([samples], [["de"]], ["en"])
    served = long_form.translate(
        calibrated(), samples, ["de"], "en", options, sample_rate=SAMPLE_RATE, activity=Loudness()
    )["de"]
    assert evidence.dropped is None
    assert text == served.text != ""


def test_each_tempo_has_a_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the spans of a slow speaker are not understood at their own tempo is no reason to doubt faster copies."""
    memories: list[list[int]] = []
    kept: list[object] = []  # so that no two of them have the same id

    def doubts(family, memory, sources, hypotheses, durations_s, targets, latest, ended):
        kept.extend(latest)
        memories.append([id(one) for one in latest])
        return [[0.9] * len(row) for row in targets]

    monkeypatch.setattr(pipeline, "out_of_domain", doubts)
    assert all(segment.tempo == 1.0 for segment in segments(AGAIN))
    by_batch = [set(batch) for batch in memories]
    assert all(len(batch) == 1 for batch in by_batch)
    own, first, second = ([*by_batch[n::3]] for n in range(3))
    assert own[0] != first[0] != second[0] != own[0]
    assert len(own) > 1
    for same in (own, first, second):
        assert all(batch == same[0] for batch in same)


def test_a_copy_that_is_longer_than_the_window_is_not_heard(doubts_long_spans) -> None:
    segments(replace(OPTIONS, tempos=(0.5,)))
    longest = max(duration_s for batch in doubts_long_spans for duration_s in batch)
    assert 3.0 < longest <= calibrated().max_window_s


@pytest.mark.parametrize("tempos", [(1.0,), (0.4,), (1.3, 2.1), (float("nan"),)])
def test_tempos_that_cannot_be_are_refused(tempos: tuple[float, ...]) -> None:
    with pytest.raises(SprachbundError, match=r"tempos is .*from 0\.5 to 2 other than 1, such as 1\.3,1\.6"):
        DecodingOptions(tempos=tempos)


def test_models_without_calibration_and_live_text_are_refused() -> None:
    with pytest.raises(
        SprachbundError, match=r"tempos is \(1\.3, 1\.6\), .*not calibrated.*sprachbund calibrate"
    ):
        segments(AGAIN, TinyFamily(seed=3))
    with pytest.raises(SprachbundError, match=r"live text is heard at its own tempo.*afterwards"):
        LiveEngine(calibrated(), AGAIN, activity=Loudness())

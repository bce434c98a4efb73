from statistics import mean

import pytest
import sacrebleu

from tests.evaluation.made import line, made_lines
from tests.evaluation.scores import find_score, score_lines

PAIRS = (("en", "de"), ("en", "fr"), ("fr", "de"), ("de", "de"))


@pytest.fixture(scope="module")
def lines():
    return made_lines(30, 0.3, pairs=PAIRS)


def chrf_of(lines):
    return sacrebleu.corpus_chrf([x.hypothesis for x in lines], [[x.reference for x in lines]]).score


def test_pairs_and_plain_means(lines):
    scores = score_lines(lines)
    by_pair = {p: chrf_of([x for x in lines if x.pair == p]) for p in PAIRS}
    for source, target in PAIRS:
        value = find_score(scores, "chrF", f"{source}-{target}", group="pair")
        assert value == pytest.approx(by_pair[source, target], abs=1e-9)
    wanted = mean(v for (s, t), v in by_pair.items() if s != t)
    assert find_score(scores, "chrF", "all", group="mean", task="translation") == pytest.approx(wanted)
    transcription = find_score(scores, "chrF", "all", group="mean", task="transcription")
    assert transcription == pytest.approx(by_pair["de", "de"])


def test_groups_are_means_over_their_own_pairs(lines):
    scores = score_lines(lines)
    chosen = [x for x in lines if x.speaker == "speaker-2"]
    wanted = mean(chrf_of([x for x in chosen if x.pair == p]) for p in PAIRS if p[0] != p[1])
    result = find_score(scores, "chrF", "speaker-2", group="speaker", task="translation")
    assert result == pytest.approx(wanted)
    into_german = mean(chrf_of([x for x in lines if x.pair == p]) for p in (("en", "de"), ("fr", "de")))
    assert find_score(scores, "chrF", "de", group="target", task="translation") == pytest.approx(into_german)
    assert {s.group for s in scores} == {"pair", "mean", "target", "source", "corpus", "kind", "speaker"}


def test_error_rates_are_for_transcription_only(lines):
    scores = score_lines(lines)
    assert {s.task for s in scores if s.metric == "WER"} == {"transcription"}


def test_sound_without_speech_is_not_scored(lines):
    silent = line("made up", "", source="", target="de", kind="hum")
    assert score_lines([*lines, silent]) == score_lines(lines)


def test_normalized_text_is_scored_apart():
    lines = [line("Guten Tag, Welt!", "guten tag welt", id="1"), line("ja", "Ja.", id="2")]
    raw = find_score(score_lines(lines), "exact", "en-de")
    normalized = find_score(score_lines(lines, text="normalized"), "exact", "en-de")
    assert (raw, normalized) == (0, 100)


def test_a_reference_of_punctuation_alone_stays_raw():
    lines = [line("x", "?!", id="1"), line("ja", "ja", id="2")]
    assert find_score(score_lines(lines, text="normalized"), "exact", "en-de") == 50

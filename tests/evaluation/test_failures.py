"""Every failure on made cases: those that are and those that only look so."""

import pytest

from sprachbund.evaluation.failures import DEFINITIONS, FailureClassifier, Rate
from sprachbund.evaluation.lines import DecodingEvidence
from tests.evaluation.made import line

REFERENCE = "bitte drücken Sie die zwei um mit der Vermittlung zu sprechen"
TRANSCRIPT = "please press two to speak to the operator"
GOOD = line(REFERENCE, REFERENCE, transcript=TRANSCRIPT)
CASES = {
    "hallucination": line("thank you", "", source="", kind="hum"),
    "repetition": line("zwei zwei zwei zwei zwei zwei zwei zwei", REFERENCE, transcript=TRANSCRIPT),
    "omission": line("bitte drücken Sie die sprechen zu", REFERENCE, transcript=TRANSCRIPT),
    "truncation": line("bitte drücken Sie die zwei um", REFERENCE, transcript=TRANSCRIPT),
    "copy": line("please press two to speak to the operator", REFERENCE, transcript=TRANSCRIPT),
    "wrong language": line(
        "appuyez sur le deux pour parler à la réception", REFERENCE, transcript=TRANSCRIPT
    ),
}


@pytest.fixture(scope="module")
def classifier():
    return FailureClassifier(["de", "en", "fr", "tr"])


def failures(classifier, made):
    return {name for name, failed in classifier.classify(made).items() if failed}


def test_each_is_defined_in_words():
    assert set(DEFINITIONS) == set(CASES)
    assert all(len(text) > 100 for text in DEFINITIONS.values())


@pytest.mark.parametrize("name", CASES)
def test_planted_failures_are_found(classifier, name):
    assert name in failures(classifier, CASES[name])


def test_a_good_line_fails_in_nothing(classifier):
    assert failures(classifier, GOOD) == set()
    assert set(classifier.classify(GOOD)) == set(CASES) - {"hallucination"}


def test_hallucination_is_of_sound_without_speech_only(classifier):
    assert classifier.classify(line("", "", source=""))["hallucination"] is False
    assert classifier.classify(line(" ... ", "", source=""))["hallucination"] is False
    assert "hallucination" not in classifier.classify(GOOD)


def test_repeated_digits_that_were_said_are_no_loop(classifier):
    said = "fünf fünf fünf fünf fünf fünf"
    assert failures(classifier, line(said, said, transcript="five five five five five five")) == set()
    assert "repetition" in failures(classifier, line(said, "fünf fünf", transcript="five five"))


def test_nothing_written_is_omission_and_not_truncation(classifier):
    assert failures(classifier, line("", REFERENCE, transcript=TRANSCRIPT)) == {"omission"}


def test_a_paraphrase_of_like_length_omits_nothing(classifier):
    other = "wählen Sie zwei wenn Sie jemanden von uns erreichen möchten jetzt"
    assert "omission" not in failures(classifier, line(other, REFERENCE, transcript=TRANSCRIPT))


def test_a_row_that_the_limit_cut_is_truncated(classifier):
    cut = line(REFERENCE, REFERENCE, transcript=TRANSCRIPT, evidence=DecodingEvidence(finished=False))
    assert failures(classifier, cut) == {"truncation"}


def test_a_wrong_beginning_is_not_truncated(classifier):
    assert "truncation" not in failures(
        classifier, line("etwas ganz anderes", REFERENCE, transcript=TRANSCRIPT)
    )


def test_names_and_transcription_are_no_copies(classifier):
    assert "copy" not in classifier.classify(line("Amsterdam", "Amsterdam", transcript="Amsterdam"))
    assert "copy" not in classifier.classify(line("taxi", "Taxi", transcript="taxi"))
    assert "copy" not in classifier.classify(
        line("hello there", "hello there", target="en", transcript="hello there")
    )


def test_what_cannot_be_told_is_not_in_a_wrong_language(classifier):
    assert "wrong language" not in classifier.classify(line("Berlin", "Berlin", transcript="Berlin"))
    assert "wrong language" not in classifier.classify(line("12 345 678 901 234", "x" * 12, transcript="x"))


def test_languages_beyond_the_phrasebook_are_identified(classifier):
    said = "Monday is the third of September"
    turkish = line(said, "Pazartesi günü üç Eylül", target="tr", transcript="x")
    assert classifier.classify(turkish)["wrong language"] is True


def test_varieties_of_a_language_are_that_language():
    classifier = FailureClassifier(["pt-BR", "pt"])
    text = "a casa fica junto ao rio e o tempo está bom hoje"
    for target in ("pt", "pt-BR"):
        assert classifier.classify(line(text, text, target=target, transcript="x"))["wrong language"] is False


def test_languages_that_the_identifier_does_not_know_are_not_evaluated():
    classifier = FailureClassifier(["tlh"])
    text = "nuqDaq 'oH puchpa''e' nuqDaq 'oH puchpa''e'"
    assert "wrong language" not in classifier.classify(line(text, text, target="tlh", transcript="x"))


def test_scripts_without_spaces_are_compared_by_characters(classifier):
    chinese = line("请按二", "请按二键与接线员通话", target="zh", transcript=TRANSCRIPT)
    assert {"omission", "truncation"} <= failures(classifier, chinese)


def test_rates(classifier):
    rates = classifier.rates([GOOD, CASES["copy"], CASES["hallucination"], line("", "", source="")])
    assert rates["copy"] == Rate(failed=1, evaluated=2)
    assert rates["hallucination"].percent == 50
    low, high = Rate(failed=0, evaluated=100).interval()
    assert low == 0
    assert high == pytest.approx(3.70, abs=0.01)  # Wilson's interval, as in textbooks

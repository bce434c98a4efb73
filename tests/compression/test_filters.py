"""Filters: each reason is found where it is planted and nowhere else, and is told with what was seen."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.compression.options import FilterOptions
from sprachbund.compression.pseudo_labels import kind_of, length_ratio, why_dropped
from sprachbund.decoding.options import GuardOptions
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import DecodingEvidence
from sprachbund.text.identify import LanguageIdentifier

IDENTIFIER = LanguageIdentifier(["en", "de", "pt"])
GOOD = DecodingEvidence(mean_log_probability=-0.2, speech_probability=0.9, no_speech_probability=0.01)
TEXT, TRANSCRIPT = "wo ist der Zug in die Stadt", "where is the train to the city"


def why(text: str = TEXT, evidence: DecodingEvidence = GOOD, **changes: object) -> str | None:
    values = {"source": "en", "target": "de", "transcript": TRANSCRIPT, "duration_s": 3.0, **changes}
    options = values.pop("options", FilterOptions())
    return why_dropped(text, evidence, identifier=IDENTIFIER, options=options, **values)  # type: ignore[arg-type]


def test_a_good_label_is_kept() -> None:
    assert why() is None
    assert why(TRANSCRIPT, target="en", transcript="") is None


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("no speech", {"evidence": replace(GOOD, speech_probability=0.2)}),
        ("no speech", {"evidence": replace(GOOD, mean_log_probability=-1.2, no_speech_probability=0.9)}),
        ("guessing", {"evidence": replace(GOOD, mean_log_probability=-1.2)}),
        ("cut off", {"evidence": replace(GOOD, finished=False)}),
        ("loop", {"text": "wo ist der Zug " * 12, "duration_s": 30.0}),
        ("too much text", {"duration_s": 0.1, "text": TEXT + ", bitte sagen Sie es noch einmal"}),
        ("no text", {"text": " … "}),
        ("length", {"text": "ja, der Zug"[:2]}),
        ("length", {"transcript": "no", "text": TEXT}),
        ("wrong language", {"text": "where is the train to the city"}),
    ],
)
def test_each_fault_is_named(kind: str, label: dict[str, object]) -> None:
    reason = why(**label)
    assert reason is not None
    assert kind_of(reason) == kind


def test_text_that_was_not_said_is_dropped_beyond_the_limit() -> None:
    doubted = replace(GOOD, out_of_domain=0.8)
    assert why(evidence=doubted) is None  # nobody calibrated the teacher
    assert why(evidence=doubted, max_out_of_domain=0.9) is None
    reason = why(evidence=doubted, max_out_of_domain=0.7)
    assert reason == "out of domain: probability 0.80"
    assert why(max_out_of_domain=0.0) is None


def test_every_threshold_moves_its_line() -> None:
    unsure = replace(GOOD, mean_log_probability=-1.2)
    loose = GuardOptions(hopeless_mean_log_probability=-2.0)
    assert why(evidence=unsure, options=FilterOptions(guard=loose)) is None
    assert why("ja", options=FilterOptions(max_length_ratio=10.0)) is None
    assert why(TRANSCRIPT, options=FilterOptions(max_other_language=1.0)) is None
    quiet = replace(GOOD, speech_probability=0.2)
    assert why(evidence=quiet, options=FilterOptions(guard=GuardOptions(min_speech_probability=0.1))) is None


def test_lengths_are_not_compared_without_a_transcript_or_with_itself() -> None:
    assert why(transcript="") is None
    assert why("where", target="en", transcript=TRANSCRIPT) is None


def test_a_variety_is_no_other_language() -> None:
    text = "onde está o trem para a cidade"
    assert why(text, target="pt") is None
    both = LanguageIdentifier(["en", "pt", "pt-BR"])
    asked = {"source": "en", "transcript": TRANSCRIPT, "duration_s": 3.0, "options": FilterOptions()}
    assert why_dropped(text, GOOD, target="pt-BR", identifier=both, **asked) is None  # type: ignore[arg-type]


def test_short_texts_and_languages_unknown_to_the_identifier_are_not_filtered() -> None:
    assert why("the city", transcript="die Stadt") is None
    assert why(TRANSCRIPT, target="fr") is None


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_ratio_of_lengths_is_symmetric_and_at_least_one(first: str, second: str) -> None:
    assert length_ratio(first, second) == length_ratio(second, first) >= 1
    assert length_ratio(first, first) == 1


def test_wide_letters_count_twice() -> None:
    # 5 + 2 * 8 against 5 + 16: eight characters of Chinese are as long as sixteen letters.
    assert length_ratio("火车站在哪里请问", "abcdefghijklmnop") == 1.0


@pytest.mark.parametrize(
    "wrong", [{"max_length_ratio": 0.5}, {"max_other_language": 1.5}, {"min_language_probability": -1.0}]
)
def test_thresholds_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SprachbundError, match=next(iter(wrong))):
        FilterOptions(**wrong)

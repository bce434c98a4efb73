"""Numbers of segments in digits: times of words survive, and what cannot be served is an error."""

from dataclasses import replace

import pytest

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.result import Alternative, Segment, Word
from sprachbund.decoding.written_form import check_digits, segment_in_digits
from sprachbund.errors import SprachbundError
from sprachbund.streaming.engine import LiveEngine
from tests.decoding.test_translate import LENIENT, SPEECH, Loudness, recording
from tests.decoding.tiny_family import TinyFamily


def segment(text: str, language: str) -> Segment:
    words = tuple(
        Word(start_s=float(n), end_s=n + 0.5, text=word, probability=0.1 * (n + 1))
        for n, word in enumerate(text.split())
    )
    return Segment(
        start_s=0.0, end_s=9.0, source_language="de", target_language=language, text=text, words=words
    )


def test_a_word_made_from_several_has_their_time_and_mean_probability():
    written = segment_in_digits(segment("at half past five we had twenty one cats", "en-GB"))
    assert written.text == "at 5:30 we had 21 cats"
    assert " ".join(word.text for word in written.words) == written.text
    times = {word.text: (word.start_s, word.end_s, round(word.probability, 3)) for word in written.words}
    assert times["5:30"] == (1.0, 3.5, 0.3)
    assert times["21"] == (6.0, 7.5, 0.75)
    assert times["cats"] == (8.0, 8.5, 0.9)


def test_alternatives_are_in_digits_too():
    others = (Alternative(text="at half past nine", log_probability=-3.0),)
    written = segment_in_digits(replace(segment("at half past five", "en"), alternatives=others))
    assert written.alternatives == (Alternative(text="at 9:30", log_probability=-3.0),)


def test_what_was_said_is_in_digits_too():
    written = segment_in_digits(replace(segment("at half past five", "en"), source_text="um halb sechs"))
    assert written.source_text == "um 5:30"


def test_other_languages_of_transcripts_keep_their_words():
    kept = segment("twintig euro", "nl")
    assert segment_in_digits(kept) == kept
    check_digits(["transcribe", "de", "en-GB"])


def test_a_target_without_rules_is_an_error():
    with pytest.raises(SprachbundError, match=r"digits is True, .* in nl \(Dutch\); leave it out"):
        check_digits(["de", "nl"])


def test_a_model_without_numbers_writes_the_same_with_digits():
    def text(digits: bool) -> str:
        options = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1, digits=digits)
        samples = recording(*SPEECH)
        translations = translate(
            TinyFamily(seed=3), samples, ["de"], "en", options, sample_rate=SAMPLE_RATE, activity=Loudness()
        )
        return " ".join(translations["de"].text.split())

    assert text(True) == text(False) != ""


def test_live_text_has_no_digits():
    with pytest.raises(SprachbundError, match="digits is True, and live text is not written in digits"):
        LiveEngine(TinyFamily(), DecodingOptions(digits=True), activity=Loudness())

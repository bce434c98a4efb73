"""Punctuation of segments: times of words survive, sentences cross segments, and what cannot be served is an error."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.result import Alternative, Segment, Word
from sprachbund.decoding.texts import translate_texts
from sprachbund.decoding.written_form import check_punctuation, punctuated_segments, text_with_marks
from sprachbund.errors import SprachbundError
from sprachbund.models.cascade import Cascade
from sprachbund.streaming.engine import LiveEngine
from sprachbund.text.punctuation import FullStop, Label
from tests.decoding.test_cascade import Reading, speech
from tests.decoding.test_one_pipeline import OPEN, corpus, evaluated, served
from tests.decoding.test_translate import LENIENT, SPEECH, Loudness, recording
from tests.decoding.tiny_family import TinyFamily


class Planted:
    """Ends a sentence behind "stop", puts a comma behind "and"; it knows English alone."""

    name = "planted"
    languages = ("en",)

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def label(self, texts: Sequence[Sequence[str]], language: str) -> list[list[Label]]:
        self.seen += [list(words) for words in texts]
        marks = {"stop": ".", "and": ","}
        return [[Label(mark=marks.get(word, "")) for word in words] for words in texts]


def segment(text: str, start_s: float = 0.0, language: str = "en", **more: object) -> Segment:
    words = tuple(
        Word(start_s=start_s + n, end_s=start_s + n + 0.5, text=word, probability=0.5)
        for n, word in enumerate(text.split())
    )
    return Segment(
        start_s=start_s,
        end_s=start_s + 9,
        source_language="de",
        target_language=language,
        text=text,
        words=words,
        **more,
    )


def wordless() -> TinyFamily:
    """A model whose vocabulary has no full stop."""
    family = TinyFamily(seed=3)
    family.capabilities = replace(family.capabilities, words_only=True)
    return family


def test_a_sentence_goes_on_in_the_next_segment_and_words_keep_their_times():
    punctuator = Planted()
    spoken = [
        segment("go on and", 0.0),
        segment("noise", 10.0, dropped="loop"),
        segment("then stop good", 20.0),
    ]
    first, dropped, last = punctuated_segments(spoken, punctuator)
    assert punctuator.seen == [["go", "on", "and", "then", "stop", "good"]]
    assert (first.text, last.text) == ("Go on and,", "then stop. Good")
    assert dropped == spoken[1]
    for before, after in ((spoken[0], first), (spoken[2], last)):
        assert " ".join(word.text for word in after.words) == after.text
        assert [replace(word, text="") for word in after.words] == [
            replace(word, text="") for word in before.words
        ]


def test_alternatives_have_marks_too():
    """An alternative is the text of the whole span; that of a dropped segment stays, as its text does."""
    others = (Alternative(text="go on and stop then", log_probability=-3.0),)
    spoken = [
        segment("go on", alternatives=others),
        segment("noise", 10.0, dropped="loop", alternatives=others),
    ]
    written, dropped = punctuated_segments(spoken, Planted())
    assert written.alternatives == (replace(others[0], text="Go on and, stop. Then"),)
    assert dropped.alternatives == others


def test_languages_that_are_not_known_keep_their_text():
    kept = segment("ga door stop", language="nl")
    assert punctuated_segments([kept], Planted()) == (kept,)
    assert text_with_marks("ga stop", "nl", Planted()) == "ga stop"
    assert text_with_marks("go stop", "en-GB", Planted()) == "Go stop."
    assert text_with_marks("去 哪里", "zh", FullStop()) == "去 哪里"
    check_punctuation(["transcribe", "en-GB"], Planted())
    with pytest.raises(SprachbundError, match=r"planted.*does not know de \(German\).*en \(English\)"):
        check_punctuation(["en", "de"], Planted())


def translated(family, options: DecodingOptions, target: str = "de") -> list[Segment]:
    samples = recording(*SPEECH)
    translations = translate(
        family, samples, [target], "en", options, sample_rate=SAMPLE_RATE, activity=Loudness()
    )
    return list(translations[target].segments)


OPTIONS = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1, word_timestamps=True)


def test_every_span_is_punctuated_and_nothing_else_changes():
    plain = translated(wordless(), OPTIONS)
    written = translated(wordless(), replace(OPTIONS, punctuate="rule"))
    assert len(plain) == len(SPEECH)
    for before, after in zip(plain, written, strict=True):
        assert after.text == before.text[0].upper() + before.text[1:] + "."
        assert [replace(word, text="") for word in after.words] == [
            replace(word, text="") for word in before.words
        ]
        assert replace(after, text="", words=()) == replace(before, text="", words=())


def test_the_guard_sees_the_text_without_marks():
    """Evidence is that of the words, so that an option of writing drops nothing."""
    plain, written = (translated(wordless(), replace(OPTIONS, punctuate=name)) for name in (None, "rule"))
    assert [one.compression_ratio for one in written] == [one.compression_ratio for one in plain]


def test_a_model_that_writes_marks_is_refused():
    with pytest.raises(
        SprachbundError,
        match=r"punctuate is 'rule', and the model tiny writes punctuation and capitals itself",
    ):
        translated(TinyFamily(seed=3), replace(OPTIONS, punctuate="rule"))
    reading = Reading()
    with pytest.raises(SprachbundError, match="nothing to restore"):
        next(translate_texts(reading, ["abc"], ["es"], "de", DecodingOptions(punctuate="rule")))


def test_texts_of_a_model_without_marks_get_them():
    reading = Reading()
    reading.capabilities = replace(reading.capabilities, words_only=True)
    plain, written = (
        next(translate_texts(reading, ["abc"], ["es"], "de", DecodingOptions(punctuate=name)))[0].text.strip()
        for name in (None, "rule")
    )
    assert written.strip().lower() == f"{plain}."


def test_a_translator_of_texts_reads_the_transcript_with_its_marks():
    recogniser, translator = wordless(), Reading()
    samples, options = speech([1.5, 2.0]), replace(OPEN, punctuate="rule")
    translations = translate(
        Cascade(recogniser, translator),
        samples,
        ["es", "transcribe"],
        "de",
        options,
        sample_rate=SAMPLE_RATE,
        activity=Loudness(),
    )
    for said, written in zip(translations["transcribe"].segments, translations["es"].segments, strict=True):
        assert said.text.endswith(".")
        assert written.source_text == said.text
        [[alone]] = translate_texts(translator, [said.text], ["es"], "de", DecodingOptions())
        assert written.text == alone.text.strip()  # what the translator writes gets no marks


def test_live_text_has_no_punctuation():
    with pytest.raises(SprachbundError, match="punctuate is 'rule', and live text gets no punctuation"):
        LiveEngine(wordless(), DecodingOptions(punctuate="rule"), activity=Loudness())


def test_what_is_evaluated_has_the_marks_that_are_served(tmp_path, monkeypatch):
    monkeypatch.setattr("sprachbund.evaluation.hypotheses.VoiceActivity", Loudness)
    manifest = corpus(tmp_path, "en", ["de"])
    options = replace(OPEN, punctuate="rule")
    family = wordless()
    lines = evaluated(family, manifest, ["de"], options)
    for number in range(len(manifest)):
        text = served(family, manifest.samples(number), ["de"], "en", options)["de"].text
        assert text.endswith(".")
        assert lines[f"u{number}", "de"].hypothesis == text
    with pytest.raises(SprachbundError, match="nothing to restore"):
        evaluated(TinyFamily(seed=3), manifest, ["de"], options)
    monkeypatch.setattr("sprachbund.decoding.written_form.load_punctuator", lambda name: Planted())
    with pytest.raises(SprachbundError, match="a punctuator that does not know de"):
        evaluated(family, manifest, ["de"], options)


def test_digits_come_first():
    """Marks between the words of a number would break it."""

    class Counting(TinyFamily):
        def decode_text(self, tokens: Sequence[int]) -> str:
            return "call one two three four five"

    family = Counting(seed=3)
    family.capabilities = replace(family.capabilities, words_only=True)
    options = DecodingOptions(guard=LENIENT, max_tokens=8, punctuate="rule", digits=True)
    assert {one.text for one in translated(family, options, "en")} == {"Call 12345."}

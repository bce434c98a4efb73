"""Laws of subtitle layout: nothing lost, lines short, times ordered."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sprachbund.decoding.formats import (
    FORMATS,
    LEAST_CUE_S,
    MAX_LINE_CHARACTERS,
    MAX_LINES,
    MIN_CUE_S,
    Cue,
    bilingual_cues,
    check_format,
    cues_of,
    render,
    spaced_out,
)
from sprachbund.decoding.result import Segment, Translation, Word
from sprachbund.errors import SprachbundError

words_strategy = st.lists(
    st.text(st.characters(categories=("Lu", "Ll", "Lo", "Nd", "Po")), min_size=1, max_size=60), max_size=50
)


def segment(text: str, start_s: float = 0.0, end_s: float = 10.0, words: tuple[Word, ...] = ()) -> Segment:
    return Segment(
        start_s=start_s, end_s=end_s, source_language="en", target_language="de", text=text, words=words
    )


@given(words=words_strategy, start_s=st.floats(0, 100), length_s=st.floats(0, 30))
def test_cues_hold_all_the_text_in_short_lines_inside_the_segment(words, start_s, length_s):
    text = " ".join(words)
    cues = cues_of(segment(text, start_s, start_s + length_s))
    assert "".join("".join(line.split()) for c in cues for line in c.lines) == "".join(text.split())
    for cue in cues:
        assert 1 <= len(cue.lines) <= MAX_LINES
        assert all(0 < len(line) <= MAX_LINE_CHARACTERS for line in cue.lines)
    times = [second for c in cues for second in (c.start_s, c.end_s)]
    assert times == pytest.approx(sorted(times))
    if cues:
        assert times[0] == pytest.approx(start_s)
        assert times[-1] == pytest.approx(start_s + length_s)


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 8, 30, 38, 42, 60]), st.sampled_from(["", ",", "."])), max_size=12
    )
)
@example([(8, ""), (8, ""), (8, ","), (14, ""), (42, ""), (1, "")])
def test_cues_of_words_as_long_as_lines_have_two_lines(sizes: list[tuple[int, str]]) -> None:
    text = " ".join("x" * size + mark for size, mark in sizes)
    cues = cues_of(segment(text))
    assert "".join("".join(line.split()) for c in cues for line in c.lines) == "".join(text.split())
    assert all(len(cue.lines) <= MAX_LINES for cue in cues)
    assert all(len(line) <= MAX_LINE_CHARACTERS for cue in cues for line in cue.lines)


@given(
    lengths=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.integers(0, 200)), max_size=12),
)
def test_spaced_out_cues_never_overlap_and_last_as_long_as_they_can(lengths):
    segments, now_s = [], 0.0
    for pause_s, length_s, size in lengths:
        segments.append(segment("abcd " * (size // 5), now_s + pause_s, now_s + pause_s + length_s))
        now_s += pause_s + length_s
    cues = list(spaced_out(cue for s in segments for cue in cues_of(s)))
    for cue, after in itertools.pairwise(cues):
        assert cue.end_s <= after.start_s + 1e-9
        assert cue.end_s - cue.start_s >= min(MIN_CUE_S, after.start_s - cue.start_s) - 1e-9
    assert all(c.end_s - c.start_s >= LEAST_CUE_S - 1e-9 for c in cues)
    assert not cues or cues[-1].end_s - cues[-1].start_s >= MIN_CUE_S - 1e-9


def test_a_long_segment_is_cut_at_the_times_of_its_words():
    text = (
        "eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn"
    )
    words = tuple(
        Word(start_s=n * 1.0, end_s=n + 0.8, text=w, probability=0.9) for n, w in enumerate(text.split())
    )
    cues = cues_of(segment(text, 0.0, 40.0, words))
    assert len(cues) > 1
    for cue in cues:
        first, last = " ".join(cue.lines).split()[0], " ".join(cue.lines).split()[-1]
        assert cue.start_s == words[text.split().index(first)].start_s
        assert cue.end_s == words[text.split().index(last)].end_s


def test_words_whose_alignment_collapsed_are_not_used():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    words = tuple(Word(start_s=9.9, end_s=9.9, text=w, probability=0.1) for w in text.split())
    cues = cues_of(segment(text, 0.0, 10.0, words))
    assert cues[0].start_s == 0.0
    assert all(c.end_s - c.start_s > 0.5 for c in cues)


def test_a_cue_closes_at_a_clause_and_its_lines_are_even():
    text = (
        "the train to the airport leaves at ten, and the one to the harbour leaves a quarter of an hour later"
    )
    first = cues_of(segment(text))[0]
    assert " ".join(first.lines).endswith("ten,") or len(first.lines) == 2
    assert len(cues_of(segment("a short line of text and then one more word"))[0].lines) == 2
    lines = cues_of(segment("a short line of text and then one more word"))[0].lines
    assert abs(len(lines[0]) - len(lines[1])) < 10
    assert cues_of(segment("")) == []


def both(said: str, written: str, end_s: float = 10.0) -> list[Cue]:
    return bilingual_cues(replace(segment(written, 2.0, end_s), source_text=said))


def test_both_languages_stand_in_a_cue() -> None:
    assert both("Good morning.", "Guten Morgen.") == [
        Cue(start_s=2.0, end_s=10.0, lines=("Good morning.", "Guten Morgen."))
    ]


@given(
    said=st.lists(st.text("abc", min_size=1, max_size=60), min_size=1, max_size=60),
    written=st.lists(st.text("xyz", min_size=1, max_size=60), min_size=1, max_size=60),
)
def test_long_texts_are_cut_together_and_nothing_is_lost(said: list[str], written: list[str]) -> None:
    cues = both(" ".join(said), " ".join(written))
    lines = [line for cue in cues for line in cue.lines]
    for words, letters in ((said, "abc"), (written, "xyz")):
        own = [line for line in lines if line[0] in letters]
        assert "".join(own).replace(" ", "") == "".join(words)
    assert all(len(line) <= MAX_LINE_CHARACTERS for line in lines)
    assert all(1 <= len(cue.lines) <= 2 for cue in cues)
    assert cues[0].start_s == 2.0
    assert cues[-1].end_s == pytest.approx(10.0)
    for before, after in itertools.pairwise(cues):
        assert before.end_s == pytest.approx(after.start_s)


def test_a_segment_that_does_not_know_what_was_said_has_cues_as_ever() -> None:
    plain = segment("Ja.")
    assert bilingual_cues(plain) == cues_of(plain)


def test_files_with_both() -> None:
    whole = Translation(
        source_language="en",
        target_language="de",
        duration_s=3.0,
        segments=(replace(segment("Ja <b>.", 0.0, 3.0), source_text="Yes --> no"),),
    )
    assert render(whole, "srt", both=True) == "1\n00:00:00,000 --> 00:00:03,000\nYes -> no\nJa <b>.\n\n"
    assert "Yes --&gt; no\nJa &lt;b&gt;." in render(whole, "vtt", both=True)
    for name in set(FORMATS) - {"srt", "vtt"}:
        with pytest.raises(SprachbundError, match="does not show both languages; choose from srt, vtt"):
            check_format(name, both=True)


SENTENCES = {
    "en": "we are going to talk about the history of the railway between the harbour and the old town of the "
    "island because it is the first line that was ever built in the country by the people who lived in it",
    "de": "wir sprechen heute über die Geschichte der Eisenbahn zwischen dem Hafen und der alten Stadt auf der "
    "Insel weil es die erste Strecke ist die im Land von den Menschen gebaut wurde",
    "fr": "nous parlons de la grande histoire du chemin de fer entre le port et la vieille ville de l'île parce "
    "que c'est la première ligne qui a été construite dans le pays par les habitants",
    "es": "hablamos hoy de la historia del tren entre el puerto y la ciudad vieja de la isla porque es la "
    "primera linea que se construyó en el país por la gente que vivía en él",
    "it": "parliamo oggi della storia della ferrovia tra il porto e la vecchia città dell'isola perché è la "
    "prima linea che fu costruita nel paese per la gente del posto",
    "ru": "сегодня мы говорим об истории железной дороги между портом и старым городом на острове потому что "
    "это первая линия которую построили в стране для людей",
}
SHORT = {
    "the",
    "a",
    "of",
    "to",
    "in",
    "der",
    "die",
    "dem",
    "im",
    "le",
    "la",
    "de",
    "du",
    "el",
    "del",
    "il",
    "e",
    "y",
    "в",
    "на",
    "об",
}
"""Some articles and prepositions of these languages."""


def last_words(cues: list[Cue]) -> list[str]:
    """Of all lines but the last cue's, whose text nothing can be left over from."""
    return [line.split()[-1] for cue in cues[:-1] for line in cue.lines]


@pytest.mark.parametrize("language", SENTENCES)
@pytest.mark.parametrize("skipped", range(6))
def test_lines_and_cues_end_with_phrases(language: str, skipped: int) -> None:
    text = " ".join(SENTENCES[language].split()[skipped:])
    cues = cues_of(replace(segment(text), target_language=language))
    assert len(cues) > 1
    assert not SHORT & set(last_words(cues))
    unknown = [cues_of(replace(segment(" ".join(text.split())), target_language="tlh"))]
    assert " ".join(line for cue in unknown[0] for line in cue.lines) == text


def test_without_phrases_lines_would_end_in_the_middle_of_them() -> None:
    ends = {
        word
        for language, text in SENTENCES.items()
        for n in range(6)
        for word in last_words(cues_of(replace(segment(" ".join(text.split()[n:])), target_language="tlh")))
    }
    assert len(SHORT & ends) > 5, "else the test above shows nothing"


@pytest.mark.parametrize(("source", "target"), [("en", "de"), ("fr", "en"), ("es", "it")])
def test_both_languages_break_at_phrases(source: str, target: str) -> None:
    both_known, neither = (
        bilingual_cues(
            replace(
                segment(SENTENCES[target]),
                source_text=SENTENCES[source],
                source_language=one,
                target_language=other,
            )
        )
        for one, other in ((source, target), ("tlh", "tlh"))
    )
    broken = [
        sum(line.split()[-1] in SHORT for cue in cues[:-1] for line in cue.lines)
        for cues in (both_known, neither)
    ]
    assert broken[0] < broken[1] or broken == [0, 0]
    for n, text in ((0, SENTENCES[source]), (1, SENTENCES[target])):
        assert " ".join(cue.lines[n] for cue in both_known) == text

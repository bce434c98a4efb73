"""The figures of the layout: words of the old vocabulary are seen in names and texts, and ordinary meanings are not."""

from pathlib import Path

import pytest
from scripts.house import ROOT, measure, old_words, strings, texts_of


def test_the_project_keeps_its_figures() -> None:
    figures = measure(ROOT)
    assert {kind: words for kind, words in figures["old_words"].items() if words} == {}
    assert {word: count for word, count in figures["glossary"].items() if count} == {}
    for name in ("core_probes", "circles", "undocumented_functions"):
        assert figures[name] == [], name
    # Other programs' names, in `compat`.
    assert figures["classes_defined_twice"] == ["Segment", "Whisper", "Word"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("places", 1),
        ("word_places", 1),
        ("in_place", 0),
        ("it is written in place of another", 0),
        ("what a user is told", 1),
        ("languages are told apart", 0),
        ("draft_tokens", 0),
        ("parasite, guesses chosen", 1),
        ("recordings of strangers", 1),
        ("found", 1),
        ("no microphone was found", 0),
    ],
)
def test_a_single_word_is_a_name_and_others_are_prose(text: str, words: int) -> None:
    assert len([*old_words([text])]) == words


def test_former_names_that_are_read_do_not_count_and_those_written_do() -> None:
    program = """
_FORMER_NAMES = {"guesses": "draft_tokens"}
def read(values):
    "Judges nothing."
    return renamed(values, {"judge": "metric"}, "a file")  # told by its name
row = {"places": 3}
"""
    assert [*old_words(strings(program))] == ["Judges nothing.", "places", "# told by its name"]


def test_files_are_read_by_their_kind(tmp_path: Path) -> None:
    contents = {
        "a.cpp": 'int place = 1;  // where it was found\nthrow error("the guess is wrong");',
        "a.json": '[{"guesses": 1}, {"guesses": 2, "name": "foreign pages"}]',
        "a.md": "Strangers hear it.",
        "a.py": 'found = "a room"',
    }
    counts = {}
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        counts[name] = len([*old_words(texts_of(tmp_path / name))])
    assert counts == {"a.cpp": 2, "a.json": 2, "a.md": 1, "a.py": 1}

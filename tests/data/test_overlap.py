"""Recordings, sentences and speakers that two corpora have in common are found, and nothing else is."""

import json
from pathlib import Path

import numpy as np
import pytest

from sprachbund.cli import main
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.data.overlap import overlap
from sprachbund.data.shards import open_corpus, pack


def make(directory: Path, utterances: list[tuple[str, str, str, str, int]]) -> Path:
    """A corpus of these ids, languages, texts, speakers and seeds of the sound."""
    with ManifestWriter(directory) as writer:
        for name, language, text, speaker, seed in utterances:
            sound = np.random.default_rng(seed).uniform(-0.5, 0.5, 1600 + 160 * (seed % 3)).astype(np.float32)
            writer.add(sound, text=text, language=language, speaker=speaker, utterance_id=name)
    return directory


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[Path, list[Path]]:
    test = [
        ("heard", "en", "Good morning.", "anna", 1),
        ("said before", "en", "the DOOR is open", "", 2),
        ("new", "en", "nobody said this", "carl", 4),
        ("other language", "de", "taxi", "anna", 6),
        ("no speech", "", "", "", 7),
    ]
    first = [("a", "en", "the door, is open!", "bert", 10), ("b", "en", "taxi", "bert", 11)]
    second = [("a", "en", "something else", "anna", 1), ("c", "", "", "", 13), ("d", "en", "one more", "", 5)]
    return make(tmp_path / "test", test), [make(tmp_path / "1", first), make(tmp_path / "2", second)]


def test_what_is_in_both_is_counted(corpora: tuple[Path, list[Path]]) -> None:
    test, trained = corpora
    both = overlap(Manifest(test), [Manifest(path) for path in trained])
    assert both.utterances == {"": 1, "de": 1, "en": 3}
    assert both.same_sound == [("heard", "a")]
    assert both.same_text == [("said before", "a")]
    assert both.same_text_languages == {"en": 1}
    assert (both.same_speaker, both.named_speaker) == (2, 3)


def test_regions_of_a_language_are_one(tmp_path: Path) -> None:
    test = make(tmp_path / "test", [("a", "sv-SE", "God morgon.", "", 1), ("b", "sv", "God natt", "", 2)])
    trained = make(tmp_path / "train", [("c", "sv", "god morgon", "", 4), ("d", "sv-FI", "god natt!", "", 5)])
    both = overlap(Manifest(test), [Manifest(trained)])
    assert both.same_text == [("a", "c"), ("b", "d")]
    assert both.same_text_languages == {"sv": 1, "sv-SE": 1}


def test_shards_are_compared_like_other_corpora(corpora: tuple[Path, list[Path]], tmp_path: Path) -> None:
    test, trained = corpora
    pack(trained[1], tmp_path / "packed")
    of_shards = overlap(Manifest(test), [open_corpus(tmp_path / "packed")])
    assert of_shards == overlap(Manifest(test), [Manifest(trained[1])])
    assert of_shards.same_sound == [("heard", "a")]


def test_the_command_prints_counts_and_pairs(
    corpora: tuple[Path, list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    test, trained = corpora
    assert main(["data", "overlap", str(test), *map(str, trained)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "of equal sound 1 20.0 %" in lines
    assert "en 1 33.3 %" in lines
    assert "of a speaker of both 2 40.0 %" in lines
    assert "equal text: said before and a" in lines
    assert main(["data", "overlap", str(test), str(trained[0].parent), "--json"]) == 1
    assert "is trained on and measured on" in capsys.readouterr().err
    assert main(["data", "overlap", str(test), str(trained[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same_text"] == [["said before", "a"]]

"""Sound that a model does not understand: every kind sounds, and dev and test share neither text nor language."""

import random
import unicodedata

import numpy as np
import pytest

from sprachbund.corpora.outside import (
    KINDS,
    LANGUAGES,
    OTHER_LANGUAGES,
    Outside,
    _other_text,
    _talk,
    _technical,
    make_outside,
)
from sprachbund.data.manifest import Manifest


@pytest.mark.slow
def test_both_parts_hold_every_kind_without_text(tmp_path):
    make_outside(tmp_path, Outside(per_kind=1), workers=1)
    for part in ("dev", "test"):
        corpus = Manifest(tmp_path / part)
        assert sorted(utterance.custom["kind"] for utterance in corpus) == sorted(KINDS)
        assert {(utterance.text, utterance.language) for utterance in corpus} == {("", "")}
        assert all(
            np.abs(corpus.samples(n)).max() > 0 or corpus[n].custom["kind"] == "noise"
            for n in range(len(corpus))
        )


def test_the_parts_share_no_sentence_and_no_language():
    assert not set(_technical("dev")) & set(_technical("test"))
    assert len(_technical("test")) > 100
    for language in LANGUAGES:
        assert (len(_talk("dev", language)), len(_talk("test", language))) == (48, 12)
        assert not set(_talk("dev", language)) & set(_talk("test", language))
    assert not set(OTHER_LANGUAGES["dev"]) & set(OTHER_LANGUAGES["test"])
    assert not set(LANGUAGES) & {tag for tags in OTHER_LANGUAGES.values() for tag in tags}


@pytest.mark.parametrize(
    ("language", "script"), [("el", "GREEK"), ("hi", "DEVANAGARI"), ("uk", "CYRILLIC"), ("zh", "CJK")]
)
def test_names_are_in_the_script_of_their_language(language, script):
    letters = [c for c in _other_text(language, random.Random(3)) if c.isalpha()]
    own = sum(unicodedata.name(c).startswith(script) for c in letters)
    assert own > 0.8 * len(letters)

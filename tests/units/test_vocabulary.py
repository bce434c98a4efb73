"""Two forms of one vocabulary: what went in comes out, and speech is never taken for text."""

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.strings import to_string
from sprachbund.models.tokens.unit_options import FitOptions, VocabularyOptions
from sprachbund.models.tokens.vocabulary import BLANK, UNKNOWN, JointVocabulary
from sprachbund.units.fit import train_models

K = 30
TEXTS = ["guten tag wie geht es", "hello how are you my friend", "bonjour comment allez vous", "ça va"] * 3


def strings() -> list[str]:
    rng = np.random.default_rng(0)
    words = [to_string(rng.integers(0, K - 5, int(rng.integers(2, 6)))) for _ in range(12)]
    return ["".join(rng.choice(words, 40)) for _ in range(20)]  # the last five units never occur


def vocabulary(form: str, unit_pieces: int = 60) -> JointVocabulary:
    options = VocabularyOptions(form=form, unit_pieces=unit_pieces, text_pieces=50)  # type: ignore[arg-type]
    models = train_models(TEXTS, strings(), K, options, ("de", "en"))
    return JointVocabulary(models, K, ("de", "en"))


BOTH = {form: vocabulary(form) for form in ("union", "single")}
each_form = pytest.mark.parametrize("form", ["union", "single"])


@each_form
@settings(max_examples=60, deadline=None)
@given(units=st.lists(st.integers(0, K - 1), max_size=60), seed=st.none() | st.integers(0, 99))
def test_units_to_pieces_and_back(form: str, units: list[int], seed: int | None) -> None:
    joint, string = BOTH[form], to_string(units)
    rng = None if seed is None else np.random.default_rng(seed)
    ids = joint.encode_units(string, rng)
    assert joint.decode_units(ids) == string
    assert UNKNOWN not in ids
    assert all(joint.is_unit[i] and joint.suppressed[i] for i in ids)
    assert joint.decode_text(ids) == ""


@each_form
@settings(max_examples=60, deadline=None)
@given(
    text=st.lists(st.text(sorted(set("".join(TEXTS)) - {" "}), min_size=1), max_size=6).map(" ".join),
    seed=st.none() | st.integers(0, 99),
)
def test_text_to_pieces_and_back(form: str, text: str, seed: int | None) -> None:
    joint = BOTH[form]
    ids = joint.encode_text(text, None if seed is None else np.random.default_rng(seed))
    assert joint.decode_text([*ids, joint.end]) == text
    assert not joint.is_unit[ids].any()
    assert not joint.suppressed[ids].any()
    assert joint.decode_units(ids) == ""


@each_form
def test_the_space_of_ids(form: str) -> None:
    joint = BOTH[form]
    assert (BLANK, UNKNOWN, joint.end) == (0, 1, len(joint) - 1)
    assert len(joint.suppressed) == len(joint.is_unit) == len(joint)
    assert not joint.is_unit[[BLANK, UNKNOWN, joint.end]].any()
    written = [joint.piece(i) for i in range(len(joint))]
    assert written[:2] == ["<blank>", "<unk>"]
    assert len(set(written)) == len(written)
    units = {to_string([k]) for k in range(K)}
    assert units <= set(written)
    for i in range(2, joint.end):
        assert joint.is_unit[i] == (set(written[i]) <= units), written[i]
    assert joint.piece(joint.language_id("de")) == "<de>"
    assert joint.suppressed[joint.language_id("en")]
    assert not joint.suppressed[joint.end]
    if form == "union":  # pieces of text, then pieces of units
        assert np.flatnonzero(np.diff(joint.is_unit.astype(int))).tolist() == [
            len(joint._text),
            joint.end - 1,
        ]


def test_the_ids_are_those_of_sentencepiece() -> None:
    options = VocabularyOptions(unit_pieces=60, text_pieces=50)
    models = train_models(TEXTS, strings(), K, options)
    joint = JointVocabulary(models, K)
    text, units = (sentencepiece.SentencePieceProcessor(model_proto=models[n]) for n in ("text", "units"))
    assert joint.encode_text("wie geht es") == [i + 1 for i in text.encode(" wie geht es")]
    string = strings()[0]
    assert joint.encode_units(string) == [len(text) + i for i in units.encode(string)]
    assert len(joint) == len(text) + len(units) + 1
    assert len(joint.encode_units(string)) < len(string) / 2


@each_form
def test_making_it_again_gives_the_same_bits(form: str) -> None:
    options = VocabularyOptions(form=form, unit_pieces=60, text_pieces=50)  # type: ignore[arg-type]
    assert train_models(TEXTS, strings(), K, options) == train_models(TEXTS, strings(), K, options)


@each_form
def test_a_draw_depends_on_its_generator_alone(form: str) -> None:
    joint, string = BOTH[form], strings()[1]
    drawn = [joint.encode_units(string, np.random.default_rng(seed)) for seed in (1, 2, 3, 1)]
    assert drawn[0] == drawn[3]
    assert len({tuple(ids) for ids in drawn}) > 1
    assert joint.encode_units(string, np.random.default_rng(0), alpha=50.0) == joint.encode_units(string)


def test_without_pieces_every_unit_is_one() -> None:
    joint = vocabulary("union", unit_pieces=0)
    assert joint.is_unit.sum() == K
    assert len(joint.encode_units(strings()[0])) == len(strings()[0])
    string = strings()[0]
    assert joint.encode_units(string, np.random.default_rng(0)) == joint.encode_units(string)


def test_characters_that_stand_for_units() -> None:
    chinese = to_string([3])
    with pytest.raises(SprachbundError, match=rf"1 of 13 texts .* the first is '{chinese}'"):
        train_models([*TEXTS, chinese], strings(), K, VocabularyOptions(form="single", unit_pieces=60))
    with pytest.raises(SprachbundError, match="--form union"):
        BOTH["single"].encode_text(chinese)
    assert BOTH["union"].encode_text(chinese)[-1] == UNKNOWN
    options = VocabularyOptions(unit_pieces=60, text_pieces=50)
    joint = JointVocabulary(train_models([*TEXTS, chinese], strings(), K, options), K)
    ids = joint.encode_text(chinese)
    assert joint.decode_text(ids) == chinese
    assert not joint.is_unit[ids].any()


def test_long_speech_gives_pieces_as_short_speech_does() -> None:
    """SentencePiece drops lines over 4,192 bytes, and finds few pieces in lines of thousands of characters."""
    rng = np.random.default_rng(0)
    words = [to_string(rng.integers(0, K, 4)) for _ in range(8)]
    long = "".join(rng.choice(words, 1500))
    models = train_models(TEXTS, [long], K, VocabularyOptions(unit_pieces=60, text_pieces=50))
    assert len(JointVocabulary(models, K).encode_units(long)) < len(long) / 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocabulary": {"unit_pieces": 2000}}, "2000 unit pieces cannot hold 2000 clusters"),
        ({"vocabulary": {"unit_pieces": 0, "form": "single"}}, "needs unit pieces"),
        ({"vocabulary": {"form": "both"}}, r"vocabulary.form\n"),
        ({"kmeans": {"clusters": 1}}, r"kmeans.clusters\n"),
        ({"kmeans": {"clusters": 30_000}}, r"kmeans.clusters\n"),
        ({"kmeans": {"max_iter": 1}}, r"kmeans.max_iter\n"),
        ({"share": 0}, r"share\n"),
        ({"share": 1.5}, r"share\n"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FitOptions.model_validate(changes)


def test_nothing_to_learn_from() -> None:
    with pytest.raises(SprachbundError, match="no texts"):
        train_models([" "], strings(), K, VocabularyOptions(unit_pieces=60))
    with pytest.raises(SprachbundError, match="no units"):
        train_models(TEXTS, [""], K, VocabularyOptions(unit_pieces=60))
    with pytest.raises(SprachbundError, match="no token for ru"):
        JointVocabulary(train_models(TEXTS, strings(), K, VocabularyOptions(unit_pieces=60)), K, ("ru",))

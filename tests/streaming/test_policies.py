"""What each policy commits, on attempts written down by hand."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.errors import SprachbundError
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.options import LiveOptions, Policy
from sprachbund.streaming.session import CaptionLine
from sprachbund.streaming.writing import (
    Attempt,
    alignatt,
    local_agreement,
    nothing,
    num_shown,
    policies_of,
    wait_k,
    words_behind,
)
from tests.decoding.test_translate import SPEECH, Loudness, recording
from tests.decoding.tiny_family import TinyFamily
from tests.streaming.test_engine import OPTIONS, run, texts


def attempt(words: str, **changes: object) -> Attempt:
    """Words of one token each."""
    values = {"ended": False, "newest": 9.6, "steps": 0, "num_written": 0, **changes}
    return Attempt(words=[(word, 1) for word in words.split()], **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "now", "agreement", "committed"),
    [
        ([], "a b c", 2, 0),
        (["a b c"], "a b d", 2, 2),
        (["x"], "a b", 2, 0),
        (["a b c"], "a b", 2, 2),
        (["a b c"], "a b c d", 3, 0),
        (["a b x", "a b c d"], "a b c d", 3, 2),
        ([""], "a", 2, 0),
    ],
)
def test_local_agreement_commits_the_common_beginning(before, now, agreement, committed):
    line = CaptionLine(attempts=[words.split() for words in before])
    assert local_agreement(attempt(now), line, LiveOptions(agreement=agreement)) == committed


@pytest.mark.parametrize(
    ("looks_at", "ended", "committed"),
    [
        ([1.0, 2.0, 3.0], False, 2),  # the last word may still grow
        ([1.0, 2.0, 3.0], True, 3),
        ([1.0, 9.7, 3.0], True, 1),  # a look at the last 0.4 s stops all that follows
        ([9.6, 2.0, 3.0], True, 0),
        ([1.0, 9.59, 9.59], True, 3),
    ],
)
def test_alignatt_stops_at_the_first_look_at_the_newest_audio(looks_at, ended, committed):
    result = alignatt(
        attempt("a b c", looks_at=looks_at, ended=ended), CaptionLine(), LiveOptions(policy="alignatt")
    )
    assert result == committed


def test_alignatt_looks_at_every_token_of_a_word():
    words = Attempt(
        words=[("ab", 2), ("c", 1)],
        ended=True,
        looks_at=[1.0, 9.9, 2.0],
        newest=9.6,
        steps=0,
        num_written=0,
    )
    assert alignatt(words, CaptionLine(), LiveOptions(policy="alignatt")) == 0


def test_wait_k_is_one_word_a_step_behind():
    options = LiveOptions(policy="wait-k", wait_k=3)
    written, counts = 0, []
    for steps in range(7):
        new = wait_k(
            attempt("a b c d e f g h"[2 * written :], steps=steps, num_written=written),
            CaptionLine(),
            options,
        )
        written += new
        counts.append(written)
    assert counts == [0, 0, 0, 1, 2, 3, 4]


class Characters(TinyFamily):
    """Writes characters, one for each token, and no spaces."""

    def decode_text(self, tokens: Sequence[int]) -> str:
        return "".join(
            chr(0x4E00 + token) for token in tokens if self.first_letter <= token < self.first_time
        )


def test_wait_k_is_one_character_a_step_where_a_language_has_no_spaces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sprachbund.text.languages._WITHOUT_SPACES", frozenset({"de"}))
    step_s, own = 0.4, LiveEngine(Characters(seed=3), OPTIONS, activity=Loudness())
    session = own.open(["de"], "en", LiveOptions(policy="wait-k", wait_k=1, step_s=step_s))
    committed, counts = defaultdict[int, str](str), []
    for event in texts(run(own, session, recording(*SPEECH))):
        committed[event.segment] += event.committed
        if not event.final:
            steps = int((event.end_s - event.start_s) / step_s + 1e-6)
            counts.append(len(committed[event.segment]))
            assert counts[-1] <= steps
    assert max(counts) > 2


def test_characters_that_are_replaced_are_counted_where_a_language_has_no_spaces():
    line = CaptionLine(tentative="今日は雨")
    assert line.show("は晴れ", "今日", "ja") == 1, "雨 became 晴"
    line = CaptionLine(tentative="it rains today")
    assert line.show(" snows today", "it", "en") == 1


@pytest.mark.parametrize(
    ("attempts", "mask_words", "steady", "shown"),
    [
        (["a b c d"], 0, None, 4),
        (["a b c d"], 2, None, 2),
        (["a b c d"], 9, None, 0),
        (["a b x", "a b c d"], 3, 2, 2),  # "a b" was there before; "c" is new
        (["a b c", "a b c d"], 3, 2, 3),
        (["a b c", "x b c d"], 3, 2, 1),  # steady means all words before, too; the first is not masked
        (["a b c"], 3, 2, 0),  # there was no attempt before
        (["a", "a b c", "a b c d"], 3, 3, 1),
        (["a b c", "a b"], 1, 2, 2),
        (["a", ""], 1, 2, 0),
    ],
)
def test_masked_words_are_shown_once_they_are_steady(attempts, mask_words, steady, shown):
    options = LiveOptions(mask_words=mask_words, steady=steady)
    assert num_shown([words.split() for words in attempts], options) == shown


def test_retranslation_commits_nothing():
    assert nothing(attempt("a b", ended=True), CaptionLine(), LiveOptions(policy="retranslation")) == 0


@settings(max_examples=60, deadline=None)
@given(letters=st.lists(st.integers(0, 5), max_size=9), cut=st.integers(0, 9))
def test_words_behind_a_prefix_have_all_tokens_behind_it(letters, cut):
    family = TinyFamily()
    tokens = [family.first_letter + letter for letter in letters]
    cut = min(cut, len(tokens))
    words = words_behind(family, tokens[:cut], tokens[cut:], "de")
    assert sum(count for _, count in words) == (len(tokens) - cut if words else 0)
    whole = "".join(text for text, _ in words_behind(family, [], tokens, "de"))
    assert whole == family.decode_text(tokens).replace(" ", "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "wait"),
        ("overload", "panic"),
        ("step_s", 0.0),
        ("step_s", float("nan")),
        ("agreement", 1),
        ("wait_k", 0),
        ("border_s", -0.1),
        ("mask_words", -1),
        ("steady", 1),
        ("steady", 2),  # of no words
        ("max_open_s", 1.0),
        ("max_waiting_s", 5.0),
    ],
)
def test_options_that_cannot_be_are_named(field, value):
    with pytest.raises(SprachbundError, match=field):
        LiveOptions(**{field: value})


@pytest.mark.parametrize(
    ("parts", "policies"),
    [
        ({}, ("local-agreement", "alignatt", "wait-k", "retranslation", "span")),
        ({"alignment": None}, ("retranslation", "span")),
        ({"ctc": TinyFamily()}, ("retranslation", "span")),
        ({"transducer": TinyFamily()}, ("retranslation", "span")),
        ({"transducer": TinyFamily(), "streaming": TinyFamily()}, ("frames", "span")),
    ],
)
def test_a_model_gets_the_policies_that_it_can_work_by(parts, policies):
    family = TinyFamily()
    family.capabilities = replace(family.capabilities, **parts)
    assert policies_of(family) == policies


def test_every_policy_is_in_the_docstring():
    assert all(policy in (LiveOptions.__doc__ or "") for policy in get_args(Policy))

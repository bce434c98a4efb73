"""Going on behind a prefix equals what was decoded in one go, alone and in batches, with and without a draft."""

from dataclasses import replace

import pytest

from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.words import attended_s
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from tests.decoding.scripted_drafts import ScriptedDraft, knowing
from tests.decoding.test_words import PlantedFamily
from tests.decoding.tiny_family import TinyFamily, random_memory

FRAMES = [5, 9, 3, 12]
PLAIN = DecodingOptions(draft="none", max_tokens=12)


def whole_rows(family: TinyFamily, memory, targets):
    return search(family, memory, targets, replace(PLAIN, max_tokens=12))


@pytest.mark.parametrize("seed", range(4))
def test_the_rest_behind_a_prefix_is_the_rest_of_the_row(seed):
    family, memory = TinyFamily(seed=seed), random_memory(FRAMES)
    targets = [[Target(language="de", context="ab" * b), Target(language="en")] for b in range(len(FRAMES))]
    wholes = whole_rows(family, memory, targets)
    cut = [[min(b + n, len(h.tokens)) for n, h in enumerate(row)] for b, row in enumerate(wholes)]
    behind = [
        [replace(t, prefix=h.tokens[:k]) for t, h, k in zip(*group, strict=True)]
        for group in zip(targets, wholes, cut, strict=True)
    ]
    hypotheses = search(family, memory, behind, PLAIN)
    for row, wanted, places in zip(hypotheses, wholes, cut, strict=True):
        for rest, whole, k in zip(row, wanted, places, strict=True):
            assert rest.tokens[: len(whole.tokens) - k] == whole.tokens[k:]
            assert rest.no_speech_log_probability == pytest.approx(whole.no_speech_log_probability, abs=1e-5)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_draft_changes_nothing_behind_a_prefix(beam_size):
    family, memory = TinyFamily(seed=1), random_memory(FRAMES)
    options = replace(PLAIN, beam_size=beam_size)
    targets = [[Target(language="de", prefix=tuple(range(5, 5 + b)))] for b in range(len(FRAMES))]
    plain = search(family, memory, targets, options)
    script = knowing([h for row in plain for h in row], family.end_token)
    speculation = Speculation(ScriptedDraft(script=script), num_draft_tokens=3)
    hypotheses = search(family, memory, targets, options, speculation=speculation)
    assert [h.tokens for row in hypotheses for h in row] == [h.tokens for row in plain for h in row]


def test_what_may_not_come_first_may_come_behind_a_prefix():
    first = TinyFamily().first_letter
    banned = [token for token in range(TinyFamily().vocabulary_size) if token != first]
    family, memory = TinyFamily(seed=2, begin_suppressed=banned), random_memory([6, 6])
    targets = [[Target(language="de")], [Target(language="de", prefix=(first + 1,))]]
    shy, behind = search(family, memory, targets, PLAIN)
    assert shy[0].tokens[0] == first
    free = search(TinyFamily(seed=2), memory, targets, PLAIN)[1]
    assert behind[0].tokens == free[0].tokens


def test_a_prefix_without_room_is_refused():
    family = TinyFamily(max_tokens=10)
    with pytest.raises(SprachbundError, match="leaves"):
        search(family, random_memory([4]), [[Target(language="de", prefix=tuple([5] * 10))]], PLAIN)


def test_planted_attention_is_what_tokens_look_at():
    family, memory = PlantedFamily(max_tokens=40), random_memory([200])
    row = [family.first_letter + n for n in (1, 2, 3, 5, 4)]
    begin = len(family.prompt(Target(language="de"))) - 1
    seen = attended_s(family, memory, [[Target(language="de")]], [[row]], [20.0])[0][0]
    assert seen == pytest.approx([begin + n for n in range(5)], abs=0.1)
    behind = Target(language="de", prefix=tuple(row[:2]))
    assert attended_s(family, memory, [[behind]], [[row[2:]]], [20.0])[0][0] == seen[2:]

"""The prediction of what drafts gain, against a simulation; and that it is acted upon."""

import random
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sprachbund.decoding.autoregressive import greedy_search
from sprachbund.decoding.drafts.base import DecodingState
from sprachbund.decoding.options import MAX_DRAFT_TOKENS
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import (
    RoundCosts,
    Speculation,
    measure_rounds,
    rounds_of_text,
    tokens_per_round,
)
from sprachbund.decoding.state import start_batch, whole_prompt
from sprachbund.models.base import Target
from tests.decoding.scripted_drafts import ScriptedDraft, ScriptedRun, knowing
from tests.decoding.test_speculative import PLAIN, assert_same, flat
from tests.decoding.tiny_family import TinyFamily, random_memory

FLAT = RoundCosts(plain_s=1.0, drafted_s=(1.0,) * 8)


@pytest.mark.parametrize(("acceptance", "num_draft_tokens"), [(0.85, 1), (0.6, 4), (0.0, 3), (1.0, 8)])
def test_tokens_of_a_round_are_those_of_a_simulation(acceptance: float, num_draft_tokens: int) -> None:
    noise, rounds, tokens = random.Random(0), 4000, 0
    for _ in range(rounds):
        standing = 0
        while standing < num_draft_tokens and noise.random() < acceptance:
            standing += 1
        tokens += standing + 1
    assert tokens_per_round([acceptance] * 8, num_draft_tokens) == pytest.approx(tokens / rounds, rel=0.03)


@pytest.mark.parametrize(
    ("acceptance", "num_draft_tokens", "length"),
    [(0.85, 1, 11), (0.6, 4, 11), (0.3, 1, 5), (0.9, 8, 40), (0.0, 3, 7), (1.0, 1, 7)],
)
def test_rounds_of_a_text_are_those_of_a_simulation(
    acceptance: float, num_draft_tokens: int, length: int
) -> None:
    """Draft tokens behind the end are of no use; lengths vary by one, as the formula is exact on average alone."""
    noise, rounds, texts = random.Random(0), 0, 4000
    for number in range(texts):
        left = length + number % 2
        while left > 0:
            standing = 0
            while standing < num_draft_tokens and noise.random() < acceptance:
                standing += 1
            left, rounds = left - standing - 1, rounds + 1
    expected = rounds_of_text([acceptance] * 8, num_draft_tokens, length + 0.5)
    assert expected == pytest.approx(rounds / texts, rel=0.03)


def test_short_texts_gain_less_than_endless_ones() -> None:
    costs = RoundCosts(plain_s=1.0, drafted_s=(1.1,), start_s=2.0, draft_start_s=0.5)
    gains = [costs.gain([0.8], 1, length) for length in (3.0, 10.0, 100.0, 1e6)]
    assert gains == sorted(gains)
    assert gains[0] < 1.1 < 1.6 < gains[-1]
    assert gains[-1] == pytest.approx(costs.gain([0.8], 1), rel=1e-3)
    assert costs.best([0.8], most=1, length=3.0) == (1, gains[0])


def test_the_published_theory_comes_out() -> None:
    """(N_l + N_g) / (1 + p) layers per token: 12 layers, 3 blocks, everything accepted, gain 1.6."""
    costs = RoundCosts(plain_s=12.0, drafted_s=(15.0,))
    assert costs.gain([1.0], 1) == pytest.approx(1.6)
    assert costs.gain([0.85], 1) == pytest.approx(12 / (15 / 1.85))


def test_more_draft_tokens_pay_where_they_cost_nothing_and_fewer_where_they_do() -> None:
    assert FLAT.best([0.9] * 8)[0] == MAX_DRAFT_TOKENS
    steep = RoundCosts(plain_s=1.0, drafted_s=tuple(1.0 + 0.6 * k for k in range(1, 9)))
    num_draft_tokens, gain = steep.best([0.9] * 8)
    assert gain == pytest.approx(max(steep.gain([0.9] * 8, k) for k in range(1, 9)))
    assert num_draft_tokens < MAX_DRAFT_TOKENS
    assert steep.best([0.1] * 8)[1] < 1


def test_positions_have_their_own_acceptance() -> None:
    """A draft that is right once and wrong then: one token a pass pays, and more do not."""
    costs = RoundCosts(plain_s=1.0, drafted_s=tuple(1.0 + 0.2 * k for k in range(1, 9)))
    assert tokens_per_round([0.9, 0.1, 0.5], 3) == pytest.approx(1 + 0.9 + 0.09 + 0.045)
    num_draft_tokens, gain = costs.best([0.9, *[0.1] * 7])
    assert num_draft_tokens == 1
    assert gain == pytest.approx(1.9 / 1.2)
    assert costs.best([0.9] * 8)[0] > 1  # as one rate for all positions would have it


class RightOnce(ScriptedRun):
    """Right at the first position of every pass, wrong at the others."""

    def propose(self, state: DecodingState, count: int) -> Tensor:
        draft_tokens = super().propose(state, count)
        draft_tokens[:, 1:] = (draft_tokens[:, 1:] + 1) % self.family.vocabulary_size
        return draft_tokens


def test_acceptance_is_counted_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speculation, "costs", lambda self, *args: FLAT)
    family, memory, targets = TinyFamily(seed=5), random_memory([9, 5], 5), [[Target(language="de")]] * 2
    wanted = search(family, memory, targets, PLAIN)
    draft = ScriptedDraft(script=knowing(flat(wanted), family.end_token))
    monkeypatch.setattr(
        draft,
        "start",
        lambda family, memory, targets, capacity: RightOnce(
            script=draft.script, prompts=[len(whole_prompt(family, t)) for t in targets], family=family
        ),
    )
    speculation, searches = Speculation(draft, num_draft_tokens=2), 40
    for _ in range(searches):
        assert_same(search(family, memory, targets, PLAIN, None, speculation), wanted)
    # One token comes from the prompt, then two of each pass; the last one of a text may be alone.
    seen = searches * sum((len(row.tokens) + row.finished) // 2 for row in flat(wanted))
    (report,) = speculation.report()
    assert report.accepted == seen
    first, second, third, *_ = speculation.acceptance
    assert first == pytest.approx((0.6 * 20 + seen) / (20 + seen))
    assert second == pytest.approx(first * 20 / (20 + seen))
    assert third == pytest.approx(second)  # nothing was seen there


@torch.inference_mode()
@pytest.mark.parametrize("length", [0, 6, 1000])
@pytest.mark.parametrize("max_tokens", [None, 1, 2])
def test_measuring_leaves_the_rows_as_they_were(max_tokens: int | None, length: int) -> None:
    """Also where the cache has room for one token or two behind the prompt, and half-way through a text."""
    family, memory = TinyFamily(seed=1), random_memory([5, 3], 1)
    targets = [Target(language="de"), Target(language="en", source="fr")]
    options, prompts = replace(PLAIN, max_tokens=max_tokens), [whole_prompt(family, t) for t in targets]
    rows = start_batch(family, memory, [[t] for t in targets], options, None)
    wanted = greedy_search(family, start_batch(family, memory, [[t] for t in targets], options, None))
    keys = [k[0, :, :1].clone() for k in rows.cache.self_keys]
    family.steps.clear()
    run = ScriptedDraft(script=lambda row, at: 5).start(family, memory, targets, rows.cache.capacity)
    costs = measure_rounds(family, rows, run, prompts, length=length)
    assert len(costs.drafted_s) == MAX_DRAFT_TOKENS
    assert min(costs.plain_s, *costs.drafted_s) > 0
    if max_tokens is None and not length:
        assert {size for _, size in family.steps} == {1, 2, 3, 5, 9}
    assert rows.cache.lengths.tolist() == [1, 2]
    assert all(torch.equal(a, k[0, :, :1]) for a, k in zip(keys, rows.cache.self_keys, strict=True))
    assert greedy_search(family, rows) == wanted


def test_rounds_are_timed_behind_texts_as_long_as_those_of_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first text; behind it, as long as the texts were."""
    lengths = []

    def measured(*args: object, length: int) -> RoundCosts:
        lengths.append(length)
        return FLAT

    monkeypatch.setattr("sprachbund.decoding.speculation.measure_rounds", measured)
    targets = [[Target(language="de")]] * 2
    for draft, expected in (
        (ScriptedDraft(script=lambda row, place: 1, typical_length=7), 7),
        (ScriptedDraft(script=lambda row, place: 1), 24),
    ):
        family, memory = TinyFamily(seed=5), random_memory([9, 5], 5)
        speculation = Speculation(draft)
        rows = search(family, memory, targets, PLAIN, None, speculation)
        assert lengths.pop() == expected
        assert speculation.typical_length == int(sum(len(row[0].tokens) for row in rows) / 2)


@torch.inference_mode()
def test_what_a_draft_takes_counts() -> None:
    """A round in which the draft sleeps costs at least its sleep."""
    family, memory, target = TinyFamily(seed=1), random_memory([5], 1), Target(language="de")
    rows = start_batch(family, memory, [[target]], PLAIN, None)

    def slow(row: int, place: int) -> int:
        time.sleep(0.002)
        return 5

    run = ScriptedDraft(script=slow).start(family, memory, [target], rows.cache.capacity)
    costs = measure_rounds(family, rows, run, [whole_prompt(family, target)])
    assert all(took_s > 0.002 * k for k, took_s in enumerate(costs.drafted_s, 1))


def run_with(
    costs: RoundCosts, monkeypatch: pytest.MonkeyPatch, *, right: bool, searches: int
) -> Speculation:
    family, memory, targets = TinyFamily(seed=5), random_memory([9, 5], 5), [[Target(language="de")]] * 2
    monkeypatch.setattr(Speculation, "costs", lambda self, *args: costs)
    wanted = search(family, memory, targets, PLAIN)
    script = knowing(flat(wanted), family.end_token)
    draft = ScriptedDraft(script=script if right else lambda row, at: 1)
    speculation = Speculation(draft, may_stop=True)
    for _ in range(searches):
        assert_same(search(family, memory, targets, PLAIN, None, speculation), wanted)
    return speculation


def test_a_draft_that_loses_is_switched_off_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = RoundCosts(plain_s=1.0, drafted_s=(1.3,) * 8)
    speculation = run_with(costs, monkeypatch, right=False, searches=12)
    assert speculation.num_draft_tokens == 0
    assert len(speculation.notes) == 1
    assert "the scripted draft was switched off: with" in speculation.notes[0]
    checked = speculation.report()[0].checked
    assert 0 < checked < 400  # it stopped trying


def test_a_gain_that_is_not_sure_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction may be off by five per cent: here a draft that is always right gains three."""
    costs = RoundCosts(plain_s=1.0, drafted_s=(2 / 1.03, *(9.0,) * 7), start_s=0.0)
    speculation = run_with(costs, monkeypatch, right=True, searches=12)
    assert speculation.num_draft_tokens == 0
    assert "and 1.05 is the least" in speculation.notes[0]


def test_a_draft_that_gains_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = RoundCosts(plain_s=1.0, drafted_s=(1.3,) * 8)
    speculation = run_with(costs, monkeypatch, right=True, searches=3)
    assert speculation.num_draft_tokens >= 4
    assert speculation.notes == []
    gain = speculation.report()[0].predicted_gain
    assert gain is not None
    assert gain > 1

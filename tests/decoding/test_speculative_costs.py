"""The prediction of what guessing gains, against a simulation; and that it is acted upon."""

import random

import pytest
import torch

from sprachbund.decoding.options import MAX_GUESSES
from sprachbund.decoding.pass_costs import PassCosts, measure_passes, tokens_per_pass
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.models.family import Target

from .scripted_drafts import ScriptedDraft, knowing
from .test_speculative import PLAIN, assert_same, flat
from .tiny_family import TinyFamily, random_memory

FLAT = PassCosts(pass_s=(1.0,) * 9, draft_s=(0.0,) * 8)


@pytest.mark.parametrize(("acceptance", "guesses"), [(0.85, 1), (0.6, 4), (0.0, 3), (1.0, 8)])
def test_tokens_of_a_pass_are_those_of_a_simulation(acceptance: float, guesses: int) -> None:
    noise, passes, tokens = random.Random(0), 4000, 0
    for _ in range(passes):
        standing = 0
        while standing < guesses and noise.random() < acceptance:
            standing += 1
        tokens += standing + 1
    assert tokens_per_pass(acceptance, guesses) == pytest.approx(tokens / passes, rel=0.03)


def test_the_published_theory_comes_out() -> None:
    """(N_l + N_g) / (1 + p) layers per token: 12 layers, 3 blocks, everything accepted, gain 1.6."""
    costs = PassCosts(pass_s=(12.0, 12.0), draft_s=(3.0,))
    assert costs.gain(1.0, 1) == pytest.approx(1.6)
    assert costs.gain(0.85, 1) == pytest.approx(12 / (15 / 1.85))


def test_more_guesses_pay_where_they_cost_nothing_and_fewer_where_they_do() -> None:
    assert FLAT.best(0.9)[0] == MAX_GUESSES
    steep = PassCosts(
        pass_s=tuple(1.0 + 0.5 * k for k in range(9)), draft_s=tuple(0.1 * k for k in range(1, 9))
    )
    guesses, gain = steep.best(0.9)
    assert gain == pytest.approx(max(steep.gain(0.9, k) for k in range(1, 9)))
    assert guesses < MAX_GUESSES
    assert steep.best(0.1)[1] < 1


@torch.no_grad()
def test_measuring_leaves_the_cache_as_it_was() -> None:
    family, memory = TinyFamily(seed=1), random_memory([5, 3], 1)
    cache = family.start(memory)
    family.step(torch.tensor([[2, 3], [2, 4]]), cache)
    before = [k[:, :, :2].clone() for k in cache.self_keys]
    times = measure_passes(family, cache)
    assert len(times) == MAX_GUESSES + 1
    assert min(times) > 0
    assert cache.lengths.tolist() == [2, 2]
    assert all(torch.equal(a, k[:, :, :2]) for a, k in zip(before, cache.self_keys, strict=True))
    small = family.start(memory, capacity=3)
    assert len(measure_passes(family, small)) == MAX_GUESSES + 1  # with room for three tokens only


def run_with(costs: PassCosts, monkeypatch: pytest.MonkeyPatch, *, right: bool, searches: int) -> Speculation:
    family, memory, targets = TinyFamily(seed=5), random_memory([9, 5], 5), [[Target(language="de")]] * 2
    monkeypatch.setattr(Speculation, "costs", lambda self, *args: costs)
    wanted = search(family, memory, targets, PLAIN)
    guess = knowing(flat(wanted), family.end_token)
    draft = ScriptedDraft(guess=guess if right else lambda row, place: 1)
    speculation = Speculation(draft, may_stop=True)
    for _ in range(searches):
        assert_same(search(family, memory, targets, PLAIN, None, speculation), wanted)
    return speculation


def test_a_draft_that_loses_is_switched_off_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = PassCosts(pass_s=(1.0,) * 9, draft_s=(0.3,) * 8)
    speculation = run_with(costs, monkeypatch, right=False, searches=12)
    assert speculation.guesses == 0
    assert len(speculation.notes) == 1
    assert "the scripted draft was switched off: with" in speculation.notes[0]
    checked = speculation.report()[0].checked
    assert 0 < checked < 400  # it stopped trying


def test_a_draft_that_gains_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = PassCosts(pass_s=(1.0,) * 9, draft_s=(0.3,) * 8)
    speculation = run_with(costs, monkeypatch, right=True, searches=3)
    assert speculation.guesses >= 4
    assert speculation.notes == []
    gain = speculation.report()[0].predicted_gain
    assert gain is not None
    assert gain > 1

"""Speculation never changes a token: against plain greedy and beam search, whatever the draft proposes."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.decoding.drafts.base import NO_DRAFT_TOKEN, DecodingState
from sprachbund.decoding.logits_process import likeliest
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.speculative import stands
from sprachbund.decoding.state import Hypothesis
from sprachbund.models.base import Memory, Target
from tests.decoding.scripted_drafts import ScriptedDraft, knowing, wrong
from tests.decoding.tiny_family import TinyFamily, one_memory, random_memory

FRAMES = [5, 9, 3, 12, 7, 7, 2, 8]
PLAIN = DecodingOptions(draft="none")


def targets_for(count: int, *, timestamps: bool = False) -> list[list[Target]]:
    """Two languages from one memory, prompts of different lengths, one of them timed."""
    return [
        [
            Target(language="de", context="abc" * (i % 3), timestamps=timestamps),
            Target(language="en", source="fr", timestamps=timestamps and bool(i % 2)),
        ]
        for i in range(count)
    ]


def flat(rows: list[list[Hypothesis]]) -> list[Hypothesis]:
    return [h for row in rows for h in row]


def assert_same(
    hypotheses: list[list[Hypothesis]], wanted: list[list[Hypothesis]], *, step: float = 1e-5
) -> None:
    """The same tokens, and log-probabilities that differ by less than `step` for each token."""
    for a, b in zip(flat(hypotheses), flat(wanted), strict=True):
        assert a.tokens == b.tokens
        assert a.finished == b.finished
        assert a.log_probability == pytest.approx(b.log_probability, abs=step * max(1, len(a.tokens)))
        assert a.score == pytest.approx(b.score, abs=step * max(1, len(a.tokens)))
        assert a.no_speech_log_probability == pytest.approx(b.no_speech_log_probability, abs=step)


def speculate(
    family: TinyFamily,
    memory: Memory,
    targets: list[list[Target]],
    options: DecodingOptions,
    script: object,
    num_draft_tokens: int = 3,
    **kwargs: object,
) -> tuple[list[list[Hypothesis]], Speculation]:
    draft = ScriptedDraft(script=script)  # type: ignore[arg-type]
    speculation = Speculation(draft, num_draft_tokens=num_draft_tokens, **kwargs)  # type: ignore[arg-type]
    return search(family, memory, targets, options, None, speculation), speculation


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 30),
    num_draft_tokens=st.integers(1, 8),
    timed=st.booleans(),
    min_tokens=st.integers(0, 4),
    max_tokens=st.sampled_from([None, 5, 9]),
    beam_size=st.sampled_from([1, 1, 3]),
    noise_seed=st.integers(0, 2**16),
    share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
def test_any_draft_gives_the_tokens_of_the_plain_search(
    seed, num_draft_tokens, timed, min_tokens, max_tokens, beam_size, noise_seed, share
) -> None:
    family = TinyFamily(
        seed=seed, num_letters=6, num_times=40 if timed else 0, begin_suppressed=(0,) if seed % 2 else ()
    )
    memory, targets = random_memory(FRAMES, seed), targets_for(8, timestamps=timed)
    options = DecodingOptions(draft="none", min_tokens=min_tokens, max_tokens=max_tokens, beam_size=beam_size)
    wanted = search(family, memory, targets, options)
    right, noise = knowing(flat(wanted), family.end_token), random.Random(noise_seed)

    def script(row: int, at: int) -> int:
        if noise.random() < share:
            return right(row, at)
        return noise.choice([NO_DRAFT_TOKEN, family.end_token, noise.randrange(family.vocabulary_size)])

    hypotheses, _ = speculate(family, memory, targets, options, script, num_draft_tokens)
    assert_same(hypotheses, wanted)


@pytest.mark.parametrize("num_draft_tokens", range(1, 9))
def test_a_draft_that_is_always_right_saves_every_pass_it_can(num_draft_tokens: int) -> None:
    family, memory = TinyFamily(seed=5), random_memory([9], 5)
    targets = [[Target(language="de")]]
    wanted = search(family, memory, targets, PLAIN)
    length = len(wanted[0][0].tokens) + wanted[0][0].finished
    assert length > 4
    family.steps.clear()
    hypotheses, speculation = speculate(
        family, memory, targets, PLAIN, knowing(flat(wanted), family.end_token), num_draft_tokens
    )
    assert_same(hypotheses, wanted)
    # The prompt's pass gives the first token, every other pass its draft tokens and one more.
    assert len(family.steps) - 1 == math.ceil((length - 1) / (num_draft_tokens + 1))
    assert speculation.report()[0].acceptance == 1.0


def test_a_draft_that_is_always_wrong_costs_no_token_and_gains_no_pass() -> None:
    family, memory, targets = TinyFamily(seed=8), random_memory(FRAMES, 8), targets_for(8)
    wanted = search(family, memory, targets, PLAIN)
    plain_passes = len(family.steps)
    family.steps.clear()
    hypotheses, speculation = speculate(
        family, memory, targets, PLAIN, wrong(flat(wanted), family.end_token, family.vocabulary_size)
    )
    assert_same(hypotheses, wanted)
    assert len(family.steps) == plain_passes
    assert sum(report.accepted for report in speculation.report()) == 0


def test_no_row_waits_for_the_slowest() -> None:
    family, memory = TinyFamily(seed=3, max_tokens=40), random_memory(FRAMES, 3)
    targets = [[Target(language="de")] for _ in FRAMES]
    wanted = search(family, memory, targets, PLAIN)
    right = knowing(flat(wanted), family.end_token)

    def only_some(row: int, place: int) -> int:
        return right(row, place) if row % 2 else NO_DRAFT_TOKEN

    alone = []
    for i in range(len(FRAMES)):
        family.steps.clear()
        speculate(family, one_memory(memory, i), targets[:1], PLAIN, lambda _, p, i=i: only_some(i, p))
        alone.append(len(family.steps))
    family.steps.clear()
    hypotheses, _ = speculate(family, memory, targets, PLAIN, only_some)
    assert_same(hypotheses, wanted)
    assert len(family.steps) == max(alone)


@torch.no_grad()
def test_the_cache_holds_the_accepted_tokens_but_the_newest() -> None:
    family, memory, targets = TinyFamily(seed=6), random_memory(FRAMES, 6), targets_for(8)
    wanted = search(family, memory, targets, PLAIN)
    right, checked = knowing(flat(wanted), family.end_token), list[int]()

    def check(state: DecodingState) -> None:
        live = (state.cache.lengths > 0).nonzero().flatten().tolist()
        for r in live:
            held = int(state.cache.lengths[r])
            assert held == int(state.lengths[r]) - 1
            memory_of = r // (len(state.lengths) // state.cache.cross_keys[0].shape[0])
            keys = state.cache.cross_keys[0][memory_of]
            fresh = family.decoder.start(torch.zeros(1, keys.shape[1], 16), None, capacity=held)
            fresh.cross_keys = [k[memory_of][None] for k in state.cache.cross_keys]
            fresh.cross_values = [v[memory_of][None] for v in state.cache.cross_values]
            allowed = state.cache.memory_allowed
            fresh.memory_allowed = None if allowed is None else allowed[memory_of][None]
            family.decoder.step(torch.from_numpy(state.tokens[r : r + 1, :held]), fresh)
            for ours, theirs in zip(state.cache.self_keys, fresh.self_keys, strict=True):
                torch.testing.assert_close(ours[r, :, :held], theirs[0], atol=1e-5, rtol=1e-4)
            checked.append(r)

    draft = ScriptedDraft(
        script=lambda row, at: right(row, at) if at % 3 else NO_DRAFT_TOKEN + 3, check_rows=check
    )
    hypotheses = search(family, memory, targets, PLAIN, None, Speculation(draft, num_draft_tokens=4))
    assert_same(hypotheses, wanted)
    assert len(checked) > 20


@pytest.mark.parametrize("num_draft_tokens", [1, 3, 8])
@pytest.mark.parametrize("seed", [3, 28])
def test_an_end_token_among_the_draft_tokens_ends_the_row_there(seed: int, num_draft_tokens: int) -> None:
    family, memory = TinyFamily(seed=seed), random_memory(FRAMES, seed)
    targets = [[Target(language="de")] for _ in FRAMES]
    wanted = search(family, memory, targets, PLAIN)
    assert sum(h.finished for h in flat(wanted)) >= 7
    assert min(len(h.tokens) for h in flat(wanted)) == 0  # one ends at once
    # Behind the end token the draft goes on, and nobody writes that.
    hypotheses, _ = speculate(
        family, memory, targets, PLAIN, knowing(flat(wanted), family.end_token), num_draft_tokens
    )
    assert_same(hypotheses, wanted)


def test_the_longest_row_that_fits_is_reached() -> None:
    family, memory = TinyFamily(seed=2), random_memory([9, 4], 2)
    options = DecodingOptions(draft="none", min_tokens=20)
    targets = [[Target(language="de")]] * 2
    wanted = search(family, memory, targets, options)
    for num_draft_tokens in (1, 8):
        hypotheses, _ = speculate(
            family, memory, targets, options, knowing(flat(wanted), family.end_token), num_draft_tokens
        )
        assert_same(hypotheses, wanted)
    assert max(len(h.tokens) for h in flat(wanted)) >= 20


def test_unchecked_draft_tokens_take_a_pass_for_two_tokens() -> None:
    family, memory = TinyFamily(seed=4), random_memory([9], 4)
    options = replace(PLAIN, min_tokens=15, max_tokens=15)
    letter = family.first_letter
    hypotheses, _ = speculate(
        family, memory, [[Target(language="de")]], options, lambda r, p: letter + p % 3, 1, accept="unchecked"
    )
    family.steps.clear()
    hypotheses, _ = speculate(
        family, memory, [[Target(language="de")]], options, lambda r, p: letter + p % 3, 1, accept="unchecked"
    )
    assert len(hypotheses[0][0].tokens) == 15
    assert len(family.steps) - 1 == math.ceil((15 - 1) / 2)
    assert hypotheses[0][0].tokens[1] == letter + 1  # a draft token that nobody looked at


def test_unchecked_draft_tokens_still_keep_to_the_rules() -> None:
    family, memory = TinyFamily(seed=4), random_memory([9], 4)
    targets = [[Target(language="de")]]
    wanted = search(family, memory, targets, PLAIN)
    hypotheses, _ = speculate(family, memory, targets, PLAIN, lambda r, p: 1, 2, accept="unchecked")
    assert_same(hypotheses, wanted)  # 1 is "no speech", which is never written


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_what_stands_among_the_best_k_stands_among_the_best_k_plus_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(4, 3, 9, generator=generator).log_softmax(-1)
    num_draft_tokens = torch.randint(-1, 9, (4, 3), generator=generator)
    own = likeliest(log_probs)
    orders = [
        stands(log_probs, own, num_draft_tokens, how) for how in ("exact", "top-2", "top-3", "unchecked")
    ]
    for fewer, more in pairwise(orders):
        assert not bool((fewer & ~more).any())
    best = log_probs.argsort(-1, descending=True)
    for rank, hypothesis in ((1, orders[0]), (2, orders[1]), (3, orders[2])):
        assert torch.equal(hypothesis, (best[..., :rank] == num_draft_tokens[..., None]).any(-1))


def test_a_right_draft_saves_passes_of_a_beam() -> None:
    family, memory = TinyFamily(seed=5, sharpness=12.0), random_memory([9, 5], 5)
    targets, options = [[Target(language="de")]] * 2, replace(PLAIN, beam_size=1)
    wanted = search(family, memory, targets, options)
    beam = replace(PLAIN, beam_size=3)
    plain = search(family, memory, targets, beam)
    hypotheses, speculation = speculate(
        family, memory, targets, beam, knowing(flat(wanted), family.end_token), num_draft_tokens=2
    )
    assert_same(hypotheses, plain)
    assert sum(report.checked for report in speculation.report()) > 0


def test_acceptance_is_counted_by_pair() -> None:
    family, memory = TinyFamily(seed=3), random_memory(FRAMES, 3)
    targets = [[Target(language="de", source="fr"), Target(language="en", source="de")] for _ in FRAMES]
    wanted = flat(search(family, memory, targets, PLAIN))
    right = knowing(wanted, family.end_token)
    _, speculation = speculate(
        family, memory, targets, PLAIN, lambda r, p: NO_DRAFT_TOKEN if r % 2 else right(r, p), 1
    )
    german, english = speculation.report()
    assert (german.source_language, german.target_language) == ("de", "en")
    assert (english.source_language, english.target_language) == ("fr", "de")
    assert german.checked == 0
    assert english.accepted == english.checked > 8
    assert english.to_dict()["acceptance"] == 1.0

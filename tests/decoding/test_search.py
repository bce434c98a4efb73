"""Searches against brute force and against a search without caches and batches, on random weights."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sprachbund.decoding.autoregressive import beam_search, length_normalised
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.state import PROMPT_CHUNK, Hypothesis, start_batch
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Memory, Target
from tests.decoding.families import FAMILIES
from tests.decoding.tiny_family import TinyFamily, one_memory, random_memory
from tests.models.fastconformer.support import sound

GERMAN = Target(language="de")
ENGLISH_SPOKEN = Target(language="en", source="en")
FRAMES = [5, 9, 3, 12, 7, 7, 2, 8]


def uncached_log_probs(family: TinyFamily, memory: Memory, target: Target, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token by a whole forward pass, without a cache or a batch."""
    row = torch.tensor([[*family.prompt(target), *tokens]])
    with torch.no_grad():
        hidden = family.decoder(row, memory.states, memory.num_frames)[:, -1]
        logits = family.decoder.logits(hidden)[0] * family.sharpness
    return logits.masked_fill(family.suppressed(target), -math.inf).log_softmax(-1)


def all_hypotheses(family: TinyFamily, memory: Memory, target: Target, limit: int):
    """Every token sequence up to `limit` with its log-probability and whether it ended."""
    letters = range(family.first_letter, family.first_time)
    for length in range(limit + 1):
        for tokens in itertools.product(letters, repeat=length):
            total, steps = 0.0, list(tokens) + ([family.end_token] if length < limit else [])
            for i, token in enumerate(steps):
                total += float(uncached_log_probs(family, memory, target, list(tokens[:i]))[token])
            yield list(tokens), total, length < limit


def plain_beam(family: TinyFamily, memory: Memory, target: Target, size: int, limit: int, penalty: float):
    """Beam search written down as simply as it can be."""
    live, ended = [([], 0.0)], []
    for step in range(limit):
        candidates = []
        for tokens, total in live:
            log_probs = uncached_log_probs(family, memory, target, tokens)
            candidates += [(total + float(p), tokens, t) for t, p in enumerate(log_probs) if p > -math.inf]
        candidates.sort(key=lambda c: -c[0])
        live = []
        for rank, (total, tokens, token) in enumerate(candidates):
            if token == family.end_token:
                if rank < size and len(ended) < size:
                    ended.append((length_normalised(total, step + 1, penalty), tokens))
            elif len(live) < size:
                live.append(([*tokens, token], total))
        if len(ended) >= size:
            break
    else:
        room = max(0, size - len(ended))
        ended += [(length_normalised(total, limit, penalty), tokens) for tokens, total in live[:room]]
    return max(ended, key=lambda e: e[0])


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("seed", [3, 5, 8])
def test_a_batch_gives_the_tokens_of_its_members_alone(beam_size, seed):
    family, memory = TinyFamily(seed=seed), random_memory(FRAMES, seed)
    options = DecodingOptions(beam_size=beam_size)
    targets = [
        [Target(language="de", context="abc" * (i % 3)), Target(language="en", source="fr")] for i in range(8)
    ]
    together = search(family, memory, targets, options)
    alone = [search(family, one_memory(memory, i), targets[i : i + 1], options)[0] for i in range(8)]
    assert [[h.tokens for h in row] for row in together] == [[h.tokens for h in row] for row in alone]
    for row, other in zip(together, alone, strict=True):
        for a, b in zip(row, other, strict=True):
            assert a.log_probability == pytest.approx(b.log_probability, abs=1e-4)
            assert a.no_speech_log_probability == pytest.approx(b.no_speech_log_probability, abs=1e-4)
    assert len({h.tokens for row in together for h in row}) > 4  # the memories do matter


def test_several_targets_at_once_equal_one_at_a_time():
    family, memory = TinyFamily(seed=3), random_memory(FRAMES, 3)
    wanted = [Target(language=tag) for tag in ("de", "en", "fr")]
    together = search(family, memory, [wanted] * 8)
    for n, target in enumerate(wanted):
        alone = search(family, memory, [[target]] * 8)
        assert [row[n].tokens for row in together] == [row[0].tokens for row in alone]


@pytest.mark.parametrize("seed", range(4))
def test_greedy_takes_the_likeliest_token_at_every_step(seed):
    family, memory = TinyFamily(seed=seed), random_memory([6], seed)
    hypothesis = search(family, memory, [[GERMAN]])[0][0]
    tokens, total = [], 0.0
    while len(tokens) < family.max_tokens - 1:
        best, token = uncached_log_probs(family, memory, GERMAN, tokens).max(-1)
        total += float(best)
        if int(token) == family.end_token:
            break
        tokens.append(int(token))
    assert list(hypothesis.tokens) == tokens
    assert hypothesis.log_probability == pytest.approx(total, abs=1e-3)
    assert hypothesis.finished == (len(tokens) < family.max_tokens - 1)
    assert hypothesis.mean_log_probability == pytest.approx(
        total / (len(tokens) + hypothesis.finished), abs=1e-3
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_wide_enough_finds_the_best_of_all(seed, penalty):
    family, memory = TinyFamily(seed=seed, num_letters=3, sharpness=0.5), random_memory([4], seed)
    limit = 3
    best = max(
        all_hypotheses(family, memory, GERMAN, limit),
        key=lambda h: length_normalised(h[1], len(h[0]) + h[2], penalty),
    )
    options = DecodingOptions(beam_size=40, length_penalty=penalty, max_tokens=limit)
    hypothesis = search(family, memory, [[GERMAN]], options)[0][0]
    assert list(hypothesis.tokens) == best[0]
    assert hypothesis.log_probability == pytest.approx(best[1], abs=1e-3)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [2, 4])
def test_a_narrow_beam_equals_the_plain_one(seed, size):
    family, memory = TinyFamily(seed=seed, num_letters=5, sharpness=0.7), random_memory([4, 9, 6], seed)
    options = DecodingOptions(beam_size=size, max_tokens=7)
    hypotheses = search(family, memory, [[GERMAN]] * 3, options)
    for i, row in enumerate(hypotheses):
        score, tokens = plain_beam(family, one_memory(memory, i), GERMAN, size, 7, 1.0)
        assert list(row[0].tokens) == tokens
        assert row[0].score == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy(seed):
    family, memory = TinyFamily(seed=seed), random_memory(FRAMES, seed)
    greedy = search(family, memory, [[GERMAN]] * 8)
    with torch.inference_mode():
        rows = start_batch(family, memory, [[GERMAN]] * 8, DecodingOptions(), None)
        beam = beam_search(family, rows, beam_size=1, length_penalty=1.0)
    assert [row[0].tokens for row in greedy] == [hypotheses[0].tokens for hypotheses in beam]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_length_limits_hold(beam_size):
    family, memory = TinyFamily(seed=3), random_memory(FRAMES, 3)
    free = search(family, memory, [[GERMAN]] * 8, DecodingOptions(beam_size=beam_size))
    assert min(len(row[0].tokens) for row in free) < 5
    options = DecodingOptions(beam_size=beam_size, min_tokens=5, max_tokens=9)
    bound = search(family, memory, [[GERMAN]] * 8, options)
    assert all(5 <= len(row[0].tokens) <= 9 for row in bound)
    assert all(family.end_token not in row[0].tokens for row in bound)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_suppressed_tokens_never_come(beam_size):
    family, memory = TinyFamily(seed=5), random_memory(FRAMES, 5)
    options = DecodingOptions(beam_size=beam_size)
    first = search(family, memory, [[GERMAN]] * 8, options)[0][0].tokens[0]
    family.capabilities = replace(family.capabilities, begin_suppressed=(first,))
    begun = search(family, memory, [[GERMAN]] * 8, options)
    assert all(row[0].tokens[0] != first for row in begun if row[0].tokens)
    special = set(range(1, family.first_letter))
    assert not special & {t for row in begun for t in row[0].tokens}


@pytest.mark.parametrize("beam_size", [1, 3])
def test_finished_memories_are_dropped_from_the_cache(beam_size):
    family, memory = TinyFamily(seed=3), random_memory(FRAMES, 3)
    hypotheses = search(family, memory, [[GERMAN]] * 8, DecodingOptions(beam_size=beam_size))
    lengths = sorted(len(row[0].tokens) for row in hypotheses)
    assert lengths[1] < lengths[-1]
    rows = [num_rows for num_rows, _ in family.steps]
    assert rows[1] == 8 * beam_size
    assert rows[-1] < rows[1]


def test_prompts_run_in_chunks_and_of_any_length():
    family, memory = TinyFamily(seed=3, max_tokens=80), random_memory([6, 6], 3)
    long = Target(language="de", context="abcdefghijkl" * 3)
    hypotheses = search(family, memory, [[long, GERMAN]] * 2, DecodingOptions(max_tokens=8))
    assert max(length for _, length in family.steps) <= PROMPT_CHUNK
    tokens: list[int] = []
    while len(tokens) < 8:
        token = int(uncached_log_probs(family, one_memory(memory, 0), long, tokens).argmax())
        if token == family.end_token:
            break
        tokens.append(token)
    assert list(hypotheses[0][0].tokens) == tokens
    assert hypotheses[0][0].no_speech_log_probability is not None


def test_no_speech_is_read_behind_the_context():
    family, memory = TinyFamily(seed=3, max_tokens=80), random_memory([6], 3)
    target = Target(language="de", context="hello")
    hypothesis = search(family, memory, [[target]], DecodingOptions(max_tokens=2))[0][0]
    row = torch.tensor([family.prompt(target)])
    with torch.no_grad():
        logits = (
            family.decoder.logits(family.decoder(row, memory.states, memory.num_frames)) * family.sharpness
        )
    expected = float(logits[0, 5].log_softmax(-1)[1])
    assert hypothesis.no_speech_log_probability == pytest.approx(expected, abs=1e-4)


def test_a_prompt_without_room_for_text_is_refused():
    family, memory = TinyFamily(max_tokens=10), random_memory([6])
    with pytest.raises(SprachbundError, match="shorten the prompt"):
        search(family, memory, [[Target(language="de", context="a" * 9)]])


def test_searching_twice_gives_the_same():
    family, memory = TinyFamily(seed=8), random_memory(FRAMES, 8)
    options = DecodingOptions(beam_size=4)
    assert search(family, memory, [[GERMAN]] * 8, options) == search(family, memory, [[GERMAN]] * 8, options)


def test_the_length_penalty_is_that_of_its_paper():
    assert length_normalised(-6.0, 7, 1.0) == pytest.approx(-3.0)
    assert length_normalised(-6.0, 19, 0.5) == pytest.approx(-3.0)
    assert length_normalised(-6.0, 7, 0.0) == -6.0


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "beam_size"),
    [("Parakeet CTC", 1), ("Parakeet CTC", 4), ("Parakeet RNNT", 1), ("Parakeet RNNT", 4), ("Kyutai STT", 1)],
)
def test_a_text_by_frames_that_is_cut_has_the_evidence_for_what_is_left(
    name: str, beam_size: int, tmp_path: Path
) -> None:
    family = FAMILIES[name](tmp_path)
    memory = family.encode(family.features([sound(1.3, 1)]))
    options = DecodingOptions(beam_size=beam_size, draft="none")

    def written(max_tokens: int | None) -> Hypothesis:
        [[hypothesis]] = search(family, memory, [[ENGLISH_SPOKEN]], replace(options, max_tokens=max_tokens))
        return hypothesis

    whole, cut = written(None), written(2)
    assert len(whole.tokens) > 2
    assert cut.tokens == whole.tokens[:2]
    assert (whole.finished, cut.finished) == (True, False)
    if whole.frames is None:  # the paths of a beam of CTC, added up
        assert cut.mean_log_probability == pytest.approx(whole.mean_log_probability)
    else:
        assert cut.frames is not None
        assert cut.frames.begins == whole.frames.begins[:2]
        assert cut.log_probability == pytest.approx(sum(whole.frames.log_probabilities[:2]))
    assert written(len(whole.tokens)) == whole

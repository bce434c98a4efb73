"""Timestamp rules against those of transformers, and by their laws on random logits."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.decoding.logits_process import TimestampTokens, cut_by_timestamps, forbid_timestamps
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.models.base import Target
from tests.decoding.tiny_family import TinyFamily, random_memory

END, FIRST, VOCABULARY = 18, 20, 121  # as in Whisper, text comes before the end token
TIMES = TimestampTokens(first=FIRST, stop=VOCABULARY, step_s=0.1)


def emit(seed: int, duration_s: float, num_steps: int = 30) -> list[int]:
    """A row sampled from random logits under the rules."""
    generator = torch.Generator().manual_seed(seed)
    latest = torch.tensor([TIMES.last_within(duration_s)])
    tokens: list[int] = []
    for _ in range(num_steps):
        logits = torch.randn(1, VOCABULARY, generator=generator) * 2
        logits[0, FIRST - 1] = -torch.inf
        row = torch.tensor([tokens], dtype=torch.long)
        logits = forbid_timestamps(logits, row, times=TIMES, latest=latest, end_token=END)
        token = int(torch.multinomial(logits.softmax(-1)[0], 1, generator=generator))
        if token == END:
            break
        tokens.append(token)
    return tokens


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), duration_s=st.floats(0.05, 9.9))
def test_timestamps_are_paired_monotone_and_inside_the_audio(seed, duration_s):
    tokens = emit(seed, duration_s)
    times = [TIMES.seconds(t) for t in tokens if t >= FIRST]
    assert tokens[0] >= FIRST
    assert times[0] <= 1.0
    assert times == sorted(times)
    assert times[-1] <= duration_s + 1e-9
    kinds = "".join("t" if t >= FIRST else "w" for t in tokens)
    assert "ttt" not in kinds
    for i in range(1, len(tokens) - 1):
        if kinds[i - 1 : i + 2] == "wtw":
            raise AssertionError(f"a segment ended without the next one beginning: {kinds}")


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.lists(st.integers(0, VOCABULARY - 1), max_size=40),
    duration_s=st.floats(0.1, 10.0),
)
def test_pieces_keep_all_text_in_order_inside_the_audio(tokens, duration_s):
    pieces = cut_by_timestamps(tokens, TIMES, duration_s)
    assert [t for _, _, text in pieces for t in text] == [t for t in tokens if t < FIRST]
    bounds = [second for start, end, _ in pieces for second in (start, end)]
    assert bounds == sorted(bounds)
    assert all(0.0 <= second <= duration_s for second in bounds)


def test_a_row_is_cut_at_its_timestamps():
    row = [FIRST, 5, 6, FIRST + 10, FIRST + 12, 7, FIRST + 20]
    assert cut_by_timestamps(row, TIMES, 3.0) == [
        (0.0, pytest.approx(1.0), [5, 6]),
        (pytest.approx(1.2), pytest.approx(2.0), [7]),
    ]
    assert cut_by_timestamps([FIRST + 1, 5], TIMES, 3.0) == [(pytest.approx(0.1), 3.0, [5])]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), num_tokens=st.integers(0, 12))
def test_the_rules_are_those_of_transformers(seed, num_tokens):
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    tokens = emit(seed, 10.0, num_tokens)
    step = 0.1
    config = SimpleNamespace(
        no_timestamps_token_id=FIRST - 1,
        eos_token_id=END,
        bos_token_id=END,
        max_initial_timestamp_index=round(1.0 / step),
        _detect_timestamp_from_logprob=True,
    )
    processor = WhisperTimeStampLogitsProcessor(config, begin_index=2)
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed + 1)) * 2
    logits[0, FIRST - 1] = -torch.inf
    theirs = processor(torch.tensor([[0, 1, *tokens]]), logits.clone())
    latest = torch.tensor([VOCABULARY - 1])
    row = torch.tensor([tokens], dtype=torch.long)
    ours = forbid_timestamps(logits, row, times=TIMES, latest=latest, end_token=END)
    assert torch.equal(theirs > -torch.inf, ours > -torch.inf)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num_tokens=st.integers(0, 12), duration_s=st.floats(0.05, 9.9))
def test_tokens_behind_the_timestamps_are_text_like_those_in_front(seed, num_tokens, duration_s):
    """The same vocabulary with its last tokens in front of the timestamps, whose numbers grow by as many."""
    behind, tokens = 5, emit(seed, duration_s, num_tokens)
    generator = torch.Generator().manual_seed(seed + 1)
    swapped = [t if t < FIRST else t + behind for t in tokens]
    for at in range(len(tokens)):  # some of the text is of those tokens
        if tokens[at] < FIRST and torch.rand(1, generator=generator) < 0.5:
            added = int(torch.randint(behind, (1,), generator=generator))
            tokens[at], swapped[at] = VOCABULARY + added, FIRST + added
    order = [*range(FIRST), *range(VOCABULARY, VOCABULARY + behind), *range(FIRST, VOCABULARY)]
    logits = torch.randn(1, VOCABULARY + behind, generator=generator) * 2
    wanted = forbid_timestamps(
        logits[:, order].clone(),
        torch.tensor([swapped], dtype=torch.long),
        times=replace(TIMES, first=FIRST + behind, stop=VOCABULARY + behind),
        latest=torch.tensor([TIMES.last_within(duration_s) + behind]),
        end_token=END,
    )
    ruled = forbid_timestamps(
        logits,
        torch.tensor([tokens], dtype=torch.long),
        times=TIMES,
        latest=torch.tensor([TIMES.last_within(duration_s)]),
        end_token=END,
    )
    assert torch.equal(ruled[:, order], wanted)
    pieces = cut_by_timestamps(tokens, TIMES, duration_s)
    times = replace(TIMES, first=FIRST + behind, stop=VOCABULARY + behind)
    in_front = cut_by_timestamps(swapped, times, duration_s)
    assert [(start, end, len(text)) for start, end, text in pieces] == [
        (start, end, len(text)) for start, end, text in in_front
    ]


def test_rows_without_timestamps_are_left_alone():
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(0))
    masked = logits.masked_fill(torch.arange(VOCABULARY) >= FIRST, -torch.inf)
    latest = torch.tensor([-1, FIRST + 50])
    row = torch.tensor([[5], [FIRST]])
    ruled = forbid_timestamps(masked, row, times=TIMES, latest=latest, end_token=END)
    assert torch.equal(ruled[0], masked[0])


@pytest.mark.parametrize("beam_size", [1, 3])
def test_searches_obey_the_rules(beam_size):
    family = TinyFamily(num_times=51, seed=2)
    times = family.capabilities.timestamps
    assert times is not None
    durations_s = [0.5, 0.9, 0.3, 1.2]
    memory = random_memory([5, 9, 3, 12], 2)
    target = Target(language="de", timestamps=True)
    plain = Target(language="en")
    rows = search(family, memory, [[target, plain]] * 4, DecodingOptions(beam_size=beam_size), durations_s)
    for (timed, untimed), duration_s in zip(rows, durations_s, strict=True):
        seconds = [times.seconds(t) for t in timed.tokens if t >= times.first]
        assert seconds
        assert seconds == sorted(seconds)
        assert seconds[-1] <= duration_s + 1e-9
        assert all(t < times.first for t in untimed.tokens)

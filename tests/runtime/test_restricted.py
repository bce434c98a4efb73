"""A list of rows must never change what greedy decoding finds, whatever it lists."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.nn.decoder import TextDecoder
from sprachbund.runtime.extension import choose_instruction_set, missing_because, native
from sprachbund.runtime.native_parts import NativeDecoder
from sprachbund.runtime.packing import pack_decoder, pack_matrix
from sprachbund.runtime.restricted import GreedyRows, NativeRows, TorchRows, restricted_greedy, take_rows
from tests.runtime.support import needs_native, random_decoder

VOCABULARY, WIDTH, FRAMES, MAX_TOKENS, END = 50, 24, 7, 12, 3
DECODER = random_decoder(width=WIDTH, num_heads=2, vocabulary_size=VOCABULARY)
PROMPT = [5, 9]


def native_decoder() -> NativeDecoder:
    shape, arrays = pack_decoder(DECODER)
    return NativeDecoder(shape, arrays, native().Team(2), choose_instruction_set())


DECODERS: dict[str, Any] = {"torch": DECODER}
if missing_because() is None:
    DECODERS["native"] = native_decoder()


def started(decoder: Any, num_rows: int, seed: int) -> Any:
    memory = torch.randn(num_rows, FRAMES, WIDTH, generator=torch.Generator().manual_seed(seed))
    return decoder.start(memory, None, capacity=len(PROMPT) + MAX_TOKENS)


def prompts(num_rows: int) -> Tensor:
    return torch.tensor(PROMPT).repeat(num_rows, 1)


def step_by_step(
    decoder: Any, num_rows: int, seed: int, forbidden: Tensor
) -> tuple[list[list[int]], list[float]]:
    """Every row alone, all logits at each step."""
    cache = started(decoder, num_rows, seed)
    logits = decoder.step(prompts(num_rows), cache)[:, -1]
    found, sums = [[] for _ in range(num_rows)], [0.0] * num_rows
    done = [False] * num_rows
    for _ in range(MAX_TOKENS):
        best = logits.masked_fill(forbidden, -torch.inf).log_softmax(-1).max(-1)
        for r in range(num_rows):
            if not done[r]:
                sums[r] += float(best.values[r])
                done[r] = int(best.indices[r]) == END
                found[r] += [] if done[r] else [int(best.indices[r])]
        logits = decoder.step(best.indices[:, None], cache)[:, -1]
    return found, sums


def restricted(
    name: str, num_rows: int, seed: int, rows: Tensor, forbidden: Tensor, **more: int
) -> GreedyRows:
    decoder = DECODERS[name]
    output = (NativeRows if name == "native" else TorchRows)(decoder, rows)
    cache = started(decoder, num_rows, seed)
    states = output.states(prompts(num_rows), cache)[:, -1:]
    options = {"max_tokens": MAX_TOKENS, **more}
    return restricted_greedy(output, cache, states, rows=rows, forbidden=forbidden, end_token=END, **options)


@pytest.mark.parametrize("name", sorted(DECODERS))
@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, 3),
    seed=st.integers(0, 10_000),
    listed=st.sets(st.integers(0, VOCABULARY - 1), min_size=1),
    forbidden=st.sets(st.integers(0, VOCABULARY - 1), max_size=20),
    check_every=st.integers(1, 6),
)
def test_tokens_and_log_probabilities_are_those_of_the_whole_matrix(
    name: str, num_rows: int, seed: int, listed: set[int], forbidden: set[int], check_every: int
) -> None:
    forbidden = forbidden - {min(listed)}
    mask = torch.zeros(VOCABULARY, dtype=torch.bool)
    mask[list(forbidden)] = True
    rows = torch.tensor(sorted(listed))
    found = restricted(name, num_rows, seed, rows, mask, check_every=check_every)
    tokens, sums = step_by_step(DECODERS[name], num_rows, seed, mask)
    assert found.tokens == tokens
    assert found.log_probabilities == pytest.approx(sums, abs=1e-4)


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_a_list_of_all_rows_is_never_taken_back(name: str) -> None:
    mask = torch.zeros(VOCABULARY, dtype=torch.bool)
    mask[END] = True
    found = restricted(name, 1, 0, torch.arange(VOCABULARY), mask, check_every=4)
    assert len(found.tokens[0]) == MAX_TOKENS
    # One token comes from the prompt; the other eleven in checks of 4, 4 and 3.
    assert (found.num_steps, found.num_checks) == (MAX_TOKENS - 1, 3)


@needs_native
@pytest.mark.parametrize("count", [1, 15, 16, 33])
def test_taken_rows_are_the_rows_packed_alone(count: int) -> None:
    weight = torch.randn(50, 24)
    rows = torch.randperm(50)[:count]
    packed = {k.removeprefix("matrix."): a for k, a in pack_matrix("matrix", weight).items()}
    taken, alone = take_rows(packed, rows), pack_matrix("matrix", weight[rows])
    assert all(torch.equal(taken[key], alone[key]) for key in alone)


@needs_native
def test_listed_logits_are_those_of_the_whole_matrix_to_the_bit() -> None:
    decoder, rows = DECODERS["native"], torch.tensor([49, 0, 17, 16, 3])
    output = NativeRows(decoder, rows)
    cache = started(decoder, 2, 1)
    states = output.states(prompts(2), cache)
    again = started(decoder, 2, 1)
    logits = decoder.step(prompts(2), again)
    assert torch.equal(output.everything(states), logits)
    assert torch.equal(output.listed(states), logits[..., rows])
    assert torch.equal(cache.own, again.own)


@needs_native
def test_wrong_sizes_are_refused() -> None:
    compiled = DECODERS["native"]._native
    with pytest.raises(ValueError, match="states is"):
        compiled.logits(torch.zeros(2, 8), torch.zeros(2, VOCABULARY))
    with pytest.raises(ValueError, match="logits is"):
        compiled.logits(torch.zeros(2, 32), torch.zeros(2, 7))


def test_requests_that_cannot_be_are_refused() -> None:
    mask = torch.zeros(VOCABULARY, dtype=torch.bool)
    mask[7] = True
    with pytest.raises(SprachbundError, match="every listed token is forbidden"):
        restricted("torch", 1, 0, torch.tensor([7]), mask)
    with pytest.raises(SprachbundError, match="check_every 0"):
        restricted("torch", 1, 0, torch.tensor([8]), mask, check_every=0)


def test_the_decoder_itself_stays_whole() -> None:
    TorchRows(DECODER, torch.tensor([1]))
    assert type(DECODER) is TextDecoder

"""Rows of the output matrix taken apart are those rows; what a list does in a search is tested with its draft."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sprachbund.decoding.drafts.listed import (
    NativeRows,
    TorchRows,
    _bytes,
    bytes_of_a_token,
    output_rows,
    take_rows,
)
from sprachbund.engines.extension import choose_instruction_set, missing_because, native
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.engines.packing import pack_decoder, pack_matrix
from sprachbund.engines.torch_layers import TorchDecoder
from sprachbund.errors import SprachbundError
from sprachbund.nn.decoder import TextDecoder
from tests.engines.support import needs_native, random_decoder

VOCABULARY, WIDTH, FRAMES, MAX_TOKENS, END = 50, 24, 7, 12, 3
DECODER = random_decoder(width=WIDTH, num_heads=2, vocabulary_size=VOCABULARY)
PROMPT = [5, 9]


def native_decoder() -> NativeDecoder:
    shape, arrays = pack_decoder(DECODER)
    return NativeDecoder(shape, arrays, native().Team(2), choose_instruction_set())


DECODERS: dict[str, Any] = {"torch": DECODER, "torch-int8": TorchDecoder(DECODER, "int8")}
if missing_because() is None:
    DECODERS["native"] = native_decoder()


def started(decoder: Any, num_rows: int, seed: int) -> Any:
    memory = torch.randn(num_rows, FRAMES, WIDTH, generator=torch.Generator().manual_seed(seed))
    return decoder.start(memory, None, capacity=len(PROMPT) + MAX_TOKENS)


def prompts(num_rows: int) -> Tensor:
    return torch.tensor(PROMPT).repeat(num_rows, 1)


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


def test_a_decoder_of_another_kind_is_refused() -> None:
    with pytest.raises(SprachbundError, match="kind Linear"):
        output_rows(torch.nn.Linear(1, 1), torch.tensor([0]))


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_bytes_are_those_by_hand(name: str) -> None:
    decoder = DECODERS[name]
    parts = _bytes(decoder, FRAMES)
    layers, output, vocabulary, memory = parts
    assert vocabulary == VOCABULARY
    cache = started(decoder, 1, 0)
    if name != "native":  # positions are padded there
        assert memory == sum(x.nbytes for x in (*cache.cross_keys, *cache.cross_values))
    whole, listed = layers + memory + output, layers + memory + output * 10 / VOCABULARY
    assert bytes_of_a_token(decoder, 10, 0.0, FRAMES) == pytest.approx((whole, listed + output / 8))
    won = sum(
        0.9**i for i in range(8)
    )  # tokens of a check, the one that corrects the first wrong one among them
    assert bytes_of_a_token(decoder, 10, 0.1, FRAMES)[1] == pytest.approx((8 * listed + output) / won)
    plain, everything = bytes_of_a_token(decoder, VOCABULARY, 0.0, FRAMES)
    assert everything > plain


def test_the_decoder_itself_stays_whole() -> None:
    TorchRows(DECODER, torch.tensor([1]))
    assert type(DECODER) is TextDecoder

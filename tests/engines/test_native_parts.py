"""The native decoder against the torch one it stands for."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sprachbund.engines.choice import check_choice
from sprachbund.engines.extension import choose_instruction_set, instruction_sets, missing_because, native
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.engines.options import MemoryNumbers, NativeOptions
from sprachbund.engines.packing import pack_decoder
from sprachbund.errors import SprachbundError
from sprachbund.nn.decoder import TextDecoder
from tests.engines.support import (
    compute_linears,
    needs_native,
    on_every_set,
    quantized_linear,
    random_decoder,
    relative_error,
)

pytestmark = needs_native
BEST = (instruction_sets() or ("portable",))[0]
# Every size is odd where it may be: heads of 12 and 10 dimensions, feed-forwards and memories of other widths.
SIZES = [
    {"width": 64, "num_heads": 4},
    {"width": 24, "num_heads": 2, "feed_forward_width": 37, "memory_width": 19, "vocabulary_size": 33},
    {"width": 30, "num_heads": 3, "feed_forward_width": 50, "num_layers": 3},
]


def nativized(
    decoder: TextDecoder, isa: str = BEST, threads: int = 1, memory: MemoryNumbers = "bf16"
) -> NativeDecoder:
    shape, arrays = pack_decoder(decoder)
    return NativeDecoder(shape, arrays, native().Team(threads), isa, NativeOptions(memory=memory))


def memory_of(decoder: TextDecoder, num_memories: int, length: int, seed: int = 0) -> Tensor:
    width = decoder.layers[0].cross_attention.key.in_features
    return torch.randn(num_memories, length, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def int8_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's linear layers compute as the kernels do: 8-bit rows and tokens, exact sums."""
    compute_linears(monkeypatch, quantized_linear)


@on_every_set
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.usefixtures("int8_torch")
def test_step_is_torch_with_the_same_quantization(isa: str, sizes: dict[str, Any]) -> None:
    """What is left are bf16 keys and values and, by them, a few inputs that round the other way."""
    decoder = random_decoder(**sizes)
    memory, num_frames = memory_of(decoder, 2, 21), torch.tensor([21, 10])
    tokens = torch.randint(0, sizes.get("vocabulary_size", 50), (4, 6))
    ours = nativized(decoder, isa)
    caches = [d.start(memory, num_frames, rows_per_memory=2) for d in (decoder, ours)]
    weights: list[list[Tensor]] = [[], []]
    wanted, result = decoder.step(tokens, caches[0], weights[0]), ours.step(tokens, caches[1], weights[1])
    assert relative_error(result, wanted) < 0.02
    assert caches[1].lengths.tolist() == [6] * 4
    for seen, reference in zip(weights[1], weights[0], strict=True):
        assert seen.shape == reference.shape
        torch.testing.assert_close(seen, reference, atol=0.02, rtol=0.1)


@on_every_set
def test_step_is_near_fp32(isa: str) -> None:
    decoder = random_decoder(width=64, num_heads=4, num_layers=3)
    memory, tokens = memory_of(decoder, 2, 40), torch.randint(0, 50, (2, 10))
    wanted = decoder.step(tokens, decoder.start(memory, None))
    ours = nativized(decoder, isa)
    result = ours.step(tokens, ours.start(memory, None))
    assert relative_error(result, wanted) < 0.05


@on_every_set
def test_a_memory_in_8_bits_is_near_that_in_bf16(isa: str) -> None:
    decoder = random_decoder(width=64, num_heads=4, num_layers=3)
    memory, num_frames = memory_of(decoder, 3, 100), torch.tensor([100, 64, 7])
    tokens = torch.randint(0, 50, (6, 10))
    outs, weights = [], list[list[Tensor]]()
    for numbers in ("bf16", "int8"):
        ours = nativized(decoder, isa, memory=numbers)
        cache = ours.start(memory, num_frames, rows_per_memory=2)
        weights.append([])
        outs.append(ours.step(tokens, cache, weights[-1]))
    assert relative_error(outs[1], outs[0]) < 0.03
    torch.testing.assert_close(weights[1][-1], weights[0][-1], atol=0.02, rtol=0.1)
    halves = (sum(x.nbytes for x in (*c.cross_keys, *c.cross_values)) for c in (cache,))
    assert next(halves) == cache.cross.numel()  # a byte each


@pytest.mark.parametrize("threads", [1, 3])
def test_a_memory_in_8_bits_is_as_exact_in_batches_parts_and_threads(threads: int) -> None:
    decoder = random_decoder(width=24, num_heads=2)
    one, ours = (nativized(decoder, threads=n, memory="int8") for n in (1, threads))
    memory, num_frames = memory_of(decoder, 3, 40), torch.tensor([40, 1, 17])
    tokens = torch.randint(0, 50, (3, 9))
    cache = ours.start(memory, num_frames)
    together = torch.cat([ours.step(part, cache) for part in tokens.split([1, 5, 3], dim=1)], dim=1)
    for b, n in enumerate(num_frames.tolist()):
        alone = one.start(memory[b : b + 1, :n], None)
        assert torch.equal(one.step(tokens[b : b + 1], alone), together[b : b + 1])
    cache.keep(torch.tensor([0, 2]))
    rest = one.start(memory[[0, 2]], num_frames[[0, 2]])
    one.step(tokens[[0, 2]], rest)
    more = torch.randint(0, 50, (2, 1))
    assert torch.equal(ours.step(more, cache), one.step(more, rest))


def test_an_option_that_is_not_offered_is_an_error() -> None:
    with pytest.raises(SprachbundError, match="'int2' is not offered; choose bf16 or int8"):
        NativeOptions(memory="int2")  # type: ignore[arg-type]


def test_instruction_sets_agree() -> None:
    decoder = random_decoder(width=64, num_heads=4)
    memory, tokens = memory_of(decoder, 1, 40), torch.randint(0, 50, (1, 12))
    logits = []
    for isa in instruction_sets():
        ours = nativized(decoder, isa)
        logits.append(ours.step(tokens, ours.start(memory, None)))
    assert max(relative_error(other, logits[0]) for other in logits) < 0.02


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    group=st.integers(1, 3),
    isa=st.sampled_from(instruction_sets() or ("portable",)),
)
def test_several_positions_at_once_are_single_steps_exactly(cuts: list[int], group: int, isa: str) -> None:
    decoder = random_decoder(width=24, num_heads=2)
    ours, memory = nativized(decoder, isa), memory_of(decoder, 2, 19)
    tokens = torch.randint(0, 50, (2 * group, sum(cuts)))
    caches = [ours.start(memory, torch.tensor([19, 7]), rows_per_memory=group) for _ in range(2)]
    whole = torch.cat([ours.step(part, caches[0]) for part in tokens.split(cuts, dim=1)], dim=1)
    single = torch.cat([ours.step(part, caches[1]) for part in tokens.split(1, dim=1)], dim=1)
    assert torch.equal(whole, single)


@on_every_set
def test_a_batch_is_its_rows_exactly_whatever_the_padding(isa: str) -> None:
    decoder = random_decoder(width=24, num_heads=2)
    ours, memory, tokens = nativized(decoder, isa), memory_of(decoder, 8, 40), torch.randint(0, 50, (8, 5))
    num_frames = torch.tensor([40, 1, 16, 17, 33, 5, 39, 32])
    together = ours.step(tokens, ours.start(memory, num_frames))
    for b, n in enumerate(num_frames.tolist()):
        alone = ours.step(tokens[b : b + 1], ours.start(memory[b : b + 1, :n], None))
        assert torch.equal(together[b : b + 1], alone)


def test_rows_of_different_lengths_and_rewinding() -> None:
    decoder = random_decoder(width=24, num_heads=2)
    ours, memory = nativized(decoder), memory_of(decoder, 1, 9)
    prompt, more = torch.randint(0, 50, (3, 18)), torch.randint(0, 50, (3, 2))
    cache = ours.start(memory, None, rows_per_memory=3)
    ours.step(prompt, cache)
    cache.rewind(torch.tensor([18, 3, 16]))
    result = ours.step(more, cache)
    for row, length in enumerate([18, 3, 16]):
        alone = ours.start(memory, None)
        ours.step(prompt[row : row + 1, :length], alone)
        assert torch.equal(result[row : row + 1], ours.step(more[row : row + 1], alone))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_reorder_keep_and_rewind_do_what_they_do_in_torch(data: st.DataObject) -> None:
    """The same random course on both caches; the logits stay together all the way."""
    decoder = random_decoder(width=24, num_heads=2)
    ours, memory, group = nativized(decoder), memory_of(decoder, 3, 20), 2
    caches = [d.start(memory, torch.tensor([20, 4, 11]), rows_per_memory=group) for d in (decoder, ours)]
    for _ in range(4):
        memories = len(caches[1].frames)
        tokens = torch.randint(0, 50, (memories * group, data.draw(st.integers(1, 6))))
        wanted, result = decoder.step(tokens, caches[0]), ours.step(tokens, caches[1])
        assert relative_error(result, wanted) < 0.1
        action = data.draw(st.sampled_from(["reorder", "widen", "keep", "rewind"]))
        if action == "reorder" or (action == "widen" and group > 3):
            inside = data.draw(
                st.lists(st.integers(0, group - 1), min_size=memories * group, max_size=memories * group)
            )
            order = torch.arange(memories).repeat_interleave(group) * group + torch.tensor(inside)
            change = lambda cache, rows=order: cache.reorder(rows)  # noqa: E731
        elif action == "widen":
            order, group = torch.arange(memories * group).repeat_interleave(2), 2 * group
            change = lambda cache, rows=order: cache.reorder(rows)  # noqa: E731
        elif action == "keep":
            kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, memories - 1), min_size=1))))
            change = lambda cache, rows=kept: cache.keep(rows)  # noqa: E731
        else:
            change = lambda cache: cache.rewind(cache.lengths // 2)  # noqa: E731
        for cache in caches:
            change(cache)
        assert caches[0].lengths.tolist() == caches[1].lengths.tolist()
        assert caches[1].num_rows == len(caches[1].frames) * group


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_change_nothing(threads: int) -> None:
    decoder = random_decoder(width=24, num_heads=2)
    one, several = nativized(decoder), nativized(decoder, threads=threads)
    memory, tokens = memory_of(decoder, 2, 33), torch.randint(0, 50, (2, 9))
    caches = [d.start(memory, None) for d in (one, several)]
    for part in tokens.split([1, 8], dim=1):  # few tokens and many go different ways
        assert torch.equal(one.step(part, caches[0]), several.step(part, caches[1]))


def test_a_full_cache_and_unknown_tokens_are_errors() -> None:
    decoder = random_decoder(width=24, num_heads=2)
    ours, memory = nativized(decoder), memory_of(decoder, 1, 9)
    cache = ours.start(memory, None, capacity=4)
    with pytest.raises(ValueError, match="5 tokens do not fit into a cache of 4"):
        ours.step(torch.zeros(1, 5, dtype=torch.long), cache)
    for token in (-1, 50):
        with pytest.raises(IndexError, match="vocabulary"):
            ours.step(torch.tensor([[token]]), cache)
    assert ours.start(memory, None, capacity=1000).capacity == decoder.max_tokens


def test_a_team_calls_from_several_python_threads_one_by_one() -> None:
    from concurrent.futures import ThreadPoolExecutor

    decoder = random_decoder(width=24, num_heads=2)
    ours, memory = nativized(decoder, threads=2), memory_of(decoder, 1, 33)
    tokens = torch.randint(0, 50, (6, 1, 4))
    alone = [ours.step(row, ours.start(memory, None)) for row in tokens]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda row: ours.step(row, ours.start(memory, None)), tokens))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_there_is_a_reason_or_there_are_kernels() -> None:
    assert (missing_because() is None) == bool(instruction_sets())
    assert instruction_sets()[-1] == "portable"


def test_intels_processors_prefer_dot_products_of_integers_to_those_of_bf16() -> None:
    known, about = native().instruction_sets(), Path("/proc/cpuinfo")
    if "avx512" not in known or not about.exists():
        pytest.skip("no processor with dot products of bf16, or none that the system names")
    is_intel = "GenuineIntel" in about.read_text(encoding="utf-8")
    assert (known.index("avx512_vnni") < known.index("avx512")) == is_intel


def test_the_environment_names_the_best_kernels_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    known = tuple(native().instruction_sets())
    for number, name in enumerate(known):
        monkeypatch.setenv("SPRACHBUND_INSTRUCTION_SET", name)
        assert instruction_sets() == known[number:]
        assert choose_instruction_set() == name
    monkeypatch.setenv("SPRACHBUND_INSTRUCTION_SET", "")
    assert instruction_sets() == known
    monkeypatch.setenv("SPRACHBUND_INSTRUCTION_SET", "neon")
    refused = r"SPRACHBUND_INSTRUCTION_SET is 'neon'.*choose from .*portable"
    with pytest.raises(SprachbundError, match=refused):
        instruction_sets()
    with pytest.raises(SprachbundError, match=refused):  # before a service begins to listen
        check_choice("auto", None)
    check_choice("torch", None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.parametrize("used", [True, False])
def test_a_forked_process_starts_threads_of_its_own(used: bool) -> None:
    """It has the object but not the threads; letting go of an object that it did not use must not wait for them."""
    decoder = random_decoder(width=24, num_heads=2)
    ours, tokens = nativized(decoder, threads=2), torch.tensor([[1]])
    memory = memory_of(decoder, 1, 9)
    cache, expected = ours.start(memory, None), ours.step(tokens, ours.start(memory, None))
    if (child := os.fork()) == 0:
        signal.alarm(20)
        same = not used
        with suppress(BaseException):
            if used:
                with ThreadPoolExecutor(3) as pool:  # of several that are first, one starts the threads
                    result = pool.map(lambda _: ours.step(tokens, ours.start(memory, None)), range(3))
                    same = all(torch.equal(one, expected) for one in result)
            del ours, cache
        os._exit(17 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert torch.equal(ours.step(tokens, cache), expected)

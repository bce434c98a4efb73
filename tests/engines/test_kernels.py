"""Every kernel of every instruction set that runs here, against torch; shapes from anywhere."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sprachbund.engines.extension import instruction_sets, native
from sprachbund.engines.packing import BLOCK, pack_convolution, pad
from sprachbund.nn.conformer import ConvolutionModule
from tests.engines.support import (
    BF16_STEP,
    attend,
    attend_eight,
    attend_many,
    attend_reference,
    attend_segments,
    gelu_reference,
    needs_native,
    on_every_set,
    parts_of_a_product,
    product,
    product_reference,
    quantize,
    quantize_reference,
)

pytestmark = needs_native
sizes = st.integers(1, 70)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None)


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_tokens(seed: int, count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = np.random.default_rng(seed).integers(0, 256, (count, width), np.uint8)
    return torch.from_numpy(values), randn(seed, count).abs() + 0.01


@on_every_set
@few
@given(count=st.integers(1, 9), width=sizes, seed=seeds, size=st.sampled_from([1e-6, 1.0, 1e6]))
def test_quantizing_is_exactly_torch(isa: str, count: int, width: int, seed: int, size: float) -> None:
    x = randn(seed, count, width) * size
    x[0] = 0  # a silent token
    values, scale = quantize(isa, x)
    wanted, wanted_scale = quantize_reference(x)
    assert torch.equal(values, wanted)
    assert torch.equal(scale, wanted_scale)


@on_every_set
@few
@given(count=st.integers(1, 5), width=sizes, seed=seeds, mean=st.sampled_from([0.0, 30.0]))
def test_norm_and_quantizing_are_a_step_from_torch(
    isa: str, count: int, width: int, seed: int, mean: float
) -> None:
    x, gain, bias = randn(seed, count, width) + mean, randn(seed + 1, width), randn(seed + 2, width)
    values, scale = quantize(isa, x, gain, bias)
    wanted = torch.nn.functional.layer_norm(x.double(), (width,), gain.double(), bias.double())
    error = ((values.double() - 128) * scale[:, None] - wanted).abs()
    slack = (
        1e-4 * (1 + mean) * (1 + gain.abs().max() * width**0.5)
    )  # of norms over nearly equal numbers in fp32
    assert (error <= 0.501 * scale[:, None] + slack).all()


@on_every_set
@few
@given(
    count=st.integers(1, 5),
    width=sizes,
    seed=seeds,
    epsilon=st.sampled_from([1e-6, 1e-2]),
    size=st.sampled_from([1e-3, 1.0]),
)
def test_root_mean_square_norm_and_quantizing_are_a_step_from_torch(
    isa: str, count: int, width: int, seed: int, epsilon: float, size: float
) -> None:
    x, gain = randn(seed, count, width) * size, randn(seed + 1, width)
    values, scale = quantize(isa, x, gain, None, epsilon)
    wanted = F.rms_norm(x.double(), (width,), gain.double(), epsilon)
    error = ((values.double() - 128) * scale[:, None] - wanted).abs()
    assert (error <= 0.501 * scale[:, None] + 1e-5 * wanted.abs()).all()


@on_every_set
@few
@given(count=st.integers(1, 30), width=sizes, rows=sizes, seed=seeds)
def test_product(isa: str, count: int, width: int, rows: int, seed: int) -> None:
    values, scale = random_tokens(seed, count, width)
    weight, bias = randn(seed + 1, rows, width), randn(seed + 2, rows)
    wanted = product_reference(values, scale, weight, bias)
    torch.testing.assert_close(
        product(isa, values, scale, weight, bias).double(), wanted, rtol=2e-6, atol=2e-5
    )


@on_every_set
def test_product_at_the_ends_of_the_range_does_not_saturate(isa: str) -> None:
    """255 times -127, over and over: what an instruction with 16-bit sums in between gets wrong."""
    values, scale = torch.full((3, 512), 255, dtype=torch.uint8), torch.ones(3)
    for sign in (1.0, -1.0):
        weight = torch.full((20, 512), sign)
        out = product(isa, values, scale, weight)
        torch.testing.assert_close(out, torch.full((3, 20), sign * 127 * 512), rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [301, 768, 1573])
def test_integer_sums_are_the_same_on_every_instruction_set(width: int) -> None:
    """With scales of powers of two nothing is rounded, so equal sums are equal bits. Some cut wide rows in parts."""
    values, _ = random_tokens(0, 29, width)
    weight = torch.randint(-127, 128, (83, width)).float()
    weight[:, 0] = 127.0  # makes every scale one
    scale = torch.full((29,), 0.25)
    outs = [product(isa, values, scale, weight) for isa in instruction_sets()]
    wanted = 0.25 * ((values.long() - 128) @ weight.long().T).float()
    assert all(torch.equal(out, wanted) for out in outs)


@on_every_set
@few
@given(first=st.integers(1, 14), second=st.integers(1, 14), rows=sizes, seed=seeds)
def test_tokens_do_not_depend_on_their_neighbours(
    isa: str, first: int, second: int, rows: int, seed: int
) -> None:
    values, scale = random_tokens(seed, first + second, 37)
    weight = randn(seed + 1, rows, 37)
    parts = parts_of_a_product(lambda v, s: product(isa, v, s, weight), values, scale, first, second)
    assert torch.equal(product(isa, values, scale, weight), parts)


@on_every_set
def test_gelu_and_residual(isa: str) -> None:
    values, scale = random_tokens(0, 7, 64)
    scale = scale * 0.05
    weight, bias, before = randn(1, 45, 64) / 8, randn(2, 45), randn(3, 7, 45)
    y = product_reference(values, scale, weight, bias)
    assert y.min() < -8
    assert y.max() > 8
    out = product(isa, values, scale, weight, bias, "gelu")
    torch.testing.assert_close(out.double(), gelu_reference(y), rtol=2e-6, atol=3e-6)
    out = product(isa, values, scale, weight, bias, "add", out=before)
    torch.testing.assert_close(out.double(), before + y, rtol=2e-6, atol=2e-5)
    out = product(isa, values, scale, weight, bias, "add", out=before, factor=0.25)
    torch.testing.assert_close(out.double(), before + 0.25 * y, rtol=2e-6, atol=2e-5)
    out = product(isa, values, scale, weight, bias, "times", out=before)
    torch.testing.assert_close(out.double(), before * y, rtol=2e-6, atol=2e-5)


@on_every_set
@pytest.mark.parametrize(("name", "reference"), [("silu", F.silu), ("relu", F.relu)])
def test_other_activations(isa: str, name: str, reference: Callable[[torch.Tensor], torch.Tensor]) -> None:
    values, scale = random_tokens(0, 7, 64)
    weight = randn(1, 45, 64)
    y = product_reference(values, scale, weight)
    assert y.min() < -90  # where the exponential of the other sign would overflow
    assert y.max() > 90
    out = product(isa, values, scale, weight, None, name)
    torch.testing.assert_close(out.double(), reference(y), rtol=4e-6, atol=4e-6)


@on_every_set
@few
@given(count=st.integers(1, 9), width=sizes, half=st.integers(0, 4), seed=seeds)
def test_depthwise_convolution_norm_and_silu(isa: str, count: int, width: int, half: int, seed: int) -> None:
    module = ConvolutionModule(width, 2 * half + 1).requires_grad_(False)
    module.inner_norm.weight.copy_(randn(seed, width))
    module.inner_norm.bias.copy_(randn(seed + 1, width))
    x, padded = randn(seed + 2, count, width), -(-width // BLOCK) * BLOCK
    around = pad(F.pad(x, (0, 0, half, half)), 1, BLOCK).contiguous()
    arrays = {name: a for name, a in pack_convolution(module).items() if not name.startswith("gate")}
    out = torch.full((count, padded), torch.nan)
    native().depthwise(isa, around, width, arrays, 2 * half + 1, out)
    convolved = module.depthwise(x.T).T
    wanted = F.silu(module.inner_norm(convolved))
    # A norm over few channels that are nearly equal enlarges what rounding left between them.
    slack = 1e-5 * (1 + 1 / (convolved.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt())
    assert ((out[:, :width] - wanted).abs() <= slack * (1 + module.inner_norm.weight.abs())).all()
    assert (out[:, width:] == 0).all()


@on_every_set
def test_gate(isa: str) -> None:
    halves = randn(0, 5, 2, 48) * 40
    out = torch.full((5, 48), torch.nan)
    native().gate(isa, halves.flatten(1), out)
    torch.testing.assert_close(out.double(), F.glu(halves.double().flatten(1)), rtol=2e-6, atol=1e-6)


@on_every_set
@few
@given(count=st.integers(1, 19), keys=sizes, width=st.integers(1, 80), seed=seeds, data=st.data())
def test_attention(isa: str, count: int, keys: int, width: int, seed: int, data: st.DataObject) -> None:
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, keys), min_size=count, max_size=count)))
    query, key, value = (
        randn(seed, count, width) * 2,
        randn(seed + 1, keys, width),
        randn(seed + 2, keys, width),
    )
    out, weights = attend(isa, query, key, value, lengths, width**-0.5)
    wanted, wanted_weights = attend_reference(query, key, value, lengths, width**-0.5)
    torch.testing.assert_close(weights.double(), wanted_weights, rtol=1e-4, atol=1e-6)
    assert (weights[torch.arange(keys) >= lengths[:, None]] == 0).all()
    # Probabilities are rounded to bf16 before they mix the values.
    bound = BF16_STEP * (wanted_weights @ value.to(torch.bfloat16).double().abs()) + 1e-5
    assert ((out.double() - wanted).abs() <= bound).all()


@on_every_set
@few
@given(first=st.integers(1, 9), second=st.integers(1, 9), keys=sizes, seed=seeds)
def test_queries_do_not_depend_on_their_neighbours(
    isa: str, first: int, second: int, keys: int, seed: int
) -> None:
    query, key, value = randn(seed, first + second, 24), randn(seed + 1, keys, 24), randn(seed + 2, keys, 24)
    lengths = torch.randint(0, keys + 1, (first + second,), generator=torch.Generator().manual_seed(seed))
    whole, _ = attend(isa, query, key, value, lengths, 0.2)
    split = zip(query.split([first, second]), lengths.split([first, second]), strict=True)
    parts = [attend(isa, q, key, value, n, 0.2)[0] for q, n in split]
    assert torch.equal(whole, torch.cat(parts))


def sixteen_bit_errors(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest errors (N, 1) of scores and of mixed values whose products are of 16-bit integers.

    Every number is off by half of its largest neighbour's share of the largest integer: queries, keys and values along
    their dimensions, probabilities times what is largest in each value along 64 positions.
    """
    query, key, value = (x.to(torch.bfloat16).double() for x in (query, key, value))
    width = query.shape[1]
    largest = int((2147483647 / (-(-width // 16) * 16)) ** 0.5)
    half_query, half_key = (x.abs().amax(1) / (2 * largest) for x in (query, key))
    scores = query.abs().sum(1, keepdim=True) * half_key + half_query[:, None] * (
        key.abs().sum(1) + width * half_key
    )
    shares = weights * value.abs().amax(1)
    tiles = [tile.shape[1] * tile.amax(1, keepdim=True) for tile in shares.split(64, 1)]
    mixed = shares.sum(1, keepdim=True) / (2 * 4095) + sum(tiles) * (1 + 1 / 8190) / (2 * 8191)
    return scores.amax(1, keepdim=True) * width**-0.5, mixed


@on_every_set
@few
@given(
    count=st.integers(1, 110),
    keys=st.integers(1, 300),
    width=st.integers(1, 150),
    alike=st.booleans(),
    seed=seeds,
    data=st.data(),
)
@pytest.mark.parametrize("kernel", ["attend_many", "attend_all"])
def test_attention_of_many(
    isa: str, kernel: str, count: int, keys: int, width: int, alike: bool, seed: int, data: st.DataObject
) -> None:
    """Queries see as many positions, or the later ones more."""
    seen = data.draw(st.integers(0, keys))
    lengths = torch.full((count,), seen) if alike else torch.arange(count).clamp(max=seen)
    query, key, value = (
        randn(seed, count, width) * 2,
        randn(seed + 1, keys, width),
        randn(seed + 2, keys, width),
    )
    out = attend_many(isa, query, key, value, lengths, width**-0.5, kernel)
    wanted, weights = attend_reference(query, key, value, lengths, width**-0.5)
    mixed = weights @ value.to(torch.bfloat16).double().abs()
    eps = 2.0**-24
    # A score is a sum of `width` products, an exponential is right within its error and 2 ulp, and the mixed values and
    # the sum that divides them are sums of `seen` terms that are brought to another maximum once in 64.
    sizes = (query.to(torch.bfloat16).double().abs() @ key.to(torch.bfloat16).double().abs().T) * width**-0.5
    scores = (width + 3) * eps * sizes[:, :seen].amax(1, keepdim=True) if seen else torch.zeros(count, 1)
    rounded: torch.Tensor | float = 0.0
    if kernel == "attend_all" and isa in ("avx512_vnni", "avx_vnni") and seen:
        by_score, rounded = sixteen_bit_errors(query, key[:seen], value[:seen], weights[:, :seen])
        scores = scores + by_score
    bound = (2 * scores + (2 * seen + 8 + seen // 16) * eps) * mixed + rounded + 1e-7
    if isa == "avx512" or (isa, kernel) == ("amx", "attend_all"):  # products take probabilities in bf16
        bound = bound + BF16_STEP * mixed + 1e-5
    assert ((out.double() - wanted).abs() <= bound).all()
    first = attend_many(
        isa, query[: count // 2], key, value, lengths[: count // 2].contiguous(), width**-0.5, kernel
    )
    assert torch.equal(first, out[: count // 2])  # whatever the neighbours


@on_every_set
@few
@given(
    segments=st.integers(1, 5),
    keys=st.integers(1, 50),
    width=st.integers(1, 80),
    seed=seeds,
    data=st.data(),
)
def test_attention_over_segments_is_one_softmax(
    isa: str, segments: int, keys: int, width: int, seed: int, data: st.DataObject
) -> None:
    """As over the seen keys of all segments, laid end to end."""
    seen = data.draw(st.integers(0, keys))
    query = randn(seed, 2, width)
    key, value = randn(seed + 1, segments, keys, width), randn(seed + 2, segments, keys, width)
    out = attend_segments(isa, query, key, value, seen, width**-0.5)
    laid = [x[:, :seen].flatten(0, 1) for x in (key, value)]
    wanted, weights = attend_reference(query, *laid, torch.full((2,), segments * seen), width**-0.5)
    mixed = weights @ laid[1].to(torch.bfloat16).double().abs()
    # Probabilities go into the sums in bf16, and are normalised by their sum before that.
    assert ((out.double() - wanted).abs() <= 2 * BF16_STEP * mixed + 1e-5).all()


def eight_bits(x: torch.Tensor) -> torch.Tensor:
    values, scale = quantize_reference(x)
    return (values.double() - 128) * scale[:, None].double()


@on_every_set
@few
@given(
    count=st.integers(1, 9), keys=st.integers(1, 150), width=st.integers(1, 80), seed=seeds, data=st.data()
)
def test_attention_in_8_bits(
    isa: str, count: int, keys: int, width: int, seed: int, data: st.DataObject
) -> None:
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, keys), min_size=count, max_size=count)))
    query, key, value = randn(seed, count, width), randn(seed + 1, keys, width), randn(seed + 2, keys, width)
    value[0] = 0
    out, weights = attend_eight(isa, query, key, value, lengths, width**-0.5)
    queries = eight_bits(query.to(torch.bfloat16).float())
    hidden = torch.arange(keys) >= lengths[:, None]
    scores = (queries @ eight_bits(key).T * width**-0.5).masked_fill(hidden, -torch.inf)
    wanted_weights = scores.softmax(-1).nan_to_num(0.0)
    torch.testing.assert_close(weights.double(), wanted_weights, rtol=1e-4, atol=1e-6)
    # Half a step of 1/255 of the largest product of probability and scale among 64 positions, at each of them.
    share = F.pad(wanted_weights * value.abs().amax(1), (0, -keys % 64)).unflatten(1, (-1, 64))
    bound = (share.amax(2) * 0.5 / 255 * (share > 0).sum(2)).sum(1) + 1e-5
    error = (out.double() - wanted_weights @ eight_bits(value)).abs().amax(1)
    assert (error <= bound * 1.01).all()


@on_every_set
def test_a_peak_does_not_hide_a_long_tail_in_8_bits(isa: str) -> None:
    """A third of the weight on one frame, the rest on 1500: only the 63 that share its scale are lost."""
    key, value = torch.zeros(1500, 32), torch.ones(1500, 32)
    key[0, 0], value[0] = 1.0, -1.0
    query = torch.zeros(1, 32)
    query[0, 0] = np.log(750)
    out, weights = attend_eight(isa, query, key, value, torch.tensor([1500]), 1.0)
    assert 0.3 < weights[0, 0] < 0.36
    torch.testing.assert_close(out, (1 - 2 * weights[:, :1]).expand(1, 32), rtol=0, atol=0.03)


@on_every_set
@few
@given(first=st.integers(1, 6), second=st.integers(1, 6), keys=sizes, seed=seeds)
def test_queries_do_not_depend_on_their_neighbours_in_8_bits(
    isa: str, first: int, second: int, keys: int, seed: int
) -> None:
    query, key, value = randn(seed, first + second, 24), randn(seed + 1, keys, 24), randn(seed + 2, keys, 24)
    lengths = torch.full((first + second,), keys)
    whole, _ = attend_eight(isa, query, key, value, lengths, 0.2)
    parts = [
        attend_eight(isa, q, key, value, lengths[: len(q)], 0.2)[0] for q in query.split([first, second])
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_instruction_sets_agree_on_attention() -> None:
    """bf16 products are exact in fp32; only the order and rounding of their sums differ."""
    query, key, value = randn(0, 9, 64) * 3, randn(1, 100, 64), randn(2, 100, 64)
    lengths = torch.arange(92, 101)
    outs = [attend(isa, query, key, value, lengths, 0.125)[0] for isa in instruction_sets()]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=BF16_STEP, atol=BF16_STEP)


@on_every_set
def test_scores_far_apart_and_huge_give_no_nan(isa: str) -> None:
    query, key = torch.full((1, 16), 100.0), torch.linspace(-100, 100, 33)[:, None].expand(33, 16)
    out, weights = attend(isa, query, key, randn(0, 33, 16), torch.tensor([33]), 1.0)
    assert torch.isfinite(out).all()
    assert weights[0, -1] == 1
    assert weights[0, :-1].sum() == 0 or weights[0, :-1].sum() < 1e-30


def test_arrays_that_do_not_fit_are_refused() -> None:
    values, scale = random_tokens(0, 2, 8)
    with pytest.raises(ValueError, match="scale is 1, not 2"):
        product("portable", values, scale[:1], torch.ones(16, 8))
    with pytest.raises(ValueError, match="no kernels named sse9"):
        product("sse9", values, scale, torch.ones(16, 8))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        native().product("portable", values.float(), scale, {}, 1, torch.zeros(2, 1), "keep")

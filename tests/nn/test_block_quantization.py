"""Weights in 3 to 8 bits: what is stored, how near it is, and that k-quant is never behind rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.nn.quantized import SCALE, BlockWeights, from_bits, importance, quantize_blocks, to_bits

BITS = (3, 4, 5, 6, 8)
every_bits = st.sampled_from(BITS)
seeds = st.integers(0, 2**32 - 1)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def errors(weight: Tensor, packed: BlockWeights) -> Tensor:
    """Weighted squared error of every block, in double precision and block by block."""
    restored, out = packed.dequantize().double(), []
    for row, near in zip(weight.double(), restored, strict=True):
        for w, q in zip(row.split(packed.block), near.split(packed.block), strict=True):
            a = w.square().mean().sqrt() + w.abs()
            out.append((a * (w - q).square()).sum())
    return torch.stack(out)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    inputs=st.integers(1, 150),
    bits=every_bits,
    block=st.sampled_from([8, 32, 128]),
    symmetric=st.booleans(),
    size=st.sampled_from([1e-4, 1.0, 1e4]),
    middle=st.sampled_from([0.0, 0.5, -3.0]),
    seed=seeds,
)
def test_no_block_is_worse_by_k_quant_than_by_rounding(
    rows: int, inputs: int, bits: int, block: int, symmetric: bool, size: float, middle: float, seed: int
) -> None:
    weight = (randn(seed, rows, inputs) + middle) * size
    error, rounded = (
        errors(weight, quantize_blocks(weight, bits, block=block, method=method, symmetric=symmetric))
        for method in ("k-quant", "round")
    )
    assert (error <= rounded * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_k_quant_is_much_nearer_where_weights_have_tails(bits: int, symmetric: bool) -> None:
    weight = randn(0, 64, 256) ** 3
    totals = [
        errors(weight, quantize_blocks(weight, bits, method=method, symmetric=symmetric)).sum()
        for method in ("k-quant", "round")
    ]
    assert totals[0] < 0.95 * totals[1]


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 5), inputs=st.integers(1, 100), bits=every_bits, seed=seeds)
def test_rounding_is_within_half_a_step_and_what_is_stored_is_unsigned(
    rows: int, inputs: int, bits: int, seed: int
) -> None:
    weight = randn(seed, rows, inputs)
    packed = quantize_blocks(weight, bits, method="round")
    codes, zeros = packed.plain_codes(), packed.plain_zeros()
    assert int(codes.max()) < 2**bits
    assert int(zeros.max()) < 2**bits
    assert codes.shape == (rows, -(-inputs // 32), 32)
    steps = packed.scales.float().repeat_interleave(32, 1)[:, :inputs]
    # Scales are rounded to bf16 and zero points to integers: the ends of the range may lie a little outside.
    slack = steps * (0.5 + 2**bits * 2.0**-8)
    assert ((packed.dequantize() - weight).abs() <= 0.5 * steps + slack).all()


def test_k_quant_is_the_least_of_its_candidates_by_brute_force() -> None:
    """One block, every step written out in numpy: candidates, weighted least squares, zero point, least error."""
    w = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    a = np.sqrt(np.mean(w**2)) + np.abs(w)

    def stored(scale: float, offset: float) -> tuple[float, np.ndarray]:
        scale = float(torch.tensor(scale).to(SCALE))
        zero = np.clip(np.round(-offset / scale), 0, 15)
        near = (np.clip(np.round(w / scale) + zero, 0, 15) - zero) * scale
        return float((a * (near - w) ** 2).sum()), near

    candidates = [stored((w.max() - w.min()) / 15, float(w.min()))]
    for s in range(20):
        codes = np.clip(np.round((w - w.min()) * (15 - 1 + 0.1 * s) / (w.max() - w.min())), 0, 15)
        design = np.stack([codes, np.ones(32)], 1) * np.sqrt(a)[:, None]
        scale, offset = np.linalg.lstsq(design, w * np.sqrt(a), rcond=None)[0]
        candidates.append(stored(scale, offset))
    least, near = min(candidates, key=lambda pair: pair[0])
    assert least < candidates[0][0]
    packed = quantize_blocks(torch.from_numpy(w)[None], 4)
    np.testing.assert_allclose(packed.dequantize()[0].numpy(), near, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7, 1e-30, -1e-42])
@pytest.mark.parametrize("method", ["k-quant", "round"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_constant_blocks_stay_what_they_are(value: float, method: str, symmetric: bool, bits: int) -> None:
    weight = torch.full((3, 70), value)
    restored = quantize_blocks(weight, bits, method=method, symmetric=symmetric).dequantize()  # type: ignore[arg-type]
    assert restored.isfinite().all()
    assert (restored - weight).abs().max() <= abs(value) * 2.0**-8 + 1e-37


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(1, 8), count=st.integers(1, 70), rows=st.integers(1, 4), seed=seeds)
def test_bits_are_packed_without_gaps(bits: int, count: int, rows: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, count), np.uint8)
    packed = to_bits(torch.from_numpy(codes), bits)
    single = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little").reshape(rows, -1)
    np.testing.assert_array_equal(packed.numpy(), np.packbits(single, axis=-1, bitorder="little"))
    np.testing.assert_array_equal(from_bits(packed, bits, count).numpy(), codes)


@pytest.mark.parametrize(
    ("bits", "symmetric", "wanted"),
    [(4, False, 4 + 0.5 + 4 / 32), (4, True, 4.5), (3, False, 3 + 0.5 + 3 / 32)],
)
def test_bits_of_a_weight(bits: int, symmetric: bool, wanted: float) -> None:
    packed = quantize_blocks(randn(0, 10, 512), bits, symmetric=symmetric)
    assert packed.bits_per_weight == wanted
    assert packed.num_bytes == sum(x.nbytes for x in (packed.codes, packed.scales)) + (
        0 if packed.zeros is None else packed.zeros.nbytes
    )


@settings(max_examples=25, deadline=None)
@given(inputs=st.integers(1, 70), bits=every_bits, symmetric=st.booleans(), seed=seeds)
def test_filling_up_counts_for_nothing(inputs: int, bits: int, symmetric: bool, seed: int) -> None:
    """What lies in the last block beyond the weight is exactly zero, and a whole block is as it is by itself."""
    weight = randn(seed, 3, inputs) + 2  # no zeros among the weights
    packed = quantize_blocks(weight, bits, symmetric=symmetric)
    steps = packed.plain_codes().int() - packed.plain_zeros().int()[..., None]
    assert (steps.flatten(1)[:, inputs:] == 0).all()
    whole = inputs // 32 * 32
    if whole:
        alone = quantize_blocks(weight[:, :whole], bits, symmetric=symmetric)
        assert torch.equal(packed.dequantize()[:, :whole], alone.dequantize())


def test_importance_is_the_papers() -> None:
    w = torch.tensor([[3.0, -4.0]])
    torch.testing.assert_close(importance(w), torch.tensor([[3.0, 4.0]]) + 12.5**0.5)
    torch.testing.assert_close(importance(w, torch.tensor([[1.0, 0.0]])), torch.tensor([[6.0, 0.0]]))


@pytest.mark.parametrize(
    ("weight", "more", "words"),
    [
        (torch.ones(2, 8), {"bits": 7}, "in 7 bits are not offered; choose one of 3, 4, 5, 6, 8"),
        (torch.ones(2, 8), {"block": 30}, "blocks of 30 weights"),
        (torch.ones(2, 8), {"block": 0}, "blocks of 0 weights"),
        (torch.ones(2, 8), {"method": "best"}, "no method 'best'; choose k-quant or round"),
        (torch.ones(2, 8, 3), {}, r"shape \(2, 8, 3\)"),
        (torch.ones(0, 8), {}, r"shape \(0, 8\)"),
        (torch.tensor([[1.0, float("nan")]]), {}, "not finite"),
        (torch.tensor([[1.0, float("-inf")]]), {}, "not finite"),
    ],
)
def test_what_cannot_be_is_an_error(weight: Tensor, more: dict, words: str) -> None:
    with pytest.raises(SprachbundError, match=words):
        quantize_blocks(weight, **more)

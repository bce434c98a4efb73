"""Native encoder layers, of transformers and of conformers, against the torch ones they stand for."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.engines.extension import instruction_sets, native
from sprachbund.engines.native_engine import NativeLayers, NativeStem
from sprachbund.engines.packing import pack_encoder, pack_stem, stem_shape, why_not_encoder
from sprachbund.nn.conformer import ConformerEncoder, ConformerLayer, Subsampling
from sprachbund.nn.encoder import EncoderLayer, EncoderLayers
from sprachbund.nn.feed_forward import SplitFeedForward
from tests.engines.support import needs_native, on_every_set, quantized_linear, randomised, relative_error

pytestmark = needs_native
BEST = (instruction_sets() or ("portable",))[0]
# Widths, heads and feed-forwards that are no multiples of the kernels' blocks, and some that are.
KINDS = {
    "transformer": partial(EncoderLayer, 24, 2, 37),
    "conformer": partial(ConformerLayer, 24, 2, 37, 5, 0.0),
    "conformer of whole blocks": partial(ConformerLayer, 64, 4, 128, 15, 0.0),
}
on_every_kind = pytest.mark.parametrize("kind", KINDS)


def layers_of(kind: str, count: int = 3, seed: int = 0) -> tuple[list[nn.Module], nn.LayerNorm | None]:
    """Random layers, and the norm behind a transformer's."""
    layers = randomised(nn.ModuleList(KINDS[kind]() for _ in range(count)), seed)
    norm = randomised(nn.LayerNorm(24), seed + 1) if kind == "transformer" else None
    return list(layers), norm


def nativized(
    layers: list[nn.Module], norm: nn.LayerNorm | None, isa: str = BEST, threads: int = 1
) -> NativeLayers:
    return NativeLayers(*pack_encoder(layers, norm), native().Team(threads), isa)


def run(layers: list[nn.Module], norm: nn.LayerNorm | None, x: Tensor, valid: Tensor) -> Tensor:
    """Through torch; `valid` is (B, T)."""
    for layer in layers:
        x = layer(x, valid if isinstance(layer, ConformerLayer) else valid[:, None, None])
    return x if norm is None else norm(x)


def speech(width: int, length: int, *lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames (B, T, D), not in one piece, and which of them are valid (B, T)."""
    x = torch.randn(length, len(lengths), width, generator=torch.Generator().manual_seed(seed))
    return x.transpose(0, 1), torch.arange(length) < torch.tensor(lengths)[:, None]


def width_of(layers: list[nn.Module]) -> int:
    return next(part.in_features for part in layers[0].modules() if isinstance(part, nn.Linear))


@on_every_set
@on_every_kind
def test_layers_are_near_fp32(kind: str, isa: str) -> None:
    layers, norm = layers_of(kind)
    x, valid = speech(width_of(layers), 50, 50, 1, 17)
    result, wanted = nativized(layers, norm, isa)(x, valid), run(layers, norm, x, valid)
    assert (result[~valid] == 0).all()
    for b in range(len(x)):
        assert relative_error(result[b, valid[b]], wanted[b, valid[b]]) < 0.05


@on_every_kind
def test_each_layer_is_torch_with_the_same_quantization(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer after layer, each fed what torch's gave: what is left are bf16 keys, values and probabilities."""
    layers, _ = layers_of(kind, 4)
    none = (
        None
        if isinstance(layers[0], ConformerLayer)
        else nn.LayerNorm(width_of(layers)).requires_grad_(False)
    )
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: quantized_linear(x, self.weight, self.bias))
    x, valid = speech(width_of(layers), 70, 70, 33)
    for layer in layers:
        wanted = run([layer], none, x, valid)
        result = nativized([layer], none)(x, valid)
        assert relative_error(result[valid], wanted[valid]) < 0.01
        x = wanted


@on_every_kind
def test_instruction_sets_agree(kind: str) -> None:
    layers, norm = layers_of(kind)
    x, valid = speech(width_of(layers), 40, 40)
    outs = [nativized(layers, norm, isa)(x, valid) for isa in instruction_sets()]
    assert max(relative_error(out, outs[0]) for out in outs) < 0.02


@on_every_kind
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_and_neighbours_change_nothing(kind: str, threads: int) -> None:
    """Frames are shared out in chunks of at most 48; 170 are several per thread, 3 fewer than threads."""
    layers, norm = layers_of(kind)
    one, several = nativized(layers, norm), nativized(layers, norm, threads=threads)
    x, valid = speech(width_of(layers), 170, 170, 49, 3, 1, 0, 48, 96)
    together = several(x, valid)
    assert torch.equal(together, one(x, valid))
    for b, count in enumerate(valid.sum(1).tolist()):
        if count:
            assert torch.equal(one(x[b : b + 1, :count])[0], together[b, :count])


@on_every_set
@on_every_kind
def test_means_of_each_layer_are_those_of_its_states(kind: str, isa: str) -> None:
    """Behind fewer layers, the last states are known; the layers of a conformer end with their own norm."""
    layers, norm = layers_of(kind)
    x, valid = speech(width_of(layers), 60, 60, 1, 17)
    whole = nativized(layers, norm, isa, threads=2)
    states, means = whole.with_means(x, valid)
    assert torch.equal(states, whole(x, valid))
    assert torch.equal(means, nativized(layers, norm, isa).with_means(x, valid)[1]), (
        "of the number of threads"
    )
    wanted, theirs = EncoderLayers(layers).with_means(x, valid if norm is None else valid[:, None, None])
    assert means.shape == theirs.shape == (3, 4, width_of(layers))
    assert relative_error(means, theirs) < 0.05
    torch.testing.assert_close(means[:, 0], theirs[:, 0])
    for b in range(3):
        torch.testing.assert_close(theirs[b, -1], wanted[b, valid[b]].mean(0))
        if norm is None:
            for count in (1, 2, 3):
                upto = nativized(layers[:count], None, isa)(x, valid)
                torch.testing.assert_close(means[b, count], upto[b, valid[b]].mean(0))


@settings(max_examples=30, deadline=None)
@given(
    head=st.integers(1, 20),
    heads=st.integers(1, 3),
    hidden=st.integers(1, 70),
    half=st.integers(0, 5),
    length=st.integers(1, 60),
    isa=st.sampled_from(instruction_sets() or ("portable",)),
)
def test_any_shape_of_conformer(head: int, heads: int, hidden: int, half: int, length: int, isa: str) -> None:
    layer = randomised(ConformerLayer(head * heads, heads, hidden, 2 * half + 1, 0.0), 0)
    x, valid = speech(head * heads, length, length)
    result, wanted = nativized([layer], None, isa)(x, valid), layer(x, valid)
    assert result.shape == wanted.shape
    # With one channel a norm is constant; with few, it enlarges the rounding before it.
    bound = 0.05 if head * heads >= 8 else 1.5
    assert relative_error(result, wanted) < bound


def test_what_the_kernels_cannot_run_has_a_reason() -> None:
    def encoder() -> ConformerEncoder:
        return ConformerEncoder(
            num_mel_bins=8, width=8, num_heads=2, num_layers=2, feed_forward_width=8, kernel_size=3
        )

    assert why_not_encoder(encoder()) is None
    assert "kind NoneType" in str(why_not_encoder(None))
    split = encoder()
    split.layers[1].feed_forward_in = SplitFeedForward(8, 4, [4], torch.tensor([0]))
    assert "split by language" in str(why_not_encoder(split))
    strange = encoder()
    strange.layers[0].convolution.out = nn.Bilinear(8, 8, 8)
    assert "kind Bilinear" in str(why_not_encoder(strange))
    other = encoder()
    other.layers[0].feed_forward_out.activation = "gelu"
    assert "gelu and silu" in str(why_not_encoder(other))
    epsilon = encoder()
    epsilon.layers[0].norm.eps = 1e-6
    assert "another epsilon" in str(why_not_encoder(epsilon))
    kernels = encoder()
    kernels.layers[0] = ConformerLayer(8, 2, 8, 5, 0.0)
    assert "different sizes" in str(why_not_encoder(kernels))
    mixed = encoder()
    mixed.layers[1] = EncoderLayer(8, 2, 8)
    assert "kind EncoderLayer" in str(why_not_encoder(mixed))


def random_stem(channels: int, width: int, num_layers: int = 3) -> Subsampling:
    return randomised(Subsampling(channels, width, num_layers), 0)


def native_stem(stem: Subsampling, isa: str = BEST, threads: int = 1) -> NativeStem:
    return NativeStem(
        stem_shape(list(stem.convolutions)), pack_stem(list(stem.convolutions)), native().Team(threads), isa
    )


@on_every_set
@pytest.mark.parametrize(("channels", "width"), [(80, 32), (5, 24)])
def test_the_convolutions_before_are_torch_with_the_same_quantization(
    isa: str, channels: int, width: int
) -> None:
    stem = random_stem(channels, width)
    x, valid = speech(channels, 61, 61, 8, 1)
    result, num_frames = native_stem(stem, isa)(x, valid.sum(1))
    near, wanted_frames = stem(x, valid.sum(1))
    assert num_frames.tolist() == wanted_frames.tolist() == [8, 1, 1]
    assert result.shape == near.shape
    for b, count in enumerate(num_frames.tolist()):
        wanted = x[b, valid[b]]
        for convolution in stem.convolutions:
            (taps,), (stride,) = convolution.kernel_size, convolution.stride
            around = F.pad(wanted, (0, 0, taps // 2, taps // 2))
            windows = around.unfold(0, taps, 1)[::stride].transpose(1, 2).flatten(1)
            weight = convolution.weight.transpose(1, 2).flatten(1)
            wanted = F.gelu(quantized_linear(windows, weight, convolution.bias))
        assert relative_error(result[b, :count], wanted) < 0.002
        assert relative_error(result[b, :count], near[b, :count]) < 0.05


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_and_neighbours_change_nothing_in_the_convolutions(threads: int) -> None:
    stem = random_stem(13, 24)
    one, several = native_stem(stem), native_stem(stem, threads=threads)
    x, valid = speech(13, 500, 500, 3, 250, 0)
    together, num_frames = several(x, valid.sum(1))
    assert torch.equal(together, one(x, valid.sum(1))[0])
    for b, count in enumerate(num_frames.tolist()):
        alone, _ = one(x[b : b + 1, valid[b]], valid.sum(1)[b : b + 1])
        assert torch.equal(alone[0], together[b, :count])

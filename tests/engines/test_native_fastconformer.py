"""FastConformer encoders that the kernels compute as a whole, beside torch with the same roundings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sprachbund.engines.choice import engine_for
from sprachbund.engines.extension import instruction_sets, native
from sprachbund.engines.native_engine import native_parts_of
from sprachbund.engines.native_fastconformer import (
    NativeFastConformer,
    NativeStreamingEncoder,
    why_not_fastconformer,
)
from sprachbund.engines.native_linear import pack_linears
from sprachbund.models.weights import quantize_rows
from sprachbund.nn import streaming_conformer
from sprachbund.nn.fast_conformer import FastConformerEncoder, FastConformerShape
from sprachbund.nn.feed_forward import SplitFeedForward
from sprachbund.nn.quantized import BlockLinear, quantize_blocks
from sprachbund.nn.streaming_conformer import (
    LEAD,
    SUBSAMPLING,
    ChunkEncoder,
    RelativeAttention,
    StreamingEncoder,
    StreamingShape,
    StreamState,
    Tier,
    distance_signals,
)
from tests.engines.support import (
    needs_native,
    on_every_set,
    quantize_reference,
    quantized_linear,
    randomised,
    relative_error,
)
from tests.models.contract import BUILDERS

pytestmark = needs_native
BEST = (instruction_sets() or ("portable",))[0]
SIZES: dict[str, Any] = {
    "num_mel_bins": 16,
    "width": 32,
    "num_heads": 2,
    "num_layers": 2,
    "feed_forward_width": 50,
    "kernel_size": 5,
    "stem_channels": 12,
}
"""One feed-forward that is no multiple of the kernels' blocks."""
WIDER: dict[str, Any] = {"width": 96, "num_heads": 3, "feed_forward_width": 192, "kernel_size": 9}


def made(seed: int = 0, **more: Any) -> FastConformerEncoder:
    """Every weight, bias, norm and statistic random, so that none can be lost unseen."""
    encoder = randomised(FastConformerEncoder(FastConformerShape(**SIZES | more)), seed)
    for part in encoder.modules():
        if isinstance(part, nn.BatchNorm1d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2.0)
            part.weight.uniform_(0.5, 1.5)
        elif isinstance(part, RelativeAttention):
            part.content_bias.normal_(0, 0.5)
            part.distance_bias.normal_(0, 0.5)
    return encoder


TIERS = [Tier(left=28, right=13), Tier(left=21, right=6), Tier(left=20, right=1), Tier(left=20, right=0)]


CHUNK: dict[str, Any] = {"convolution": "chunk", "subsampling": "striding_conv1d"}
kinds = pytest.mark.parametrize("kind", [{}, CHUNK], ids=["causal", "chunk"])


def streaming(seed: int = 0, **more: Any) -> StreamingEncoder:
    """The same of an encoder that streams."""
    encoder = randomised(StreamingEncoder(StreamingShape(**SIZES | more), TIERS), seed)
    for part in encoder.modules():
        if isinstance(part, RelativeAttention):
            part.content_bias.normal_(0, 0.5)
            part.distance_bias.normal_(0, 0.5)
    return encoder.eval()


def whole_streaming(
    encoder: StreamingEncoder, isa: str = BEST, weights: Any = "int8", threads: int = 1
) -> NativeStreamingEncoder:
    assert why_not_fastconformer(encoder) is None
    return NativeStreamingEncoder(encoder, pack_linears(encoder, weights), native().Team(threads), isa)


def by_chunks(encoder: ChunkEncoder, mel: Tensor, num_mel: Tensor, tier: Tier) -> tuple[Tensor, StreamState]:
    """States of streams that are heard chunk by chunk, and what they remember in the end."""
    mel, num_mel = nn.functional.pad(mel, (0, 0, LEAD, tier.chunk * SUBSAMPLING)), num_mel + LEAD
    state, states, size = encoder.start(len(mel), tier), [], tier.chunk * SUBSAMPLING
    for begin in range(0, int(num_mel.max()), size):
        chunk, count = mel[:, begin : begin + size], (num_mel - begin).clamp(0, size)
        result, _, state = encoder.stream(chunk, count, state, tier)
        states.append(result)
    return torch.cat(states, dim=1), state


def whole(encoder: FastConformerEncoder, isa: str = BEST, weights: Any = "int8", threads: int = 1) -> Any:
    assert why_not_fastconformer(encoder) is None
    return NativeFastConformer(encoder, pack_linears(encoder, weights), native().Team(threads), isa)


def frames(width: int, *lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, width, generator=generator) for length in lengths]


def layers_of(result: Any, given: list[Tensor]) -> list[Tensor]:
    """What the layers make of utterances (S, D) that are encoded together."""
    x, lengths = torch.cat(given), [len(g) for g in given]
    result._native.encode(x, torch.tensor(lengths))
    return list(x.split(lengths))


def log_mel(bins: int, *lengths: int) -> tuple[Tensor, Tensor]:
    """With noise behind the utterances."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(len(lengths), max(lengths), bins, generator=generator), torch.tensor(lengths)


BF16 = ("avx512",)
"""Kernels that have probabilities in bf16."""


def attention_of(isa: str) -> Callable[..., Tensor]:
    """In place of `RelativeAttention.forward`: both forms of queries, keys, values and distances in bf16."""

    def forward(
        self: RelativeAttention, x: Tensor, keys: Tensor, values: Tensor, signals: Tensor, allowed: Tensor
    ) -> Tensor:
        def halves(number: Tensor) -> Tensor:
            return number.to(torch.bfloat16).double()

        query, distance = self.split_heads(self.query(x)), self.split_heads(self.distance(signals)[None])
        by_distance = halves(query + self.distance_bias[:, None]) @ halves(distance).transpose(-1, -2)
        scores = halves(query + self.content_bias[:, None]) @ halves(keys).transpose(-1, -2)
        scores += streaming_conformer._shifted(by_distance)[..., : keys.shape[2]]
        scores = (scores * query.shape[-1] ** -0.5).masked_fill(~allowed, -torch.inf)
        grown = (scores - scores.amax(-1, keepdim=True)).exp()
        mixed = (halves(grown) if isa in BF16 else grown) @ halves(values) / grown.sum(-1, keepdim=True)
        return self.out(mixed.float().transpose(1, 2).flatten(2))

    return forward


def round_linears(
    encoder: FastConformerEncoder | StreamingEncoder, isa: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From here on the encoder's layers compute with weights as they are packed and inputs of products in 8 bits."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear) and weights == "int4":
            layer.weight.copy_(quantize_blocks(layer.weight).dequantize())
        elif isinstance(layer, nn.Linear):
            values, scale = quantize_rows(layer.weight)
            layer.weight.copy_(values * scale[:, None])

    def product(self: nn.Linear, x: Tensor) -> Tensor:
        values, scale = quantize_reference(x.flatten(0, -2))
        y = ((values.double() - 128) * scale[:, None].double()) @ self.weight.double().T
        y = y if self.bias is None else y + self.bias.double()
        return y.float().unflatten(0, x.shape[:-1])

    monkeypatch.setattr(nn.Linear, "forward", product)
    monkeypatch.setattr(RelativeAttention, "forward", attention_of(isa))


@on_every_set
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("more", [{}, WIDER], ids=["narrow", "wider"])
def test_a_layer_is_torch_with_the_same_roundings(
    isa: str, weights: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer, so that what falls to the other side of a rounding does not spread: such frames are a little off."""
    encoder = made(num_layers=1, **more)
    given = frames(encoder.shape.width, 70, 1, 33)
    result = layers_of(whole(encoder, isa, weights), given)
    round_linears(encoder, isa, weights, monkeypatch)
    errors = []
    for x, y in zip(given, result, strict=True):
        signals = distance_signals(len(x) - 1, 1 - len(x), encoder.shape.width)
        wanted = encoder.layers[0](x[None], torch.ones(1, len(x), dtype=torch.bool), signals)[0]
        errors += [relative_error(f, w) for f, w in zip(y, wanted, strict=True)]
    assert sorted(errors)[len(errors) * 3 // 4] < 1e-5
    assert max(errors) < 0.02


@on_every_set
@pytest.mark.parametrize("channels", [12, 48])
def test_the_convolutions_before_are_torchs_with_the_same_roundings(
    isa: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Utterances alone on torch, in a batch and on several threads here; all lengths that halve differently."""
    encoder = made(stem_channels=channels, num_mel_bins=24)
    mel, num_mel = log_mel(24, 41, 1, 0, 2, 7, 8, 9, 23)
    result = [whole(encoder, isa, threads=threads).stem(mel, num_mel) for threads in (1, 3)]
    assert torch.equal(result[0][0], result[1][0])

    def pointwise(self: nn.Conv2d, x: Tensor) -> Tensor:
        if self.kernel_size != (1, 1):
            return _convolve(self, x)
        rows = x.movedim(1, -1)
        assert self.bias is not None
        return quantized_linear(rows, self.weight[:, :, 0, 0], self.bias).movedim(-1, 1)

    _convolve = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", pointwise)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: quantized_linear(x, self.weight, self.bias))
    wanted = [
        encoder.stem(mel[b : b + 1, :count], num_mel[b : b + 1])[0][0]
        for b, count in enumerate(num_mel.tolist())
        if count
    ]
    assert result[0][1].tolist() == [6, 1, 0, 1, 1, 1, 2, 3]
    errors = [relative_error(f, w) for f, w in zip(result[0][0], torch.cat(wanted), strict=True)]
    assert sorted(errors)[len(errors) // 2] < 1e-5
    assert max(errors) < 0.02


@on_every_set
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_states_are_near_fp32(isa: str, weights: str) -> None:
    encoder = made(scale_input=True, **WIDER)
    mel, num_mel = log_mel(16, 500, 9, 333)
    encode = whole(encoder, isa, weights)
    result, num_frames = encode(mel, num_mel)
    wanted, counts = encoder(mel, num_mel)
    assert torch.equal(num_frames, counts)
    for b, count in enumerate(counts.tolist()):
        assert (result[b, count:] == 0).all()
        alone, _ = encode(mel[b : b + 1, : num_mel[b]], num_mel[b : b + 1])
        assert torch.equal(alone[0], result[b, :count])
        assert relative_error(result[b, :count], wanted[b, :count]) < (0.04 if weights == "int8" else 0.3)


@on_every_set
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_an_utterance_is_the_same_alone_and_beside_others(isa: str, weights: str) -> None:
    """Bit for bit, on any number of threads; the frames go through the layers in three passes."""
    encoder, given = made(), frames(32, 150, 3, 0, 200, 49, 1)
    arrays: Any = pack_linears(encoder, weights)

    def result(threads: int) -> NativeFastConformer:
        return NativeFastConformer(encoder, arrays, native().Team(threads), isa)

    alone = [layers_of(result(1), [x])[0] if len(x) else x for x in given]
    for threads in (1, 2, 5):
        together = layers_of(result(threads), given)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_distances_become_known_as_utterances_grow() -> None:
    encoder = made()
    result = whole(encoder)
    for x in frames(32, 20, 64, 65, 300, 20, 129):
        assert torch.equal(layers_of(result, [x])[0], layers_of(whole(encoder), [x])[0])


def test_instruction_sets_agree() -> None:
    encoder = made(**WIDER)
    outs = [torch.cat(layers_of(whole(encoder, isa), frames(96, 80, 30))) for isa in instruction_sets()]
    assert max(relative_error(out, outs[0]) for out in outs) < 0.02


def test_what_does_not_fit_is_refused_before_anything_is_written() -> None:
    result, x = whole(made()), torch.zeros(10, 32)
    for counts in ([11], [9], [4, 7], [-1, 11], [5, 4], [2**62, 2**62]):
        with pytest.raises(ValueError, match="other frames than come in"):
            result._native.encode(x, torch.tensor(counts))
    with pytest.raises(ValueError, match="x is"):
        result._native.encode(torch.zeros(10, 16), torch.tensor([10]))
    with pytest.raises(ValueError, match="counts is"):
        result._native.encode(x, torch.tensor([[10]]))


def test_weights_are_not_copied_and_stored_codes_stay_as_they_are() -> None:
    encoder = made()
    for layer in encoder.layers:
        layer.attention.query = BlockLinear(
            quantize_blocks(layer.attention.query.weight), layer.attention.query.bias
        )
    arrays = pack_linears(encoder, "int8")
    result = NativeFastConformer(encoder, arrays, native().Team(1), "portable")
    assert result.numbers == "int4"
    [x] = frames(32, 40)
    before = layers_of(result, [x])[0]
    arrays["layers.1.feed_forward_out.contract.matrix.values"].zero_()
    assert not torch.equal(layers_of(result, [x])[0], before)


# Encoders that stream.


@on_every_set
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: f"{tier.right} ahead")
@kinds
def test_a_streaming_layer_is_torch_with_the_same_roundings(
    isa: str, weights: str, tier: Tier, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = streaming(num_layers=1, scale_input=True, **WIDER | kind)
    mel, num_mel = log_mel(16, 900, 9, 333)
    result, num_frames = whole_streaming(encoder, isa, weights)(mel, num_mel, tier=tier)
    round_linears(encoder, isa, weights, monkeypatch)
    wanted, counts = encoder(mel, num_mel, tier=tier)
    assert torch.equal(num_frames, counts)
    errors = []
    for b, count in enumerate(counts.tolist()):
        assert (result[b, count:] == 0).all()
        errors += [relative_error(f, w) for f, w in zip(result[b, :count], wanted[b, :count], strict=True)]
    assert sorted(errors)[len(errors) * 3 // 4] < 1e-5
    assert max(errors) < 0.02


@on_every_set
@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: f"{tier.right} ahead")
@kinds
def test_chunk_after_chunk_gives_the_whole(isa: str, tier: Tier, kind: dict[str, Any]) -> None:
    """Keys lie elsewhere, so sums may fall to the other side of a rounding; nearly all frames are the same."""
    encoder = whole_streaming(streaming(**WIDER | kind), isa)
    mel, num_mel = log_mel(16, 900, 9, 333)
    wanted, counts = encoder(mel, num_mel, tier=tier)
    result, state = by_chunks(encoder, mel, num_mel, tier)
    assert state.num_past.tolist() == [tier.past] * 3
    errors = [
        relative_error(f, w)
        for b, count in enumerate(counts.tolist())
        for f, w in zip(result[b, :count], wanted[b, :count], strict=True)
    ]
    assert sorted(errors)[len(errors) * 3 // 4] < 1e-5
    assert max(errors) < 0.02


class EachAlone(nn.Module):
    """The convolutions before the layers, of one stream at a time.

    They are torch's, which on some processors round several images in another way than one.
    """

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem

    def forward(
        self, mel: Tensor, before: tuple[Tensor, ...], is_new: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        single = [
            self.stem(mel[b : b + 1], [tensor[b : b + 1] for tensor in before], is_new[b : b + 1])
            for b in range(len(mel))
        ]
        frames, after = zip(*single, strict=True)
        return torch.cat(frames), tuple(map(torch.cat, zip(*after, strict=True)))


@on_every_set
@kinds
def test_a_stream_is_the_same_alone_and_beside_others(isa: str, kind: dict[str, Any]) -> None:
    """Bit for bit, on any number of threads, with streams that began earlier and later."""
    model, tier = streaming(**kind), TIERS[1]
    arrays: Any = pack_linears(model, "int8")
    mel, num_mel = log_mel(16, 240, 70, 160)
    alone = [
        by_chunks(
            NativeStreamingEncoder(model, arrays, native().Team(1), isa),
            mel[b : b + 1],
            num_mel[b : b + 1],
            tier,
        )[0][0]
        for b in range(3)
    ]
    for threads in (1, 3):
        encoder = NativeStreamingEncoder(model, arrays, native().Team(threads), isa)
        encoder.stem = EachAlone(encoder.stem)
        together, _ = by_chunks(encoder, mel, num_mel, tier)
        for b, wanted in enumerate(alone):
            assert torch.equal(together[b, : len(wanted)], wanted)
    size = tier.chunk * SUBSAMPLING
    old, new = log_mel(16, 2 * size, size)[0][:, :size].split(1)
    _, _, before = encoder.stream(old, torch.tensor([size]), encoder.start(1, tier), tier)
    states = [before, encoder.start(1, tier)]
    both, _, after = encoder.stream(
        torch.cat([old, new]), torch.tensor([size, size]), StreamState.stack(states), tier
    )
    for b, (mel_of, state) in enumerate(zip((old, new), states, strict=True)):
        result, _, left = encoder.stream(mel_of, torch.tensor([size]), state, tier)
        assert torch.equal(result[0], both[b])
        for name, tensor in left.tensors().items():
            assert torch.equal(tensor[0], after.tensors()[name][b]), name


@on_every_set
@kinds
def test_means_are_those_of_the_frames(isa: str, kind: dict[str, Any]) -> None:
    """Behind the last layer they are the means of what it gives; the others are those of torch, but for roundings."""
    model, tier = streaming(**WIDER | kind), TIERS[1]
    mel, num_mel = log_mel(16, 900, 9, 333)
    encoder = whole_streaming(model, isa)
    (wanted,), (means,) = _means(model, mel, num_mel, tier), _means(encoder, mel, num_mel, tier)
    states, counts = encoder(mel, num_mel, tier=tier)
    assert means.shape == (3, model.shape.num_layers + 1, model.shape.width)
    for b, count in enumerate(counts.tolist()):
        torch.testing.assert_close(means[b, -1], states[b, :count].double().mean(0).float())
        assert relative_error(means[b, :-1], wanted[b, :-1]) < 0.05
    (of_threads,) = _means(whole_streaming(model, isa, threads=3), mel, num_mel, tier)
    assert torch.equal(of_threads, means)
    size = tier.chunk * SUBSAMPLING
    of_chunk: list[Tensor] = []
    states, frames, _ = encoder.stream(
        mel[:, :size], torch.tensor([size, 0, 8]), encoder.start(3, tier), tier, means=of_chunk
    )
    for b, count in enumerate(frames.tolist()):
        expected = states[b, :count].double().sum(0) / max(1, count)
        torch.testing.assert_close(of_chunk[0][b, -1], expected.float())
    with pytest.raises(ValueError, match="means is 3 x 1 x "):
        encoder.layers._native.encode(
            torch.zeros(3, model.shape.width), torch.ones(3, dtype=torch.long), means=torch.zeros(3, 1, 32)
        )


def _means(encoder: ChunkEncoder, mel: Tensor, num_mel: Tensor, tier: Tier) -> list[Tensor]:
    means: list[Tensor] = []
    encoder(mel, num_mel, means=means, tier=tier)
    return means


@kinds
def test_a_stream_goes_on_with_torch_and_back(kind: dict[str, Any]) -> None:
    """What is remembered lies where torch has it: keys and values newest last, noughts before the first frame."""
    model, tier = streaming(**kind), TIERS[2]
    here = whole_streaming(model)
    mel, num_mel = log_mel(16, 201, 201)  # whole chunks, with the lead
    wanted, kept = by_chunks(model, mel, num_mel, tier)
    _, own = by_chunks(here, mel, num_mel, tier)
    for name, tensor in kept.tensors().items():
        assert own.tensors()[name].shape == tensor.shape
        assert own.tensors()[name].dtype == tensor.dtype
        assert (own.tensors()[name] - tensor).float().norm() <= 0.05 * tensor.float().norm(), name
    states, size, result = model.start(2, tier), tier.chunk * SUBSAMPLING, []
    heard = nn.functional.pad(mel, (0, 0, LEAD, 0))
    for number, begin in enumerate(range(0, heard.shape[1] - size + 1, size)):
        encoder: ChunkEncoder = here if number % 2 else model
        y, _, states = encoder.stream(heard[:, begin : begin + size], torch.tensor([size] * 2), states, tier)
        result.append(y)
    made = torch.cat(result, dim=1)
    assert relative_error(made, wanted[:, : made.shape[1]]) < 0.05


def test_streams_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    encoder, tier = whole_streaming(streaming()), TIERS[3]
    state = encoder.start(2, tier)
    before = {name: state.tensors()[name] for name in ("keys", "values", "convolution")}
    after = {f"{name}_after": torch.full_like(tensor, 7.0) for name, tensor in before.items()}

    def step(x: Tensor, counts: list[int], *, known: Any = (0, 0), chunk: int = 1, **changed: Any) -> None:
        encoder.layers._native.step(
            x, torch.tensor(counts), chunk=chunk, known=torch.tensor(known), **before | after | changed
        )

    x = torch.zeros(2, 32)
    for known in ((21, 0), (-1, 0)):
        with pytest.raises(ValueError, match="remember more than they have room for"):
            step(x, [1, 1], known=known)
    with pytest.raises(ValueError, match="more frames than their chunk"):
        step(x, [2, 0])
    with pytest.raises(ValueError, match="other frames than come in"):
        step(x, [1, 2])
    for name in (*before, *after):
        with pytest.raises(ValueError, match=r"is 2 x 2 x .*, not 2 x 2 x "):
            step(x, [1, 1], **{name: torch.zeros(2, 2, 2, 19, 16)})
    assert all((tensor == 7.0).all() for tensor in after.values())
    step(x, [1, 1])
    assert all((tensor != 7.0).any() for tensor in after.values())


class _Other(nn.Linear):
    pass


def _with(change: Callable[[Any], Any], make: Callable[..., Any] = made, **more: Any) -> nn.Module:
    encoder: nn.Module = make(**more)
    change(encoder)
    return encoder


def _wider_kernel(encoder: Any) -> None:
    encoder.layers[1].convolution.depthwise = nn.Conv1d(32, 32, 7, padding=3, groups=32)


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        (nn.Linear(3, 3), "it is of the kind Linear"),
        (
            _with(lambda e: setattr(e, "__class__", type("Sub", (FastConformerEncoder,), {}))),
            "of the kind Sub",
        ),
        (
            _with(lambda e: setattr(e, "stem", nn.Identity())),
            "before its layers are parts of the kind Identity",
        ),
        (
            _with(lambda e: setattr(e.stem, "out", _Other(24, 32))),
            "before its layers are parts of the kind _Other",
        ),
        (_with(lambda e: setattr(e.layers, "1", nn.Identity())), "it has layers of the kind Identity"),
        (_with(lambda e: setattr(e.layers[1].attention, "key", _Other(32, 32))), "parts of the kind _Other"),
        (
            _with(
                lambda e: setattr(
                    e.layers[0], "feed_forward_in", SplitFeedForward(32, 50, [8], torch.zeros(1).long())
                )
            ),
            "parts of the kind SplitFeedForward",
        ),
        (
            _with(lambda e: setattr(e.layers[1].norm, "eps", 1e-3)),
            "its norms have another epsilon than 1e-05",
        ),
        (
            _with(lambda e: setattr(e.layers[1].feed_forward_in, "activation", "relu")),
            "the activations of its feed-forwards are relu and silu",
        ),
        (_with(lambda e: None, num_heads=4), "its heads are 8 wide, which is no multiple of 16"),
        (_with(_wider_kernel), "its convolutions have different sizes"),
        (
            _with(lambda e: setattr(e.layers[1], "attention", RelativeAttention(32, 4))),
            "its layers have different heads",
        ),
    ],
)
def test_why_an_encoder_is_not_computed_as_a_whole(encoder: nn.Module, reason: str) -> None:
    assert reason in (why_not_fastconformer(encoder) or "")


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        (streaming(num_heads=4), "its heads are 8 wide, which is no multiple of 16"),
        (
            _with(lambda e: setattr(e.layers[0].convolution.inner_norm, "eps", 1e-3), streaming),
            "its norms have another epsilon than 1e-05",
        ),
        (_with(lambda e: setattr(e, "stem", nn.Identity()), streaming), "parts of the kind Identity"),
        (_with(lambda e: setattr(e.layers, "1", nn.Identity()), streaming), "layers of the kind Identity"),
        (
            _with(
                lambda e: setattr(
                    e.layers[0], "feed_forward_in", SplitFeedForward(32, 50, [8], torch.zeros(1).long())
                ),
                streaming,
            ),
            "parts of the kind SplitFeedForward",
        ),
    ],
)
def test_why_a_streaming_encoder_is_not_computed_as_a_whole(encoder: nn.Module, reason: str) -> None:
    assert reason in (why_not_fastconformer(encoder) or "")


@pytest.mark.parametrize("name", ["Parakeet CTC", "Parakeet TDT", "Canary", "Cohere ASR"])
def test_a_family_is_told_what_computes_its_parts(name: str, tmp_path: Path) -> None:
    """Those of the tests have narrow heads; with other ones, the kernels compute the encoder."""
    family: Any = BUILDERS[name].build(tmp_path)
    others = "linear layers of encoder" + (" and transducer" if name == "Parakeet TDT" else "")
    before = "decoder, and " if name == "Canary" else ""
    assert native_parts_of(family) == (
        f"{before}{others}; the rest on torch, encoder since its heads are 8 wide, which is no multiple of 16"
    )
    shape = family.encoder.shape.model_copy(update={"num_heads": 2})
    family.encoder = randomised(FastConformerEncoder(shape), 0)
    chosen: Any = engine_for(family, "native", threads=2, compare=False)
    assert isinstance(chosen.family.encoder, NativeFastConformer)
    assert chosen.parts["encoder"] == "native, int8"
    assert native_parts_of(family).startswith(
        f"{before.removesuffix(', and ')}{', and ' if before else ''}encoder"
    )
    samples = [np.random.default_rng(n).standard_normal(n).astype(np.float32) * 0.1 for n in (31000, 20000)]
    with torch.inference_mode():
        result, wanted = (each.encode(each.features(samples)) for each in (chosen.family, family))
    for b, count in enumerate(wanted.num_frames.tolist()):
        assert relative_error(result.states[b, :count], wanted.states[b, :count]) < 0.05

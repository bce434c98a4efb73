"""The native engine with linear layers in 4 bits: kernels, decoder, encoder, packed files, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.engines.choice import engine_for
from sprachbund.engines.extension import instruction_sets, native
from sprachbund.engines.native_engine import NativeDecoder, NativeLayers, pack, with_native_modules
from sprachbund.engines.options import NativeOptions
from sprachbund.engines.packed_cache import PackedFileError, read_packed, write_packed, write_with_model
from sprachbund.engines.packing import OFFSET, pack_decoder, pack_encoder, pack_four, pad
from sprachbund.errors import SprachbundError
from sprachbund.models.io import load
from sprachbund.nn.conformer import ConformerLayer
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.quantized import quantize_blocks
from tests.engines.support import (
    compute_linears,
    gelu_reference,
    needs_native,
    on_every_set,
    parts_of_a_product,
    quantize_reference,
    random_decoder,
    relative_error,
)
from tests.engines.test_kernels import few, randn, random_tokens, seeds, sizes
from tests.engines.test_native_encoder import KINDS, layers_of, on_every_kind, run, speech, width_of
from tests.engines.test_native_parts import BEST, memory_of
from tests.models.whisper_support import TINY, make_directory, make_transformers_model, transplanted

pytestmark = needs_native
FOUR = NativeOptions(weights="int4")


def product(
    isa: str, values: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, then: str = "keep"
) -> Tensor:
    """Quantized tokens (N, K) times a weight (M, K) in 4 bits; (N, M)."""
    out = torch.full((len(values), len(weight)), torch.nan)
    inputs = pad(values, 1, 8).contiguous()
    native().product(isa, inputs, scale, pack_four("matrix", weight, bias), len(weight), out, then)
    return out


def four_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As the kernels do it: 8-bit tokens, a weight in 4 bits, sums in double precision."""
    values, scale = quantize_reference(x.flatten(0, -2))
    y = (values.double() - OFFSET) @ quantize_blocks(weight).dequantize().double().T * scale[:, None]
    y = y if bias is None else y + bias
    return y.float().view(*x.shape[:-1], len(weight))


@pytest.fixture
def four_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's linear layers compute in 4 bits, and its output matrix in 8."""
    compute_linears(monkeypatch, four_linear)


def decoder_in_four(decoder: TextDecoder, isa: str = BEST, threads: int = 1) -> NativeDecoder:
    shape, arrays = pack_decoder(decoder, "int4")
    return NativeDecoder(shape, arrays, native().Team(threads), isa, FOUR)


def layers_in_four(
    layers: list[nn.Module], norm: nn.LayerNorm | None, isa: str = BEST, threads: int = 1
) -> NativeLayers:
    return NativeLayers(*pack_encoder(layers, norm, "int4"), native().Team(threads), isa)


@on_every_set
@few
@given(
    count=st.integers(1, 30),
    width=st.integers(1, 150),
    rows=sizes,
    seed=seeds,
    middle=st.sampled_from([0.0, 2.0]),
)
def test_product(isa: str, count: int, width: int, rows: int, seed: int, middle: float) -> None:
    values, scale = random_tokens(seed, count, width)
    weight, bias = randn(seed + 1, rows, width) + middle, randn(seed + 2, rows)
    plain, near = values.double() - OFFSET, quantize_blocks(weight).dequantize().double()
    wanted = plain @ near.T * scale[:, None] + bias
    # Sums of 32 inputs are exact; bringing them together rounds what is as large as the sums of magnitudes.
    slack = 4e-7 * (
        OFFSET * near.abs().sum(1) * scale[:, None] + plain.abs() @ near.abs().T * scale[:, None] + 1
    )
    assert ((product(isa, values, scale, weight, bias).double() - wanted).abs() <= slack).all()


@on_every_set
def test_sums_at_the_ends_of_the_range_do_not_saturate(isa: str) -> None:
    """255 times 15 and -15, over and over: what sums in 16 bits would lose."""
    values, scale, zero = torch.full((3, 512), 255, dtype=torch.uint8), torch.ones(3), torch.zeros(20)
    for sign in (1.0, -1.0):
        weight = torch.full((20, 512), sign * 15)
        weight[:, ::32] = 0
        wanted = torch.full((3, 20), sign * 15 * 127 * 496)
        torch.testing.assert_close(product(isa, values, scale, weight, zero), wanted, rtol=1e-6, atol=0)


def test_every_code_and_zero_point_is_the_same_on_every_instruction_set() -> None:
    """Steps of a power of two and whole numbers: nothing is rounded, so equal sums are equal bits."""
    values, _ = random_tokens(0, 29, 300)
    scale = torch.full((29,), 0.25)
    lowest = torch.randint(-15, 1, (83, 10)).repeat_interleave(32, 1)[:, :300]
    weight = (lowest + torch.randint(0, 16, (83, 300))).float()
    weight[:, ::32], weight[:, 1::32] = lowest[:, ::32].float(), lowest[:, 1::32] + 15.0
    assert torch.equal(quantize_blocks(weight).dequantize(), weight)
    wanted = 0.25 * ((values.long() - OFFSET) @ weight.long().T).float()
    for isa in instruction_sets():
        assert torch.equal(product(isa, values, scale, weight, torch.zeros(83)), wanted)


@on_every_set
@few
@given(first=st.integers(1, 14), second=st.integers(1, 14), rows=sizes, seed=seeds)
def test_tokens_do_not_depend_on_their_neighbours(
    isa: str, first: int, second: int, rows: int, seed: int
) -> None:
    values, scale = random_tokens(seed, first + second, 37)
    weight, bias = randn(seed + 1, rows, 37), randn(seed + 2, rows)
    parts = parts_of_a_product(lambda v, s: product(isa, v, s, weight, bias), values, scale, first, second)
    assert torch.equal(product(isa, values, scale, weight, bias), parts)


@on_every_set
def test_activations_follow(isa: str) -> None:
    values, scale = random_tokens(0, 7, 64)
    weight, bias = randn(1, 45, 64), randn(2, 45)
    y = product(isa, values, scale * 0.05, weight, bias)
    result = product(isa, values, scale * 0.05, weight, bias, "gelu")
    torch.testing.assert_close(result.double(), gelu_reference(y), rtol=2e-6, atol=3e-6)
    result = product(isa, values, scale * 0.05, weight, bias, "silu")
    torch.testing.assert_close(result.double(), F.silu(y.double()), rtol=4e-6, atol=4e-6)


@on_every_set
@pytest.mark.parametrize(
    "shape",
    [
        {"width": 64, "num_heads": 4},
        {"width": 24, "num_heads": 2, "feed_forward_width": 37, "memory_width": 19, "vocabulary_size": 33},
    ],
)
@pytest.mark.usefixtures("four_torch")
def test_step_is_torch_with_the_same_weights(isa: str, shape: dict[str, int]) -> None:
    """What is left are bf16 keys and values and, where heads are padded, blocks that are cut elsewhere."""
    decoder = random_decoder(**shape)
    memory, num_frames = memory_of(decoder, 2, 21), torch.tensor([21, 10])
    tokens = torch.randint(0, shape.get("vocabulary_size", 50), (4, 6))
    ours = decoder_in_four(decoder, isa)
    caches = [d.start(memory, num_frames, rows_per_memory=2) for d in (decoder, ours)]
    wanted, result = decoder.step(tokens, caches[0]), ours.step(tokens, caches[1])
    assert relative_error(result, wanted) < (0.02 if shape["width"] % 64 == 0 else 0.12)


@on_every_kind
@pytest.mark.usefixtures("four_torch")
def test_each_layer_is_torch_with_the_same_weights(kind: str) -> None:
    layers, _ = layers_of(kind, 3)
    conformer = isinstance(layers[0], ConformerLayer)
    none = None if conformer else nn.LayerNorm(width_of(layers)).requires_grad_(False)
    x, valid = speech(width_of(layers), 70, 70, 33)
    whole = (
        width_of(layers) // KINDS[kind].args[1]
    ) % 16 == 0  # else heads are padded, and blocks cut elsewhere
    for layer in layers:
        wanted, result = run([layer], none, x, valid), layers_in_four([layer], none)(x, valid)
        assert relative_error(result[valid], wanted[valid]) < (0.01 if whole else 0.06)
        x = wanted


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_batches_parts_and_threads_change_nothing(threads: int) -> None:
    decoder = random_decoder(width=24, num_heads=2, feed_forward_width=37)
    one, ours = (decoder_in_four(decoder, threads=n) for n in (1, threads))
    memory, num_frames = memory_of(decoder, 3, 40), torch.tensor([40, 1, 17])
    tokens = torch.randint(0, 50, (3, 9))
    cache = ours.start(memory, num_frames)
    together = torch.cat([ours.step(part, cache) for part in tokens.split([1, 5, 3], dim=1)], dim=1)
    for b, n in enumerate(num_frames.tolist()):
        alone = one.start(memory[b : b + 1, :n], None)
        assert torch.equal(one.step(tokens[b : b + 1], alone), together[b : b + 1])


@on_every_kind
def test_frames_and_threads_change_nothing_in_the_encoder(kind: str) -> None:
    layers, norm = layers_of(kind)
    one, several = (layers_in_four(layers, norm, threads=n) for n in (1, 3))
    x, valid = speech(width_of(layers), 170, 170, 49, 3, 1, 0, 48)
    together = several(x, valid)
    assert torch.equal(together, one(x, valid))
    for b, count in enumerate(valid.sum(1).tolist()):
        if count:
            assert torch.equal(one(x[b : b + 1, :count])[0], together[b, :count])


def test_packed_weights_are_smaller_and_only_linear_layers_differ() -> None:
    decoder = random_decoder(width=256, num_heads=4, vocabulary_size=64)
    (shape, eight), (_, four) = pack_decoder(decoder), pack_decoder(decoder, "int4")
    same = [name for name in eight if name in four and torch.equal(eight[name], four[name])]
    assert {name for name in eight if name.startswith(("vocabulary", "positions", "norm"))} <= set(same)
    linear = [part.weight.numel() for part in decoder.layers.modules() if isinstance(part, nn.Linear)]
    codes = sum(a.nbytes for name, a in four.items() if name.endswith((".codes", ".steps", ".zeros")))
    assert 8 * codes / sum(linear) == 4 + 16 / 32 + 4 / 32
    read = [NativeDecoder(shape, a, native().Team(1), BEST).step_bytes for a in (eight, four)]
    assert read[1] < 0.65 * read[0]


def test_matrices_that_do_not_fit_are_refused() -> None:
    decoder = random_decoder(width=64, num_heads=4)
    shape, arrays = pack_decoder(decoder, "int4")

    def refused(words: str, **changed: Tensor) -> None:
        with pytest.raises(ValueError, match=words):
            NativeDecoder(shape, arrays | changed, native().Team(1), BEST)

    name = "layers.0.cross_query"
    refused("codes is .* not", **{f"{name}.codes": arrays[f"{name}.codes"][:, 1:].contiguous()})
    refused("steps has another type", **{f"{name}.steps": arrays[f"{name}.steps"].float()})
    refused("zeros is", **{f"{name}.zeros": arrays[f"{name}.zeros"][..., :4].contiguous()})
    refused("offset has another type", **{f"{name}.offset": arrays[f"{name}.offset"].int()})
    whole = {f"vocabulary.{key}": a for key, a in _parts(pack_four("v", decoder.embedding.weight)).items()}
    refused("output matrix has 8 bits", **whole)
    tokens, matrix = torch.zeros(1, 12, dtype=torch.uint8), pack_four("matrix", randn(0, 3, 12))
    with pytest.raises(ValueError, match="padded to 4 inputs, to 8"):
        native().product(BEST, tokens, torch.ones(1), matrix, 3, randn(0, 1, 3), "keep")


def _parts(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.split(".")[1]: a for name, a in arrays.items()}


def test_a_weight_that_is_not_finite_is_an_error() -> None:
    decoder = random_decoder(width=24, num_heads=2)
    decoder.layers[0].cross_attention.query.weight[0, 0] = torch.nan
    with pytest.raises(SprachbundError, match="not finite"):
        pack_decoder(decoder, "int4")


def test_a_model_keeps_a_file_of_either_kind(tmp_path: Path) -> None:
    """Both in one cache, each found again, the second smaller; neither is taken for the other."""
    directory, cache = tmp_path / "model", tmp_path / "cache"
    make_directory(directory)
    model, sizes_of, logits = load(directory), {}, []
    for options in (NativeOptions(), FOUR, FOUR, NativeOptions()):
        engine = engine_for(model, "native", threads=1, directory=directory, cache=cache, options=options)
        assert engine.notes == ()
        assert f"{options.weights} encoder and decoder" in engine.why
        memory = engine.family.encode(engine.family.features([np.zeros(16000, np.float32)]))
        logits.append(engine.family.step(torch.tensor([[1, 2]]), engine.family.start(memory)))
        sizes_of = {("-int4" in path.name): path.stat().st_size for path in cache.glob("*.sbpacked")}
    assert torch.equal(logits[0], logits[3])
    assert torch.equal(logits[1], logits[2])
    assert not torch.equal(logits[0], logits[1])
    assert sizes_of[True] < 0.9 * sizes_of[False]


def test_a_file_of_the_other_kind_is_not_taken(tmp_path: Path) -> None:
    directory, cache = tmp_path / "model", tmp_path / "cache"
    make_directory(directory)
    model = load(directory)
    packed = pack(model)
    write_packed(tmp_path / "eight.sbpacked", packed)
    assert read_packed(tmp_path / "eight.sbpacked", weights="int8").weights == "int8"
    with pytest.raises(PackedFileError, match="holds weights in int8, asked for are int4"):
        read_packed(tmp_path / "eight.sbpacked", weights="int4")
    with pytest.raises(SprachbundError, match="packed weights are in int8, asked for are int4"):
        with_native_modules(model, packed, native().Team(1), BEST, FOUR)
    eight, four = (write_with_model(directory, lambda w=w: pack(model, w)) for w in ("int8", "int4"))  # type: ignore[misc]
    assert (eight.name, four.name) == ("model.sbpacked", "model-int4.sbpacked")
    eight.replace(four)
    engine = engine_for(model, "native", threads=1, directory=directory, cache=cache, options=FOUR)
    (note,) = engine.notes
    assert "holds weights in int8, asked for are int4" in note
    assert "packed again" in note


def test_engines_without_it_say_so() -> None:
    model = transplanted(make_transformers_model(TINY), TINY)
    for name in ("torch", "torch-int8"):
        with pytest.raises(SprachbundError, match=f"weights='int4' is for the native engine; .* {name} has"):
            engine_for(model, name, options=FOUR)  # type: ignore[arg-type]
    other = transplanted(make_transformers_model(TINY), TINY)
    other.decoder.layers[0].self_norm.eps = 1e-3
    with pytest.raises(
        SprachbundError, match="weights='int4' is for the native engine; torch, since its norms"
    ):
        engine_for(other, "auto", options=FOUR)
    with pytest.raises(SprachbundError, match="weights='int3' is not offered; choose int8 or int4"):
        NativeOptions(weights="int3")  # type: ignore[arg-type]


def test_it_is_chosen_by_the_name_of_an_engine(tmp_path: Path) -> None:
    model = transplanted(make_transformers_model(TINY), TINY)
    engine = engine_for(model, "native-int4", threads=1)
    assert "int4 encoder and decoder" in engine.why
    by_option = engine_for(model, "native", threads=1, options=FOUR)
    memory, tokens = model.encode(model.features([np.zeros(16000, np.float32)])), torch.tensor([[1, 2]])
    rows = [f.step(tokens, f.start(memory)) for f in (engine.family, by_option.family)]
    assert torch.equal(*rows)
    model.decoder.layers[0].self_norm.eps = 1e-3
    with pytest.raises(SprachbundError, match="native engine cannot run this model: its norms"):
        engine_for(model, "native-int4")
    with pytest.raises(SprachbundError, match="threads is 4096, and this machine has"):
        engine_for(model, "native-int4", threads=4096)

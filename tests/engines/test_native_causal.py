"""Causal language models that the kernels compute as a whole, beside torch with the same roundings."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprachbund.engines.choice import engine_for
from sprachbund.engines.extension import instruction_sets, native
from sprachbund.engines.native_causal import NativeCausalLM, why_not_causal
from sprachbund.engines.native_engine import native_parts_of
from sprachbund.engines.native_linear import linears, matrix_of, pack_linears, with_native_linears
from sprachbund.engines.torch_layers import plain_linear
from sprachbund.models.weights import quantize_rows
from sprachbund.nn import causal_lm
from sprachbund.nn.causal_lm import CausalLM, CausalShape, Rotary
from sprachbund.nn.quantized import BlockLinear, quantize_blocks
from tests.engines.support import (
    needs_native,
    on_every_set,
    quantize_reference,
    relative_error,
)
from tests.models.contract import BUILDERS, make_subject

pytestmark = needs_native

SIZES: dict[str, Any] = {
    "vocabulary_size": 60,
    "width": 24,
    "inner_width": 40,
    "num_layers": 2,
    "num_heads": 4,
    "num_key_heads": 2,
    "head_width": 16,
    "context": 512,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "Llama": {"rotary": Rotary(base=500.0, kind="llama3", factor=8.0, original_context=32)},
    "Mistral, a head of keys each": {"num_key_heads": 4, "width": 64, "norm_epsilon": 1e-5},
    "tied, one head of keys, odd heads": {
        "num_heads": 6,
        "num_key_heads": 1,
        "head_width": 20,
        "inner_width": 35,
        "tied": True,
    },
    "Qwen2": {"qkv_bias": True, "tied": True},
    "Qwen3, odd heads": {"head_norms": True, "head_width": 10, "rotary": Rotary(kind="linear", factor=4.0)},
    "Granite": {
        "embedding_scale": 12.0,
        "residual_scale": 0.22,
        "attention_scale": 1 / 16,
        "logits_scale": 8.0,
        "tied": True,
    },
    "all biases but the keys'": {
        "qkv_bias": True,
        "key_bias": False,
        "out_bias": True,
        "inner_bias": True,
        "residual_scale": 0.5,
    },
}


def made(name: str = "Qwen3, odd heads", **more: Any) -> CausalLM:
    """Every weight, bias and norm random, so that none can be lost unseen."""
    torch.manual_seed(0)
    model = CausalLM(CausalShape(**SIZES | VARIANTS[name] | more)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))
        else:
            parameter.normal_(0, parameter.shape[1] ** -0.5)
    return model


def whole(model: CausalLM, isa: str | None = None, weights: Any = "int8", threads: int = 1) -> NativeCausalLM:
    assert why_not_causal(model) is None
    arrays = pack_linears(model, weights)
    return NativeCausalLM(model, arrays, native().Team(threads), isa or instruction_sets()[0])


def in_parts(llm: Any, prefixes: list[Tensor], tokens: Tensor, *sizes: int) -> Tensor:
    """Logits (R, Q, V) behind prefixes, of so many tokens at a time."""
    with torch.inference_mode():
        cache = llm.start(prefixes, capacity=tokens.shape[1], num_memories=len(prefixes))
        return torch.cat([llm.step(part.contiguous(), cache) for part in tokens.split(sizes, 1)], 1)


def drawn(model: CausalLM, *lengths: int, num_tokens: int = 5) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    prefixes = [torch.randn(n, model.width, generator=generator) for n in lengths]
    return prefixes, torch.randint(0, model.vocabulary_size, (len(lengths), num_tokens), generator=generator)


BF16 = ("avx512",)
"""Kernels that have probabilities in bf16 in any case; the others when tokens are read, and not prefixes."""


def attention_in_bf16(isa: str) -> Callable[..., Tensor]:
    """In place of `attend`: queries, keys and values in bf16, and the probabilities too where kernels have them so."""

    def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        query, key, value = (x.to(torch.bfloat16).double() for x in (query, key, value))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        scores = scores.masked_fill(~allowed, -torch.inf)
        grown = (scores - scores.amax(-1, keepdim=True)).exp()
        in_bf16 = isa in BF16 or int(allowed[0, 0, 0].sum()) > 1
        mixed = (grown.to(torch.bfloat16).double() if in_bf16 else grown) @ value
        return (mixed / grown.sum(-1, keepdim=True)).float()

    return attend


def rounded(model: CausalLM, isa: str, weights: str, monkeypatch: pytest.MonkeyPatch) -> CausalLM:
    """The model on torch with weights as they are packed, inputs of products in 8 bits, keys and values in bf16."""
    same = copy.deepcopy(model)
    if model.shape.tied:
        same.lm_head = plain_linear(model.embed_tokens.weight.clone())
    for name, layer in same.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        if name == "lm_head" or weights == "int8":
            values, scale = quantize_rows(layer.weight)
            layer.weight.copy_(values * scale[:, None])
        else:
            layer.weight.copy_(quantize_blocks(layer.weight).dequantize())

    def product(self: nn.Linear, x: Tensor) -> Tensor:
        values, scale = quantize_reference(x.flatten(0, -2))
        made = ((values.double() - 128) * scale[:, None].double()) @ self.weight.double().T
        made = made if self.bias is None else made + self.bias.double()
        return made.float().unflatten(0, x.shape[:-1])

    monkeypatch.setattr(nn.Linear, "forward", product)
    monkeypatch.setattr(causal_lm, "attend", attention_in_bf16(isa))
    return same


@on_every_set
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_torch_with_the_same_roundings(
    isa: str, weights: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prefix and a short one, some tokens at once and some alone.

    What lies between two steps of 8 bits may fall to either side; from there on, a row is a little off.
    """
    model = made(name)
    given = drawn(model, 12, 70)
    result = in_parts(whole(model, isa, weights), *given, 3, 1, 1)
    wanted = in_parts(rounded(model, isa, weights, monkeypatch), *given, 3, 1, 1)
    errors = [relative_error(f, w) for f, w in zip(result, wanted, strict=True)]
    assert min(errors) < 1e-5
    assert max(errors) < 0.03


@on_every_set
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_the_same_alone_and_beside_others(isa: str, weights: str, threads: int) -> None:
    """Bit for bit, on any number of threads; the longest two prefixes are passed through the layers in three parts."""
    model = made()
    prefixes, tokens = drawn(model, 700, 3, 41, 600)
    llm = whole(model, isa, weights, threads)
    together = in_parts(llm, prefixes, tokens, 2, 3)
    single = whole(model, isa, weights)
    for row in range(len(tokens)):
        assert torch.equal(in_parts(single, [prefixes[row]], tokens[row : row + 1], 2, 3)[0], together[row])


@on_every_set
def test_tokens_are_read_one_by_one_as_at_once(isa: str) -> None:
    model = made("Granite")
    prefixes, tokens = drawn(model, 30, 5, num_tokens=40)
    llm = whole(model, isa)
    single = in_parts(llm, prefixes, tokens, *[1] * 40)
    for sizes in ([3, 2] * 8, [33, 7]):
        assert torch.equal(in_parts(llm, prefixes, tokens, *sizes), single)


@on_every_set
def test_a_prefix_is_read_in_parts_as_at_once(isa: str) -> None:
    """As tokens behind a shorter prefix."""
    model = made("Qwen2")
    llm, text = whole(model, isa), drawn(model, 0, num_tokens=90)[1]
    behind = text[:, 60:]
    wanted = in_parts(llm, [llm.embed(text[0, :60])], behind, 30)
    for size in (8, 20, 59):
        result = in_parts(llm, [llm.embed(text[0, :size])], text[:, size:], 60 - size, 30)[:, 60 - size :]
        assert relative_error(result, wanted) < 0.03
        if isa in BF16:  # other kernels round probabilities of tokens, and not those of prefixes
            assert torch.equal(result, wanted)


def test_rows_are_exchanged_copied_and_left_out() -> None:
    model = made("Llama")
    llm, (prefixes, tokens) = whole(model), drawn(model, 20, 37, 33, 2, num_tokens=6)
    with torch.inference_mode():
        alone = [in_parts(llm, [p], t[None], 4, 2)[0, 4:] for p, t in zip(prefixes, tokens, strict=True)]
        cache = llm.start(prefixes, capacity=6, num_memories=2)
        llm.step(tokens[:, :4].contiguous(), cache)
        cache.reorder(torch.tensor([1, 1, 3, 2]))
        assert cache.prefix.tolist() == [37, 37, 2, 33]
        behind = tokens[[1, 1, 3, 2], 4:]
        wanted = torch.stack([alone[1], alone[1], alone[3], alone[2]])
        assert torch.equal(llm.step(behind, cache), wanted)
        cache.rewind(torch.tensor([4, 4, 4, 4]))
        assert torch.equal(llm.step(behind, cache), wanted)
        cache.rewind(torch.tensor([4, 4, 4, 4]))
        cache.reorder(torch.arange(4).repeat_interleave(2))  # beams
        assert cache.num_rows == 8
        assert torch.equal(llm.step(behind.repeat_interleave(2, 0), cache), wanted.repeat_interleave(2, 0))
        cache.rewind(torch.full((8,), 4))
        cache.keep(torch.tensor([1]))
        assert (cache.num_rows, cache.num_memories) == (4, 1)
        assert torch.equal(
            llm.step(behind[2:].repeat_interleave(2, 0), cache), wanted[2:].repeat_interleave(2, 0)
        )
        copies = llm.start(prefixes[:2], capacity=6, num_memories=2, copies=3)
        assert copies.prefix.tolist() == [20] * 3 + [37] * 3
        llm.step(tokens[:2, :4].repeat_interleave(3, 0), copies)
        result = llm.step(tokens[:2, 4:].repeat_interleave(3, 0), copies)
        assert torch.equal(result, torch.stack(alone[:2]).repeat_interleave(3, 0))


def test_rows_that_hold_different_numbers_of_tokens() -> None:
    model = made("Llama")
    llm, (prefixes, tokens) = whole(model), drawn(model, 20, 37, num_tokens=6)
    with torch.inference_mode():
        cache = llm.start(prefixes, capacity=6, num_memories=2)
        before = llm.step(tokens, cache)
        cache.rewind(torch.tensor([3, 1]))
        after = llm.step(torch.stack([tokens[0, 3:5], tokens[1, 1:3]]), cache)
    assert torch.equal(after[0], before[0, 3:5])
    assert torch.equal(after[1], before[1, 1:3])
    assert cache.lengths.tolist() == [5, 3]


def test_a_cache_that_is_full_is_an_error() -> None:
    model = made()
    llm, (prefixes, tokens) = whole(model), drawn(model, 30, 2)
    cache = llm.start(prefixes, capacity=4, num_memories=2)
    assert cache.capacity == 4
    with pytest.raises(ValueError, match="5 tokens do not fit into a cache of 4"):
        llm.step(tokens, cache)
    llm.step(tokens[:, :4], cache)
    with pytest.raises(ValueError, match="5 tokens do not fit"):
        llm.step(tokens[:, :1], cache)


def test_what_does_not_fit_is_refused_before_anything_is_written() -> None:
    llm = whole(made())
    cache = llm.start(drawn(made(), 3)[0], capacity=20, num_memories=1)
    x, logits = torch.zeros(2, llm.width), torch.zeros(2, llm.vocabulary_size)

    def step(counts: list[int], held: list[int], own: Tensor = cache.own, out: Tensor = logits) -> None:
        llm._native.step(x, torch.tensor(counts), torch.tensor(held), own, out)

    for counts, held in (([2], [31]), ([2], [-1]), ([-2], [4]), ([3], [0]), ([1, 1], [0, 0]), ([2], [2**62])):
        with pytest.raises(ValueError, match=r"more tokens|another number|own is|counts is|held is"):
            step(counts, held)
    with pytest.raises(ValueError, match="own is"):
        step([2], [0], own=torch.zeros(cache.own.shape[1:], dtype=torch.int16)[None])
    with pytest.raises(ValueError, match="logits is"):
        step([2], [0], out=logits[:1])
    step([2], [0])


@pytest.mark.parametrize("stored", ["all", "some"])
def test_codes_of_4_bits_are_computed_as_they_are_stored(stored: str) -> None:
    """Whatever the numbers of the layers beside them."""
    model, by_layers = made("Qwen2"), copy.deepcopy(made("Qwen2"))
    for layer in model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if stored == "all" or name in ("q_proj", "up_proj"):
                    setattr(parent, name, BlockLinear(quantize_blocks(child.weight), child.bias))
    for name, part in linears(model).items():
        if isinstance(part, BlockLinear):
            by_layers.get_submodule(name).weight.copy_(part.weight)
    result, given = whole(model), drawn(model, 12, 30)
    assert result.numbers == "int4"
    # The other model rounds the same numbers to 8 bits where they were stored in 4.
    assert relative_error(in_parts(result, *given, 5), in_parts(by_layers, *given, 5)) < 0.05


def test_the_embedding_is_the_models_own_and_weights_are_not_copied() -> None:
    model = made("Qwen2").to(torch.bfloat16)
    arrays = pack_linears(model, "int8")
    llm = NativeCausalLM(model, arrays, native().Team(1), "portable")
    assert llm.embed_tokens.weight is model.embed_tokens.weight
    assert llm.dtype == llm.embed(torch.tensor([3])).dtype == torch.bfloat16
    before = in_parts(llm, *drawn(model, 9), 5)
    arrays["layers.0.mlp.up_proj.matrix.values"].zero_()
    assert not torch.equal(in_parts(llm, *drawn(model, 9), 5), before)


class _Other(nn.Linear):
    pass


def _with(change: Callable[[CausalLM], Any]) -> CausalLM:
    model = made()
    change(model)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(3, 3), "it is of the kind Linear"),
        (_with(lambda m: setattr(m, "__class__", type("Sub", (CausalLM,), {}))), "it is of the kind Sub"),
        (_with(lambda m: setattr(m.layers, "1", nn.Identity())), "it has layers of the kind Identity"),
        (
            _with(lambda m: setattr(m.layers[1].self_attn, "k_proj", _Other(24, 20))),
            "its layers have parts of the kind _Other",
        ),
        (_with(lambda m: setattr(m, "norm", nn.LayerNorm(24))), "its last norm is of the kind LayerNorm"),
    ],
)
def test_why_a_model_is_not_computed_as_a_whole(model: nn.Module, reason: str) -> None:
    assert why_not_causal(model) == reason


def test_adapters_inside_leave_the_linear_layers_to_the_kernels(tmp_path: Path) -> None:
    """As those of Granite Speech, which are there for speech alone."""
    family: Any = BUILDERS["Granite Speech"].build(tmp_path)
    chosen: Any = engine_for(family, "native", compare=False)
    assert why_not_causal(family.llm) == "its layers have parts of the kind AdaptedLinear"
    assert native_parts_of(family) == (
        "linear layers of llm and encoder; the rest on torch, llm since its layers have parts of the kind AdaptedLinear"
    )
    assert isinstance(chosen.family.llm, CausalLM)


@pytest.mark.parametrize("name", ["Voxtral", "Qwen3-ASR"])
@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_speech_model_writes_what_it_writes_layer_by_layer(
    name: str, beam_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = make_subject(name, tmp_path)
    chosen: Any = engine_for(subject.family, "native", threads=1, compare=False)
    assert isinstance(chosen.family.llm, NativeCausalLM)
    assert chosen.parts["llm"] == "native, int8; torch, fp32"
    assert native_parts_of(subject.family) == "llm, and linear layers of encoder; the rest on torch"
    arrays, isa = pack_linears(subject.family.llm, "int8"), instruction_sets()[0]
    by_layers = copy.copy(chosen.family)
    by_layers._modules = dict(chosen.family._modules) | {
        "llm": with_native_linears(
            subject.family.llm,
            lambda layer: matrix_of(arrays, layer),
            native().Team(1),
            isa,
        )
    }
    result = subject.written(chosen.family, beam_size=beam_size)
    # Texts of random weights turn on every rounding, so that the other way needs the same.
    monkeypatch.setattr(causal_lm, "attend", attention_in_bf16(isa))
    wanted = subject.written(by_layers, beam_size=beam_size)
    assert [s.text for s in result.segments] == [s.text for s in wanted.segments]
    assert result.segments

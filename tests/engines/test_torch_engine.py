"""The torch engine's precisions: fp32 is the plain model, bf16 and int8 stay near it, and rows never see each other."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprachbund.decoding.drafts.base import Draft
from sprachbund.decoding.drafts.model import ModelDraft
from sprachbund.decoding.encoding import encode
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.words import align
from sprachbund.engines import torch_layers as torch_linear
from sprachbund.engines.choice import engine_for
from sprachbund.engines.torch_layers import (
    Int8Linear,
    PackedLinear,
    Precision,
    TorchDecoder,
    _packs,
    _seven_bits,
    attend_in_bf16,
    linear,
    num_bytes,
)
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Capabilities, Family, Target
from sprachbund.models.io import load
from sprachbund.models.tokens.config import MbartShape
from sprachbund.models.weights import quantize_rows
from sprachbund.models.whisper import Whisper
from sprachbund.nn.attention import attend
from sprachbund.nn.conformer import sinusoids
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.text_to_text import FixedPositionDecoder, MbartDecoder
from tests.decoding.test_speculative_drafts import medusa_for, parasite_for
from tests.decoding.tiny_family import TinyFamily, random_memory
from tests.engines.support import random_decoder, relative_error
from tests.engines.test_engine import CLIPS, TARGETS
from tests.models import split_support
from tests.models.whisper_support import TINY, make_transformers_model, transplanted

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
NEAR = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.06}


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return transplanted(make_transformers_model(TINY), TINY)


@pytest.fixture(scope="module")
def bundled() -> Family:
    return load()


def memory_for(decoder: TextDecoder, num_memories: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_memories, length, decoder.positions.shape[1], generator=generator)


@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(1, 3, 1), (7, 5, 4), (64, 96, 1), (130, 33, 9)])
def test_an_8_bit_product_is_what_rounding_by_hand_gives(inputs: int, outputs: int, rows: int) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(rows, inputs) * 5
    # Torch's steps: 255 over the range of a row; half as many where products of 8 bits would not fit (`_seven_bits`).
    num_steps = 127 if _seven_bits() else 255
    lowest = -1.0 if inputs > 1 else 0.0  # of a row over its peak; a single input here is above nought
    step, zero = (1 - lowest) / num_steps, round(-lowest * num_steps / (1 - lowest))
    peak = x.abs().amax(1, keepdim=True)
    rounded = (x / peak / step).round().clamp(-zero, 255 - zero)
    values, scale = quantize_rows(weight)
    exact = rounded.double() @ values.double().T * step * peak.double() * scale.double() + bias.double()
    # An input near the middle of two steps may be rounded to the other one.
    assert relative_error(Int8Linear(weight, bias)(x).double(), exact) < 1e-3
    assert relative_error(Int8Linear(weight, None)(x), x @ weight.T) < 0.03


def test_a_row_of_an_8_bit_product_does_not_see_its_neighbours() -> None:
    torch.manual_seed(0)
    part = Int8Linear(torch.randn(48, 64), torch.randn(48))
    x = torch.randn(6, 64) * torch.tensor([1.0, 100.0, 0.01, 0.0, 3.0, 1.0])[:, None]
    together = part(x.view(2, 3, 64))
    assert torch.equal(together.flatten(0, 1), torch.cat([part(row[None]) for row in x]))
    assert torch.equal(part(x[3:4])[0], part.bias)
    assert num_bytes(part) == 48 * 64 + 48 * 4 + 48 * 4 + 64 * 4  # values, scales, bias, the row of ends


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 3), (33, 130), (64, 96)])
def test_a_packed_product_is_the_plain_one(inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
    if not _packs(dtype):
        pytest.skip("this torch packs no weights for this processor")
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)
    packed = PackedLinear(plain.weight, plain.bias)
    assert num_bytes(packed) == sum(p.nbytes for p in plain.parameters())
    for x in (
        torch.randn(1, inputs),
        torch.randn(2, 3, inputs),
        torch.randn(inputs, 40).T,
        torch.randn(0, inputs),
    ):
        result, expected = packed(x.to(dtype)), plain.double()(x.to(dtype).double())
        plain.to(dtype)
        assert result.dtype == dtype
        assert result.shape == expected.shape
        torch.testing.assert_close(
            result.double(), expected, rtol=1e-2, atol=3e-2 if dtype == torch.bfloat16 else 1e-5
        )


def test_large_products_are_packed_and_small_ones_are_not() -> None:
    for weight in (torch.randn(512, 512), torch.randn(8, 8)):
        part = linear(weight, None, "fp32")
        expected = PackedLinear if _packs(torch.float32) and len(weight) > 8 else nn.Linear
        assert type(part) is expected
    assert isinstance(linear(torch.empty(512, 512, device="meta"), None, "fp32"), nn.Linear)


@pytest.mark.parametrize("queries", [1, 5, 130])
def test_attention_in_bf16_is_near_that_in_fp32(queries: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, queries, 16), torch.randn(2, 3, 70, 16), torch.randn(2, 3, 70, 16)
    allowed = torch.arange(70) < torch.tensor([70, 41])[:, None, None, None]
    halves = key.to(torch.bfloat16), value.to(torch.bfloat16)
    with torch.inference_mode():
        result = attend_in_bf16(query, *halves, allowed)
        assert result.dtype == torch.float32
        assert relative_error(result, attend(query, key, value, allowed)) < 0.02


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_steps_are_those_of_the_plain_decoder(
    precision: Precision, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch_linear, "_WORTH_PACKING", dict.fromkeys((torch.float32, torch.bfloat16), 0) if packed else {}
    )
    decoder = random_decoder(width=48, num_heads=3, memory_width=32)
    engine = TorchDecoder(decoder, precision)
    memory = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(2))
    frames, tokens = torch.tensor([11, 6]), torch.randint(0, 50, (4, 9))
    with torch.inference_mode():
        caches = [d.start(_as(d, memory), frames, rows_per_memory=2, capacity=20) for d in (decoder, engine)]
        for begin, end in ((0, 4), (4, 5), (5, 6), (6, 9)):
            weights: list[list[Tensor]] = [[], []]
            plain, ours = (
                d.step(tokens[:, begin:end], c, w)
                for d, c, w in zip((decoder, engine), caches, weights, strict=True)
            )
            assert relative_error(ours.float(), plain) < NEAR[precision]
            for a, b in zip(*weights, strict=True):
                assert float((a - b.float()).abs().max()) < 2 * NEAR[precision]
            for c in caches:  # rows of different lengths from here on
                c.rewind(c.lengths - (torch.arange(4) % 2) * (end == 5))
        for c in caches:
            c.reorder(torch.tensor([1, 1, 2, 2]))
            c.keep(torch.tensor([1]))
        plain, ours = (d.step(tokens[:2, :2], c) for d, c in zip((decoder, engine), caches, strict=True))
        assert relative_error(ours.float(), plain) < NEAR[precision]
        assert torch.equal(caches[0].lengths, caches[1].lengths)


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_beside_8_bits_attention_is_in_bf16_where_a_device_computes_it(
    has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_linear, "has_bf16", lambda device: has_bf16)
    decoder, memory = random_decoder(width=48, num_heads=3), torch.randn(2, 11, 48)
    for precision, expected in {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": dtype}.items():
        engine = TorchDecoder(decoder, precision)
        with torch.inference_mode():
            cache = engine.start(_as(engine, memory), None)
            logits = engine.step(torch.zeros(2, 3, dtype=torch.long), cache)
            plain = decoder.step(torch.zeros(2, 3, dtype=torch.long), decoder.start(memory, None))
        assert cache.cross_keys[0].dtype == expected
        assert relative_error(logits.float(), plain) < NEAR[precision]


def test_rows_that_outlive_a_longer_one_are_read_to_their_own_end() -> None:
    decoder = random_decoder(width=48, num_heads=3)
    engine, tokens = TorchDecoder(decoder, "fp32"), torch.randint(0, 50, (2, 9))
    result = []
    with torch.inference_mode():
        memory = memory_for(engine, 2, 7)
        for each in (decoder, engine):
            cache = each.start(memory, None, capacity=12)
            each.step(tokens[:, :7], cache)
            cache.rewind(torch.tensor([3, 7]))
            cache.keep(torch.tensor([0]))
            result.append(torch.cat([each.step(tokens[:1, i : i + 1], cache) for i in (3, 4)], dim=1))
        alone = decoder.step(tokens[:1, :5], decoder.start(memory[:1], None))[:, 3:]
    for logits in result:
        assert relative_error(logits, alone) < 1e-5


def _as(decoder: TextDecoder, memory: Tensor) -> Tensor:
    return memory.to(decoder.positions.dtype)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_several_positions_and_rows_give_what_single_steps_give(precision: Precision) -> None:
    engine = TorchDecoder(random_decoder(width=64, num_heads=4), precision)
    tokens, memory = torch.randint(0, 50, (3, 6)), memory_for(engine, 3, 9)
    with torch.inference_mode():
        at_once = engine.step(tokens, engine.start(memory, None))
        for r in range(3):
            cache = engine.start(memory[r : r + 1], None)
            each = torch.cat([engine.step(tokens[r : r + 1, i : i + 1], cache) for i in range(6)], dim=1)
            assert relative_error(each[0], at_once[r]) < (1e-5 if precision == "fp32" else 5e-3)


def test_a_cache_that_is_full_is_an_error() -> None:
    engine = TorchDecoder(random_decoder(width=32, num_heads=2), "fp32")
    cache = engine.start(memory_for(engine, 1, 4), None, capacity=3)
    engine.step(torch.zeros(1, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="4 tokens do not fit"):
        engine.step(torch.zeros(1, 1, dtype=torch.long), cache)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("beam_size", [1, 3])
def test_whisper_decodes_as_on_the_plain_model(
    whisper: Whisper, precision: Precision, beam_size: int
) -> None:
    engine = engine_for(whisper, f"torch-{precision}")  # type: ignore[arg-type]
    assert engine.name == f"torch-{precision}"
    options = DecodingOptions(beam_size=beam_size, max_tokens=12)
    rows, states = [], []
    with torch.inference_mode():
        for family in (whisper, engine.family):
            memory = family.encode(family.features(CLIPS))
            states.append(memory.states.float())
            rows.append([h for g in search(family, memory, TARGETS, options) for h in g])
    assert relative_error(states[1], states[0]) < NEAR[precision]
    if precision == "fp32":
        assert [h.tokens for h in rows[0]] == [h.tokens for h in rows[1]]
        for a, b in zip(*rows, strict=True):
            assert a.log_probability == pytest.approx(b.log_probability, abs=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bundled_model_writes_nearly_the_same(bundled: Family, precision: Precision) -> None:
    engine = engine_for(bundled, f"torch-{precision}")  # type: ignore[arg-type]
    targets = [[Target(language=tag) for tag in ("de", "fr", "en")]] * len(CLIPS)
    scores = []
    with torch.inference_mode():
        for family in (bundled, engine.family):
            memory = family.encode(family.features(CLIPS))
            result = search(family, memory, targets, DecodingOptions(max_tokens=10))
            scores.append(torch.tensor([h.mean_log_probability for group in result for h in group]))
    assert float((scores[0] - scores[1]).abs().median()) < (1e-5 if precision == "fp32" else 0.1)


def test_words_are_aligned(whisper: Whisper) -> None:
    targets, tokens = [[Target(language="en", source="en")]], [[list(b"hello world")]]
    rows = []
    for family in (whisper, engine_for(whisper, "torch-int8").family):
        memory = family.encode(family.features(CLIPS[:1]))
        rows.append(align(family, memory, targets, tokens, [2.0])[0][0])
    assert rows[0].tokens == rows[1].tokens
    assert rows[1].log_probabilities == pytest.approx(rows[0].log_probabilities, abs=0.3)


def test_the_model_itself_is_left_as_it_was(whisper: Whisper) -> None:
    before = copy.deepcopy(whisper.state_dict())
    for precision in PRECISIONS:
        engine_for(whisper, f"torch-{precision}")  # type: ignore[arg-type]
    assert type(whisper.decoder) is TextDecoder
    assert not whisper.encoder._forward_pre_hooks
    assert all(isinstance(m, nn.Module) and not isinstance(m, Int8Linear) for m in whisper.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), whisper.state_dict().values(), strict=True))


def test_decoders_of_others_are_refused() -> None:
    other: Any = SimpleNamespace(capabilities=Capabilities(decoder=nn.Linear(1, 1)))
    with pytest.raises(SprachbundError, match="kind Linear"):
        engine_for(other, "torch-int8")


def test_a_decoder_that_computes_something_more_is_refused() -> None:
    with torch.device("meta"):
        decoder = MbartDecoder(
            10, MbartShape(width=16, num_decoder_heads=2, num_decoder_layers=1, positions=8)
        )

    model: Any = SimpleNamespace(capabilities=Capabilities(decoder=decoder))
    with pytest.raises(SprachbundError, match="kind MbartDecoder; use the engine torch"):
        engine_for(model, "torch-fp32")


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("parasite", "int8"), ("medusa", "int8"), ("model", "int8"), ("parasite", "bf16"), ("medusa", "bf16")],
)
def test_drafts_propose_on_the_engine(kind: str, precision: Precision) -> None:
    family = TinyFamily(seed=5)
    made: dict[str, Draft] = {
        "parasite": parasite_for(family),
        "medusa": medusa_for(family),
        "model": ModelDraft(TinyFamily(seed=6)),
    }
    draft = made[kind]
    family.decoder = TorchDecoder(family.decoder, precision)
    memory, targets = random_memory([6, 9, 4], 1), [[Target(language="de")]] * 3
    memory = replace(memory, states=_as(family.decoder, memory.states))
    draft.check(family)
    speculation = Speculation(draft, num_draft_tokens=3)
    plain = search(family, memory, targets, DecodingOptions(draft="none"))
    result = search(family, memory, targets, DecodingOptions(), speculation=speculation)
    # Attention in bf16 may round otherwise for several positions at once, where two tokens are as likely.
    same = [a[0].tokens == b[0].tokens for a, b in zip(plain, result, strict=True)]
    assert sum(same) >= 2


def test_drafts_are_refused_by_a_decoder_in_fp16() -> None:
    family = TinyFamily(seed=5)
    draft = parasite_for(family)
    family.decoder.half()
    with pytest.raises(SprachbundError, match=r"fp32 or bf16, the decoder in float16"):
        draft.check(family)


def test_drafts_propose_through_an_output_matrix_of_its_own() -> None:
    family = TinyFamily(seed=5)
    parasite, medusa = parasite_for(family), medusa_for(family)
    accepted = []
    for _ in range(2):
        memory, targets = random_memory([6], 1), [[Target(language="de")]]
        for draft in (parasite, medusa):
            speculation = Speculation(draft, num_draft_tokens=2)
            search(family, memory, targets, DecodingOptions(), speculation=speculation)
            accepted.append([r.accepted for r in speculation.report()])
        embedding = family.decoder.embedding.weight
        family.decoder.output_head = nn.Linear(embedding.shape[1], embedding.shape[0], bias=False)
        family.decoder.output_head.weight = nn.Parameter(embedding.detach().clone())
        embedding = nn.Parameter(embedding.detach().clone())  # what is read stays
    assert accepted[:2] == accepted[2:]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_split_model_takes_the_branches_of_its_languages(precision: Precision) -> None:
    pairs = [f"{s}>{t}" for s in split_support.LANGUAGES for t in split_support.LANGUAGES]
    decoder = split_support.make_split(
        split_support.DECODER, side="pair", groups=(tuple(pairs[::2]), tuple(pairs[1::2]))
    )
    model = split_support.make_split_model(split_support.make_split(), decoder)
    model = split_support.level_languages(model).eval()
    engine = engine_for(model, f"torch-{precision}")  # type: ignore[arg-type]
    sounds, sources = split_support.make_sounds(4, seed=3), ["de", "ru", "fr", "en"]
    targets = [Target(language="de", source=source) for source in sources]
    logits = []
    with torch.inference_mode():
        for family in (model, engine.family):
            memory = encode(family, family.features(sounds), sources)
            cache = family.start(memory, targets=targets)
            logits.append(family.step(torch.full((4, 2), 5), cache).float())
        tags = split_support.LANGUAGES
        neighbour = tags[(tags.index("de") + 1) % len(tags)]  # every second pair is of the other group
        elsewhere = [Target(language=neighbour, source=source) for source in sources]
        memory = encode(model, model.features(sounds), sources)
        other = model.start(memory, targets=elsewhere)
        wrong = model.step(torch.full((4, 2), 5), other)
    assert relative_error(logits[1], logits[0]) < NEAR[precision]
    assert relative_error(wrong, logits[0]) > 2 * NEAR[precision]  # another branch would show


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_decoder_with_scaled_embeddings_relu_and_key_biases(precision: Precision) -> None:
    torch.manual_seed(0)
    decoder = FixedPositionDecoder(
        vocabulary_size=40,
        positions=sinusoids(22, 32)[2:],
        num_heads=4,
        num_layers=2,
        feed_forward_width=48,
        scaled=True,
        dropout=0.0,
    ).eval()
    engine, tokens = TorchDecoder(decoder, precision), torch.randint(0, 40, (2, 7))
    memory = memory_for(decoder, 2, 9)
    with torch.inference_mode():
        caches = [d.start(memory.to(d.positions.dtype), None) for d in (decoder, engine)]
        plain, ours = (
            torch.cat([d.step(tokens[:, :5], c), d.step(tokens[:, 5:], c)], dim=1)
            for d, c in zip((decoder, engine), caches, strict=True)
        )
    assert relative_error(ours.float(), plain) < NEAR[precision]
    assert engine.step_bytes > 0

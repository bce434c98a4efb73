"""Linear layers and LSTMs in the kernels, and the streaming transducers that consist of them."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.engines.choice import engine_for
from sprachbund.engines.extension import native
from sprachbund.engines.native_linear import (
    KeptProduct,
    NativeLinear,
    NativeLSTM,
    is_plain_lstm,
    linears,
    pack_linears,
    replace_lstms,
)
from sprachbund.engines.options import NativeOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.nn.quantized import BlockLinear, quantize_blocks
from tests.engines.support import (
    needs_native,
    on_every_set,
    product_reference,
    quantize_reference,
    quantized_linear,
    randomised,
    relative_error,
)
from tests.models.contract import BUILDERS
from tests.streaming.test_by_frames import tiny_transducer

pytestmark = needs_native
LANGUAGE_MODELS = sorted(
    name
    for name in BUILDERS
    if name in ("speech LLM", "Voxtral", "Granite Speech", "Qwen3-ASR", "language model")
)
ENCODERS = (
    "Parakeet CTC",
    "Parakeet TDT",
    "Canary",
    "Cohere ASR",
    "seamless",
    "Voxtral",
    "Granite Speech",
    "Qwen3-ASR",
)


def one(layer: nn.Module, isa: str, threads: int, weights: Any = "int8") -> NativeLinear:
    arrays = {
        k.removeprefix("only."): a for k, a in pack_linears(nn.ModuleDict({"only": layer}), weights).items()
    }
    whole: Any = layer
    return NativeLinear(arrays, (whole.out_features, whole.in_features), native().Team(threads), isa)


@on_every_set
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [(33, 50), (16, 48), (100, 7)])
def test_a_linear_layer_is_its_product_in_8_bits(isa: str, threads: int, sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(sizes[1], sizes[0])
    made = one(layer, isa, threads)
    for rows in (1, 3, 20):
        x = torch.randn(2, rows, sizes[1])
        wanted = product_reference(*quantize_reference(x.flatten(0, 1)), layer.weight, layer.bias)
        torch.testing.assert_close(made(x), wanted.float().view(2, rows, -1), rtol=1e-5, atol=1e-5)
    assert made(torch.zeros(0, sizes[1])).shape == (0, sizes[0])


@on_every_set
def test_codes_of_4_bits_are_computed_as_they_are_stored(isa: str) -> None:
    torch.manual_seed(0)
    stored = BlockLinear(quantize_blocks(torch.randn(40, 70)), torch.randn(40))
    made = one(stored, isa, 1)
    assert made.numbers == "int4"
    x = torch.randn(5, 70)
    values, scale = quantize_reference(x)
    rounded = (values.double() - 128) * scale[:, None].double()
    wanted = rounded @ stored.weight.double().T + stored.bias.double()
    # The kernel multiplies the sums of 32 inputs by scales in bf16, as they are stored, and adds up in fp32.
    torch.testing.assert_close(made(x).double(), wanted, rtol=1e-4, atol=1e-3)


def in_four_bits(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, BlockLinear(quantize_blocks(child.weight.detach()), child.bias))


@pytest.mark.parametrize("stored", ["fp32", "4 bits"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_streaming_transducer_gives_its_states_chunk_by_chunk(stored: str, threads: int) -> None:
    family: Any = tiny_transducer()
    if stored == "4 bits":
        in_four_bits(family.encoder)
        in_four_bits(family.transducer.joint)
    engine = engine_for(family, "native", threads=threads)
    numbers = "int4" if stored == "4 bits" else "int8"
    assert engine.parts["encoder"].startswith(f"native, {numbers}")
    assert f"native, {numbers}" in engine.parts["transducer"]
    packed: Any = engine.family
    features = family.features(
        [np.random.default_rng(n).standard_normal(n).astype(np.float32) * 0.1 for n in (31000, 20000)]
    )
    with torch.inference_mode():
        wanted, result = family.encode(features), packed.encode(features)
        assert result.num_frames.tolist() == wanted.num_frames.tolist()
        for b, count in enumerate(wanted.num_frames.tolist()):
            assert relative_error(result.states[b, :count], wanted.states[b, :count]) < 0.05
        encoder, tier = packed.encoder, packed.encoder.tier
        state, size, parts = encoder.start(1, tier), 8 * tier.chunk, []
        mel = torch.cat([torch.zeros(1, 7, features.values.shape[2]), features.values[:1]], 1)
        for chunk in mel.split(size, 1):
            num = torch.tensor([chunk.shape[1]])
            padded = nn.functional.pad(chunk, (0, 0, 0, size - chunk.shape[1]))
            states, valid, state = encoder.stream(padded, num, state, tier)
            parts.append(states[:, : int(valid)])
        streamed = torch.cat(parts, 1)[0]
    # Attention adds up another number of hidden frames; what is rounded to 8 bits behind it may move by a step.
    assert relative_error(streamed, result.states[0, : len(streamed)]) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_that_with_its_products_in_8_bits(name: str, tmp_path: Path) -> None:
    """Every linear layer gives the product of what it reads, in 8 bits, and all else is the encoder's own."""
    family: Any = BUILDERS[name].build(tmp_path)
    chosen = engine_for(family, "native", compare=False)
    assert "native, int8" in chosen.parts["encoder"]
    assert "torch, fp32" in chosen.parts["encoder"], "its convolutions are not the kernels'"
    theirs: Any = chosen.family
    known, seen = linears(family.encoder), set[str]()

    def watch(place: str) -> None:
        def compare(_: nn.Module, given: tuple[torch.Tensor], made: torch.Tensor) -> None:
            seen.add(place)
            layer: Any = known[place]
            wanted = product_reference(
                *quantize_reference(given[0].flatten(0, -2)), layer.weight, layer.bias
            ).view_as(made)
            torch.testing.assert_close(made, wanted.float(), rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))

        theirs.encoder.get_submodule(place).register_forward_hook(compare)

    samples = [np.random.default_rng(n).standard_normal(n).astype(np.float32) * 0.1 for n in (31000, 20000)]
    with torch.inference_mode():
        features = family.features(samples)
        wanted, plain = family.encode(features), theirs.encode(features)
        for place in known:
            watch(place)
        result = theirs.encode(features)
    assert torch.equal(result.states, plain.states)
    assert seen == known.keys()
    counts = [None, None] if wanted.num_frames is None else wanted.num_frames.tolist()
    for b, count in enumerate(
        counts
    ):  # the models are as narrow as 16 numbers, and each may be off by a 254th
        assert relative_error(result.states[b, :count], wanted.states[b, :count]) < 0.2


@pytest.mark.parametrize("name", ["Parakeet TDT", "Parakeet CTC", "streaming transducer"])
def test_models_that_write_by_frames_are_tried(name: str, tmp_path: Path) -> None:
    chosen = engine_for(BUILDERS[name].build(tmp_path))
    assert chosen.name in ("torch", "native")
    assert "fastest of 2" in chosen.why


def test_a_decoder_without_a_matrix_of_its_own_is_whole_in_the_kernels(tmp_path: Path) -> None:
    parts = {
        name: engine_for(BUILDERS[name].build(tmp_path / name), "native", compare=False).parts
        for name in ("Canary", "Cohere ASR")
    }
    assert parts["Canary"]["decoder"] == "native, int8"
    assert parts["Cohere ASR"]["decoder"] == "torch, fp32"


def test_a_transducer_writes_and_stands_for_all_kinds_of_calls() -> None:
    family: Any = tiny_transducer()
    samples = [np.random.default_rng(7).standard_normal(2 * SAMPLE_RATE).astype(np.float32) * 0.1]
    targets = [[Target(language=language) for language in sorted({t for _, t in family.pairs()})[:1]]]
    rows = []
    for each in (family, engine_for(family, "native").family, engine_for(family, "native-int4").family):
        memory = each.encode(each.features(samples))
        rows.append(search(each, memory, targets, DecodingOptions(max_tokens=20))[0][0])
    assert all(row.finished == rows[0].finished for row in rows)
    assert len({type(row) for row in rows}) == 1


def test_weights_stored_in_blocks_choose_the_kernels() -> None:
    family: Any = tiny_transducer()
    in_four_bits(family.encoder)
    chosen = engine_for(family)
    assert chosen.name == "native"
    assert "unpack" in chosen.why
    assert chosen.parts["encoder"].startswith("native, int4")
    with pytest.raises(SprachbundError, match="memory='int8' is for decoders with a memory of their own"):
        engine_for(family, "native", options=NativeOptions(memory="int8"))


def test_a_product_is_kept_for_the_same_input_alone() -> None:
    calls = []

    class Counted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return 2 * x

    kept = KeptProduct(Counted())
    for x in (torch.ones(3, 2), torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(4, 2)):
        assert torch.equal(kept(x), 2 * x)
    assert calls == [3, 3, 4]


def test_a_product_is_kept_for_each_of_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, own, other = KeptProduct(nn.Identity()), torch.ones(3, 2), torch.zeros(4, 2)
    kept(own)

    def equal_then_overtaken(known: Tensor, x: Tensor) -> bool:
        """In the moment between the comparison and the return, another thread asks for its own."""
        monkeypatch.undo()
        thread = threading.Thread(target=kept, args=(other,))
        thread.start()
        thread.join()
        return torch.equal(known, x)

    monkeypatch.setattr("sprachbund.engines.native_linear.torch.equal", equal_then_overtaken)
    assert kept(own) is own


def logits_of(llm: Any) -> torch.Tensor:
    """Of rows with prefixes of different lengths, and of two steps behind them."""
    drawn = torch.Generator().manual_seed(0)
    prefixes = [torch.randn(n, llm.width, generator=drawn) * 0.3 for n in (3, 7)]
    tokens = torch.randint(0, llm.vocabulary_size, (2, 4), generator=drawn)
    with torch.inference_mode():
        cache = llm.start(prefixes, capacity=8, num_memories=2)
        return torch.cat([llm.step(part, cache) for part in tokens.split((3, 1), 1)], 1)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("engine", ["native", "native-int4"])
def test_a_language_model_has_its_logits(name: str, engine: Any, tmp_path: Path) -> None:
    """Within what rounding inputs and weights to 8 bits costs; in 4 bits beside weights that are rounded to them."""
    family: Any = BUILDERS[name].build(tmp_path)
    chosen = engine_for(family, engine, compare=False)
    assert chosen.parts["llm"].startswith(f"native, {'int4' if engine == 'native-int4' else 'int8'}")
    result = logits_of(chosen.family.capabilities.decoder)
    if engine == "native-int4":
        with torch.no_grad():
            for layer, part in linears(family.capabilities.decoder).items():
                if not layer.endswith("lm_head"):  # which stays in 8 bits
                    part.weight.copy_(quantize_blocks(part.weight).dequantize())
    wanted = logits_of(family.capabilities.decoder)
    assert relative_error(result, wanted) < 0.05


# LSTMs.


def by_hand(lstm: nn.LSTM, x: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
    """Outputs (B, U, P) with every product rounded to 8 bits."""
    for layer in range(lstm.num_layers):
        h, c, outputs = hidden[layer], cell[layer], []
        for t in range(x.shape[1]):
            gates = sum(
                quantized_linear(
                    part, getattr(lstm, f"weight_{kind}_l{layer}"), getattr(lstm, f"bias_{kind}_l{layer}")
                )
                for part, kind in ((x[:, t], "ih"), (h, "hh"))
            )
            assert isinstance(gates, Tensor)
            into, keep, new, out = gates.chunk(4, -1)
            c = keep.sigmoid() * c + into.sigmoid() * new.tanh()
            h = out.sigmoid() * c.tanh()
            outputs.append(h)
        x = torch.stack(outputs, 1)
    return x


@on_every_set
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("inputs", "width", "layers"), [(20, 24, 2), (32, 32, 1)])
def test_an_lstm_is_its_products_in_8_bits(
    isa: str, threads: int, inputs: int, width: int, layers: int
) -> None:
    lstm = randomised(nn.LSTM(inputs, width, layers, batch_first=True), 0)
    result = NativeLSTM(lstm, native().Team(threads), isa)
    x, hidden, cell = torch.randn(3, 7, inputs), torch.randn(layers, 3, width), torch.randn(layers, 3, width)
    outputs, (last, cells) = result(x, (hidden, cell))
    assert relative_error(outputs, by_hand(lstm, x, hidden, cell)) < 0.01
    wanted, (h, c) = lstm(x, (hidden, cell))
    assert max(relative_error(*pair) for pair in ((outputs, wanted), (last, h), (cells, c))) < 0.03
    nothing = torch.zeros_like(hidden)
    assert torch.equal(result(x)[0], result(x, (nothing, nothing))[0])
    # Position by position, row by row: what a step gives is the same.
    for row in range(3):
        state = hidden[:, row : row + 1], cell[:, row : row + 1]
        for t in range(7):
            output, state = result(x[row : row + 1, t : t + 1], state)
            assert torch.equal(output[0, 0], outputs[row, t])


@pytest.mark.parametrize(
    "other",
    [
        nn.GRU(8, 8, batch_first=True),
        nn.LSTM(8, 8),
        nn.LSTM(8, 8, batch_first=True, bias=False),
        nn.LSTM(8, 8, batch_first=True, bidirectional=True),
        nn.LSTM(8, 8, batch_first=True, proj_size=4),
    ],
)
def test_other_kinds_of_lstms_stay_with_torch(other: nn.Module) -> None:
    assert not is_plain_lstm(other)
    holder = nn.ModuleDict({"inner": nn.ModuleList([other])})
    replace_lstms(holder, native().Team(1), "portable")
    assert holder["inner"][0] is other  # type: ignore[index]


@pytest.mark.parametrize("name", ["Parakeet TDT", "streaming transducer"])
def test_a_transducer_writes_with_lstms_of_the_kernels_and_its_model_keeps_its_own(
    name: str, tmp_path: Path
) -> None:
    family: Any = BUILDERS[name].build(tmp_path)
    chosen: Any = engine_for(family, "native", threads=1, compare=False)
    able = chosen.family.capabilities
    transducer = able.transducer if able.streaming is None else able.streaming.transducer
    assert isinstance(transducer.prediction.lstm, NativeLSTM)
    assert any(type(part) is nn.LSTM for part in family.modules())
    samples = [np.random.default_rng(7).standard_normal(32000).astype(np.float32) * 0.1]
    source = sorted(family.source_languages)[0]
    with torch.inference_mode():
        memory = chosen.family.encode(chosen.family.features(samples))
        [[row]] = search(
            chosen.family, memory, [[Target(language=source, source=source)]], DecodingOptions(max_tokens=9)
        )
    assert len(row.tokens) <= 9

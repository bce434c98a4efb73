"""Streaming encoders that run from packed weights: saved and loaded as they are, smaller, and damage told."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sprachbund.compression.options import KQuantOptions
from sprachbund.compression.quantization import bits_per_weight, quantize_encoder, quantize_linears
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer
from sprachbund.models.io import load, save
from sprachbund.models.weights import packed_linears
from sprachbund.nn.quantized import linear_names, num_weights, packed_layers
from sprachbund.nn.streaming_conformer import LEAD, SUBSAMPLING, StreamingEncoder
from tests.streaming.test_by_frames import tiny_transducer

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def plain() -> Conformer:
    return tiny_transducer()


def quantized(plain: Conformer, **options: object) -> Conformer:
    model = copy.deepcopy(plain)
    quantize_encoder(model, KQuantOptions(**options))  # type: ignore[arg-type]
    return model


def num_bytes(module: nn.Module) -> int:
    return sum(x.nbytes for x in (*module.parameters(), *module.buffers()))


def mel() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 300, 40, generator=generator), torch.tensor([300, 211])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3])
@torch.no_grad()
def test_it_is_saved_and_loaded_as_it_is_held(plain, tmp_path, bits, symmetric):
    model = quantized(plain, bits=bits, symmetric=symmetric)
    save(model, tmp_path)
    again = load(tmp_path)
    assert isinstance(again, Conformer)
    assert json.loads((tmp_path / "config.json").read_text())["packed"] == {
        "bits": bits,
        "block": 32,
        "symmetric": symmetric,
    }
    assert packed_linears(again) == packed_linears(model)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(
        torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items()
    )
    assert torch.equal(model.encoder(*mel())[0], again.encoder(*mel())[0])


def test_encoder_layers_change_and_nothing_else(plain):
    """A layer takes bits / 8 of a byte for each weight, 16 bits of scale and bits of zero point for each 32."""
    model = copy.deepcopy(plain)
    names = set(linear_names(plain, "encoder"))
    layers = quantize_encoder(model, KQuantOptions(bits=4))
    assert {layer.name for layer in layers} == set(packed_layers(model)) == names
    assert num_weights(model) == num_weights(plain)
    for name, value in plain.state_dict().items():
        if name.rpartition(".")[0] not in names or name.endswith(".bias"):
            assert torch.equal(value, model.state_dict()[name])
    wide = copy.deepcopy(plain.encoder.layers[0].feed_forward_in)
    wide.expand = nn.Linear(64, 16)  # two whole blocks, an even number of zero points
    assert bits_per_weight(quantize_linears(wide, ["expand"])) == 4 + (16 + 4) / 32


def test_less_is_held_than_in_single_precision():
    wide = tiny_transducer(width=128, feed_forward_width=512)
    matrices = [m.weight.nbytes for n, m in wide.encoder.named_modules() if isinstance(m, nn.Linear)]
    before = num_bytes(wide.encoder)
    quantize_encoder(wide)
    assert before - num_bytes(wide.encoder) == sum(matrices) - sum(
        layer.packed.num_bytes for layer in packed_layers(wide).values()
    )
    assert num_bytes(wide.encoder) < before / 5
    assert not any(p.numel() > 128 * 64 for p in wide.encoder.layers.parameters())


@torch.no_grad()
def test_large_layers_are_unpacked_in_parts(monkeypatch):
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(40, 33)), torch.randn(3, 40)
    quantize_linears(model, ["0"])
    whole = model(x)
    monkeypatch.setattr("sprachbund.nn.quantized._AT_ONCE", 40 * 5)
    assert torch.allclose(model(x), whole, atol=1e-6)


@torch.no_grad()
def test_a_quantized_stream_is_its_own_whole(plain):
    model = quantized(plain, bits=3)
    encoder = model.encoder
    assert isinstance(encoder, StreamingEncoder)
    values, num_mel = mel()
    for tier in encoder.tiers:
        whole, num_frames = encoder(values, num_mel, tier=tier)
        state, size = encoder.start(1, tier), tier.chunk * SUBSAMPLING
        led, length = nn.functional.pad(values[1:, :211], (0, 0, LEAD, 0)), 211 + LEAD
        for begin in range(0, length, size):
            piece = led[:, begin : begin + size]
            count = torch.tensor([min(size, length - begin)])
            piece = nn.functional.pad(piece[:, : int(count)], (0, 0, 0, size - int(count)))
            result, n, state = encoder.stream(piece, count, state, tier)
            first = begin // SUBSAMPLING
            assert torch.allclose(result[0, : n[0]], whole[1, first : first + int(n[0])], atol=1e-4)
        assert first + int(n[0]) == num_frames[1]


def test_constant_blocks_are_safe(plain):
    model = copy.deepcopy(plain)
    for name in linear_names(model, "encoder"):
        nn.init.constant_(model.get_submodule(name).weight, 0.25)
    quantize_encoder(model)
    for layer in packed_layers(model).values():
        assert torch.allclose(layer.weight, torch.full_like(layer.weight, 0.25), atol=2e-3)


def test_what_cannot_be_is_said(plain, tmp_path):
    model = quantized(plain)
    with pytest.raises(SprachbundError, match="4 bits already"):
        quantize_encoder(model)
    with pytest.raises(SprachbundError, match="does not stream"):
        quantize_encoder(load())  # type: ignore[arg-type]
    mixed = copy.deepcopy(plain)
    first, *others = linear_names(mixed, "encoder")
    quantize_linears(mixed, [first], KQuantOptions(bits=8))
    quantize_linears(mixed, others)
    with pytest.raises(SprachbundError, match="different ways"):
        save(mixed, tmp_path / "mixed")


def test_damage_is_reported(plain, tmp_path):
    save(quantized(plain), tmp_path)
    whole, config = load_file(tmp_path / WEIGHTS), (tmp_path / "config.json").read_text()
    name = "encoder.layers.0.attention.query"

    def damaged(**changes: Tensor | None) -> None:
        values = {**whole, **{f"{name}.{what}": value for what, value in changes.items()}}
        save_file({n: v for n, v in values.items() if v is not None}, tmp_path / WEIGHTS)

    damaged(codes=whole[f"{name}.codes"][:, :3].contiguous())
    with pytest.raises(
        SprachbundError, match=r"query.codes has shape \(32, 3\), config.json asks for \(32, 16\)"
    ):
        load(tmp_path)
    damaged(scales=whole[f"{name}.scales"] * float("nan"))
    with pytest.raises(SprachbundError, match="scales that are not above 0"):
        load(tmp_path)
    damaged(scales=whole[f"{name}.scales"].float())
    with pytest.raises(SprachbundError, match=r"query.scales is torch.float32, not torch.bfloat16"):
        load(tmp_path)
    damaged(codes=None)
    with pytest.raises(SprachbundError, match="lacks 1 weights"):
        load(tmp_path)
    damaged()
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-1000])
    with pytest.raises(SprachbundError, match="not a whole safetensors file"):
        load(tmp_path)
    damaged()
    (tmp_path / "config.json").write_text(config.replace('"bits": 4', '"bits": 5'))
    with pytest.raises(SprachbundError, match="codes has shape"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"bits": 4', '"bits": 7'))
    with pytest.raises(SprachbundError, match="packed: "):
        load(tmp_path)

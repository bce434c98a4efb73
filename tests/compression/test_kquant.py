"""Linear layers exchanged for packed ones: which, how large, and that they compute what they hold."""

import copy

import pytest
import torch
from torch import nn

from sprachbund.compression.options import KQuantOptions
from sprachbund.compression.quantization import bits_per_weight, quantize_linears, weighted_error
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer
from sprachbund.models.io import load
from sprachbund.nn.quantized import BlockLinear, linear_names, quantize_blocks


@pytest.fixture(scope="module")
def bundled() -> Conformer:
    model = load()
    assert isinstance(model, Conformer)
    return model


@pytest.mark.slow
def test_only_the_named_weights_change(bundled: Conformer) -> None:
    """Encoder layers, as in the paper: decoder, embeddings, convolutions, norms and biases stay to the bit."""
    model = copy.deepcopy(bundled)
    names = linear_names(model, "encoder")
    assert names
    assert set(names) < set(linear_names(model))
    layers = quantize_linears(model, names)
    assert [layer.name for layer in layers] == list(names)
    before, after = bundled.state_dict(), model.state_dict()
    weights = {f"{name}.weight" for name in names}
    assert before.keys() - after.keys() == weights
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - weights)
    assert {name.rsplit(".", 1)[0] for name in after.keys() - before.keys()} == set(names)


def test_it_computes_what_it_holds_in_less_memory(bundled: Conformer) -> None:
    model, x = copy.deepcopy(bundled), torch.randn(3, 5, 256)
    name = linear_names(model, "decoder")[0]
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    (layer,) = quantize_linears(model, [name], KQuantOptions(bits=5, symmetric=True))
    packed = model.get_submodule(name)
    assert isinstance(packed, BlockLinear)
    weight = quantize_blocks(linear.weight, 5, symmetric=True).dequantize()
    assert torch.equal(packed(x), nn.functional.linear(x, weight, linear.bias))
    held = sum(b.nbytes for n, b in packed.named_buffers() if n != "bias")
    assert held == layer.num_bytes
    assert 8 * held / linear.weight.numel() == bits_per_weight([layer]) == 5.5


def test_it_is_saved_and_loaded_as_it_is_held() -> None:
    models = [nn.Sequential(nn.Linear(40, 7), nn.Linear(7, 3, bias=False)) for _ in range(2)]
    for model in models:
        quantize_linears(model, ["0", "1"])
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(4, 40)
    assert torch.equal(models[0](x), models[1](x))
    assert not list(models[0].parameters())


def test_errors_are_counted_by_block_and_relative_to_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 9))
    weight = model[0].weight.detach().clone()
    packed = quantize_blocks(weight)
    result = weighted_error(weight, packed)
    assert result.shape == (9, 3)
    last, near = weight[4, 64:].double(), packed.dequantize()[4, 64:].double()
    a = last.square().mean().sqrt() + last.abs()
    torch.testing.assert_close(result[4, 2].double(), (a * (last - near).square()).sum())
    (layer,) = quantize_linears(model, ["0"])
    assert 0 < layer.weighted_error < 0.02
    (silent,) = quantize_linears(nn.Sequential(nn.Linear(8, 2)).apply(_silence), ["0"])
    assert silent.weighted_error == 0


def _silence(part: nn.Module) -> None:
    if isinstance(part, nn.Linear):
        nn.init.zeros_(part.weight)


def test_names_and_options_that_cannot_be() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(8, 2), "norm": nn.LayerNorm(2)})
    with pytest.raises(
        SprachbundError, match="'encodr' is no linear layer of the model; did you mean 'encoder'"
    ):
        quantize_linears(model, ["encodr"])
    with pytest.raises(SprachbundError, match="'norm' is no linear layer"):
        quantize_linears(model, ["norm"])
    with pytest.raises(SprachbundError, match="in 2 bits are not offered"):
        quantize_linears(model, ["encoder"], KQuantOptions(bits=2))
    assert isinstance(model["encoder"], nn.Linear)
    assert linear_names(model, "enc") == ()

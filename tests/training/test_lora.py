"""Adapters are what the paper says they are, and merging them changes nothing."""

import copy

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.training.lora import add_lora, merge_lora, rank_for
from tests.training.made import make_model

LAYERS = ("encoder.layers.*.feed_forward_out.*",)


def test_product_of_the_adapters_is_added() -> None:
    """W x + 2 B A x, arXiv 2106.09685, equation 3 with alpha = 2 r."""
    model = make_model()
    plain = copy.deepcopy(model.encoder.layers[0].feed_forward_out.expand)
    add_lora(model, LAYERS, 3)
    layer = model.encoder.layers[0].feed_forward_out.expand
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape == (3, 32)
    torch.nn.init.normal_(b)
    x = torch.randn(5, 32)
    torch.testing.assert_close(layer(x), plain(x) + 2 * x @ a.T @ b.T)


def test_a_scale_is_not_rounded() -> None:
    model = make_model()
    add_lora(model, LAYERS, 1, scale=0.3)
    assert model.encoder.layers[0].feed_forward_out.expand.scaling["default"] == pytest.approx(0.3)


def test_only_adapters_are_trained_and_their_number_is_reported() -> None:
    model = make_model()
    trained = add_lora(model, LAYERS, 3)
    moving = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name and "feed_forward_out" in name for name in moving)
    assert trained == 2 * 2 * 3 * (32 + 32)  # layers, linear layers in each, rank, widths


def test_merged_model_is_the_same_function_and_a_plain_model() -> None:
    model = make_model().eval()
    names = list(model.state_dict())
    add_lora(model, LAYERS, 3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    features, num_frames = torch.randn(2, 64, 80), torch.tensor([64, 40])
    with torch.no_grad():
        before = model.encoder(features, num_frames)[0]
        merge_lora(model)
        after = model.encoder(features, num_frames)[0]
        untouched = make_model().eval().encoder(features, num_frames)[0]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after, untouched, atol=1e-3)
    assert list(model.state_dict()) == names


def test_rank_is_chosen_by_size() -> None:
    model = make_model()
    for wanted in (256, 1000, 5000):
        rank = rank_for(model, LAYERS, wanted)
        assert abs(rank * 256 - wanted) <= 128 or rank == 1  # 256 parameters a rank


def test_pattern_without_a_layer_is_named() -> None:
    with pytest.raises(SprachbundError, match="matches no linear layer"):
        add_lora(make_model(), ("encoder.nothing",), 2)


def test_some_weights_are_trained_beside_the_adapters() -> None:
    model = make_model()
    trained = add_lora(model, LAYERS, 3, scale=1.0, whole=("decoder.norm.*", "language_head.weight"))
    moving = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert moving == {"decoder.norm.weight", "decoder.norm.bias", "language_head.weight"}
    assert trained == 2 * 2 * 3 * (32 + 32) + 2 * 32 + 2 * 32
    with pytest.raises(SprachbundError, match=r"'decoder\.nothing' matches no parameter"):
        add_lora(make_model(), LAYERS, 3, whole=("decoder.nothing",))

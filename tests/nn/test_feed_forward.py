import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sprachbund.nn.feed_forward import ACTIVATIONS, Branch, FeedForward, Route


@pytest.mark.parametrize(
    ("activation", "reference"), [("silu", nn.SiLU()), ("gelu", nn.GELU()), ("relu", nn.ReLU())]
)
def test_it_is_norm_linear_activation_linear(activation, reference) -> None:
    torch.manual_seed(0)
    ours = FeedForward(8, 12, activation)
    theirs = nn.Sequential(ours.norm, ours.expand, reference, ours.contract)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x, Route(source=torch.tensor([0, 1]))), theirs(x))
    assert activation in ACTIVATIONS


def test_names_and_order_of_parameters_are_those_of_saved_models() -> None:
    names = [name for name, _ in FeedForward(8, 12).named_parameters()]
    parts = ("norm", "expand", "contract")
    assert names == [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]


def test_a_branch_is_a_feed_forward_without_its_norm() -> None:
    whole, branch = FeedForward(8, 12), Branch(8, 12, "silu")
    branch.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("norm")})
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(whole(x), branch(F.layer_norm(x, (8,), whole.norm.weight, whole.norm.bias)))


def test_a_route_takes_rows_of_what_it_has() -> None:
    route = Route(source=torch.tensor([4, 5, 6])).take(torch.tensor([2, 0, 0]))
    assert route.source is not None
    assert route.source.tolist() == [6, 4, 4]
    assert route.target is None

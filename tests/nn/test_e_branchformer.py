import numpy as np
import pytest
import torch
from scipy.special import erf, expit, softmax

from sprachbund.nn.token_encoder import EBranchformerLayer

WIDTH, HEADS, HIDDEN, KERNEL = 8, 2, 12, 3
Weights = dict[str, np.ndarray]


def make() -> EBranchformerLayer:
    torch.manual_seed(0)
    layer = EBranchformerLayer(WIDTH, HEADS, HIDDEN, KERNEL, dropout=0.0).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return layer


def norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def feed_forward(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    inner = linear(norm(x, w, f"{name}.norm"), w, f"{name}.expand")
    return linear(inner * expit(inner), w, f"{name}.contract")


def depthwise(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """Frame by frame, tap by tap."""
    kernel, out = w[f"{name}.weight"][:, 0], np.zeros_like(x)
    for t in range(len(x)):
        for tap in range(KERNEL):
            if 0 <= (place := t + tap - KERNEL // 2) < len(x):
                out[t] += kernel[:, tap] * x[place]
        out[t] += w[f"{name}.bias"]
    return out


def attention(x: np.ndarray, w: Weights) -> np.ndarray:
    query, key, value = (linear(x, w, f"attention.{part}") for part in ("query", "key", "value"))
    size, heads = WIDTH // HEADS, []
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        heads.append(softmax(query[:, own] @ key[:, own].T / np.sqrt(size), axis=-1) @ value[:, own])
    return linear(np.concatenate(heads, -1), w, "attention.out")


def by_hand(x: np.ndarray, w: Weights) -> np.ndarray:
    """The equations of section 2 of the paper, for one utterance (T, D)."""
    x = x + 0.5 * feed_forward(x, w, "feed_forward_in")
    far = attention(norm(x, w, "attention_norm"), w)
    inner = linear(norm(x, w, "gated.norm"), w, "gated.expand")
    inner = 0.5 * inner * (1 + erf(inner / np.sqrt(2)))
    kept, gate = inner[:, : HIDDEN // 2], inner[:, HIDDEN // 2 :]
    near = linear(
        kept * depthwise(norm(gate, w, "gated.gate_norm"), w, "gated.depthwise"), w, "gated.contract"
    )
    both = np.concatenate([far, near], -1)
    x = x + linear(both + depthwise(both, w, "merge_depthwise"), w, "merge")
    return norm(x + 0.5 * feed_forward(x, w, "feed_forward_out"), w, "norm")


def test_is_the_equations() -> None:
    layer, x = make(), torch.randn(7, WIDTH, dtype=torch.float64)
    weights = {name: value.numpy() for name, value in layer.state_dict().items()}
    result = layer(x[None], torch.ones(1, 7, dtype=torch.bool))[0]
    np.testing.assert_allclose(result.detach().numpy(), by_hand(x.numpy(), weights), atol=1e-10)


def test_padding_changes_nothing() -> None:
    layer, x = make(), torch.randn(2, 9, WIDTH, dtype=torch.float64)
    valid = torch.arange(9) < torch.tensor([9, 5])[:, None]
    both = layer(x, valid)
    alone = layer(x[1:, :5], torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(both[1, :5], alone[0])


def test_gate_starts_open() -> None:
    torch.manual_seed(0)
    gated = EBranchformerLayer(WIDTH, HEADS, HIDDEN, KERNEL, dropout=0.0).gated
    x = torch.randn(1, 5, WIDTH)
    kept = torch.nn.functional.gelu(gated.expand(gated.norm(x))).chunk(2, -1)[0]
    torch.testing.assert_close(gated(x, torch.ones(1, 5, 1)), gated.contract(kept), atol=1e-4, rtol=0)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="4 is even"):
        EBranchformerLayer(WIDTH, HEADS, HIDDEN, 4, dropout=0.0)

import pytest
import torch
from torch import nn

from sprachbund.nn.attention import MultiHeadAttention, attend
from sprachbund.nn.encoder import EncoderLayer


def torch_attention(ours: MultiHeadAttention, width: int) -> nn.MultiheadAttention:
    """PyTorch's own module with the same weights."""
    theirs = nn.MultiheadAttention(width, ours.num_heads, batch_first=True)
    parts = (ours.query, ours.key, ours.value)
    biases = [part.bias if part.bias is not None else torch.zeros(width) for part in parts]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat(biases))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    return theirs.eval()


@pytest.mark.parametrize("key_bias", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_equals_torch_attention_with_padding(key_bias: bool, grad: bool) -> None:
    torch.manual_seed(0)
    ours = MultiHeadAttention(32, 4, key_bias=key_bias)
    theirs = torch_attention(ours, 32)
    x, memory = torch.randn(3, 5, 32), torch.randn(3, 7, 32)
    allowed = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    with torch.set_grad_enabled(grad):
        mixed = ours(x, *ours.keys_values(memory), allowed[:, None, None, :])
        expected, _ = theirs(x, memory, memory, key_padding_mask=~allowed, need_weights=False)
    assert torch.allclose(mixed, expected, atol=1e-5)


def test_weights_equal_those_of_torch_and_do_not_change_the_output() -> None:
    torch.manual_seed(1)
    ours = MultiHeadAttention(32, 4)
    x, memory = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    weights: list[torch.Tensor] = []
    with torch.no_grad():
        with_weights = ours(x, *ours.keys_values(memory), None, weights)
        without = ours(x, *ours.keys_values(memory))
        _, expected = torch_attention(ours, 32)(x, memory, memory, average_attn_weights=False)
    assert torch.allclose(with_weights, without, atol=1e-6)
    assert torch.allclose(weights[0], expected, atol=1e-6)


def test_several_rows_read_one_memory_without_copies() -> None:
    torch.manual_seed(2)
    attention = MultiHeadAttention(32, 4, memory_width=16)
    rows, memories = torch.randn(6, 3, 32), torch.randn(2, 7, 16)
    allowed = (torch.arange(7) < torch.tensor([5, 7])[:, None])[:, None, None, :]
    grouped = attention(rows, *attention.keys_values(memories), allowed)
    repeated = memories.repeat_interleave(3, dim=0)
    alone = attention(rows, *attention.keys_values(repeated), allowed.repeat_interleave(3, dim=0))
    assert torch.allclose(grouped, alone, atol=1e-6)


def test_fused_and_written_out_attention_agree() -> None:
    query, key, value = (torch.randn(2, 3, 5, 8) for _ in range(3))
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    with torch.no_grad():
        fused = attend(query, key, value, allowed)
    assert torch.allclose(attend(query, key, value, allowed), fused, atol=1e-6)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 30 is not a multiple of 4 heads"):
        MultiHeadAttention(30, 4)


def test_encoder_layer_equals_torch() -> None:
    torch.manual_seed(3)
    ours = EncoderLayer(32, 4, 48).eval()
    theirs = nn.TransformerEncoderLayer(32, 4, 48, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    theirs.self_attn = torch_attention(ours.self_attention, 32)
    for mine, name in (
        ("self_norm", "norm1"),
        ("feed_forward.norm", "norm2"),
        ("feed_forward.expand", "linear1"),
        ("feed_forward.contract", "linear2"),
    ):
        getattr(theirs, name).load_state_dict(ours.get_submodule(mine).state_dict())
    x, padding = torch.randn(2, 6, 32), torch.arange(6) >= torch.tensor([6, 3])[:, None]
    expected = theirs(x, src_key_padding_mask=padding)
    assert torch.allclose(ours(x, ~padding[:, None, None, :])[~padding], expected[~padding], atol=1e-5)

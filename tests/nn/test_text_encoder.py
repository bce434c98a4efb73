import pytest
import torch
from torch import nn

from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.encoder import TextEncoder

V, D, S = 30, 32, 12


def make_decoder(num_layers: int = 4) -> TextDecoder:
    torch.manual_seed(0)
    decoder = TextDecoder(vocabulary_size=V, max_tokens=S, width=D, num_heads=4, num_layers=num_layers)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms too
    return decoder.eval()


DECODER = make_decoder()
TOKENS = torch.randint(0, V, (3, 9), generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([9, 5, 1])


def torch_layer(layer: nn.Module) -> nn.TransformerEncoderLayer:
    """The layer of torch with the same weights."""
    theirs = nn.TransformerEncoderLayer(D, 4, 4 * D, 0.0, "gelu", norm_first=True, batch_first=True).eval()
    own = {name: value.detach() for name, value in layer.named_parameters()}
    query = own["self_attention.query.weight"], own["self_attention.query.bias"]
    value = own["self_attention.value.weight"], own["self_attention.value.bias"]
    key = own["self_attention.key.weight"]
    weights = {
        "self_attn.in_proj_weight": torch.cat([query[0], key, value[0]]),
        "self_attn.in_proj_bias": torch.cat([query[1], torch.zeros(D), value[1]]),
        "self_attn.out_proj.weight": own["self_attention.out.weight"],
        "self_attn.out_proj.bias": own["self_attention.out.bias"],
    }
    for name, ours in (
        ("linear1", "feed_forward.expand"),
        ("linear2", "feed_forward.contract"),
        ("norm1", "self_norm"),
        ("norm2", "feed_forward.norm"),
    ):
        weights |= {f"{name}.{kind}": own[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    theirs.load_state_dict(weights)
    return theirs


@torch.no_grad()
def test_it_is_torchs_encoder_without_a_causal_mask() -> None:
    encoder = TextEncoder.like(DECODER, 3).eval()
    states = encoder(DECODER.embedding, TOKENS, LENGTHS)
    x = DECODER.embedding(TOKENS) + encoder.positions[:9]
    hidden = torch.arange(9) >= LENGTHS[:, None]
    for layer in encoder.layers:
        x = torch_layer(layer)(x, src_key_padding_mask=hidden)
    wanted = encoder.norm(x)
    for row, length in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(states[row, :length], wanted[row, :length], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_does_not_matter_and_later_tokens_do() -> None:
    encoder = TextEncoder.like(DECODER, 2).eval()
    other = TOKENS.clone()
    other[1, 5:] = 7
    before, after = (encoder(DECODER.embedding, tokens, LENGTHS) for tokens in (TOKENS, other))
    assert torch.equal(before[1, :5], after[1, :5])
    other[0, 8] = (other[0, 8] + 1) % V
    assert not torch.allclose(encoder(DECODER.embedding, other, LENGTHS)[0, 0], before[0, 0])


def test_it_starts_from_self_attention_and_feed_forward_of_the_first_layers() -> None:
    encoder = TextEncoder.like(DECODER, 3)
    for own, theirs in zip(encoder.layers, DECODER.layers, strict=False):
        for part in ("self_norm", "self_attention", "feed_forward"):
            wanted = getattr(theirs, part).state_dict()
            weights = getattr(own, part).state_dict()
            assert weights.keys() == wanted.keys()
            assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert torch.equal(encoder.positions, DECODER.positions)
    assert encoder.positions.data_ptr() != DECODER.positions.data_ptr()


@torch.no_grad()
def test_its_states_have_the_width_of_the_decoders_memory() -> None:
    wide = TextDecoder(vocabulary_size=V, max_tokens=S, width=D, num_heads=4, num_layers=2, memory_width=20)
    encoder = TextEncoder.like(wide, 1).eval()
    states = encoder(wide.embedding, TOKENS, LENGTHS)
    assert states.shape == (3, 9, 20)
    assert wide(TOKENS, states, LENGTHS).shape == (3, 9, D)
    assert not list(TextEncoder.like(DECODER, 1).to_memory.parameters())


@pytest.mark.parametrize("layers", [0, 5])
def test_layers_that_are_not_there_are_refused(layers: int) -> None:
    with pytest.raises(
        ValueError, match=f"{layers} text layers cannot start from 4 decoder layers; give 1 to 4"
    ):
        TextEncoder.like(DECODER, layers)

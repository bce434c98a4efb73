import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sprachbund.nn.decoder import DecoderCache, TextDecoder
from tests.nn.test_attention import torch_attention

V, D, U = 50, 32, 24


def make_decoder(**options: int) -> TextDecoder:
    torch.manual_seed(0)
    sizes = {"vocabulary_size": V, "max_tokens": U, "width": D, "num_heads": 4, "num_layers": 2}
    return TextDecoder(**{**sizes, **options}).eval()


DECODER = make_decoder()
MEMORY = torch.randn(2, 9, D, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, V, (2, 12), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.no_grad():
        yield


def whole(
    tokens: torch.Tensor, memory: torch.Tensor = MEMORY, num_frames: torch.Tensor | None = None
) -> torch.Tensor:
    return DECODER.logits(DECODER(tokens, memory, num_frames))


def steps(cache: DecoderCache, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    return torch.cat([DECODER.step(chunk, cache) for chunk in tokens.split(sizes, dim=1)], dim=1)


def test_whole_rows_equal_torch_decoder_layers() -> None:
    num_frames = torch.tensor([9, 4])
    hidden = DECODER.embedding(TOKENS) + DECODER.positions[:12]
    causal = torch.ones(12, 12, dtype=torch.bool).triu(1)
    padding = torch.arange(9) >= num_frames[:, None]
    names = {
        "self_norm": "norm1",
        "cross_norm": "norm2",
        "feed_forward.norm": "norm3",
        "feed_forward.expand": "linear1",
        "feed_forward.contract": "linear2",
    }
    for layer in DECODER.layers:
        theirs = nn.TransformerDecoderLayer(
            D, 4, 4 * D, 0.0, "gelu", batch_first=True, norm_first=True
        ).eval()
        theirs.self_attn = torch_attention(layer.self_attention, D)
        theirs.multihead_attn = torch_attention(layer.cross_attention, D)
        for ours, name in names.items():
            getattr(theirs, name).load_state_dict(layer.get_submodule(ours).state_dict())
        hidden = theirs(hidden, MEMORY, tgt_mask=causal, memory_key_padding_mask=padding)
    assert torch.allclose(DECODER(TOKENS, MEMORY, num_frames), hidden, atol=1e-5)
    expected = DECODER.norm(hidden) @ DECODER.embedding.weight.T
    assert torch.allclose(whole(TOKENS, MEMORY, num_frames), expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6).filter(lambda s: sum(s) <= 12))
def test_any_cut_into_steps_equals_the_whole_row(sizes: list[int]) -> None:
    tokens = TOKENS[:, : sum(sizes)]
    cache = DECODER.start(MEMORY, None)
    assert torch.allclose(steps(cache, tokens, sizes), whole(tokens), atol=1e-5)
    assert cache.lengths.tolist() == [sum(sizes)] * 2


def test_rows_of_different_length_after_rewind() -> None:
    cache = DECODER.start(MEMORY, None)
    DECODER.step(TOKENS[:, :8], cache)  # draft tokens, of which row 0 keeps three tokens and row 1 seven
    cache.rewind(torch.tensor([3, 7]))
    more = torch.tensor([[1, 2], [3, 4]])
    logits = DECODER.step(more, cache)
    for row, kept in enumerate((3, 7)):
        tokens = torch.cat([TOKENS[row : row + 1, :kept], more[row : row + 1]], dim=1)
        assert torch.allclose(logits[row], whole(tokens, MEMORY[row : row + 1])[0, -2:], atol=1e-5)
    assert cache.lengths.tolist() == [5, 9]


def test_what_is_left_when_the_longest_row_goes_knows_how_full_it_is() -> None:
    cache = DECODER.start(MEMORY, None)
    DECODER.step(TOKENS[:, :8], cache)
    cache.rewind(torch.tensor([3, 7]))
    assert (cache.used, cache.even) == (7, False)
    cache.keep(torch.tensor([0]))
    assert (cache.used, cache.even) == (3, True)
    logits = steps(cache, TOKENS[:1, 3:6], [1, 2])
    assert torch.allclose(logits, whole(TOKENS[:1, :6], MEMORY[:1])[:, 3:], atol=1e-5)
    assert (cache.used, cache.even) == (6, True)


def test_several_rows_per_memory_equal_repeated_memories() -> None:
    tokens = torch.randint(0, V, (6, 4))
    num_frames = torch.tensor([9, 5])
    cache = DECODER.start(MEMORY, num_frames, rows_per_memory=3)
    expected = whole(tokens, MEMORY.repeat_interleave(3, 0), num_frames.repeat_interleave(3))
    assert torch.allclose(steps(cache, tokens, [3, 1]), expected, atol=1e-5)


def test_padding_of_a_memory_is_not_seen() -> None:
    num_frames = torch.tensor([9, 5])
    together = DECODER.step(TOKENS, DECODER.start(MEMORY, num_frames))
    alone = DECODER.step(TOKENS[1:], DECODER.start(MEMORY[1:, :5], None))
    assert torch.allclose(together[1:], alone, atol=1e-5)


def test_reorder_and_keep_carry_rows_along() -> None:
    tokens = torch.randint(0, V, (6, 5))
    num_frames = torch.tensor([9, 5])
    cache = DECODER.start(MEMORY, num_frames, rows_per_memory=3)
    DECODER.step(tokens, cache)
    cache.rewind(torch.tensor([5, 4, 3, 5, 4, 3]))
    beam = torch.tensor([2, 0, 0, 5, 5, 4])
    cache.reorder(beam)
    assert cache.lengths.tolist() == [3, 5, 5, 3, 3, 4]
    cache.keep(torch.tensor([1]))  # the first utterance is finished
    assert cache.num_rows == 3
    more = torch.tensor([[7], [8], [9]])
    logits = DECODER.step(more, cache)
    for i, (row, kept) in enumerate([(5, 3), (5, 3), (4, 4)]):
        expected = whole(
            torch.cat([tokens[row : row + 1, :kept], more[i : i + 1]], 1), MEMORY[1:], num_frames[1:]
        )
        assert torch.allclose(logits[i, -1], expected[0, -1], atol=1e-5)


def test_a_full_cache_says_so_and_stays_usable() -> None:
    cache = DECODER.start(MEMORY, None, capacity=6)
    DECODER.step(TOKENS[:, :5], cache)
    with pytest.raises(ValueError, match="7 tokens do not fit into a cache of 6"):
        DECODER.step(TOKENS[:, 5:7], cache)
    assert torch.allclose(DECODER.step(TOKENS[:, 5:6], cache), whole(TOKENS[:, :6])[:, 5:], atol=1e-5)
    assert DECODER.start(MEMORY, None, capacity=1000).capacity == U


def test_weights_are_given_per_layer_and_sum_to_one_over_valid_frames() -> None:
    weights: list[torch.Tensor] = []
    cache = DECODER.start(MEMORY, torch.tensor([9, 4]), rows_per_memory=2)
    DECODER.step(torch.randint(0, V, (4, 3)), cache, weights)
    assert [w.shape for w in weights] == [(2, 4, 2 * 3, 9)] * 2
    assert torch.allclose(weights[0].sum(-1), torch.ones(2, 4, 6))
    assert weights[1][1, :, :, 4:].max() == 0


def test_memory_of_another_width_and_gradients() -> None:
    decoder = make_decoder(memory_width=16, feed_forward_width=20)
    memory = torch.randn(2, 7, 16, requires_grad=True)
    with torch.enable_grad():
        decoder.logits(decoder(TOKENS, memory, torch.tensor([7, 3]))).square().mean().backward()
    assert memory.grad is not None
    assert memory.grad[1, 3:].abs().max() == 0  # padding takes no part
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in decoder.parameters())

import pytest
import torch
from torch.nn import functional as F

from sprachbund.nn.decoder import DecoderCache, TextDecoder
from sprachbund.nn.drafts import Parasite, ParasiteShape, read_visible

V, D, U, L = 40, 32, 20, 4


def make_decoder(num_layers: int = L) -> TextDecoder:
    torch.manual_seed(0)
    return TextDecoder(vocabulary_size=V, max_tokens=U, width=D, num_heads=4, num_layers=num_layers).eval()


def make_parasite(num_blocks: int = 2, **options: bool) -> Parasite:
    torch.manual_seed(1)
    return Parasite(ParasiteShape.of(DECODER, num_blocks=num_blocks, **options)).eval()


DECODER = make_decoder()
MEMORY = torch.randn(2, 7, D, generator=torch.Generator().manual_seed(2))
FRAMES = torch.tensor([7, 4])
TOKENS = torch.randint(0, V, (4, 9), generator=torch.Generator().manual_seed(3))  # two rows a memory


def filled(tokens: torch.Tensor) -> DecoderCache:
    cache = DECODER.start(MEMORY, FRAMES, rows_per_memory=2, capacity=tokens.shape[1])
    if tokens.shape[1]:
        DECODER.step(tokens, cache)
    return cache


@torch.no_grad()
def drafted(parasite: Parasite, length: int, cache: DecoderCache | None = None) -> torch.Tensor:
    """Logits for the token after the first `length`, as at decoding: all but the newest are in the cache."""
    cache = cache or filled(TOKENS)
    cache.rewind(torch.full((4,), length - 1))
    cross = parasite.remember(MEMORY, cache.memory_allowed)
    h = parasite.predict(DECODER, TOKENS[:, length - 1], torch.full((4,), length - 1), cache, cross)
    return parasite.logits(DECODER, h)[:, 0]


@torch.no_grad()
def at_once(parasite: Parasite) -> torch.Tensor:
    cache = filled(TOKENS)
    cross = parasite.remember(MEMORY, cache.memory_allowed)
    h = parasite.teacher_forced(
        DECODER, TOKENS, cache, cross, valid=torch.ones_like(TOKENS, dtype=torch.bool)
    )
    return parasite.logits(DECODER, h)


@pytest.mark.parametrize("options", [{}, {"pre_ln_q": True}])
def test_drafting_step_by_step_equals_teacher_forcing(options: dict[str, bool]) -> None:
    parasite = make_parasite(**options)
    whole = at_once(parasite)
    for length in range(1, 10):
        torch.testing.assert_close(drafted(parasite, length), whole[:, length - 1], atol=1e-5, rtol=1e-4)


def test_rows_of_different_lengths_see_each_their_own() -> None:
    parasite, cache = make_parasite(), filled(TOKENS)
    lengths = torch.tensor([3, 9, 1, 6])
    cache.rewind(lengths - 1)
    cross = parasite.remember(MEMORY, cache.memory_allowed)
    newest = TOKENS.gather(1, lengths[:, None] - 1)[:, 0]
    with torch.no_grad():
        h = parasite.predict(DECODER, newest, lengths - 1, cache, cross)
        logits = parasite.logits(DECODER, h)[:, 0]
    whole = at_once(parasite)
    torch.testing.assert_close(logits, whole[torch.arange(4), lengths - 1], atol=1e-5, rtol=1e-4)


def test_keys_from_the_drafted_position_on_do_not_matter() -> None:
    parasite = make_parasite()
    cache = filled(TOKENS)
    before = drafted(parasite, 5, cache)
    for kept in (*cache.self_keys, *cache.self_values):
        kept[:, :, 4:] = 1e4  # positions 4 and later; the newest token stands at 4
    assert torch.equal(drafted(parasite, 5, cache), before)
    cache.self_keys[0][:, :, 3] += 1.0
    assert not torch.allclose(drafted(parasite, 5, cache), before)


@pytest.mark.parametrize("layer", range(L))
def test_a_block_reads_the_layers_of_its_group_alone(layer: int) -> None:
    parasite = make_parasite()
    assert [list(group) for group in parasite.shape.groups] == [[0, 1], [2, 3]]
    seen: list[torch.Tensor] = []
    hook = parasite.blocks[0].register_forward_hook(lambda module, given, out: seen.append(out))
    cache = filled(TOKENS)
    drafted(parasite, 6, cache)
    cache.self_values[layer] += 3.0
    drafted(parasite, 6, cache)
    hook.remove()
    assert torch.equal(seen[0], seen[1]) == (layer >= 2)


def test_a_query_without_keys_reads_zero_and_its_gradient_is_finite() -> None:
    torch.manual_seed(0)
    query, keys, values = (torch.randn(1, 2, n, 8, requires_grad=True) for n in (3, 4, 4))
    visible = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    read = read_visible(query, keys, values, visible)
    assert torch.equal(read[:, :, 0], torch.zeros(1, 2, 8))
    for row in (1, 2):
        theirs = F.scaled_dot_product_attention(
            query[:, :, row : row + 1], keys[:, :, visible[row]], values[:, :, visible[row]]
        )
        torch.testing.assert_close(read[:, :, row : row + 1], theirs)
    read.square().sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in (query, keys, values) if x.grad is not None)
    assert torch.equal(query.grad[:, :, 0], torch.zeros(1, 2, 8))


def test_gradients_reach_the_decoder_unless_detached() -> None:
    parasite = make_parasite()
    for detach in (True, False):
        decoder = make_decoder()
        cache = decoder.start(MEMORY, FRAMES, rows_per_memory=2, capacity=9)
        decoder.step(TOKENS, cache)
        cross = parasite.remember(MEMORY, cache.memory_allowed)
        h = parasite.teacher_forced(
            decoder, TOKENS, cache, cross, valid=torch.ones_like(TOKENS, dtype=torch.bool), detach_kv=detach
        )
        parasite.norm(h).square().sum().backward()
        assert (decoder.layers[1].self_attention.value.weight.grad is None) == detach
    assert all(bool(p.grad.isfinite().all()) for p in parasite.parameters() if p.grad is not None)


def test_size_at_the_published_shape() -> None:
    with torch.device("meta"):
        decoder = TextDecoder(vocabulary_size=51865, max_tokens=448, width=1024, num_heads=16, num_layers=12)
        parasite = Parasite(ParasiteShape.of(decoder, num_blocks=3))
    matrices = sum(p.numel() for p in parasite.parameters() if p.ndim > 1)
    assert matrices == 14 * 3 * 1024**2
    assert round(sum(p.numel() for p in parasite.parameters()) / 1e6, 1) == 44.1  # with biases and norms
    assert [list(group) for group in parasite.shape.groups] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_it_starts_from_the_last_layer_of_each_group() -> None:
    parasite = make_parasite()
    parasite.start_from(DECODER)
    for block, layer in zip(parasite.blocks, (DECODER.layers[1], DECODER.layers[3]), strict=True):
        assert torch.equal(block.query.weight, layer.self_attention.query.weight)
        assert torch.equal(block.cross_attention.value.weight, layer.cross_attention.value.weight)
        assert torch.equal(block.feed_forward.contract.weight, layer.feed_forward.contract.weight)
    assert torch.equal(parasite.norm.weight, DECODER.norm.weight)


@pytest.mark.parametrize(("blocks", "layers"), [(1, 3), (2, 3), (3, 7), (5, 5)])
def test_groups_are_contiguous_and_cover_every_layer_once(blocks: int, layers: int) -> None:
    groups = ParasiteShape.of(make_decoder(layers), num_blocks=blocks).groups
    assert [i for group in groups for i in group] == list(range(layers))
    sizes = [len(group) for group in groups]
    assert len(sizes) == blocks
    assert max(sizes) - min(sizes) <= 1


def test_more_blocks_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="5 blocks cannot share 4 layers"):
        ParasiteShape.of(DECODER, num_blocks=5)

import pytest
import torch

from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.drafts import MedusaHeads, MedusaShape


def test_heads_cost_what_a_parasite_costs() -> None:
    for heads in (1, 2, 3):
        shape = MedusaShape.like_parasite(width=1024, num_heads=heads, parasite_blocks=3)
        with torch.device("meta"):
            weights = sum(p.numel() for p in MedusaHeads(shape).parameters() if p.ndim > 1)
        assert weights == 14 * 3 * 1024**2


@pytest.mark.parametrize("tied", [True, False])
def test_untrained_heads_say_what_the_decoder_says(tied: bool) -> None:
    heads = MedusaHeads(MedusaShape(width=8, num_heads=3, num_blocks=2))
    decoder = TextDecoder(vocabulary_size=11, max_tokens=4, width=8, num_heads=2, num_layers=1, tied=tied)
    hidden = torch.randn(4, 5, 8)
    logits = heads.logits(decoder, hidden)
    assert logits.shape == (3, 4, 5, 11)
    torch.testing.assert_close(logits, (hidden @ decoder.output_matrix.T).expand(3, -1, -1, -1))


def test_heads_have_weights_of_their_own() -> None:
    heads = MedusaHeads(MedusaShape(width=8, num_heads=2, num_blocks=1))
    with torch.no_grad():
        heads.stacks[1][0].linear.weight.copy_(torch.eye(8))
    hidden = torch.randn(3, 8)
    first, second = heads(hidden)
    assert torch.equal(first, hidden)
    torch.testing.assert_close(second, hidden + hidden * hidden.sigmoid())


@pytest.mark.parametrize(("heads", "blocks"), [(0, 1), (1, 0)])
def test_nothing_is_no_head(heads: int, blocks: int) -> None:
    with pytest.raises(ValueError, match="give at least one of each"):
        MedusaShape(width=8, num_heads=heads, num_blocks=blocks)

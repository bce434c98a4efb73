from typing import Any

import pytest
import torch

from sprachbund.nn.token_encoder import BLOCKS, Block, TokenEncoder, time_mask


def make(**changes: Any) -> TokenEncoder:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "vocabulary_size": 20,
        "embedding_width": 12,
        "width": 8,
        "num_heads": 2,
        "num_lower": 2,
        "num_upper": 1,
        "feed_forward_width": 16,
        "kernel_size": 3,
    }
    return TokenEncoder(**{**values, **changes}).double().eval()


@pytest.mark.parametrize("block", list(BLOCKS))
@pytest.mark.parametrize("strides", [0, 1, 2])
def test_a_row_gives_the_same_alone_and_among_others(block: Block, strides: int) -> None:
    encoder = make(block=block, strides=strides)
    tokens = torch.randint(0, 20, (3, 11))
    lengths = torch.tensor([11, 6, 1])
    encoded = encoder(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder(tokens[row : row + 1, :length], torch.tensor([length]))
        num_frames = int(alone.num_frames)
        assert num_frames == int(encoded.num_frames[row]) == -(-length // 2**strides)
        torch.testing.assert_close(encoded.states[row, :num_frames], alone.states[0])
        torch.testing.assert_close(encoded.inner[row, :num_frames], alone.inner[0])


def test_the_source_is_read_off_below_the_upper_layers() -> None:
    encoder = make()
    tokens, lengths = torch.randint(0, 20, (1, 8)), torch.tensor([8])
    before = encoder(tokens, lengths)
    with torch.no_grad():
        for parameter in encoder.layers[2].parameters():
            parameter += 1.0
    after = encoder(tokens, lengths)
    torch.testing.assert_close(before.inner, after.inner)
    assert (before.states - after.states).abs().max() > 0.01
    whole = make(num_upper=0)(tokens, lengths)
    torch.testing.assert_close(whole.inner, whole.states)


def test_masks_hide_stretches_in_training_only() -> None:
    encoder = make(time_masks=2, max_mask_share=0.5)
    tokens, lengths = torch.randint(0, 20, (2, 10)), torch.tensor([10, 8])
    torch.testing.assert_close(encoder(tokens, lengths).states, encoder(tokens, lengths).states)
    encoder.train()
    torch.manual_seed(1)
    assert (encoder(tokens, lengths).states - encoder(tokens, lengths).states).abs().max() > 0.01


def test_masks_are_stretches_within_the_row_and_no_longer_than_allowed() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(1, 30, (500,))
    hidden = time_mask(lengths, 30, 1, 0.25)
    assert not (hidden & (torch.arange(30) >= lengths[:, None])).any()
    widths = hidden.sum(1)
    assert (widths <= (0.25 * lengths).floor()).all()
    assert (hidden.int().diff(dim=1, prepend=torch.zeros(500, 1, dtype=torch.int)) == 1).sum(1).max() == 1
    long = widths[lengths >= 20]
    assert set(long.tolist()) >= {0, 1, 2, 3, 4, 5}

"""Log-mel in blocks against log-mel of the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from sprachbund.audio.features import LogMelStream, log_mel


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(0, 6000),
    blocks=st.lists(st.integers(1, 2500), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_blocks_of_any_size_give_the_frames_of_the_whole(num_samples, blocks, seed):
    samples = np.random.default_rng(seed).normal(size=num_samples).astype(np.float32) * 0.1
    stream, result, begin, turn = LogMelStream(40), [], 0, 0
    while begin < num_samples:
        size = blocks[turn % len(blocks)]
        result.append(stream.push(samples[begin : begin + size]))
        begin, turn = begin + size, turn + 1
    result.append(stream.finish())
    whole = log_mel(samples, 40, normalise="fixed").T
    assert torch.cat(result).shape == whole.shape
    assert torch.allclose(torch.cat(result), whole, atol=1e-5)


def test_a_frame_comes_as_soon_as_its_samples_are_there():
    stream = LogMelStream()
    assert len(stream.push(np.zeros(199, np.float32))) == 0
    assert len(stream.push(np.zeros(1, np.float32))) == 1
    assert len(stream.push(np.zeros(159, np.float32))) == 0
    assert len(stream.push(np.zeros(1, np.float32))) == 1


@pytest.mark.parametrize("normalise", ["fixed", "voxtral", "nemo"])
def test_a_stream_that_was_saved_and_moved_goes_on_as_if_it_had_stayed(normalise):
    """By the bytes that another process would read, at every place that a block may end."""
    samples = np.random.default_rng(0).normal(size=900).astype(np.float32) * 0.1
    stayed = LogMelStream(40, normalise)
    moved = LogMelStream(40, normalise)
    for block in np.split(samples, [1, 161, 555]):
        moved = LogMelStream.from_tensors(load(save(moved.tensors())), 40, normalise)
        assert torch.equal(moved.push(block), stayed.push(block))
    assert torch.equal(moved.finish(), stayed.finish())
    with pytest.raises(ValueError, match="before: too much or missing"):
        LogMelStream.from_tensors({"held": torch.zeros(200)})

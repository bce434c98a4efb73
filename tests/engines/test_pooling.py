"""Averaged frames are the averages of what is valid, and whoever did not ask for them has all frames."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.words import align
from sprachbund.engines.choice import pool, pooled
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.calibration import mean_states
from sprachbund.models.whisper import Whisper
from tests.decoding.tiny_family import TinyFamily
from tests.engines.test_engine import CLIPS
from tests.models.whisper_support import TINY, make_transformers_model, transplanted


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 12), size=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_means_are_those_by_hand(length: int, size: int, seed: int, data: Any) -> None:
    lengths = data.draw(st.lists(st.integers(1, length), min_size=1, max_size=3))
    states = torch.randn(len(lengths), length, 3, generator=torch.Generator().manual_seed(seed))
    result, counts = pool(states, torch.tensor(lengths), size)
    assert counts is not None
    for row, own, count, valid in zip(result, states, counts.tolist(), lengths, strict=True):
        expected = [own[i : min(i + size, valid)].mean(0) for i in range(0, valid, size)]
        assert count == len(expected)
        torch.testing.assert_close(row[:count], torch.stack(expected))
    whole, none = pool(states, None, size)
    assert none is None
    torch.testing.assert_close(whole, pool(states, torch.full((len(lengths),), length), size)[0])


@pytest.mark.parametrize("real_length", [False, True])
def test_a_pooled_model_decodes_and_aligns(real_length: bool) -> None:
    model = transplanted(make_transformers_model(TINY), TINY, real_length=real_length)
    family: Any = pooled(model, 2)
    target = [[Target(language="en", source="de")]] * len(CLIPS)
    with torch.inference_mode():
        memory, whole = (f.encode(f.features(CLIPS)) for f in (family, model))
        assert memory.states.shape[1] == (whole.states.shape[1] + 1) // 2
        result = search(family, memory, target, DecodingOptions(max_tokens=5))
        aligned = align(
            family, memory, target, [[list(b"abc")]] * len(CLIPS), [len(c) / 16_000 for c in CLIPS]
        )
    assert all(len(row[0].tokens) <= 5 for row in result)
    for row, clip in zip(aligned, CLIPS, strict=True):
        assert max(row[0].starts_s) <= len(clip) / 16_000
    assert model.capabilities.alignment.frame_s == family.capabilities.alignment.frame_s / 2


def test_a_calibration_reads_the_averages_of_the_speech_alone() -> None:
    """Whisper fills speech up to a window, of which `frame_s` says how much is speech."""
    model = transplanted(make_transformers_model(TINY), TINY, real_length=False)
    family, clips = pooled(model, 2), [np.ones(SAMPLE_RATE // 10, np.float32), *CLIPS]
    with torch.inference_mode():
        memory = family.encode(family.features(clips))
    assert memory.num_frames is None
    [mean, *_] = mean_states(memory.states, None, [len(clip) / SAMPLE_RATE for clip in clips], family.frame_s)
    spoken = math.ceil(0.1 / model.frame_s / 2)
    assert 2 * spoken <= memory.states.shape[1], "so that twice as many would be others"
    torch.testing.assert_close(mean, memory.states[0, :spoken].mean(0))


@pytest.mark.parametrize("part", ["transducer", "ctc", "joint_ctc", "reads_prefix"])
def test_frames_that_more_than_a_decoder_reads_are_not_averaged(part: str) -> None:
    family = TinyFamily()
    family.capabilities = replace(family.capabilities, **{part: family})
    assert pooled(family, 1) is family
    with pytest.raises(
        SprachbundError, match=r"pool_frames is 2, and the .* of tiny .* whisper, conformer or seamless"
    ):
        pooled(family, 2)


def test_sizes_out_of_range_are_refused() -> None:
    model = Whisper.shape(TINY)
    assert pooled(model, 1) is model
    for size in (0, 5):
        with pytest.raises(SprachbundError, match=f"pool_frames is {size}; give 1, which keeps all, to 4"):
            pooled(model, size)

"""The published method of SimulStreaming, as the benchmark of the policies has it, against its rules one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.simulstreaming import LAST_BORDER_S, SimulStreaming, looked_at, write_talk
from scipy.ndimage import median_filter

import sprachbund
from sprachbund.audio.load import load
from sprachbund.streaming.live import SimulatedClock

RECORDING = Path(__file__).parents[2] / "examples" / "recordings" / "en.wav"


@pytest.fixture(scope="module")
def model():
    return sprachbund.load("bundled")


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return load(RECORDING, 0.0, 12.0)


def written(model, sound: np.ndarray, **settings: float):
    return write_talk(
        model.family, sound, "de", SimulStreaming(**settings), talk="talk", clock=SimulatedClock()
    )


def test_the_frame_is_the_most_attended_one_of_standardised_filtered_mean_heads() -> None:
    weights = torch.rand(3, 6, 40, generator=torch.Generator().manual_seed(0)).softmax(-1)
    values = weights.double().numpy()
    standard = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    smooth = median_filter(standard, (1, 1, 7), mode="nearest").mean(0)
    for num_frames in (10, 25, 40):
        assert looked_at(weights.double(), num_frames, 7) == smooth[-1, :num_frames].argmax()
    assert looked_at(weights.double(), 40, 1) == standard.mean(0)[-1].argmax()


def test_without_updates_the_text_begins_as_that_of_a_recording(model, sound: np.ndarray) -> None:
    """Every stretch is then decoded once, at its end, up to the first token that looks at the last 0.08 s."""
    log = written(model, sound, chunk_s=100.0)
    whole = model.translate(sound, "de", sample_rate=16_000)
    assert LAST_BORDER_S == 0.08
    assert len(log.emissions) == len(whole.segments)
    for emission, segment in zip(log.emissions, whole.segments, strict=True):
        assert segment.text.startswith(emission.text)
    assert sum(e.text == s.text for e, s in zip(log.emissions, whole.segments, strict=True)) >= 2


def test_text_stands_and_comes_later_with_a_wider_border(model, sound: np.ndarray) -> None:
    at_the_end = written(model, sound, chunk_s=100.0)
    ends_s = {one.audio_s for one in at_the_end.emissions}
    early = []
    for border_s in (0.2, 1.0, 100.0):
        log = written(model, sound, chunk_s=0.5, border_s=border_s)
        for before, after in zip(log.shown, log.shown[1:], strict=False):
            assert after.text.startswith(before.text)
        # Texts differ, so what is counted are words that stand before their stretch is over.
        early.append(sum(len(one.text.split()) for one in log.emissions if one.audio_s not in ends_s))
    assert early[0] > early[1] > early[2] == 0
    assert [one.audio_s for one in log.emissions] == [one.audio_s for one in at_the_end.emissions]

"""Sound at 24 kHz beside soxr's, and in pieces."""

import numpy as np
import pytest
import soxr
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.upsampling import CODEC_RATE, DELAY_S, UpsampledStream


def test_it_is_soxrs_sound_and_comes_late() -> None:
    """Tones up to 7 kHz: far from the edges, both are within 70 dB of each other."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tones = (50.0, 440.0, 1234.5, 3333.0, 5000.0, 7000.0)
    sound = sum(np.sin(2 * np.pi * hertz * time + hertz) for hertz in tones).astype(np.float32)
    ours = UpsampledStream().push(sound).numpy()
    theirs = soxr.resample(sound, SAMPLE_RATE, CODEC_RATE, quality="VHQ")
    assert len(ours) == len(theirs) == CODEC_RATE
    late = round(DELAY_S * CODEC_RATE)
    difference = ours[late:][2000:-2000] - theirs[:-late][2000:-2000]
    assert np.sqrt(np.mean(difference**2)) < 10 ** (-70 / 20) * np.sqrt(np.mean(theirs**2))


@pytest.mark.parametrize("seed", range(4))
def test_pieces_give_what_the_whole_gives(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sound = generator.standard_normal(5001).astype(np.float32)
    whole = UpsampledStream().push(sound)
    assert len(whole) == 7500  # the odd sample waits
    stream, pieces, begin = UpsampledStream(), [], 0
    while begin < len(sound):
        size = int(generator.choice([1, 2, 3, 160, 1279]))
        pieces.append(stream.push(sound[begin : begin + size]))
        begin += size
    # The same sums in double precision; one in a million may be rounded up here and down there.
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=2**-23, atol=1e-12)


def test_silence_and_nothing() -> None:
    stream = UpsampledStream()
    assert len(stream.push(np.zeros(0, np.float32))) == 0
    assert torch.equal(stream.push(np.zeros(100, np.float32)), torch.zeros(150))
    loud = UpsampledStream().push(np.ones(400, np.float32))[200:]
    torch.testing.assert_close(loud, torch.ones(400), rtol=0, atol=1e-4)

import numpy as np
import pytest

from sprachbund.audio.spans import VoiceActivity
from sprachbund.evaluation.no_speech import KINDS, no_speech_set


@pytest.fixture(scope="module")
def sounds():
    return no_speech_set(per_kind=3)


@pytest.mark.slow
def test_the_seed_alone_decides(sounds):
    again = no_speech_set(per_kind=3)
    assert all((a.samples == b.samples).all() for a, b in zip(sounds, again, strict=True))
    assert any(
        (a.samples[:100] != b.samples[:100]).any() for a, b in zip(sounds, no_speech_set(1, 3), strict=True)
    )


@pytest.mark.slow
def test_a_larger_set_begins_with_the_smaller(sounds):
    larger = {sound.id: sound for sound in no_speech_set(per_kind=4)}
    assert all((larger[sound.id].samples == sound.samples).all() for sound in sounds)


def test_kinds_lengths_and_levels(sounds):
    assert {sound.kind for sound in sounds} == set(KINDS) >= {"silence", "hum", "tones", "babble"}
    for sound in sounds:
        assert 0.5 <= sound.duration_s <= 10
        assert sound.samples.dtype == np.float32
        assert np.abs(sound.samples).max() <= 1


def test_babble_has_the_pitch_of_voices_and_no_speech(sounds):
    activity = VoiceActivity()
    for sound in sounds:
        if sound.kind == "babble":
            spectrum = np.abs(np.fft.rfft(sound.samples)) ** 2
            hz = np.fft.rfftfreq(len(sound.samples), 1 / 16_000)
            assert spectrum[(hz > 80) & (hz < 4000)].sum() > 0.9 * spectrum.sum()
            assert activity.probabilities(sound.samples).mean() < 0.5

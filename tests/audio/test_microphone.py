"""A recording in the place of a device: the same thread, queue and resampling."""

import io

import numpy as np
import pytest
import soundfile

from sprachbund.audio.microphone import Microphone, raw_blocks
from sprachbund.errors import SprachbundError


def test_sound_comes_whole_and_at_the_right_rate(tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100 * 2) / 44_100).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone], 1) * 0.5, 44_100)
    heard = np.concatenate(list(Microphone(str(tmp_path / "a.wav"), system="wav")))
    assert len(heard) == pytest.approx(32_000, abs=200)
    spectrum = np.abs(np.fft.rfft(heard[4000:20000]))
    assert spectrum.argmax() * 16_000 / 16_000 == pytest.approx(440, abs=2)
    assert heard.max() == pytest.approx(0.5, abs=0.02)


def test_a_microphone_that_is_stopped_ends(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000 * 60, np.float32), 16_000)
    microphone = Microphone(str(tmp_path / "a.wav"), system="wav")
    microphone.stop()
    assert sum(len(block) for block in microphone) < 16_000 * 60


def test_no_microphone_is_an_error_with_a_way_out():
    with pytest.raises(SprachbundError, match=r"nobody.*--microphone.*listen -"):
        Microphone("nobody", system="wav")


def test_raw_sound_is_whole_whatever_the_pipe_gives():
    samples = np.arange(-16000, 16000, dtype="<i2")

    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.rest = samples.tobytes()

        def read(self, size: int = -1) -> bytes:
            size = min(size, 777)
            piece, self.rest = self.rest[:size], self.rest[size:]
            return piece

    found = np.concatenate(list(raw_blocks(Slow())))
    assert np.array_equal(found, samples.astype(np.float32) / 32768)

"""Sound that holds no speech which anybody could understand, out of speech and by arithmetic."""

from collections.abc import Sequence

import numpy as np

from sprachbund.audio.augment import NO_SPEECH_KINDS, no_speech
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.util.arrays import Samples

_WINDOW = SAMPLE_RATE // 50


def backwards(speech: Samples) -> Samples:
    """Played from its end."""
    return speech[::-1].copy()


def babble(recordings: Sequence[Samples], voices: int, duration_s: float, seed: int) -> Samples:
    """As many voices at once, each as loud as the others and without pauses.

    Args:
        recordings: of speech.
        voices: parts of recordings, drawn with repetition.
        duration_s: of the sound.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    mixed = np.zeros(round(duration_s * SAMPLE_RATE), np.float32)
    for _ in range(voices):
        speech = _without_pauses(recordings[int(rng.integers(len(recordings)))])
        part = np.resize(np.roll(speech, -int(rng.integers(len(speech)))), len(mixed))
        mixed += part / np.sqrt(np.mean(part**2))
    return (0.5 * mixed / np.abs(mixed).max()).astype(np.float32)


def _without_pauses(speech: Samples) -> Samples:
    windows = speech[: len(speech) // _WINDOW * _WINDOW].reshape(-1, _WINDOW)
    loudness = np.sqrt(np.mean(windows**2, axis=1))
    return np.ascontiguousarray(windows[loudness > 0.02 * loudness.max()].reshape(-1))


def music(duration_s: float) -> Samples:
    """A tune of plucked strings over chords, with a drum on every beat."""
    beat = SAMPLE_RATE // 2
    mixed = np.zeros(round(duration_s * SAMPLE_RATE) + 4 * beat, np.float64)
    rng = np.random.default_rng(5)
    for index in range(round(duration_s * 2)):
        tune = 440.0 * 2 ** ([0, 2, 4, 7, 9, 7, 4, 2][index % 8] / 12)
        chord = [220.0 * 2 ** (step / 12) for step in ((0, 4, 7), (5, 9, 12))[index // 4 % 2]]
        time_s = np.arange(2 * beat) / SAMPLE_RATE
        note = sum(
            np.sin(2 * np.pi * pitch * partial * time_s) / partial**2
            for pitch in (tune, *chord)
            for partial in (1, 2, 3, 4)
        )
        mixed[index * beat :][: 2 * beat] += note * np.exp(-3 * time_s)
        mixed[index * beat :][:800] += rng.standard_normal(800) * np.exp(-np.arange(800) / 150)
    return (0.5 * mixed / np.abs(mixed).max()).astype(np.float32)[: round(duration_s * SAMPLE_RATE)]


def noises(duration_s: float) -> dict[str, Samples]:
    """Silence, noises, hum, chords, clicks and a murmur, each so long."""
    rng = np.random.default_rng(11)
    return {kind: no_speech(kind, duration_s, rng) for kind in NO_SPEECH_KINDS}


def sounds(speech: Samples, others: Sequence[Samples]) -> dict[str, Samples]:
    """Some seconds of each of them: speech backwards, babble of it and of others, music, and noises one by one."""
    pause = np.zeros(SAMPLE_RATE, np.float32)
    babbles = [babble([speech, *others], voices, 6.0, voices) for voices in (3, 4, 6)]
    return {
        "backwards": backwards(speech),
        "babble": np.concatenate([part for one in babbles for part in (one, pause)]),
        "music": music(8.0),
        "noises": np.concatenate([part for one in noises(2.0).values() for part in (one, pause)]),
    }

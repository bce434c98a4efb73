import threading

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW
from sprachbund.audio.spans import VoiceActivity, iter_speech_spans, speech_spans

Samples = NDArray[np.float32]
VOWELS_HZ = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (530, 1840, 2480), (300, 870, 2240))
BANDWIDTHS_HZ = (80, 90, 120, 150)


@pytest.fixture(scope="module")
def activity() -> VoiceActivity:
    return VoiceActivity()


def resonator(centre_hz: float, bandwidth_hz: float) -> list[float]:
    radius = np.exp(-np.pi * bandwidth_hz / SAMPLE_RATE)
    return [1.0, -2 * radius * np.cos(2 * np.pi * centre_hz / SAMPLE_RATE), radius**2]


def babble(duration_s: float, seed: int = 0) -> Samples:
    """A formant synthesiser: vowels of 160 ms from a pulse train with a gliding pitch."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    pitch_hz = 110 + 20 * np.sin(2 * np.pi * 0.8 * t) + 8 * np.sin(2 * np.pi * 2.3 * t)
    pulses = np.diff(np.floor(np.cumsum(pitch_hz) / SAMPLE_RATE), prepend=0)
    source = np.diff(lfilter([1], [1, -0.95], pulses), prepend=0) + 0.003 * rng.standard_normal(len(t))
    step = int(0.16 * SAMPLE_RATE)
    states, out = np.zeros((4, 2)), np.zeros(len(t))
    for begin in range(0, len(t), step):
        sound = source[begin : begin + step]
        formants = (*VOWELS_HZ[rng.integers(len(VOWELS_HZ))], 3500)
        for index, (centre_hz, bandwidth_hz) in enumerate(zip(formants, BANDWIDTHS_HZ, strict=True)):
            poles = resonator(centre_hz, bandwidth_hz)
            sound, states[index] = lfilter([sum(poles)], poles, sound, zi=states[index])
        out[begin : begin + step] = sound * np.sqrt(np.sin(np.pi * np.arange(1, len(sound) + 1) / (step + 1)))
    return (out / np.abs(out).max() * 0.4).astype(np.float32)


def silence(duration_s: float) -> Samples:
    return np.zeros(int(duration_s * SAMPLE_RATE), np.float32)


def not_speech() -> dict[str, Samples]:
    t = np.arange(20 * SAMPLE_RATE) / SAMPLE_RATE
    white = np.random.default_rng(0).standard_normal(len(t))
    hum = np.sin(2 * np.pi * 50 * t) + 0.3 * np.sin(2 * np.pi * 150 * t)
    ring = (np.sin(2 * np.pi * 440 * t) + np.sin(2 * np.pi * 480 * t)) * (t % 6 < 2)
    touch_tone = np.sin(2 * np.pi * 697 * t) + np.sin(2 * np.pi * 1209 * t)
    sounds = {
        "silence": 0 * t,
        "loud noise": 0.2 * white,
        "faint noise": 0.002 * white,
        "hum": 0.1 * hum,
        "hum in noise": 0.1 * hum + 0.005 * white,
        "ringing": 0.3 * ring,
        "touch tone": 0.2 * touch_tone,
    }
    return {name: sound.astype(np.float32) for name, sound in sounds.items()}


@pytest.mark.parametrize("seed", range(4))
def test_finds_planted_speech(activity: VoiceActivity, seed: int) -> None:
    samples = np.concatenate(
        [silence(1.5), babble(2.0, seed), silence(1.0), babble(1.2, seed + 9), silence(1.5)]
    )
    spans = speech_spans(activity.probabilities(samples), num_samples=len(samples))
    edges = [(span.start_s, span.end_s) for span in spans]
    np.testing.assert_allclose(edges, [(1.5, 3.5), (4.5, 5.7)], atol=0.3)
    assert all(span.speech_probability > 0.7 for span in spans)


@pytest.mark.parametrize("name", not_speech())
def test_finds_nothing_in(activity: VoiceActivity, name: str) -> None:
    probabilities = activity.probabilities(not_speech()[name])
    assert probabilities.max() < 0.3
    assert speech_spans(probabilities) == []


@pytest.mark.parametrize("size", [1, 160, 511, 512, 513, 7000])
def test_streaming_equals_offline(activity: VoiceActivity, size: int) -> None:
    samples = np.concatenate([silence(0.2), babble(0.5)])[: 20 * VAD_WINDOW + 77]
    offline = activity.probabilities(samples)
    assert offline.shape == (21,)
    stream = activity.stream()
    parts = [stream.feed(samples[i : i + size]) for i in range(0, len(samples), size)]
    assert sum(map(len, parts)) == len(samples) // VAD_WINDOW
    np.testing.assert_allclose(np.concatenate([*parts, stream.finish()]), offline, atol=1e-5)


def test_long_audio_is_cut_into_calls_without_a_seam(activity: VoiceActivity) -> None:
    samples = np.tile(np.concatenate([babble(1.0), silence(0.5)]), 14)  # 21 s, more than one call
    stream = activity.stream()
    stepwise = [stream.feed(samples[i : i + VAD_WINDOW]) for i in range(0, len(samples), VAD_WINDOW)]
    whole = activity.probabilities(samples)
    np.testing.assert_allclose(np.concatenate([*stepwise, stream.finish()]), whole, atol=1e-5)


def test_spans_of_blocks_are_spans_of_the_whole(activity: VoiceActivity) -> None:
    samples = np.concatenate([silence(0.7), babble(2.0), silence(0.8), babble(1.0, 5), silence(0.1)])
    blocks = [samples[i : i + 5000] for i in range(0, len(samples), 5000)]
    offline = speech_spans(activity.probabilities(samples), num_samples=len(samples))
    streamed = list(iter_speech_spans(blocks, activity=activity))
    assert len(offline) == 2
    for (span, held), expected in zip(streamed, offline, strict=True):
        assert (span.start_s, span.end_s) == (expected.start_s, expected.end_s)
        start = round(span.start_s * SAMPLE_RATE)
        np.testing.assert_array_equal(held, samples[start : start + len(held)])


def test_threads_share_one_detector(activity: VoiceActivity) -> None:
    inputs = [babble(1.0, seed) for seed in range(4)]
    alone = [activity.probabilities(samples) for samples in inputs]
    together: dict[int, NDArray[np.float32]] = {}

    def work(index: int) -> None:
        together[index] = activity.probabilities(inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        np.testing.assert_array_equal(together[index], expected)


def test_loading_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    VoiceActivity().probabilities(silence(0.1))
    assert capfd.readouterr() == ("", "")


def test_empty_and_wrong_shapes(activity: VoiceActivity) -> None:
    assert activity.probabilities(silence(0)).shape == (0,)
    with pytest.raises(ValueError, match=r"\(2, 512\)"):
        activity.probabilities(np.zeros((2, 512), np.float32))

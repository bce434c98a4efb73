import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from sprachbund.audio.constants import HOP, SAMPLE_RATE, WINDOW, WINDOW_S
from sprachbund.audio.features import log_mel, mel_filters, num_frames

TOLERANCE = 1e-4


def noise(num_samples: int, seed: int = 0, gain: float = 0.1) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(num_samples) * gain).astype(np.float32)


def speech_like(duration_s: float, seed: int = 0) -> NDArray[np.float32]:
    """Harmonics of a gliding pitch, switched on and off at a syllable rate, over faint noise."""
    t = np.arange(int(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / SAMPLE_RATE
    voice = sum(np.sin(k * phase) / k**1.5 for k in range(1, 30))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * t), 0, None) ** 2
    return (0.2 * voice * syllables + noise(len(t), seed, 1e-4)).astype(np.float32)


SIGNALS = {
    "noise": noise(3 * SAMPLE_RATE),
    "speech-like": speech_like(4.37),
    "quiet": speech_like(2.0) * 1e-3,
    "silence": np.zeros(SAMPLE_RATE, np.float32),
    "click": np.eye(1, 12345, 6000, dtype=np.float32)[0],
    "full window": speech_like(WINDOW_S),
}


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_filters_equal_transformers(num_mel_bins: int) -> None:
    theirs = mel_filter_bank(
        num_frequency_bins=WINDOW // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    np.testing.assert_allclose(mel_filters(num_mel_bins).numpy(), theirs.T, atol=1e-7)


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("name", SIGNALS)
def test_equals_transformers(name: str, num_mel_bins: int) -> None:
    samples = SIGNALS[name]
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
    padded = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
    ours = log_mel(samples, num_mel_bins, pad_to_s=WINDOW_S)
    assert ours.shape == (num_mel_bins, 3000)
    torch.testing.assert_close(ours, padded, atol=TOLERANCE, rtol=0)

    real_length = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=False)
    ours = log_mel(torch.from_numpy(samples), num_mel_bins)
    assert ours.shape[-1] == num_frames(len(samples)) == len(samples) // HOP
    torch.testing.assert_close(ours, real_length.input_features[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("normalise", ["whisper", "fixed"])
def test_a_batch_is_its_rows(normalise: str) -> None:
    rows = np.stack([noise(8000, seed, gain) for seed, gain in enumerate([1.0, 1e-2, 1e-4])])
    batch = log_mel(rows, normalise=normalise)  # type: ignore[arg-type]
    for row, features in zip(rows, batch, strict=True):
        alone = log_mel(row, normalise=normalise)  # type: ignore[arg-type]
        torch.testing.assert_close(features, alone, atol=1e-5, rtol=0)


def test_fixed_does_not_see_padding_or_other_frames() -> None:
    samples = speech_like(2.2)[: 217 * HOP]
    alone = log_mel(samples, normalise="fixed")
    loud_later = np.concatenate([samples, np.zeros(HOP * 40, np.float32), noise(16000, gain=0.9)])
    padded = log_mel(loud_later, normalise="fixed")
    torch.testing.assert_close(padded[:, : alone.shape[-1]], alone, atol=1e-5, rtol=0)


def test_fixed_streams() -> None:
    samples = speech_like(1.0)
    whole = log_mel(samples, normalise="fixed")
    # frames 20 to 39, from only the samples they see: 2 hops of left context keep the centres on the grid
    piece = samples[18 * HOP : 39 * HOP + WINDOW // 2]
    streamed = log_mel(piece, normalise="fixed")[:, 2:22]
    torch.testing.assert_close(streamed, whole[:, 20:40], atol=1e-5, rtol=0)


def test_fixed_scale_against_a_direct_transform() -> None:
    samples = speech_like(0.5).astype(np.float64)
    padded = np.pad(samples, WINDOW // 2)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = np.stack([padded[t * HOP : t * HOP + WINDOW] * hann for t in range(len(samples) // HOP)])
    mel = mel_filters(80).numpy() @ (np.abs(np.fft.rfft(frames, axis=1)) ** 2).T
    expected = (np.log10(np.maximum(mel, 1e-8)) + 4) / 4
    np.testing.assert_allclose(log_mel(samples, normalise="fixed").numpy(), expected, atol=TOLERANCE)
    assert log_mel(np.zeros(1600), normalise="fixed").eq(-1).all()


@pytest.mark.parametrize("normalise", ["whisper", "fixed"])
@pytest.mark.parametrize("num_samples", [0, 1, 159, 160, 199, 200, 201, 399, 400])
def test_tiny_inputs(num_samples: int, normalise: str) -> None:
    features = log_mel(noise(num_samples), normalise=normalise)  # type: ignore[arg-type]
    assert features.shape == (80, num_samples // HOP)
    assert features.isfinite().all()


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        log_mel(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="windows"):
        log_mel(torch.zeros(SAMPLE_RATE * 31), pad_to_s=WINDOW_S)


def test_gradients_flow_after_inference_mode() -> None:
    mel_filters.cache_clear()
    with torch.inference_mode():
        log_mel(noise(1600))
    samples = torch.from_numpy(noise(1600)).requires_grad_()
    log_mel(samples).sum().backward()
    assert samples.grad is not None
    assert samples.grad.isfinite().all()

"""Augmentation against independent measurements: levels, spectra, decay curves, pitch and alignment."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import rfft

from sprachbund.audio import augment as stretch
from sprachbund.audio.augment import (
    CLEAN,
    CODECS,
    NO_SPEECH_KINDS,
    NOISE_KINDS,
    TELEPHONE_CODECS,
    TRAIN,
    Augmentation,
    add_noise,
    augment,
    change_voice,
    colour,
    make_babble,
    make_noise,
    no_speech,
    overload,
    reverberate,
    revoice,
    rms,
    room_response,
    set_level,
    surround,
    telephone,
    transcode,
)
from sprachbund.audio.tempo import change_tempo
from sprachbund.errors import SprachbundError

RATE = 16_000
FloatArray = npt.NDArray[np.float32]
TELEPHONE = Augmentation(
    noise_probability=0.5,
    snr_db=(10.0, 30.0),
    overload_probability=0.05,
    telephone_probability=1.0,
    telephone_codecs=("mu-law", "a-law", "gsm"),
    level_dbfs=(-32.0, -14.0),
)


def vowel(f0_hz: float = 120.0, duration_s: float = 2.4, formant_hz: float = 700.0) -> FloatArray:
    """A buzz with one formant and four syllables per second: voice-like, and its pitch is known exactly."""
    times_s = np.arange(round(duration_s * RATE)) / RATE
    sound = np.zeros(len(times_s))
    for harmonic in range(1, int(6000 / f0_hz)):
        hz = harmonic * f0_hz
        sound += np.exp(-(((hz - formant_hz) / 500.0) ** 2)) * np.sin(2 * np.pi * hz * times_s + harmonic)
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4.0 * times_s)
    return (0.2 * sound / np.abs(sound).max() * syllables).astype(np.float32)


def fundamental_hz(samples: FloatArray) -> float:
    middle = samples[len(samples) // 2 - 4000 : len(samples) // 2 + 4000].astype(np.float64)
    correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    lag = 40 + int(np.argmax(correlation[40:320]))
    left, peak, right = correlation[lag - 1 : lag + 2]
    return RATE / (lag + 0.5 * (left - right) / (left - 2 * peak + right))


def power_db(samples: FloatArray, low_hz: float, high_hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64) * np.hanning(len(samples)))) ** 2
    hz = np.fft.rfftfreq(len(samples), 1 / RATE)
    return float(10 * np.log10(spectrum[(hz >= low_hz) & (hz < high_hz)].sum() + 1e-20))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    duration_s=st.floats(0.05, 4.0),
    preset=st.sampled_from([CLEAN, TRAIN, TELEPHONE]),
)
def test_same_seed_same_samples_always_finite_float32_in_range(
    seed: int, duration_s: float, preset: Augmentation
) -> None:
    samples = vowel(duration_s=duration_s)
    before = samples.copy()
    first = augment(samples, generator(seed), preset, [vowel(180.0)])
    second = augment(samples, generator(seed), preset, [vowel(180.0)])
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(samples, before)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert np.abs(first).max() <= 1.0 + 1e-6
    longest = duration_s / TRAIN.tempo[0] + 2 * TRAIN.silence_s[1]
    assert duration_s / TRAIN.tempo[1] - 0.01 <= len(first) / RATE <= longest + 0.01


def test_clean_changes_nothing_and_train_leaves_a_third_clean_apart_from_the_level() -> None:
    samples = vowel(duration_s=0.5)
    np.testing.assert_array_equal(augment(samples, generator(), CLEAN), samples)
    num_clean = 0
    for seed in range(300):
        result = augment(samples, generator(seed), TRAIN)
        if len(result) == len(samples):
            num_clean += np.corrcoef(result, samples)[0, 1] > 0.999999
    assert 0.3 < num_clean / 300 < 0.47


@pytest.mark.parametrize("preset", [CLEAN, TRAIN, TELEPHONE])
def test_silence_and_no_samples_are_survived(preset: Augmentation) -> None:
    for seed in range(40):
        assert np.abs(augment(np.zeros(8000, np.float32), generator(seed), preset)).max() < 0.01
        assert len(augment(np.zeros(1, np.float32), generator(seed), preset)) >= 1


def _counted(name: str, original: Callable[..., Any], seen: dict[str, int]) -> Callable[..., Any]:
    def call(*args: Any, **more: Any) -> Any:
        seen[name] = seen.get(name, 0) + 1
        return original(*args, **more)

    return call


def test_every_training_step_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    import sprachbund.audio.augment as module

    seen: dict[str, int] = {}
    for name in (
        "change_voice",
        "surround",
        "reverberate",
        "make_noise",
        "make_babble",
        "overload",
        "telephone",
        "transcode",
    ):
        monkeypatch.setattr(module, name, _counted(name, getattr(module, name), seen))
    samples = vowel(duration_s=0.3)
    for seed in range(1000):
        augment(samples, generator(seed), TRAIN, [samples])
    wanted = {
        "change_voice": TRAIN.voice_probability,
        "surround": TRAIN.silence_probability,
        "reverberate": TRAIN.room_probability,
        "make_noise": TRAIN.noise_probability * (1 - TRAIN.babble_probability),
        "make_babble": TRAIN.noise_probability * TRAIN.babble_probability,
        "overload": TRAIN.overload_probability,
        "telephone": TRAIN.telephone_probability,
        "transcode": TRAIN.codec_probability,
    }
    for name, probability in wanted.items():
        assert seen[name] / 650 == pytest.approx(probability, abs=0.07), name


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
@pytest.mark.parametrize("kind", [*NOISE_KINDS, "babble"])
def test_noise_is_at_the_ratio_asked_for(kind: str, snr_db: float) -> None:
    samples = vowel()
    if kind == "babble":
        noise = make_babble([vowel(150.0), vowel(210.0, 1.1)], len(samples), generator())
    else:
        noise = make_noise(kind, len(samples), generator())
    added = add_noise(samples, noise, snr_db) - samples
    measured = 10 * np.log10(
        np.mean(samples.astype(np.float64) ** 2) / np.mean(added.astype(np.float64) ** 2)
    )
    assert measured == pytest.approx(snr_db, abs=0.05)


def test_noise_colours_fall_as_their_names_say() -> None:
    """Power per octave: white +3 dB, pink flat, brown -3 dB."""
    for kind, slope_db in (("white", 3.01), ("pink", 0.0), ("brown", -3.01)):
        noise = make_noise(kind, 20 * RATE, generator(1))
        octaves = [power_db(noise, low, 2 * low) for low in (100, 200, 400, 800, 1600, 3200)]
        assert np.polyfit(range(6), octaves, 1)[0] == pytest.approx(slope_db, abs=0.25), kind


def test_hum_has_its_power_at_multiples_of_the_mains() -> None:
    for seed in range(6):
        noise = make_noise("hum", 4 * RATE, generator(seed))
        spectrum = np.abs(np.fft.rfft(noise * np.hanning(len(noise)))) ** 2
        hz = np.fft.rfftfreq(len(noise), 1 / RATE)
        shares = []
        for mains in (50.0, 60.0):
            near = np.abs(hz - mains * np.round(hz / mains)) < 1.0
            shares.append(spectrum[near & (hz > 40)].sum() / spectrum.sum())
        assert max(shares) > 0.99 > min(shares)


def test_babble_needs_others() -> None:
    with pytest.raises(SprachbundError, match="others"):
        make_babble([], 1000, generator())


@pytest.mark.parametrize("rt60_s", [0.1, 0.25, 0.5, 0.8])
def test_room_decays_as_asked_by_schroeder_integration(rt60_s: float) -> None:
    for seed in range(4):
        response = room_response(rt60_s, generator(seed), direct_to_reverberant_db=0.0).astype(np.float64)
        decay_db = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2) + 1e-12)
        fitted = (decay_db < -8.0) & (decay_db > -28.0)  # T20, below the direct sound
        slope = np.polyfit(np.flatnonzero(fitted) / RATE, decay_db[fitted], 1)[0]
        assert -60.0 / slope == pytest.approx(rt60_s, rel=0.2)


def test_room_direct_sound_has_the_ratio_asked_for() -> None:
    for ratio_db in (-3.0, 6.0, 12.0):
        response = room_response(0.4, generator(), direct_to_reverberant_db=ratio_db).astype(np.float64)
        measured = 10 * np.log10(response[0] ** 2 / np.sum(response[1:] ** 2))
        assert measured == pytest.approx(ratio_db, abs=0.01)


def test_reverberation_is_plain_convolution_at_the_same_level() -> None:
    samples = vowel(duration_s=0.3)
    response = room_response(0.2, generator())
    wet = reverberate(samples, response)
    direct = np.convolve(samples, response)[: len(samples)]
    np.testing.assert_allclose(wet, direct * rms(samples) / rms(direct.astype(np.float32)), atol=2e-5)
    assert rms(wet) == pytest.approx(rms(samples), rel=1e-4)


@pytest.mark.parametrize("codec", [None, *TELEPHONE_CODECS])
def test_telephone_leaves_only_its_band(codec: str | None) -> None:
    noise = 0.1 * make_noise("white", 4 * RATE, generator())
    line = telephone(noise, codec)
    assert len(line) == len(noise)
    passed = power_db(line, 500, 3000) - power_db(noise, 500, 3000)
    assert passed == pytest.approx(0.0, abs=1.5 if codec != "gsm" else 4.0)
    assert power_db(line, 4200, 8000) - power_db(noise, 4200, 8000) < -60
    if codec is None:
        assert power_db(line, 20, 120) - power_db(noise, 20, 120) < -20


@pytest.mark.parametrize("codec", CODECS)
def test_codec_keeps_the_sound_in_place_but_not_exactly(codec: str) -> None:
    samples = vowel()
    decoded = transcode(samples, codec)
    assert len(decoded) == len(samples)
    assert decoded.dtype == np.float32
    assert 0.9 < np.corrcoef(decoded, samples)[0, 1] < 0.999999
    padded = np.pad(decoded, 400)
    lags = np.correlate(padded[: RATE + 800], samples[:RATE], "valid")
    assert abs(int(np.argmax(lags)) - 400) <= 1


def test_g711_follows_its_law() -> None:
    """Companding: the error is a near-constant share of the value, and 8 bits leave 256 levels."""
    import io

    import soundfile

    samples = vowel()
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="ULAW")
    file.seek(0)
    coded = soundfile.read(file, dtype="float32")[0]
    magnitude = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log(256)
    law = np.round(magnitude * 128) / 128
    expanded = np.sign(law) * np.expm1(np.abs(law) * np.log(256)) / 255
    assert np.corrcoef(coded, expanded)[0, 1] > 0.9995
    assert len(np.unique(coded)) <= 256


@pytest.mark.parametrize("tempo", [0.25, 0.7, 0.9, 1.1, 1.4, 2.0, 4.0])
def test_tempo_changes_length_but_neither_pitch_nor_level(tempo: float) -> None:
    samples = vowel(137.0)
    stretched = change_tempo(samples, tempo)
    assert len(stretched) == round(len(samples) / tempo)
    assert fundamental_hz(np.resize(stretched, 20_000)) == pytest.approx(137.0, rel=0.02)
    assert rms(stretched) == pytest.approx(rms(samples), rel=0.12)


@pytest.mark.parametrize("tempo", [0.7, 1.4])
def test_tempo_moves_events_in_proportion(tempo: float) -> None:
    samples = vowel()
    samples[: RATE // 2] = 0.0
    samples[RATE:] = 0.0
    loud = np.flatnonzero(np.abs(change_tempo(samples, tempo)) > 0.02) / RATE
    assert loud[0] * tempo == pytest.approx(0.5, abs=0.03)
    assert loud[-1] * tempo == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("ratio", [0.85, 1.2])
def test_voice_change_moves_pitch_and_formants_together(ratio: float) -> None:
    changed = change_voice(vowel(130.0), ratio, tempo=1.25)
    assert len(changed) == pytest.approx(2.4 * RATE / 1.25, abs=2)
    assert fundamental_hz(changed) == pytest.approx(130.0 * ratio, rel=0.02)


def test_tempo_out_of_range_is_refused() -> None:
    with pytest.raises(SprachbundError, match="tempo is 9"):
        change_tempo(vowel(), 9.0)


def test_revoicing_changes_pitch_formant_and_tempo_independently() -> None:
    if importlib.util.find_spec("pyworld") is None:
        pytest.skip("pyworld is not installed")
    samples = vowel(120.0, formant_hz=900.0)

    def centre_hz(sound: FloatArray) -> float:
        spectrum = np.abs(np.fft.rfft(sound)) ** 2
        return float((spectrum * np.fft.rfftfreq(len(sound), 1 / RATE)).sum() / spectrum.sum())

    higher = revoice(samples, f0_ratio=1.5)
    assert fundamental_hz(higher) == pytest.approx(180.0, rel=0.02)
    assert centre_hz(higher) == pytest.approx(centre_hz(samples), rel=0.12)
    smaller = revoice(samples, formant_ratio=1.25)
    assert fundamental_hz(smaller) == pytest.approx(120.0, rel=0.02)
    assert centre_hz(smaller) == pytest.approx(1.25 * centre_hz(samples), rel=0.12)
    faster = revoice(samples, tempo=1.25)
    assert len(faster) == round(len(samples) / 1.25)
    assert fundamental_hz(faster) == pytest.approx(120.0, rel=0.02)
    np.testing.assert_array_equal(revoice(samples, 1.2, 1.1), revoice(samples, 1.2, 1.1))


def test_missing_pyworld_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    stretch._world.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SprachbundError, match=r"pip install 'sprachbund\[train\]'"):
        revoice(vowel(), 1.2)


def test_level_is_as_asked_until_the_peak_forbids() -> None:
    samples = vowel()
    for level_dbfs in (-40.0, -20.0):
        assert 20 * np.log10(rms(set_level(samples, level_dbfs))) == pytest.approx(level_dbfs, abs=0.01)
    assert np.abs(set_level(samples, 0.0)).max() == pytest.approx(1.0, abs=1e-5)


def test_overload_and_surround() -> None:
    samples = vowel()
    cut = overload(samples, 6.0)
    assert np.abs(cut).max() == pytest.approx(np.abs(samples).max() * 10 ** (-6 / 20), rel=1e-5)
    untouched = np.abs(samples) < np.abs(cut).max()
    np.testing.assert_array_equal(cut[untouched], samples[untouched])
    longer = surround(samples, 0.25, 0.5)
    np.testing.assert_array_equal(longer[4000:-8000], samples)
    assert not longer[:4000].any()
    assert not longer[-8000:].any()


@pytest.mark.parametrize("kind", NO_SPEECH_KINDS)
def test_no_speech_has_the_duration_asked_for_and_repeats(kind: str) -> None:
    for seed in range(8):
        sound = no_speech(kind, 1.3, generator(seed))
        assert len(sound) == round(1.3 * RATE)
        assert sound.dtype == np.float32
        assert np.isfinite(sound).all()
        peak = np.abs(sound).max()
        assert peak < 0.02 if kind == "silence" else 0.005 < peak <= 1.0
        np.testing.assert_array_equal(sound, no_speech(kind, 1.3, generator(seed)))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: no_speech("rain", 1.0, generator()), "rain"),
        (lambda: make_noise("blue", 10, generator()), "blue"),
        (lambda: transcode(vowel(), "amr"), "amr"),
        (lambda: telephone(vowel(), "mp3"), "mp3"),
        (lambda: Augmentation(noise_probability=1.5), "noise_probability is 1.5"),
        (lambda: Augmentation(noise_kinds=("blue",)), "blue"),
        (lambda: Augmentation(codecs=("amr",)), "amr"),
    ],
)
def test_errors_name_the_value(call: Any, named: str) -> None:
    with pytest.raises(SprachbundError, match=named):
        call()


def test_training_augmentation_is_cheap_enough_for_fresh_audio_every_epoch() -> None:
    """Processor time, so that other work on the machine does not count; the measured figure is near 3 ms."""
    samples, rng = vowel(), generator()
    augment(samples, rng, TRAIN, [samples])
    begin_s = time.process_time()
    for _ in range(100):
        augment(samples, rng, TRAIN, [samples])
    assert (time.process_time() - begin_s) / 100 < 0.02


def test_a_microphone_colours_by_no_more_than_its_range() -> None:
    noise = make_noise("white", 4 * RATE, np.random.default_rng(0))
    heard = colour(noise, np.random.default_rng(1), 9.0)
    assert heard.shape == noise.shape
    assert rms(heard) == pytest.approx(rms(noise), rel=1e-5)
    # The gain at every frequency, up to one factor that keeps the level, by scipy's transform.
    gain_db = 20 * np.log10(np.abs(rfft(heard)) / np.abs(rfft(noise)))
    assert 6.0 < np.ptp(gain_db) <= 18.0
    assert np.abs(np.diff(gain_db)).max() < 0.1  # smooth
    assert not np.allclose(heard, colour(noise, np.random.default_rng(2), 9.0), atol=0.01)
    assert not colour(np.zeros(800, np.float32), np.random.default_rng(1), 9.0).any()


def test_editions_without_colour_draw_what_they_drew() -> None:
    speech = vowel()
    plain = Augmentation(noise_probability=1.0, overload_probability=0.5, level_dbfs=(-30.0, -20.0))
    options = replace(plain, tone_probability=0.0, tone_db=3.0)
    for seed in range(4):
        expected = augment(speech, np.random.default_rng(seed), plain)
        assert np.array_equal(augment(speech, np.random.default_rng(seed), options), expected)

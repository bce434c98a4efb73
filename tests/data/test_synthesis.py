"""Synthetic speech: reproducible, varied, with speakers held out, and words where espeak-ng says they are."""

import multiprocessing
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from sprachbund.data import synthesis
from sprachbund.data.synthesis import HELD_OUT_VARIANTS, VARIANTS, Voice, draw_voice, speak, speak_with_words
from sprachbund.errors import SprachbundError

espeakng_loader = pytest.importorskip("espeakng_loader")

SENTENCES = {
    "en": "The meeting starts at twenty past eight.",
    "es": "La reunión empieza a las ocho y veinte.",
    "fr": "La réunion commence à huit heures vingt.",
    "de": "Die Sitzung beginnt um zwanzig nach acht.",
    "it": "La riunione comincia alle otto e venti.",
    "ru": "Собрание начинается в восемь двадцать.",
    "pt": "A reunião começa às oito e vinte.",
    "nl": "De vergadering begint om twintig over acht.",
}


def _digest_in_new_process(voice: Voice, queue: "multiprocessing.Queue[bytes]") -> None:
    queue.put(speak(SENTENCES["en"], voice).tobytes())


@pytest.mark.parametrize("language", SENTENCES)
def test_every_language_is_spoken_at_a_natural_pace_by_every_accent(language: str) -> None:
    for accent in set(synthesis.ACCENTS.get(language, (language,))):
        samples = speak(SENTENCES[language], Voice(language=accent))
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        assert np.isfinite(samples).all()
        assert 1.2 < len(samples) / 16_000 < 4.0
        assert 0.02 < np.sqrt(np.mean(samples**2)) < 0.4


def test_every_variant_exists_and_is_neither_silent_nor_clipped() -> None:
    shipped = {path.name for path in (Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir()}
    assert set(VARIANTS) - {""} <= shipped
    assert len(VARIANTS) == len(set(VARIANTS)) > 85
    for variant in VARIANTS:
        samples = speak("One two three four.", Voice(language="en-US", variant=variant), exact=False)
        assert np.sqrt(np.mean(samples**2)) > 0.02, variant
        assert np.mean(np.abs(samples) > 0.999) < 0.002, variant


@pytest.mark.parametrize("variant", ["", "f2", "klatt", "klatt6", "robosoft", "Annie", "croak", "iven"])
def test_same_voice_gives_the_same_samples_whatever_was_said_before(variant: str) -> None:
    voice = Voice(language="en-US", variant=variant, speed_wpm=150, pitch=60)
    first = speak(SENTENCES["en"], voice)
    speak(SENTENCES["ru"], Voice(language="ru", variant="fast", speed_wpm=300), exact=False)
    np.testing.assert_array_equal(speak(SENTENCES["en"], voice), first)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_forked_worker_gives_the_same_samples() -> None:
    voice = Voice(language="de", variant="m1")
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[bytes] = context.Queue()
    here = speak(SENTENCES["en"], voice)
    worker = context.Process(target=_digest_in_new_process, args=(voice, queue))
    worker.start()
    there = queue.get(timeout=20)
    worker.join(20)
    np.testing.assert_array_equal(np.frombuffer(there, np.float32), here)


def test_voices_differ_in_spectrum_and_speed_changes_the_duration() -> None:
    text = SENTENCES["en"]
    plain = speak(text, Voice(language="en-US"))
    spectra = []
    for variant in ("", "f2", "m7"):
        spectrum = np.abs(np.fft.rfft(speak(text, Voice(language="en-US", variant=variant)), 1 << 17))
        spectra.append(spectrum / np.linalg.norm(spectrum))
    assert max(spectra[a] @ spectra[b] for a, b in ((0, 1), (0, 2), (1, 2))) < 0.9
    for tempo in (0.5, 2.0):
        changed = speak(text, Voice(language="en-US", speed_wpm=round(175 * tempo)))
        assert len(plain) / len(changed) == pytest.approx(tempo, rel=0.2)


def test_pitch_raises_the_fundamental() -> None:
    def fundamental_hz(pitch: int) -> float:
        samples = speak("Aaaaah", Voice(language="it", pitch=pitch, pitch_range=5))
        middle = samples[len(samples) // 2 - 1500 : len(samples) // 2 + 1500]
        correlation = np.correlate(middle, middle, "full")[len(middle) - 1 :]
        return 16_000 / (40 + int(np.argmax(correlation[40:320])))

    assert fundamental_hz(90) > 1.4 * fundamental_hz(10)


def test_words_start_where_the_sound_of_the_words_starts() -> None:
    text = "seven, eleven, twenty."
    voice = Voice(language="en-US", word_gap_ms=300)
    samples, words = speak_with_words(text, voice)
    assert [text[character:].split(",")[0].rstrip(".") for character, _ in words] == [
        "seven",
        "eleven",
        "twenty",
    ]
    for _, start_s in words[1:]:
        start = round(start_s * 16_000)
        before, after = samples[start - 1200 : start - 200], samples[start + 200 : start + 2400]
        assert np.sqrt(np.mean(after**2)) > 10 * np.sqrt(np.mean(before**2))


def test_word_positions_count_characters_not_bytes() -> None:
    text = "Позвоните завтра, пожалуйста."
    _, words = speak_with_words(text, Voice(language="ru"))
    assert [character for character, _ in words] == [0, 10, 18]
    times = [start_s for _, start_s in words]
    assert times == sorted(times)


def test_silence_at_the_ends_is_trimmed_and_sample_rate_is_as_asked() -> None:
    voice = Voice(language="en-GB")
    samples = speak("Hello.", voice)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    assert loud[0] < 0.1 * 16_000
    assert len(samples) - loud[-1] < 0.1 * 16_000
    assert len(speak("Hello.", voice, sample_rate=8_000)) == pytest.approx(len(samples) / 2, abs=2)


def test_held_out_variants_are_never_drawn_for_training() -> None:
    rng = random.Random(1)
    drawn: dict[str, set[str]] = {
        split: {draw_voice("en", rng, split).variant for _ in range(3000)}
        for split in ("train", "dev", "test")
    }
    assert drawn["train"] == set(VARIANTS) - set(HELD_OUT_VARIANTS)
    assert drawn["dev"] | drawn["test"] == set(HELD_OUT_VARIANTS)
    assert not drawn["dev"] & drawn["test"]


def test_drawn_tempo_is_wide_and_dense_around_the_default() -> None:
    rng = random.Random(2)
    tempos = np.array([draw_voice("fr", rng, "train").speed_wpm / 175 for _ in range(3000)])
    assert tempos.min() == pytest.approx(0.5, abs=0.02)
    assert tempos.max() == pytest.approx(2.0, abs=0.02)
    assert np.mean((tempos > 0.8) & (tempos < 1.25)) > 0.5
    assert draw_voice("fr", random.Random(3), "dev") == draw_voice("fr", random.Random(3), "dev")


def test_name_is_the_speaker_and_not_the_manner() -> None:
    slow, fast = (Voice(language="es-419", variant="f1", speed_wpm=wpm) for wpm in (120, 240))
    assert slow.name == fast.name == "espeak-es-419-f1"
    assert Voice(language="es").name == "espeak-es-plain"


def test_errors_name_the_value() -> None:
    with pytest.raises(SprachbundError, match="tlh-XX"):
        speak("Hello.", Voice(language="tlh-XX"))
    with pytest.raises(SprachbundError, match="says nothing"):
        speak("   ", Voice(language="en"))
    with pytest.raises(SprachbundError, match="whisper"):
        Voice(language="en", variant="whisper")
    with pytest.raises(SprachbundError, match="speed_wpm is 20"):
        Voice(language="en", speed_wpm=20)
    with pytest.raises(SprachbundError, match="unknown split 'tset'"):
        draw_voice("en", random.Random(0), "tset")


def test_missing_espeak_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    synthesis._installed.cache_clear()
    with pytest.raises(SprachbundError, match=r"pip install 'sprachbund\[train\]'"):
        speak("Hello.", Voice(language="en"))
    synthesis._installed.cache_clear()

"""Calibration of ends of turns: how sentences are cut off, and that what tells them apart is learned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.cli import main
from sprachbund.data.manifest import ManifestWriter
from sprachbund.decoding.words import AlignedTokens
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.options import CalibrationOptions
from sprachbund.evaluation.turns import Sentence, collect, cut_off, fit, read_sentences
from sprachbund.models.calibration import TurnEnds
from tests.decoding.tiny_family import TinyFamily

SILENCE = SAMPLE_RATE // 5


def spelling() -> TinyFamily:
    """A family that writes a letter for each word."""
    family = TinyFamily(seed=3, max_tokens=24, max_window_s=28.0)
    able = replace(
        family.capabilities,
        encode_text=lambda text: [family.first_letter + 1 + 2 * (len(word) % 3) for word in text.split()],
    )
    family.capabilities = able
    return family


def sentence(words: str, seed: int = 0, duration_s: float = 3.0) -> Sentence:
    samples = np.random.default_rng(seed).normal(size=round(duration_s * SAMPLE_RATE)).astype(np.float32)
    split = words.split()
    return Sentence(samples=samples * 0.1, words=split, spelled=split, language="de", speaker="a")


@pytest.fixture(autouse=True)
def even_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are as long as each other, in place of where random weights attend to."""

    def align(family, memory, targets, tokens, durations_s):
        (row,), (duration_s,) = tokens[0], durations_s
        starts_s = tuple(float(s) for s in np.linspace(0, duration_s, len(row) + 1))
        return [[AlignedTokens(tokens=tuple(row), starts_s=starts_s, log_probabilities=(0.0,) * len(row))]]

    monkeypatch.setattr("sprachbund.evaluation.turns.align", align)


def test_cut_off_sentences_are_beginnings_of_the_whole_one_with_silence_behind() -> None:
    words = "one, two three four five six seven eight nine ten."
    whole, *cut = cut_off(spelling(), sentence(words))
    assert whole.finished
    assert len(whole.samples) == 3 * SAMPLE_RATE + 2 * SILENCE
    # In front of the third, fifth, seventh, eighth and ninth of ten words in 3.4 s.
    lengths_s = [(len(sound.samples) - SILENCE) / SAMPLE_RATE for sound in cut]
    assert lengths_s == pytest.approx([0.68, 1.36, 2.04, 2.38, 2.72], abs=0.1)
    for sound in cut:
        assert not sound.finished
        end = len(sound.samples) - SILENCE
        assert not sound.samples[end:].any()
        faded = end - SAMPLE_RATE // 100
        assert (sound.samples[:faded] == whole.samples[:faded]).all()
        assert len(sound.samples) < len(whole.samples)


def test_nothing_is_cut_off_behind_the_end_of_a_sentence() -> None:
    assert len(cut_off(spelling(), sentence("one. two. three. four. five. six."))) == 1
    with pytest.raises(SprachbundError, match="does not align texts with speech"):
        cut_off(TinyFamily(), sentence("one two three four"))


def test_the_regression_tells_apart_what_differs() -> None:
    rng = np.random.default_rng(0)
    finished = np.arange(400) % 3 == 0
    states = rng.normal(size=(400, 6)).astype(np.float32)
    states[:, 4] += np.where(finished, 3, -3)
    ends = fit(states, finished)
    result = np.array(ends.probabilities(torch.from_numpy(states))) > 0.5
    assert (result == finished).mean() > 0.98
    assert int(np.argmax(np.abs([*ends.whole, *ends.last]))) == 4


def test_a_corpus_is_learned_from_or_is_too_small(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path) as writer:
        for number in range(60):
            one = sentence("eins zwei drei vier fünf", number, 1.5)
            text = "zu kurz" if number % 6 == 5 else " ".join(one.words)
            writer.add(one.samples, text=text, language="de", speaker="a", utterance_id=str(number))
    result = list(read_sentences(tmp_path, 1000))
    assert len(result) == 50
    assert len(list(read_sentences(tmp_path, 6))) == 6
    family, options = spelling(), CalibrationOptions()
    states, finished = collect(family, result, options)
    assert finished.sum() == 50
    assert states.shape == (len(finished), 32)
    fit(states, finished).write(tmp_path)
    ends = TurnEnds.read(tmp_path)
    assert ends is not None
    assert len(ends.whole) == len(ends.last) == 16
    with pytest.raises(
        SprachbundError, match="there are 20 sentences of four words or more, and 50 are needed"
    ):
        collect(family, result[:20], options)


def test_options_of_the_other_calibration_are_refused(tmp_path: Path, capsys) -> None:
    folder = str(tmp_path)
    assert main(["calibrate", folder, "--model", folder, "--turns", "--test", folder]) == 2
    assert "leave them out with --turns" in capsys.readouterr().err

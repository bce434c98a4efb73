"""Calibration of the ends of turns: whether a speaker has finished, written into the directory of a model.

Sentences of a corpus are heard whole, and cut off in front of some of their words, each with a little silence behind;
`fit` makes the logistic regression (`sprachbund.models.calibration.TurnEnds`) that separates the two by the encoder's
states. Words are found by aligning the text of the corpus with the speech.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.words import align, split_words
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.options import CalibrationOptions
from sprachbund.models.base import Family, Target
from sprachbund.models.calibration import TurnEnds, turn_states

_SILENCE = np.zeros(SAMPLE_RATE // 5, np.float32)
"""Around every sound, as voice activity leaves it around a span."""
_CUTS = (0.25, 0.4, 0.55, 0.7, 0.85)
"""Points at which a sentence is cut off, in shares of its words."""
_LEAST_S, _LONGEST_S = 0.5, 10.0
_FADE = SAMPLE_RATE // 100
_NEAR_S = 0.08
"""A cut is at the quietest point so near to the beginning of the word."""
_LOUD = 0.1
"""Share of the loudness of speech below which it is a pause."""
_STEP = SAMPLE_RATE // 100
_SENTENCE_ENDS = (".", "!", "?", ";", ":", "…", "。", "！", "？")
_FEWEST = 50
_REGULARISATION = 0.003  # C of scikit-learn; of a few values, chosen on speakers of the training part


@dataclass(frozen=True, kw_only=True, eq=False)
class Sentence:
    """A sentence of a corpus.

    Attributes:
        samples: (N,) at 16 kHz.
        words: as they are said, with the punctuation behind them where the corpus has it.
        spelled: the same words as the model writes them, one for each.
        language: language spoken, in the model's tag.
        speaker: name of the speaker.
    """

    samples: npt.NDArray[np.float32]
    words: Sequence[str]
    spelled: Sequence[str]
    language: str
    speaker: str


@dataclass(frozen=True, kw_only=True, eq=False)
class TurnSound:
    """Speech up to a pause.

    Attributes:
        samples: (N,) at 16 kHz, with the silence around it.
        finished: whether its sentence has ended.
        pause_s: length of the pause that the speaker makes in the sentence where it is cut; 0 without one.
        sentence: sentence of the corpus.
    """

    samples: npt.NDArray[np.float32]
    finished: bool
    pause_s: float
    sentence: Sentence


def read_sentences(directory: Path, limit: int) -> Iterator[Sentence]:
    """Utterances of a corpus with four words or more, at most `limit`, spread evenly over it."""
    manifest = Manifest(directory)
    count = min(limit, len(manifest))
    for number in range(count):
        index = number * len(manifest) // count
        utterance = manifest[index]
        words = utterance.text.split()
        if len(words) >= 4 and _LEAST_S <= utterance.duration_s <= _LONGEST_S:
            yield Sentence(
                samples=manifest.samples(index),
                words=words,
                spelled=words,
                language=utterance.language,
                speaker=utterance.speaker,
            )


@torch.inference_mode()
def cut_off(family: Family, sentence: Sentence) -> list[TurnSound]:
    """A sentence, whole and cut off in front of some words; never where one of several sentences has ended.

    Args:
        family: family with an attention decoder, which aligns.
        sentence: sentence of a language that the family transcribes.

    Raises:
        SprachbundError: a family that does not align texts with speech, or has no tokens for them.
    """
    able = family.capabilities
    if able.encode_text is None or able.alignment is None or able.writes_by_frames:
        raise SprachbundError(
            f"the model {family.name} does not align texts with speech, by which sentences are cut off at words; take "
            "a model with an attention decoder"
        )
    whole = np.concatenate([_SILENCE, sentence.samples, _SILENCE])
    out = [TurnSound(samples=whole, finished=True, pause_s=0.0, sentence=sentence)]
    target = Target(language=sentence.language, source=sentence.language)
    tokens, duration_s = able.encode_text(" ".join(sentence.spelled)), len(whole) / SAMPLE_RATE
    memory = family.encode(family.features([whole]))
    aligned = align(family, memory, [[target]], [[tokens]], [duration_s])[0][0]
    starts_s, token = list[float](), 0
    for _, count in split_words(family, tokens, sentence.language):
        starts_s.append(aligned.starts_s[token])
        token += count
    if len(starts_s) != len(sentence.words):
        return out
    numbers = dict.fromkeys(round(share * len(starts_s)) for share in _CUTS)
    for number in numbers:
        if not 1 <= number < len(starts_s) or sentence.words[number - 1].endswith(_SENTENCE_ENDS):
            continue
        end = _quietest(whole, starts_s[number])
        if end >= _LEAST_S * SAMPLE_RATE:
            heard = np.concatenate([whole[:end], _SILENCE])
            heard[end - _FADE : end] *= np.linspace(1, 0, _FADE, dtype=np.float32)
            pause_s = _pause_s(whole, end)
            out.append(TurnSound(samples=heard, finished=False, pause_s=pause_s, sentence=sentence))
    return out


def _quietest(samples: npt.NDArray[np.float32], second: float) -> int:
    """The quietest sample near a second, over 20 ms."""
    first, last = (round((second + by) * SAMPLE_RATE) for by in (-_NEAR_S, _NEAR_S))
    width = 2 * _STEP
    starts = range(max(0, first), max(1, min(last, len(samples) - width)), _STEP // 2)
    return min(starts, key=lambda n: float(np.square(samples[n : n + width]).sum()), default=0) + _STEP


def _pause_s(samples: npt.NDArray[np.float32], at: int) -> float:
    """Seconds of quiet around a sample, in steps of 10 ms."""
    steps = samples[: len(samples) // _STEP * _STEP].reshape(-1, _STEP)
    loud = np.sqrt(np.square(steps).mean(1))
    quiet = loud < _LOUD * np.quantile(loud, 0.9)
    here = min(at // _STEP, len(quiet) - 1)
    before = next((n for n in range(here) if not quiet[here - 1 - n]), here)
    behind = next((n for n in range(here, len(quiet)) if not quiet[n]), len(quiet)) - here
    return (before + behind) * _STEP / SAMPLE_RATE


@torch.inference_mode()
def states_of(family: Family, sounds: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """The states (B, 2 D) by which a model decides whether the speaker of each sound (N,) has finished."""
    memory = family.encode(family.features(sounds))
    durations_s = [len(one) / SAMPLE_RATE for one in sounds]
    states = turn_states(memory.states, memory.num_frames, durations_s, family.frame_s)
    return np.asarray(states.cpu(), np.float32)


def collect(
    family: Family,
    sentences: Iterable[Sentence],
    options: CalibrationOptions,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """States (N, 2 D) of whole and cut-off sentences, and which are finished (N,).

    Args:
        family: any with an attention decoder.
        sentences: sentences of a corpus.
        options: sounds in a batch.
        progress: called with the number of sentences done.

    Raises:
        SprachbundError: too few sentences, or a family that does not align texts with speech.
    """
    sounds = list[TurnSound]()
    for done, sentence in enumerate(sentences):
        progress(done)
        sounds += cut_off(family, sentence)
    finished = np.array([sound.finished for sound in sounds])
    if len(sounds) < 2 * _FEWEST or finished.sum() < _FEWEST:
        raise SprachbundError(
            f"there are {finished.sum()} sentences of four words or more, and {_FEWEST} are needed; give corpora with "
            "more of them"
        )
    order = sorted(range(len(sounds)), key=lambda n: len(sounds[n].samples))  # even lengths in a batch
    batches = [order[n : n + options.batch_size] for n in range(0, len(order), options.batch_size)]
    states = np.concatenate([states_of(family, [sounds[n].samples for n in batch]) for batch in batches])
    return states, finished[order]


def fit(states: npt.NDArray[np.float32], finished: npt.NDArray[np.bool_]) -> TurnEnds:
    """The logistic regression; both kinds count as much, so 0.5 means that neither is likelier.

    Args:
        states: (N, 2 D).
        finished: (N,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(states)
    logistic = LogisticRegression(C=_REGULARISATION, class_weight="balanced", max_iter=2000)
    logistic.fit(scaler.transform(states), finished)
    weights = logistic.coef_[0] / scaler.scale_
    rounded = [round(float(weight), 5) for weight in weights]
    return TurnEnds(
        bias=round(float(logistic.intercept_[0] - weights @ scaler.mean_), 5),
        whole=rounded[: len(rounded) // 2],
        last=rounded[len(rounded) // 2 :],
    )

"""Latency scores of one stretch of speech: functions of when each word of the output came.

All are in seconds except the proportion. A unit is a word, or a character in languages that are written without
spaces. Formulas are those of the papers in the form that SimulEval 1.1.4 and OmniSTEval 0.1.10 compute, so that
numbers can be laid beside published ones; there is no clock in here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby, takewhile
from statistics import fmean

SOURCE_TOKEN_MS = 300.0
"""Length that average token delay gives to a spoken word (arXiv 2211.13173)."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """The output for a stretch of speech; all times count from the stretch's beginning.

    Attributes:
        delays_s: when each of the U units was written, in the order of writing; on the ideal clock as much audio
            as had been taken in, else with the time of computation.
        audio_s: audio that had been taken in when each unit was written, (U,); equal to `delays_s` on the ideal
            clock.
        source_s: length of the stretch.
        num_reference: units of the reference, at least 1.
        recording_s: where the recording ends; as `source_s` when the stretch is all of it.
    """

    delays_s: tuple[float, ...]
    audio_s: tuple[float, ...]
    source_s: float
    num_reference: int
    recording_s: float


def average_lagging(passage: Passage) -> float:
    """AL (arXiv 1810.08398): how far the output is behind one that keeps pace with the speech.

    The pace is that of the reference's length. Units count up to the first that had heard all; when the first
    unit came after the end of the speech, its delay is the score.
    """
    return _lagging(passage, passage.num_reference)


def length_adaptive_average_lagging(passage: Passage) -> float:
    """LAAL (arXiv 2206.05807): AL at the pace of the longer of output and reference.

    Output that is too long gains nothing by it.
    """
    return _lagging(passage, max(passage.num_reference, len(passage.delays_s)))


def differentiable_average_lagging(passage: Passage) -> float:
    """DAL (arXiv 1906.00048): AL over all units, none of which costs less time than its share."""
    pace = passage.source_s / len(passage.delays_s)
    total, last = 0.0, float("-inf")
    for place, delay in enumerate(passage.delays_s):
        last = max(delay, last + pace)
        total += last - place * pace
    return total / len(passage.delays_s)


def average_proportion(passage: Passage) -> float:
    """AP (arXiv 1606.02012): share of the speech that was waited for before a unit, at the mean.

    Divided by the reference's length, so output that is too long raises it above 1.
    """
    return sum(passage.delays_s) / (passage.source_s * passage.num_reference)


def yet_another_average_lagging(passage: Passage) -> float | None:
    """YAAL (arXiv 2509.17349): LAAL over the units that came before the recording ended; None without such.

    Of a segment within a recording this is LongYAAL: there the end of the segment ends nothing.
    """
    counted = list(takewhile(lambda delay: delay < passage.recording_s, passage.delays_s))
    pace = passage.source_s / max(passage.num_reference, len(passage.delays_s))
    return fmean(d - place * pace for place, d in enumerate(counted)) if counted else None


def average_token_delay(passage: Passage) -> float:
    """ATD (arXiv 2211.13173): mean time between a spoken word and the unit of the output at its place.

    Speech that was taken in before a group of units is cut into words of 300 ms; units of the output have no
    length. A unit answers the spoken word of its own number, moved back by as many units as earlier groups had
    more than their speech had words, and never one that was not yet taken in. With computation a unit stands when
    it was written, which SimulEval reckons from the time that each took.
    """
    spoken_ms: list[float] = [0.0]  # where each spoken word ends; the first stands for none
    delays_ms: list[float] = []
    units = zip(passage.audio_s, passage.delays_s, strict=True)
    for audio_s, group in groupby(units, key=lambda unit: unit[0]):
        surplus = max(0, len(delays_ms) - (len(spoken_ms) - 1))
        spoken_ms += _spoken_words_ms(spoken_ms[-1], _ms(audio_s))
        for _, written_s in group:
            answers = min(len(delays_ms) + 1 - surplus, len(spoken_ms) - 1)
            delays_ms.append(_ms(written_s) - spoken_ms[answers])
    return fmean(delays_ms) / 1000


SCORES: Mapping[str, Callable[[Passage], float | None]] = {
    "AL": average_lagging,
    "LAAL": length_adaptive_average_lagging,
    "DAL": differentiable_average_lagging,
    "AP": average_proportion,
    "ATD": average_token_delay,
    "YAAL": yet_another_average_lagging,
}
"""Name to function, of passages with at least one unit."""


def latency(name: str, passage: Passage) -> float | None:
    """A score by its name in `SCORES`; None for a passage without output, which has no latency."""
    return SCORES[name](passage) if passage.delays_s else None


def _lagging(passage: Passage, num_target: int) -> float:
    delays, source_s = passage.delays_s, passage.source_s
    if delays[0] > source_s:
        return delays[0]
    waited = next((place for place, delay in enumerate(delays) if delay >= source_s), len(delays) - 1)
    return fmean(delay - place * source_s / num_target for place, delay in enumerate(delays[: waited + 1]))


def _spoken_words_ms(start_ms: float, end_ms: float) -> list[float]:
    """Ends of the words that a stretch is cut into; the last may be shorter."""
    whole, rest = divmod(end_ms - start_ms, SOURCE_TOKEN_MS)
    ends = [start_ms + SOURCE_TOKEN_MS * number for number in range(1, int(whole) + 1)]
    return [*ends, end_ms] if rest else ends


def _ms(seconds: float) -> float:
    """Milliseconds without what is left of binary fractions, which would make words of no length."""
    return round(1000 * seconds, 6)

"""Speed and cost are scores too, but of a machine: they mean something beside another's in the same run."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.spans import VoiceActivity
from sprachbund.decoding.long_form import translate_file
from sprachbund.decoding.options import DecodingOptions
from sprachbund.engines.benchmark import peak_mib
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import Line
from sprachbund.models.base import Family


@dataclass(frozen=True, kw_only=True)
class DecodingCost:
    """The time and memory that decoding took.

    Attributes:
        audio_s: seconds of sound, each utterance once.
        wall_s: seconds it took, loading of the model not counted.
        num_tokens: tokens written, over all target languages.
        num_targets: mean number of target languages of an utterance.
        peak_memory_mb: most memory the process ever held.
        first_segment_s: median time from a recording's start of work to its first text; None if not measured.
    """

    audio_s: float
    wall_s: float
    num_tokens: int
    num_targets: float
    peak_memory_mb: float
    first_segment_s: float | None = None

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of sound."""
        return self.wall_s / self.audio_s if self.audio_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens written in a second of work."""
        return self.num_tokens / self.wall_s if self.wall_s else 0.0

    def to_dict(self) -> dict[str, float | None]:
        """Fields and ratios."""
        return {
            **asdict(self),
            "real_time_factor": self.real_time_factor,
            "tokens_per_s": self.tokens_per_s,
        }


class Stopwatch:
    """Counts the time in which it was asked for the next line, and what came."""

    def __init__(self) -> None:
        self.wall_s = 0.0
        self._tokens = 0
        self._lines = 0
        self._audio: dict[tuple[str, str], float] = {}

    def watch(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Pass lines on; time spent by whoever takes them does not count."""
        iterator = iter(lines)
        while True:
            start = time.perf_counter()
            line = next(iterator, None)
            self.wall_s += time.perf_counter() - start
            if line is None:
                return
            self._tokens += line.evidence.num_tokens
            self._lines += 1
            self._audio[line.corpus, line.id] = line.duration_s
            yield line

    def speed(self) -> DecodingCost:
        """Return the cost of the work so far."""
        return DecodingCost(
            audio_s=sum(self._audio.values()),
            wall_s=self.wall_s,
            num_tokens=self._tokens,
            num_targets=self._lines / max(1, len(self._audio)),
            peak_memory_mb=peak_mib(),
        )


def first_segment_s(
    model: Family,
    recordings: Sequence[np.ndarray],
    targets: Sequence[str],
    source: str | None = None,
    options: DecodingOptions | None = None,
) -> float | None:
    """Median seconds from handing over a recording to its first segment; None when none had any.

    Args:
        model: any family.
        recordings: 16 kHz mono float32, each (num_samples,).
        targets: languages wanted.
        source: the language spoken, None to identify it.
        options: decoding options.
    """
    taken, activity = [], VoiceActivity()
    for samples in recordings:
        start = time.perf_counter()
        work = translate_file(
            model, samples, targets, source, options, sample_rate=SAMPLE_RATE, activity=activity
        )
        if next(work, None) is not None:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken) if taken else None


def race(
    models: Mapping[str, Family],
    work: Callable[[Family], Iterable[Line]],
    rounds: int = 3,
) -> dict[str, list[DecodingCost]]:
    """Let models do the same work in turn, round by round, so that what else the machine does hits all alike.

    Args:
        models: by name.
        work: decodes with a model, line by line; done once more beforehand to warm up.
        rounds: rounds of each.
    """
    taken: dict[str, list[DecodingCost]] = {name: [] for name in models}
    for current in range(rounds + 1):
        for name, model in models.items():
            watch = Stopwatch()
            for _ in watch.watch(work(model)):
                pass
            if current:
                taken[name].append(watch.speed())
    return taken


def add_cost(rows: list[dict[str, str | float]], name: str, values: Sequence[float]) -> None:
    """Put another cost of each model into its row, and its ratio to the first one's.

    Args:
        rows: one per model, changed in place.
        name: name of the cost, with its unit.
        values: one per model.
    """
    for row, value in zip(rows, values, strict=True):
        ratio = value / values[0] if values[0] else 0.0
        row |= {name: round(value, 4), f"{name.rpartition('_')[0]}_ratio": round(ratio, 3)}


def race_rows(taken: Mapping[str, Sequence[DecodingCost]]) -> list[dict[str, str | float]]:
    """One row for each model of a race: medians, and its time as a ratio to the first one's, with the spread.

    Raises:
        SprachbundError: when the models worked on different sound, so that no ratio means anything.
    """
    seconds = {round(speed.audio_s, 1) for speeds in taken.values() for speed in speeds}
    if len(seconds) > 1:
        raise SprachbundError(f"the models worked on different sound ({sorted(seconds)} s); race on the same")
    first = next(iter(taken.values()))
    rows: list[dict[str, str | float]] = []
    for name, speeds in taken.items():
        ratios = sorted(s.wall_s / f.wall_s for s, f in zip(speeds, first, strict=True))
        rows.append(
            {
                "system": name,
                "real_time_factor": round(statistics.median(s.real_time_factor for s in speeds), 4),
                "tokens_per_s": round(statistics.median(s.tokens_per_s for s in speeds), 1),
                "time_ratio": round(statistics.median(ratios), 3),
                "lowest_ratio": round(ratios[0], 3),
                "highest_ratio": round(ratios[-1], 3),
            }
        )
    return rows

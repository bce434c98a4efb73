"""A short trial that finds the engine and number of threads that compute a model fastest on this machine.

Every candidate is built once. At first all compute half a second of sound with two tokens: one that takes three times
as long as the fastest is left out, before it costs more. The others compute the recording of the trial, in turn; one
that takes twice as long as the fastest in the first round is left out, and rounds are repeated while they together take
less than a second and a half. Medians decide. Times within 3 % count as equal; of equal ones the first in the order of
candidates is taken.

The recording is noise of 5 s with 20 tokens, encoded at its own length. A model that fills speech up to a window
(Whisper, unless it is set to encode the real length) gets half a window, at the same rate of tokens, since it encodes a
whole window for every recording. Where a round of that would take more than about 15 s, as with large models, it gets
the 5 s at their own length, and where even those would, the half second decides.

The result is remembered in one file (`TrialFile`) under processor, version and model.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.engines.native_engine import limit_torch_threads
from sprachbund.engines.options import EngineChoice
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Target
from sprachbund.models.prefix import PrefixFamily
from sprachbund.util.files import write_text
from sprachbund.util.memory import give_back_freed_memory
from sprachbund.util.processor import available_memory, instruction_flags, processor_name, usable_cores
from sprachbund.util.provenance import versions

_SHORT_S, _CLIP_S = 0.5, 5.0
_TOKENS_PER_S = 4
"""Tokens in a second of speech; about two and a half words."""
_SHORT_RUNS = 4
_HOPELESS = 10.0
"""A first run that takes so many times as long as the fastest is not repeated; a first run also reads weights."""
_LEFT_OUT_SHORT, _LEFT_OUT = 3.0, 2.0
_EQUAL = 1.03
_MOST_ROUNDS, _ROUNDS_S = 7, 1.5
_LONGEST_ROUND_S = 15.0
_SPARE_MEMORY = 1.25
_WORDS = "one two three four five six seven eight nine ten"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine that may be tried.

    Attributes:
        engine: name of the engine.
        build: gives the family that it computes.
        num_bytes: memory of its weights, about.
        threads: threads of the native engine; None for torch, whose number of threads belongs to the process.
    """

    engine: EngineChoice
    build: Callable[[], Family]
    num_bytes: int
    threads: int | None = None

    @property
    def name(self) -> str:
        """Name of engine and threads."""
        return self.engine if self.threads is None else f"{self.engine} {self.threads}"


class Trial(BaseModel):
    """Result of a trial, by the names of candidates, in their order.

    Attributes:
        seconds: medians for the recording of the trial.
        short_s: fastest times for half a second of sound; of all that ran.
        refused: reasons of those that could not run.
        chosen: name of the candidate that is fastest; None where none could run.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    seconds: dict[str, float]
    short_s: dict[str, float]
    refused: dict[str, str]
    chosen: str | None

    def ratio(self, name: str, other: str) -> float | None:
        """Time of a candidate in times of another; None where they were not compared."""
        for times in (self.seconds, self.short_s):
            if name in times and other in times:
                return times[name] / times[other]
        return None

    def fastest_of(self, names: Sequence[str]) -> str | None:
        """The fastest of some candidates; None where none of them ran."""
        for times in (self.seconds, self.short_s):
            if some := {name: times[name] for name in names if name in times}:
                return fastest(some)
        return None

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of the engines that ran."""
        return tuple(dict.fromkeys(name.partition(" ")[0] for name in self.short_s))

    @property
    def failed(self) -> dict[str, str]:
        """Engines that did not run, with the reason."""
        reasons = {name.partition(" ")[0]: reason for name, reason in self.refused.items()}
        return {engine: reason for engine, reason in reasons.items() if engine not in self.engines}


@torch.inference_mode()
def try_candidates(candidates: Sequence[Candidate]) -> tuple[Trial, Family | None]:
    """Time candidates against each other.

    Args:
        candidates: engines with their threads; among equals the first is chosen.

    Returns:
        What was measured, and the family of the one that is fastest; None where none could run.
    """
    short_s, refused, works = dict[str, float](), dict[str, str](), dict[str, _Work]()
    for candidate in candidates:
        if (reason := _no_room(candidate)) is not None:
            refused[candidate.name] = reason
            continue
        try:
            work = _Work(candidate.build())
            short_s[candidate.name] = _short_time(work, min(short_s.values(), default=float("inf")))
        except Exception as error:  # whatever it is, it must not stop those that can run
            refused[candidate.name] = _reason(error)
            continue
        works[candidate.name] = work
        fastest_s = min(short_s.values())
        works = {name: w for name, w in works.items() if short_s[name] <= _LEFT_OUT_SHORT * fastest_s}
    times = _rounds(works, short_s, refused)
    seconds = {name: median(measured) for name, measured in times.items()}
    works = {name: work for name, work in works.items() if name not in refused}
    chosen = fastest(seconds) if seconds else next(iter(works), None)
    family = None if chosen is None else works[chosen].family
    trial = Trial(seconds=seconds, short_s=short_s, refused=refused, chosen=chosen)
    del works
    give_back_freed_memory()
    return trial, family


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split())
    return reason if isinstance(error, SprachbundError) else f"{type(error).__name__}: {reason}"


def fastest(seconds: Mapping[str, float]) -> str:
    """The first whose time is within 3 % of the least."""
    limit = _EQUAL * min(seconds.values())
    return next(name for name, value in seconds.items() if value <= limit)


def thread_counts(most: int) -> list[int]:
    """Powers of two, half of all, and all: the second thread of a core is seldom worth it."""
    powers = {2**i for i in range(most.bit_length()) if 2**i <= most}
    return sorted(powers | {max(1, most // 2), most})


def _no_room(candidate: Candidate) -> str | None:
    """Reason why a candidate's weights do not fit into memory; None where they do."""
    free = available_memory()
    if free is None or _SPARE_MEMORY * candidate.num_bytes <= free:
        return None
    return f"its weights take {candidate.num_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"


def _rounds(
    works: "Mapping[str, _Work]", short_s: Mapping[str, float], refused: dict[str, str]
) -> dict[str, list[float]]:
    """Times of the works for the whole recording, in turn; those left out in the first round are missing.

    One work alone has nobody to be compared with, and is not run.

    Args:
        works: by the names of candidates.
        short_s: their times for half a second of sound.
        refused: gets the reasons of those that fail.
    """
    if len(works) < 2:
        return {}
    recording = _recording(works, short_s)
    if recording is None:
        return {name: [short_s[name]] for name in works}
    fill = recording == "as used"
    first = dict[str, float]()
    for name, work in works.items():
        try:
            first[name] = work.whole(fill)
        except Exception as error:  # as above
            refused[name] = _reason(error)
    limit = _LEFT_OUT * min(first.values(), default=0.0)
    times = {name: [seconds] for name, seconds in first.items() if seconds <= limit}
    began = time.perf_counter()
    for _ in range(_MOST_ROUNDS - 1):
        if len(times) < 2 or time.perf_counter() - began > _ROUNDS_S:
            break
        for name, measured in times.items():
            measured.append(works[name].whole(fill))
    return times


def _recording(
    works: "Mapping[str, _Work]", short_s: Mapping[str, float]
) -> Literal["as used", "clip"] | None:
    """Recording that keeps a round of the trial short; None where half a second of sound has to do."""
    round_s = sum(short_s[name] for name in works) / _SHORT_S  # for a second of sound
    longest = max(work.family.max_window_s for work in works.values())
    if round_s * longest <= _LONGEST_ROUND_S:
        return "as used"
    return "clip" if round_s * min(_CLIP_S, longest) <= _LONGEST_ROUND_S else None


def _short_time(work: "_Work", best: float) -> float:
    """The least of some runs over half a second of sound; fewer runs where `best` is out of reach."""
    times = [work.short()]
    while len(times) < _SHORT_RUNS and times[0] < _HOPELESS * best:
        times.append(work.short())
        if min(times) > _LEFT_OUT_SHORT * best:
            break
    return min(times)


class _Work:
    """A family at work on the recordings of the trial.

    Args:
        family: as it will be used.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._window = family.capabilities.fixed_window
        self._targets = some_targets(family)

    def short(self) -> float:
        """Seconds that half a second takes, at its own length."""
        with self._real_length():
            return self._run(_SHORT_S)

    def whole(self, fill: bool) -> float:
        """Seconds that the recording of the trial takes; with `fill`, half a window where the model fills it up."""
        if fill and self._window is not None and not self._window.real_length:
            return self._run(self.family.max_window_s / 2)
        with self._real_length():
            return self._run(min(_CLIP_S, self.family.max_window_s))

    @contextmanager
    def _real_length(self) -> Iterator[None]:
        if self._window is None:
            yield
            return
        before, self._window.real_length = self._window.real_length, True
        try:
            yield
        finally:
            self._window.real_length = before

    def _run(self, duration_s: float) -> float:
        family = self.family
        num_tokens = max(1, min(round(_TOKENS_PER_S * duration_s), family.max_tokens - 1))
        token = torch.zeros(1, 1, dtype=torch.long)
        began = time.perf_counter()
        able = family.capabilities
        # Units of speech come from another model; a model with an encoder for each hears.
        if (text := able.text_input) is not None and able.text_encoder is None:
            features = text.text_features([" ".join([_WORDS] * round(max(1.0, duration_s / _CLIP_S)))])
        else:
            noise = np.random.default_rng(0).standard_normal(round(duration_s * SAMPLE_RATE))
            features = family.features([noise.astype(np.float32) * 0.1])
        memory = family.encode(features)
        # The search behind the encoder goes through the frames in Python with every engine, and adds to all times.
        if able.writes_by_frames:
            return time.perf_counter() - began
        with limit_torch_threads(family.capabilities.decoder):  # as in searches
            cache = family.start(memory, capacity=num_tokens, targets=self._targets)
            for _ in range(num_tokens):
                family.step(token, cache)
        return time.perf_counter() - began


def some_targets(family: Family) -> list[Target] | None:
    """A target of one row, for models that read the languages before they write or are split by them; else None.

    Args:
        family: model whose decoder is to be started.
    """
    if not isinstance(family, PrefixFamily) and family.capabilities.sharing_plan is None:
        return None
    source, language = min(family.pairs())
    return [Target(language=language, source=source)]


# Trials that were made before.

FILE = "trials.json"
_KEPT = 200  # entries; models in temporary folders come and go
_EMULATIONS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "OPENBLAS_CORETYPE",
)
"""Variables that make torch and its libraries compute as on another processor."""


@dataclass(frozen=True, kw_only=True)
class TrialFile:
    """Trials in the user's cache directory; several processors and versions may share it.

    Attributes:
        folder: folder of the file.
        kernels: name of the native kernels; None where there are none for the model.
        model: hash of the model's weights and configuration.
        asked: the engine, threads and options that were asked for.
    """

    folder: Path
    kernels: str | None
    model: str
    asked: str

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.folder / FILE

    def read(self) -> Trial | None:
        """The trial remembered; None where there is none that can be read."""
        try:
            return Trial.model_validate(_entries(self.path).get(self._key))
        except ValidationError:
            return None

    def write(self, trial: Trial) -> None:
        """Remember a trial. Raises OSError where the folder cannot be written."""
        entries = {**_entries(self.path), self._key: trial.model_dump()}
        latest = dict(list(entries.items())[-_KEPT:])
        write_text(self.path, json.dumps(latest, indent=1))

    @property
    def _key(self) -> str:
        """Processor, versions and model, readable: the name of the host is no part of it, since containers that share a
        folder have any."""
        flags = hashlib.sha256(" ".join(instruction_flags()).encode()).hexdigest()[:8]
        emulated = [f"{name}={value}" for name in _EMULATIONS if (value := os.environ.get(name))]
        processor = [
            processor_name(),
            f"instructions {flags}",
            f"{usable_cores()} cores",
            f"{torch.get_num_threads()} threads of torch",
            f"torch for {torch.backends.cpu.get_cpu_capability()}",
            f"native for {self.kernels or 'nothing'}",
            *emulated,
        ]
        software = [f"{name} {number}" for name, number in versions(("sprachbund", "torch")).items()]
        return "; ".join([*processor, *software, f"model {self.model[:32]}", self.asked])


def _entries(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}

"""The two jobs of this room that processes share: features of a share of the data, and units of all of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Utterance
from sprachbund.errors import SprachbundError
from sprachbund.units.corpora import Chosen, blocks
from sprachbund.units.directory import Units
from sprachbund.units.kmeans import nearest
from sprachbund.units.sources import Source, SourceInfo, open_source
from sprachbund.units.strings import collapse, to_string
from sprachbund.util.arrays import write_arrays
from sprachbund.util.files import write_text

_AT_ONCE = 16
"""Utterances whose sound is held."""


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How work is shared out.

    Attributes:
        workers: processes at a time.
        threads: of each process; another number can change the last bits of features.
        ray: address of a Ray cluster, "local" for one here; None for plain processes.
        block: utterances of a file.
    """

    workers: int = 1
    threads: int = 1
    ray: str | None = None
    block: int = 64


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Which features are wanted.

    Attributes:
        directory: of the model.
        layer: of its encoder, 1 the first.
        name: of the model, to be written down.
        hash: of the model, see `files.encoder_hash`.
        device: to compute on, as torch names it.
        batch_s: seconds of speech computed at once.
    """

    directory: Path
    layer: int
    name: str
    hash: str
    device: str = "cpu"
    batch_s: float = 60.0

    @cached_property
    def info(self) -> SourceInfo:
        """What is to be known of the features; loads the model once."""
        return self.open().info

    def open(self) -> Source:
        """Load the model."""
        return open_source(
            self.directory,
            self.layer,
            name=self.name,
            device=self.device,
            batch_s=self.batch_s,
            model_hash=self.hash,
        )


@dataclass(frozen=True, kw_only=True)
class FeatureJob:
    """Features of chosen utterances, a file for each block: `frames` (N, D) and `lengths` of its utterances."""

    extraction: Extraction
    chosen: Chosen
    out: Path
    computing: Computing

    @property
    def threads(self) -> int:
        """Of each process."""
        return self.computing.threads

    @property
    def files(self) -> Sequence[tuple[Path, int]]:
        """Each file, and how many utterances it holds."""
        cut = blocks(len(self.chosen.places), self.computing.block)
        return [(self.out / f"frames.{n:05d}.npz", len(block)) for n, block in enumerate(cut)]

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        """Load the model."""
        source = self.extraction.open()
        cut = blocks(len(self.chosen.places), self.computing.block)

        def make(number: int, progress: Callable[[int], None]) -> None:
            found = list(_features(source, self.chosen, cut[number], progress))
            lengths = np.array([len(frames) for frames in found])
            path = self.files[number][0]
            write_arrays(path, {"frames": np.concatenate(found), "lengths": lengths})

        return make


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Units of all utterances of a corpus, a file of lines for each block."""

    extraction: Extraction
    chosen: Chosen
    units: Path
    out: Path
    computing: Computing
    speed: float = 1.0

    @property
    def threads(self) -> int:
        """Of each process."""
        return self.computing.threads

    @property
    def files(self) -> Sequence[tuple[Path, int]]:
        """Each file, and how many utterances are to be in it."""
        cut = blocks(len(self.chosen.places), self.computing.block)
        return [(self.out / f"units.{n:05d}.jsonl", len(block)) for n, block in enumerate(cut)]

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        """Load the model and the centroids."""
        source, centroids = self.extraction.open(), Units(self.units).centroids
        cut = blocks(len(self.chosen.places), self.computing.block)

        def make(number: int, progress: Callable[[int], None]) -> None:
            block = cut[number]
            features = _features(source, self.chosen, block, progress, self.speed)
            lines = [
                encoded_line(self.chosen.utterance(place), nearest(frames, centroids), self.speed)
                for place, frames in zip(block, features, strict=True)
                if len(frames)
            ]
            write_text(self.files[number][0], "".join(lines))

        return make


def encoded_line(utterance: Utterance, labels: np.ndarray, speed: float) -> str:
    """A line of JSON: the units of an utterance as characters, how many frames each lasts, and what was said."""
    units, durations = collapse(labels)
    values = {
        "id": utterance.id,
        "units": to_string(units),
        "durations": durations.tolist(),
        "duration_s": round(utterance.duration_s / speed, 6),
        "language": utterance.language,
        "speaker": utterance.speaker,
        "text": utterance.text,
        "translations": dict(utterance.translations),
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n"


def at_speed(num_samples: int, speed: float) -> int:
    """Samples that are left of so many at another speed."""
    return round(num_samples / speed)


def _features(
    source: Source, chosen: Chosen, block: range, progress: Callable[[int], None], speed: float = 1.0
) -> Any:
    """Features of a block's utterances, one after the other, a few of them in memory."""
    for start in range(block.start, block.stop, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, block.stop))
        samples = [_faster(chosen.samples(number), speed) for number in numbers]
        for each, frames in zip(samples, source.features(samples), strict=True):
            if len(frames) != source.num_frames(len(each)):
                raise SprachbundError(
                    f"{len(each)} samples gave {len(frames)} frames, not {source.num_frames(len(each))}; "
                    "this encoder's length is not known here, name another"
                )
            yield frames
        progress(numbers.stop - block.start)


def _faster(samples: np.ndarray, speed: float) -> np.ndarray:
    """Speech at another speed, and pitch."""
    if speed == 1.0:
        return samples
    import soxr

    wanted = at_speed(len(samples), speed)
    changed = soxr.resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE)[:wanted]
    return np.pad(changed, (0, wanted - len(changed)))

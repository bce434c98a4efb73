"""Corpora as units: lines of JSON in shards with a manifest, read at random, and the jobs that write them.

The utterances of several corpora form one list, chosen by their ids and cut into blocks. Processes share two jobs: the
features of a share of the data, and the units of all of it. The manifest names every input by its hash.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Manifest, Utterance, texts_hash
from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.directory import CorpusInfo, Identity, Units, nearest
from sprachbund.models.tokens.sources import FeatureSource, SourceInfo, open_source
from sprachbund.models.tokens.strings import collapse, expand, to_string, to_units
from sprachbund.units.files import begin, check_begun
from sprachbund.units.options import EncodingOptions, LayerOptions
from sprachbund.util.computing import Computing
from sprachbund.util.files import file_sha256, parse_json, read_model, validate, write_json, write_text
from sprachbund.util.jobs import gpus_of, run
from sprachbund.util.progress import Progress, nothing
from sprachbund.util.tensors import write_arrays

MANIFEST = "manifest.json"
MADE_BY = "sprachbund units encode"
_ADVICE = f"copy the directory again, or make it with `{MADE_BY}`"
_FRAMES_PER_S = 1000
"""More than any encoder gives; what is above comes from damage, and would fill the memory."""


class Shard(BaseModel):
    """A file of lines, its hash, and how many lines it has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    hash: str
    utterances: int


class Skipped(BaseModel):
    """An utterance that was left out, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    reason: str


class EncodedInfo(BaseModel):
    """The description of an encoded corpus in its manifest.

    Attributes:
        format: format of the lines.
        identity: identity of the units.
        clusters: K.
        frame_s: seconds of a frame.
        corpus: corpus that was encoded.
        speed: speed at which the speech was heard.
        utterances: utterances written.
        units: units of all utterances, repeats removed.
        frames: frames of all utterances.
        hours: hours of all utterances, at that speed.
        skipped: utterances left out.
        shards: the files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    identity: Identity
    clusters: int = Field(ge=1)
    frame_s: float = Field(gt=0, allow_inf_nan=False)
    corpus: CorpusInfo
    speed: float = Field(gt=0, allow_inf_nan=False)
    utterances: int
    units: int
    frames: int
    hours: float
    skipped: tuple[Skipped, ...]
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class UnitUtterance:
    """One line of a corpus as units.

    Attributes:
        id: id of the utterance in its corpus.
        units: as characters, repeats removed, S of them.
        durations: frames of each (S,).
        duration_s: length in seconds, at the speed of the encoding.
        language: BCP-47 tag of the speech; empty without speech.
        speaker: name of the speaker.
        text: transcript.
        translations: language to text.
    """

    id: str
    units: str
    durations: tuple[int, ...]
    duration_s: float
    language: str
    speaker: str
    text: str
    translations: dict[str, str]

    @property
    def with_repeats(self) -> str:
        """A unit for every frame, as characters."""
        return to_string(expand(to_units(self.units), np.array(self.durations, np.int64)))

    def text_in(self, language: str) -> str | None:
        """Transcript or translation in a language, None when there is none."""
        return (self.text or None) if language == self.language else self.translations.get(language)


class EncodedCorpus:
    """A corpus as units.

    Args:
        directory: as `encode` writes it.
        units: units that it is to be used with; not checked if None.

    Raises:
        SprachbundError: no such directory, a shard that is not the one its hash names, or units of another
            k-means or sampling rate.
    """

    def __init__(self, directory: str | Path, units: Units | None = None) -> None:
        self.directory = Path(directory)
        self.info = read_model(self.directory / MANIFEST, EncodedInfo, advice=f"make it with `{MADE_BY}`")
        if units is not None:
            units.identity.check(self.info.identity, str(directory), strings_only=True)
        offsets: list[tuple[int, int]] = []
        for number, shard in enumerate(self.info.shards):
            path = self.directory / shard.file
            if not path.is_file() or file_sha256(path) != shard.hash:
                what = "is missing" if not path.is_file() else "has changed since it was made"
                raise SprachbundError(f"{path} {what}; {_ADVICE}")
            with path.open("rb") as file:
                lengths = [len(line) for line in file]
            if len(lengths) != shard.utterances:
                raise SprachbundError(
                    f"{path} has {len(lengths)} lines, {MANIFEST} says {shard.utterances}; copy the directory again"
                )
            offsets += [(number, start) for start in np.cumsum([0, *lengths])[:-1].tolist()]
        self._offsets = np.array(offsets, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> UnitUtterance:
        shard, start = self._offsets[index].tolist()
        with (self.directory / self.info.shards[shard].file).open("rb") as file:
            file.seek(start)
            return _parsed(file.readline(), f"{file.name}, byte {start}")

    def __iter__(self) -> Iterator[UnitUtterance]:
        for shard in self.info.shards:
            yield from read_lines(self.directory / shard.file)


def read_lines(path: Path, *, advice: str = _ADVICE) -> Iterator[UnitUtterance]:
    """The utterances of a shard, one after the other.

    Args:
        path: the shard.
        advice: end of error messages.

    Raises:
        SprachbundError: a line that is damaged.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield _parsed(line, f"{path}, line {number}", advice)


class _Line(RootModel[UnitUtterance]):
    """The content of a line."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        said = self.root
        if len(said.units) != len(said.durations) or min(said.durations, default=1) < 1:
            raise ValueError(
                f"{len(said.units)} units have {len(said.durations)} durations, of 1 frame or more"
            )
        if not 0 <= said.duration_s < math.inf:
            raise ValueError(f"duration_s is {said.duration_s}")
        if sum(said.durations) > _FRAMES_PER_S * (said.duration_s + 1):
            raise ValueError(f"{sum(said.durations)} frames are too many for {said.duration_s:g} s")
        to_units(said.units)
        return self


def _parsed(line: bytes, where: str, advice: str = _ADVICE) -> UnitUtterance:
    return validate(_Line, parse_json(line, where, advice=advice), where, advice=advice).root


# The list of utterances, cut into blocks.


@dataclass(frozen=True, kw_only=True)
class ChosenUtterances:
    """Choice of utterances from corpora; a value that any process can open.

    Attributes:
        data: directories of corpora.
        share: share of each corpus's utterances; a smaller share is part of a larger one.
        languages: languages of the speech; all if empty.
    """

    data: tuple[Path, ...]
    share: float = 1.0
    languages: tuple[str, ...] = ()

    @cached_property
    def manifests(self) -> list[Manifest]:
        """The corpora, of each the share. Raises SprachbundError for one that is not there or lacks a language."""
        return [self._open(path) for path in self.data]

    @cached_property
    def indices(self) -> list[tuple[int, int]]:
        """Corpus and number of every utterance."""
        return [(c, i) for c, manifest in enumerate(self.manifests) for i in range(len(manifest))]

    @property
    def num_samples(self) -> np.ndarray:
        """Length of every utterance (N,)."""
        seconds = np.concatenate([manifest.durations_s for manifest in self.manifests]).astype(np.float64)
        return np.round(seconds * SAMPLE_RATE).astype(np.int64)

    @property
    def hours(self) -> float:
        """Hours of all utterances."""
        return float(sum(manifest.durations_s.sum(dtype=np.float64) for manifest in self.manifests)) / 3600

    def utterance(self, number: int) -> Utterance:
        """One of them, without its sound."""
        corpus, index = self.indices[number]
        return self.manifests[corpus][index]

    def samples(self, number: int) -> np.ndarray:
        """Sound of one of them, (num_samples,) float32 at 16 kHz."""
        corpus, index = self.indices[number]
        return self.manifests[corpus].samples(index)

    def __getstate__(self) -> dict[str, object]:
        """Only what was given: other processes open the corpora for themselves."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def _open(self, path: Path) -> Manifest:
        manifest = Manifest(path)
        known = set(manifest.languages.tolist())
        if unknown := sorted(set(self.languages) - known):
            raise SprachbundError(
                f"{path} holds no speech in {', '.join(unknown)}; it holds {', '.join(sorted(known))}"
            )
        if self.share == 1 and not self.languages:
            return manifest
        wanted = set(self.languages) or known
        return Manifest(path, shares={tag: self.share if tag in wanted else 0.0 for tag in known})


def blocks(num_utterances: int, size: int) -> Sequence[range]:
    """Numbers of utterances that are made together."""
    return [range(start, min(start + size, num_utterances)) for start in range(0, num_utterances, size)]


# Jobs that processes share.

_AT_ONCE = 16
"""Utterances whose sound is held."""


@dataclass(frozen=True, kw_only=True)
class Extraction(LayerOptions):
    """Features that are wanted of a model.

    Attributes:
        directory: directory of the model.
        name: name of the model, to be written down.
        hash: hash of the model, see `encoder_hash`.
    """

    directory: Path
    name: str
    hash: str

    @cached_property
    def info(self) -> SourceInfo:
        """The description of the features; loads the model once."""
        return self.open().info

    def open(self) -> FeatureSource:
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
class _BlockJob:
    """Work on the features of chosen utterances that makes a file of each block."""

    extraction: Extraction
    chosen: ChosenUtterances
    out: Path
    computing: Computing

    @property
    def threads(self) -> int:
        """Of each process."""
        return self.computing.threads

    @property
    def gpus(self) -> int:
        """Of each process."""
        return gpus_of(self.extraction.device)

    @property
    def blocks(self) -> Sequence[range]:
        """Numbers of the utterances of each file."""
        return blocks(len(self.chosen.indices), self.computing.block)


@dataclass(frozen=True, kw_only=True)
class FeatureJob(_BlockJob):
    """Features of chosen utterances, a file for each block: `frames` (N, D) and `lengths` of its utterances."""

    @property
    def files(self) -> Sequence[tuple[Path, int]]:
        """Each file, and how many utterances it holds."""
        return [(self.out / f"frames.{n:05d}.npz", len(block)) for n, block in enumerate(self.blocks)]

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        """Load the model."""
        source = self.extraction.open()
        cut = self.blocks

        def make(number: int, progress: Callable[[int], None]) -> None:
            features_of = list(_features(source, self.chosen, cut[number], progress))
            lengths = np.array([len(frames) for frames in features_of])
            path = self.files[number][0]
            write_arrays(path, {"frames": np.concatenate(features_of), "lengths": lengths})

        return make


@dataclass(frozen=True, kw_only=True)
class EncodeJob(_BlockJob):
    """Units of all utterances of a corpus, a file of lines for each block."""

    units: Path
    speed: float = 1.0

    @property
    def files(self) -> Sequence[tuple[Path, int]]:
        """Each file, and how many utterances are to be in it."""
        return [(self.out / f"units.{n:05d}.jsonl", len(block)) for n, block in enumerate(self.blocks)]

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        """Load the model and the centroids."""
        source, centroids = self.extraction.open(), Units(self.units).centroids
        cut = self.blocks

        def make(number: int, progress: Callable[[int], None]) -> None:
            block = cut[number]
            features = _features(source, self.chosen, block, progress, self.speed)
            lines = [
                encoded_line(self.chosen.utterance(index), nearest(frames, centroids), self.speed)
                for index, frames in zip(block, features, strict=True)
                if len(frames)
            ]
            write_text(self.files[number][0], "".join(lines))

        return make


def encoded_line(utterance: Utterance, labels: np.ndarray, speed: float) -> str:
    """A line of JSON: the units of an utterance as characters, how many frames each lasts, and what was said.

    Args:
        utterance: utterance with its texts.
        labels: cluster of every frame (T,).
        speed: speed that the utterance was played at.
    """
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
    source: FeatureSource,
    chosen: ChosenUtterances,
    block: range,
    progress: Callable[[int], None],
    speed: float = 1.0,
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


# Writing a corpus as units.


@dataclass(frozen=True, kw_only=True)
class Encoding(EncodingOptions):
    """Units to be found in a corpus.

    Attributes:
        units: directory of the units.
        extraction: the model that they are made of.
        data: the corpus.
        out: directory of what is found.
        computing: see `Computing`.
    """

    units: Path
    extraction: Extraction
    data: Path
    out: Path
    computing: Computing = field(default_factory=Computing)

    @property
    def job(self) -> EncodeJob:
        """The files that are wanted."""
        return EncodeJob(
            extraction=self.extraction,
            chosen=ChosenUtterances(data=(self.data,), languages=self.languages),
            units=self.units,
            out=self.out,
            computing=self.computing,
            speed=self.speed,
        )


def encode(encoding: Encoding, progress: Progress = nothing) -> EncodedCorpus:
    """Find the units of a corpus; the same call again goes on where it stopped, and gives the same files.

    Raises:
        SprachbundError: another model than the units were made of, utterances of no frames that are not to be
            skipped, or `out` begun with other settings.
    """
    units = Units(encoding.units)
    check_source(units, encoding.extraction)
    check_begun(encoding.out, _settings(encoding, units))
    if (encoding.out / MANIFEST).exists():
        return EncodedCorpus(encoding.out)
    job = encoding.job
    skipped = _without_frames(job, encoding)
    begin(encoding.out, _settings(encoding, units))
    run(job, workers=encoding.computing.workers, ray_address=encoding.computing.ray, progress=progress)
    write_json(encoding.out / MANIFEST, _info(job, encoding, units, skipped))
    return EncodedCorpus(encoding.out)


def check_source(units: Units, extraction: Extraction) -> None:
    """Raises SprachbundError unless features are of the model and layer that the units were made of."""
    source = units.config.source
    if extraction.hash != source.hash:
        raise SprachbundError(
            f"{extraction.directory} is not the model that {units.directory} was made of ({source.name}, "
            f"{source.hash[:12]}; this one is {extraction.hash[:12]}); name that one"
        )
    if extraction.layer != source.layer:
        raise SprachbundError(f"{units.directory} was made of layer {source.layer}, not {extraction.layer}")


def _settings(encoding: Encoding, units: Units) -> dict[str, object]:
    return {
        **units.identity.model_dump(),
        "data": texts_hash(encoding.data),
        "languages": encoding.languages or None,
        "speed": encoding.speed,
        "device": encoding.extraction.device,
        "batch_s": encoding.extraction.batch_s,
        "threads": encoding.computing.threads,
        "block": encoding.computing.block,
    }


def _without_frames(job: EncodeJob, encoding: Encoding) -> list[Skipped]:
    """Utterances that are too short, before anything is computed."""
    source = encoding.extraction.open()
    lengths = [at_speed(int(num), encoding.speed) for num in job.chosen.num_samples]
    short = [number for number, length in enumerate(lengths) if not source.num_frames(length)]
    missing = [
        Skipped(
            id=job.chosen.utterance(number).id,
            reason=f"{lengths[number]} samples are no frame of the encoder",
        )
        for number in short
    ]
    if missing and not encoding.skip_bad:
        raise SprachbundError(
            f"{len(missing)} of {len(lengths)} utterances of {encoding.data} have no frames, the first is "
            f"{missing[0].id}: {missing[0].reason}; give longer ones, or leave them out with --skip-bad"
        )
    return missing


def _info(job: EncodeJob, encoding: Encoding, units: Units, skipped: list[Skipped]) -> EncodedInfo:
    shards, totals, seconds = [], np.zeros(3, np.int64), 0.0
    for path, _ in job.files:
        lines = list(read_lines(path, advice=f"delete {path.name}, and the same command makes it again"))
        counts = np.array(
            [len(lines), sum(len(u.units) for u in lines), sum(sum(u.durations) for u in lines)]
        )
        totals += counts
        seconds += sum(u.duration_s for u in lines)
        shards.append(Shard(file=path.name, hash=file_sha256(path), utterances=int(counts[0])))
    return EncodedInfo(
        identity=units.identity,
        clusters=units.num_clusters,
        frame_s=units.config.source.frame_s,
        corpus=CorpusInfo(
            directory=str(encoding.data),
            hash=job.chosen.manifests[0].texts_hash(),
            utterances=len(job.chosen.indices),
        ),
        speed=encoding.speed,
        utterances=int(totals[0]),
        units=int(totals[1]),
        frames=int(totals[2]),
        hours=round(seconds / 3600, 6),
        skipped=tuple(skipped),
        shards=tuple(shards),
    )

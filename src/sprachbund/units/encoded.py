"""Utterances as units on disk, read at random: lines of JSON in shards, and a manifest."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from sprachbund.errors import SprachbundError
from sprachbund.units.directory import CorpusInfo, Identity, Units
from sprachbund.units.files import read_json
from sprachbund.units.strings import expand, to_string, to_units
from sprachbund.util.files import file_sha256, parse_json, validate

MANIFEST = "manifest.json"
MADE_BY = "sprachbund units encode"
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
    """What a manifest says.

    Attributes:
        format: of the lines.
        identity: of the units.
        clusters: K.
        frame_s: seconds of a frame.
        corpus: what was encoded.
        speed: at which the speech was heard.
        utterances: written.
        units: of them all, repeats removed.
        frames: of them all.
        hours: of them all, at that speed.
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
    """One line.

    Attributes:
        id: of the utterance in its corpus.
        units: as characters, repeats removed, S of them.
        durations: frames of each (S,).
        duration_s: length in seconds, at the speed of the encoding.
        language: BCP-47 tag of the speech; empty without speech.
        speaker: who speaks.
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


class Encoded:
    """A corpus as units.

    Args:
        directory: as `encode` writes it.
        units: that it is to be used with; not checked if None.

    Raises:
        SprachbundError: no such directory, a shard that is not the one its hash names, or units of another
            k-means or sampling rate.
    """

    def __init__(self, directory: str | Path, units: Units | None = None) -> None:
        self.directory = Path(directory)
        self.info = read_json(self.directory / MANIFEST, EncodedInfo, MADE_BY)
        if units is not None:
            units.identity.check(self.info.identity, str(directory), strings_only=True)
        places: list[tuple[int, int]] = []
        for number, shard in enumerate(self.info.shards):
            path = self.directory / shard.file
            if not path.is_file() or file_sha256(path) != shard.hash:
                what = "is missing" if not path.is_file() else "has changed since it was made"
                raise SprachbundError(f"{path} {what}; copy the directory again, or make it with `{MADE_BY}`")
            with path.open("rb") as file:
                lengths = [len(line) for line in file]
            if len(lengths) != shard.utterances:
                raise SprachbundError(
                    f"{path} has {len(lengths)} lines, {MANIFEST} says {shard.utterances}; copy the directory again"
                )
            places += [(number, start) for start in np.cumsum([0, *lengths])[:-1].tolist()]
        self._places = np.array(places, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> UnitUtterance:
        shard, start = self._places[index].tolist()
        with (self.directory / self.info.shards[shard].file).open("rb") as file:
            file.seek(start)
            return _parsed(file.readline(), f"{file.name}, byte {start}")

    def __iter__(self) -> Iterator[UnitUtterance]:
        for shard in self.info.shards:
            yield from read_lines(self.directory / shard.file)


def read_lines(path: Path) -> Iterator[UnitUtterance]:
    """The utterances of a shard, one after the other."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield _parsed(line, f"{path}, line {number}")


class _Line(RootModel[UnitUtterance]):
    """What a line holds."""

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


def _parsed(line: bytes, where: str) -> UnitUtterance:
    advice = f"copy the directory again, or make it with `{MADE_BY}`"
    return validate(_Line, parse_json(line, where, advice=advice), where, advice=advice).root

"""The one on-disk form of a corpus: a directory of shards that lhotse reads and that we read at random.

A shard is `cuts.00000.jsonl` (one lhotse MonoCut per line) beside `audio.00000.wav` (16 kHz, 16 bit, mono, the
shard's utterances back to back), so that a corpus of any size is a few files, every utterance is one seek away,
and copying it is copying a directory. `shard.00000.sha256` has the checksums of both, as `sha256sum` writes them.
`dataset.json` says what it is, whose, and how much. A shard appears under its final name only when it is whole, so
writing can be stopped and resumed.

Damage is an error and never silence: what is cheap to see is seen when a corpus is opened (every line, the checksum of
the lines, the length of the sound), the checksum of a shard's sound when it is first read.
"""

import copy
import hashlib
import json
import mmap
import os
import re
import wave
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.util.files import (
    atomic_path,
    file_sha256,
    files_sha256,
    named_twice,
    one_of,
    parse_json,
    read_object,
    read_text,
    validate,
    write_json,
    write_text,
)
from sprachbund.util.options import renamed
from sprachbund.util.progress import Progress, nothing
from sprachbund.util.provenance import data_hash

INFO_FILE = "dataset.json"
"""File with the name, owner and size of a corpus; it is written last."""
INDEX_FILE = "index.json"
"""The same of a corpus of tar shards; see `sprachbund.data.shards`."""
_ADVICE = "copy the corpus again, or delete the shard and make it again"
_FORMER_NAMES = {"foreign_words": "embedded_words", "foreign_places": "embedded_ranges"}
_FORMER_NAMES_OF_SPANS = {"places": "word_ranges"}
_SLACK = 160
"""Samples by which utterances may overlap or leave the sound: other programs round times to 10 ms."""
_LONGEST_S = 1e8


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One line of a manifest, without its sound.

    Attributes:
        id: unique within the corpus.
        duration_s: length in seconds.
        text: transcript.
        language: BCP-47 tag of the speech; empty for recordings without speech.
        speaker: name of the speaker.
        translations: language to text.
        custom: further facts from the corpus (corpus, kind, spans ...).
    """

    id: str
    duration_s: float
    text: str
    language: str
    speaker: str
    translations: Mapping[str, str]
    custom: Mapping[str, Any]

    def text_in(self, language: str) -> str | None:
        """Transcript or translation in a language, None when there is none."""
        return (self.text or None) if language == self.language else self.translations.get(language)


_LOUDEST = 8.0
"""Recordings in floats may be hot, and are clipped; beyond this, they were never scaled."""


def refuse_integers(name: str, samples: np.ndarray) -> None:
    """Raise SprachbundError for floats that are integers by their scale, and would be clipped to a square wave.

    Args:
        name: name of the recording or utterance.
        samples: (num_samples,) float32.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > _LOUDEST:
        raise SprachbundError(
            f"{name} has samples up to {peak:.0f}, where 1 is full scale; divide by 32768 or export as 16 bit"
        )


_FULL_SCALE = 0.9999
"""Samples of 16 bit reach more. At 16 kHz, only a sine of up to 36 Hz that reaches 1 has three such in a row."""


def is_clipped(samples: np.ndarray) -> bool:
    """Tell whether peaks were cut off, or will be as the sound is written: three samples in a row are at full scale.

    Args:
        samples: (num_samples,) float32.
    """
    full = np.abs(samples) >= _FULL_SCALE
    return bool((full[:-2] & full[1:-1] & full[2:]).any())


_MOST_SAMPLES = (2**32 - 1 - 36) // 2
"""A WAV file counts the bytes of its sound and of its head, 36, in 32 bits."""


class ManifestWriter:
    """Writes utterances into shards; a context manager, or call `close`.

    A writer on a directory that already holds whole shards continues after them, unless a shard is given.
    """

    def __init__(self, directory: str | Path, shard_size: int = 1000, shard: int | None = None) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.shard_size = shard_size
        self.shard = len(shard_numbers(self.directory)) if shard is None else shard
        self._lines: list[dict[str, Any]] = []
        self._sound: list[np.ndarray] = []
        self._num_samples = 0

    def add(
        self,
        samples: np.ndarray,
        *,
        text: str,
        language: str,
        speaker: str,
        utterance_id: str,
        translations: Mapping[str, str] | None = None,
        custom: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one utterance: samples (num_samples,) float32 at 16 kHz, and what is said in it.

        Args:
            samples: (num_samples,) float32 at 16 kHz.
            text: transcript.
            language: BCP-47 tag.
            speaker: name of the speaker.
            utterance_id: unique name of the utterance.
            translations: BCP-47 tag to text.
            custom: further fields.

        Raises:
            SprachbundError: the samples are integers in the form of floats, see `refuse_integers`; or the shard would
                be longer than a WAV file can be.
        """
        refuse_integers(utterance_id, samples)
        if (num_samples := self._num_samples + len(samples)) > _MOST_SAMPLES:
            raise SprachbundError(
                f"with {utterance_id}, a shard has {num_samples / SAMPLE_RATE / 3600:.1f} h of sound, and a WAV file "
                f"holds {_MOST_SAMPLES / SAMPLE_RATE / 3600:.1f} h; cut the recording, or make smaller shards"
            )
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
        self._lines.append(
            {
                "id": utterance_id,
                "start": self._num_samples / SAMPLE_RATE,
                "duration": len(pcm) / SAMPLE_RATE,
                "text": text,
                "language": language,
                "speaker": speaker,
                "custom": {"translations": dict(translations or {}), **(custom or {})},
            }
        )
        self._sound.append(pcm)
        self._num_samples += len(pcm)
        if len(self._lines) == self.shard_size:
            self.flush()

    def flush(self) -> None:
        """Write what has been added as a whole shard."""
        if not self._lines:
            return
        audio = audio_path(self.directory, self.shard)
        with atomic_path(audio) as partial:
            with wave.open(str(partial), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                for pcm in self._sound:
                    file.writeframesraw(pcm.tobytes())
            sound_sum = file_sha256(partial)
        recording = {
            "id": audio.stem,
            "sources": [{"type": "file", "channels": [0], "source": audio.name}],
            "sampling_rate": SAMPLE_RATE,
            "num_samples": self._num_samples,
            "duration": self._num_samples / SAMPLE_RATE,
            "channel_ids": [0],
        }
        cuts = cuts_path(self.directory, self.shard)
        lines = "".join(_cut_line(line, recording) for line in self._lines)
        lines_sum = hashlib.sha256(lines.encode()).hexdigest()
        sums = f"{sound_sum}  {audio.name}\n{lines_sum}  {cuts.name}\n"
        write_text(checksums_path(self.directory, self.shard), sums)
        write_text(cuts, lines)  # last: it stands for the shard being whole
        self.shard += 1
        self._lines, self._sound, self._num_samples = [], [], 0

    def close(self, info: Mapping[str, Any] | None = None) -> None:
        """Write the last shard and `dataset.json`: `info` plus counts and hours, in all and per language."""
        self.flush()
        manifest = Manifest(self.directory)
        summary = {**(info or {}), **manifest.summary()}
        write_json(self.directory / INFO_FILE, summary)

    def __enter__(self) -> "ManifestWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


class Utterances(ABC):
    """The utterances of a corpus, read at random: those of a directory (`Manifest`), or of tar shards (`Shards`).

    Args:
        directory: directory of the corpus; of shards it may be a URL.
        tags: BCP-47 tags of the languages.
        codes: (N,) number of each utterance's language in `tags`.
        durations_s: (N,) length of every utterance.
    """

    def __init__(
        self, directory: Path, tags: Sequence[str], codes: np.ndarray, durations_s: np.ndarray
    ) -> None:
        self.directory = directory
        self._tags, self._codes = tags, codes
        self.durations_s = durations_s

    @cached_property
    def languages(self) -> np.ndarray:
        """BCP-47 tag of every utterance's speech, (N,)."""
        return np.array(self._tags or [""])[self._codes]

    @property
    def spoken(self) -> Sequence[str]:
        """BCP-47 tags that occur among `languages`, sorted."""
        return sorted(self._tags[code] for code in np.unique(self._codes).tolist())

    def __len__(self) -> int:
        return len(self.durations_s)

    @abstractmethod
    def __getitem__(self, index: int) -> Utterance: ...

    def __iter__(self) -> Iterator[Utterance]:
        return (self[i] for i in range(len(self)))

    @abstractmethod
    def samples(self, index: int) -> np.ndarray:
        """Sound of an utterance, (num_samples,) float32 at 16 kHz.

        Raises:
            SprachbundError: the sound is not there in full, or the shard is another than its checksum says.
        """
        ...

    @abstractmethod
    def only(self, chosen: Sequence[int] | np.ndarray) -> Self:
        """The utterances of these indices, in the order of the corpus."""
        ...

    def _with(self, codes: np.ndarray, durations_s: np.ndarray) -> Self:
        """A copy with the languages and lengths of some of its utterances."""
        part = copy.copy(self)
        part.__dict__.pop("languages", None)
        part._codes, part.durations_s = codes, durations_s
        return part

    def every(self, step: int) -> Sequence[int]:
        """Indices of one in so many utterances, evenly over the corpus, that are cheap to read together.

        Of each `step` utterances one is drawn, always the same: kinds of utterances often take turns in a corpus, and
        a fixed distance could meet some of them alone.
        """
        firsts = np.arange(0, len(self), step)
        drawn = firsts + np.random.default_rng(step).integers(step, size=len(firsts))
        indices: list[int] = np.minimum(drawn, len(self) - 1).tolist()
        return indices

    def at(self, epoch: int | None = None) -> Self:
        """Return the utterances of an epoch of training: always the same here; see `LiveEdition` for others."""
        return self

    @property
    @abstractmethod
    def num_shards(self) -> int:
        """Shards of the corpus."""
        ...

    @abstractmethod
    def check(self, progress: Progress = nothing) -> int:
        """Compare the sound of all shards with their checksums.

        Args:
            progress: called with shards done and shards in all.

        Returns:
            How many shards have checksums; of the others, made by earlier versions, only the lengths are known to fit.

        Raises:
            SprachbundError: a shard is not what it was when it was written.
        """
        ...

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Return the description of the corpus: name, licence, attribution …"""
        ...

    @abstractmethod
    def content_hash(self) -> str:
        """SHA-256 of the corpus."""
        ...

    @abstractmethod
    def texts_hash(self) -> str:
        """SHA-256 of what is said of every utterance, which is cheap to read beside the sound."""
        ...

    @abstractmethod
    def cuts(self) -> Any:
        """The corpus as a lazy lhotse CutSet. Raises SprachbundError: lhotse cannot read it from there."""
        ...

    def summary(self) -> dict[str, Any]:
        """Counts and hours, in all and per language."""
        per_language = {
            tag: {
                "utterances": int((self.languages == tag).sum()),
                "hours": round(float(self.durations_s[self.languages == tag].sum()) / 3600, 3),
            }
            for tag in sorted(set(self.languages.tolist()))
        }
        hours = round(float(self.durations_s.sum()) / 3600, 3)
        return {"utterances": len(self), "hours": hours, "per_language": per_language}


class Manifest(Utterances):
    """A corpus directory, read at random; the sound is read only when asked for.

    Args:
        directory: directory of the corpus.
        shares: language to the share of its utterances that is taken, 0 to 1; a language that is not named is taken
            whole. Utterances are chosen by their id, so a smaller share is part of a larger one.

    Raises:
        SprachbundError: no corpus there, or a damaged one; a share of a language that it does not hold.
    """

    def __init__(self, directory: str | Path, shares: Mapping[str, float] | None = None) -> None:
        directory = Path(directory)
        numbers = shard_numbers(directory)
        if not numbers:
            raise _no_corpus(directory)
        locations: list[tuple[int, int, int, int]] = []
        durations: list[float] = []
        codes: list[int] = []
        known: dict[str, int] = {}
        seen: set[str] = set()
        ids: set[str] = set()
        for number in numbers:
            for offset, start, num_samples, cut in _read_shard(directory, number, ids):
                language = cut["supervisions"][0].get("language") or ""
                seen.add(language)
                if shares is None or language not in shares or _hash_fraction(cut["id"]) < shares[language]:
                    locations.append((number, offset, start, num_samples))
                    durations.append(cut["duration"])
                    codes.append(known.setdefault(language, len(known)))
        if unknown := sorted(set(shares or {}) - seen):
            raise SprachbundError(
                f"{directory} holds no speech in {', '.join(unknown)}, of which a share is wanted; "
                f"it holds {', '.join(sorted(seen))}"
            )
        lengths_s = np.array(durations, dtype=np.float32)
        super().__init__(directory, list(known), np.array(codes, dtype=np.uint16), lengths_s)
        self._locations = np.array(locations, dtype=np.int64).reshape(-1, 4)
        self._shards = {number: index for index, number in enumerate(numbers)}
        self._heard = _Flags(len(numbers))

    def info(self) -> dict[str, Any]:
        """Return the content of `dataset.json`; see `read_info`."""
        return read_info(self.directory)

    def content_hash(self) -> str:
        """SHA-256 of the corpus; see `sprachbund.util.provenance.data_hash`."""
        return data_hash(self.directory)

    def texts_hash(self) -> str:
        """SHA-256 of what is said of every utterance, which is cheap to read beside the sound."""
        return str(texts_hash(self.directory))

    def __getitem__(self, index: int) -> Utterance:
        number, offset, _, _ = self._locations[index].tolist()
        path = cuts_path(self.directory, number)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                line = file.readline()
        except OSError as error:
            raise SprachbundError(f"{path} cannot be read ({error.strerror}); {_ADVICE}") from error
        return utterance_of(parse_cut(line, f"{path}, byte {offset}", self.directory))

    def only(self, chosen: Sequence[int] | np.ndarray) -> Self:
        """The utterances of these indices, in the order of the corpus."""
        kept = np.sort(np.asarray(chosen, dtype=np.int64))
        part = self._with(self._codes[kept], self.durations_s[kept])
        part._locations = self._locations[kept]
        return part

    def samples(self, index: int) -> np.ndarray:
        """Sound of an utterance; see `Utterances`."""
        number, _, start, num_samples = self._locations[index].tolist()
        path = audio_path(self.directory, number)
        if not self._heard.is_set(self._shards[number]):
            check_sound(self.directory, number)
            self._heard.set(self._shards[number])
        try:
            with path.open("rb") as stream, wave.open(stream) as file:
                file.setpos(start)
                pcm = np.frombuffer(file.readframes(num_samples), dtype=np.int16)
        except (OSError, EOFError, ValueError, wave.Error) as error:
            raise SprachbundError(
                f"{path}: utterance {self[index].id!r} cannot be read ({error}); {_ADVICE}"
            ) from error
        if len(pcm) != num_samples:
            raise SprachbundError(
                f"{path}: utterance {self[index].id!r} is {len(pcm) / SAMPLE_RATE:.3f} s long, not "
                f"{num_samples / SAMPLE_RATE:.3f} s; {_ADVICE}"
            )
        return pcm.astype(np.float32) / 32767

    def check(self, progress: Progress = nothing) -> int:
        """See `Utterances`; the lines of the shards were compared when the corpus was opened."""
        known = 0
        for done, number in enumerate(self._shards):
            progress(done, len(self._shards))
            known += check_sound(self.directory, number)
        progress(len(self._shards), len(self._shards))
        return known

    @property
    def num_shards(self) -> int:
        """Shards in the directory."""
        return len(self._shards)

    def cuts(self) -> Any:
        """The corpus as a lazy lhotse CutSet whose recordings resolve from anywhere."""
        from lhotse import CutSet, combine

        shards = [CutSet.from_jsonl_lazy(cuts_path(self.directory, n)) for n in shard_numbers(self.directory)]
        cuts = shards[0] if len(shards) == 1 else combine(*shards)
        return cuts.with_recording_path_prefix(self.directory)


def _hash_fraction(utterance_id: str) -> float:
    """A number in [0, 1) that depends on the utterance's id alone: it is in every share above that number."""
    return int.from_bytes(hashlib.sha256(utterance_id.encode()).digest()[:8], "big") / 2**64


def distinct_directories(directories: Sequence[str | Path]) -> list[Path]:
    """The directories of corpora that are used together, in the order given.

    Args:
        directories: names of them.

    Raises:
        SprachbundError: one comes twice, so its utterances would count twice.
    """
    paths = [Path(directory) for directory in directories]
    if twice := named_twice(paths):
        raise SprachbundError(f"{twice[0]} is named twice; name each corpus directory once")
    return paths


def check_apart(trained: Sequence[str | Path], measured: Sequence[str | Path]) -> None:
    """Check that every corpus is named once, to be trained on or to be measured on.

    Args:
        trained: directories of the corpora that something is trained on.
        measured: directories of those that it is measured on.

    Raises:
        SprachbundError: a corpus comes twice, or is used for both.
    """
    for directories in (trained, measured):
        distinct_directories(directories)
    if both := in_both(trained, measured):
        raise SprachbundError(f"{both[0]} is trained on and measured on; measure on another corpus")


def in_both(trained: Iterable[str | Path], measured: Iterable[str | Path]) -> list[Path]:
    """Corpora that something is trained on and measured on.

    Args:
        trained: directories of the corpora that it is trained on.
        measured: directories of those that it is measured on.
    """
    known = {Path(directory).resolve() for directory in trained}
    return [Path(directory) for directory in measured if Path(directory).resolve() in known]


def corpora_in(directory: Path, *, deepest: int | None = None) -> list[Path]:
    """The corpora in a folder, of either form: itself, and those below it in the order of names.

    Folders that are linked belong to it, and hidden ones do not. One that has two names is taken by the first.

    Args:
        directory: folder that is looked through.
        deepest: levels below it that are looked at; all if None.
    """
    corpora: list[Path] = []
    seen = set[str]()
    for folder, below, files in os.walk(directory, followlinks=True):
        depth = len(Path(folder).parts) - len(directory.parts)
        below[:] = [] if depth == deepest else sorted(name for name in below if not name.startswith("."))
        if (real := os.path.realpath(folder)) in seen:  # of links to a folder above there would be no end
            below.clear()
            continue
        seen.add(real)
        if INDEX_FILE in files or any(fnmatch(name, "cuts.*.jsonl") for name in files):
            corpora.append(Path(folder))
    return corpora


def _no_corpus(directory: Path) -> SprachbundError:
    """The error of a folder that is no corpus; it names the corpora below."""
    if not directory.exists():
        return SprachbundError(f"{directory} does not exist; check the path")
    if (directory / INDEX_FILE).exists():
        return SprachbundError(
            f"{directory} holds tar shards, which this does not read; name the corpus that they were packed of"
        )
    # Not looked for further below, since this may be the wrong folder, and a large one.
    if below := [path for path in corpora_in(directory, deepest=1) if not (path / INDEX_FILE).exists()]:
        return SprachbundError(f"{directory} holds no cuts.*.jsonl; name {one_of(below)}")
    return SprachbundError(
        f"{directory} holds no cuts.*.jsonl; make it with `sprachbund data make` or `data prepare`"
    )


def texts_hash(directory: Path) -> str | None:
    """SHA-256 of what is said of every utterance of a corpus, or of the units in a folder; None for other folders.

    Args:
        directory: folder of one corpus, of either form, or of units that speech was encoded into.
    """
    names = ("cuts.*.jsonl", "units.*.jsonl", INDEX_FILE)
    files = [path for name in names for path in directory.glob(name)]
    return files_sha256(files) if files else None


def shard_numbers(directory: Path) -> Sequence[int]:
    """Numbers of the whole shards in a directory, in order. Raises SprachbundError for a name without a number."""
    numbers = []
    for path in directory.glob("cuts.*.jsonl"):
        match = re.fullmatch(r"cuts\.(\d{5,9})\.jsonl", path.name, re.ASCII)
        if match is None or path != cuts_path(directory, int(match[1])):
            raise SprachbundError(f"{path} is no shard, which are called cuts.00000.jsonl; move it elsewhere")
        numbers.append(int(match[1]))
    return sorted(numbers)


def cuts_path(directory: Path, number: int) -> Path:
    """Path of the manifest lines of a shard."""
    return directory / f"cuts.{number:05d}.jsonl"


def audio_path(directory: Path, number: int) -> Path:
    """Path of the sound of a shard."""
    return directory / f"audio.{number:05d}.wav"


def checksums_path(directory: Path, number: int) -> Path:
    """Path of the checksums of a shard; corpora of earlier versions have none."""
    return directory / f"shard.{number:05d}.sha256"


def read_info(directory: Path) -> dict[str, Any]:
    """Return the content of `dataset.json`; empty for a corpus without one, whose making was interrupted.

    Raises:
        SprachbundError: it is not JSON, or `name`, `utterances`, `hours` or `languages` are of another kind.
    """
    path = directory / INFO_FILE
    if not path.exists():
        return {}
    advice = "copy it again, or delete it and give the command that made the corpus again"
    return validate(_Info, read_object(path, advice=advice), str(path), advice=advice).model_dump(
        exclude_unset=True
    )


def refuse_other(directory: Path, name: str) -> None:
    """See that a folder is new or holds the corpus of a name, so that corpora never mix.

    Args:
        directory: folder that is about to be written.
        name: name of the corpus, as `dataset.json` has it.

    Raises:
        SprachbundError: a corpus of another name is there.
    """
    if (there := read_info(directory).get("name", name)) != name:
        raise SprachbundError(f"{directory} holds another corpus, {there}; name a new folder")


def check_sound(directory: Path, number: int) -> bool:
    """Compare the sound of a shard with its checksum; whether it has one.

    Raises:
        SprachbundError: it is another.
    """
    path = audio_path(directory, number)
    wanted = _checksums(directory, number).get(path.name)
    if wanted is None:
        return False
    try:
        checksum = file_sha256(path)
    except OSError as error:
        raise SprachbundError(f"{path} cannot be read ({error.strerror}); {_ADVICE}") from error
    _compare(checksum, wanted, path, number)
    return True


class _Info(BaseModel):
    """Known keys of `dataset.json`; the others are kept as they are."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    name: str = ""
    utterances: int = Field(0, ge=0)
    hours: float = Field(0.0, ge=0)
    languages: list[str] = []


class _Flags:
    """Shards whose checksum was compared, in memory that forked workers share, so that one of them does it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._flags = mmap.mmap(-1, count)

    def is_set(self, number: int) -> bool:
        return self._flags[number] != 0

    def set(self, number: int) -> None:
        self._flags[number] = 1

    def __reduce__(self) -> tuple[type["_Flags"], tuple[int]]:
        """Memory cannot be sent to another process; there, all are compared again."""
        return _Flags, (self._count,)


def _read_shard(
    directory: Path, number: int, ids: set[str]
) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
    """Every cut of a shard with the offset of its line, its first sample, and how many samples it has.

    Args:
        directory: directory of the corpus.
        number: number of the shard.
        ids: ids of utterances read before; those read here are added.

    Raises:
        SprachbundError: the lines are not those of the checksum; one is no cut, its id is taken, or its sound
            overlaps with another's or lies behind the end of the sound.
    """
    path = cuts_path(directory, number)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SprachbundError(f"{path} cannot be read ({error.strerror}); {_ADVICE}") from error
    held = _num_samples(audio_path(directory, number))
    records: list[tuple[int, int, int, dict[str, Any]]] = []
    offset = 0
    for index, line in enumerate(content.splitlines(keepends=True), start=1):
        where = f"{path}, line {index}"
        cut = parse_cut(line, where, directory)
        start, num_samples = round(cut["start"] * SAMPLE_RATE), round(cut["duration"] * SAMPLE_RATE)
        if cut["id"] in ids:
            raise SprachbundError(f"{where}: id {cut['id']!r} is there already; {_ADVICE}")
        if start + num_samples > held + _SLACK:
            raise SprachbundError(
                f"{where}: utterance {cut['id']!r} ends at {(start + num_samples) / SAMPLE_RATE:.3f} s, but "
                f"{audio_path(directory, number).name} is {held / SAMPLE_RATE:.3f} s long; {_ADVICE}"
            )
        ids.add(cut["id"])
        start = min(start, held)
        records.append((offset, start, min(num_samples, held - start), cut))
        offset += len(line)
    if not records:
        raise SprachbundError(f"{path} is empty; {_ADVICE}")
    ordered = sorted(range(len(records)), key=lambda index: records[index][1])
    for before, after in pairwise(ordered):
        if records[after][1] < records[before][1] + records[before][2] - _SLACK:
            raise SprachbundError(
                f"{path}, line {after + 1}: utterance {records[after][3]['id']!r} starts inside "
                f"{records[before][3]['id']!r}; {_ADVICE}"
            )
    if wanted := _checksums(directory, number).get(path.name):  # last, since the faults above say more
        _compare(hashlib.sha256(content).hexdigest(), wanted, path, number)
    yield from records


def utterance_of(cut: Mapping[str, Any]) -> Utterance:
    """The utterance of a cut that `parse_cut` gave."""
    said = cut["supervisions"][0]
    custom = dict(said.get("custom") or {})
    return Utterance(
        id=cut["id"],
        duration_s=cut["duration"],
        text=said.get("text") or "",
        language=said.get("language") or "",
        speaker=said.get("speaker") or "",
        translations=custom.pop("translations", None) or {},
        custom=custom,
    )


def parse_cut(line: bytes, where: str, corpus: str | Path) -> dict[str, Any]:
    """A line as lhotse's MonoCut, with all that is read of it checked.

    Args:
        line: JSON.
        where: file and line, for errors.
        corpus: directory or URL, for the warning of `use_current_names`.

    Raises:
        SprachbundError: it is no cut.
    """
    cut = parse_json(line, where, advice=_ADVICE)
    try:
        _check_cut(cut)
    except ValueError as error:
        raise SprachbundError(f"{where}: {error}; {_ADVICE}") from None
    use_current_names(cut, corpus)
    return dict(cut)


def use_current_names(cut: dict[str, Any], corpus: str | Path) -> None:
    """Give the fields of a cut from an earlier version the names of today, with one warning a corpus and name.

    Args:
        cut: as it was read, checked or not; it is changed.
        corpus: directory or URL.

    Raises:
        SprachbundError: a field is there under both names.
    """
    match cut:
        case {"supervisions": [{"custom": dict(custom)} as said, *_]}:
            custom = renamed(custom, _FORMER_NAMES, str(corpus), once=True)
            if isinstance(spans := custom.get("spans"), list):
                custom["spans"] = [
                    renamed(span, _FORMER_NAMES_OF_SPANS, str(corpus), once=True)
                    if isinstance(span, dict)
                    else span
                    for span in spans
                ]
            said["custom"] = custom


def _check_cut(cut: Any) -> None:
    """Raise ValueError, naming the field, for a cut that cannot be used."""
    _expect(isinstance(cut, dict), "the line", cut, "an object")
    _expect(bool(cut.get("id")) and _is_text(cut["id"]), "id", cut.get("id"), "a text")
    for name in ("start", "duration"):
        _expect(_is_time(cut.get(name)), name, cut.get(name), f"a number of seconds, 0 to {_LONGEST_S:.0e}")
    supervisions = cut.get("supervisions")
    _expect(
        isinstance(supervisions, list) and bool(supervisions), "supervisions", supervisions, "a list of one"
    )
    said = supervisions[0]
    _expect(isinstance(said, dict), "supervisions.0", said, "an object")
    for name in ("text", "language", "speaker"):
        value = said.get(name)
        _expect(value is None or _is_text(value), f"supervisions.0.{name}", value, "a text")
    custom = said.get("custom")
    if custom is None:
        return
    _expect(isinstance(custom, dict), "custom", custom, "an object")
    translations = custom.get("translations")
    if translations is not None:
        good = isinstance(translations, dict) and all(map(_is_text, (*translations, *translations.values())))
        _expect(good, "custom.translations", translations, "texts by language")
    languages = custom.get("languages")
    if languages is not None:
        good = isinstance(languages, list) and all(map(_is_text, languages))
        _expect(good, "custom.languages", languages, "a list of language tags")
    spans = custom.get("spans")
    if spans is not None:
        _expect(isinstance(spans, list), "custom.spans", spans, "a list")
        for span in spans:
            good = isinstance(span, dict) and _is_text(span.get("language"))
            good = good and all(
                span.get(n) is None or _is_time(span[n], slack=True) for n in ("start_s", "end_s")
            )
            good = good and (span.get("text") is None or _is_text(span["text"]))
            _expect(good, "custom.spans", span, "an object with language, start_s and end_s")


def _expect(good: bool, field: str, value: Any, wanted: str) -> None:
    if not good:
        shown = repr(value)
        raise ValueError(f"{field} is {shown if len(shown) <= 60 else shown[:57] + '...'}, not {wanted}")


def _is_text(value: Any) -> bool:
    """Whether it is text that can be written as UTF-8; half a surrogate pair, as JSON may name it, cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_time(value: Any, *, slack: bool = False) -> bool:
    """Whether it is a sensible number of seconds; not NaN, of which no comparison is true."""
    least = -1.0 if slack else 0.0
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= _LONGEST_S


def _num_samples(path: Path) -> int:
    """Samples that a shard's sound holds, by its header and its size. Raises SprachbundError if it is no such sound."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream, wave.open(stream) as file:
            kind = file.getframerate(), file.getnchannels(), file.getsampwidth()
            promised, held = (
                file.getnframes(),
                (size - stream.tell()) // 2,
            )  # the reader stops where samples begin
    except FileNotFoundError:
        raise SprachbundError(f"{path} does not exist; {_ADVICE}") from None
    except (OSError, EOFError, ValueError, wave.Error) as error:
        reason = str(error) or "it ends in its head"
        raise SprachbundError(f"{path} is not a WAV file ({reason}); {_ADVICE}") from error
    if kind != (SAMPLE_RATE, 1, 2):
        raise SprachbundError(
            f"{path} has {kind[1]} channels of {8 * kind[2]} bit at {kind[0]} Hz, not one of 16 bit at "
            f"{SAMPLE_RATE} Hz; {_ADVICE}"
        )
    if held < promised:
        raise SprachbundError(
            f"{path} is {held / SAMPLE_RATE:.3f} s long, not {promised / SAMPLE_RATE:.3f} s as its head says; {_ADVICE}"
        )
    return promised


def _checksums(directory: Path, number: int) -> dict[str, str]:
    """SHA-256 by name of file, of a shard; none for those of earlier versions."""
    path = checksums_path(directory, number)
    if not path.exists():
        return {}
    advice = f"copy it again, or delete it if {cuts_path(directory, number).name} and its sound are good"
    sums = {}
    for index, line in enumerate(read_text(path, advice=advice).splitlines(), start=1):
        if not (match := re.fullmatch(r"([0-9a-f]{64})  (\S+)", line)):
            raise SprachbundError(f"{path}, line {index} is not a checksum and a name; {advice}")
        sums[match[2]] = match[1]
    for name in (cuts_path(directory, number).name, audio_path(directory, number).name):
        if name not in sums:
            raise SprachbundError(f"{path} does not name {name}; {advice}")
    return sums


def _compare(checksum: str, wanted: str, path: Path, number: int) -> None:
    if checksum != wanted:
        raise SprachbundError(
            f"{path} is damaged (its checksum is {checksum[:12]}, not {wanted[:12]}); copy the corpus again, or delete "
            f"{checksums_path(path.parent, number).name} if you changed it yourself"
        )


def _cut_line(line: Mapping[str, Any], recording: Mapping[str, Any]) -> str:
    supervision = {
        "id": line["id"],
        "recording_id": recording["id"],
        "start": 0.0,
        "duration": line["duration"],
        "channel": 0,
        "text": line["text"],
        "language": line["language"],
        "speaker": line["speaker"],
        "custom": line["custom"],
    }
    cut = {
        "id": line["id"],
        "start": line["start"],
        "duration": line["duration"],
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
    }
    return json.dumps(cut, ensure_ascii=False) + "\n"

"""Preparation of a public corpus: its licence and size, its long recordings, and its manifests.

Sections of long recordings are sought where the container can, and otherwise decoded once for all of them. Entries are
written shard by shard, with the counts of each shard beside it; a shard counts as written only when that file exists,
so an interrupted run continues.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import load, open_audio, refuse_damage
from sprachbund.corpora.public.items import (
    CorpusOptions,
    Counts,
    Cut,
    Entry,
    Item,
    LeftOut,
    Part,
    Published,
    check,
)
from sprachbund.corpora.public.tables import tag
from sprachbund.data.begun import PREPARED_FROM, begin
from sprachbund.data.manifest import (
    ManifestWriter,
    is_clipped,
    refuse_integers,
    shard_numbers,
)
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import Samples
from sprachbund.util.files import read_object, write_text

# Sections of long recordings.

_SEEKABLE = frozenset({".wav", ".flac", ".ogg", ".sph"})
_BYTES = 2  # of a sample in the temporary file
_SLACK_S = 0.5  # published times run past the end of a recording by as much, without a word being lost


class Recordings:
    """Reads stretches of recordings; a context manager.

    A recording that cannot be sought in (mp3, m4a ...) is decoded once to a temporary file and kept until
    another one is asked for, so neither memory nor time grows with its length times its utterances.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: IO[bytes] | None = None
        self._damaged_s: list[float] = []

    def __enter__(self) -> "Recordings":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget()

    def samples(self, cut: Cut) -> Samples:
        """Sound of a stretch, (num_samples,) at 16 kHz.

        Raises:
            SprachbundError: no such recording, damaged, or it ends before the stretch does.
        """
        if cut.channel is not None:
            samples = _one_channel(cut, cut.channel)
        elif cut.duration_s is None and not cut.start_s:
            return _whole(cut.path)
        elif cut.path.suffix.lower() in _SEEKABLE or cut.duration_s is None:
            samples = load(cut.path, cut.start_s, cut.duration_s, intact=True)
        else:
            samples = self._from_decoded(cut.path, cut.start_s, cut.duration_s)
        if cut.duration_s is not None:
            _check_length(cut, len(samples) / SAMPLE_RATE)
        return samples

    def _from_decoded(self, path: Path, start_s: float, duration_s: float) -> Samples:
        file = self._decoded(path)
        refuse_damage(str(path), self._damaged_s, start_s + duration_s)
        file.seek(round(start_s * SAMPLE_RATE) * _BYTES)
        pcm = np.frombuffer(file.read(round(duration_s * SAMPLE_RATE) * _BYTES), dtype=np.int16)
        return (pcm / 32767).astype(np.float32)

    def _decoded(self, path: Path) -> IO[bytes]:
        if self._file is not None and self._path == path:
            return self._file
        self._forget()
        file = tempfile.TemporaryFile()  # noqa: SIM115 - kept for the stretches to come
        audio = open_audio(path)
        for block in audio.blocks():
            refuse_integers(str(path), block)
            file.write((np.clip(block, -1, 1) * 32767).astype(np.int16).tobytes())
        self._path, self._file, self._damaged_s = path, file, audio.damaged_s
        return file

    def _forget(self) -> None:
        if self._file is not None:
            self._file.close()
        self._path = self._file = None


def _whole(path: Path) -> Samples:
    audio = open_audio(path)
    samples = np.concatenate(list(audio.blocks()))
    if audio.warnings:  # cut off or damaged: the transcript would say more than is heard
        raise SprachbundError(f"{path}: {audio.warnings[0]}")
    return samples


def _one_channel(cut: Cut, channel: int) -> Samples:
    import soundfile

    try:
        with soundfile.SoundFile(cut.path) as file:
            if channel >= file.channels:
                raise SprachbundError(f"{cut.path} has {file.channels} channels, not a channel {channel + 1}")
            file.seek(min(round(cut.start_s * file.samplerate), file.frames))
            frames = -1 if cut.duration_s is None else round(cut.duration_s * file.samplerate)
            heard = file.read(frames, dtype="float32", always_2d=True)[:, channel]
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        how = "copy it again" if cut.path.exists() else "check the folder"
        unpack = "; if it is shorten-compressed, unpack it with sph2pipe" if cut.path.exists() else ""
        raise SprachbundError(f"{cut.path} cannot be read ({error}); {how}{unpack}") from error
    if not len(heard):
        raise SprachbundError(f"{cut.path} has no sound after {cut.start_s:.2f} s; check the times")
    return load(np.ascontiguousarray(heard), sample_rate=rate)


def _check_length(cut: Cut, heard_s: float) -> None:
    wanted_s = cut.duration_s or 0.0
    if heard_s <= 0 or (wanted_s - heard_s > _SLACK_S and heard_s < 0.9 * wanted_s):
        raise SprachbundError(
            f"{cut.path} ends at {cut.start_s + heard_s:.2f} s, the utterance at "
            f"{cut.start_s + wanted_s:.2f} s; copy the recording again"
        )


# Manifests of a corpus, shard by shard.

SHARD_SIZE = 250
"""Entries of the corpus in a shard: its sound is in memory while it is written."""

UNREADABLE = "sound cannot be read"
LEFT_OUT = "left_out.tsv"
_COUNTS = ".counts.{}.json"


def _begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Begin to fill a folder, or see that it was begun with the same settings."""
    former = out / PREPARED_FROM
    known = read_object(former, advice="name a new folder") if former.exists() else None
    if begin(out, settings, known=known):
        # Of shards without an utterance: what was missing may be there now, or other options hold.
        for remembered in list(out.rglob(_COUNTS.format("*"))):
            remembered.unlink()


def write_part(part: Part, directory: Path, options: CorpusOptions, shard_size: int = SHARD_SIZE) -> Counts:
    """Write a part's shards that are not there yet; counts are of all of them.

    Args:
        part: reader of the entries.
        directory: folder of the part.
        options: options of writing the corpus.
        shard_size: entries in a shard.

    Raises:
        SprachbundError: an id that is there twice; sound that cannot be read, unless such is skipped.
    """
    directory.mkdir(parents=True, exist_ok=True)
    total = Counts()
    progress = _Progress(part, options)
    entries = progress.counted(_unique(part.entries()))
    with Recordings() as recordings:
        for shard in count():
            first = next(entries, None)
            if first is None:
                return total
            some = chain([first], islice(entries, shard_size - 1))
            total += _shard(directory, shard, some, recordings, options)
    return total


def close_part(directory: Path, info: Mapping[str, Any], counts: Counts) -> None:
    """Write `dataset.json` and the list of what was left out; nothing where no utterance was written.

    Args:
        directory: folder of the part.
        info: fields of dataset.json.
        counts: counts of all shards.
    """
    _list_left_out(directory / LEFT_OUT, counts)
    if shard_numbers(directory):
        ManifestWriter(directory).close({**info, "left_out": dict(counts.left_out)})


@dataclass
class _Progress:
    """Reports progress for every entry."""

    part: Part
    options: CorpusOptions
    done: int = 0

    def counted(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            yield entry
            self.done += 1
            self.options.progress(self.part.name, self.done, self.part.total)


def _unique(entries: Iterable[Entry]) -> Iterator[Entry]:
    seen: set[str] = set()
    for entry in entries:
        if isinstance(entry, Item):
            if entry.utterance_id in seen:
                raise SprachbundError(
                    f"{entry.where}: utterance {entry.utterance_id!r} is there twice; copy the corpus again"
                )
            seen.add(entry.utterance_id)
        yield entry


def _shard(
    directory: Path, shard: int, entries: Iterator[Entry], recordings: Recordings, options: CorpusOptions
) -> Counts:
    remembered = directory / _COUNTS.format(f"{shard:05d}")
    if remembered.exists():
        for _ in entries:
            pass
        return Counts.read(remembered)
    counts = Counts()
    writer = ManifestWriter(directory, shard_size=1 << 30, shard=shard)
    for entry in entries:
        if isinstance(entry, LeftOut):
            counts.available[""] += entry.published
            counts.leave_out(entry.where, entry.reason)
        else:
            _add(writer, entry, counts, recordings, options)
    writer.flush()
    write_text(remembered, json.dumps(counts.as_dict(), ensure_ascii=False))
    return counts


def _add(
    writer: ManifestWriter, item: Item, counts: Counts, recordings: Recordings, options: CorpusOptions
) -> None:
    counts.find(item)
    try:
        samples = _samples(item.sound, recordings)
        refuse_integers(item.utterance_id, samples)
    except SprachbundError as error:
        if not options.skip_bad:
            raise SprachbundError(
                f"{item.where}: {error} (or leave such utterances out with --skip-bad)"
            ) from error
        return counts.leave_out(item.where, UNREADABLE, str(error))
    writer.add(
        samples,
        text=item.text,
        language=item.language,
        speaker=item.speaker,
        utterance_id=item.utterance_id,
        translations=item.translations,
        custom=item.custom,
    )
    counts.clipped += is_clipped(samples)
    counts.write(item, len(samples) / SAMPLE_RATE)


def _samples(sound: Cut | Callable[[], Samples], recordings: Recordings) -> Samples:
    return recordings.samples(sound) if isinstance(sound, Cut) else sound()


def _list_left_out(path: Path, counts: Counts) -> None:
    if not counts.listed:
        path.unlink(missing_ok=True)
        return
    rows = (
        "\t".join(" ".join(field.split()) for field in row)
        for row in [["where", "reason", "detail"], *counts.listed]
    )
    write_text(path, "".join(row + "\n" for row in rows))


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """A written part: utterances, hours, the counts of those left out by reason, and of those with clipped sound."""

    utterances: int
    hours: float
    left_out: Mapping[str, int]
    clipped: int = 0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of a preparation.

    Attributes:
        name: name of the corpus.
        parts: by name of the split, which is also the folder.
        checks: lines that compare with the published sizes: "whole ...", "differs: found X of Y ...", or
            "unchecked ..." where none is known.
    """

    name: str
    parts: Mapping[str, PartSummary]
    checks: Sequence[str]

    @property
    def left_out(self) -> Mapping[str, int]:
        """Counts of the utterances left out of all parts, by reason."""
        return sum((Counter(part.left_out) for part in self.parts.values()), Counter())


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A public corpus.

    Attributes:
        name: name of the corpus on the command line.
        summary: one line that describes the corpus.
        licence: licence of recordings and texts.
        homepage: web address that offers the corpus.
        read: the parts of a copy on disk; raises SprachbundError on what is missing.
        published: sizes its makers state, only those that were read in the source named with each.
    """

    name: str
    summary: str
    licence: str
    homepage: str
    read: Callable[[Path, CorpusOptions], Sequence[Part]]
    published: Sequence[Published] = ()

    def prepare(self, source: Path, out: Path, options: CorpusOptions | None = None) -> Summary:
        """Write each split of a copy of the corpus into its own folder under `out`.

        Args:
            source: the copy, as people download and unpack it.
            out: folder of the corpus; whole shards in it stay, if they were begun with the same options.
            options: languages and parts that are taken.

        Raises:
            SprachbundError: something is missing, broken, or `out` holds something else.
        """
        options = _standard(options or CorpusOptions())
        if not source.is_dir():
            raise SprachbundError(
                f"{source} is not a folder; get {self.name} from {self.homepage}, unpack it"
            )
        parts = [part for part in self.read(source, options) if options.takes_split(part.name)]
        if not any(part.total for part in parts):
            raise SprachbundError(self._nothing(source, options))
        if missing := sorted(set(options.splits) - {part.name for part in parts}):
            there = ", ".join(part.name for part in parts)
            raise SprachbundError(
                f"{source} holds no {', '.join(missing)} of {self.name}, but {there}; choose others with --splits"
            )
        _begin(out, self._settings(source, options, parts))
        counts = {part.name: write_part(part, out / part.name, options) for part in parts}
        if not any(count.written for count in counts.values()):
            for name, written in counts.items():
                _list_left_out(out / name / LEFT_OUT, written)
            lists = f"{out}/*/{LEFT_OUT}"
            raise SprachbundError(f"{source}: not one utterance of {self.name} could be read; see {lists}")
        checks = check(counts, [size for size in self.published if _speaks_of(size, options)])
        for name, written in counts.items():
            close_part(out / name, self._info(name, written, checks), written)
        return Summary(name=self.name, parts={n: _summed(c) for n, c in counts.items()}, checks=checks)

    def _nothing(self, source: Path, options: CorpusOptions) -> str:
        asked = [*options.languages, *options.targets, *options.splits]
        what = f" for {', '.join(asked)}" if asked else ""
        return f"{source} holds nothing of {self.name}{what}; get it from {self.homepage}"

    def _settings(self, source: Path, options: CorpusOptions, parts: Sequence[Part]) -> dict[str, object]:
        return {
            "corpus": self.name,
            "source": str(source.resolve()),
            "languages": sorted(options.languages),
            "targets": sorted(options.targets),
            "entries": {part.name: part.total for part in parts},
        }

    def _info(self, part: str, counts: Counts, checks: Sequence[str]) -> dict[str, object]:
        return {
            "name": f"{self.name}/{part}",
            "version": "1",
            "languages": sorted({tag for key in counts.available if key for tag in key.split(">")}),
            "licence": self.licence,
            "attribution": self.homepage,
            "check": [line for line in checks if line.startswith((f"{part}:", f"{part} "))],
        }


def _standard(options: CorpusOptions) -> CorpusOptions:
    """The options with languages as corpora's are written here."""
    return replace(
        options,
        languages=tuple(tag(code, "--languages") for code in options.languages),
        targets=tuple(tag(code, "--targets") for code in options.targets),
    )


def _speaks_of(size: Published, options: CorpusOptions) -> bool:
    """Whether a published size is of what is taken: that of the whole is not where only some is."""
    part_of_it = bool(options.languages or options.targets)
    return options.takes_split(size.part) and not (part_of_it and not size.key)


def _summed(counts: Counts) -> PartSummary:
    hours = round(counts.seconds[""] / 3600, 3)
    return PartSummary(
        utterances=counts.written, hours=hours, left_out=dict(counts.left_out), clipped=counts.clipped
    )

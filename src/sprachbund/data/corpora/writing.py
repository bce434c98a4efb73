"""Entries of a corpus into manifests, shard by shard, so that a broken-off run goes on where it stopped.

Next to each shard stands what was counted in it; a shard counts as written only when that file is there.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.corpora.counts import Counts
from sprachbund.data.corpora.items import CorpusOptions, Cut, Entry, Item, LeftOut, Part, Samples
from sprachbund.data.corpora.sound import Recordings
from sprachbund.data.manifest import ManifestWriter, shard_numbers
from sprachbund.errors import SprachbundError
from sprachbund.util.files import read_object, write_json, write_text

SHARD_SIZE = 250
"""Entries of the corpus in a shard: its sound is in memory while it is written."""

UNREADABLE = "sound cannot be read"
LEFT_OUT = "left_out.tsv"
_BEGUN = ".prepared-from"


def claim(out: Path, begun_with: Mapping[str, Any]) -> None:
    """Make a folder ours, or see that what it holds was begun with the same, so that corpora never mix.

    Raises:
        SprachbundError: it holds something else.
    """
    path = out / _BEGUN
    wanted = json.loads(json.dumps(begun_with))
    holds_some = any(out.rglob("cuts.*.jsonl")) if out.exists() else False
    if holds_some and path.exists():
        known = read_object(path, advice="name a new folder")
        for key, value in wanted.items():
            if known.get(key) != value:
                raise SprachbundError(
                    f"{out} was begun with {key} {known.get(key)}, not {value}; name a new folder"
                )
        return
    if holds_some:
        raise SprachbundError(f"{out} holds another corpus; name a new folder")
    write_json(path, wanted, indent=None)


def write_part(part: Part, directory: Path, options: CorpusOptions, shard_size: int = SHARD_SIZE) -> Counts:
    """Write a part's shards that are not there yet; counts are of all of them.

    Raises:
        SprachbundError: an id that is there twice; sound that cannot be read, unless such is skipped.
    """
    directory.mkdir(parents=True, exist_ok=True)
    total = Counts()
    told = _Told(part, options)
    entries = told.telling(_unique(part.entries()))
    with Recordings() as recordings:
        for shard in count():
            first = next(entries, None)
            if first is None:
                return total
            some = chain([first], islice(entries, shard_size - 1))
            total += _shard(directory, shard, some, recordings, options)
    return total


def close_part(directory: Path, info: Mapping[str, Any], counts: Counts) -> None:
    """Write `dataset.json` and the list of what was left out; nothing where no utterance was written."""
    _list_left_out(directory / LEFT_OUT, counts)
    if shard_numbers(directory):
        ManifestWriter(directory).close({**info, "left_out": dict(counts.left_out)})


@dataclass
class _Told:
    """Tells progress as entries pass."""

    part: Part
    options: CorpusOptions
    done: int = 0

    def telling(self, entries: Iterable[Entry]) -> Iterator[Entry]:
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
    remembered = directory / f".counts.{shard:05d}.json"
    if remembered.exists():
        for _ in entries:
            pass
        return Counts.read(remembered)
    counts = Counts()
    writer = ManifestWriter(directory, shard_size=1 << 30, shard=shard)
    for entry in entries:
        if isinstance(entry, LeftOut):
            counts.found[""] += entry.published
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

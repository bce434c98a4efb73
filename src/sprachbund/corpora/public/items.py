"""Parts and utterances of public corpora before they are written, their counts, and joins of several tables.

A reader of a corpus only states where everything is; sound is read when an utterance is written, one at a time, so
memory does not grow with the corpus. Counts are kept for a whole part (key ""), a spoken language ("de") and a pair
("de>en"), since published tables have one or the other. Corpora that publish each pair by itself repeat the speech;
their tables are joined by recording in a temporary database on disk.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sprachbund.util.arrays import Samples
from sprachbund.util.files import read_model
from sprachbund.util.options import renamed
from sprachbund.util.progress import StageProgress


def _silent(part: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """Options of the parts that are taken from a corpus.

    Attributes:
        languages: spoken languages, BCP-47; all that are there when empty.
        targets: languages of translations, BCP-47; all that are there when empty.
        splits: names of parts; all that are there when empty.
        skip_bad: leave utterances out whose sound cannot be read, instead of ending at the first.
        progress: called with the part, entries done, and entries in all.
    """

    languages: Sequence[str] = ()
    targets: Sequence[str] = ()
    splits: Sequence[str] = ()
    skip_bad: bool = False
    progress: StageProgress = _silent

    def takes(self, language: str) -> bool:
        """Whether speech in a language is wanted."""
        return not self.languages or language in self.languages

    def takes_target(self, language: str) -> bool:
        """Whether translations into a language are wanted."""
        return not self.targets or language in self.targets

    def takes_split(self, split: str) -> bool:
        """Whether a part is wanted."""
        return not self.splits or split in self.splits


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A stretch of a recording on disk.

    Attributes:
        path: path of the recording, of any container.
        start_s: start of the stretch in seconds.
        duration_s: length in seconds; None to the end.
        channel: number of the channel that is read; None mixes all.
    """

    path: Path
    start_s: float = 0.0
    duration_s: float | None = None
    channel: int | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One utterance of a corpus.

    Attributes:
        where: file and line, for messages.
        utterance_id: unique in its part.
        sound: a stretch of a recording, or what reads the sound, to be called before the next entry is taken.
        language: BCP-47 tag of the speech.
        text: transcript; empty where the corpus has none.
        speaker: name of the speaker; empty when unknown.
        translations: language to text.
        custom: further facts that the corpus states.
    """

    where: str
    utterance_id: str
    sound: Cut | Callable[[], Samples]
    language: str
    text: str
    speaker: str = ""
    translations: Mapping[str, str] = field(default_factory=dict)
    custom: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something in the corpus that becomes no utterance.

    Attributes:
        where: file and line.
        reason: reason in words that can be counted.
        published: whether the makers count it among their utterances.
    """

    where: str
    reason: str
    published: bool = True


Entry = Item | LeftOut


@dataclass(frozen=True, kw_only=True)
class Part:
    """A split of a corpus: its name, how many entries it has, and the entries, the same ones each time."""

    name: str
    total: int
    entries: Callable[[], Iterator[Entry]]


# Counts of a corpus beside its published size.

_HOURS_ROUNDED = 0.02
"""Published hours are rounded, and some count pauses that others do not: a whole corpus is this near."""


@dataclass(kw_only=True)
class Counts:
    """Counts of a shard or a part.

    Attributes:
        written: utterances written.
        available: utterances the corpus has, by key, written or not.
        seconds: seconds of what was written, by key.
        clipped: utterances written whose sound is clipped.
        left_out: reason to how many.
        listed: file and line, reason and detail of everything left out.
    """

    written: int = 0
    available: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    clipped: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    listed: list[list[str]] = field(default_factory=list)

    def find(self, item: Item) -> None:
        """Count an utterance that the corpus has."""
        self.available.update(_keys(item))

    def write(self, item: Item, duration_s: float) -> None:
        """Count an utterance that was written."""
        self.written += 1
        for key in _keys(item):
            self.seconds[key] += duration_s  # type: ignore[assignment]

    def leave_out(self, where: str, reason: str, detail: str = "") -> None:
        """Count something left out.

        Args:
            where: file and line.
            reason: reason for leaving it out; reasons are counted.
            detail: further words for the list.
        """
        self.left_out[reason] += 1
        self.listed.append([where, reason, detail])

    def __iadd__(self, other: "Counts") -> "Counts":
        self.written += other.written
        self.available += other.available
        self.seconds += other.seconds
        self.clipped += other.clipped
        self.left_out += other.left_out
        self.listed += other.listed
        return self

    def as_dict(self) -> dict[str, Any]:
        """Counts as a value for JSON."""
        return dict(vars(self))

    @classmethod
    def read(cls, path: Path) -> "Counts":
        """Read counts from a JSON file of what `as_dict` returned. Raises SprachbundError, naming the field, for other
        content.
        """
        advice = "delete it, and its shard is written again"
        stored = read_model(path, _Written, advice=advice)
        return cls(
            written=stored.written,
            available=Counter(stored.available),
            seconds=Counter(stored.seconds),
            clipped=stored.clipped,
            left_out=Counter(stored.left_out),
            listed=stored.listed,
        )


class _Written(BaseModel):
    """Counts as a file holds them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    written: int = Field(ge=0)
    available: dict[str, int]
    seconds: dict[str, float]
    clipped: int = Field(0, ge=0)  # earlier versions did not count them
    left_out: dict[str, int]
    listed: list[list[str]]

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: Any) -> Any:
        former = {"found": "available"}
        return renamed(values, former, "counts of a shard") if isinstance(values, dict) else values


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published size.

    Attributes:
        part: name of the split; "" for all of them together.
        key: "" for the whole part, "de" for a spoken language, "de>en" for a pair.
        utterances: number of utterances; None when not published.
        hours: hours of speech; None when not published.
        source: publication that states the number.
    """

    part: str
    key: str = ""
    utterances: int | None = None
    hours: float | None = None
    source: str


def check(parts: Mapping[str, Counts], published: Sequence[Published]) -> list[str]:
    """Lines that say for each published number whether it was found: "whole", or "differs: found X of Y".

    Numbers of languages and pairs of which nothing is there are passed over; a split of one that is missing
    is not. Behind them stands of each part what no number was published for: "unchecked".
    """
    whole = Counts()
    for counts in parts.values():
        whole += counts
    there = [size for size in published if size.key in whole.available]
    lines = [line for size in there for line in _compare(parts.get(size.part), size, whole)]
    for name, counts in parts.items():
        checked = {size.key for size in there if size.part in ("", name)}
        if unchecked := _unchecked(counts, checked):
            lines.append(f"{name}: unchecked, no published size speaks of {', '.join(unchecked)}")
    return lines


def _unchecked(counts: Counts, checked: Set[str]) -> list[str]:
    """The languages of a part, or pairs of those of which other pairs are checked, that no size speaks of."""
    if "" in checked or not counts.written:
        return []
    pairs = [key for key in sorted(counts.available) if ">" in key]
    missing = []
    for language in sorted(key for key in counts.available if key and ">" not in key):
        of_it = [pair for pair in pairs if pair.startswith(f"{language}>")]
        if language not in checked and checked.isdisjoint(of_it):
            missing.append(language)
        elif language not in checked:
            missing += [pair for pair in of_it if pair not in checked]
    return missing


def _compare(counts: Counts | None, size: Published, whole: Counts) -> Iterator[str]:
    counts = counts if size.part else whole
    name = f"{size.part or 'all parts'} {size.key}".strip()
    if size.utterances is not None:
        count = counts.available[size.key] if counts else 0
        same = count == size.utterances
        yield _line(name, same, f"{count}", f"{size.utterances}", "utterances", size.source)
    if size.hours is not None:
        hours = counts.seconds[size.key] / 3600 if counts else 0.0
        same = abs(hours - size.hours) <= max(_HOURS_ROUNDED * size.hours, 0.5 if size.hours >= 10 else 0.05)
        yield _line(name, same, f"{hours:.1f}", f"{size.hours:g}", "hours", size.source)


def _line(name: str, same: bool, count: str, whole: str, unit: str, source: str) -> str:
    said = f"whole ({count} of {whole} {unit})" if same else f"differs: found {count} of {whole} {unit}"
    return f"{name}: {said}, by {source}"


def _keys(item: Item) -> list[str]:
    return ["", item.language, *(f"{item.language}>{target}" for target in item.translations)]


# Joins of several tables by recording.

_TABLES = """
create table said (part text, key text, data text, primary key (part, key)) without rowid;
create table translated (
    part text, key text, language text, text text, primary key (part, key, language)
) without rowid;
create table left_out (part text, source text, reason text);
"""


class Join:
    """Collects utterances, then gives them as parts, sorted by recording and time."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("")  # private, on disk, gone when closed
        self._db.executescript(_TABLES)

    def add(
        self,
        part: str,
        *,
        where: str,
        utterance_id: str,
        cut: Cut,
        language: str,
        text: str,
        speaker: str = "",
        translations: dict[str, str] | None = None,
        custom: dict[str, Any] | None = None,
    ) -> None:
        """An utterance, or translations more of one that is there (same language, recording, times).

        Args:
            part: part of the corpus.
            where: file and line.
            utterance_id: unique name of the utterance.
            cut: recording, and section of it in seconds.
            language: BCP-47 tag.
            text: transcript.
            speaker: name of the speaker.
            translations: BCP-47 tag to text.
            custom: further fields.
        """
        key = (
            f"{language}\t{cut.path.name}\t{round(cut.start_s * 1000):012d}\t{_milliseconds(cut.duration_s)}"
        )
        data = [
            where,
            utterance_id,
            str(cut.path),
            cut.start_s,
            cut.duration_s,
            language,
            text,
            speaker,
            custom or {},
        ]
        self._db.execute(
            "insert or ignore into said values (?, ?, ?)", (part, key, json.dumps(data, ensure_ascii=False))
        )
        self._db.executemany(
            "insert or ignore into translated values (?, ?, ?, ?)",
            ((part, key, target, said) for target, said in (translations or {}).items()),
        )

    def leave_out(self, part: str, where: str, reason: str) -> None:
        """Something that becomes no utterance.

        Args:
            part: part of the corpus.
            where: file and line.
            reason: reason for leaving it out; reasons are counted.
        """
        self._db.execute("insert into left_out values (?, ?, ?)", (part, where, reason))

    def parts(self) -> list[Part]:
        """All parts with an utterance or something left out, in order of their names."""
        query = "select part, count(*) from (select part from said union all select part from left_out) "
        counts = self._db.execute(query + "group by part order by part").fetchall()
        return [Part(name=name, total=total, entries=_Entries(self._db, name)) for name, total in counts]


class _Entries:
    """The entries of one part; holds the database as long as someone may read them."""

    def __init__(self, database: sqlite3.Connection, part: str) -> None:
        self._db, self._part = database, part

    def __call__(self) -> Iterator[Entry]:
        rows = self._db.execute("select key, data from said where part = ? order by key", (self._part,))
        for key, data in rows:
            yield self._item(key, json.loads(data))
        left_out = self._db.execute(
            "select source, reason from left_out where part = ? order by rowid", (self._part,)
        )
        for where, reason in left_out:
            yield LeftOut(where=where, reason=reason)

    def _item(self, key: str, data: list[Any]) -> Item:
        translations = self._db.execute(
            "select language, text from translated where part = ? and key = ? order by language",
            (self._part, key),
        )
        where, utterance_id, path, start_s, duration_s, language, text, speaker, custom = data
        return Item(
            where=where,
            utterance_id=utterance_id,
            sound=Cut(path=Path(path), start_s=start_s, duration_s=duration_s),
            language=language,
            text=text,
            speaker=speaker,
            translations=dict(translations),
            custom=custom,
        )


def _milliseconds(duration_s: float | None) -> int:
    return -1 if duration_s is None else round(duration_s * 1000)

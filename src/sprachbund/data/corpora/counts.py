"""What was found in a corpus, against what its makers published.

Counts are kept for a whole part (key ""), for a spoken language ("de") and for a pair ("de>en"), because
published tables speak of one or the other.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sprachbund.data.corpora.items import Item
from sprachbund.util.files import read_model

_HOURS_ROUNDED = 0.02
"""Published hours are rounded, and some count pauses that others do not: a whole corpus is this near."""


@dataclass(kw_only=True)
class Counts:
    """Of a shard or a part.

    Attributes:
        written: utterances written.
        found: utterances the corpus has, by key, written or not.
        seconds: of what was written, by key.
        left_out: reason to how many.
        listed: place, reason and detail of everything left out.
    """

    written: int = 0
    found: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    listed: list[list[str]] = field(default_factory=list)

    def find(self, item: Item) -> None:
        """Count an utterance that the corpus has."""
        self.found.update(_keys(item))

    def write(self, item: Item, duration_s: float) -> None:
        """Count an utterance that was written."""
        self.written += 1
        for key in _keys(item):
            self.seconds[key] += duration_s  # type: ignore[assignment]

    def leave_out(self, where: str, reason: str, detail: str = "") -> None:
        """Count something left out."""
        self.left_out[reason] += 1
        self.listed.append([where, reason, detail])

    def __iadd__(self, other: "Counts") -> "Counts":
        self.written += other.written
        self.found += other.found
        self.seconds += other.seconds
        self.left_out += other.left_out
        self.listed += other.listed
        return self

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))

    @classmethod
    def read(cls, path: Path) -> "Counts":
        """From a JSON file of what `as_dict` gave. Raises SprachbundError, naming the field, for what is none."""
        advice = "delete it, and its shard is written again"
        found = read_model(path, _Written, advice=advice)
        return cls(
            written=found.written,
            found=Counter(found.found),
            seconds=Counter(found.seconds),
            left_out=Counter(found.left_out),
            listed=found.listed,
        )


class _Written(BaseModel):
    """Counts as a file holds them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    written: int = Field(ge=0)
    found: dict[str, int]
    seconds: dict[str, float]
    left_out: dict[str, int]
    listed: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published size.

    Attributes:
        part: name of the split; "" for all of them together.
        key: "" for the whole part, "de" for a spoken language, "de>en" for a pair.
        utterances: how many; None when not published.
        hours: how long; None when not published.
        source: where the number stands.
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
    there = [size for size in published if size.key in whole.found]
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
    pairs = [key for key in sorted(counts.found) if ">" in key]
    missing = []
    for language in sorted(key for key in counts.found if key and ">" not in key):
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
        found = counts.found[size.key] if counts else 0
        same = found == size.utterances
        yield _line(name, same, f"{found}", f"{size.utterances}", "utterances", size.source)
    if size.hours is not None:
        hours = counts.seconds[size.key] / 3600 if counts else 0.0
        same = abs(hours - size.hours) <= max(_HOURS_ROUNDED * size.hours, 0.5 if size.hours >= 10 else 0.05)
        yield _line(name, same, f"{hours:.1f}", f"{size.hours:g}", "hours", size.source)


def _line(name: str, same: bool, found: str, whole: str, unit: str, source: str) -> str:
    said = f"whole ({found} of {whole} {unit})" if same else f"differs: found {found} of {whole} {unit}"
    return f"{name}: {said}, by {source}"


def _keys(item: Item) -> list[str]:
    return ["", item.language, *(f"{item.language}>{target}" for target in item.translations)]

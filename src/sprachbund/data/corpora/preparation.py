"""A corpus that can be prepared: whose it is, how it is read, and how large it should be."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sprachbund.data.corpora.counts import Counts, Published, check
from sprachbund.data.corpora.items import CorpusOptions, Part
from sprachbund.data.corpora.places import tag
from sprachbund.data.corpora.writing import claim, close_part, write_part
from sprachbund.errors import SprachbundError


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """What was written of a part: utterances, hours, and what was left out, reason to how many."""

    utterances: int
    hours: float
    left_out: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of a preparation.

    Attributes:
        name: of the corpus.
        parts: by name of the split, which is also the folder.
        checks: lines that compare with the published sizes: "whole ...", "differs: found X of Y ...", or
            "unchecked ..." where none is known.
    """

    name: str
    parts: Mapping[str, PartSummary]
    checks: Sequence[str]

    @property
    def left_out(self) -> Mapping[str, int]:
        """What was left out of all parts, reason to how many."""
        return sum((Counter(part.left_out) for part in self.parts.values()), Counter())


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A public corpus.

    Attributes:
        name: what the command calls it.
        summary: what it is, in a line.
        licence: of recordings and texts.
        homepage: where it is had.
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
            options: what is taken.

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
        claim(out, self._begun_with(source, options, parts))
        counts = {part.name: write_part(part, out / part.name, options) for part in parts}
        if not any(count.written for count in counts.values()):
            raise SprachbundError(f"{source}: not one utterance of {self.name} could be read; see {out}")
        checks = check(counts, [size for size in self.published if _speaks_of(size, options)])
        for name, count in counts.items():
            close_part(out / name, self._info(name, count, checks), count)
        return Summary(name=self.name, parts={n: _summed(c) for n, c in counts.items()}, checks=checks)

    def _nothing(self, source: Path, options: CorpusOptions) -> str:
        asked = [*options.languages, *options.targets, *options.splits]
        what = f" for {', '.join(asked)}" if asked else ""
        return f"{source} holds nothing of {self.name}{what}; get it from {self.homepage}"

    def _begun_with(self, source: Path, options: CorpusOptions, parts: Sequence[Part]) -> dict[str, object]:
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
            "languages": sorted({tag for key in counts.found if key for tag in key.split(">")}),
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
    return PartSummary(utterances=counts.written, hours=hours, left_out=dict(counts.left_out))

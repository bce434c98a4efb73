"""Parallel text from outside: a table, a pair of Moses files, or a translation memory (TMX 1.4b).

Every pair that cannot be used is a fault with its file and line; they end the reading, or are counted and named.
Reading goes line by line, so that millions of pairs need no memory until they are kept.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from sprachbund.data.own import Fault, clean_text
from sprachbund.errors import SprachbundError
from sprachbund.text.languages import primary, tag_of

TSV, TMX = ".tsv", ".tmx"
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_CODE = {"bpt", "ept", "ph", "it", "ut"}
"""Elements of a TMX segment that hold markup of the document, and not its text."""


@dataclass(frozen=True, kw_only=True)
class SentencePair:
    """A sentence in two languages, with its file and line."""

    source: str
    target: str
    where: str


@dataclass(frozen=True, kw_only=True)
class Bitext:
    """Sentences in two languages.

    Attributes:
        source_language: BCP-47 tag.
        target_language: BCP-47 tag.
        pairs: pairs of sentences that can be used.
        faults: faults of the pairs that cannot.
    """

    source_language: str
    target_language: str
    pairs: tuple[SentencePair, ...]
    faults: tuple[Fault, ...]

    def __len__(self) -> int:
        return len(self.pairs)


def read_bitext(
    paths: Iterable[str | Path], source_language: str, target_language: str, *, skip_bad: bool = False
) -> Bitext:
    """Read parallel text: one `.tsv` or `.tmx` file, or two Moses files, source first.

    Args:
        paths: one or two files.
        source_language: BCP-47 tag.
        target_language: BCP-47 tag.
        skip_bad: keep faults beside the pairs, instead of ending at the first.

    Raises:
        SprachbundError: no such files, not UTF-8, sides of unequal length, a fault that is not to be skipped, or
            nothing left.
    """
    files = [Path(path) for path in paths]
    source, target = (tag_of(tag, "the bitext:") for tag in (source_language, target_language))
    if source == target:
        raise SprachbundError(f"both sides of the bitext are {source}; give two languages")
    items = list(_items(files, source, target))
    pairs = tuple(item for item in items if isinstance(item, SentencePair))
    faults = tuple(item for item in items if isinstance(item, Fault))
    names = " and ".join(map(str, files))
    if faults and not skip_bad:
        raise SprachbundError(
            f"{len(faults)} of {len(items)} pairs of {names} cannot be used, the first: {faults[0]}; mend them, "
            "or leave them out with skip_bad"
        )
    if not pairs:
        raise SprachbundError(
            f"{names} holds no pair of {source} and {target} that can be used; name another file"
        )
    return Bitext(source_language=source, target_language=target, pairs=pairs, faults=faults)


def read_tsv(path: Path, source_language: str, target_language: str) -> Iterator[SentencePair | Fault]:
    """Pairs of a table whose header names a column for each language; fields as they stand, quotation marks too.

    Args:
        path: the table.
        source_language: BCP-47 tag of the source column.
        target_language: BCP-47 tag of the target column.
    """
    lines = _lines(path)
    header = [name.strip() for name in next(lines, "").split("\t")]
    columns = []
    for language in (source_language, target_language):
        if header.count(language) != 1:
            raise SprachbundError(
                f"{path}:1: the header is {', '.join(header)}; name one column {language!r} in it"
            )
        columns.append(header.index(language))
    for number, line in enumerate(lines, start=2):
        where, fields = f"{path}:{number}", line.split("\t")
        if len(fields) != len(header):
            reason = f"has {len(fields)} fields where the header has {len(header)}"
            yield Fault(where=where, reason=reason)
            continue
        yield _pair(fields[columns[0]], fields[columns[1]], where)


def read_moses(source: Path, target: Path) -> Iterator[SentencePair | Fault]:
    """Pairs of two files whose lines belong together.

    Raises:
        SprachbundError: sides of unequal length, with both counts, before the first pair.
    """
    counts = [sum(1 for _ in _lines(path)) for path in (source, target)]
    if counts[0] != counts[1]:
        raise SprachbundError(
            f"{source} has {counts[0]} lines and {target} has {counts[1]}; lines belong together, mend the shorter one"
        )
    for number, (one, other) in enumerate(zip_longest(_lines(source), _lines(target)), start=1):
        yield _pair(one, other, f"{source}:{number}")


def read_tmx(path: Path, source_language: str, target_language: str) -> Iterator[SentencePair | Fault]:
    """Pairs of a translation memory; `en` finds `en-GB`, where no unit says `en` itself.

    Args:
        path: the file.
        source_language: BCP-47 tag of the source texts.
        target_language: BCP-47 tag of the target texts.

    Raises:
        SprachbundError: no such file, not whole, or in an encoding that is not read.
    """
    number, body = 0, None
    try:
        for event, element in ET.iterparse(path, events=("start", "end")):
            name = element.tag.rpartition("}")[2]
            body = element if event == "start" and name == "body" else body
            if event == "start" or name != "tu":
                continue
            number += 1
            where = f"{path}, unit {number}"
            texts = _variants(element)
            sides = [_in_language(texts, language) for language in (source_language, target_language)]
            (element if body is None else body).clear()
            missing = [
                tag
                for tag, side in zip((source_language, target_language), sides, strict=True)
                if side is None
            ]
            if missing:
                yield Fault(where=where, reason=f"has no text in {' and '.join(missing)}")
            else:
                yield _pair(sides[0] or "", sides[1] or "", where)
    except ET.ParseError as error:
        raise SprachbundError(
            f"{path} is not whole XML ({error}) after {number} units; copy it again"
        ) from error
    except (ValueError, LookupError) as error:  # of encodings that the parser does not know
        raise SprachbundError(
            f"{path} is in an encoding that is not read ({error}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise SprachbundError(f"{path} cannot be read ({error.strerror}); check the path") from error


def _items(files: list[Path], source: str, target: str) -> Iterator[SentencePair | Fault]:
    if len(files) == 2:
        return read_moses(*files)
    if len(files) == 1 and files[0].suffix.lower() == TSV:
        return read_tsv(files[0], source, target)
    if len(files) == 1 and files[0].suffix.lower() == TMX:
        return read_tmx(files[0], source, target)
    raise SprachbundError(
        f"{', '.join(map(str, files)) or 'nothing'} is no bitext; give one {TSV} or {TMX} file, or two Moses files"
    )


def _pair(source: str, target: str, where: str) -> SentencePair | Fault:
    source, target = clean_text(source), clean_text(target)
    empty = [side for side, text in (("source", source), ("target", target)) if not text]
    if empty:
        return Fault(where=where, reason=f"the {' and the '.join(empty)} side is empty")
    return SentencePair(source=source, target=target, where=where)


def _lines(path: Path) -> Iterator[str]:
    """Lines without their ends; only a line feed ends one, as in Moses's own tools."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise SprachbundError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise SprachbundError(f"{path} cannot be read ({error.strerror}); check the path") from error


def _variants(unit: ET.Element) -> dict[str, str]:
    """Text of a translation unit by language, the first of each."""
    variants: dict[str, str] = {}
    for variant in unit.iter():
        if variant.tag.rpartition("}")[2] != "tuv":
            continue
        language = variant.get(_LANGUAGE) or variant.get("lang") or ""
        segment = next((e for e in variant.iter() if e.tag.rpartition("}")[2] == "seg"), None)
        if segment is not None:
            variants.setdefault(language.lower().replace("_", "-"), _text(segment))
    return variants


def _text(element: ET.Element) -> str:
    inside = [
        ("" if child.tag.rpartition("}")[2] in _CODE else _text(child)) + (child.tail or "")
        for child in element
    ]
    return (element.text or "") + "".join(inside)


def _in_language(texts: dict[str, str], language: str) -> str | None:
    wanted = language.lower()
    if wanted in texts:
        return texts[wanted]
    return next((text for tag, text in texts.items() if primary(tag) == wanted), None)

"""Tunisian Arabic of IWSLT 2022 and 2023 (LDC2022E01): telephone speech with transcripts and English.

The package holds `data/audio/ta/ID.sph`, `data/transcripts/ta/ID...tsv` and
`data/translations/ta/ID.eng.tsv` (start, end, speaker, text). Splits and faulty utterances are lists of
the task's makers (`train.file_id.txt`, `exclude-utterance.txt`). Where their script was run, its `stm`
folder is read instead, texts as it normalized them.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sprachbund.data.corpora.counts import Published
from sprachbund.data.corpora.items import CorpusOptions, Cut, Entry, Item, LeftOut, Part
from sprachbund.data.corpora.places import find_files, find_folders
from sprachbund.data.corpora.preparation import Preparation
from sprachbund.data.corpora.tables import count_lines, read_lines, read_parallel
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

HOMEPAGE = "https://catalog.ldc.upenn.edu/LDC2025S05"
LISTS = "https://github.com/kevinduh/iwslt22-dialect"
LANGUAGE, TARGET = "aeb", "en"
_SPLITS = ("train", "dev", "test1")
_STM = ("asr-aeb.norm.{}.stm", "st-aeb2eng.norm.{}.stm")
_ARABIC_MARKS = re.compile(r"[OUM]+/+")  # foreign, uncertain, Modern Standard Arabic
_ENGLISH_MARKS = re.compile(
    r"\(\(|\)\)|[#+=%]"
)  # uncertain, foreign, mispronounced, typing error, partial word


class _Line(NamedTuple):
    where: str
    start_s: float
    end_s: float
    speaker: str
    text: str


def read(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits train, dev and test1."""
    if not options.takes(LANGUAGE) or not options.takes_target(TARGET):
        return []
    package = _package(source)
    splits = [split for split in _SPLITS if options.takes_split(split)]
    if find_files(source, _STM[0].format("*")):
        return [_from_stm(source, package, split) for split in splits]
    excluded = {line.strip() for line in read_lines(_listed(source, "exclude-utterance.txt"))}
    return [_from_tables(source, package, split, excluded) for split in splits]


def _package(source: Path) -> Path:
    found = find_folders(source, "data/audio/ta")
    if not found:
        raise SprachbundError(
            f"{source} holds no data/audio/ta (LDC2022E01); get it from the LDC ({HOMEPAGE})"
        )
    return found[0] / "data"


def _listed(source: Path, name: str) -> Path:
    found = find_files(source, name)
    if not found:
        raise SprachbundError(f"{source} holds no {name}; get the lists from {LISTS} and put them there")
    return found[0]


def _from_stm(source: Path, package: Path, split: str) -> Part:
    said, translated = (_listed(source, name.format(split)) for name in _STM)

    def entries() -> Iterator[Entry]:
        for where, lines in read_parallel(said, translated):
            fields, others = (line.split("\t", 6) for line in lines)
            if len(fields) < 7 or len(others) < 7 or fields[3:5] != others[3:5]:
                raise SprachbundError(
                    f"{where}: not the same utterance in {translated}; run the script again"
                )
            line = _Line(where, *_times(fields[3:5], where), fields[2], fields[6])
            yield _entry(package, Path(fields[0]).stem, line, others[6])

    return Part(name=split, total=count_lines(said), entries=entries)


def _from_tables(source: Path, package: Path, split: str, excluded: set[str]) -> Part:
    names = [line.strip() for line in read_lines(_listed(source, f"{split}.file_id.txt")) if line.strip()]
    tables = [_table_pair(package, name) for name in names]
    total = sum(count_lines(said) for said, _ in tables)
    entries = partial(_entries, package, names, tables, excluded)
    return Part(name=split, total=total, entries=entries)


def _table_pair(package: Path, name: str) -> tuple[Path, Path]:
    pair = []
    for kind in ("transcripts", "translations"):
        found = sorted((package / kind / "ta").glob(f"{name}.*tsv"))
        if not found:
            raise SprachbundError(f"{package / kind / 'ta' / name}.tsv is missing; unpack LDC2022E01 again")
        pair.append(found[0])
    return pair[0], pair[1]


def _entries(
    package: Path, names: Sequence[str], tables: Sequence[tuple[Path, Path]], excluded: set[str]
) -> Iterator[Entry]:
    for name, (said, translated) in zip(names, tables, strict=True):
        english = {(line.start_s, line.end_s): line.text for line in _lines(translated)}
        for line in _lines(said):
            if f"{name} {line.start_s:.3f} {line.end_s:.3f}" in excluded:
                yield LeftOut(where=line.where, reason="faulty by the makers' list", published=False)
            elif (line.start_s, line.end_s) not in english:
                yield LeftOut(where=line.where, reason="no translation")
            else:
                translation = _ENGLISH_MARKS.sub("", english[line.start_s, line.end_s])
                text = _ARABIC_MARKS.sub("", line.text)
                yield _entry(package, name, line._replace(text=text), translation)


def _lines(path: Path) -> Iterator[_Line]:
    for number, line in enumerate(read_lines(path), start=1):
        where, fields = f"{path}:{number}", line.split("\t")
        if len(fields) != 4:
            raise SprachbundError(f"{where}: {len(fields)} fields, not 4 (start, end, speaker, text)")
        yield _Line(where, *_times(fields[:2], where), fields[2], fields[3])


def _times(fields: Sequence[str], where: str) -> tuple[float, float]:
    try:
        start_s, end_s = (float(field) for field in fields)
    except ValueError:
        raise SprachbundError(f"{where}: {fields} are not times in seconds; copy the table again") from None
    return start_s, end_s


def _entry(package: Path, name: str, line: _Line, translation: str) -> Entry:
    text, translated = clean_text(line.text), clean_text(translation)
    if not text or not translated or line.end_s <= line.start_s:
        return LeftOut(where=line.where, reason="no text, no translation or no length")
    return Item(
        where=line.where,
        utterance_id=f"{name}-{round(line.start_s * 1000):07d}",
        sound=Cut(
            path=package / "audio" / "ta" / f"{name}.sph",
            start_s=line.start_s,
            duration_s=line.end_s - line.start_s,
        ),
        language=LANGUAGE,
        text=text,
        speaker=line.speaker,
        translations={TARGET: translated},
    )


_SIZES = f"the README of {LISTS}"

PREPARATION = Preparation(
    name="iwslt-aeb",
    summary="Tunisian Arabic telephone speech, into English",
    licence="LDC user agreement",
    homepage=HOMEPAGE,
    read=read,
    published=[
        Published(part="train", utterances=202499, source=_SIZES),
        Published(part="dev", utterances=3833, source=_SIZES),
        Published(part="test1", utterances=4204, source=_SIZES),
    ],
)

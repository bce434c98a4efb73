"""Fisher Spanish: telephone calls (LDC2010S01), transcripts (LDC2010T04), and the public translations into
English.

The source holds the three as people have them: `*.sph` of two channels, `*.tdf` (file, channel, start,
end, speaker, ..., transcript), and the fisher-callhome-corpus with `mapping/fisher_dev` (call, lines of
the transcript joined by "_") and `corpus/ldc/fisher_dev.en.0` to `.3` (or `.en`), line by line. An
utterance with words in another language (`<foreign lang="English">`) is code-switched; with the published
index list (`fisher_mapping.csv`) its split of the code-switching experiments stands in `custom`. The
words in the other language have their word ranges in the transcript; when they are heard is not known, except
when they are the whole utterance, and neither is what became of them in the translation.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from sprachbund.corpora.public.items import CorpusOptions, Cut, Entry, Item, LeftOut, Part, Published
from sprachbund.corpora.public.preparation import Preparation
from sprachbund.corpora.public.tables import (
    count_lines,
    find_files,
    find_folders,
    first_that_is,
    read_lines,
    read_parallel,
    read_table,
    whole_number,
)
from sprachbund.data.language_spans import marked_ranges
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

HOMEPAGE = "https://catalog.ldc.upenn.edu/LDC2010T04"
TRANSLATIONS = "https://github.com/joshua-decoder/fisher-callhome-corpus"
LANGUAGE, TARGET = "es", "en"
_SPLITS = ("train", "dev", "dev2", "test")
_EMBEDDED = re.compile(r"<foreign[^>]*>(.*?)(?:</foreign>|<foreign[^>]*>| ?/foreign>|$)", re.IGNORECASE)
_MARKUP = re.compile(r"<[^>]*>| ?/foreign>|\{[^}]*\}|\[[^\]]*\]|[()+*/#]")
_TDF_FIELDS = 8


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """A line of a transcript."""

    channel: int
    start_s: float
    end_s: float
    speaker: str
    text: str


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """Paths and index of a copy of the corpus."""

    sound: Mapping[str, Path]
    transcripts: Path
    translations: Path
    index: Mapping[tuple[str, int], str]


def read(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits train, dev, dev2 and test."""
    if not options.takes(LANGUAGE) or not options.takes_target(TARGET):
        return []
    copy = _Copy(
        sound=_recordings(source),
        transcripts=_folder_of(source, "*.tdf", f"transcripts, LDC2010T04 ({HOMEPAGE})"),
        translations=_folder_of(source, "fisher_dev", f"mapping/fisher_dev ({TRANSLATIONS})").parent,
        index=_index(source),
    )
    return [_part(copy, split) for split in _SPLITS if options.takes_split(split)]


def _recordings(source: Path) -> dict[str, Path]:
    folders = [source, *find_folders(source, "speech")]
    by_stem = {p.stem: p for f in folders for p in [*f.glob("*.sph"), *(f / "speech").glob("*.sph")]}
    if not by_stem:
        raise SprachbundError(
            f"{source} holds no data/speech/*.sph (recordings, LDC2010S01); get them from "
            "https://catalog.ldc.upenn.edu/LDC2010S01"
        )
    return by_stem


def _folder_of(source: Path, pattern: str, what: str) -> Path:
    files = find_files(source, pattern)
    if not files:
        raise SprachbundError(f"{source} holds no {what}; put a copy there")
    return files[0].parent


def _index(source: Path) -> dict[tuple[str, int], str]:
    """Split in the code-switching experiments, by split and line (from 0); empty without the list."""
    index: dict[tuple[str, int], str] = {}
    for path in find_files(source, "fisher_mapping.csv"):
        for where, row in read_table(path, ["file", "file_line_num", "split"], delimiter=","):
            line = whole_number(row["file_line_num"], where)
            index[row["file"].removeprefix("fisher_"), line] = row["split"]
    return index


def _part(copy: _Copy, split: str) -> Part:
    mapping = copy.translations / "mapping" / f"fisher_{split}"
    ldc = copy.translations / "corpus" / "ldc"
    references = sorted(ldc.glob(f"fisher_{split}.en.[0-9]")) or [ldc / f"fisher_{split}.en"]
    for path in (mapping, references[0]):
        if not path.exists():
            raise SprachbundError(f"{path} is missing; get it from {TRANSLATIONS}")
    entries = partial(_entries, copy, split, mapping, references)
    return Part(name=split, total=count_lines(mapping), entries=entries)


def _entries(copy: _Copy, split: str, mapping: Path, references: Sequence[Path]) -> Iterator[Entry]:
    for number, (where, lines) in enumerate(read_parallel(mapping, *references)):
        call, _, ids = lines[0].partition(" ")
        turns = _turns(copy.transcripts / f"{call}.tdf")
        try:
            chosen = [turns[int(line) - 1] for line in ids.split("_")]
        except (ValueError, IndexError):
            raise SprachbundError(
                f"{where}: {ids!r} are not lines of {call}.tdf ({len(turns)} lines); copy both again"
            ) from None
        text = clean_text(" ".join(strip_markup(turn.text) for turn in chosen))
        said = [clean_text(line) for line in lines[1:]]
        if not text or not said[0] or chosen[-1].end_s <= chosen[0].start_s:
            yield LeftOut(where=where, reason="no text, no translation or no length")
            continue
        sound = Cut(
            path=first_that_is([copy.sound.get(call, copy.transcripts / f"{call}.sph")]),
            start_s=chosen[0].start_s,
            duration_s=chosen[-1].end_s - chosen[0].start_s,
            channel=chosen[0].channel,
        )
        custom = _custom(chosen, text, said, sound, copy.index.get((split, number)))
        yield Item(
            where=where,
            utterance_id=f"fisher_{split}-{number:06d}",
            sound=sound,
            language=LANGUAGE,
            text=text,
            speaker=f"{call}-{chosen[0].channel}",
            translations={TARGET: said[0]},
            custom=custom,
        )


def _custom(
    turns: Sequence[_Turn], text: str, said: Sequence[str], sound: Cut, experiment: str | None
) -> dict[str, Any]:
    embedded = embedded_words(" ".join(turn.text for turn in turns))
    custom: dict[str, Any] = {"code_switched": bool(embedded)}
    if len(said) > 1:
        custom["references"] = {TARGET: list(said)}
    if embedded:
        custom |= {"languages": [LANGUAGE, TARGET], "embedded_words": embedded}
        custom |= marked_ranges(_marked(turns), text, LANGUAGE)
    if embedded and clean_text(" ".join(embedded)) == text:
        custom["spans"] = [{"start_s": 0.0, "end_s": sound.duration_s, "language": TARGET}]
    if experiment:
        custom["experiment"] = experiment
    return custom


def _marked(turns: Sequence[_Turn]) -> list[tuple[str, bool]]:
    """The transcript in pieces, and whether each is in another language."""
    text, pieces, begun = " ".join(turn.text for turn in turns), [], 0
    for match in _EMBEDDED.finditer(text):
        pieces += [(text[begun : match.start()], False), (match[1], True)]
        begun = match.end()
    return [(strip_markup(piece), embedded) for piece, embedded in [*pieces, (text[begun:], False)]]


def embedded_words(text: str) -> list[str]:
    """Return the texts in `<foreign>` tags of a transcript, without markup; those of tags that are not closed too."""
    cleaned = (clean_text(strip_markup(inside)) for inside in _EMBEDDED.findall(text))
    return [words for words in cleaned if words]


def strip_markup(text: str) -> str:
    """A transcript without its markup, as the published translations presume."""
    return clean_text(_MARKUP.sub("", text))


@lru_cache(maxsize=4)
def _turns(path: Path) -> Sequence[_Turn]:
    """Lines of a transcript, without its head."""
    turns = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith(";;MM") or line.startswith("file;unicode") or not line.strip():
            continue
        fields = line.split("\t")
        try:
            channel, start_s, end_s = int(fields[1]), float(fields[2]), float(fields[3])
            turns.append(
                _Turn(
                    channel=channel,
                    start_s=start_s,
                    end_s=end_s,
                    speaker=fields[4],
                    text=fields[_TDF_FIELDS - 1],
                )
            )
        except (ValueError, IndexError):
            raise SprachbundError(
                f"{path}:{number}: not file, channel, start, end, speaker, ..., transcript; copy it again"
            ) from None
    return turns


PREPARATION = Preparation(
    name="fisher-spanish",
    summary="Spanish telephone calls, some words English, into English",
    licence="LDC user agreement; translations CC-BY-SA-3.0",
    homepage=HOMEPAGE,
    read=read,
    published=[
        Published(part=part, utterances=size, source=f"{TRANSLATIONS}, mapping/fisher_{part}")
        for part, size in zip(_SPLITS, (138819, 3979, 3961, 3641), strict=True)
    ],
)

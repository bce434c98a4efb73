"""CS-FLEURS: sentences of FLEURS rewritten with words of a second language, read aloud or synthesised.

A copy of the data set's repository: `read/test`, `xtts/train`, `xtts/test1`, `xtts/test2` and `mms/test`,
each with metadata.jsonl (id, file_name, text, language like "cmn-eng", the matrix language first,
speaker, duration) and sound. Where `**` stands around the words of the second language, they and their
places in the transcript are taken down; times of switches are not published, and neither are translations.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sprachbund.data.corpora.counts import Published
from sprachbund.data.corpora.items import CorpusOptions, Cut, Entry, Item, LeftOut, Part
from sprachbund.data.corpora.places import find_files, tag
from sprachbund.data.corpora.preparation import Preparation
from sprachbund.data.corpora.spans import marked_places
from sprachbund.data.corpora.tables import count_lines, read_lines
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

HOMEPAGE = "https://huggingface.co/datasets/byan/cs-fleurs"
_TABLE = "metadata.jsonl"
_MARKED = re.compile(r"\*\*(.+?)\*\*")
_FIELDS = ("id", "file_name", "text", "language")


def read(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The parts read_test, xtts_train and so on; `languages` are matrix languages."""
    tables = {f"{p.parent.parent.name}_{p.parent.name}": p for p in find_files(source, _TABLE)}
    if not tables:
        raise SprachbundError(f"{source} holds no read/test/{_TABLE}; get it from {HOMEPAGE}")
    return [_part(name, path, options) for name, path in sorted(tables.items()) if options.takes_split(name)]


def _part(name: str, path: Path, options: CorpusOptions) -> Part:
    def entries() -> Iterator[Entry]:
        for number, line in enumerate(read_lines(path), start=1):
            entry = _entry(f"{path}:{number}", line, path.parent, options)
            if entry is not None:
                yield entry

    total = count_lines(path) if not options.languages else sum(1 for _ in entries())
    return Part(name=name, total=total, entries=entries)


def _entry(where: str, line: str, folder: Path, options: CorpusOptions) -> Entry | None:
    row = _row(where, line)
    matrix, second = (tag(code, where) for code in _pair(row["language"], where))
    if not options.takes(matrix):
        return None
    text = clean_text(row["text"].replace("**", ""))
    if not text:
        return LeftOut(where=where, reason="no transcript")
    custom: dict[str, Any] = {"languages": [matrix, second], "code_switched": True}
    if marked := _MARKED.findall(row["text"]):
        custom["foreign_words"] = [clean_text(words) for words in marked]
        pieces = [(piece, number % 2 == 1) for number, piece in enumerate(_MARKED.split(row["text"]))]
        custom |= marked_places(pieces, text, matrix)
    name = Path(row["file_name"]).with_suffix("").as_posix().replace("/", "-")
    return Item(
        where=where,
        utterance_id=f"{row['language']}-{name}",
        sound=Cut(path=folder / row["file_name"]),
        language=matrix,
        text=text,
        speaker=str(row.get("speaker") or ""),
        custom=custom,
    )


def _row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        missing = [name for name in _FIELDS if row.get(name) is None]
    except (ValueError, AttributeError, RecursionError) as error:
        raise SprachbundError(f"{where}: not a line of JSON ({error}); copy the table again") from error
    if missing:
        raise SprachbundError(f"{where}: no {', '.join(missing)}; copy the table again")
    return row


def _pair(language: str, where: str) -> tuple[str, str]:
    matrix, dash, second = language.partition("-")
    if not dash:
        raise SprachbundError(f"{where}: language {language!r} is not a pair like cmn-eng")
    return matrix, second


_PAPER = "arXiv 2509.14161"

PREPARATION = Preparation(
    name="cs-fleurs",
    summary="sentences with words of a second language, 113 pairs, read or synthesised; no translations",
    licence="CC-BY-NC-4.0",
    homepage=HOMEPAGE,
    read=read,
    published=[
        Published(part="read_test", hours=17, source=_PAPER),
        Published(part="xtts_train", hours=128, source=_PAPER),
        Published(part="xtts_test1", hours=36, source=_PAPER),
        Published(part="xtts_test2", hours=42, source=_PAPER),
        Published(part="mms_test", hours=56, source=_PAPER),
    ],
)

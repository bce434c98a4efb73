"""NTUML2021: lectures on machine learning in Taiwanese Mandarin with English terms, transcribed and
translated.

A copy of the data set's repository: `data/train-00000-of-00013-....parquet` and so on for train, dev and
test, with the columns audio (bytes), transcription, translation and file. English terms are those in Latin
letters, with their word ranges in the transcript; when they are heard is not known.
"""

import io
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sprachbund.audio.load import load
from sprachbund.corpora.public.items import CorpusOptions, Entry, Item, LeftOut, Part, Published
from sprachbund.corpora.public.preparation import Preparation
from sprachbund.corpora.public.tables import find_files
from sprachbund.data.language_spans import marked_ranges
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import Samples

HOMEPAGE = "https://huggingface.co/datasets/ky552/ML2021_ASR_ST"
LANGUAGE, TARGET = "zh", "en"
_SPLITS = ("train", "dev", "test")
_COLUMNS = ("audio", "transcription", "translation", "file")
_ROWS = 16  # in memory at a time, with their sound
_PIECES = re.compile(r"([A-Za-z][A-Za-z0-9.'+-]*(?: +[A-Za-z0-9.'+-]+)*)")
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def read(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits train, dev and test."""
    if not options.takes(LANGUAGE) or not options.takes_target(TARGET):
        return []
    files = {
        split: find_files(source, f"{split}-*.parquet") for split in _SPLITS if options.takes_split(split)
    }
    for split, tables in files.items():
        if not tables:
            raise SprachbundError(f"{source} holds no {split}-*.parquet; get data/ from {HOMEPAGE}")
    return [_part(split, tables) for split, tables in files.items()]


def _part(split: str, files: Sequence[Path]) -> Part:
    total = sum(_open(path).metadata.num_rows for path in files)
    return Part(name=split, total=total, entries=partial(_entries, split, files))


def _entries(split: str, files: Sequence[Path]) -> Iterator[Entry]:
    for path in files:
        row = 0
        for rows in _batches(path):
            for said in rows:
                row += 1
                yield _entry(f"{path}, row {row}", f"{split}-{path.stem}-{row:05d}", said)


def _batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Rows, some at a time. Raises SprachbundError where the file is damaged, which its head does not show."""
    from pyarrow import ArrowException

    try:
        for batch in _open(path).iter_batches(_ROWS, columns=list(_COLUMNS)):
            yield batch.to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise SprachbundError(f"{path} is damaged ({error}); get it again from {HOMEPAGE}") from error


def _entry(where: str, utterance_id: str, row: dict[str, Any]) -> Entry:
    text, translation = clean_text(row["transcription"] or ""), clean_text(row["translation"] or "")
    data = (row["audio"] or {}).get("bytes")
    if not text or not translation or not data:
        return LeftOut(where=where, reason="no transcript, no translation or no sound")
    custom = {"file": row["file"], **english_terms(text)}
    return Item(
        where=where,
        utterance_id=utterance_id,
        sound=partial(_decode, data, where),
        language=LANGUAGE,
        text=text,
        translations={TARGET: translation},
        custom=custom,
    )


def english_terms(text: str) -> dict[str, Any]:
    """Facts for `custom`: whether a transcript is code-switched, its terms in Latin letters, and their word ranges."""
    pieces = [(piece, number % 2 == 1) for number, piece in enumerate(_PIECES.split(text))]
    terms = [piece for piece, english in pieces if english]
    custom: dict[str, Any] = {"code_switched": bool(terms and _CHINESE.search(text))}
    if terms:
        custom |= {"languages": [LANGUAGE, TARGET], "embedded_words": terms}
        custom |= marked_ranges(pieces, text, LANGUAGE)
    return custom


def _decode(data: bytes, where: str) -> Samples:
    file = io.BytesIO(data)
    file.name = where
    return load(file, intact=True)


def _open(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise SprachbundError(
            f"{path} is a parquet file; reading it needs pyarrow: pip install 'sprachbund[ntuml]'"
        ) from None
    try:
        file = ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise SprachbundError(f"{path} cannot be read ({error}); get it again from {HOMEPAGE}") from error
    if missing := [name for name in _COLUMNS if name not in file.schema_arrow.names]:
        raise SprachbundError(f"{path} has no column {', '.join(missing)}; get it again from {HOMEPAGE}")
    return file


PREPARATION = Preparation(
    name="ntuml2021",
    summary="Mandarin lectures with English terms, into English",
    licence="MIT",
    homepage=HOMEPAGE,
    read=read,
    published=[
        Published(part=part, utterances=size, source=f"the card of {HOMEPAGE}")
        for part, size in zip(_SPLITS, (17779, 2997, 14916), strict=True)
    ],
)

"""FLEURS: about two thousand sentences read aloud in 102 languages, parallel by sentence number.

A language's folder (`data/de_de`) holds train.tsv, dev.tsv and test.tsv without a header (sentence
number, file, text as written, text normalized, its characters, samples, gender) and the sound, either as
downloaded (`audio/train.tar.gz`) or unpacked (`audio/train`, or `train`). Every other language there is a
translation.
"""

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from sprachbund.audio.load import load
from sprachbund.data.corpora.fleurs_sizes import published
from sprachbund.data.corpora.items import CorpusOptions, Cut, Entry, Item, LeftOut, Part, Samples
from sprachbund.data.corpora.places import find_folders, first_that_is, tag
from sprachbund.data.corpora.preparation import Preparation
from sprachbund.data.corpora.tables import read_table
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

HOMEPAGE = "https://huggingface.co/datasets/google/fleurs"
_COLUMNS = ["id", "file", "raw", "normalized", "characters", "samples", "gender"]
_SPLITS = ("train", "dev", "test")
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error)
_Rows = list[tuple[str, dict[str, str]]]


def read(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits, each with all spoken languages that are taken, one after the other."""
    folders = {folder.name: folder for folder in find_folders(source, "test.tsv") if "_" in folder.name}
    spoken = {code: f for code, f in folders.items() if options.takes(tag(code, str(f)))}
    if not spoken:
        raise SprachbundError(
            f"{source} holds no folder like de_de with test.tsv for the languages asked for; get data/ from "
            f"{HOMEPAGE}"
        )
    return [_part(split, spoken, folders, options) for split in _SPLITS if options.takes_split(split)]


def _part(
    split: str, spoken: Mapping[str, Path], folders: Mapping[str, Path], options: CorpusOptions
) -> Part:
    targets = {code: f for code, f in folders.items() if options.takes_target(tag(code, str(f)))}
    tables = {code: _table(folders[code], split) for code in {**spoken, **targets}}
    texts = {code: {row["id"]: clean_text(row["raw"]) for _, row in tables[code]} for code in targets}

    def entries() -> Iterator[Entry]:
        for code, folder in spoken.items():
            others = {tag(c, c): known for c, known in texts.items() if tag(c, c) != tag(code, code)}
            yield from _language(code, folder, split, tables[code], others)

    return Part(name=split, total=sum(len(tables[code]) for code in spoken), entries=entries)


def _table(folder: Path, split: str) -> _Rows:
    path = folder / f"{split}.tsv"
    if not path.exists():
        raise SprachbundError(f"{path} is missing (sentences of the {split} split); get it from {HOMEPAGE}")
    return list(read_table(path, _COLUMNS, header=False))


def _language(
    code: str, folder: Path, split: str, rows: _Rows, others: Mapping[str, Mapping[str, str]]
) -> Iterator[Entry]:
    archive = folder / "audio" / f"{split}.tar.gz"
    unpacked = first_that_is([folder / "audio" / split, folder / split])
    make = partial(_item, code=code, others=others)
    if not archive.exists() or unpacked.is_dir():
        for where, row in rows:
            yield make(where, row, sound=Cut(path=unpacked / row["file"]))
        return
    wanted = {row["file"]: (where, row) for where, row in rows}
    with _opened(archive) as tar:
        for member in _members(archive, tar):
            name = PurePosixPath(member.name).name
            if not member.isfile():
                continue
            if name not in wanted:
                yield LeftOut(where=f"{archive}:{member.name}", reason="sound without a line in the table")
                continue
            where, row = wanted.pop(name)
            yield make(where, row, sound=partial(_from_tar, archive, tar, member))
    for name, (where, row) in wanted.items():
        yield make(
            where, row, sound=partial(_not_there, f"{name} is not in {archive}; get it from {HOMEPAGE}")
        )


def _item(
    where: str,
    row: Mapping[str, str],
    *,
    code: str,
    others: Mapping[str, Mapping[str, str]],
    sound: Cut | Callable[[], Samples],
) -> Item:
    return Item(
        where=where,
        utterance_id=f"{code}-{Path(row['file']).stem}",
        sound=sound,
        language=tag(code, where),
        text=clean_text(row["raw"]),
        translations={t: texts[row["id"]] for t, texts in others.items() if texts.get(row["id"])},
        custom={"sentence": row["id"], "locale": code, "gender": row["gender"].lower()},
    )


def _opened(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive, "r|*")  # a stream: as large as it likes
    except _DAMAGE as error:
        raise SprachbundError(
            f"{archive} cannot be unpacked ({error}); get it again from {HOMEPAGE}"
        ) from error


def _members(archive: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        yield from tar
    except _DAMAGE as error:
        raise SprachbundError(f"{archive} is damaged ({error}); get it again from {HOMEPAGE}") from error


def _from_tar(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Samples:
    try:
        file = tar.extractfile(member)
        data = file.read() if file else b""
    except _DAMAGE as error:
        raise SprachbundError(f"{archive}: {member.name} is damaged ({error}); get it again") from error
    named = io.BytesIO(data)
    named.name = f"{archive}:{member.name}"
    return load(named)


def _not_there(message: str) -> Samples:
    raise SprachbundError(message)


PREPARATION = Preparation(
    name="fleurs",
    summary="two thousand sentences read aloud in 102 languages, each a translation of the others",
    licence="CC-BY-4.0",
    homepage=HOMEPAGE,
    read=read,
    published=published(),
)

"""FLEURS, about two thousand sentences read aloud in 102 languages, and CS-FLEURS, sentences of it in two languages.

- FLEURS: a language's folder (`data/de_de`) holds train.tsv, dev.tsv and test.tsv without a header (sentence number,
  file, text as written, text normalized, its characters, samples, gender) and the sound, either as downloaded
  (`audio/train.tar.gz`) or unpacked (`audio/train`, or `train`). Every other language there is a translation. Published
  sizes are those of TensorFlow Datasets' catalogue; other languages stay unchecked.
- CS-FLEURS: a copy of the repository (`read/test`, `xtts/train`, `xtts/test1`, `xtts/test2`, `mms/test`), each with
  metadata.jsonl (id, file_name, text, language like "cmn-eng", the matrix language first, speaker, duration) and sound.
  Where `**` stands around the words of the second language, they and their word ranges are stored. Times of switches
  and translations are not published.
"""

import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from sprachbund.audio.load import load
from sprachbund.corpora.public.items import CorpusOptions, Cut, Entry, Item, LeftOut, Part, Published
from sprachbund.corpora.public.preparation import Preparation
from sprachbund.corpora.public.tables import (
    count_lines,
    find_files,
    find_folders,
    first_that_is,
    read_lines,
    read_table,
    tag,
)
from sprachbund.data.language_spans import marked_ranges
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import Samples

# Published sizes: sentences in train, dev and test.

_SOURCE = "the catalogue of TensorFlow Datasets, xtreme_s/fleurs"
_SIZES = {
    "af": (1032, 198, 264), "am": (3163, 223, 516), "ar": (2104, 295, 428), "as": (2812, 418, 984),
    "ast": (2511, 398, 946), "az": (2665, 400, 923), "be": (2433, 408, 967), "ca": (2300, 404, 940),
    "ckb": (3040, 386, 922), "cs": (2811, 305, 723), "cy": (3427, 447, 1021), "da": (2465, 395, 930),
    "es": (2796, 408, 908), "fa": (3101, 369, 871), "ga": (2845, 369, 842), "gl": (2175, 395, 927),
    "gu": (3145, 432, 1000), "he": (3242, 328, 792), "hi": (2120, 239, 418), "hr": (3461, 377, 914),
    "hu": (3095, 407, 905), "hy": (3053, 395, 932), "id": (2579, 350, 687), "is": (926, 36, 46),
    "it": (3030, 391, 865), "ja": (2292, 266, 650), "jv": (3051, 295, 728), "ka": (1491, 409, 979),
    "kea": (2715, 366, 864), "kk": (3200, 369, 856), "km": (1675, 326, 771), "ko": (2307, 226, 382),
    "ky": (2818, 422, 977), "lb": (2502, 408, 934), "lg": (2478, 306, 723), "ln": (3350, 209, 478),
    "lt": (2937, 416, 986), "luo": (2384, 102, 256), "lv": (2110, 356, 851), "mk": (2337, 415, 973),
    "ml": (3043, 418, 958), "mn": (3074, 405, 949), "mt": (2895, 404, 926), "ne": (3332, 305, 726),
    "nso": (1990, 363, 790), "om": (1701, 19, 41), "pa": (1923, 251, 574), "pl": (2841, 338, 758),
    "ps": (2513, 217, 512), "pt": (2793, 386, 919), "ro": (2891, 387, 883), "ru": (2562, 356, 775),
    "sd": (3443, 426, 980), "so": (3149, 432, 1019), "sr": (2944, 290, 700), "sv": (2385, 330, 759),
    "sw": (3070, 211, 487), "te": (2302, 311, 472), "tg": (2298, 240, 600), "uk": (2810, 325, 750),
    "umb": (1597, 135, 379), "vi": (2994, 361, 857), "zu": (2858, 354, 854),
}  # fmt: skip
"""Train, dev and test by language."""


def published() -> Sequence[Published]:
    """Sentences read of every language and split."""
    return [
        Published(part=part, key=language, utterances=size, source=_SOURCE)
        for language, sizes in _SIZES.items()
        for part, size in zip(("train", "dev", "test"), sizes, strict=True)
    ]


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
    return load(named, intact=True)


def _not_there(message: str) -> Samples:
    raise SprachbundError(message)


FLEURS = Preparation(
    name="fleurs",
    summary="two thousand sentences read aloud in 102 languages, each a translation of the others",
    licence="CC-BY-4.0",
    homepage=HOMEPAGE,
    read=read,
    published=published(),
)


# CS-FLEURS.

CS_FLEURS_HOMEPAGE = "https://huggingface.co/datasets/byan/cs-fleurs"
_TABLE = "metadata.jsonl"
_MARKED = re.compile(r"\*\*(.+?)\*\*")
_FIELDS = ("id", "file_name", "text", "language")


def read_cs_fleurs(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The parts read_test, xtts_train and so on; `languages` are matrix languages, and there are no targets."""
    if options.targets:
        return []
    tables = {f"{p.parent.parent.name}_{p.parent.name}": p for p in find_files(source, _TABLE)}
    if not tables:
        raise SprachbundError(f"{source} holds no read/test/{_TABLE}; get it from {CS_FLEURS_HOMEPAGE}")
    return [
        _read_part(name, path, options) for name, path in sorted(tables.items()) if options.takes_split(name)
    ]


def _read_part(name: str, path: Path, options: CorpusOptions) -> Part:
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
        custom["embedded_words"] = [clean_text(words) for words in marked]
        pieces = [(piece, number % 2 == 1) for number, piece in enumerate(_MARKED.split(row["text"]))]
        custom |= marked_ranges(pieces, text, matrix)
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

CS_FLEURS = Preparation(
    name="cs-fleurs",
    summary="sentences with words of a second language, 113 pairs, read or synthesised; no translations",
    licence="CC-BY-NC-4.0",
    homepage=CS_FLEURS_HOMEPAGE,
    read=read_cs_fleurs,
    published=[
        Published(part="read_test", hours=17, source=_PAPER),
        Published(part="xtts_train", hours=128, source=_PAPER),
        Published(part="xtts_test1", hours=36, source=_PAPER),
        Published(part="xtts_test2", hours=42, source=_PAPER),
        Published(part="mms_test", hours=56, source=_PAPER),
    ],
)

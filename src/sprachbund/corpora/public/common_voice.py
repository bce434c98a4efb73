"""Common Voice, and the translations of its clips: CoVoST 2 and CVSS.

- Common Voice: clips in `de/clips`, and what is said in them.
- CoVoST 2: 21 languages into English, and English into 15. Read are either the published tables
  (`covost_v2.de_en.tsv`: path, translation, split), with Common Voice's validated.tsv for the transcripts, or the
  tables of each split that the makers' script writes (`covost_v2.de_en.train.tsv`: path, sentence, translation,
  client_id).
- CVSS: CoVoST 2's translations into English as they are read aloud, numbers and abbreviations in words. Each language's
  archive (`cvss_c_de_en_v1.0`, or `cvss_t_...` with the same texts) holds train.tsv, dev.tsv and test.tsv: name of the
  clip, text. Clips and transcripts are Common Voice's.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from sprachbund.corpora.public.items import CorpusOptions, Cut, Join, Part, Published
from sprachbund.corpora.public.preparation import Preparation
from sprachbund.corpora.public.tables import find_files, find_folders, read_table, require, tag
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

HOMEPAGE = "https://commonvoice.mozilla.org/datasets"
VALIDATED = "validated.tsv"
_CLIPS = "clips"
_ESCAPE = "\\"


def language_folder(source: Path, code: str) -> Path:
    """The folder of a language, with `clips` in it, named by its code as Common Voice names it.

    Raises:
        SprachbundError: there is none, or several.
    """
    folders = [folder for folder in find_folders(source, _CLIPS) if folder.name == code]
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise SprachbundError(
            f"{source} holds no folder {code}/{_CLIPS}; get Common Voice version 4 in {code} from {HOMEPAGE} "
            "and unpack it there"
        )
    raise SprachbundError(f"{folders[0]} and {folders[1]} both hold Common Voice in {code}; remove one")


def clip(folder: Path, name: str) -> Path:
    """The clip of a name with or without ".mp3"; one that was converted to wav or flac serves as well."""
    path = folder / _CLIPS / (name if Path(name).suffix else f"{name}.mp3")
    others = (path.with_suffix(".wav"), path.with_suffix(".flac"))
    return next((p for p in (path, *others) if p.exists()), path)


class Sentences:
    """Transcripts and speakers of a language's validated clips; on disk, because English has a million of them.

    Raises:
        SprachbundError: the table is missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / VALIDATED
        if not path.exists():
            raise SprachbundError(f"{path} is missing (what is said in the clips); get it from {HOMEPAGE}")
        self._db = sqlite3.connect("")  # private, on disk, gone when closed
        self._db.execute("create table said (clip text primary key, text text, speaker text) without rowid")
        rows = read_table(path, ["client_id", "path", "sentence"], escape=_ESCAPE)
        self._db.executemany(
            "insert or ignore into said values (?, ?, ?)",
            ((Path(row["path"]).stem, row["sentence"], row["client_id"]) for _, row in rows),
        )

    def get(self, clip: str) -> tuple[str, str] | None:
        """Sentence and speaker of a clip, named with or without its ending; None if it is not validated."""
        cursor = self._db.execute("select text, speaker from said where clip = ?", (Path(clip).stem,))
        row: tuple[str, str] | None = cursor.fetchone()
        return row


# CoVoST 2.

COVOST_HOMEPAGE = "https://github.com/facebookresearch/covost"
_COVOST = re.compile(r"covost_v2\.([A-Za-z-]+)_([A-Za-z-]+?)(?:\.(train|dev|test))?\.tsv")
_COVOST_SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}
"""Values of the column `split` to the split of version 2, as in the makers' script; `train_covost` extends `train`."""

_SIZES = "the CoVoST 2 card of TensorFlow Datasets' community catalogue"
_INTO_ENGLISH = {
    "fr": (207374, 14760, 14760), "de": (127834, 13511, 13511), "es": (79015, 13221, 13221),
    "ca": (95854, 12730, 12730), "it": (31698, 8940, 8951), "ru": (12112, 6110, 6300),
    "zh": (7085, 4843, 4898), "pt": (9158, 3318, 4023), "fa": (53949, 3445, 3445),
    "et": (1782, 1576, 1571), "mn": (2067, 1761, 1759), "nl": (7108, 1699, 1699),
    "tr": (3966, 1624, 1629), "ar": (2283, 1758, 1695), "sv": (2160, 1349, 1595),
    "lv": (2337, 1125, 1629), "sl": (1843, 509, 360), "ta": (1358, 384, 786),
    "ja": (1119, 635, 684), "id": (1243, 792, 844), "cy": (1241, 690, 690),
}  # fmt: skip
_FROM_ENGLISH = ("de", "tr", "fa", "sv", "mn", "zh", "cy", "ca", "sl", "et", "id", "ar", "ta", "lv", "ja")
_OF_ENGLISH = (289430, 15531, 15531)


def published() -> Sequence[Published]:
    """Clips of every pair and split."""
    pairs = {f"{language}>en": sizes for language, sizes in _INTO_ENGLISH.items()}
    pairs |= {f"en>{language}": _OF_ENGLISH for language in _FROM_ENGLISH}
    return [
        Published(part=part, key=pair, utterances=size, source=_SIZES)
        for pair, sizes in pairs.items()
        for part, size in zip(("train", "dev", "test"), sizes, strict=True)
    ]


def read_covost(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits of the pairs that are there, clips with several translations brought together."""
    tables: dict[tuple[str, str], dict[str, Path]] = {}
    for path in find_files(source, "covost_v2.*.tsv"):
        match = _COVOST.fullmatch(path.name)
        if (
            match
            and options.takes(tag(match[1], str(path)))
            and options.takes_target(tag(match[2], str(path)))
        ):
            tables.setdefault((match[1], match[2]), {})[match[3] or ""] = path
    if not tables:
        raise SprachbundError(
            f"{source} holds no covost_v2.XX_YY.tsv for the languages asked for; get them from {COVOST_HOMEPAGE} "
            f"and put them beside Common Voice version 4 ({COVOST_HOMEPAGE})"
        )
    join = Join()
    for code in sorted({spoken for spoken, _ in tables}):
        _add_covost(join, source, code, {pair[1]: t for pair, t in tables.items() if pair[0] == code})
    return join.parts()


def _add_covost(join: Join, source: Path, code: str, tables: dict[str, dict[str, Path]]) -> None:
    folder = language_folder(source, code)
    said: Sentences | None = None
    for target, files in tables.items():
        by_split = {split: path for split, path in files.items() if split}
        if by_split and (len(by_split) == len(set(_COVOST_SPLITS.values())) or "" not in files):
            rows = _rows_of_splits(by_split)
        else:
            if said is None:
                said = Sentences(folder)
            rows = _rows(files[""], said, join)
        for split, where, row in rows:
            _add(join, split, where, row, folder, code, target)


def _rows_of_splits(files: dict[str, Path]) -> Iterator[tuple[str, str, dict[str, str]]]:
    columns = ["path", "sentence", "translation", "client_id"]
    for split, path in files.items():
        for where, row in read_table(path, columns, escape="\\"):
            yield split, where, row


def _rows(path: Path, said: Sentences, join: Join) -> Iterator[tuple[str, str, dict[str, str]]]:
    for where, row in read_table(path, ["path", "translation", "split"], escape="\\"):
        split = _COVOST_SPLITS.get(row["split"])
        if split is None:
            join.leave_out(_COVOST_SPLITS["train"], where, "in no split of version 2")
            continue
        spoken = said.get(row["path"])
        if spoken is None:
            join.leave_out(split, where, "clip is not in validated.tsv")
            continue
        yield split, where, {**row, "sentence": spoken[0], "client_id": spoken[1]}


def _add(
    join: Join, split: str, where: str, row: dict[str, str], folder: Path, code: str, target: str
) -> None:
    translation, text = clean_text(row["translation"]), clean_text(row["sentence"])
    if not translation or not text:
        return join.leave_out(split, where, "no translation" if text else "no transcript")
    join.add(
        split,
        where=where,
        utterance_id=Path(row["path"]).stem,
        cut=Cut(path=clip(folder, row["path"])),
        language=tag(code, where),
        text=text,
        speaker=row["client_id"],
        translations={tag(target, where): translation},
    )


COVOST = Preparation(
    name="covost2",
    summary="Common Voice read aloud, 21 languages into English and English into 15",
    licence="CC0-1.0",
    homepage=COVOST_HOMEPAGE,
    read=read_covost,
    published=published(),
)


# CVSS.

CVSS_HOMEPAGE = "https://github.com/google-research-datasets/cvss"
_CVSS = re.compile(r"(?:cvss_[ct]_)?([A-Za-z-]+)_en(?:_v1\.0)?")
_CVSS_TARGET = "en"
_CVSS_SPLITS = ("train", "dev", "test")
_COMMON_VOICE = {"zh": "zh-CN", "sv": "sv-SE"}
"""Codes that Common Voice writes with a region."""


def read_cvss(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits of the languages that are there."""
    if not options.takes_target(_CVSS_TARGET):
        return []
    folders: dict[str, Path] = {}
    for folder in find_folders(source, "test.tsv"):
        match = _CVSS.fullmatch(folder.name)
        if match and options.takes(tag(match[1], str(folder))):
            folders.setdefault(match[1], folder)
    if not folders:
        raise SprachbundError(
            f"{source} holds no cvss_c_XX_en_v1.0 for the languages asked for; get it from {CVSS_HOMEPAGE}, "
            f"beside Common Voice version 4 ({CVSS_HOMEPAGE})"
        )
    join = Join()
    for code, folder in folders.items():
        _add_cvss(join, source, code, folder)
    return join.parts()


def _add_cvss(join: Join, source: Path, code: str, folder: Path) -> None:
    clips = language_folder(source, _COMMON_VOICE.get(code, code))
    sentences = Sentences(clips)
    for split in _CVSS_SPLITS:
        path = require(folder / f"{split}.tsv", f"texts of the {split} split", CVSS_HOMEPAGE)
        for where, row in read_table(path, ["clip", "translation"], header=False):
            name, translation = Path(row["clip"]).stem, clean_text(row["translation"])
            said = sentences.get(name)
            if said is None or not translation:
                reason = "no translation" if said else "clip is not in validated.tsv"
                join.leave_out(split, where, reason)
                continue
            join.add(
                split,
                where=where,
                utterance_id=name,
                cut=Cut(path=clip(clips, name)),
                language=tag(code, where),
                text=clean_text(said[0]),
                speaker=said[1],
                translations={_CVSS_TARGET: translation},
            )


CVSS = Preparation(
    name="cvss",
    summary="Common Voice read aloud in 21 languages, English translations as spoken",
    licence="CC-BY-4.0",
    homepage=CVSS_HOMEPAGE,
    read=read_cvss,
)

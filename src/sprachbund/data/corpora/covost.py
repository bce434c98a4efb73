"""CoVoST 2: translations of Common Voice clips, from 21 languages into English and from English into 15.

Read are either the tables as published (`covost_v2.de_en.tsv`: path, translation, split), with Common Voice's
validated.tsv for what is said, or the tables of each split that the makers' script writes
(`covost_v2.de_en.train.tsv`: path, sentence, translation, client_id). Clips lie in Common Voice's `de/clips`.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sprachbund.data.corpora import common_voice
from sprachbund.data.corpora.counts import Published
from sprachbund.data.corpora.items import CorpusOptions, Cut, Part
from sprachbund.data.corpora.join import Join
from sprachbund.data.corpora.places import find_files, tag
from sprachbund.data.corpora.preparation import Preparation
from sprachbund.data.corpora.tables import read_table
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

HOMEPAGE = "https://github.com/facebookresearch/covost"
_NAME = re.compile(r"covost_v2\.([A-Za-z-]+)_([A-Za-z-]+?)(?:\.(train|dev|test))?\.tsv")
_SPLITS = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}
"""What the makers' script takes into each split of version 2; `train_covost` extends Common Voice's own."""

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


def read(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits of the pairs that are there, clips with several translations brought together."""
    tables: dict[tuple[str, str], dict[str, Path]] = {}
    for path in find_files(source, "covost_v2.*.tsv"):
        match = _NAME.fullmatch(path.name)
        if (
            match
            and options.takes(tag(match[1], str(path)))
            and options.takes_target(tag(match[2], str(path)))
        ):
            tables.setdefault((match[1], match[2]), {})[match[3] or ""] = path
    if not tables:
        raise SprachbundError(
            f"{source} holds no covost_v2.XX_YY.tsv for the languages asked for; get them from {HOMEPAGE} "
            f"and put them beside Common Voice version 4 ({common_voice.HOMEPAGE})"
        )
    join = Join()
    for code in sorted({spoken for spoken, _ in tables}):
        _add_language(join, source, code, {pair[1]: t for pair, t in tables.items() if pair[0] == code})
    return join.parts()


def _add_language(join: Join, source: Path, code: str, tables: dict[str, dict[str, Path]]) -> None:
    folder = common_voice.language_folder(source, code)
    said: common_voice.Sentences | None = None
    for target, files in tables.items():
        by_split = {split: path for split, path in files.items() if split}
        if by_split and (len(by_split) == len(set(_SPLITS.values())) or "" not in files):
            rows = _rows_of_splits(by_split)
        else:
            if said is None:
                said = common_voice.Sentences(folder)
            rows = _rows(files[""], said, join)
        for split, where, row in rows:
            _add(join, split, where, row, folder, code, target)


def _rows_of_splits(files: dict[str, Path]) -> Iterator[tuple[str, str, dict[str, str]]]:
    columns = ["path", "sentence", "translation", "client_id"]
    for split, path in files.items():
        for where, row in read_table(path, columns, escape="\\"):
            yield split, where, row


def _rows(path: Path, said: common_voice.Sentences, join: Join) -> Iterator[tuple[str, str, dict[str, str]]]:
    for where, row in read_table(path, ["path", "translation", "split"], escape="\\"):
        split = _SPLITS.get(row["split"])
        if split is None:
            join.leave_out(_SPLITS["train"], where, "in no split of version 2")
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
        cut=Cut(path=common_voice.clip(folder, row["path"])),
        language=tag(code, where),
        text=text,
        speaker=row["client_id"],
        translations={tag(target, where): translation},
    )


PREPARATION = Preparation(
    name="covost2",
    summary="Common Voice read aloud, 21 languages into English and English into 15",
    licence="CC0-1.0",
    homepage=HOMEPAGE,
    read=read,
    published=published(),
)

"""CVSS: CoVoST 2's translations into English as they are read out, numbers and abbreviations in words.

Each language's archive (`cvss_c_de_en_v1.0`, or `cvss_t_...`; the texts are the same) holds train.tsv,
dev.tsv and test.tsv: name of the Common Voice clip, text. The clips and what is said in them come from
Common Voice.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from sprachbund.data.corpora import common_voice
from sprachbund.data.corpora.items import CorpusOptions, Cut, Part
from sprachbund.data.corpora.join import Join
from sprachbund.data.corpora.places import find_folders, require, tag
from sprachbund.data.corpora.preparation import Preparation
from sprachbund.data.corpora.tables import read_table
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

HOMEPAGE = "https://github.com/google-research-datasets/cvss"
_NAME = re.compile(r"(?:cvss_[ct]_)?([A-Za-z-]+)_en(?:_v1\.0)?")
_SPLITS = ("train", "dev", "test")
_COMMON_VOICE = {"zh": "zh-CN", "sv": "sv-SE"}
"""Codes that Common Voice writes with a region."""


def read(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The splits of the languages that are there."""
    folders: dict[str, Path] = {}
    for folder in find_folders(source, "test.tsv"):
        match = _NAME.fullmatch(folder.name)
        if match and options.takes(tag(match[1], str(folder))):
            folders.setdefault(match[1], folder)
    if not folders:
        raise SprachbundError(
            f"{source} holds no cvss_c_XX_en_v1.0 for the languages asked for; get it from {HOMEPAGE}, "
            f"beside Common Voice version 4 ({common_voice.HOMEPAGE})"
        )
    join = Join()
    for code, folder in folders.items():
        _add_language(join, source, code, folder)
    return join.parts()


def _add_language(join: Join, source: Path, code: str, folder: Path) -> None:
    clips = common_voice.language_folder(source, _COMMON_VOICE.get(code, code))
    sentences = common_voice.Sentences(clips)
    for split in _SPLITS:
        path = require(folder / f"{split}.tsv", f"texts of the {split} split", HOMEPAGE)
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
                cut=Cut(path=common_voice.clip(clips, name)),
                language=tag(code, where),
                text=clean_text(said[0]),
                speaker=said[1],
                translations={"en": translation},
            )


PREPARATION = Preparation(
    name="cvss",
    summary="Common Voice read aloud in 21 languages, English translations as spoken",
    licence="CC-BY-4.0",
    homepage=HOMEPAGE,
    read=read,
)

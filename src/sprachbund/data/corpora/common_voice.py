"""Common Voice, whose clips CoVoST 2 and CVSS translate: where clips lie, and who says what."""

import sqlite3
from pathlib import Path

from sprachbund.data.corpora.places import find_folders
from sprachbund.data.corpora.tables import read_table
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
    found = [folder for folder in find_folders(source, _CLIPS) if folder.name == code]
    if len(found) == 1:
        return found[0]
    if not found:
        raise SprachbundError(
            f"{source} holds no folder {code}/{_CLIPS}; get Common Voice version 4 in {code} from {HOMEPAGE} "
            "and unpack it there"
        )
    raise SprachbundError(f"{found[0]} and {found[1]} both hold Common Voice in {code}; remove one")


def clip(folder: Path, name: str) -> Path:
    """The clip of a name with or without ".mp3"; one that was converted to wav or flac serves as well."""
    path = folder / _CLIPS / (name if Path(name).suffix else f"{name}.mp3")
    others = (path.with_suffix(".wav"), path.with_suffix(".flac"))
    return next((p for p in (path, *others) if p.exists()), path)


class Sentences:
    """What is said in a language's validated clips, and by whom; on disk, for English has a million of them.

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
        found = self._db.execute("select text, speaker from said where clip = ?", (Path(clip).stem,))
        row: tuple[str, str] | None = found.fetchone()
        return row

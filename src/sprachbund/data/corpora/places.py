"""Finding the files of a corpus in people's copies, and saying what is missing and where it is had."""

import fnmatch
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sprachbund.data.own import check_tag
from sprachbund.errors import SprachbundError

_CROWDED = frozenset({"clips", "wav", "wavs", "audio", "audios", "speech", ".git"})
"""Folders with a file for each utterance, not looked through for tables."""

_SAME = {"cmn": "zh", "zho": "zh", "arb": "ar", "nob": "nb", "npi": "ne", "pes": "fa", "swh": "sw"}
"""Codes of corpora whose language models know by a wider tag."""

MAX_DEPTH = 6


def require(path: Path, what: str, homepage: str) -> Path:
    """The path, if something is there. Raises SprachbundError with what it is and where it comes from."""
    if not path.exists():
        raise SprachbundError(f"{path} is missing ({what}); get it from {homepage}")
    return path


def find_files(root: Path, pattern: str) -> list[Path]:
    """Files under a folder whose names match a pattern, sorted; folders full of clips are not entered."""
    return sorted(
        folder / name for folder, names in _walk(root) for name in names if fnmatch.fnmatch(name, pattern)
    )


def find_folders(root: Path, *inside: str) -> list[Path]:
    """Folders at or under a folder that hold all the named files or folders, sorted."""
    return sorted(folder for folder, _ in _walk(root) if all((folder / name).exists() for name in inside))


def first_that_is(candidates: Sequence[Path]) -> Path:
    """The first path that exists, or the first one, for messages to name."""
    return next((path for path in candidates if path.exists()), candidates[0])


def tag(code: str, where: str) -> str:
    """BCP-47 tag of a corpus's language code, without region: "zh" for cmn, zh-CN and cmn_hans_cn."""
    language = check_tag(code.replace("_", "-").split("-")[0], where)
    return _SAME.get(language, language)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    for folder, folders, files in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        folders[:] = sorted(f for f in folders if f not in _CROWDED) if depth < MAX_DEPTH else []
        yield Path(folder), files

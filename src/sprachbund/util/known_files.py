"""Remembered facts about large files, so that they are not read whole at every start.

A file is known by all that changes when it is replaced or written to: inode, size and times. The time of modification
alone does not show that, because rsync, tar and container images set it; the time of the last change (ctime) cannot be
set.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sprachbund.util.files import write_text

RESOLUTION_NS = 2 * 10**9
"""Resolution of files' times: FAT's is two seconds, and most are finer."""
_REMEMBERED = 200  # entries of an index; models in temporary folders come and go


def user_cache() -> Path:
    """The folder of what can be found out again: `sprachbund` in `XDG_CACHE_HOME`, or in `.cache` of the user's home.

    It may be missing or closed to writing. A user without a home, as in some containers, gets that of Debian's system
    users, which does not exist.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():  # by its specification, others are to be ignored
        return given / "sprachbund"
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/nonexistent")
    return home / ".cache" / "sprachbund"


def remembered(files: Sequence[Path], index: Path, find_out: Callable[[], str], about: str = "") -> str:
    """Return a fact about some files, from the index or by reading them now.

    Args:
        files: files that it depends on, all of which exist.
        index: file that remembers it, one for each question; where it cannot be written, only time is lost.
        find_out: reads the files.
        about: name of the fact, where an index has several facts about the same files.
    """
    now, before = time.time_ns(), _states(files)
    known = _read(index)
    key = hashlib.sha256(json.dumps([before, about]).encode()).hexdigest()
    if key in known:
        return known[key]
    fact = find_out()
    # A file that is written to again within the resolution of its times looks the same as before.
    settled = all(state.changed_ns < now - RESOLUTION_NS for state in before)
    if settled and _states(files) == before:
        with suppress(OSError):
            write_text(index, json.dumps(dict([*known.items(), (key, fact)][-_REMEMBERED:])))
    return fact


class _State(NamedTuple):
    """Properties that change when a file changes."""

    path: str
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def _states(files: Iterable[Path]) -> list[_State]:
    stats = ((str(path.resolve()), path.stat()) for path in files)
    return [
        _State(path, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)  # those of a link's target
        for path, s in stats
    ]


def _read(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}

"""Being a user who may not read everything, as root may."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65_534


def can_be_nobody() -> bool:
    """Whether this process is no root, or may become another user: in a namespace there may be none but root."""
    if os.geteuid() != 0:
        return True
    known = Path("/proc/self/uid_map")
    if not known.exists():
        return True
    ranges = [line.split() for line in known.read_text().splitlines()]
    return any(int(first) <= NOBODY < int(first) + int(count) for first, _, count in ranges)


@contextlib.contextmanager
def nobody(path: Path) -> Iterator[None]:
    """Without root's rights, as far as `can_be_nobody`; `path` can be reached all the same."""
    if os.geteuid() != 0 or not can_be_nobody():
        yield
        return
    folders = [folder for folder in (path, *path.parents) if folder.stat().st_mode & 0o011 != 0o011]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)

"""Reads texts to be scored from plain files; refuses what would silently be scored on a subset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sprachbund.errors import SprachbundError

_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_SEPARATORS = {"\u2028": "U+2028", "\u2029": "U+2029", "\x85": "U+0085", "\x0b": "U+000B", "\x0c": "U+000C"}


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The lines of a file, without their ends."""

    path: Path
    lines: Sequence[str]


def read_texts(path: Path, *, allow_empty: bool) -> Texts:
    """Read a UTF-8 file of one text per line.

    Args:
        path: the file.
        allow_empty: whether a line may be empty; references may not.

    Raises:
        SprachbundError: naming file and line, for a missing or empty file, a byte order mark, other
            encodings, line ends of more than one kind, characters that other programs take for line ends,
            empty lines.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SprachbundError(f"{path}: {error.strerror or error}; check the path") from error
    if not raw:
        raise SprachbundError(f"{path} is empty; there is nothing to score")
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            raise SprachbundError(
                f"{path}:1: begins with a {encoding} byte order mark; save it as UTF-8 without one"
            )
    check_line_ends(path, raw)
    body = raw.replace(b"\r\n", b"\n")
    lines = [_decoded(path, n, line) for n, line in enumerate(body.removesuffix(b"\n").split(b"\n"), start=1)]
    for number, line in enumerate(lines, start=1):
        if not allow_empty and not line.strip():
            raise SprachbundError(
                f"{path}:{number}: the reference is empty; add it, or remove the line in all files"
            )
    return Texts(path=path, lines=lines)


def read_parallel(hypotheses: Path, references: Path) -> tuple[Sequence[str], Sequence[str]]:
    """As many hypotheses as references. Raises SprachbundError as `read_texts`, and for different numbers."""
    reference = read_texts(references, allow_empty=False)
    hypothesis = read_texts(hypotheses, allow_empty=True)
    if len(hypothesis.lines) != len(reference.lines):
        shorter = min((hypothesis, reference), key=lambda texts: len(texts.lines))
        raise SprachbundError(
            f"{hypotheses} has {len(hypothesis.lines)} lines and {references} {len(reference.lines)}; "
            f"{shorter.path} ends after line {len(shorter.lines)}; nothing is scored on a part"
        )
    return hypothesis.lines, reference.lines


def read_ids(path: Path, count: int) -> Sequence[str]:
    """Ids, one per line. Raises SprachbundError for one that occurs twice, and for another number of them."""
    ids = read_texts(path, allow_empty=False).lines
    seen: dict[str, int] = {}
    for number, name in enumerate(ids, start=1):
        if name in seen:
            raise SprachbundError(f"{path}:{number}: id {name!r} stands on line {seen[name]} already")
        seen[name] = number
    if len(ids) != count:
        raise SprachbundError(f"{path} has {len(ids)} ids for {count} texts; give one for each")
    return ids


def check_line_ends(path: Path, raw: bytes) -> None:
    """Raises SprachbundError, naming file and line, for line ends of more than one kind, and for CR alone."""
    windows = raw.count(b"\r\n")
    kinds = {
        "CR LF": windows,
        "LF": raw.count(b"\n") - windows,
        "CR": raw.count(b"\r") - windows,
    }
    there = {kind: count for kind, count in kinds.items() if count}
    if len(there) > 1 or "CR" in there:
        counts = ", ".join(f"{count} {kind}" for kind, count in there.items())
        odd = min(there, key=lambda kind: there[kind])
        end = {"CR LF": b"\r\n", "LF": b"\n", "CR": b"\r"}[odd]
        number = _line_of(raw, end)
        if there.keys() == {"CR"}:
            raise SprachbundError(
                f"{path}:{number}: its lines end in CR alone, so that most programs see one line; save it with LF"
            )
        raise SprachbundError(
            f"{path}:{number}: mixed line ends ({counts}), so that programs count its lines differently; "
            "save it with one kind, LF or CR LF"
        )


def _line_of(raw: bytes, end: bytes) -> int:
    """Number of the first line that ends so, LF and CR LF counted."""
    start = 0
    while (found := raw.find(end, start)) >= 0:
        part_of_windows = (end == b"\n" and raw[found - 1 : found] == b"\r") or (
            end == b"\r" and raw[found + 1 : found + 2] == b"\n"
        )
        if not part_of_windows:
            return raw.count(b"\n", 0, found) + 1
        start = found + 1
    return 1


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SprachbundError(
            f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line; convert the file"
        ) from error
    for character, name in _SEPARATORS.items():
        if character in text:
            raise SprachbundError(
                f"{path}:{number}: holds {name}, a line end to some programs; replace it by a space"
            )
    return text

"""One hypothesis with its reference and evidence, and the file of such lines that all scoring reads.

Everything that is scored later comes from this file, so a score can be computed again without the model.
"""

import json
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.embedded import EmbeddedSpan, SpokenSpan
from sprachbund.evaluation.routes import Route

HYPOTHESES_FILE = "hypotheses.jsonl"
CHUNK = 256  # lines scored at a time: enough for the libraries' loops, few enough to see results come


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What decoding says of a hypothesis.

    Attributes:
        dropped: why the guard dropped it; None when it is kept.
        finished: whether the model ended the row itself; False when the limit on tokens cut it.
        num_tokens: tokens written, the end not counted.
        mean_log_probability: natural logarithm per token.
        speech_probability: mean voice activity over the spans of speech; 0 when there are none.
        no_speech_probability: the model's own doubt; None when it has none.
        compression_ratio: bytes of the text over bytes after zlib.
        repetition: share of the text in loops.
        language: what the model took the speech for; None when it cannot tell.
        routes: where a router sent the sound, in the order of time; empty from models without one.
    """

    dropped: str | None = None
    finished: bool = True
    num_tokens: int = 0
    mean_log_probability: float = 0.0
    speech_probability: float = 1.0
    no_speech_probability: float | None = None
    compression_ratio: float = 0.0
    repetition: float = 0.0
    language: str | None = None
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Line:
    """One utterance in one target language.

    Attributes:
        id: of the utterance, unique within its corpus.
        source: BCP-47 tag of the speech; empty for sound without speech.
        target: BCP-47 tag of the text; equal to `source` for transcription.
        hypothesis: what the model wrote, before the guard, on one line.
        reference: what it should have written; empty for sound without speech.
        evidence: of the decoding.
        corpus: name of the corpus.
        kind: kind of utterance within the corpus.
        speaker: who speaks.
        duration_s: of the sound.
        transcript: what is said, in `source`.
        switched: whether several languages are spoken in it.
        embedded: what is said in another language than its main one, in the order it is said.
        spoken: all spans of languages that the corpus tells, with their times.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    id: str
    source: str
    target: str
    hypothesis: str
    reference: str
    evidence: Evidence
    corpus: str = ""
    kind: str = ""
    speaker: str = ""
    duration_s: float = 0.0
    transcript: str = ""
    switched: bool = False
    embedded: tuple[EmbeddedSpan, ...] = ()
    spoken: tuple[SpokenSpan, ...] = ()

    @property
    def pair(self) -> tuple[str, str]:
        """(source, target)."""
        return self.source, self.target

    @property
    def guarded(self) -> str:
        """The text that a user sees: empty when the guard dropped it."""
        return "" if self.evidence.dropped else self.hypothesis

    def behind_guard(self) -> "Line":
        """The same line with the text that a user sees as its hypothesis."""
        return replace(self, hypothesis=self.guarded)

    def to_json(self) -> str:
        """One line of JSON, letters outside ASCII as they are."""
        values = asdict(self)
        if not self.switched:  # files of other speech do without
            del values["switched"], values["embedded"]
        if not self.spoken:
            del values["spoken"]
        if not self.evidence.routes:
            del values["evidence"]["routes"]
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def from_json(cls, raw: bytes) -> "Line":
        """The inverse of `to_json`. Raises ValueError, in words for people, for what is none."""
        try:
            line = _adapter().validate_json(raw)
        except ValidationError as error:
            json_object(raw)  # says better what is wrong with what is no JSON
            raise ValueError(first_fault(error)) from error
        for tag in filter(None, (line.source, line.target)):
            if not is_tag(tag):
                raise ValueError(f"{tag!r} is no language tag")
        return line


@cache
def _adapter() -> TypeAdapter[Line]:
    return TypeAdapter(Line)


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with values, in words."""
    fault = error.errors()[0]
    place = list(map(str, fault["loc"]))
    return f"lacks {place[-1]!r}" if fault["type"] == "missing" else f"{'.'.join(place)}: {fault['msg']}"


@cache
def is_tag(tag: str) -> bool:
    """Whether a language tag is one."""
    import langcodes

    return bool(langcodes.tag_is_valid(tag))


class LineWriter:
    """Writes lines as they come; the file has its final name only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_suffix(path.suffix + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8", newline="\n")

    def write(self, line: Line) -> None:
        """Append a line and push it to the disk's door."""
        self._file.write(line.to_json() + "\n")
        self._file.flush()

    def __enter__(self) -> "LineWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if error is None:
            self._partial.replace(self.path)


def read_lines(path: Path) -> Iterator[Line]:
    """Lines of a hypotheses file, one by one.

    Raises:
        SprachbundError: naming file and line, for what is not such a line, for line ends of two kinds and for
            a pair of id and target that occurs twice in a corpus.
    """
    if not path.exists():
        partial = path.with_suffix(path.suffix + ".partial")
        hint = f"; {partial.name} is of a run that was broken off" if partial.exists() else ""
        raise SprachbundError(f"{path} does not exist{hint}; make it with `sprachbund evaluate --out`")
    seen: dict[tuple[str, str, str], int] = {}
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                end = b"\r\n" if raw.endswith(b"\r\n") else b"\n"
            elif raw.endswith(b"\n") and raw.endswith(b"\r\n") != (end == b"\r\n"):
                raise SprachbundError(
                    f"{path}:{number}: mixed line ends, LF and CR LF; save it with one kind"
                )
            line = _parse(path, number, raw)
            key = (line.corpus, line.id, line.target)
            if key in seen:
                raise SprachbundError(
                    f"{path}:{number}: id {line.id!r} into {line.target} stands on line {seen[key]} already; "
                    "remove one of the two"
                )
            seen[key] = number
            yield line


def _parse(path: Path, number: int, raw: bytes) -> Line:
    try:
        return Line.from_json(raw)
    except ValueError as error:
        raise SprachbundError(
            f"{path}:{number}: not a line of hypotheses ({error}); evaluate again or restore the file"
        ) from error


def in_chunks(lines: Iterable[Line], size: int = CHUNK) -> Iterator[list[Line]]:
    """Lines in lists, as many at a time as metrics are counted on together."""
    iterator = iter(lines)
    while some := list(islice(iterator, size)):
        yield some


def json_object(raw: bytes) -> dict[str, Any]:
    """A line of JSON. Raises ValueError, in words for people, for what is none."""
    if raw.startswith(BOM_UTF8):
        raise ValueError("it begins with a byte order mark: save the file as UTF-8 without one")
    try:
        value = json.loads(raw.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} (character {error.pos + 1})") from error
    except RecursionError:
        raise ValueError("no JSON: nested too deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 (byte 0x{error.object[error.start]:02x})") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def by_pair(lines: Iterable[Line]) -> dict[tuple[str, str], list[Line]]:
    """Lines by (source, target), pairs in the order of their tags."""
    pairs: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        pairs.setdefault(line.pair, []).append(line)
    return dict(sorted(pairs.items()))

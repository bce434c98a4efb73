"""The file of what live translation wrote when: all that latency is computed from, so no clock is needed later.

One JSON object a line, one for each talk and target language. `audio_s` is the ideal clock, the audio that had been
taken in; `wall_s` also counts computation.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import first_fault, json_object
from sprachbund.text.languages import join_units, writes_spaces
from sprachbund.util.files import write_text

_ROUNDING_S = 1e-6  # what writing and reading a number may change


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=_Record)


class Emission(_Record):
    """Text that was committed at once.

    Attributes:
        text: whole words; what comes next is joined by a space where the language has spaces.
        audio_s: audio taken in when it was committed.
        wall_s: seconds since the talk began when it was committed, computation included; at least `audio_s`.
    """

    text: str
    audio_s: float = Field(ge=0)
    wall_s: float


class Shown(_Record):
    """All text on the screen, committed and tentative, after a change.

    Attributes:
        text: the whole of it.
        audio_s: audio taken in by then.
    """

    text: str
    audio_s: float = Field(ge=0)


class EmissionLog(_Record):
    """The text that was written of one talk in one language, with its times.

    Attributes:
        talk: name of the talk, the same as in the references.
        target: BCP-47 tag of the text.
        duration_s: seconds of the talk.
        emissions: committed text in order.
        shown: the screen after every change; empty when that was not recorded.
    """

    talk: str = Field(min_length=1)
    target: str = Field(min_length=1)
    duration_s: float = Field(gt=0)
    emissions: tuple[Emission, ...]
    shown: tuple[Shown, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        """Times go forward, and computation ends no earlier than the audio it needs."""
        for number, emission in enumerate(self.emissions):
            if emission.wall_s < emission.audio_s - _ROUNDING_S:
                raise ValueError(
                    f"emissions.{number}: wall_s {emission.wall_s} before its audio_s {emission.audio_s}"
                )
        _check_forward("emissions", "audio_s", [emission.audio_s for emission in self.emissions])
        _check_forward("emissions", "wall_s", [emission.wall_s for emission in self.emissions])
        _check_forward("shown", "audio_s", [shown.audio_s for shown in self.shown])
        return self

    def to_json(self) -> str:
        """One line of the file."""
        return self.model_dump_json()


class ReferenceSegment(_Record):
    """The reference translation of a stretch of a talk.

    Attributes:
        talk: name of the talk.
        target: BCP-47 tag of the text.
        start_s: start of the stretch in the talk, in seconds.
        end_s: end of the stretch.
        text: the reference translation.
    """

    talk: str = Field(min_length=1)
    target: str = Field(min_length=1)
    start_s: float = Field(ge=0)
    end_s: float
    text: str

    @model_validator(mode="after")
    def _has_length_and_text(self) -> Self:
        if self.end_s <= self.start_s:
            raise ValueError(f"end_s {self.end_s} is not after start_s {self.start_s}")
        if not self.text.strip():
            raise ValueError("text: is empty; give the reference or leave the segment out")
        return self


class EmissionRecorder:
    """Collects what a live session writes in one target language into a log.

    Args:
        talk: name of the talk.
        target: BCP-47 tag of the text.
    """

    def __init__(self, talk: str, target: str) -> None:
        self._talk, self._target = talk, target
        self._emissions: list[Emission] = []
        self._shown: list[Shown] = []
        self._committed: dict[int, str] = {}  # by segment
        self._tentative: dict[int, str] = {}

    def add(self, segment: int, committed: str, tentative: str, audio_s: float, wall_s: float) -> None:
        """Take one change.

        Args:
            segment: number of the stretch of speech, in the order of the talk.
            committed: characters to append to what was committed of the segment; a word that they go on with counts
                from now, when it is whole.
            tentative: replaces what stood behind the committed text of the segment.
            audio_s: audio taken in by then.
            wall_s: the moment, seconds since the talk began; what is before `audio_s` is moved there.
        """
        before = self._committed.get(segment, "")
        self._committed[segment], self._tentative[segment] = before + committed, tentative
        text = self._take_back_word() + committed if self._goes_on(before, committed) else committed
        wall_s = max(wall_s, audio_s, self._emissions[-1].wall_s if self._emissions else 0.0)
        if text.strip():
            self._emissions.append(Emission(text=text.strip(), audio_s=audio_s, wall_s=wall_s))
        screen = self._screen()
        if screen != (self._shown[-1].text if self._shown else ""):
            self._shown.append(Shown(text=screen, audio_s=audio_s))

    def log(self, duration_s: float) -> EmissionLog:
        """Return the log of a talk of this length, as far as it was written."""
        return EmissionLog(
            talk=self._talk,
            target=self._target,
            duration_s=duration_s,
            emissions=tuple(self._emissions),
            shown=tuple(self._shown),
        )

    def _goes_on(self, before: str, committed: str) -> bool:
        """Whether new characters go on with the last word."""
        spaces = writes_spaces(self._target)
        return spaces and bool(before and committed) and not (before[-1].isspace() or committed[0].isspace())

    def _take_back_word(self) -> str:
        """The last word, no longer among those emitted."""
        last = self._emissions.pop()
        *whole, word = last.text.split()
        if whole:
            self._emissions.append(last.model_copy(update={"text": " ".join(whole)}))
        return word

    def _screen(self) -> str:
        texts = [f"{self._committed[n]}{self._tentative[n]}".strip() for n in sorted(self._committed)]
        return join_units([text for text in texts if text], self._target)


def write_logs(path: Path, logs: Iterable[EmissionLog]) -> None:
    """Write logs to a file, one a line."""
    write_text(path, "".join(log.to_json() + "\n" for log in logs))


def read_logs(paths: Sequence[Path]) -> list[EmissionLog]:
    """All logs of some files.

    Raises:
        SprachbundError: naming file, line and field, for what is no such log, empty files, and a talk that is
            there twice in one language.
    """
    merged: dict[tuple[str, str], tuple[EmissionLog, str]] = {}
    for path in paths:
        for where, log in _records(path, EmissionLog, "log of emissions"):
            key = (log.talk, log.target)
            if key in merged:
                raise SprachbundError(
                    f"{where}: talk {log.talk!r} into {log.target} is in {merged[key][1]} already; "
                    "score the logs of one system at a time"
                )
            merged[key] = (log, where)
    return [log for log, _ in merged.values()]


def read_references(path: Path) -> dict[tuple[str, str], list[ReferenceSegment]]:
    """Segments by talk and target, in the order of the talk.

    Raises:
        SprachbundError: naming file, line and field, for what is no such segment, an empty file, and segments
            that overlap or are out of order.
    """
    segments: dict[tuple[str, str], list[ReferenceSegment]] = {}
    for where, segment in _records(path, ReferenceSegment, "reference segment"):
        of_talk = segments.setdefault((segment.talk, segment.target), [])
        if of_talk and segment.start_s < of_talk[-1].end_s - _ROUNDING_S:
            raise SprachbundError(
                f"{where}: segment {segment.start_s}-{segment.end_s} s of talk {segment.talk!r} begins before the "
                f"one above it ends ({of_talk[-1].end_s} s); put segments in order, without overlap"
            )
        of_talk.append(segment)
    return segments


def _records(path: Path, kind: type[Kind], noun: str) -> list[tuple[str, Kind]]:
    """Lines of a file with file and line number."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SprachbundError(f"{path}: {error.strerror or error}; check the path") from error
    if not raw.strip():
        raise SprachbundError(f"{path} is empty; it should have a {noun} on every line")
    records = []
    for number, line in enumerate(raw.splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            records.append((where, kind.model_validate_json(line)))
        except ValidationError as error:
            raise SprachbundError(f"{where}: not a {noun}: {_fault(line, error)}") from error
    return records


def _fault(line: bytes, error: ValidationError) -> str:
    try:
        json_object(line)
    except ValueError as broken:
        return str(broken)
    fault: Any = error.errors()[0]
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    field = ".".join(map(str, fault["loc"]))
    return f"{field}: is no known field" if fault["type"] == "extra_forbidden" else first_fault(error)


def _check_forward(name: str, field: str, times_s: Sequence[float]) -> None:
    for number, (before, after) in enumerate(pairwise(times_s), start=1):
        if after < before - _ROUNDING_S:
            raise ValueError(f"{name}.{number}: {field} {after} after one of {before}; time goes forward")

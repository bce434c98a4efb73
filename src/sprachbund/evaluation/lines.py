"""The lines that scoring reads: plain text files, and `hypotheses.jsonl` with references and evidence of decoding.

All scores are computed from these files, so they can be computed again without the model.
"""

import json
import math
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from sprachbund.data.language_spans import WordRange, spans_in, split_words, unique_range
from sprachbund.data.manifest import Utterance
from sprachbund.errors import SprachbundError
from sprachbund.text.languages import MIXED, primary
from sprachbund.util.files import PARTIAL, take_name

# Plain text files. Files that would silently be scored on a subset of lines are refused.

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
    while (at := raw.find(end, start)) >= 0:
        part_of_windows = (end == b"\n" and raw[at - 1 : at] == b"\r") or (
            end == b"\r" and raw[at + 1 : at + 2] == b"\n"
        )
        if not part_of_windows:
            return raw.count(b"\n", 0, at) + 1
        start = at + 1
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


# Code-switching: spans of languages in an utterance.
#
# An utterance is code-switched when its `custom` says so (`code_switched`) or has `spans` of more than one
# language. Embedded is what is said in another language than its main one: `custom["main_language"]`, or
# its language. Of an embedded span the scores need two things, and each may be missing:
#
# - its words: `text` of the span, or else `custom["embedded_words"]` where `custom["languages"]` are two;
# - the position of its translation in the reference: `word_ranges` of the span (of the words: `embedded_ranges`),
#   target to [first word, one after the last]. Without it, the only occurrence of the span's words in the reference,
#   where they must occur (the span is in the target language already, or the reference is the transcript).
#
# No other position is assumed. Spans with times alone have neither. A router is scored by the times (`start_s`,
# `end_s`), but not by times marked as estimated (`spans_estimated`).


@dataclass(frozen=True, kw_only=True)
class EmbeddedSpan:
    """Words of the embedded language in an utterance.

    Attributes:
        language: BCP-47 tag of it.
        said: the words, in the embedded language; empty when the corpus does not have them.
        start: first word of their translation in the reference; None where that is unknown.
        end: end behind the last word of their translation in the reference; None with `start`.
    """

    language: str
    said: str = ""
    start: int | None = None
    end: int | None = None

    @property
    def word_range(self) -> WordRange | None:
        """(start, end) in words of the reference; None when it is not known."""
        return None if self.start is None or self.end is None else (self.start, self.end)


@dataclass(frozen=True, kw_only=True)
class SpokenSpan:
    """A span of speech, of the main language or embedded, and when it is heard.

    Attributes:
        language: BCP-47 tag of it.
        start_s: from the beginning of the utterance; None when the corpus does not say.
        end_s: its end; None with `start_s`.
        embedded: whether it is in another language than the main one.

    Raises:
        ValueError: for one time without the other, and for times that are none.
    """

    language: str
    start_s: float | None = None
    end_s: float | None = None
    embedded: bool = False

    def __post_init__(self) -> None:
        start_s, end_s = self.start_s, self.end_s
        whole = start_s is not None and end_s is not None and 0 <= start_s <= end_s < math.inf
        if not whole and (start_s, end_s) != (None, None):
            raise ValueError(f"a span from {start_s} to {end_s} s")


def is_code_switched(utterance: Utterance) -> bool:
    """Whether the corpus says that several languages are spoken in it."""
    marked = utterance.custom.get("code_switched") is True
    return marked or len({span["language"] for span in spans_in(utterance)}) > 1


def embedded_spans(utterance: Utterance, target: str) -> tuple[EmbeddedSpan, ...]:
    """The embedded spans of a code-switched utterance, with their word ranges in the reference of a target.

    Raises:
        SprachbundError: for spans without a language, and word ranges that the reference does not have.
    """
    if not is_code_switched(utterance):
        return ()
    words = split_words(utterance.text_in(target) or "", target)
    return tuple(_embedded(row, utterance, target, words) for row in _rows(utterance))


def spoken_spans(utterance: Utterance) -> tuple[SpokenSpan, ...]:
    """All spans of an utterance, in the order they are said; empty when the corpus has none.

    Raises:
        SprachbundError: for spans without a language, and for times that are none.
    """
    estimated = utterance.custom.get("spans_estimated") is True
    return tuple(_spoken(span, utterance, estimated=estimated) for span in spans_in(utterance))


def is_transcription(source: str, target: str) -> bool:
    """Whether a target asks for what was said: the language spoken, or mixed speech as it is spoken."""
    return target in (source, MIXED)


def same_language(one: str, other: str) -> bool:
    """Whether two tags are of one language, whatever its region or script."""
    return primary(one) == primary(other)


def _main_language(utterance: Utterance) -> str:
    return str(utterance.custom.get("main_language") or utterance.language)


def _spoken(span: Mapping[str, Any], utterance: Utterance, *, estimated: bool) -> SpokenSpan:
    times = {} if estimated else {name: span.get(name) for name in ("start_s", "end_s")}
    language = str(span["language"])
    try:
        return SpokenSpan(language=language, embedded=language != _main_language(utterance), **times)
    except (TypeError, ValueError) as error:
        raise SprachbundError(f"{utterance.id}: {error}; prepare the corpus again") from error


def _rows(utterance: Utterance) -> list[Mapping[str, Any]]:
    """Embedded spans as the corpus has them."""
    main = _main_language(utterance)
    rows = [span for span in spans_in(utterance) if span["language"] != main]
    words = utterance.custom.get("embedded_words") or []
    others = [tag for tag in utterance.custom.get("languages") or [] if tag != main]
    if words and len(others) == 1 and not any(row.get("text") for row in rows):
        return [_with_positions(others[0], said, number, utterance) for number, said in enumerate(words)]
    return rows


def _with_positions(language: str, said: str, number: int, utterance: Utterance) -> dict[str, Any]:
    """The words of an embedded span as a row, with its positions in every reference that has them."""
    ranges = utterance.custom.get("embedded_ranges") or {}
    size = len(utterance.custom["embedded_words"])
    known = {target: of_target[number] for target, of_target in ranges.items() if len(of_target) == size}
    return {"language": language, "text": said, "word_ranges": known}


def _embedded(row: Mapping[str, Any], utterance: Utterance, target: str, words: list[str]) -> EmbeddedSpan:
    said, language = str(row.get("text") or ""), str(row["language"])
    given = (row.get("word_ranges") or {}).get(target)
    span: WordRange | None = None
    if given is not None:
        span = _checked(given, utterance, target, len(words))
    elif same_language(language, target) or target in (utterance.language, MIXED):
        span = unique_range(split_words(said, language), words)
    start, end = span or (None, None)
    return EmbeddedSpan(language=language, said=said, start=start, end=end)


def _checked(span: Any, utterance: Utterance, target: str, num_words: int) -> WordRange:
    try:
        start, end = map(int, span)
    except (TypeError, ValueError):
        start, end = 0, 0
    if not 0 <= start < end <= num_words:
        raise SprachbundError(
            f"{utterance.id}: a span's word range {span} is not in its reference into {target} of "
            f"{num_words} words; prepare the corpus again"
        )
    return start, end


# Routes: the language whose experts a router chose for a stretch of time (arXiv 2511.10670). Stretches may leave gaps
# and overlap.


@dataclass(frozen=True, kw_only=True)
class RoutedSpan:
    """A stretch of sound and the language whose experts worked on it.

    Attributes:
        start_s: from the beginning of the utterance.
        end_s: its end.
        language: BCP-47 tag; anything else is no language spoken, and never right.

    Raises:
        ValueError: for a stretch that ends before it begins, or begins before the sound.
    """

    start_s: float
    end_s: float
    language: str

    def __post_init__(self) -> None:
        if not 0 <= self.start_s <= self.end_s < float("inf"):
            raise ValueError(f"a route from {self.start_s} to {self.end_s} s")


def joined(stretches: Iterable[tuple[float, float, str]]) -> tuple[RoutedSpan, ...]:
    """Routes of (start_s, end_s, language), those of one language that follow each other as one."""
    routes: list[RoutedSpan] = []
    for start_s, end_s, language in stretches:
        route = RoutedSpan(start_s=round(start_s, 4), end_s=round(end_s, 4), language=language)
        if routes and (routes[-1].language, routes[-1].end_s) == (language, route.start_s):
            routes[-1] = replace(routes[-1], end_s=route.end_s)
        else:
            routes.append(route)
    return tuple(routes)


def routed_s(start_s: float, end_s: float, language: str, routes: Sequence[RoutedSpan]) -> float:
    """Seconds of a span that went to its language.

    Routes that overlap share the time evenly, so that naming every language gains nothing; a gap is nobody's.

    Args:
        start_s: start of the span in seconds.
        end_s: end of the span in seconds.
        language: BCP-47 tag of the span.
        routes: routes of the utterance, in any order.
    """
    there = [route for route in routes if route.start_s < end_s and route.end_s > start_s]
    if not there:
        return 0.0
    begins = np.array([max(route.start_s, start_s) for route in there])
    ends = np.array([min(route.end_s, end_s) for route in there])
    right = np.array([same_language(route.language, language) for route in there])
    edges = np.unique(np.concatenate([begins, ends]))
    working = (begins[:, None] <= edges[:-1]) & (ends[:, None] >= edges[1:])  # (routes, stretches)
    share = working[right].sum(0) / np.maximum(1, working.sum(0))
    return float((share * np.diff(edges)).sum())


# Lines of hypotheses, and the file of them.

HYPOTHESES_FILE = "hypotheses.jsonl"
CHUNK = 256  # lines scored at a time: enough for the libraries' loops, few enough to see results come


@dataclass(frozen=True, kw_only=True)
class DecodingEvidence:
    """Evidence of decoding for a hypothesis.

    Attributes:
        dropped: reason why the guard dropped it, wholly or in part; None when all of it is kept.
        kept: the text that the guard left, where it dropped some of the hypothesis's segments; None where it dropped
            all or none.
        finished: whether the model ended the row itself; False when the limit on tokens cut it.
        num_tokens: tokens written, the end not counted.
        mean_log_probability: natural logarithm per token.
        speech_probability: mean voice activity over the spans of speech; 0 when there are none.
        no_speech_probability: the model's own doubt; None when it has none.
        out_of_domain: probability that the text is not what was said; None of models that were not calibrated.
        compression_ratio: bytes of the text over bytes after zlib.
        repetition: share of the text in loops.
        language: language that the model identified; None when it identifies none.
        routes: languages that a router chose and their times, in order; empty from models without one.
    """

    dropped: str | None = None
    kept: str | None = None
    finished: bool = True
    num_tokens: int = 0
    mean_log_probability: float = 0.0
    speech_probability: float = 1.0
    no_speech_probability: float | None = None
    out_of_domain: float | None = None
    compression_ratio: float = 0.0
    repetition: float = 0.0
    language: str | None = None
    routes: tuple[RoutedSpan, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Line:
    """One utterance in one target language.

    Attributes:
        id: id of the utterance, unique within its corpus.
        source: BCP-47 tag of the speech; empty for sound without speech.
        target: BCP-47 tag of the text; equal to `source` for transcription, `MIXED` for that of mixed speech.
        hypothesis: text of the model, before the guard, on one line.
        reference: correct text; empty for sound without speech.
        evidence: evidence of the decoding.
        corpus: name of the corpus.
        kind: kind of utterance within the corpus.
        speaker: name of the speaker.
        duration_s: seconds of the sound.
        transcript: text of the speech, in `source`.
        switched: whether several languages are spoken in it.
        embedded: words said in another language than its main one, in the order they are said.
        spoken: all spans of languages that the corpus has, with their times.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    id: str
    source: str
    target: str
    hypothesis: str
    reference: str
    evidence: DecodingEvidence
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
        """Pair of languages (source, target)."""
        return self.source, self.target

    @property
    def guarded(self) -> str:
        """The text that a user sees: without what the guard dropped."""
        if self.evidence.dropped:
            return ""
        return self.hypothesis if self.evidence.kept is None else self.evidence.kept

    @property
    def is_transcript(self) -> bool:
        """Whether a transcript is asked for."""
        return is_transcription(self.source, self.target)

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
        if self.evidence.kept is None:
            del values["evidence"]["kept"]
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
    location = list(map(str, fault["loc"]))
    return (
        f"lacks {location[-1]!r}" if fault["type"] == "missing" else f"{'.'.join(location)}: {fault['msg']}"
    )


@cache
def is_tag(tag: str) -> bool:
    """Whether a text is a language tag."""
    import langcodes

    return bool(langcodes.tag_is_valid(tag))


class LineWriter:
    """Writes lines as they come; the file has its final name only when it is whole.

    The partial file of a run that was broken off stays, with all lines that were decoded; `read_lines` names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(path.name + PARTIAL)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8", newline="\n")

    def write(self, line: Line) -> None:
        """Append a line and flush it."""
        self._file.write(line.to_json() + "\n")
        self._file.flush()

    def __enter__(self) -> "LineWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None:
            take_name(self._partial, self.path)


def read_lines(path: Path) -> Iterator[Line]:
    """Lines of a hypotheses file, one by one.

    Raises:
        SprachbundError: naming file and line, for what is not such a line, for line ends of two kinds and for
            a pair of id and target that occurs twice in a corpus.
    """
    if not path.exists():
        partial = path.with_name(path.name + PARTIAL)
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

"""Router accuracy: the share of speech that goes to the experts of the language spoken, by span and by time.

A span is right when more than half of its time went to its language. Spans are those of the corpus; speech that
is in one language throughout is one span. Left out, and counted, are spans whose times are not known, or only
estimated, spans of no length, spans of no language, and those of outputs that carry no routes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sprachbund.evaluation.lines import Line, SpokenSpan, routed_s

SPANS, EMBEDDED, TIME = "router accuracy", "router accuracy, embedded", "router accuracy by time"
NAMES = (SPANS, EMBEDDED, TIME)
_UNDETERMINED = ("", "und")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of correct answers.

    Attributes:
        right: spans, or seconds, that went to their language.
        evaluated: spans, or seconds, in all.
        left_out: spans that could not be evaluated.
    """

    right: float
    evaluated: float
    left_out: int

    @property
    def percent(self) -> float:
        """Right ones per hundred evaluated; 0 when none was."""
        return 100.0 * self.right / self.evaluated if self.evaluated else 0.0


class RouteCounts:
    """Adds up lines as they come.

    Attributes:
        num_lines: number of lines.
        any_routes: whether any line carried routes; without them there is no router to speak of.
    """

    def __init__(self) -> None:
        self._right, self._evaluated = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0.0)
        self._left_out = Counter[str]()
        self.num_lines = 0
        self.any_routes = False

    def add(self, line: Line) -> None:
        """Add a line of speech."""
        self.num_lines += 1
        self.any_routes = self.any_routes or bool(line.evidence.routes)
        for span in spans_of(line):
            names = NAMES if span.embedded else (SPANS, TIME)
            length_s = _length_s(span)
            if not length_s or not line.evidence.routes or span.language in _UNDETERMINED:
                self._left_out.update(names)
                continue
            right_s = routed_s(span.start_s or 0.0, span.end_s or 0.0, span.language, line.evidence.routes)
            for name in names:
                self._right[name] += right_s if name == TIME else int(2 * right_s > length_s)
                self._evaluated[name] += length_s if name == TIME else 1

    def scores(self) -> Iterator[tuple[str, Accuracy]]:
        """Each accuracy of which anything was evaluated or left out."""
        for name in NAMES:
            if self._evaluated[name] or self._left_out[name]:
                yield (
                    name,
                    Accuracy(
                        right=self._right[name],
                        evaluated=self._evaluated[name],
                        left_out=self._left_out[name],
                    ),
                )


def spans_of(line: Line) -> Sequence[SpokenSpan]:
    """Return the spans of speech of a line: the corpus's spans, or where it says that several languages are spoken
    and not which where, one span of no language; else the whole utterance."""
    if line.spoken:
        return line.spoken
    if line.switched:
        embedded = [SpokenSpan(language=span.language, embedded=True) for span in line.embedded]
        return embedded or [SpokenSpan(language="")]
    return [SpokenSpan(language=line.source, start_s=0.0, end_s=line.duration_s)]


def _length_s(span: SpokenSpan) -> float:
    return 0.0 if span.start_s is None or span.end_s is None else span.end_s - span.start_s

"""Latency as a table: a line for each talk, language and clock."""

from collections.abc import Mapping, Sequence

from sprachbund.evaluation.latency import CLOCKS, LATENCY_SCORES, QUALITY, Clocked, MeanLatency, TalkLatency
from sprachbund.evaluation.present import Table

MISSING = "–"
NOTE = "seconds; AP: share of the talk; NE: words taken back for each that stayed; chrF and BLEU by segment"


def latency_table(talks: Sequence[TalkLatency], means: Sequence[MeanLatency]) -> Table:
    """Every score of every talk, then the means."""
    rows = []
    for talk in talks:
        rows += _rows(talk.talk, talk.target, talk.scores, talk.flicker, talk.quality)
    for mean in means:
        name = f"mean of {mean.num_talks}" + (f", {mean.num_silent} silent" if mean.num_silent else "")
        rows += _rows(name, mean.target, mean.scores, mean.flicker, mean.quality)
    header = ["talk", "target", "clock", *LATENCY_SCORES, "NE", *QUALITY]
    return Table(title="latency", header=header, rows=rows, note=NOTE)


def _rows(
    name: str, target: str, scores: Clocked, flicker: float | None, quality: Mapping[str, float]
) -> list[list[str]]:
    """A row by the ideal clock, with what no clock changes, and one with computation."""
    first, second = ([_cell(scores[clock][name], 2) for name in LATENCY_SCORES] for clock in CLOCKS)
    texts = [_cell(flicker, 2), *(_cell(quality[name], 1) for name in QUALITY)]
    return [[name, target, CLOCKS[0], *first, *texts], ["", "", CLOCKS[1], *second, *[""] * len(texts)]]


def _cell(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"

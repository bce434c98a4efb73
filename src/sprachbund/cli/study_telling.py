"""What `study fit` and `study report` print."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from sprachbund.cli.console import table

if TYPE_CHECKING:
    from sprachbund.studies.analysis import Analysis
    from sprachbund.studies.report import Table
    from sprachbund.studies.whole import StudyReport


def tell(found: "Analysis", at: Sequence[float]) -> None:
    """The report of a table as text, a paragraph for each question."""
    _print([*_findings(found), _decisions(found, at)])


def tell_study(found: "StudyReport", at: Sequence[float]) -> None:
    """The report of a study: that of its table, and what its cells know."""
    from sprachbund.studies import whole

    tables = [
        (
            f"{found.manifests[0].metric} of every start, mean over languages, seeds and tiers",
            whole.start_rows(found),
        ),
        ("gap of every cell; 95% over utterances", whole.cell_rows(found)),
        ("how soon runs were at their best", whole.sooner_rows(found)),
    ]
    told = [f"{head}\n{_columns(whole.as_table(rows))}" for head, rows in tables if rows]
    _print([found.missing, *_findings(found.analysis), *told, _decisions(found.analysis, at)])


def _findings(found: "Analysis") -> list[str]:
    from sprachbund.studies import report

    parts = [f"{report.heading(found)}\n{_columns(report.gap_table(found))}"]
    parts.append("\n".join(report.law_lines(found.fitted)))
    if found.by_tier and found.fitted.law:
        parts.append(_columns(report.tier_table(found)))
    parts.append(report.latency_line(found))
    if found.bit_costs:
        parts.append(_columns(report.bit_table(found)))
    return parts


def _decisions(found: "Analysis", at: Sequence[float]) -> str:
    from sprachbund.studies import report

    return "\n".join(decision.sentence for decision in report.decisions(found, at))


def _columns(made: "Table") -> str:
    head, rows = made
    return table(rows, head)


def _print(parts: Sequence[str]) -> None:
    typer.echo("\n\n".join(part for part in parts if part))

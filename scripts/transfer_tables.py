"""Tables and figure of docs/study.md over all three seeds of the transfer study, from the table of its scores.

    python -m scripts.transfer_tables

Seeds 0 and 1 are of one run of `recipe encoder_transfer --size small`, and seed 2 is of another, whose starts were
trained anew. The report of a run makes such tables of its own cells.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sprachbund.research.encoder_transfer.analysis import StudyAnalysis, analyse
from sprachbund.research.encoder_transfer.report import bit_rows, draw, gap_rows
from sprachbund.research.encoder_transfer.results import mean_of_known, read_results
from sprachbund.research.encoder_transfer.study_options import ReadOptions
from sprachbund.util.files import write_json

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"
SCORES = RESULTS / "encoder_transfer_small.csv"
ARMS = ("ml", "en")
GROUPS = {"heard by the multilingual start": ("de", "es"), "heard by neither": ("nl", "pt")}
"""Languages that the multilingual start was trained on, and others."""


def start_rows(analysis: StudyAnalysis) -> list[dict[str, float]]:
    """Mean score of both starts by hours, over languages, seeds and distinct tiers, at the most bits.

    Args:
        analysis: of all scores.
    """
    grid = analysis.grid
    means = mean_of_known(grid.means[:, :, :, grid.distinct_tiers, 0], axis=(1, 3))
    return [
        {"hours": hours, **{arm: round(float(means[n, at]), 2) for n, arm in enumerate(grid.arms)}}
        for at, hours in enumerate(grid.hours)
    ]


def group_rows(analysis: StudyAnalysis) -> list[dict[str, Any]]:
    """Mean gap of the languages of a group at the most bits, with the lowest and highest of the seeds.

    There is no interval: two of the seeds share their starts, so that they say nothing of other starts.

    Args:
        analysis: of all scores.
    """
    grid, rows = analysis.grid, []
    first, second = grid.values[:, :, :, grid.distinct_tiers, 0].mean(axis=3)  # (L, H, S)
    for group, languages in GROUPS.items():
        gaps = (second - first)[[grid.languages.index(language) for language in languages]].mean(axis=0)
        for hours, by_seed in zip(grid.hours, gaps, strict=True):
            rows.append(
                {
                    "languages": f"{group}: {', '.join(languages)}",
                    "hours": hours,
                    "gap": round(float(by_seed.mean()), 2),
                    "lowest to highest": f"{by_seed.min():.2f} to {by_seed.max():.2f}",
                    **{
                        f"seed {seed}": round(float(gap), 2)
                        for seed, gap in zip(grid.seeds, by_seed, strict=True)
                    },
                }
            )
    return rows


def tables_of(analysis: StudyAnalysis) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Name to rows of every table.

    Args:
        analysis: of all scores.
    """
    return {
        "gaps": gap_rows(analysis),
        "groups": group_rows(analysis),
        "starts": start_rows(analysis),
        "bits": bit_rows(analysis),
    }


def read_analysis() -> StudyAnalysis:
    """The analysis of all scores."""
    return analyse(read_results(SCORES, ReadOptions(arms=ARMS)))


def main() -> None:
    """Write the tables and the figure."""
    analysis = read_analysis()
    for name, rows in tables_of(analysis).items():
        value = {"made by": "scripts/transfer_tables.py", "scores": SCORES.name, "rows": rows}
        write_json(RESULTS / f"encoder_transfer_small_{name}.json", value)
    draw(analysis, DOCS / "images" / "transfer_small.png")


if __name__ == "__main__":
    main()

"""Tables and figures of docs/study.md over all seeds of the transfer study, from the tables of its scores.

    python -m scripts.transfer_tables

Seeds 0 and 1 of `small` are of one run of `recipe encoder_transfer --size small`, and seed 2 is of another, whose
starts were trained anew. `tuned` has a learning rate for each start. The report of a run makes such tables of its own
cells.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.research.encoder_transfer.analysis import StudyAnalysis, analyse
from sprachbund.research.encoder_transfer.report import bit_rows, draw, gap_rows
from sprachbund.research.encoder_transfer.results import mean_of_known, read_results
from sprachbund.research.encoder_transfer.study_options import ReadOptions
from sprachbund.util.files import write_json

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"
STUDIES = ("small", "tuned")
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

    There is no interval: seeds of one run share their starts, so that they say nothing of other starts.

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
                    **(_of_seeds(grid.seeds, by_seed) if len(by_seed) > 1 else {}),
                }
            )
    return rows


def _of_seeds(seeds: Sequence[int], gaps: np.ndarray) -> dict[str, Any]:
    by_seed = {f"seed {seed}": round(float(gap), 2) for seed, gap in zip(seeds, gaps, strict=True)}
    return {"lowest to highest": f"{gaps.min():.2f} to {gaps.max():.2f}", **by_seed}


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


def scores_of(study: str) -> Path:
    """The table of scores of a study.

    Args:
        study: one of `STUDIES`.
    """
    return RESULTS / f"encoder_transfer_{study}.csv"


def read_analysis(study: str) -> StudyAnalysis:
    """The analysis of all scores of a study.

    Args:
        study: one of `STUDIES`.
    """
    return analyse(read_results(scores_of(study), ReadOptions(arms=ARMS)))


def main() -> None:
    """Write the tables and the figures."""
    for study in STUDIES:
        analysis = read_analysis(study)
        for name, rows in tables_of(analysis).items():
            value = {"made by": "scripts/transfer_tables.py", "scores": scores_of(study).name, "rows": rows}
            write_json(RESULTS / f"encoder_transfer_{study}_{name}.json", value)
        draw(analysis, DOCS / "images" / f"transfer_{study}.png")


if __name__ == "__main__":
    main()

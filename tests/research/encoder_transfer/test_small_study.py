"""The tables of the study in the documentation are those of its scores."""

import json

import pytest
from scripts.transfer_tables import RESULTS, read_analysis, tables_of

from sprachbund.research.encoder_transfer.analysis import StudyAnalysis


@pytest.fixture(scope="module")
def analysis() -> StudyAnalysis:
    return read_analysis()


@pytest.mark.parametrize("name", ["gaps", "groups", "starts", "bits"])
def test_a_stored_table_is_that_of_the_scores(analysis: StudyAnalysis, name: str) -> None:
    stored = json.loads((RESULTS / f"encoder_transfer_small_{name}.json").read_text(encoding="utf-8"))["rows"]
    assert stored == list(tables_of(analysis)[name])


def test_groups_are_means_of_the_gaps_of_languages(analysis: StudyAnalysis) -> None:
    tables = tables_of(analysis)
    by_hours = [row["gap"] for row in tables["groups"]]
    count = len(analysis.grid.hours)
    for at, row in enumerate(tables["gaps"]):
        assert (by_hours[at] + by_hours[at + count]) / 2 == pytest.approx(
            row["gap"], abs=0.011
        )  # two are rounded
    for row in tables["groups"]:
        low, high = map(float, row["lowest to highest"].split(" to "))
        assert low <= row["gap"] <= high

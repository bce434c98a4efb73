"""The tables of the studies in the documentation are those of their scores."""

import json

import pytest
from scripts.transfer_tables import RESULTS, STUDIES, read_analysis, tables_of

from sprachbund.research.encoder_transfer.analysis import StudyAnalysis


@pytest.fixture(scope="module")
def analyses() -> dict[str, StudyAnalysis]:
    return {study: read_analysis(study) for study in STUDIES}


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("name", ["gaps", "groups", "starts", "bits"])
def test_a_stored_table_is_that_of_the_scores(
    analyses: dict[str, StudyAnalysis], study: str, name: str
) -> None:
    path = RESULTS / f"encoder_transfer_{study}_{name}.json"
    assert json.loads(path.read_text(encoding="utf-8"))["rows"] == list(tables_of(analyses[study])[name])


@pytest.mark.parametrize("study", STUDIES)
def test_groups_are_means_of_the_gaps_of_languages(analyses: dict[str, StudyAnalysis], study: str) -> None:
    analysis = analyses[study]
    tables = tables_of(analysis)
    by_hours = [row["gap"] for row in tables["groups"]]
    count = len(analysis.grid.hours)
    for at, row in enumerate(tables["gaps"]):
        assert (by_hours[at] + by_hours[at + count]) / 2 == pytest.approx(
            row["gap"], abs=0.011
        )  # two are rounded
    for row in tables["groups"] if len(analysis.grid.seeds) > 1 else ():
        low, high = map(float, row["lowest to highest"].split(" to "))
        assert low <= row["gap"] <= high

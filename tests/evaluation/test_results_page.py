"""The short tables of docs/results.md are those of the manifests they were made from."""

import pytest
from scripts.results_page import DOCS, SYSTEMS, summary


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_summary_is_that_of_its_manifests(name: str) -> None:
    lines = SYSTEMS[name].lines()
    assert all(line.low <= line.value <= line.high for line in lines)
    assert (DOCS / "results" / f"summary_{name}.json").read_text(encoding="utf-8") == summary(name, lines)

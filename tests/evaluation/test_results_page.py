"""The short tables of docs/results.md are those of the manifests they were made from."""

import json
import shutil
from pathlib import Path

import pytest
from scripts import results_page
from scripts.results_page import (
    COMPARED,
    DOCS,
    DRAFTS,
    SYSTEMS,
    code_switch_scores,
    dual_scale_tables,
    rows_of,
    summary,
)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_summary_is_that_of_its_manifests(name: str) -> None:
    lines = SYSTEMS[name].lines()
    if not lines:
        pytest.skip("these results are not there yet")
    assert all(line.low <= line.value <= line.high for line in lines)
    assert (DOCS / "results" / f"summary_{name}.json").read_text(encoding="utf-8") == summary(name, lines)


@pytest.mark.parametrize("name", COMPARED)
def test_scores_of_six_languages_are_those_of_their_manifest(name: str) -> None:
    scores = (DOCS / "results" / f"{name}_scores.json").read_text(encoding="utf-8")
    assert scores == code_switch_scores(rows_of(name))


@pytest.mark.parametrize("name", DRAFTS)
def test_tables_of_drafts_are_those_of_their_manifest(name: str) -> None:
    tables = dual_scale_tables(rows_of(name))
    assert {end: (DOCS / "results" / f"{name}_{end}.json").read_text() for end in tables} == tables
    systems = {end: [row["system"] for row in json.loads(table)["rows"]] for end, table in tables.items()}
    assert {"teacher", "pruned, no draft"} < set(systems["quality"]) < set(systems["speed"])
    drafts = set(systems["speed"]) - set(systems["quality"])
    assert "parasite" in drafts  # which writes what the model does without it
    assert not drafts & {"unpruned", "medusa"}  # models of their own


def test_six_languages_are_shown_once_they_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    shutil.copy(DOCS / "results" / "code_switch_small.json", tmp_path / "results")
    first = {"chrF difference": "", "span recall % difference": "", "router right, embedded %": 81.25}
    first |= {"router right, embedded % interval": "78.1 to 84.0"}
    other = {
        "chrF difference": "-1.20 (-3.00 to +0.50)",
        "span recall % difference": "+0.50 (-1.00 to +2.00)",
    }
    rows = [
        {"speech": "scarce languages", "arm": "grouped experts", **first},
        {"speech": "scarce languages", "arm": "plain mixture", **other},
    ]
    (tmp_path / "results" / "code_switch_six.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(results_page, "DOCS", tmp_path)
    chrf, spans, router = (
        SYSTEMS[name].lines()[-1] for name in ("code_switch", "code_switch_spans", "code_switch_router")
    )
    assert {chrf.panel, spans.panel, router.panel} == {"six languages, scarce languages"}
    assert (chrf.value, chrf.low, chrf.high) == (-1.2, -3.0, 0.5)
    assert (spans.label, spans.value) == ("plain mixture", 0.5)
    assert (router.value, router.low, router.high) == (81.25, 78.1, 84.0)


def test_a_range_of_repeats_is_not_called_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = json.loads(summary("dual_scale_engines", SYSTEMS["dual_scale_engines"].lines()))["rows"]
    assert all("lowest to highest of repeats" in row and "95 %" not in row for row in ranges)
    speeds = [row["speed over the same model without a draft"] for row in ranges]
    assert not any(speed.startswith("+") for speed in speeds)  # a ratio is no difference
    (tmp_path / "results").mkdir()
    rows = [
        {"system": "pruned, no draft", "over base": 1.0, "over base, 95 %": ""},
        {"system": "parasite", "over base": 1.412, "over base, 95 %": "1.38 to 1.44"},
    ]
    (tmp_path / "results" / "dual_scale_memory_bound.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(results_page, "DOCS", tmp_path)
    lines = SYSTEMS["dual_scale_memory_bound"].lines()
    (row,) = json.loads(summary("dual_scale_memory_bound", lines))["rows"]
    assert (row["what"], row["speed over the pruned model without a draft"]) == ("parasite", "1.41")
    assert row["95 %"] == "1.38 to 1.44"


def test_adapters_and_planted_control_are_shown_once_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    for name in ("sharing_small", "sharing_low"):
        shutil.copy(DOCS / "results" / f"{name}.json", tmp_path / "results")
    for name, arm in (("sharing_low_lora", "lora"), ("sharing_low_control", "sharing")):
        rows = [
            {"arm": "uft", "difference all": "", "difference new": ""},
            {
                "arm": arm,
                "difference all": "+2.10 (+1.00 to +3.20)",
                "difference new": "+0.40 (-1.00 to +1.90)",
            },
        ]
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(results_page, "DOCS", tmp_path)
    lora, control = SYSTEMS["sharing"].lines()[-2:]
    assert (lora.panel, lora.label, lora.value) == ("two new languages", "lora", 0.4)
    assert (control.panel, control.label, control.value) == (
        "planted control: other digits in es, nl",
        "sharing",
        2.1,
    )

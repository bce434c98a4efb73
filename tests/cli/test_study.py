import json
from pathlib import Path

import pytest

from tests.research.encoder_transfer.made import TIERS, rows, write
from tests.stories.support import command


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write(tmp_path / "results.csv", list(rows(5, noise=0.1, tiers=TIERS, bits=(32, 4))))


def test_a_table_becomes_a_report_a_figure_and_a_decision(results: Path) -> None:
    figure = results.parent / "law.svg"
    ran = command("study", "fit", results, "--figure", figure, "--draws", "500")
    assert ran.code == 0
    assert "gap(h) = " in ran.out
    assert "take ml" in ran.out
    assert "4 bits cost 0.5" in ran.out
    assert figure.read_text().count("<svg") == 1


def test_json_holds_all_of_it_and_is_the_same_every_time(results: Path) -> None:
    ran = command("study", "fit", results, "--json", "--at", "300", "--draws", "500")
    values = json.loads(ran.out)
    low, high = values["fit"]["b_interval"]
    assert low < 0.92 < high
    assert values["fit"]["trusted"] is True
    assert [tier["tier"] for tier in values["fit_by_tier"]] == list(TIERS)
    assert [d["hours"] for d in values["decision"]] == [300]
    assert len(values["latency_sensitivity"]["cells"]) == 25
    assert values["quantization"][0]["mean"] == pytest.approx(0.5, abs=0.05)
    assert command("study", "fit", results, "--json", "--at", "300", "--draws", "500").out == ran.out


def test_without_a_law_the_rest_is_told_and_the_code_is_one(results: Path) -> None:
    ran = command("study", "fit", results, "--where", "hours=100", "--where", "hours=250", "--json")
    values = json.loads(ran.out)
    assert ran.code == 1
    assert values["fit"]["trusted"] is False
    assert values["fit"]["A"] is None
    assert len(values["gaps"]) == 2
    assert ran.error_lines == [
        "sprachbund: error: no power law: 2 scales of data (100 h, 250 h); it takes 3 or more"
    ]


def test_an_untrusted_fit_says_so_in_text(results: Path) -> None:
    ran = command("study", "fit", results, "--where", "language=de", "--draws", "500")
    assert ran.code == 0
    assert "not to be trusted: 1 language: an interval takes 3 or more" in ran.out
    assert "not known" in ran.out


def test_a_language_with_one_start_makes_no_law_certain(tmp_path: Path) -> None:
    """As if its rows were not there."""
    table = list(rows(3, noise=0.3))
    two = [row for row in table if row["language"] != "fr"]
    one_armed = [row for row in table if row["language"] != "fr" or row["start"] == "ml"]
    without, beside = (
        json.loads(command("study", "fit", write(tmp_path / name, part), "--json", "--arms", "ml,en").out)[
            "fit"
        ]
        for name, part in (("two.csv", two), ("one_armed.csv", one_armed))
    )
    assert beside == without
    assert beside["trusted"] is False
    assert beside["why"][0].startswith("2 languages: an interval takes 3 or more")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--arms", "ml"], 2, "--arms is 'ml'; give two different starts"),
        (["--arms", "ml,fr"], 1, "no start 'fr'"),
        (["--better", "up"], 2, "--better is 'up'; choose one of lower, higher"),
        (["--by", "eye"], 2, "--by is 'eye'; choose one of log, gaps"),
        (["--where", "bits"], 2, "--where is 'bits'"),
        (["--figure", "law.doc"], 2, "law.doc: figures are written as .png, .svg, .pdf"),
        (["--at", "0"], 2, "--at is 0.0; give a number above 0"),
        (["--metric", "WER"], 1, "no column 'WER'"),
        (["--better", "higher", "--arms", "ml,en"], 1, "positive at 0 of 5 scales"),
    ],
)
def test_bad_input_is_one_line(results: Path, arguments: list[str], code: int, words: str) -> None:
    ran = command("study", "fit", results, "--draws", "100", *arguments)
    assert ran.code == code
    assert len(ran.error_lines) == 1
    assert words in ran.error_lines[0]


def test_a_file_that_is_not_there() -> None:
    ran = command("study", "fit", "nowhere.csv")
    assert (ran.code, ran.error_lines) == (
        1,
        ["sprachbund: error: nowhere.csv does not exist; check the path, and save it as UTF-8"],
    )

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sprachbund.errors import SprachbundError
from sprachbund.research.encoder_transfer.results import read_results
from sprachbund.research.encoder_transfer.study_options import ReadOptions
from tests.research.encoder_transfer.made import HOURS, TIERS, planted, rows, write

Table = list[dict[str, Any]]


def test_a_whole_grid_is_read_as_it_is(tmp_path: Path) -> None:
    table = list(rows(3, noise=0.1, tiers=TIERS, bits=(32, 4)))
    grid = read_results(write(tmp_path / "r.csv", table))
    assert grid.arms == ("ml", "en")
    assert (grid.languages, grid.hours, grid.tiers) == (("de", "es", "fr"), HOURS, TIERS)
    assert (grid.bits, grid.seeds) == ((32.0, 4.0), ("1", "2"))
    for row in table:
        place = (
            grid.arms.index(row["start"]),
            grid.languages.index(row["language"]),
            grid.hours.index(row["hours"]),
            grid.tiers.index(row["tier"]),
            grid.bits.index(row["bits"]),
            grid.seeds.index(str(row["seed"])),
        )
        assert grid.values[place] == row["value"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.sampled_from([",", ";", "\t"]))
def test_order_of_rows_and_separator_do_not_matter(tmp_path: Path, random: Any, delimiter: str) -> None:
    table = list(rows(2, noise=0.1, bits=(32, 4)))
    whole = read_results(write(tmp_path / "a.csv", table))
    random.shuffle(table)
    shuffled = read_results(write(tmp_path / "b.csv", table, delimiter))
    order = [shuffled.seeds.index(seed) for seed in whole.seeds]
    np.testing.assert_array_equal(shuffled.values[..., order], whole.values)


def test_missing_columns_are_constant(tmp_path: Path) -> None:
    table = [
        {"start": start, "hours": hours, "value": 9 + gap * (start == "en")}
        for start in ("ml", "en")
        for hours, gap in zip(HOURS, planted(), strict=True)
    ]
    grid = read_results(write(tmp_path / "r.csv", table))
    assert grid.values.shape == (2, 1, 5, 1, 1, 1)
    np.testing.assert_allclose(grid.gaps[0, :, 0, 0], planted())


def test_any_metric_any_arms_any_part(tmp_path: Path) -> None:
    table = [row | {"BLEU": 40 - row["value"]} for row in rows(3, bits=(32, 4))]  # type: ignore[operator]
    table += [row | {"start": "random"} for row in table if row["start"] == "en"]
    path = write(tmp_path / "r.csv", table)
    grid = read_results(
        path,
        ReadOptions(
            metric="BLEU",
            better="higher",
            arms=("ml", "random"),
            ignore=("value",),
            where=("bits=32", "hours=100", "hours=250", "hours=500.0"),
        ),
    )
    assert grid.arms == ("ml", "random")
    assert grid.hours == (100, 250, 500)
    np.testing.assert_allclose(grid.gaps[0, :, 0, 0], planted()[:3])
    with pytest.raises(SprachbundError, match=r"3 starts \(ml, en, random\); choose two by --arms"):
        read_results(path, ReadOptions(ignore=("BLEU",)))


def test_the_better_arm_comes_first_unless_told_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", list(rows(2)))
    assert read_results(path).arms == ("ml", "en")
    assert read_results(path, ReadOptions(better="higher")).arms == ("en", "ml")
    turned = read_results(path, ReadOptions(arms=("en", "ml")))
    np.testing.assert_allclose(turned.gaps, -read_results(path).gaps)


def test_bits_may_have_names(tmp_path: Path) -> None:
    table = [row | {"bits": {32: "fp32", 4: "INT4"}[row["bits"]]} for row in rows(2, bits=(32, 4))]  # type: ignore[index]
    assert read_results(write(tmp_path / "r.csv", table)).bits == (32.0, 4.0)


def test_a_missing_cell_is_named(tmp_path: Path) -> None:
    table = list(rows(2, bits=(32, 4)))
    gone = table.pop(17)
    name = f"{gone['start']} {gone['language']} {gone['hours']:g} h 560 ms {gone['bits']} bits seed {gone['seed']}"
    path = write(tmp_path / "r.csv", table)
    with pytest.raises(SprachbundError, match=f"1 of 80 cells are missing: {name}; .*--uneven-seeds"):
        read_results(path)
    uneven = read_results(path, ReadOptions(uneven_seeds=True))
    assert np.isnan(uneven.values).sum() == 1
    assert not np.isnan(uneven.gaps).any()


def test_a_cell_without_a_result_is_a_hole_in_both_arms(tmp_path: Path) -> None:
    """As in published tables, where some languages lack the largest scale and a dash says so."""
    table = list(rows(3, noise=0.1))
    whole = read_results(write(tmp_path / "whole.csv", table))
    kept = [row for row in table if (row["start"], row["language"], row["hours"]) != ("en", "es", 500)]
    for row in kept:
        if (row["language"], row["hours"]) == ("de", 2500):
            row |= {"value": "–"}
    grid = read_results(write(tmp_path / "r.csv", kept))
    assert grid.holes == (
        "ml de 2500 h 560 ms 32 bits",
        "en de 2500 h 560 ms 32 bits",
        "en es 500 h 560 ms 32 bits",
    )
    wanted = whole.gaps.copy()
    wanted[0, HOURS.index(2500)] = wanted[1, HOURS.index(500)] = np.nan
    np.testing.assert_array_equal(grid.gaps, wanted)
    assert grid.seed_noise == pytest.approx(whole.seed_noise, rel=0.5)


def test_an_error_rate_below_nought_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", changed({"value": -0.5}))
    with pytest.raises(SprachbundError, match=r"r.csv:5: value is -0.5; an error rate is not below 0"):
        read_results(path)
    assert read_results(path, ReadOptions(better="higher")).arms == ("en", "ml")


def changed(change: dict[str, Any]) -> Table:
    table = list(rows(2))
    table[3] |= change
    return table


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (changed({"value": "n/a"}), r":5: value is 'n/a'; give a number"),
        (changed({"value": "nan"}), r":5: value is 'nan'"),
        (changed({"hours": "0"}), r":5: hours is '0'; give more than 0"),
        (changed({"hours": "a lot"}), r":5: hours is 'a lot'"),
        (changed({"bits": "few"}), r":5: bits is 'few'"),
        ([*rows(2), next(rows(2))], r":42: ml de 100 h 560 ms 32 bits seed 1 is there already, in line 2"),
        ([row | {"langage": "x"} for row in rows(2)], r"unknown column 'langage'; is it 'language'\?"),
        ([row | {"CER": 1} for row in rows(2)], r"unknown column 'CER'; rename it, or give --ignore CER"),
        (
            [{"start": "ml", "hours": 100}],
            r"no column 'value'; there are: start, hours; name the scores by --metric",
        ),
        ([{"value": 1}], "no column 'start'"),
        ([row for row in rows(2) if row["start"] == "ml"], r"one start \(ml\)"),
        (
            [row | {"tokenizer": "1k" if row["start"] == "ml" else "8k"} for row in rows(2)],
            r"ml and en differ in tokenizer \(1k, 8k\), not in the encoder alone",
        ),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, table: Table, words: str) -> None:
    with pytest.raises(SprachbundError, match=words):
        read_results(write(tmp_path / "r.csv", table))


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    for content, words in (
        (b"", "no column 'start'; there are: none"),
        (b"start,value\n", "no results; add rows"),
        (b"start,value\nml,1,2\n", r"r.csv:2: not 2 cells"),
        (b"start,value\nml\n", r"r.csv:2: not 2 cells"),
        (b"start,start,value\n", "column 'start' is there twice"),
        (b"start,value\n\xff,1\n", "not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(SprachbundError, match=words):
            read_results(path)
    path = write(path, list(rows(2)))
    with pytest.raises(SprachbundError, match="no row has tier=5 s"):
        read_results(path, ReadOptions(where=("tier=5 s",)))
    with pytest.raises(SprachbundError, match="no column 'teir'"):
        read_results(path, ReadOptions(where=("teir=x",)))
    with pytest.raises(SprachbundError, match="no start 'xx'; there are ml, en"):
        read_results(path, ReadOptions(arms=("ml", "xx")))


def test_parts_that_both_arms_share_are_no_difference(tmp_path: Path) -> None:
    table = [row | {"encoder": row["start"], "tokenizer": "8k", "joint": "a"} for row in rows(2)]
    assert read_results(write(tmp_path / "r.csv", table)).arms == ("ml", "en")

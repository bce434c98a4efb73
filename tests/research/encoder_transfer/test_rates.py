"""Learning rates of the transfer study: of trainings that are written down and never run, and of a tiny study."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from sprachbund.corpora.editions import edition, make_edition
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.io import load
from sprachbund.research import size_file
from sprachbund.research.encoder_transfer.grid import Cell
from sprachbund.research.encoder_transfer.options import EncoderTransferRecipe
from sprachbund.research.encoder_transfer.rates import (
    TRIED_FILE,
    CellTrial,
    StartAtScale,
    check_rates,
    losses_of,
    rate_of,
    rate_rows,
    trial_folder,
    trials_left,
)
from sprachbund.research.encoder_transfer.recipe import run_cells
from sprachbund.research.encoder_transfer.results import CellScores, read_cell, write_cell
from sprachbund.research.tuning import as_json
from sprachbund.training.options import read_recipe
from sprachbund.util.files import read_json, write_json

GRID = (
    'grid.starts=["ml", "en"]',
    'grid.languages=["de", "en"]',
    "grid.hours=[0.005, 0.01]",
    'grid.tiers=["560 ms"]',
    "grid.bits=[32]",
    "grid.seeds=[0, 1]",
)
LOW, HIGH = StartAtScale("ml", 0.005), StartAtScale("en", 0.01)


def recipe(*changes: str) -> EncoderTransferRecipe:
    return read_recipe(
        EncoderTransferRecipe, size_file("encoder_transfer", "tiny"), [*GRID, "workers=1", *changes]
    )


def finish(out: Path, trial: CellTrial, loss: float) -> None:
    folder = trial_folder(out, trial)
    folder.mkdir(parents=True)
    write_json(folder / TRIED_FILE, as_json({trial.rate: loss}))


def at(cell: Cell) -> StartAtScale:
    return StartAtScale(cell.start, cell.hours)


def test_each_start_and_scale_goes_on_beyond_the_end_where_its_best_rate_lies(tmp_path: Path) -> None:
    asked = recipe("learning_rates=[1e-3, 2e-3]", "more_learning_rates=1")
    first = trials_left(asked, tmp_path)
    assert len(first) == 2 * 2 * 2 * 2
    assert {trial.cell.seed for trial in first} == {0}
    for trial in first:
        # In one language the other rate is better, but less so: the mean over languages counts.
        best = (trial.rate == 2e-3) == (at(trial.cell) == HIGH)
        finish(tmp_path, trial, 10 * best if trial.cell.language == "de" else 30 - 30 * best)
    assert losses_of(asked, tmp_path, LOW) == {1e-3: 5.0, 2e-3: 15.0}
    left = trials_left(asked, tmp_path)
    assert {(at(trial.cell), trial.rate) for trial in left if at(trial.cell) in (LOW, HIGH)} == {
        (LOW, 5e-4),
        (HIGH, 4e-3),
    }
    assert len(left) == 4 * 2

    for trial in left:
        broken = at(trial.cell) == LOW and trial.cell.language == "en"
        finish(tmp_path, trial, math.inf if broken else 1.0)
    assert trials_left(asked, tmp_path) == ()
    rates = {at(cell): rate_of(asked, tmp_path, cell) for cell in asked.grid.cells()}
    assert (rates[LOW], rates[HIGH]) == (1e-3, 4e-3)
    rows = {StartAtScale(row["start"], row["hours"]): row for row in rate_rows(asked, tmp_path)}
    assert rows[LOW] == {
        "start": "ml",
        "hours": 0.005,
        "0.0005": None,
        "0.001": 5.0,
        "0.002": 15.0,
        "0.004": None,
        "best": 1e-3,
    }
    assert rate_rows(asked, tmp_path, -1.0)[0]["0.001"] == -5.0


def test_a_rate_counts_when_every_language_has_it(tmp_path: Path) -> None:
    asked = recipe("learning_rates=[1e-3, 2e-3]")
    trials = [trial for trial in trials_left(asked, tmp_path) if at(trial.cell) == LOW]
    for trial in trials[:-1]:
        finish(tmp_path, trial, 1.0)
    assert losses_of(asked, tmp_path, LOW) == {1e-3: 1.0}
    assert [trial.rate for trial in trials_left(asked, tmp_path) if at(trial.cell) == LOW] == [2e-3, 2e-3]


def test_without_rates_to_try_that_of_the_training_counts(tmp_path: Path) -> None:
    asked = recipe("tuning.learning_rate=7e-4")
    assert {rate_of(asked, tmp_path, cell) for cell in asked.grid.cells()} == {7e-4}
    check_rates(asked, tmp_path)


def test_a_start_may_have_a_rate_that_is_known(tmp_path: Path) -> None:
    asked = recipe("start_rates={en = 4e-3}", "tuning.learning_rate=7e-4")
    rates = {(cell.start, rate_of(asked, tmp_path, cell)) for cell in asked.grid.cells()}
    assert rates == {("ml", 7e-4), ("en", 4e-3)}
    with pytest.raises(SprachbundError, match=r"start_rates has 'english'; there are ml, en"):
        recipe("start_rates={english = 4e-3}")
    with pytest.raises(SprachbundError, match="learning_rates are tried, and start_rates need no trial"):
        recipe("start_rates={en = 4e-3}", "learning_rates=[1e-3, 2e-3]")
    with pytest.raises(SprachbundError, match=r"start_rates.en: Input should be greater than 0"):
        recipe("start_rates={en = 0}")


def test_a_cell_of_another_rate_is_refused(tmp_path: Path) -> None:
    asked = recipe("learning_rates=[1e-3, 2e-3]")
    for trial in trials_left(asked, tmp_path):
        finish(tmp_path, trial, trial.rate)
    cell = asked.grid.cells()[-1]
    scores = {"counts": np.ones((1, 1, 1, 2), dtype=np.int64), "ids": ["a"], "metric": "WER"}
    for rate in (1e-3, 2e-3):
        made = CellScores(**scores, training={"learning_rate": rate})
        cell.folder(tmp_path).mkdir(parents=True, exist_ok=True)
        write_cell(cell.folder(tmp_path), cell, asked.grid, made, 1.0)
        if rate == 1e-3:
            check_rates(asked, tmp_path)
        else:
            with pytest.raises(
                SprachbundError, match=r"learning rate of 0.002, and 0.001 is the best of de, en"
            ):
                check_rates(asked, tmp_path)


@pytest.mark.slow
def test_a_study_tries_rates_and_trains_with_the_best(tmp_path: Path) -> None:
    make_edition(tmp_path / "data", edition("tiny", heldout_sentences=4), workers=1)
    few = ('grid.languages=["de"]', "grid.hours=[0.01]", f'data="{tmp_path / "data"}"', "pretraining.steps=1")
    asked = recipe(*few, "learning_rates=[1e-3, 2e-3]", 'tuning.metric_for_best_model="loss"')
    out, said = tmp_path / "out", list[str]()
    run_cells(asked, out, report=said.append)
    rows = read_json(out / "tables" / "rates.json")["rows"]
    assert [(row["start"], row["hours"]) for row in rows] == [("ml", 0.01), ("en", 0.01)]
    for row in rows:
        assert row["best"] == min((1e-3, 2e-3), key=lambda rate: row[f"{rate:g}"])
        for seed in (0, 1):
            cell = Cell(start=row["start"], language="de", hours=0.01, seed=seed)
            finished = read_cell(cell.folder(out))
            assert finished is not None
            assert finished.training["learning_rate"] == row["best"]
            # The first seed was trained when rates were tried, and is not trained again.
            assert (cell.folder(out) / "run").exists() == (seed == 1)
        run = trial_folder(out, CellTrial(cell.model_copy(update={"seed": 0}), row["best"])) / "run"
        assert load(run / "model").name == "conformer"
        assert not (run / "resume.pt").exists()
    assert any(line.startswith("learning rate of ml at 0.01 h: ") for line in said)

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if "tables" not in path.parts}
    run_cells(asked, out, report=said.append)
    names = {"study.json", "data.json"}
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.name not in names)
    with pytest.raises(SprachbundError, match=r"was begun with learning_rates 0\.001, 0\.002, not 0\.001;"):
        run_cells(asked.model_copy(update={"learning_rates": (1e-3,)}), out, report=said.append)

    # Both rates are ends of those tried, so one more is tried for each start; the study of before goes on.
    shutil.rmtree(out / "cells")
    run_cells(asked.model_copy(update={"more_learning_rates": 1}), out, report=said.append)
    for row in read_json(out / "tables" / "rates.json")["rows"]:
        assert sum(row.get(rate) is not None for rate in ("0.0005", "0.001", "0.002", "0.004")) == 3

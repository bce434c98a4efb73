"""A study runs once through, in order, whatever kills it; what it finds is what was planted."""

import csv
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel
from scipy.stats import ttest_ind

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.metrics import metric
from sprachbund.research.encoder_transfer.analysis import CellGap, cell_gaps
from sprachbund.research.encoder_transfer.grid import StudyGrid
from sprachbund.research.encoder_transfer.report import (
    gap_table,
    hole_lines,
    learning_rate_rows,
    make_report,
    start_rows,
    write_report,
)
from sprachbund.research.encoder_transfer.results import (
    CELL_FILE,
    CellScores,
    finished_cells,
    read_counts,
    read_results,
    write_cell,
)
from sprachbund.research.encoder_transfer.study import Study
from sprachbund.research.tasks import Tasks, read_study, remember
from tests.research.encoder_transfer import planted


def quiet(line: str) -> None:
    """Say nothing."""


def study(out: Path, dies_in: str = "", **changes: object) -> Study:
    grid = planted.grid(**changes)
    return Study(grid=grid, make=planted.Planted(grid, dies_in), out=out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    study(out).run(report=quiet)
    return out


def calls(out: Path) -> dict[str, list[int]]:
    paths = out.glob("cells/*/*/*/calls")
    return {str(p.parent.relative_to(out)): [int(n) for n in p.read_text().split()] for p in paths}


def test_cells_are_made_once_in_their_order(whole: Path) -> None:
    times = calls(whole)
    folders = [str(cell.folder(whole).relative_to(whole)) for cell in planted.grid().cells()]
    assert [len(times[name]) for name in folders] == [1] * len(folders)
    assert sorted(folders, key=lambda name: times[name][0]) == folders


def test_a_second_run_makes_nothing_and_another_scale_only_itself(whole: Path, tmp_path: Path) -> None:
    few = {"languages": ("de",), "seeds": (0,)}
    study(tmp_path, hours=(1, 2), **few).run(report=quiet)
    before = calls(tmp_path)
    study(tmp_path, hours=(1, 2), **few).run(report=quiet)
    assert calls(tmp_path) == before
    study(tmp_path, hours=(1, 2, 4), **few).run(report=quiet)
    after = calls(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == 6


def test_a_new_tier_scores_cells_again(tmp_path: Path) -> None:
    few = {"languages": ("de",), "seeds": (0,), "hours": (1,)}
    study(tmp_path, tiers=("offline",), **few).run(report=quiet)
    results = study(tmp_path, tiers=("offline", "160 ms"), **few).run(report=quiet)
    assert {len(times) for times in calls(tmp_path).values()} == {2}
    assert len(results.read_text().splitlines()) == 1 + 2 * 2 * 2


def test_the_table_is_the_one_that_fit_reads(whole: Path) -> None:
    with (whole / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 5 * 2 * 3 * 2
    grid = read_results(whole / "results.csv")
    assert grid.arms == ("ml", "en")
    assert grid.values.shape == (2, 4, 5, 3, 2, 2)
    for row in rows:
        cell = next(
            c for c in planted.grid().cells() if c.start == row["start"] and c.hours == float(row["hours"])
        )
        assert float(row["value"]) == pytest.approx(planted.wer(cell, int(row["bits"])), abs=5e-4)


@pytest.mark.slow
def test_a_study_survives_a_killed_process_and_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    few = {"languages": ("de", "es"), "seeds": (0,), "hours": (1, 2)}
    study(tmp_path, "en de 2 h seed 0", **few).run(workers=2, report=quiet)
    finished = {path.parent for path in tmp_path.rglob(CELL_FILE)}
    assert len(finished) == 8
    (tmp_path / "cells/de/2h/en-seed-0" / CELL_FILE).unlink()
    finished.remove(tmp_path / "cells/de/2h/en-seed-0")
    before = {path: (path / CELL_FILE).stat().st_mtime_ns for path in finished}
    said: list[str] = []
    study(tmp_path, **few).run(report=said.append)
    assert said[0] == "7 of 8 cells are finished"
    assert {path: (path / CELL_FILE).stat().st_mtime_ns for path in finished} == before
    assert len(finished_cells(planted.grid(**few), tmp_path)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_cell_that_fails_does_not_end_the_others(tmp_path: Path, workers: int) -> None:
    grid = planted.grid(starts=("ml", "en", "random"), languages=("de",), seeds=(0,), hours=(1, 2, 4))
    failing = Study(grid=grid, make=planted.Planted(grid, fails_from="random"), out=tmp_path)
    with pytest.raises(SprachbundError, match="3 of 9 cells failed, all others are finished") as raised:
        failing.run(workers=workers, report=quiet)
    assert "random de 1 h seed 0: " in str(raised.value)
    assert "ValueError: no such layer (planted.py:" in str(raised.value)
    assert len(finished_cells(grid, tmp_path)) == 6
    assert make_report(grid, tmp_path).analysis.fitted.law is not None
    Study(grid=grid, make=planted.Planted(grid), out=tmp_path).run(report=quiet)
    assert len(finished_cells(grid, tmp_path)) == 9
    assert not list(tmp_path.rglob("failed.txt"))


@pytest.mark.slow
def test_nor_does_a_cell_that_kills_every_process(tmp_path: Path) -> None:
    grid = planted.grid(languages=("de",), seeds=(0,), hours=(1, 2))
    deadly = planted.Planted(grid, dies_in="en de 2 h seed 0", deaths=9)
    reason = r"1 of 4 cells failed, .*en de 2 h seed 0: was begun 3 times, .*SIGKILL"
    with pytest.raises(SprachbundError, match=reason):
        Study(grid=grid, make=deadly, out=tmp_path).run(workers=2, report=quiet)
    assert len(finished_cells(grid, tmp_path)) == 3


def test_ray_makes_the_same(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    results = study(tmp_path, seeds=(0,)).run(workers=2, ray_address="local", report=quiet)
    lines = results.read_text().splitlines()
    assert len(lines) == 1 + 2 * 4 * 5 * 3 * 2
    assert set(lines) < set((whole / "results.csv").read_text().splitlines())


def test_the_report_finds_what_was_planted(whole: Path) -> None:
    report = make_report(planted.grid(), whole)
    law = report.analysis.fitted.law
    assert law is not None
    assert (law.scale.value, law.exponent.value) == pytest.approx((planted.SCALE, planted.EXPONENT), rel=1e-3)
    assert report.missing == report.mixed == ""
    assert learning_rate_rows(report) == []
    (cost,) = report.analysis.bit_costs
    assert cost.mean.value == pytest.approx(planted.BITS_COST, abs=1e-3)
    assert report.analysis.latency is not None
    assert report.analysis.latency.mean.value == 0
    assert report.analysis.grid.metric == "WER"
    assert {one.signature.rpartition("|")[2] for one in report.manifests} == {"text:raw"}
    assert len(report.cells) == 4 * 5
    for cell in report.cells:
        gap = planted.SCALE * (cell.hours / 100) ** -planted.EXPONENT
        assert cell.gap == pytest.approx(gap, abs=1e-3)
        assert cell.seeds == (0, 1)
    for one in report.sooner:
        assert (one.runs, one.epochs, one.reached) == (8, (4.0, 10.0), 8)
        assert (one.at_epoch, one.sooner) == (3.0, 7.0)


def test_the_report_is_written_with_tables_and_figure(whole: Path) -> None:
    path = write_report(make_report(planted.grid(), whole), whole, [4.0])
    values = json.loads(path.read_text())
    assert values["fit"]["b"] == pytest.approx(planted.EXPONENT, rel=1e-3)
    assert values["decision"][0]["hours"] == 4.0
    assert values["missing"] == ""
    assert (whole / "study.png").read_bytes().startswith(b"\x89PNG")
    for name in ("gaps", "starts", "cells", "bits", "convergence"):
        assert json.loads((whole / "tables" / f"{name}.json").read_text())["rows"]


def test_a_study_on_its_way_is_reported_as_far_as_it_is_whole(tmp_path: Path) -> None:
    every = planted.grid(seeds=(0,))
    for cell in every.cells()[: 3 * 8 + 3]:
        folder = cell.folder(tmp_path)
        folder.mkdir(parents=True)
        write_cell(folder, cell, every, planted.Planted(every)(cell, folder), 1.0)
    report = make_report(every, tmp_path)
    assert report.analysis.grid.hours == (0.5, 2, 8)
    assert report.left_out == (1, 4)
    assert report.missing == "27 of 40 cells are finished; not whole yet and left out: 1 h, 4 h"
    assert report.analysis.fitted.law is not None


@pytest.mark.slow
def test_a_study_with_unequal_data_is_fitted_and_says_so(tmp_path: Path) -> None:
    wanted = planted.grid(seeds=(0,), most_hours={"it": 2})
    study(tmp_path, seeds=(0,), most_hours={"it": 2}).run(report=quiet)
    report = make_report(wanted, tmp_path)
    assert report.missing == ""
    assert report.analysis.grid.hours == (0.5, 1, 2, 4, 8)
    assert {hole.split()[1:3][0] for hole in report.analysis.grid.holes} == {"it"}
    assert report.analysis.fitted.law.exponent.value == pytest.approx(planted.EXPONENT, abs=0.01)
    assert [row[4] for row in gap_table(report.analysis)[1]] == ["4", "4", "4", "3", "3"]
    assert "means are over the languages that have both starts" in hole_lines(report.analysis)[0]
    for row in start_rows(report):  # the starts of a scale that one language lacks are told, too
        assert row["en"] == pytest.approx(
            planted.BASE + planted.SCALE * (row["hours"] / 100) ** -planted.EXPONENT, abs=0.01
        )


def test_further_starts_are_told_beside_the_gap(tmp_path: Path) -> None:
    wanted = {"starts": ("ml", "en", "random"), "seeds": (0,), "hours": (1, 2, 4)}
    study(tmp_path, **wanted).run(report=quiet)
    rows = start_rows(make_report(planted.grid(**wanted), tmp_path))
    assert [row["random"] for row in rows] == [planted.BASE + 40.0] * 3
    assert [row["ml"] for row in rows] == [planted.BASE] * 3


def test_languages_weigh_the_same_whatever_seeds_are_finished(tmp_path: Path) -> None:
    """One language has both seeds, of scores 10 apart; the other one seed."""
    values = {("de", 0): 20.0, ("de", 1): 30.0, ("fr", 0): 40.0}
    every = planted.grid(languages=("de", "fr"), hours=(1,))
    for cell in every.cells():
        if (wer := values.get((cell.language, cell.seed))) is not None:
            counts = np.full((3, 2, 1, 2), (wer, 100.0))
            folder = cell.folder(tmp_path)
            folder.mkdir(parents=True)
            write_cell(folder, cell, every, CellScores(counts=counts, ids=["one"], metric="WER"), 1.0)
    (row,) = start_rows(make_report(every, tmp_path))
    assert row == {"hours": 1, "ml": (25 + 40) / 2, "en": (25 + 40) / 2}


def test_cells_of_another_metric_and_of_other_rates_are_told(tmp_path: Path) -> None:
    wanted = {"languages": ("de",), "seeds": (0,), "hours": (1, 2)}
    study(tmp_path, **wanted).run(report=quiet)
    every = planted.grid(**wanted)
    for cell, rate in zip(every.cells(), (1e-3, 2e-3, 1e-3, 1e-3), strict=True):
        path = cell.folder(tmp_path) / "cell.json"
        values = json.loads(path.read_text())
        values["training"]["learning_rate"] = rate
        if cell.start == "en" and cell.hours == 2:
            values["signature"] = "another"
        path.write_text(json.dumps(values))
    report = make_report(every, tmp_path)
    assert "not of one kind: another in en de 2 h seed 0, " in report.mixed
    assert learning_rate_rows(report) == [
        {"hours": 1, "ml": "0.001", "en": "0.002"},
        {"hours": 2, "ml": "0.001", "en": "0.001"},
    ]
    values = json.loads(write_report(report, tmp_path).read_text())
    assert values["mixed"] == report.mixed
    assert (tmp_path / "tables" / "learning_rates.json").exists()


def test_no_scale_is_whole(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="no scale has both ml and en in all 4 languages; go on with"):
        make_report(planted.grid(), tmp_path)


def test_broken_files_of_a_cell_are_named(whole: Path, tmp_path: Path) -> None:
    few = {"languages": ("de",), "seeds": (0,), "hours": (1,)}
    study(tmp_path, **few).run(report=quiet)
    folder = tmp_path / "cells/de/1h/ml-seed-0"
    (folder / "counts.npz").write_bytes(b"nothing")
    grid = planted.grid(**few)
    with pytest.raises(SprachbundError, match=r"counts\.npz is not a whole \.npz file .*delete .*cell\.json"):
        cell_gaps(grid, finished_cells(grid, tmp_path), tmp_path, bits=32, tiers=grid.tiers)
    (folder / CELL_FILE).write_text("{}")
    with pytest.raises(SprachbundError, match=r"cell\.json: cell: Field required .*; delete it"):
        study(tmp_path, **few).run(report=quiet)


def test_starts_scored_on_different_utterances_are_not_compared(tmp_path: Path) -> None:
    few = {"languages": ("de",), "seeds": (0,), "hours": (1,)}
    study(tmp_path, **few).run(report=quiet)
    folder = tmp_path / "cells/de/1h/ml-seed-0"
    counts, ids = read_counts(folder)
    np.savez(folder / "counts.npz", counts=counts, ids=np.array(ids[::-1]))
    grid = planted.grid(**few)
    with pytest.raises(SprachbundError, match="scored on different utterances"):
        cell_gaps(grid, finished_cells(grid, tmp_path), tmp_path, bits=32, tiers=grid.tiers)


@pytest.mark.parametrize(
    "changes", [{"tiers": ("offline",)}, {"tiers": ("offline", "160 ms")}, {"bits": (4, 32)}, {"bits": (4,)}]
)
def test_gaps_are_of_the_tiers_and_bits_that_the_grid_has_now(
    changes: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    few = {"languages": ("de",), "seeds": (0,), "hours": (1,)}
    before, now = planted.grid(**few), planted.grid(**{**few, **changes})
    for cell in before.cells():
        counts = np.full((3, 2, 4, 2), 100.0)
        counts[..., 0] = 10 * np.arange(3)[:, None, None] + np.arange(2)[:, None] + (cell.start == "en")
        folder = cell.folder(tmp_path)
        folder.mkdir(parents=True)
        write_cell(folder, cell, before, CellScores(counts=counts, ids=list("abcd"), metric="WER"), 1.0)
    tier, bits = now.tiers[0], now.bits[0]
    own = 10 * before.tiers.index(tier) + before.bits.index(bits)
    (gap,) = cell_gaps(now, finished_cells(now, tmp_path), tmp_path, bits=bits, tiers=(tier,))
    assert gap.values == pytest.approx((own, own + 1))


def test_a_table_of_an_earlier_grid_is_taken_away(tmp_path: Path) -> None:
    few = {"languages": ("de",), "seeds": (0,), "hours": (1,)}
    study(tmp_path, **few).run(report=quiet)
    table = tmp_path / "tables" / "bits.json"
    write_report(make_report(planted.grid(**few), tmp_path), tmp_path)
    assert table.exists()
    write_report(make_report(planted.grid(**few, bits=(32,)), tmp_path), tmp_path)
    assert not table.exists()


def cells_of(
    out: Path, grid: StudyGrid, name: str, counts: Mapping[tuple[str, int], np.ndarray]
) -> list[CellGap]:
    """Gaps of a study with one language and one scale whose counts (N, K) are given by start and seed."""
    for cell in grid.cells():
        folder = cell.folder(out)
        folder.mkdir(parents=True)
        own = np.broadcast_to(counts[cell.start, cell.seed], (3, 2, *counts[cell.start, cell.seed].shape))
        ids = [str(number) for number in range(own.shape[2])]
        write_cell(folder, cell, grid, CellScores(counts=own, ids=ids, metric=name), 1.0)
    return cell_gaps(grid, finished_cells(grid, out), out, bits=32, tiers=grid.tiers[:2])


def test_the_interval_of_a_cell_over_seeds_is_welchs(tmp_path: Path) -> None:
    """Utterances that are all alike have no variance, so that of the seeds is all that there is."""
    grid = planted.grid(languages=("de",), hours=(1,), seeds=(0, 1, 2))
    wers = {"ml": (20.0, 22.0, 27.0), "en": (41.0, 40.0, 30.0)}
    counts = {
        (start, seed): np.tile((value, 100.0), (30, 1))
        for start, values in wers.items()
        for seed, value in enumerate(values)
    }
    (cell,) = cells_of(tmp_path, grid, "WER", counts)
    theirs = ttest_ind(wers["en"], wers["ml"], equal_var=False).confidence_interval(0.95)
    assert cell.values == (pytest.approx(23), pytest.approx(37))
    assert cell.gap == pytest.approx(14)
    assert cell.interval == pytest.approx((theirs.low, theirs.high))
    assert cell.seeds == (0, 1, 2)


@pytest.mark.parametrize("name", ["WER", "chrF"])
def test_a_cells_gap_is_the_difference_of_scores(name: str, tmp_path: Path) -> None:
    how = metric(name)
    texts = [f"one two three {n} five" for n in range(30)]
    worse = [text.replace("two", "too") if n % 2 else text for n, text in enumerate(texts)]
    counts = {(start, 0): how.statistics(given, texts) for start, given in (("ml", texts), ("en", worse))}
    (cell,) = cells_of(tmp_path, planted.grid(languages=("de",), hours=(1,), seeds=(0,)), name, counts)
    better, other = (how.score(counts[start, 0].sum(0)) for start in ("ml", "en"))
    assert cell.values == (pytest.approx(better), pytest.approx(other))
    assert cell.gap == pytest.approx(abs(other - better))
    assert 0 < cell.interval[0] < cell.gap < cell.interval[1]


class Recipe(BaseModel):
    """What a study might be."""

    steps: int = 1
    model: dict[str, int] = {"width": 1}
    workers: int = 1


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    remember(tmp_path, Recipe(), may_change=("workers",), data=())
    remember(tmp_path, Recipe(workers=2), may_change=("workers",), data=())
    assert read_study(tmp_path)["workers"] == 2
    with pytest.raises(SprachbundError, match=r"was begun with model\.width 1, not 2"):
        remember(tmp_path, Recipe(model={"width": 2}), may_change=("workers",), data=())
    earlier = tmp_path / "study.json"
    earlier.write_text('{"model": {"width": 1}, "workers": 1}')  # of before there were steps
    remember(tmp_path, Recipe(), may_change=(), data=())
    earlier.write_text('{"model": {"width": 1}, "workers": 1}')
    with pytest.raises(SprachbundError, match=r"steps 1, not 2"):
        remember(tmp_path, Recipe(steps=2), may_change=(), data=())
    with pytest.raises(SprachbundError, match="holds no study"):
        read_study(tmp_path / "elsewhere")
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(SprachbundError, match="is not JSON"):
        read_study(tmp_path)


def _middle(path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_orphan, args=(path,))
    child.start()
    time.sleep(60)


def _orphan(path: Path) -> None:
    Tasks(paths=(), make=print).prepare()
    path.write_text(str(os.getpid()))
    time.sleep(60)


def test_no_process_is_left_when_the_one_that_started_it_is_killed(tmp_path: Path) -> None:
    """It would go on with a cell that the next run takes up too."""
    middle = multiprocessing.get_context("fork").Process(target=_middle, args=(tmp_path / "pid",))
    middle.start()
    assert until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    orphan = int((tmp_path / "pid").read_text())
    assert is_running(orphan)
    middle.kill()
    middle.join()
    assert until(lambda: not is_running(orphan))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(holds: Callable[[], bool]) -> bool:
    """Whether it holds within half a minute."""
    for _ in range(600):
        if holds():
            return True
        time.sleep(0.05)
    return False

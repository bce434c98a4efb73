"""The load benchmark's own arithmetic, and one of its measures for seconds against a real process."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("serving_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_interval_of_a_slope_covers_the_planted_one(benchmark):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        points = [(m, 5 + 0.02 * m + rng.normal() * 0.1) for m in np.linspace(0, 60, 50)]
        result = benchmark.slope(points)
        covered += result["low"] <= 60 * 0.02 <= result["high"]
    assert 180 <= covered <= 199


@pytest.mark.parametrize(
    ("change", "held"),
    [
        ({}, True),
        ({"delays": [(i, 0.2) for i in range(30)] + [(31, 5.0)] * 4}, False),
        ({"delays": [(i, 0.03 * i) for i in range(30)]}, False),
        ({"lost_s": 1.0}, False),
        ({"overloads": 1}, False),
        ({"error": "refused"}, False),
        ({"delays": []}, False),
    ],
)
def test_what_counts_as_held(benchmark, change, held):
    heard = benchmark.Heard(**{"delays": [(i, 0.2) for i in range(30)], **change})
    assert benchmark.is_held(heard, 1.0) == held


@pytest.mark.slow
def test_uploads_in_seconds(benchmark, tmp_path):
    out = tmp_path / "found.json"
    benchmark.main(["uploads", "--quick", "--engine", "torch", "--out", str(out)])
    result = json.loads(out.read_text())
    assert (result["lost"], result["refusals that were not honest"]) == (0, [])
    assert result["different texts of a recording"] == 1
    assert result["manifest"]["commit"]


@pytest.mark.slow
def test_the_load_in_seconds(benchmark, tmp_path):
    out = tmp_path / "found.json"
    benchmark.main(["load", "--quick", "--engine", "torch", "--out", str(out)])
    result = json.loads(out.read_text())
    assert (result["lost"], result["lost_reasons"], result["ready at the end"]) == (0, {}, True)
    assert result["sessions"] >= result["live sessions at once"] >= 1
    assert result["requests"]["answered"] == result["requests"]["requests"] > 0
    assert {name.split(":")[0] for name in result["slow and vanishing clients"]} == {
        *("slow body", "slow sender", "slow reader"),
        *("vanishing session", "returning session", "vanishing upload"),
    }
    assert {"measure": "live sessions", "value": str(result["sessions"])} in result["rows"]


def test_a_session_that_ends_early_counts_as_lost(benchmark):
    assert benchmark._faults(benchmark.Heard(done=True)) == []
    assert benchmark._faults(benchmark.Heard()) == ["session: ended without `done`"]
    assert benchmark._faults(benchmark.Heard(error="refused", done=True)) == ["session: refused"]

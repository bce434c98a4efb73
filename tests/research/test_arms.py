"""Arms beside the first one: cells, Holm's correction, and an arm that was trained once."""

import re

import pytest

from sprachbund.evaluation.compare import System, compare
from sprachbund.evaluation.metrics import corpus_score, metric
from sprachbund.evaluation.significance import holm
from sprachbund.research.arms import compare_arms
from tests.evaluation.made import made_lines


def arm(name: str, wrong: float, *seeds: int) -> System:
    return System(name=name, runs=[made_lines(60, wrong, seed=seed) for seed in seeds])


def test_cells_are_those_of_the_comparison_with_a_correction_for_the_arms() -> None:
    arms = [arm("first", 0.3, 1, 2), arm("better", 0.1, 3, 4), arm("alike", 0.3, 5, 6)]
    result = compare_arms(arms, ["chrF", "TER"])
    means = compare(arms, ["chrF", "TER"]).means
    for name in ("better", "alike"):
        cells = result.cells["chrF", name]
        assert (cells.score, cells.p) == (means["chrF", name].system, means["chrF", name].p_value)
        numbers = [float(number) for number in re.findall(r"[-+]\d+\.\d+", cells.difference)]
        assert numbers == pytest.approx(
            [means["chrF", name].difference, *means["chrF", name].interval], abs=0.006
        )
    p_values = [means["TER", name].p_value for name in ("better", "alike")]
    assert [result.cells["TER", name].holm for name in ("better", "alike")] == holm(p_values)
    assert result.cells["chrF", "first"].difference == result.cells["chrF", "first"].p == ""
    assert result.seeds == {"first": 2, "better": 2, "alike": 2}


def test_one_training_stands_for_itself_beside_several_seeds() -> None:
    result = compare_arms([arm("teacher", 0.3, 1), arm("student", 0.1, 2, 3, 4)], ["chrF"])
    assert result.seeds == {"teacher": 1, "student": 3}
    assert result.cells["chrF", "student"].difference.startswith("+")


def test_an_arm_alone_has_a_score() -> None:
    alone = arm("alone", 0.2, 1)
    ((key, cells),) = compare_arms([alone], ["chrF"]).cells.items()
    texts = [line.hypothesis for line in alone.runs[0]], [line.reference for line in alone.runs[0]]
    assert key == ("chrF", "alone")
    assert cells.score == pytest.approx(corpus_score(metric("chrF", "de"), *texts))
    assert cells.difference == ""

"""The interval of a gain: against a bootstrap worked out draw by draw, planted gains, and files without pieces."""

import json
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from scipy.stats import t

from sprachbund.evaluation.options import TEST_SEED
from sprachbund.evaluation.significance import bootstrap_weights
from sprachbund.research import size_file
from sprachbund.research.dual_scale.options import DualScaleRecipe
from sprachbund.research.dual_scale.report import _ratio, gain_interval
from sprachbund.research.dual_scale.speed import SPEED_FILE, SystemSpeed, read_speeds, systems_of
from sprachbund.training.options import read_recipe

PAIRS = ("de>en", "de>fr", "en>de")
Compared = list[tuple[SystemSpeed, SystemSpeed]]


def speed(name: str, seed: int, pair: str, seconds: np.ndarray, tokens: np.ndarray) -> SystemSpeed:
    """Of pieces (N,) and their seconds in each repeat (N, repeats)."""
    return SystemSpeed(
        name=name,
        seed=seed,
        batch=1,
        pair=pair,
        ms_per_token=tuple((1000 * seconds.sum(0) / tokens.sum()).tolist()),
        piece_tokens=tuple(tokens.tolist()),
        piece_s=tuple(map(tuple, seconds.tolist())),
        draft_tokens=(0, 0),
        predicted_gain=None,
        changed=0,
        rows=len(tokens),
    )


def measured(
    gains: tuple[float, ...], *, spread: float, pieces: int = 6, repeats: int = 3, draw: int = 0
) -> Compared:
    """A run for each gain; utterances differ in length and speed, and in what a draft gains on them."""
    rng = np.random.default_rng(draw)
    compared = []
    for seed, gain in enumerate(gains):
        for pair in PAIRS:
            tokens = rng.integers(5, 30, pieces)
            base = tokens[:, None] * rng.uniform(0.8, 1.2, (pieces, 1)) * np.ones((1, repeats))
            own = base / (gain * np.exp(spread * rng.standard_normal((pieces, 1))))
            noise = np.exp(0.01 * rng.standard_normal((2, pieces, repeats)))
            compared.append(
                (
                    speed("base", seed, pair, base * noise[0], tokens),
                    speed("own", seed, pair, own * noise[1], tokens),
                )
            )
    return compared


def ratio_of(compared: Compared, weights: dict[str, np.ndarray]) -> float:
    """Median over repeats of the gain, with every piece of a source as often as the weights say."""
    times = np.zeros((2, 3))
    for both in compared:
        for side, one in enumerate(both):
            own = weights[one.pair[:2]]
            tokens = sum(w * n for w, n in zip(own, one.piece_tokens, strict=True))
            for repeat in range(3):
                seconds = sum(w * s[repeat] for w, s in zip(own, one.piece_s, strict=True))
                times[side, repeat] += seconds / tokens
    return median(times[0] / times[1])


@pytest.mark.parametrize("gains", [(1.4,), (1.3, 1.5)])
def test_the_interval_is_that_of_draws_one_by_one_and_of_seeds(gains: tuple[float, ...]) -> None:
    compared, draws = measured(gains, spread=0.1), 40
    weights = {
        source: np.concatenate([w for _, w in bootstrap_weights(6, draws, TEST_SEED + number)])
        for number, source in enumerate(("de", "en"))
    }
    once = dict.fromkeys(weights, np.ones(6))
    drawn = [ratio_of(compared, {tag: rows[n] for tag, rows in weights.items()}) for n in range(draws)]
    of_seeds = [
        ratio_of([both for both in compared if both[1].seed == seed], once) for seed in range(len(gains))
    ]
    if len(gains) == 1:
        expected = (sorted(drawn)[1], sorted(drawn)[-2])
    else:
        of_mean = np.var(of_seeds, ddof=1) / 2
        variance = np.var(drawn) + of_mean
        half = t.ppf(0.975, variance**2 / of_mean**2) * variance**0.5
        middle = ratio_of(compared, once)
        expected = (middle - half, middle + half)
    assert gain_interval(compared, draws=draws) == pytest.approx(expected)


def test_a_planted_gain_lies_in_most_intervals_and_none_is_found_without() -> None:
    for gain in (1.0, 1.5):
        intervals = [
            gain_interval(measured((gain,) * 3, spread=0.1, pieces=12, draw=n), draws=200) for n in range(40)
        ]
        inside = [bool(one) and one[0] <= gain <= one[1] for one in intervals]
        assert sum(inside) >= 34  # 95 %, but for the few utterances and seeds that there are
        widths = [one[1] - one[0] for one in intervals if one is not None]
        assert median(widths) < 0.15


def test_seeds_that_differ_by_chance_are_in_most_intervals() -> None:
    """Three seeds drawn with replacement would miss about one in five."""
    missed = 0
    for draw in range(100):
        gains = tuple(1.4 + 0.1 * np.random.default_rng(draw).standard_normal(3))
        low, high = gain_interval(measured(gains, spread=0.02, draw=draw), draws=50) or (0.0, 0.0)
        missed += not low <= 1.4 <= high
    assert missed <= 10


def test_runs_that_differ_widen_the_interval() -> None:
    alike, unlike = (gain_interval(measured(gains, spread=0.02)) for gains in ((1.4,) * 3, (1.2, 1.4, 1.6)))
    assert alike is not None
    assert unlike is not None
    assert unlike[1] - unlike[0] > 3 * (alike[1] - alike[0])


def test_one_piece_of_work_or_a_file_of_an_earlier_version_has_no_interval(tmp_path: Path) -> None:
    assert gain_interval(measured((1.4,), spread=0.1, pieces=1)) is None
    values = [one.model_dump() for both in measured((1.4,), spread=0.1) for one in both]
    for one in values:
        del one["piece_tokens"], one["piece_s"]
    (tmp_path / SPEED_FILE).write_text(json.dumps({"threads": 1, "speeds": values}))
    base, own = ([one for one in read_speeds(tmp_path) if one.name == name] for name in ("base", "own"))
    assert gain_interval(list(zip(base, own, strict=True))) is None


def test_the_base_of_a_draft_is_the_same_model_without_one(tmp_path: Path) -> None:
    systems = systems_of(read_recipe(DualScaleRecipe, size_file("dual_scale", "tiny"), ()), tmp_path)
    models = {(system.name, system.seed): system.model for system in systems}
    drafting = [system for system in systems if system.draft != "none"]
    assert {system.name for system in drafting} >= {
        "parasite",
        "medusa",
        "medusa, unchecked",
        "no text branch",
    }
    for system in drafting:
        assert system.model == models[system.base, system.seed]


def test_what_was_trained_once_is_compared_with_every_run_of_the_other() -> None:
    """A teacher of 2 s beside three runs of 1, 1 and 4 s in all."""
    tokens, pair = np.array([10, 10]), PAIRS[0]
    seconds = {0: 1.0, 1: 1.0, 2: 4.0}
    base = [speed("base", seed, pair, np.full((2, 1), s / 2), tokens) for seed, s in seconds.items()]
    teacher = [speed("teacher", 0, pair, np.ones((2, 1)), tokens)]
    assert _ratio([*base, *teacher], "base", teacher) == pytest.approx(1.0)  # 1 + 1 + 4 to three times 2
    assert _ratio([*base, *teacher], "teacher", base) == pytest.approx(1.0)
    assert _ratio([*base, *teacher], "teacher", base[:1]) == pytest.approx(2.0)

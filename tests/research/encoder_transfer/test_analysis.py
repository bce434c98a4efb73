import json
from pathlib import Path

import numpy as np
import pytest

from sprachbund.research.encoder_transfer.analysis import analyse, bit_costs, latency_sensitivity
from sprachbund.research.encoder_transfer.report import as_values, decide, tier_lines
from sprachbund.research.encoder_transfer.study_options import AnalysisOptions
from tests.research.encoder_transfer.made import HOURS, grid_of, planted


def arms(gaps: np.ndarray, tiers: int = 1, bits: int = 1, seeds: int = 2) -> np.ndarray:
    """Values (2, L, H, C, Q, S) whose gaps are (L, H) everywhere."""
    values = np.full((2, *gaps.shape, tiers, bits, seeds), 12.0)
    values[1] += gaps[..., None, None, None]
    return values


GAPS = np.tile(planted(), (6, 1))


def test_gaps_equal_across_tiers_have_no_sensitivity() -> None:
    values = arms(GAPS, tiers=4)
    values += np.array([3.0, 2.0, 1.0, 0.0])[:, None, None]  # a tier may well be worse than another
    sensitivity = latency_sensitivity(grid_of(values), draws=200)
    assert np.allclose(sensitivity.cells, 0)
    assert (sensitivity.mean.value, *sensitivity.mean.interval) == pytest.approx((0.0, 0.0, 0.0))
    assert sensitivity.by_noise == pytest.approx(0.0)


def test_sensitivity_is_the_range_over_streaming_tiers() -> None:
    values = arms(GAPS, tiers=4)
    values[1, 2, 1] += np.array([0.5, -0.25, 0.0, 9.0])[:, None, None]  # the last is offline
    sensitivity = latency_sensitivity(grid_of(values), draws=200)
    expected = np.zeros((6, 5))
    expected[2, 1] = 0.75
    np.testing.assert_allclose(sensitivity.cells, expected, atol=1e-12)
    assert sensitivity.tiers == ("160 ms", "560 ms", "1120 ms")
    assert latency_sensitivity(grid_of(arms(GAPS, tiers=1))) is None


def test_noise_alone_makes_the_sensitivity_that_it_is_said_to() -> None:
    rng = np.random.default_rng(0)
    values = arms(np.tile(planted(), (12, 1)), tiers=4, seeds=3)
    values += rng.normal(0, 0.3, (2, 12, 5, 1, 1, 3))  # of a seed at all tiers: no range sees it
    values += rng.normal(0, 0.1, values.shape)
    sensitivity = latency_sensitivity(grid_of(values), draws=200)
    assert sensitivity.by_noise == pytest.approx(sensitivity.mean.value, rel=0.15)
    assert sensitivity.by_noise == pytest.approx(
        0.1 * np.sqrt(2 / 3) * 1.693, rel=0.15
    )  # of three normal numbers


def test_bit_costs_are_recovered() -> None:
    values = arms(GAPS, tiers=2, bits=2)
    cost = np.random.default_rng(1).normal(0.49, 0.05, values.shape[:4])
    values[..., 1, :] += cost[..., None]
    values[1, ..., 1, :] += 0.2
    (bit_cost,) = bit_costs(grid_of(values), draws=500)
    assert bit_cost.bits == 4
    both = np.stack([cost[0], cost[1] + 0.2])
    assert bit_cost.mean.value == pytest.approx(both.mean())
    assert bit_cost.median == pytest.approx(np.median(both))
    assert bit_cost.difference.value == pytest.approx((both[1] - both[0]).mean())
    low, high = bit_cost.difference.interval
    assert low < 0.2 < high
    assert low > 0


def test_higher_is_better_turns_every_sign() -> None:
    values = arms(GAPS, tiers=2, bits=2)
    values[..., 1, :] += 0.5
    wer, bleu = grid_of(values), grid_of(50 - values, better="higher")
    np.testing.assert_allclose(wer.gaps, bleu.gaps)
    assert bit_costs(bleu, draws=100)[0].mean.value == pytest.approx(0.5)


def test_seed_noise_is_the_pooled_deviation() -> None:
    rng = np.random.default_rng(2)
    values = arms(GAPS, tiers=3, seeds=4) + rng.normal(0, 0.3, (2, 6, 5, 3, 1, 4))
    assert grid_of(values).seed_noise == pytest.approx(np.sqrt(values.var(axis=-1, ddof=1).mean()))
    values[0, 0, 0, 0, 0, 1:] = np.nan
    assert grid_of(values).seed_noise == pytest.approx(0.3, rel=0.1)
    assert grid_of(values[..., :1]).seed_noise is None


def test_the_decision_holds_the_numbers() -> None:
    values = arms(GAPS, bits=2) + np.random.default_rng(3).normal(0, 0.05, (2, 6, 5, 1, 2, 2))
    values[..., 1, :] += 0.5
    analysis = analyse(grid_of(values), AnalysisOptions(draws=500))
    early, late = decide(analysis, 100), decide(analysis, 5000)
    assert "At 100 h, starting from ml rather than en is expected to gain 3.96 points" in early.sentence
    assert early.sentence.count("take ml") == 1
    assert "4 bits cost 0.49 (95%: 0.48 to 0.51), less" in early.sentence
    assert "less than the start gains" in early.sentence
    assert "beyond the 100 to 2500 h measured" in late.sentence
    assert "more than the start gains" in late.sentence
    assert not late.measured
    one_seed = decide(analyse(grid_of(values[..., :1]), AnalysisOptions(draws=200)), 100)
    assert "one seed" in one_seed.sentence


def test_an_untrusted_law_is_called_so_everywhere() -> None:
    analysis = analyse(grid_of(arms(GAPS[:2])), AnalysisOptions(draws=200))
    values = as_values(analysis)
    assert values["fit"]["trusted"] is False
    assert "2 languages" in values["fit"]["why"][0]
    assert "not to be trusted" in values["decision"][0]["sentence"]


def test_identical_arms_give_nought_and_no_law() -> None:
    analysis = analyse(grid_of(arms(GAPS * 0, tiers=4, bits=2)), AnalysisOptions(draws=200))
    values = as_values(analysis)
    for gap in values["gaps"]:
        assert (gap["mean"], gap["mean_interval"], gap["mean_percentile"]) == (0.0, [0.0, 0.0], [0.0, 0.0])
    assert values["fit"] == {"A": None, "b": None, "trusted": False, "why": [analysis.fitted.doubts[0]]}
    assert "all mean gaps are 0" in values["fit"]["why"][0]
    assert values["latency_sensitivity"]["mean_interval"] == [0.0, 0.0]
    assert values["decision"] == []


def test_one_language_has_no_interval_and_json_is_json() -> None:
    values = as_values(analyse(grid_of(arms(GAPS[:1], tiers=4, bits=2)), AnalysisOptions(draws=200)))
    again = json.loads(json.dumps(values, allow_nan=False))
    assert again["fit"]["b_interval"] is None
    assert again["fit"]["b"] == pytest.approx(0.92)
    assert again["gaps"][0]["mean_interval"] is None


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)])
def test_the_figure_is_drawn_with_what_there_is(tmp_path: Path, shape: tuple[int, int]) -> None:
    from matplotlib.image import imread

    from sprachbund.research.encoder_transfer.report import draw

    gaps = np.where(np.arange(5) == 4, -0.1, GAPS)
    draw(analyse(grid_of(arms(gaps, *shape)), AnalysisOptions(draws=200)), tmp_path / "deep" / "figure.png")
    picture = imread(tmp_path / "deep" / "figure.png")
    assert picture.shape[1] > 600 * (1 if shape == (1, 1) else 3)
    assert picture[..., :3].std() > 0.05


def test_a_tier_that_repeats_another_counts_once_in_means() -> None:
    rng = np.random.default_rng(5)
    values = arms(GAPS, tiers=4, bits=2) + rng.normal(0, 0.2, (2, 6, 5, 4, 2, 2))
    values[:, :, :, 3] = values[:, :, :, 2]
    whole, three = grid_of(values), grid_of(values[:, :, :, :3])
    assert whole.distinct_tiers == [0, 1, 2]
    assert whole.seed_noise == three.seed_noise
    found, wanted = (analyse(grid, AnalysisOptions(draws=200)) for grid in (whole, three))
    np.testing.assert_array_equal(found.fitted.gaps, wanted.fitted.gaps)
    assert found.fitted.means == wanted.fitted.means
    assert found.bit_costs[0].median == wanted.bit_costs[0].median
    assert found.bit_costs[0].mean == wanted.bit_costs[0].mean
    assert [one.tiers[0] for one in found.by_tier] == ["160 ms", "560 ms", "1120 ms", "offline"]
    assert tier_lines(found) == [
        "offline repeats the scores of another tier; means are over 160 ms, 560 ms, 1120 ms"
    ]
    assert tier_lines(wanted) == []
    values[0, 0, 0, 3, 0, 0] += 0.01  # one score of its own makes it another tier
    assert grid_of(values).distinct_tiers == [0, 1, 2, 3]


def test_hours_are_those_of_the_grid() -> None:
    assert analyse(grid_of(arms(GAPS)), AnalysisOptions(draws=100)).fitted.law.hours == HOURS

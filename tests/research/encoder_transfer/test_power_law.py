import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.significance import t_interval
from sprachbund.research.encoder_transfer.power_law import (
    REFERENCE_HOURS,
    fit_power_law,
    language_draws,
    mean_over_languages,
    weighted_means,
)
from sprachbund.research.encoder_transfer.study_options import By
from tests.research.encoder_transfer.made import HOURS, planted


def inside(value: float, interval: tuple[float, float]) -> bool:
    return interval[0] <= value <= interval[1]


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 50), st.floats(-2, 3), st.integers(1, 6), st.sampled_from(["log", "gaps"]))
def test_a_law_without_noise_is_found_exactly(scale: float, exponent: float, languages: int, by: By) -> None:
    law = fit_power_law(HOURS, np.tile(planted(HOURS, scale, exponent), (languages, 1)), by=by, draws=100)
    assert law.scale.value == pytest.approx(scale)
    assert law.exponent.value == pytest.approx(exponent, abs=1e-9)
    if languages > 1:
        assert law.scale.interval == pytest.approx((scale, scale))
        assert law.exponent.percentile == pytest.approx((exponent, exponent), abs=1e-9)
    assert law.gap(700).value == pytest.approx(scale * 7**-exponent)
    if exponent > 0.1:
        assert law.gap(law.hours_at(0.5)).value == pytest.approx(0.5)
    if abs(exponent) > 1e-3:  # below, rounding decides
        assert law.trusted == (languages >= 3 and exponent > 0)


def test_the_fit_is_that_of_numpy_and_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    gaps = planted() + rng.normal(0, 0.2, (6, 5))
    law = fit_power_law(HOURS, gaps, draws=300, seed=7)
    x = np.log(np.array(HOURS) / 100)
    slope, intercept = np.polyfit(x, np.log(gaps.mean(0)), 1)
    assert law.scale.value == pytest.approx(np.exp(intercept))
    assert law.exponent.value == pytest.approx(-slope)
    assert law.r_squared == pytest.approx(np.corrcoef(x, np.log(gaps.mean(0)))[0, 1] ** 2)
    chosen = np.random.default_rng(7).choice(6, size=(300, 6))
    drawn = []
    for draw in chosen:
        means = gaps[draw].mean(0)
        keep = means > 0
        slope, intercept = np.polyfit(x[keep], np.log(means[keep]), 1)
        drawn.append((intercept, -slope))
    np.testing.assert_allclose(law.drawn, drawn, atol=1e-9)
    ordered = np.sort(np.array(drawn)[:, 1])
    assert law.exponent.percentile == pytest.approx((ordered[7], ordered[292]))


def test_the_published_example() -> None:
    law = fit_power_law((100, 2500, 500), np.array([[4.0, 0.2, 0.9], [4.2, 0.21, 0.93], [3.8, 0.19, 0.88]]))
    assert law.scale.value == pytest.approx(4.0, abs=0.1)
    assert law.exponent.value == pytest.approx(0.92, abs=0.02)
    assert law.trusted


def test_least_squares_of_the_gaps_are_scipys() -> None:
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(11)
    gaps = planted() + rng.normal(0, 0.3, (5, 5))
    gaps[:, 4] -= 0.3  # no gap at all at the largest scale
    assert gaps.mean(0)[4] < 0
    law = fit_power_law(HOURS, gaps, by="gaps", draws=50, seed=3)
    x = np.array(HOURS) / 100

    def curve(h: np.ndarray, a: float, b: float) -> np.ndarray:
        return np.exp(a) * h**-b

    expected, _ = curve_fit(curve, x, gaps.mean(0), p0=(1.0, 1.0))
    assert (np.log(law.scale.value), law.exponent.value) == pytest.approx(tuple(expected), abs=1e-5)
    assert law.hours == HOURS
    for draw, fitted in zip(np.random.default_rng(3).choice(5, size=(50, 5)), law.drawn, strict=True):
        expected, _ = curve_fit(curve, x, gaps[draw].mean(0), p0=(1.0, 1.0))
        np.testing.assert_allclose(fitted, expected, atol=1e-4)


def test_least_squares_of_the_gaps_bear_more_noise() -> None:
    rng = np.random.default_rng(12)
    errors = []
    for seed in range(40):
        gaps = planted() + rng.normal(0, 0.3, (6, 5))
        both = [fit_power_law(HOURS, gaps, by=by, draws=300, seed=seed) for by in ("log", "gaps")]
        errors.append([law.exponent.value - 0.92 for law in both])
    log, direct = np.square(errors).mean(0)
    assert direct < log / 4


@pytest.mark.slow
@pytest.mark.parametrize("by", ["log", "gaps"])
@pytest.mark.parametrize("num_languages", [4, 8])
@pytest.mark.parametrize("between_languages", [0.0, 0.3])
def test_planted_laws_lie_inside_their_intervals(
    num_languages: int, between_languages: float, by: By
) -> None:
    """Seed noise of 0.2 points, two seeds and two arms; languages that differ by 30%, or not."""
    rng = np.random.default_rng(int(num_languages + 10 * between_languages))
    together = published = 0
    for seed in range(100):
        size = np.exp(rng.normal(-(between_languages**2) / 2, between_languages, (num_languages, 1)))
        gaps = size * planted() + rng.normal(0, 0.2, (num_languages, 5))
        law = fit_power_law(HOURS, gaps, by=by, draws=1_000, seed=seed)
        together += inside(4.0, law.scale.interval) and inside(0.92, law.exponent.interval)
        published += inside(4.0, law.scale.percentile) and inside(0.92, law.exponent.percentile)
    assert together >= (93 if by == "log" else 90)  # of 95 expected, what chance leaves
    assert published < together  # why it is not the one shown first


def test_scales_that_are_not_positive_are_left_out_and_said() -> None:
    gaps = np.tile(planted(), (5, 1))
    gaps[:, 3] = -0.1
    law = fit_power_law(HOURS, gaps)
    assert law.hours == (100, 250, 500, 2500)
    assert law.exponent.value == pytest.approx(0.92)
    assert not law.trusted
    assert "not at 1000 h (-0.1)" in law.doubts[0]


def test_draws_that_lose_a_scale_are_counted() -> None:
    gaps = np.tile(planted(), (5, 1))
    gaps[:, 4] = [-0.4, -0.3, -0.1, 0.5, 0.5]
    law = fit_power_law(HOURS, gaps, draws=4_000)
    weights = language_draws(5, 4_000)
    share = ((weights @ gaps[:, 4]) <= 0).mean()
    assert f"in {share:.0%} of the draws" in " ".join(law.doubts)


def test_what_cannot_be_trusted_says_why() -> None:
    rng = np.random.default_rng(3)
    few = fit_power_law(HOURS, np.tile(planted(), (2, 1)))
    flat = fit_power_law(HOURS, 1 + rng.normal(0, 0.1, (6, 5)))
    growing = fit_power_law(HOURS, np.tile(planted(HOURS, 1, -0.5), (4, 1)))
    bent = fit_power_law(
        HOURS, planted(HOURS, 4, 0.3) * np.exp(-np.array(HOURS) / 700) + rng.normal(0, 0.01, (6, 5))
    )
    for law, words in (
        (few, "2 languages"),
        (flat, "exponent may be 0"),
        (growing, "grows with data"),
        (bent, "shrinks faster than by a power"),
    ):
        assert not law.trusted
        assert any(words in doubt for doubt in law.doubts), law.doubts


def test_two_positive_gaps_are_not_called_bent() -> None:
    """Two points are on a straight line, whatever they are."""
    gaps = np.array([4.0, 1.5, -0.02]) + 0.1 * np.random.default_rng(0).standard_normal((6, 3))
    law = fit_power_law((10, 100, 1000), gaps, by="gaps")
    assert not any("straight" in doubt for doubt in law.doubts), law.doubts


def test_a_straight_law_is_hardly_ever_called_bent() -> None:
    rng = np.random.default_rng(4)
    bent = 0
    for seed in range(100):
        gaps = planted() * np.exp(rng.normal(0, 0.1, (6, 5)))
        bent += any("straight" in d for d in fit_power_law(HOURS, gaps, draws=500, seed=seed).doubts)
    assert bent <= 4


@pytest.mark.parametrize(
    ("hours", "gaps", "words"),
    [
        ((100, 500), [[4.0, 1.0]], r"2 scales of data \(100 h, 500 h\); it takes 3"),
        ((np.nan,), [[4.0]], "no column 'hours'"),
        (
            (100, 250, 500),
            [[4.0, 0.0, -1.0]],
            r"positive at 1 of 3 scales, not at 250 h \(0\), at 500 h \(-1\)",
        ),
    ],
)
def test_what_has_no_law_is_an_error(hours: tuple[float, ...], gaps: list[list[float]], words: str) -> None:
    with pytest.raises(SprachbundError, match=words):
        fit_power_law(hours, np.array(gaps))


def test_identical_systems_differ_by_nought() -> None:
    mean = mean_over_languages(np.zeros(5))
    assert (mean.value, mean.interval, mean.percentile) == (0.0, (0.0, 0.0), (0.0, 0.0))


def test_the_interval_of_a_mean_is_students() -> None:
    from scipy.stats import t

    values = np.random.default_rng(6).normal(2, 1, 7)
    low, high = t_interval(values.mean(), language_draws(7, 200_000) @ values, 7)
    theirs = t.interval(0.95, 6, values.mean(), values.std(ddof=1) / np.sqrt(7))
    assert (low, high) == pytest.approx(theirs, rel=0.01)


def test_a_law_is_fitted_over_the_languages_that_have_a_scale() -> None:
    """Three of twelve languages lack the largest scale, as in the published table."""
    random = np.random.default_rng(4)
    gaps = 4.0 * (np.array(HOURS) / 100) ** -0.92 + random.normal(0, 0.05, (12, len(HOURS)))
    gaps[:3, -1] = np.nan
    law = fit_power_law(HOURS, gaps, draws=2000)
    line = linregress(np.log(np.array(HOURS) / 100), np.log(np.nanmean(gaps, axis=0)))
    assert law.scale.value == pytest.approx(np.exp(line.intercept))
    assert law.exponent.value == pytest.approx(-line.slope)
    assert law.exponent.interval[0] < 0.92 < law.exponent.interval[1]
    assert law.trusted
    by_gaps = fit_power_law(HOURS, gaps, by="gaps", draws=2000)
    assert by_gaps.exponent.interval[0] < 0.92 < by_gaps.exponent.interval[1]


def test_draws_are_over_the_languages_that_they_have() -> None:
    random = np.random.default_rng(5)
    gaps, weights = random.normal(1, 1, (4, 3)), random.dirichlet(np.ones(4), 6)
    weights[0] = [1, 0, 0, 0]
    gaps[0, 1] = gaps[2, 1] = np.nan
    means = weighted_means(weights, gaps)
    masked = np.ma.masked_invalid(gaps)
    assert np.isnan(means[0, 1])
    for draw in range(1, 6):
        wanted = np.ma.average(masked, axis=0, weights=weights[draw])
        np.testing.assert_allclose(means[draw], wanted)


def test_a_scale_that_no_language_has_does_not_count() -> None:
    gaps = np.tile(4.0 * (np.array(HOURS) / 100) ** -0.92, (4, 1))
    gaps[:, 1] = np.nan
    assert fit_power_law(HOURS, gaps, draws=200).hours == tuple(h for h in HOURS if h != HOURS[1])


def test_languages_without_a_gap_change_nothing() -> None:
    """What a table says of a language that has one start only is nothing about the law."""
    gaps = planted() + np.random.default_rng(8).normal(0, 0.2, (2, 5))
    two = fit_power_law(HOURS, gaps, draws=500)
    more = fit_power_law(HOURS, np.vstack([gaps[:1], np.full((3, 5), np.nan), gaps[1:]]), draws=500)
    assert (more.scale, more.exponent, more.doubts) == (two.scale, two.exponent, two.doubts)
    assert not more.trusted


def test_the_quantile_is_of_languages_with_two_scales() -> None:
    from scipy.stats import t

    gaps = planted() + np.random.default_rng(9).normal(0, 0.2, (4, 5))
    gaps[3, 1:] = np.nan
    law = fit_power_law(HOURS, gaps, draws=2_000)
    half = t.ppf(0.9875, 2) * law.drawn[:, 1].std() * np.sqrt(3 / 2)  # three languages, not four
    assert law.num_languages == 3
    assert law.exponent.interval == pytest.approx((law.exponent.value - half, law.exponent.value + half))
    gaps[2, :4] = np.nan
    assert fit_power_law(HOURS, gaps, draws=200).doubts[0].startswith("2 languages: an interval takes 3")


def test_gaps_of_no_language_are_no_law() -> None:
    with pytest.raises(SprachbundError, match="0 scale"):
        fit_power_law(HOURS, np.full((2, 5), np.nan))


def test_a_gap_that_hardly_shrinks_comes_down_after_hours_without_end() -> None:
    law = fit_power_law((10.0, 100.0, 1000.0), np.array([[10.02, 10.01, 10.0]] * 3))
    assert 0 < law.exponent.value < 0.001
    assert law.hours_at(0.1) == float("inf")
    assert law.hours_at(law.scale.value) == pytest.approx(REFERENCE_HOURS)

"""P-values and intervals against sacrebleu's paired tests; over seeds against planted truths and scipy."""

import time

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import ttest_ind

from sprachbund.errors import SprachbundError
from sprachbund.evaluation import significance
from sprachbund.evaluation.metrics import bleu, chrf, metric, ter
from sprachbund.evaluation.significance import (
    Share,
    bootstrap_weights,
    compare_means,
    holm,
    mean_interval,
    over_seeds,
    paired_test,
    units_of,
)
from tests.evaluation.made import made_texts

METRICS = {"BLEU": (bleu("de"), BLEU), "chrF2": (chrf(), CHRF), "TER": (ter(), TER)}


@pytest.fixture(scope="module")
def systems():
    references, first = made_texts(150, 0.30, seed=1)
    return references, [first, made_texts(150, 0.27, seed=2)[1], made_texts(150, 0.36, seed=3)[1]]


@pytest.mark.parametrize(
    ("ours", "theirs", "draws"), [("bootstrap", "bs", 400), ("randomization", "ar", 300)]
)
def test_equal_to_sacrebleu_at_the_same_seed(systems, ours, theirs, draws):
    references, texts = systems
    named = [(str(n), some) for n, some in enumerate(texts)]
    metrics = {name: make() for name, (_, make) in METRICS.items()}
    _, expected = PairedTest(named, metrics, [references], test_type=theirs, n_samples=draws)()
    for name, (scorer, _) in METRICS.items():
        counts = [scorer.statistics(some, references) for some in texts]
        result = paired_test(scorer, counts[0], counts[1:], test=ours, draws=draws)
        for one, other in zip(result, expected[name], strict=True):
            assert one.score == other.score
            assert one.p_value == other.p_value
            if ours == "bootstrap":
                assert one.mean == pytest.approx(other.mean, abs=1e-9)
                assert one.half_width == pytest.approx(other.ci, abs=1e-9)


def test_chunks_draw_what_one_piece_draws(systems, monkeypatch):
    references, texts = systems
    counts = [chrf().statistics(some, references) for some in texts]
    for test in ("bootstrap", "randomization"):
        whole = paired_test(chrf(), counts[0], counts[1:], test=test, draws=200)
        with monkeypatch.context() as patch:
            patch.setattr(significance, "_CHUNK_CELLS", 150 * 40)
            assert repr(paired_test(chrf(), counts[0], counts[1:], test=test, draws=200)) == repr(whole)


def test_weights_are_the_draws_of_numpy():
    chosen = np.random.default_rng(5).choice(20, size=(7, 20), replace=True)
    weights = np.concatenate([part for _, part in bootstrap_weights(20, 7, 5)])
    assert (weights == [np.bincount(row, minlength=20) for row in chosen]).all()


def test_ten_thousand_sentences_take_seconds():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 9, size=(10_000, 18)).astype(float) for _ in range(2))
    start = time.process_time()
    paired_test(chrf(), first, [second], draws=1_000)
    assert time.process_time() - start < 20


def planted(rates, rng, sentences=400):
    """Counts of right sentences, one run for each rate."""
    return [
        [np.column_stack([rng.random(sentences) < rate, np.ones(sentences)]).astype(float)] for rate in rates
    ]


def test_over_seeds_what_varies_with_the_seed_is_not_claimed():
    rng = np.random.default_rng(0)
    lucky = compare_means([metric("exact")], planted([0.5], rng), planted([0.62], rng), draws=400)
    assert lucky.p_value < 0.02  # true of these two runs
    first, second = planted([0.5, 0.62, 0.40, 0.55], rng), planted([0.62, 0.45, 0.5, 0.57], rng)
    assert compare_means([metric("exact")], first, second, draws=400).p_value > 0.2


def test_over_seeds_what_holds_for_all_is_claimed():
    rng = np.random.default_rng(0)
    first, second = planted([0.5, 0.52, 0.51], rng), planted([0.66, 0.65, 0.68], rng)
    result = compare_means([metric("exact")], first, second, draws=400)
    assert result.p_value < 0.01
    assert result.interval[0] < result.difference < result.interval[1]
    assert result.num_seeds == (3, 3)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        result = compare_means(
            [metric("exact")], planted([0.5], rng, 200), planted([0.6], rng, 200), draws=200
        )
        covered += result.interval[0] <= 10 <= result.interval[1]
    assert covered >= 52


def test_intervals_of_one_system_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        low, high = mean_interval([Share()], planted([0.5], rng, 200), draws=200)
        covered += low <= 50 <= high
    assert covered >= 52


def test_the_interval_of_one_system_is_that_of_a_difference_to_nothing():
    rng = np.random.default_rng(3)
    runs = planted([0.5, 0.6, 0.4], rng)
    nothing = [[np.zeros((400, 2))] for _ in runs]
    result = compare_means([Share()], runs, nothing, draws=200)
    low, high = mean_interval([Share()], runs, draws=200)
    assert result.interval == pytest.approx((-high, -low))
    alike = mean_interval([Share()], runs[:1] * 3, draws=200)
    assert alike[1] - alike[0] < (high - low) / 2, "trainings that differ count"


# Welch's degrees of freedom are an approximation: of two seeds at worst 6.5 of 100 miss, of more about five.
@pytest.mark.parametrize(("seeds", "most"), [(2, 0.085), (3, 0.07), (5, 0.07)])
@pytest.mark.parametrize("effect", [0.0, 1.5])
def test_intervals_over_few_seeds_cover_the_truth_as_often_as_they_say(seeds, most, effect):
    rng = np.random.default_rng((seeds, int(effect)))
    repeats, missed = 1000, 0
    for _ in range(repeats):
        sides = np.array([[0.0], [effect]]) + rng.normal(0, 1, (2, seeds))
        of_texts = rng.normal(0, 0.5)
        value = float(sides[1].mean() - sides[0].mean() + of_texts)
        low, high = over_seeds(value, value + rng.normal(0, 0.5, 200), sides.tolist())[0]
        missed += not low <= effect <= high
    assert 0.03 * repeats < missed < most * repeats, f"{missed} of {repeats} intervals of 95 % miss"


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_trainings_that_differ_by_chance_are_seldom_claimed_to_be_better(seeds):
    rng = np.random.default_rng(seeds)
    repeats, claimed = 150, 0
    for _ in range(repeats):
        first, second = (planted(rng.normal(0.5, 0.05, seeds), rng, 200) for _ in range(2))
        claimed += compare_means([Share()], first, second, draws=100).p_value < 0.05
    assert claimed <= 0.1 * repeats


def test_without_spread_of_texts_the_p_value_is_welch_s():
    first, second = [50.0, 53.0, 48.0], [57.0, 55.0, 58.0, 61.0]
    value = float(np.mean(second) - np.mean(first))
    interval, p = over_seeds(value, np.full(10, value), [first, second])
    expected = ttest_ind(second, first, equal_var=False)
    assert p == pytest.approx(expected.pvalue)
    assert interval == pytest.approx(tuple(expected.confidence_interval()))


def test_units_are_the_connected_rows():
    rng = np.random.default_rng(4)
    names = rng.integers(0, 60, (50, 2))
    row = np.repeat(np.arange(50), 2)
    graph = coo_matrix((np.ones(100), (row, 50 + names.ravel())), shape=(110, 110))
    _, expected = connected_components(graph, directed=False)
    units = units_of(names.tolist())
    assert ((units[:, None] == units) == (expected[:50, None] == expected[:50])).all()
    assert units.max() + 1 == len(np.unique(units))


def claims_where_nothing_differs(parts, units, seed):
    """Share of comparisons of two systems with no difference that claim one.

    Args:
        parts: numbers of rows of each part, whose outcomes are those of the rows' units.
        units: for each part the unit of every row, as is true.
        seed: seed of the outcomes.

    Returns:
        that share if the units are given, and if they are not.
    """
    rng = np.random.default_rng(seed)
    claimed = np.zeros(2)
    repeats = 150
    for _ in range(repeats):
        outcome = rng.random((2, 1 + max(map(max, units)))) < 0.5  # of each system and unit
        runs = [
            [[np.column_stack([of[u], np.ones(n)]).astype(float) for n, u in zip(parts, units, strict=True)]]
            for of in outcome
        ]
        for which, given in enumerate((units, None)):
            result = compare_means([Share()] * len(parts), *runs, units=given, draws=100)
            claimed[which] += result.p_value < 0.05
    return claimed / repeats


def test_translations_of_one_utterance_are_no_independent_sentences():
    with_units, without = claims_where_nothing_differs([80] * 3, [np.arange(80)] * 3, seed=5)
    assert with_units < 0.1
    assert without > 0.15


def test_a_sentence_that_is_tested_many_times_is_one():
    repeated = np.concatenate([np.arange(60), np.repeat(np.arange(60, 66), 20)])
    with_units, without = claims_where_nothing_differs([180], [repeated], seed=6)
    assert (
        with_units < 0.12
    )  # six sentences have two thirds of the weight, so few that a bootstrap is too narrow
    assert without > 0.3


def test_a_draw_without_a_small_part_is_of_the_others():
    rng = np.random.default_rng(7)
    runs = [[planted([rate], rng, 40)[0][0], np.ones((1, 2))] for rate in (0.4, 0.6)]
    low, high = mean_interval([Share()] * 2, runs[:1], draws=200)
    assert 0 < low < high < 100
    assert np.isfinite(compare_means([Share()] * 2, runs[:1], runs[1:], draws=200).interval).all()


def test_the_same_texts_twice(systems):
    references, texts = systems
    counts = chrf().statistics(texts[0], references)
    result = paired_test(chrf(), counts, [counts], draws=100)[1]
    named = [("a", texts[0]), ("b", texts[0])]
    _, expected = PairedTest(named, {"chrF2": CHRF()}, [references], test_type="bs", n_samples=100)()
    assert result.p_value == expected["chrF2"][1].p_value  # a small one, by its definition
    assert result.interval == (0, 0)
    assert compare_means([chrf()], [[counts]], [[counts]], draws=100).p_value == 1


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]


def test_different_sentences_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(SprachbundError, match="10 sentences and another system 9"):
        paired_test(metric("exact"), planted([0.5], rng, 10)[0][0], [planted([0.5], rng, 9)[0][0]])
    with pytest.raises(SprachbundError, match="two runs or more"):
        compare_means([metric("exact")], planted([0.5], rng), planted([0.5, 0.5], rng))

"""The three analyses, against brute force, reference libraries, planted truths and the published figures."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.pairwise import cosine_similarity

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import ModuleEvidence
from sprachbund.research.gradient_sharing import analyses as capacity
from sprachbund.research.gradient_sharing import analyses as groups
from sprachbund.research.gradient_sharing import analyses as subspace
from sprachbund.research.gradient_sharing.analyses import (
    half_samples,
    mean_cosines,
    means,
    ordered_rows,
    similarity,
)
from sprachbund.research.gradient_sharing.plan_options import THRESHOLDS, SharingPlanOptions
from sprachbund.research.gradient_sharing.planning import make_plan, measure
from tests.research.gradient_sharing.made import as_groups, planted_groups, planted_rows, sketches, unit

MODULE = "encoder.layers.0.feed_forward_out"


def rows_of(*counts: int, dimensions: int = 12) -> list[np.ndarray]:
    random = np.random.default_rng(sum(counts))
    return [unit(random.standard_normal((n, dimensions)) + 0.5) for n in counts]


def test_similarity_is_the_cosine_of_the_means() -> None:
    rows = rows_of(4, 7, 5)
    centres = np.stack([unit_rows.mean(0) for unit_rows in rows])
    np.testing.assert_allclose(similarity(means(rows), "abc", "m"), cosine_similarity(centres), atol=1e-12)


def test_mean_cosines_leave_out_a_vector_with_itself() -> None:
    rows = rows_of(4, 7, 2)
    wanted = np.empty((3, 3))
    for one, other in itertools.product(range(3), repeat=2):
        cosines = [
            a @ b
            for i, a in enumerate(rows[one])
            for j, b in enumerate(rows[other])
            if one != other or i != j
        ]
        wanted[one, other] = np.mean(cosines)
    np.testing.assert_allclose(mean_cosines(rows), wanted, atol=1e-12)


def test_self_similarity_does_not_depend_on_how_many_vectors_there_are() -> None:
    result = []
    for num_vectors in (5, 400):
        draws = [
            mean_cosines([*planted_rows((1,), seed=s, num_vectors=num_vectors).values()])[0, 0]
            for s in range(40)
        ]
        result.append(np.mean(draws))
    assert abs(result[0] - result[1]) < 0.01
    assert result[0] > 0.15


def test_gradients_that_cancel_out_are_named() -> None:
    row = np.eye(8)[:1]
    rows = {"de": np.concatenate([row, -row]), "en": rows_of(2, dimensions=8)[0]}
    with pytest.raises(SprachbundError, match=rf"of de in {MODULE} cancel out"):
        measure(sketches(rows), MODULE)


PLANTED = [(1, 3), (2, 2), (2, 2, 2), (3, 3), (4, 4, 4), (3, 3, 3, 3), (6, 6), (2, 3, 3, 4)]


def found_groups(rows: dict[str, np.ndarray], clustering: groups.Clustering = "ward") -> set[frozenset[str]]:
    tags = list(rows)
    result = groups.find_groups([rows[tag].astype(float) for tag in tags], clustering=clustering, veto=0.9)
    return as_groups([[tags[index] for index in group] for group in result.partition])


@pytest.mark.parametrize("noise", [2.0, 4.0])
@pytest.mark.parametrize("parts", PLANTED)
def test_planted_groups_and_their_number_are_found(parts: tuple[int, ...], noise: float) -> None:
    rows = planted_rows(parts, noise=noise, seed=1)
    assert found_groups(rows) == planted_groups(parts, rows)


@pytest.mark.parametrize("parts", [(3, 3, 3, 3), (2, 2, 2, 2, 2, 2), (1, 11), (12,)])
def test_good_data_do_not_cut_groups_further(parts: tuple[int, ...]) -> None:
    """Languages of a group differ, and with little noise every cut among them comes out again in halves."""
    for seed in range(3):
        rows = planted_rows(parts, own=0.6, noise=0.5, seed=seed)
        assert found_groups(rows) == planted_groups(parts, rows)


def test_groups_are_far_apart_beside_their_own_distances() -> None:
    distances = 1 - np.eye(4)
    distances[0, 1] = distances[1, 0] = 0.6
    distances[2, 3] = distances[3, 2] = 0.7  # 0.65 in the mean, and 1 between the groups
    assert groups.far_apart(distances, ((0, 1), (2, 3)))
    distances[2, 3] = distances[3, 2] = 0.8
    assert not groups.far_apart(distances, ((0, 1), (2, 3)))


@pytest.mark.parametrize("parts", [(2, 2, 2), (1, 5)])
def test_k_means_finds_them_too(parts: tuple[int, ...]) -> None:
    rows = planted_rows(parts, seed=1)
    assert found_groups(rows, "kmeans") == planted_groups(parts, rows)


@pytest.mark.parametrize("parts", [(1, 1, 1, 9), (1, 11), (2, 10), (1, 5, 6)])
def test_single_languages_beside_a_large_group_are_found(parts: tuple[int, ...]) -> None:
    for seed in range(2):
        rows = planted_rows(parts, seed=seed)
        assert found_groups(rows) == planted_groups(parts, rows)


@pytest.mark.parametrize("count", [2, 4, 12])
def test_where_no_groups_are_none_are_found(count: int) -> None:
    rows = planted_rows((count,), own=0.2)
    assert found_groups(rows) == planted_groups((count,), rows)


def test_noise_alone_makes_no_groups_and_no_conflict() -> None:
    """Vectors without a common direction agree with nothing, themselves included."""
    rows = planted_rows((3, 3), common=0.0, apart=0.0, own=0.0, noise=1.0)
    evidence = measure(sketches(rows), MODULE)
    assert len(evidence.groups) == 1
    assert evidence.conflict is None
    plan = make_plan(sketches(rows), SharingPlanOptions())
    assert plan.splits == ()
    assert any("no better than by chance" in note for note in plan.notes)
    with pytest.raises(SprachbundError, match=r"collect more utterances, or give the shared ratio \(--rho\)"):
        make_plan(sketches(rows), SharingPlanOptions(num_groups=2))


def test_a_module_whose_conflict_is_not_known_leaves_the_split_to_others() -> None:
    noise = planted_rows((3, 3), common=0.0, apart=0.0, own=0.0, noise=1.0)
    clear = planted_rows((3, 3))
    both = replace(sketches(noise), vectors={"noise": noise, "clear": clear})
    options = SharingPlanOptions(num_groups=2, num_modules=1, choose_by="purity")
    plan = make_plan(both, options)
    assert [split.module for split in plan.splits] == ["clear"]
    given = make_plan(both, replace(options, num_modules=2, shared_ratio=0.5))
    assert {split.module for split in given.splits} == {"clear", "noise"}


def test_the_corrected_cosine_does_not_depend_on_noise_and_delta_does() -> None:
    """Two languages whose gradients have a true cosine of .49."""
    result = {}
    for noise in (0.5, 2.0):
        random = np.random.default_rng(0)
        one, other = np.linalg.qr(random.standard_normal((128, 2)))[0].T
        centres = (one, 0.49 * one + (1 - 0.49**2) ** 0.5 * other)
        rows = {
            tag: unit(centre + noise * unit(random.standard_normal((400, 128))))
            for tag, centre in zip("ab", centres, strict=True)
        }
        result[noise] = measure(sketches(rows), MODULE)
    for evidence in result.values():
        assert evidence.conflict == pytest.approx(1 - 0.49, abs=evidence.conflict_margin + 0.005)
        assert evidence.corrected[0][1] == pytest.approx(1 - evidence.conflict, abs=2e-6)
    assert result[0.5].delta > 3 * result[2.0].delta


def test_two_languages_are_two_groups_without_a_silhouette() -> None:
    evidence = measure(sketches(planted_rows((1, 1))), MODULE)
    assert evidence.groups == (("aeb",), ("bem",))
    assert evidence.silhouette is None
    assert evidence.separation == evidence.spread == pytest.approx(1 - evidence.corrected[0][1], abs=2e-6)


def test_languages_that_do_not_differ_are_one_group() -> None:
    rows = planted_rows((1,))["aeb"]
    evidence = measure(sketches(dict.fromkeys(("aeb", "bem", "cs", "de", "en"), rows)), MODULE)
    assert evidence.groups == (("aeb", "bem", "cs", "de", "en"),)
    assert evidence.separation == 0
    assert evidence.merged == ()


def test_up_to_four_languages_may_be_a_group_each() -> None:
    four, five = (measure(sketches(planted_rows((1,) * count)), MODULE) for count in (4, 5))
    assert len(four.groups) == 4
    assert four.agreements.keys() == {2, 3}
    assert len(five.groups) == 1
    by_hand = measure(sketches(planted_rows((2, 2, 2))), MODULE, SharingPlanOptions(num_groups=6))
    assert len(by_hand.groups) == 6
    assert by_hand.silhouette is None
    assert four.stability is None, "every half would be cut so"


def test_the_silhouette_is_the_textbook_one() -> None:
    centres = means(rows_of(5, 5, 5, 5, 5))
    distances = 1 - similarity(centres, "abcde", "m")
    partition = ((0, 1), (2, 3, 4))
    values = []
    for index in range(5):
        own, other = partition if index < 2 else partition[::-1]
        near = distances[index, [k for k in own if k != index]].mean()
        far = distances[index, list(other)].mean()
        values.append((far - near) / max(far, near))
    assert groups.silhouette(distances, partition) == pytest.approx(np.mean(values))
    assert groups.spread(distances, partition) == pytest.approx(distances[:2, 2:].mean())


def test_the_veto_joins_what_is_alike_most_alike_first() -> None:
    alike = np.array([[1, 0.95, 0.2], [0.95, 1, 0.93], [0.2, 0.93, 1]])
    apart = ((0,), (1,), (2,))
    assert groups.merge_alike(apart, alike, 0.9) == ((0, 1), (2,))  # their mean to the third is .565
    assert groups.merge_alike(apart, alike, 0.5) == ((0, 1, 2),)
    assert groups.merge_alike(apart, alike, 0.95) == apart
    assert groups.merge_alike(apart, alike, None) == apart


def test_the_two_clusterings_agree_as_the_library_says() -> None:
    one, other = ((0, 1), (2, 3), (4,)), ((0, 1, 2), (3, 4))
    assert groups.agreement(one, other) == pytest.approx(
        adjusted_rand_score([0, 0, 1, 1, 2], [0, 0, 0, 1, 1])
    )
    evidence = measure(sketches(planted_rows((3, 3))), MODULE)
    assert evidence.agreement == 1


def test_groups_are_stable_where_there_are_some_and_not_where_there_are_none() -> None:
    assert measure(sketches(planted_rows((3, 3))), MODULE).stability == 1
    assert (
        measure(sketches(planted_rows((6,), own=0.2)), MODULE).stability is None
    )  # one group always comes out
    forced = SharingPlanOptions(num_groups=3)
    blurred = [
        measure(sketches(planted_rows((6,), own=0.0, noise=4.0, seed=seed)), MODULE, forced).stability
        for seed in range(2)
    ]
    assert max(blurred) < 0.6


@pytest.mark.slow
def test_half_samples_spread_as_the_whole_errs() -> None:
    """The margin of delta against the scatter of delta over fresh draws of everything but the directions."""
    random = np.random.default_rng(2)
    centres = [unit(random.standard_normal(32)) for _ in range(3)]

    def draw() -> dict[str, np.ndarray]:
        noise = [2 * unit(random.standard_normal((40, 32))) for _ in centres]
        return {tag: unit(c + n).astype(np.float32) for tag, c, n in zip("abc", centres, noise, strict=True)}

    result = [measure(sketches(draw()), MODULE) for _ in range(20)]
    scatter = 1.96 * np.std([evidence.delta for evidence in result])
    assert 0.6 < np.mean([evidence.delta_margin for evidence in result]) / scatter < 1.6
    few = measure(sketches(planted_rows((2, 2), num_vectors=3)), MODULE)
    assert few.delta_margin is None
    assert few.stability is None


def test_halves_are_halves_without_repetition() -> None:
    rows = rows_of(6, 9)
    for half in half_samples(rows, 5, seed=1):
        assert [len(np.unique(part, axis=0)) for part in half] == [3, 4]


@pytest.mark.parametrize(
    ("delta", "ratio"),
    [(-0.2, 0.75), (0.0, 0.75), (0.049999, 0.75), (0.05, 0.5), (0.149999, 0.5), (0.15, 0.25), (2.0, 0.25)],
)
def test_the_shared_ratio_at_the_edges_of_its_table(delta: float, ratio: float) -> None:
    assert capacity.shared_ratio(delta, THRESHOLDS["raw"]) == ratio


def test_a_table_of_ones_own() -> None:
    assert [capacity.shared_ratio(d, (0.1,), (0.9, 0.1)) for d in (0.09, 0.1)] == [0.9, 0.1]
    assert capacity.shared_ratio(0.3, (), (0.6,)) == 0.6


PUBLISHED_SELF = {10: (0.243, 0.231, 0.308, 0.224), 11: (0.444, 0.515, 0.456, 0.419)}
PUBLISHED_PURITY = {10: (0.573, 0.602, 0.618, 0.583), 11: (0.531, 0.562, 0.540, 0.529)}
PUBLISHED_TAGS = ("aeb", "bem", "est", "gle")


def published_cosines(layer: int) -> np.ndarray:
    """A matrix s_lk whose diagonal and row means are those that the published figures imply."""
    own, purity = np.array(PUBLISHED_SELF[layer]), np.array(PUBLISHED_PURITY[layer])
    cross = own * (1 / purity - 1)  # mean over k of s_lk, from purity = own / (own + cross)
    pairs = list(itertools.combinations(range(4), 2))
    equations = np.array([[1.0 if row in pair else 0.0 for pair in pairs] for row in range(4)])
    values = np.linalg.lstsq(equations, 3 * cross, rcond=None)[0]
    matrix = np.diag(own)
    for (a, b), value in zip(pairs, values, strict=True):
        matrix[a, b] = matrix[b, a] = value
    return matrix


def published_evidence(layer: int) -> ModuleEvidence:
    cosines = published_cosines(layer)
    own, cross = capacity.self_and_cross(cosines)
    purity = capacity.purities(cosines)
    return ModuleEvidence(
        languages=PUBLISHED_TAGS,
        num_vectors=dict.fromkeys(PUBLISHED_TAGS, 50),
        similarity=tuple(map(tuple, np.eye(4))),
        mean_cosines=tuple(map(tuple, cosines)),
        self_similarity=own,
        cross_similarity=cross,
        delta=own - cross,
        purity=purity.mean(),
        purity_by_language=dict(zip(PUBLISHED_TAGS, purity, strict=True)),
        groups=(("aeb", "est", "gle"), ("bem",)),
        spread=1.0,
        separation=0.5,
        agreement=1.0,
        energy_by_language=dict.fromkeys(PUBLISHED_TAGS, 0.25),
        energy_shares=(0.7232, 0.2768),
    )


def test_published_purity_delta_ratio_and_layer() -> None:
    for layer in (10, 11):
        np.testing.assert_allclose(
            capacity.purities(published_cosines(layer)), PUBLISHED_PURITY[layer], atol=5e-4
        )
    modules = {f"layers.{layer}": published_evidence(layer) for layer in (10, 11)}
    delta = np.mean([evidence.delta for evidence in modules.values()])
    assert round(delta, 3) == 0.075
    assert capacity.shared_ratio(delta, THRESHOLDS["raw"]) == 0.5
    for layer, corrected in {10: 0.68, 11: 0.85}.items():
        conflict = capacity.conflict(published_cosines(layer))
        assert conflict == pytest.approx(1 - corrected, abs=0.006)
        assert capacity.shared_ratio(conflict, THRESHOLDS["corrected"]) == 0.5
    assert capacity.ranked(modules, "purity") == ["layers.11", "layers.10"]


def test_purity_stays_between_0_and_1() -> None:
    cosines = np.array([[0.4, -0.3, -0.1], [-0.3, 0.2, 0.5], [-0.1, 0.5, -0.01]])
    np.testing.assert_allclose(capacity.purities(cosines), [1.0, 0.2 / 0.3, 0.0])
    assert capacity.purities(np.zeros((2, 2))).tolist() == [0.5, 0.5]


def test_purity_is_lowest_above_the_median_and_separation_highest() -> None:
    base = published_evidence(10)
    values = {"a": (0.1, 0.51, 0.1), "b": (0.3, 0.6, 0.2), "c": (0.4, 0.7, 0.9), "d": (0.2, 0.52, 0.3)}
    modules = {
        name: base.model_copy(update={"self_similarity": own, "purity": purity, "separation": apart})
        for name, (own, purity, apart) in values.items()
    }
    assert capacity.ranked(modules, "purity") == ["b", "c", "a", "d"]
    assert capacity.ranked(modules, "separation") == ["c", "d", "b", "a"]
    assert capacity.ranked({"a": modules["a"]}, "purity") == ["a"]


@pytest.mark.parametrize(("counts", "dimensions"), [((20, 30, 25), 12), ((3, 4), 40), ((40, 40), 64)])
def test_energies_by_the_covariance(counts: tuple[int, ...], dimensions: int) -> None:
    rows = rows_of(*counts, dimensions=dimensions)
    stacked = np.concatenate(rows)
    vectors = np.linalg.eigh(stacked.T @ stacked)[1][:, ::-1]
    kept = vectors[:, : min(10, 30, len(stacked) - 1, dimensions)]
    wanted = np.array([sum(np.linalg.norm(u @ v) ** 2 for v in kept.T) / len(u) for u in rows])
    np.testing.assert_allclose(subspace.energies(rows), wanted / wanted.sum(), atol=1e-9)


def test_a_language_with_more_vectors_has_no_more_energy() -> None:
    direction, other = np.eye(8)[0], np.eye(8)[1]
    assert subspace.energies([np.tile(direction, (9, 1)), np.tile(other, (3, 1))]) == pytest.approx(
        [0.5, 0.5]
    )


def test_principal_angles_by_scipy() -> None:
    rows = rows_of(9, 14, 11, dimensions=40)
    result = subspace.principal_angles_deg(rows, num_directions=4)
    bases = [np.linalg.svd(r, full_matrices=False)[2][:4].T for r in rows]
    for a, b in itertools.combinations(range(3), 2):
        wanted = np.degrees(scipy.linalg.subspace_angles(bases[a], bases[b])).mean()
        assert result[a, b] == result[b, a] == pytest.approx(wanted, abs=1e-6)
    assert np.diag(result).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dimensions", [5, 30])
def test_ridge_canonical_correlations_by_their_definition(dimensions: int) -> None:
    one, other = rows_of(20, 23, dimensions=dimensions)
    x, y = one - one.mean(0), other[:20] - other[:20].mean(0)

    def inverse_root(values: np.ndarray) -> np.ndarray:
        covariance = values.T @ values / 20
        ridge = 0.1 * np.trace(covariance) / dimensions
        return np.linalg.inv(scipy.linalg.sqrtm(covariance + ridge * np.eye(dimensions)).real)

    wanted = np.linalg.svd(inverse_root(x) @ (x.T @ y / 20) @ inverse_root(y), compute_uv=False)
    result = subspace.canonical_correlations([one, other])
    assert result[0, 1] == pytest.approx(wanted[:10].mean(), abs=1e-9)


def test_the_order_of_rows_is_their_own() -> None:
    rows = rows_of(12)[0]
    np.testing.assert_array_equal(
        ordered_rows(rows), ordered_rows(rows[np.random.default_rng(0).permutation(12)])
    )

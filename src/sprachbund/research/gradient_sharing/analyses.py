"""The three analyses of gradient sketches of arXiv 2603.25836.

A groups languages by the noise-corrected cosines of their gradients. B sets how much of a module stays shared, and
which module to split. C measures where the energy of the gradients lies, and how far the subspaces of languages differ.
Notation of the paper: L languages, N_l vectors of language l as unit rows of U_l (N_l, d).
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import ModuleEvidence
from sprachbund.research.gradient_sharing.plan_options import RATIOS, ChooseBy, Clustering

# Similarity of languages: cosines between mean vectors, and between single vectors.

UnitGradients = Sequence[np.ndarray]
"""One float64 (N_l, d) of unit rows for each of L languages."""

MIN_TO_HALVE = 4
"""Vectors of a language that half samples need: a half must still hold a pair."""

_VANISHES = 1e-9


def ordered_rows(rows: np.ndarray) -> np.ndarray:
    """The rows in an order of their own, so that nothing depends on the order in the file, to the last bit."""
    return rows[np.lexsort(rows.T[::-1])].astype(np.float64)


def means(rows: UnitGradients) -> np.ndarray:
    """Mean gradient direction m_l of each language: (L, d)."""
    return np.stack([unit.mean(0) for unit in rows])


def similarity(means: np.ndarray, languages: Sequence[str], module: str) -> np.ndarray:
    """S, cosines between the languages' mean gradients (L, d): (L, L), ones on the diagonal.

    Args:
        means: mean gradients (L, d).
        languages: BCP-47 tags, for errors.
        module: name of the module, for errors.

    Raises:
        SprachbundError: when the gradients of a language cancel out, so that they have no direction.
    """
    norms = np.linalg.norm(means, axis=1)
    for language, norm in zip(languages, norms, strict=True):
        if norm < _VANISHES:
            raise SprachbundError(
                f"the gradients of {language} in {module} cancel out, so their mean has no direction; "
                "collect more utterances of it, or leave the module out"
            )
    return _cosines(means)


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """Cosines of the rows of (L, d): (L, L), ones on the diagonal."""
    directions = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _VANISHES)
    cosines = np.clip(directions @ directions.T, -1, 1)
    np.fill_diagonal(cosines, 1)
    return (cosines + cosines.T) / 2


def mean_cosines(rows: UnitGradients) -> np.ndarray:
    """s_lk, mean cosine of rows of l with rows of k, (L, L); on the diagonal a row never meets itself.

    Needs two rows of each language. With unit rows the sum over all pairs is the product of the two sums, and
    each of the N pairs of a row with itself counts 1.
    """
    counts = np.array([len(unit) for unit in rows], dtype=float)
    centres = means(rows)
    cosines = centres @ centres.T
    np.fill_diagonal(cosines, (np.diag(cosines) * counts**2 - counts) / (counts * (counts - 1)))
    return np.clip(cosines, -1, 1)


def corrected(mean_cosines: np.ndarray) -> np.ndarray:
    """C, noise-corrected cosines of languages: c_lk = s_lk / sqrt(s_ll s_kk), (L, L), ones on the diagonal.

    A vector is a language's gradient plus the noise of its utterances. The noise of different vectors is independent,
    so s_lk = c_lk times the share of signal in vectors of l and of k, and s_ll is the square of l's share. C does
    not depend on the noise, whereas S and the differences of s do.

    Args:
        mean_cosines: s (L, L), a row never compared with itself. A diagonal at or below zero counts as nearly zero.
    """
    share = np.sqrt(np.maximum(np.diag(mean_cosines), _VANISHES))
    cosines = np.clip(mean_cosines / np.outer(share, share), -1, 1)
    np.fill_diagonal(cosines, 1)
    return (cosines + cosines.T) / 2


def halves(rows: UnitGradients, draws: int, seed: int) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Every language's rows cut in two at random; the second half has the odd row.

    Args:
        rows: unit rows of every language (N_l, d).
        draws: number of cuts.
        seed: seed of the draws.
    """
    random = np.random.default_rng(seed)
    for _ in range(draws):
        orders = [random.permutation(len(unit)) for unit in rows]
        yield (
            [unit[order[: len(unit) // 2]] for unit, order in zip(rows, orders, strict=True)],
            [unit[order[len(unit) // 2 :]] for unit, order in zip(rows, orders, strict=True)],
        )


def half_samples(rows: UnitGradients, draws: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Random halves of every language's rows, without replacement.

    The spread of a mean over such halves around the full sample's mean is the standard error of the full sample;
    drawing with replacement instead would pair rows with themselves.

    Args:
        rows: unit rows of every language (N_l, d).
        draws: number of halves.
        seed: seed of the draws.
    """
    for half, _ in halves(rows, draws, seed):
        yield half


# Analysis A: groups of languages.

Partition = tuple[tuple[int, ...], ...]
"""Groups of indexes, each sorted, the groups by their first index."""

FEW = 4
"""Up to so many languages may each be a group of its own; with more, that says nothing about groups."""

STABLE = 0.95
"""Mean agreement of disjoint halves of the data (adjusted Rand index) from which a number of groups is believed."""

APART = 1.5
"""How many times as far from each other the two nearest groups must be as languages of one group."""

ALIKE = 0.9
"""Corrected cosine above which two languages are as good as one."""

NUM_CUTS = 20
"""Cuts into halves, both of which are clustered for every number of groups."""

NUM_HALVES = 40
"""Halves for intervals, and for how often the chosen groups come out again."""
NUM_STARTS = 10
_SAME = 1e-6
_MAX_SEED = 2**32
_Z95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of languages in a module.

    Attributes:
        partition: the groups; a single one when the languages do not differ or the veto joined all.
        before_veto: the groups as clustered.
        agreements: number of groups to the mean agreement of disjoint halves of the data (adjusted Rand index).
        silhouette: silhouette of the groups before the veto, None where it is not defined.
        spread: mean distance between languages of different groups, before the veto.
    """

    partition: Partition
    before_veto: Partition
    agreements: dict[int, float] = field(default_factory=dict)
    silhouette: float | None
    spread: float

    @property
    def separation(self) -> float:
        """Silhouette times spread; the spread alone where there is no silhouette, as with two languages."""
        return (1.0 if self.silhouette is None else self.silhouette) * self.spread


def find_groups(
    rows: UnitGradients,
    *,
    num_groups: int | None = None,
    clustering: Clustering = "ward",
    veto: float | None = None,
    seed: int = 0,
) -> Groups:
    """Group languages by the noise-corrected cosines of their gradients.

    The number of groups is the largest one whose groups come out again: every language's vectors are cut at random
    into two halves, both are clustered, and the two clusterings agree on average (adjusted Rand index at least 0.95).
    That alone would cut further the better the data are, as any two languages differ a little; so the two nearest
    groups must also be `APART` times as far from each other as languages of one group are. A silhouette prefers groups
    of equal size, and misses single languages beside one large group. Where no number from 2 to L - 1 will do, the
    languages are one group, but up to four languages that all differ clearly are a group each.

    Args:
        rows: unit rows of every language (N_l, d), at least two of each.
        num_groups: K; None finds it.
        clustering: Ward linkage on the distances 1 - C, or k-means on the means.
        veto: groups whose mean corrected cosine is above are merged, the most similar ones first; None merges none.
        seed: seed of halves and of k-means.

    Languages that do not differ at all (every distance below 1e-6) are one group, whatever K. So are languages whose
    gradients are `noisy`, and those with too few vectors for halves, unless K is given.
    """
    count = len(rows)
    cosines = cosines_of(rows)
    distances = 1 - cosines
    whole: Partition = (tuple(range(count)),)
    agreements: dict[int, float] = {}
    if distances.max() < _SAME and (1 - _cosines(means(rows))).max() < _SAME:
        return Groups(partition=whole, before_veto=whole, silhouette=None, spread=0.0)
    if num_groups is None:
        measurable = min(map(len, rows)) >= MIN_TO_HALVE and not noisy(rows, seed)
        if measurable:
            agreements = agreement_of_halves(rows, clustering, seed)
        stable = [k for k, agrees in agreements.items() if agrees >= STABLE]
        cuts = clusterings(rows, stable, clustering, seed) if stable else {}
        believed = [k for k, cut in cuts.items() if far_apart(distances, cut)]
        if believed:
            num_groups = max(believed)
        else:
            alike = ALIKE if veto is None else veto
            each = measurable and count <= FEW and all_differ(rows, alike, seed)
            num_groups = count if each else 1
    partition = cluster(rows, num_groups, clustering, seed)
    return Groups(
        partition=merge_alike(partition, cosines, veto),
        before_veto=partition,
        agreements=agreements,
        silhouette=silhouette(distances, partition),
        spread=spread(distances, partition),
    )


def far_apart(distances: np.ndarray, partition: Partition) -> bool:
    """Whether the two nearest groups are `APART` times as far from each other as languages of one group, in the mean.

    Args:
        distances: distances of languages (L, L).
        partition: fewer groups than languages.
    """
    group_of = labels(partition)
    together = (group_of[:, None] == group_of) & ~np.eye(len(group_of), dtype=bool)
    nearest = min(distances[np.ix_(a, b)].mean() for a, b in itertools.combinations(partition, 2))
    return bool(nearest > APART * distances[together].mean())


def cosines_of(rows: UnitGradients) -> np.ndarray:
    """The cosines by which languages are grouped: corrected, or S where a language does not agree with itself, (L, L).

    Args:
        rows: unit rows of every language (N_l, d).
    """
    cosines = mean_cosines(rows)
    if np.diag(cosines).min() > 0:
        return corrected(cosines)
    return _cosines(means(rows))


def agreement_of_halves(rows: UnitGradients, clustering: Clustering, seed: int) -> dict[int, float]:
    """Return the agreement of clusterings of two disjoint halves of the vectors, for 2 to L - 1 groups.

    Args:
        rows: unit rows of every language (N_l, d).
        clustering: "ward" or "kmeans".
        seed: seed of the halves.

    Returns:
        number of groups to the mean adjusted Rand index.
    """
    numbers = range(2, len(rows))
    totals = dict.fromkeys(numbers, 0.0)
    if not totals:
        return totals
    for one, other in halves(rows, NUM_CUTS, seed):
        first, second = (clusterings(half, numbers, clustering, seed) for half in (one, other))
        for k in numbers:
            totals[k] += agreement(first[k], second[k]) / NUM_CUTS
    return totals


def corrected_with_errors(rows: UnitGradients, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """C of the rows, and the standard error of each of its cosines by half samples: (L, L) both.

    Args:
        rows: unit rows of every language (N_l, d).
        seed: seed of the halves.
    """
    cosines = corrected(mean_cosines(rows))
    drawn = [corrected(mean_cosines(half)) for half in half_samples(rows, NUM_HALVES, seed)]
    return cosines, np.sqrt(np.square(np.array(drawn) - cosines).mean(0))


def all_differ(rows: UnitGradients, alike: float, seed: int) -> bool:
    """Whether the corrected cosine of every two languages is below `alike`, at the upper end of its 95% interval.

    Args:
        rows: unit rows of every language (N_l, d).
        alike: cosine from which two languages are as good as one.
        seed: seed of the halves.
    """
    cosines, errors = corrected_with_errors(rows, seed)
    apart = ~np.eye(len(rows), dtype=bool)
    return bool(((cosines + _Z95 * errors)[apart] < alike).all())


def noisy(rows: UnitGradients, seed: int) -> bool:
    """Whether gradients agree with those of their own language no better than by chance.

    That is so where the mean of s_ll is not above its 95% error, or a language's own is not above zero; nothing can be
    corrected then.

    Args:
        rows: unit rows of every language (N_l, d).
        seed: seed of the halves.
    """
    own = np.diag(mean_cosines(rows))
    drawn = [np.diag(mean_cosines(half)).mean() for half in half_samples(rows, NUM_HALVES, seed)]
    error = float(np.sqrt(np.square(np.array(drawn) - own.mean()).mean()))
    return bool(own.min() <= 0 or own.mean() <= _Z95 * error)


def cluster(rows: UnitGradients, num_groups: int, clustering: Clustering, seed: int) -> Partition:
    """K groups by Ward linkage on the distances 1 - C, or by k-means on the mean gradients.

    Args:
        rows: unit rows of every language (N_l, d).
        num_groups: K.
        clustering: "ward" or "kmeans".
        seed: seed of k-means.
    """
    return clusterings(rows, [num_groups], clustering, seed)[num_groups]


def clusterings(
    rows: UnitGradients, numbers: Sequence[int], clustering: Clustering, seed: int
) -> dict[int, Partition]:
    """The same for several numbers of groups.

    Args:
        rows: unit rows of every language (N_l, d).
        numbers: every K that is wanted.
        clustering: "ward" or "kmeans".
        seed: seed of k-means.
    """
    if clustering == "ward":
        from scipy.cluster.hierarchy import cut_tree

        tree = ward_tree(1 - cosines_of(rows))
        cuts = cut_tree(tree, n_clusters=sorted(numbers))
        return {k: _partition(column) for k, column in zip(sorted(numbers), cuts.T, strict=True)}
    from sklearn.cluster import KMeans

    centres = means(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer different means than groups: the groups say so themselves
        return {
            k: _partition(
                KMeans(n_clusters=k, n_init=NUM_STARTS, random_state=seed % _MAX_SEED).fit_predict(centres)
            )
            for k in numbers
        }


def ward_tree(distances: np.ndarray) -> np.ndarray:
    """Ward linkage on distances (L, L), as scipy writes trees: (L - 1, 4)."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    tree: np.ndarray = linkage(squareform(distances, checks=False), "ward")
    return tree


def silhouette(distances: np.ndarray, partition: Partition) -> float | None:
    """Mean silhouette of groups on distances (L, L); None for one group, or as many groups as languages."""
    if not 2 <= len(partition) < len(distances):
        return None
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(distances, labels(partition), metric="precomputed"))


def spread(distances: np.ndarray, partition: Partition) -> float:
    """Mean distance between languages of different groups; 0 for one group."""
    group_of = labels(partition)
    apart = group_of[:, None] != group_of[None, :]
    return float(distances[apart].mean()) if apart.any() else 0.0


def merge_alike(partition: Partition, similarity: np.ndarray, veto: float | None) -> Partition:
    """The groups without pairs whose mean similarity is above the veto: the most similar are joined first.

    Args:
        partition: groups of indexes of languages.
        similarity: S (L, L).
        veto: mean similarity above which groups are joined; None joins none.
    """
    groups = [list(group) for group in partition]
    while veto is not None and len(groups) > 1:
        alike = {
            (a, b): float(similarity[np.ix_(groups[a], groups[b])].mean())
            for a, b in itertools.combinations(range(len(groups)), 2)
        }
        a, b = max(alike, key=lambda pair: alike[pair])
        if alike[a, b] <= veto:
            break
        groups[a] += groups.pop(b)
    return _sorted(groups)


def agreement(one: Partition, other: Partition) -> float:
    """Adjusted Rand index: 1 for the same groups, about 0 for unrelated ones.

    scikit-learn has it too; this takes microseconds instead of milliseconds, and is asked for thousands of times.
    """
    first, second = map(_together, (one, other))
    both, expected = (
        float((first & second).sum()),
        float(first.sum()) * float(second.sum()) / max(1, len(first)),
    )
    most = (float(first.sum()) + float(second.sum())) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def _together(partition: Partition) -> np.ndarray:
    """For every pair of languages, whether they are in one group: (L (L - 1) / 2,)."""
    group_of = labels(partition)
    same: np.ndarray = (group_of[:, None] == group_of[None, :])[np.triu_indices(len(group_of), 1)]
    return same


def labels(partition: Partition) -> np.ndarray:
    """Group index of each language: (L,)."""
    numbers = np.empty(sum(map(len, partition)), dtype=int)
    for index, group in enumerate(partition):
        numbers[list(group)] = index
    return numbers


def _partition(labels: np.ndarray) -> Partition:
    return _sorted([np.flatnonzero(labels == label).tolist() for label in np.unique(labels)])


def _sorted(groups: Sequence[Sequence[int]]) -> Partition:
    return tuple(sorted(tuple(sorted(group)) for group in groups))


# Analysis B: the shared ratio, and the module to split.


def self_and_cross(mean_cosines: np.ndarray) -> tuple[float, float]:
    """S_self and S_cross: means of s_lk (L, L) on the diagonal and beside it."""
    off_diagonal = ~np.eye(len(mean_cosines), dtype=bool)
    return float(np.diag(mean_cosines).mean()), float(mean_cosines[off_diagonal].mean())


def purities(mean_cosines: np.ndarray) -> np.ndarray:
    """s_ll / (s_ll + mean over k of s_lk), (L,): 1/2 where a language is as near to others as to itself.

    A cosine below 0 counts as 0, or the share would leave 0 to 1; where both are 0 nothing is said: 1/2.
    """
    count = len(mean_cosines)
    own = np.diag(mean_cosines)
    cross = np.maximum((mean_cosines.sum(1) - own) / (count - 1), 0)
    own = np.maximum(own, 0)
    total = own + cross
    return np.where(total > 0, own / np.where(total > 0, total, 1), 0.5)


def conflict(mean_cosines: np.ndarray) -> float:
    """1 - mean of c_lk over pairs: the part of their gradients that two languages do not have in common."""
    cosines = corrected(mean_cosines)
    return 1 - float(cosines[~np.eye(len(cosines), dtype=bool)].mean())


def shared_ratio(conflict: float, thresholds: Sequence[float], ratios: Sequence[float] = RATIOS) -> float:
    """rho for a conflict: the first ratio below the first threshold, the last one from the last on.

    Args:
        conflict: noise-corrected, or delta = mean s_ll less mean s_lk as published.
        thresholds: ascending bounds of it.
        ratios: shared ratios, one more than thresholds.
    """
    return ratios[int(np.searchsorted(thresholds, conflict, side="right"))]


def ranked(modules: Mapping[str, ModuleEvidence], choose_by: ChooseBy) -> list[str]:
    """Modules, the one to split first in front; of equals the one named first.

    "purity", as published: lowest mean purity among those whose self similarity is above the median; the others
    follow. A module in which all languages simply agree has a low purity too, hence "separation": the highest.
    """
    if choose_by == "separation":
        return sorted(modules, key=lambda name: -modules[name].separation)
    median = median_self_similarity(modules)
    return sorted(modules, key=lambda name: (modules[name].self_similarity <= median, modules[name].purity))


def median_self_similarity(modules: Mapping[str, ModuleEvidence]) -> float:
    """Over all modules; the published choice looks only at those above."""
    return float(np.median([evidence.self_similarity for evidence in modules.values()]))


# Analysis C: energy of the gradients, and angles between subspaces.

MAX_COMPONENTS = 30
NUM_ENERGY_COMPONENTS = 10
NUM_DIRECTIONS = 10
RIDGE = 0.1


def energies(rows: UnitGradients) -> np.ndarray:
    """E_l, energy of each language in the first 10 common directions, as shares that sum to 1: (L,).

    All rows are stacked, not centred, and decomposed into min(30, N - 1, d) directions v_c; the energy of a
    language on one is ||U_l v_c||^2 / N_l, so that a language with more vectors does not weigh more.
    """
    stacked = np.concatenate(rows)
    count = min(MAX_COMPONENTS, len(stacked) - 1, stacked.shape[1])
    directions = np.linalg.svd(stacked, full_matrices=False)[2][:count]
    by_component = np.stack([np.square(unit @ directions.T).mean(0) for unit in rows])  # (L, components)
    energy = by_component[:, :NUM_ENERGY_COMPONENTS].sum(1)
    return energy / energy.sum()


def principal_angles_deg(rows: UnitGradients, num_directions: int = NUM_DIRECTIONS) -> np.ndarray:
    """Mean principal angle between the languages' main subspaces in degrees, (L, L): 0 the same, 90 apart.

    A language's subspace is spanned by its first right singular vectors: 10, or as many as the smallest language
    has vectors, or dimensions there are. Rows of two languages need no pairing for this.
    """
    count = min(num_directions, *(min(unit.shape) for unit in rows))
    bases = [np.linalg.svd(unit, full_matrices=False)[2][:count] for unit in rows]
    angles = np.zeros((len(rows), len(rows)))
    for one, other in zip(*np.triu_indices(len(rows), 1), strict=True):
        cosines = np.linalg.svd(bases[one] @ bases[other].T, compute_uv=False)
        angles[one, other] = angles[other, one] = np.degrees(np.arccos(np.clip(cosines, 0, 1))).mean()
    return angles


def canonical_correlations(rows: UnitGradients, num_directions: int = NUM_DIRECTIONS) -> np.ndarray:
    """Mean of the first ridge canonical correlations between languages, (L, L), ones on the diagonal.

    Observations are rows, variables dimensions; the ridge added to a covariance C is 0.1 tr(C) / d. The i-th row
    of one language is taken to belong to the i-th of the other, and what one has more is left out. That holds only
    if both were collected on translations of each other in the same order; else these numbers are chance. With
    fewer rows than dimensions the chance is close to 1, so they tell languages apart poorly: prefer the angles.

    Whitening is done in the space of rows, where each language is a matrix of rank min(N, d), so that no
    (d, d) covariance is made.
    """
    count = min(len(unit) for unit in rows)
    whitened = [_whitened(unit[:count]) for unit in rows]
    correlations = np.eye(len(rows))
    for one, other in zip(*np.triu_indices(len(rows), 1), strict=True):
        values = np.linalg.svd(whitened[one].T @ whitened[other], compute_uv=False)[:num_directions]
        correlations[one, other] = correlations[other, one] = values.mean() if len(values) else 0.0
    return correlations


def _whitened(unit: np.ndarray) -> np.ndarray:
    """Orthonormal row-space coordinates scaled by s / sqrt(s^2 + ridge): (N, rank)."""
    left, values, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    variances = values**2 / len(unit)
    ridge = RIDGE * variances.sum() / unit.shape[1]
    total = variances + ridge
    return left * np.sqrt(np.divide(variances, total, out=np.zeros_like(total), where=total > 0))

"""Analysis A of arXiv 2603.25836: which languages pull together, from the cosines of their mean gradients."""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Clustering = Literal["ward", "kmeans"]
Partition = tuple[tuple[int, ...], ...]
"""Groups of indexes, each sorted, the groups by their first index."""

FEW = 4
"""Up to so many languages make two groups; a silhouette over fewer means little."""

NUM_STARTS = 10
_SAME = 1e-6
_MAX_SEED = 2**32


@dataclass(frozen=True, kw_only=True)
class Groups:
    """How languages group in a module.

    Attributes:
        partition: the groups; a single one when the languages do not differ or the veto joined all.
        before_veto: the groups as clustered.
        silhouette: of the groups before the veto, None where it is not defined.
        silhouettes: of every number of groups that was tried.
        spread: mean distance between languages of different groups, before the veto.
    """

    partition: Partition
    before_veto: Partition
    silhouette: float | None
    silhouettes: dict[int, float] = field(default_factory=dict)
    spread: float

    @property
    def separation(self) -> float:
        """Silhouette times spread; the spread alone where there is no silhouette, as with two languages."""
        return (1.0 if self.silhouette is None else self.silhouette) * self.spread


def find_groups(
    means: np.ndarray,
    similarity: np.ndarray,
    *,
    num_groups: int | None = None,
    clustering: Clustering = "ward",
    veto: float | None = None,
    seed: int = 0,
) -> Groups:
    """Group languages.

    Args:
        means: (L, d) mean gradients, at least two.
        similarity: (L, L) their cosines S; the distance is 1 - S.
        num_groups: K; None takes 2 for up to four languages, else what has the best silhouette of 2 to L - 1.
        clustering: Ward linkage on the distances, or k-means on the means.
        veto: groups whose mean similarity is above are merged, the most similar ones first; None merges none.
        seed: of k-means.

    Languages that do not differ at all (every distance below 1e-6) are one group, whatever K.
    """
    count = len(means)
    distances = 1 - similarity
    if distances.max() < _SAME:
        whole = (tuple(range(count)),)
        return Groups(partition=whole, before_veto=whole, silhouette=None, spread=0.0)
    tried = [num_groups] if num_groups else [2] if count <= FEW else range(2, count)
    found = {k: cluster(means, distances, k, clustering, seed) for k in tried}
    scores = {k: silhouette(distances, partition) for k, partition in found.items()}
    best = max(found, key=lambda k: (-np.inf if scores[k] is None else round(scores[k], 9), -k))  # type: ignore[arg-type]
    return Groups(
        partition=merge_alike(found[best], similarity, veto),
        before_veto=found[best],
        silhouette=scores[best],
        silhouettes={k: score for k, score in scores.items() if score is not None},
        spread=spread(distances, found[best]),
    )


def cluster(
    means: np.ndarray, distances: np.ndarray, num_groups: int, clustering: Clustering, seed: int
) -> Partition:
    """K groups by Ward linkage on the distances (L, L) or k-means on the means (L, d)."""
    if clustering == "ward":
        from scipy.cluster.hierarchy import cut_tree

        return _partition(cut_tree(ward_tree(distances), n_clusters=num_groups).ravel())
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer different means than groups: the groups say so themselves
        kmeans = KMeans(n_clusters=num_groups, n_init=NUM_STARTS, random_state=seed % _MAX_SEED)
        return _partition(kmeans.fit_predict(means))


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
    """The groups without pairs whose mean similarity is above the veto: the most similar are joined first."""
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
    """Adjusted Rand index: 1 for the same groups, about 0 for unrelated ones."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(labels(one), labels(other)))


def labels(partition: Partition) -> np.ndarray:
    """Group index of each language: (L,)."""
    found = np.empty(sum(map(len, partition)), dtype=int)
    for index, group in enumerate(partition):
        found[list(group)] = index
    return found


def _partition(labels: np.ndarray) -> Partition:
    return _sorted([np.flatnonzero(labels == label).tolist() for label in np.unique(labels)])


def _sorted(groups: Sequence[Sequence[int]]) -> Partition:
    return tuple(sorted(tuple(sorted(group)) for group in groups))

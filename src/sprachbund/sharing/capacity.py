"""Analysis B of arXiv 2603.25836: how much of a module stays shared, and which module to split."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from sprachbund.models.sharing_plan import Evidence

THRESHOLDS = (0.05, 0.15)
RATIOS = (0.75, 0.5, 0.25)
ChooseBy = Literal["purity", "separation"]


def self_and_cross(mean_cosines: np.ndarray) -> tuple[float, float]:
    """S_self and S_cross: means of s_lk (L, L) on the diagonal and beside it."""
    beside = ~np.eye(len(mean_cosines), dtype=bool)
    return float(np.diag(mean_cosines).mean()), float(mean_cosines[beside].mean())


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


def shared_ratio(
    delta: float, thresholds: Sequence[float] = THRESHOLDS, ratios: Sequence[float] = RATIOS
) -> float:
    """rho for a conflict delta: the first ratio below the first threshold, the last one from the last on."""
    return ratios[int(np.searchsorted(thresholds, delta, side="right"))]


def ranked(modules: Mapping[str, Evidence], choose_by: ChooseBy) -> list[str]:
    """Modules, the one to split first in front; of equals the one named first.

    "purity", as published: lowest mean purity among those whose self similarity is above the median; the others
    follow. A module in which all languages simply agree has a low purity too, hence "separation": the highest.
    """
    if choose_by == "separation":
        return sorted(modules, key=lambda name: -modules[name].separation)
    median = median_self_similarity(modules)
    return sorted(modules, key=lambda name: (modules[name].self_similarity <= median, modules[name].purity))


def median_self_similarity(modules: Mapping[str, Evidence]) -> float:
    """Over all modules; the published choice looks only at those above."""
    return float(np.median([evidence.self_similarity for evidence in modules.values()]))

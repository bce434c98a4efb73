"""Analysis C of arXiv 2603.25836: where the gradients' energy lies, and how far languages' subspaces turn away."""

import numpy as np

from sprachbund.sharing.similarity import Rows

MAX_COMPONENTS = 30
NUM_ENERGY_COMPONENTS = 10
NUM_DIRECTIONS = 10
RIDGE = 0.1


def energies(rows: Rows) -> np.ndarray:
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


def principal_angles_deg(rows: Rows, num_directions: int = NUM_DIRECTIONS) -> np.ndarray:
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


def canonical_correlations(rows: Rows, num_directions: int = NUM_DIRECTIONS) -> np.ndarray:
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
    found = np.eye(len(rows))
    for one, other in zip(*np.triu_indices(len(rows), 1), strict=True):
        values = np.linalg.svd(whitened[one].T @ whitened[other], compute_uv=False)[:num_directions]
        found[one, other] = found[other, one] = values.mean() if len(values) else 0.0
    return found


def _whitened(unit: np.ndarray) -> np.ndarray:
    """Orthonormal row-space coordinates scaled by s / sqrt(s^2 + ridge): (N, rank)."""
    left, values, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    variances = values**2 / len(unit)
    ridge = RIDGE * variances.sum() / unit.shape[1]
    total = variances + ridge
    return left * np.sqrt(np.divide(variances, total, out=np.zeros_like(total), where=total > 0))

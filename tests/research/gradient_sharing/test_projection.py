"""Projections: linear, remade alike in any pieces, and as far off the exact cosines as they say."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.research.gradient_sharing import gradients as projection
from sprachbund.research.gradient_sharing.gradients import (
    CountSketch,
    Gaussian,
    cosine_error,
    make_projection,
)

KINDS = ("count", "gaussian")


def _projected(projection, name, vectors):
    """Sketches (N, d) of an array (N, P)."""
    return projection.project(name, list(torch.from_numpy(vectors)))


def _matrix(kind, num_coordinates=300, dimensions=16, name="w"):
    return _projected(make_projection(kind, dimensions, 0), name, np.eye(num_coordinates, dtype=np.float32))


def test_a_count_sketch_sends_each_coordinate_to_one_dimension_with_a_sign():
    matrix = _matrix("count", 4000)
    assert (np.abs(matrix).sum(1) == 1).all()
    assert (np.count_nonzero(matrix, axis=1) == 1).all()
    # 16 x 2 places share 4000 coordinates evenly: chi-square over 31 degrees of freedom stays below 61 (1 in 1000).
    counts = np.concatenate([(matrix > 0).sum(0), (matrix < 0).sum(0)])
    assert ((counts - 125) ** 2 / 125).sum() < 61


def test_a_gaussian_matrix_has_independent_normal_entries():
    matrix = _matrix("gaussian", 2000)
    assert matrix.std() == pytest.approx(1 / 4, rel=0.02)
    correlations = np.corrcoef(matrix.T) - np.eye(16)
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_it_is_linear(kind, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    size, a, b = data.draw(st.integers(1, 400)), data.draw(st.floats(-3, 3)), data.draw(st.floats(-3, 3))
    x, y = rng.normal(size=(2, 1, size)).astype(np.float32)
    project = partial(_projected, make_projection(kind, 16, 1))
    mixed = project("w", (a * x + b * y).astype(np.float32))
    np.testing.assert_allclose(mixed, a * project("w", x) + b * project("w", y), atol=1e-4)


@pytest.mark.parametrize(("kind", "sums"), [("count", np.float64), ("gaussian", np.float32)])
def test_pieces_and_company_do_not_matter(kind, sums, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(5, 1001)).astype(np.float32)
    maker = make_projection(kind, 16, 0)
    whole = _projected(maker, "w", vectors)
    # Processors add up in orders of their own. A sum of n products in any order is off by at most n u / (1 - n u) of
    # the sum of their sizes, where u is half of eps (Higham 2002, 3.1); the difference of two is off by twice that.
    n_eps = 1001 * np.finfo(sums).eps
    bound = n_eps / (1 - n_eps) * (np.abs(vectors) @ np.abs(_matrix(kind, 1001)))
    assert bound.max() < 0.003 * np.abs(whole).max()
    monkeypatch.setattr(projection, "_WORDS", 64)
    assert (np.abs(_projected(maker, "w", vectors) - whole) <= bound).all()
    assert (np.abs(_projected(maker, "w", vectors[3:4]) - whole[3:4]) <= bound[3:4]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_seeds_have_maps_of_their_own(kind):
    first, other = _matrix(kind), _matrix(kind, name="v")
    assert not np.allclose(first, other)
    assert not np.allclose(
        first, _projected(make_projection(kind, 16, 1), "w", np.eye(300, dtype=np.float32))
    )
    np.testing.assert_array_equal(first, _matrix(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cosine", [0.0, 0.4, 0.8])
def test_cosines_spread_about_the_exact_one_as_stated(kind, cosine):
    rng = np.random.default_rng(5)
    x, y = np.linalg.qr(rng.normal(size=(1000, 2)))[0].T
    pair = np.stack([x, cosine * x + np.sqrt(1 - cosine**2) * y]).astype(np.float32)
    result = []
    for seed in range(600):
        a, b = _projected(make_projection(kind, 64, seed), "w", pair)
        result.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    error = np.array(result) - cosine
    # The spread of 600 draws is known to 3%; the formula itself is of first order in 1/sqrt(64).
    assert error.std() == pytest.approx(cosine_error(64, cosine), rel=0.12)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(600) + 1 / 64


def test_a_heavy_coordinate_does_not_hurt_a_count_sketch():
    """Sum x_i^2 y_i^2 lowers the variance of inner products: what two vectors share in one place is kept exactly."""
    rng = np.random.default_rng(0)
    heavy = rng.normal(size=(2, 500)).astype(np.float32) / 100
    heavy[:, 7] = 1
    a, b = (_projected(CountSketch(dimensions=32, seed=s), "w", heavy) for s in (0, 1))
    assert a[0] @ a[1] == pytest.approx(float(heavy[0] @ heavy[1]), rel=0.1)
    assert b[0] @ b[1] == pytest.approx(float(heavy[0] @ heavy[1]), rel=0.1)


def test_gaussian_vectors_wait_for_each_other_as_memory_allows():
    waiting = Gaussian(dimensions=8, seed=0, memory_bytes=4000)
    assert waiting.block(100) == 10
    assert waiting.block(10_000) == 1
    assert CountSketch(dimensions=8, seed=0).block(100) == 1

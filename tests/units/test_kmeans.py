import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score, pairwise_distances_argmin

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.directory import nearest
from sprachbund.models.tokens.unit_options import KMeansOptions
from sprachbund.units.fit import explained, fit_kmeans

OPTIONS = KMeansOptions(clusters=7, batch_size=128, n_init=5)


def planted(count: int = 700, clusters: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    centres = 5 * rng.standard_normal((clusters, 6))
    truth = rng.integers(0, clusters, count)
    return (centres[truth] + 0.3 * rng.standard_normal((count, 6))).astype(np.float32), truth


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 20))
def test_the_nearest_cluster_is_that_of_brute_force(seed: int, num_frames: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.standard_normal((num_frames, 5)).astype(np.float32)
    centroids = rng.standard_normal((clusters, 5)).astype(np.float32)
    distances = np.square(frames[:, None].astype(np.float64) - centroids[None]).sum(-1)
    result = nearest(frames, centroids)
    assert result.tolist() == distances.argmin(1).tolist()
    assert result.tolist() == pairwise_distances_argmin(frames, centroids).tolist()


def test_equal_centroids_and_no_frames() -> None:
    assert nearest(np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)).tolist() == [0, 0, 0]
    assert nearest(np.zeros((0, 2), np.float32), np.ones((4, 2), np.float32)).tolist() == []


def test_planted_clusters_are_found() -> None:
    frames, truth = planted()
    centroids, _ = fit_kmeans(frames, OPTIONS)
    labels = nearest(frames, centroids)
    assert adjusted_rand_score(truth, labels) == 1.0
    assert centroids.dtype == np.float32
    inside = np.square(frames - centroids[labels]).sum()
    assert explained(frames, centroids, labels) == pytest.approx(
        1 - inside / (len(frames) * frames.var(0).sum()), rel=1e-5
    )


def test_it_is_scikit_learns_whether_frames_are_in_memory_or_not(tmp_path: Path) -> None:
    frames, _ = planted()
    np.save(tmp_path / "frames.npy", frames)
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    centroids, num_steps = fit_kmeans(mapped, OPTIONS)
    theirs = MiniBatchKMeans(7, batch_size=128, n_init=5, max_no_improvement=100, random_state=0).fit(frames)
    assert np.array_equal(centroids, theirs.cluster_centers_)
    assert num_steps == theirs.n_steps_
    assert np.array_equal(nearest(frames, centroids), theirs.labels_)


def test_too_few_frames() -> None:
    with pytest.raises(SprachbundError, match="5 frames cannot make 7 clusters"):
        fit_kmeans(np.zeros((5, 2), np.float32), OPTIONS)


def test_frames_on_disk_take_no_memory(tmp_path: Path) -> None:
    """Memory is that of a batch; the frames are many times as much."""
    count, width = 120_000, 64
    shape, options = (
        (count, width),
        KMeansOptions(clusters=10, batch_size=500, n_init=2, max_no_improvement=5),
    )
    frames = np.lib.format.open_memmap(tmp_path / "f.npy", mode="w+", dtype=np.float32, shape=shape)
    rng = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        frames[start : start + 10_000] = rng.standard_normal((10_000, width), np.float32)
    frames.flush()
    mapped = np.load(tmp_path / "f.npy", mmap_mode="r")
    tracemalloc.start()
    fit_kmeans(mapped, options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mapped.nbytes / 8

"""k-means over hours of frames in constant memory: scikit-learn draws batches from a file that stays on disk.

Shapes: N frames, K clusters, D width.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.unit_options import KMeansOptions

_CHUNK = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """What k-means found.

    Attributes:
        centroids: (K, D) float32.
        num_steps: batches that it took.
    """

    centroids: np.ndarray
    num_steps: int


def fit_kmeans(frames: np.ndarray, options: KMeansOptions, *, threads: int = 1) -> Clustering:
    """Cluster frames (N, D), float32; an array that is mapped from a file is never held in memory.

    The order in which threads add up decides the last bits, so that equal bits need one thread.

    Args:
        frames: (N, D), float32.
        options: clusters, batches and stopping rule.
        threads: threads to compute with.

    Raises:
        SprachbundError: fewer frames than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    if len(frames) < options.clusters:
        raise SprachbundError(
            f"{len(frames)} frames cannot make {options.clusters} clusters; give a larger --share or fewer --clusters"
        )
    model = MiniBatchKMeans(
        n_clusters=options.clusters,
        init="k-means++",
        n_init=options.n_init,
        batch_size=options.batch_size,
        max_no_improvement=options.max_no_improvement,
        max_iter=options.max_iter,
        random_state=options.seed,
        compute_labels=False,
    )
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of equal frames, which silence has
        model.fit(frames)
    return Clustering(centroids=model.cluster_centers_.astype(np.float32), num_steps=int(model.n_steps_))


def explained(frames: np.ndarray, centroids: np.ndarray, labels: np.ndarray) -> float:
    """Share of the variance of frames (N, D) that their clusters explain: 1 would be no error.

    Args:
        frames: (N, D).
        centroids: (K, D).
        labels: cluster of every frame (N,).
    """
    mean = np.zeros(frames.shape[1])
    for start in range(0, len(frames), _CHUNK):
        mean += frames[start : start + _CHUNK].sum(0, dtype=np.float64) / len(frames)
    inside = total = 0.0
    for start in range(0, len(frames), _CHUNK):
        chunk = frames[start : start + _CHUNK]
        inside += float(np.square(chunk - centroids[labels[start : start + _CHUNK]]).sum(dtype=np.float64))
        total += float(np.square(chunk - mean).sum(dtype=np.float64))
    return 1 - inside / total if total else 1.0

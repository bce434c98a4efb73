"""A picture of units: which letters or phones they stand for, how often each is used, how long each lasts."""

from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.units.measures import Measured
from sprachbund.util.files import atomic_path

_INK, _MUTED, _ACCENT = "#1c2b33", "#6c7a80", "#1f6f8b"
_RAMP = ("#ffffff", "#cfe0dc", "#8fc1c9", "#4391a3", "#1f6f8b", "#12455c")
_MOST_LABELS = 48
_MOST_RUN = 12
_DOTS_PER_INCH = 150


def draw(measured: Measured, path: Path, title: str) -> None:
    """Write a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, height_ratios=[2.4, 1])
    _heat_map(figure.add_subplot(grid[0, :]), measured)
    _usage(figure.add_subplot(grid[1, 0]), measured)
    _runs(figure.add_subplot(grid[1, 1]), measured)
    figure.suptitle(title, color=_INK, fontsize=12)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=_DOTS_PER_INCH, format=path.suffix[1:].lower())


def ordered(counts: np.ndarray, most_labels: int = _MOST_LABELS) -> tuple[np.ndarray, np.ndarray]:
    """Labels by how many frames they have, the most frequent ones, and used clusters by their most likely label."""
    labels = np.argsort(-counts.sum(0), kind="stable")[:most_labels]
    share = _shares(counts[:, labels])
    used = np.flatnonzero(share.sum(1) > 0)
    best = share[used].argmax(1)
    return labels, used[np.lexsort((-share[used, best], best))]


def _shares(counts: np.ndarray) -> np.ndarray:
    """Probability of each label, given the cluster (K, Y)."""
    return counts / np.maximum(1, counts.sum(1, keepdims=True))


def _heat_map(axes: Any, measured: Measured) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    labels, clusters = ordered(measured.counts)
    shares = _shares(measured.counts)[np.ix_(clusters, labels)].T
    colours = LinearSegmentedColormap.from_list("units", _RAMP)
    image = axes.imshow(
        shares,
        aspect="auto",
        cmap=colours,
        vmin=0,
        vmax=max(0.01, shares.max(initial=0)),
        interpolation="nearest",
    )
    axes.set_yticks(range(len(labels)), [measured.labels[i] for i in labels], fontsize=7)
    left = len(measured.labels) - len(labels)
    more = f"; the {left} rarest are not shown" if left else ""
    axes.set_xlabel(f"{len(clusters)} units, by their most likely label{more}", color=_INK)
    axes.set_title(f"share of a unit's frames: {measured.against}", fontsize=10, color=_INK)
    _plain(axes)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.025, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7, colors=_MUTED)


def _usage(axes: Any, measured: Measured) -> None:
    shares = np.sort(measured.frames)[::-1] / max(1, measured.frames.sum())
    axes.plot(np.arange(1, len(shares) + 1), shares * 100, color=_ACCENT)
    axes.axhline(100 / len(shares), color=_MUTED, linewidth=0.8, linestyle=":")
    axes.text(len(shares), 100 / len(shares), "equal", ha="right", va="bottom", color=_MUTED, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("units, the most frequent first", color=_INK)
    axes.set_ylabel("% of frames", color=_INK)
    _plain(axes)


def _runs(axes: Any, measured: Measured) -> None:
    runs = measured.runs[:_MOST_RUN].copy()
    if len(measured.runs) > _MOST_RUN:
        runs[-1] += measured.runs[_MOST_RUN:].sum()
    names = [str(n) for n in range(1, len(runs) + 1)]
    if len(measured.runs) > _MOST_RUN:
        names[-1] += "+"
    axes.bar(names, 100 * runs / max(1, runs.sum()), color=_ACCENT)
    axes.set_xlabel("frames that a unit lasts", color=_INK)
    axes.set_ylabel("% of units", color=_INK)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelsize=7, colors=_MUTED)

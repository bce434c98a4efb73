"""A picture of a router over time: groups by frames, what was heard where, and the words under it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.sharing.drawing import ACCENT, INK, MUTED, new_figure
from sprachbund.util.files import atomic_path

_RAMP = ("#f4f7f8", "#cfe3e6", "#8fc1c9", "#4391a3", "#1f6f8b", "#12455c")
_COLOURS = (ACCENT, "#c4703c", "#6a8f3f", "#8a5ea8", "#b03a52", "#4f6d8f")
_DOTS_PER_INCH = 150
_WIDTH = 10.0


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A stretch of time, its language, and the words in it."""

    start_s: float
    end_s: float
    language: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class RouterPicture:
    """What is drawn.

    Attributes:
        mass: (P, G) of each group at each speech token.
        groups: their names.
        frame_s: seconds of a token.
        duration_s: of the speech.
        heard: spans that the model makes of it.
        told: what is known to be said, or what the model wrote.
        title: over it.
    """

    mass: np.ndarray
    groups: Sequence[str]
    frame_s: float
    duration_s: float
    heard: Sequence[Labelled]
    told: Sequence[Labelled]
    title: str = ""


def draw_router(picture: RouterPicture, path: Path) -> None:
    """Write a picture, in the format that the name ends with."""
    figure = new_figure(_WIDTH, 1.9 + 0.42 * len(picture.groups))
    rows = figure.subplots(3, 1, sharex=True, height_ratios=[0.42 * len(picture.groups), 0.35, 0.35])
    figure.set_facecolor("white")
    _mass(rows[0], picture)
    colours = dict(
        zip(dict.fromkeys([*picture.groups, *(t.language for t in picture.told)]), _endless(), strict=False)
    )
    _strip(rows[1], picture.heard, "heard", colours)
    _strip(rows[2], picture.told, "said", colours)
    rows[2].set_xlabel("seconds", color=MUTED)
    rows[2].set_xlim(0, picture.duration_s)
    figure.suptitle(picture.title, color=INK, fontsize=11)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=_DOTS_PER_INCH, format=path.suffix[1:].lower())


def _endless() -> Sequence[str]:
    return _COLOURS * 20


def _mass(axes: Any, picture: RouterPicture) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("router", _RAMP)
    end_s = len(picture.mass) * picture.frame_s
    image = axes.imshow(
        picture.mass.T,
        aspect="auto",
        cmap=colours,
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(0, end_s, len(picture.groups) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(picture.groups)), picture.groups)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for span in picture.told[1:]:
        axes.axvline(span.start_s, color=INK, linewidth=0.8, linestyle=":")
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7, colors=MUTED)


def _strip(axes: Any, spans: Sequence[Labelled], name: str, colours: dict[str, str]) -> None:
    """Bars in the language's colour, with its tag inside and the words below."""
    for span in spans:
        axes.broken_barh(
            [(span.start_s, span.end_s - span.start_s)], (0.5, 0.5), color=colours.get(span.language, MUTED)
        )
        middle = (span.start_s + span.end_s) / 2
        axes.text(
            middle, 0.75, span.language, ha="center", va="center", color="white", fontsize=7, clip_on=True
        )
        axes.text(middle, 0.25, span.text, ha="center", va="center", color=INK, fontsize=8, clip_on=False)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.75], [name])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)

"""Drawing for all pages of this package: colours, letters, plain axes, and SVG that is the same every time."""

import io
import re
from html import escape
from typing import Any

INK, MUTED, GRID, ACCENT = "#1d2733", "#66727f", "#e4e8ec", "#1f6f8b"


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches, with the package's letters and colours."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "path",  # letters as outlines: the page looks the same without the fonts
        "svg.hashsalt": "sprachbund",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    matplotlib.rcParams.update(style)
    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: Any, grid: str) -> None:
    """No frame but a faint bottom and left, and a faint grid across the axis `grid`, "x" or "y"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(GRID)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.tick_params(length=0)


def as_svg(figure: Any, title: str) -> str:
    """A figure as an SVG element, without what differs from run to run."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)

"""A sharing plan as one HTML page without other files, or as one PNG.

matplotlib draws the similarity heat map, the dendrogram, purity by module and energy shares; a group has the same
colour in all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import ModuleEvidence, SharingPlan
from sprachbund.research.gradient_sharing import report
from sprachbund.research.gradient_sharing.analyses import ward_tree
from sprachbund.util.files import atomic_path, write_text
from sprachbund.util.plotting import ACCENT, INK, MUTED, as_svg, new_figure, plain_axes

# Pictures.

GROUP_COLOURS = ("#1f6f8b", "#c8641b", "#6a4c93", "#3f7d3a", "#b03a5b", "#8a7a1f", "#4a5fc1", "#7d5a44")
_RAMP = ("#f6efe6", "#e9dcc3", "#cfe0dc", "#8fc1c9", "#4391a3", "#1f6f8b", "#12455c")
_MOST_NUMBERS = 14
_MOST_NAMES = 12
_DOTS_PER_INCH = 150
_LEAST_PURITY_RANGE = 0.1


def heat_map(axes: Any, evidence: ModuleEvidence) -> None:
    """Corrected cosines of gradients, languages in the order of the dendrogram, groups framed."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    order = _leaves(evidence)
    values = np.array(evidence.corrected or evidence.similarity)[np.ix_(order, order)]
    low = min(0.0, np.floor(values.min() * 10) / 10)
    colours = LinearSegmentedColormap.from_list("sharing", _RAMP)
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=1)
    if len(order) <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            ink = "white" if value > low + 0.65 * (1 - low) else INK
            text = f"{value:.2f}".replace("0.", ".")
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=_size(len(order)))
    names = [evidence.languages[index] for index in order]
    turned = 90 if len(order) > _MOST_NAMES or max(map(len, names)) > 4 else 0
    axes.set_xticks(range(len(order)), names, rotation=turned)
    axes.set_yticks(range(len(order)), names)
    axes.tick_params(length=0, labelsize=_size(len(order)) + 1)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label in labels:
            label.set_color(_colour(evidence, label.get_text()))
    axes.spines[:].set_visible(False)
    for start, length, colour in _runs(evidence, names):
        corner = (start - 0.5, start - 0.5)
        axes.add_patch(
            Rectangle(corner, length, length, fill=False, edgecolor=colour, linewidth=2.2, clip_on=False)
        )
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=0)


def dendrogram(axes: Any, evidence: ModuleEvidence) -> None:
    """Ward linkage on 1 - cosine: languages that join early, on the left, pull together."""
    from scipy.cluster.hierarchy import dendrogram as draw

    tree = ward_tree(1 - np.array(evidence.corrected or evidence.similarity))
    members = [{index} for index in range(len(evidence.languages))]
    for one, other, *_ in tree:
        members.append(members[int(one)] | members[int(other)])

    def colour(node: int) -> str:
        names = [evidence.languages[index] for index in members[node]]
        together = any(set(names) <= set(group) for group in evidence.groups)
        return _colour(evidence, names[0]) if together else MUTED

    draw(tree, ax=axes, orientation="left", labels=list(evidence.languages), link_color_func=colour)
    axes.invert_xaxis()
    axes.yaxis.tick_left()
    axes.invert_yaxis()  # the first leaf on top, as in the heat map
    axes.tick_params(labelsize=_size(len(evidence.languages)) + 1, length=0)
    axes.tick_params(axis="x", labelsize=8)
    for label in axes.get_yticklabels():
        label.set_color(_colour(evidence, label.get_text()))
    axes.set_xlabel("Ward distance, of 1 − cosine, at which they join")
    plain_axes(axes, "x")


def purity_lines(
    axes: Any,
    modules: Mapping[str, ModuleEvidence],
    chosen: Sequence[str],
    against: Mapping[str, ModuleEvidence],
) -> None:
    """Purity of each language and their mean, module by module; chosen modules marked, the other checkpoint dashed.

    Args:
        axes: matplotlib axes.
        modules: evidence by module.
        chosen: modules that are split.
        against: evidence of the other checkpoint; may be empty.
    """
    names = list(modules)
    languages = modules[names[0]].languages
    positions = np.arange(len(names))
    shades = _shades(len(languages))
    few = len(languages) <= _MOST_NAMES
    for language, shade in zip(languages, shades, strict=True):
        values = [modules[name].purity_by_language.get(language, np.nan) for name in names]
        axes.plot(
            positions,
            values,
            color=shade,
            linewidth=1,
            marker="o",
            markersize=3,
            label=language if few else None,
        )
    mean = [modules[name].purity for name in names]
    axes.plot(positions, mean, color=INK, linewidth=2.4, marker="o", markersize=4, label="mean")
    if against:
        before = [against[name].purity if name in against else np.nan for name in names]
        axes.plot(positions, before, color=INK, linewidth=1.6, linestyle=(0, (4, 2)), label="mean before")
    for number, name in enumerate(chosen):
        index = names.index(name)
        axes.axvspan(index - 0.3, index + 0.3, color="#f3dcc8", zorder=0, label=None if number else "split")
    turned = max(map(len, short_names(names))) * len(names) > 60
    axes.set_xticks(positions, short_names(names), rotation=90 if turned else 0, fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    low, high = axes.get_ylim()
    missing = max(0.0, _LEAST_PURITY_RANGE - (high - low)) / 2  # or noise would look like a difference
    axes.set_ylim(low - missing, high + missing)
    axes.set_ylabel("purity")
    plain_axes(axes, "y")
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.03), borderaxespad=0.3)


def energy_bars(axes: Any, evidence: ModuleEvidence) -> None:
    """Share of each language in the energy of the common subspace, summed by group."""
    tags = [tag for group in evidence.groups for tag in group]
    shares = [100 * evidence.energy_by_language[tag] for tag in tags]
    axes.barh(range(len(tags)), shares, color=[_colour(evidence, tag) for tag in tags], height=0.7)
    for index, share in enumerate(shares):
        axes.text(share + 0.01 * max(shares), index, f"{share:.1f}", va="center", fontsize=7, color=MUTED)
    first = 0
    for group, share in zip(evidence.groups, evidence.energy_shares, strict=True):
        middle = first + (len(group) - 1) / 2
        colour = _colour(evidence, group[0])
        axes.plot(
            [1.17 * max(shares)] * 2, [first - 0.33, first + len(group) - 0.67], color=colour, linewidth=2
        )
        text = f"group {100 * share:.1f}%"
        axes.text(1.2 * max(shares), middle, text, va="center", fontsize=8, color=colour)
        first += len(group)
    axes.set_yticks(range(len(tags)), tags)
    for label, tag in zip(axes.get_yticklabels(), tags, strict=True):
        label.set_color(_colour(evidence, tag))
    axes.set_ylim(len(tags) - 0.4, -0.6)
    axes.set_xlim(0, 1.5 * max(shares))
    axes.set_xlabel("% of the energy in the common subspace")
    axes.tick_params(labelsize=_size(len(tags)) + 1, length=0)
    plain_axes(axes, "x")


def overview(plan: SharingPlan, module: str, against: Mapping[str, ModuleEvidence], path: Path) -> None:
    """One PNG with all four pictures of a module.

    Args:
        plan: the plan.
        module: module in focus.
        against: evidence of the other checkpoint; may be empty.
        path: file of the PNG.
    """
    evidence = plan.modules[module]
    chosen = _chosen(plan)
    tall = 1 + 0.035 * max(0, len(evidence.languages) - 6)
    figure = new_figure(12, 8.4 * tall)
    figure.patch.set_facecolor("white")
    panels = figure.subplots(2, 2, width_ratios=(1.05, 1))
    heat_map(panels[0, 0], evidence)
    dendrogram(panels[0, 1], evidence)
    purity_lines(panels[1, 0], plan.modules, chosen, against)
    energy_bars(panels[1, 1], evidence)
    titles = ("Corrected cosines of gradients", "Who joins whom", "Purity by module", "Energy shares")
    for axes, title in zip(panels.ravel(), titles, strict=True):
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=10)
    figure.suptitle(module, x=0.01, ha="left", fontsize=13, color=ACCENT)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=_DOTS_PER_INCH)


def svg(draw: Any, title: str, width: float, height: float) -> str:
    """Return the drawing of `draw(axes)` as an SVG element, the same every time.

    Args:
        draw: called with the axes.
        title: accessible title.
        width: inches.
        height: inches.
    """
    figure = new_figure(width, height)
    figure.patch.set_alpha(0.0)
    draw(figure.subplots())
    return as_svg(figure, title)


def short_names(names: Sequence[str]) -> list[str]:
    """Module names without the parts that all of them begin or end with."""
    parts = [name.split(".") for name in names]
    if len(names) == 1:
        return list(names)
    start = _common(parts)
    end = _common([part[start:][::-1] for part in parts])
    return [".".join(part[start : len(part) - end]) for part in parts]


def _common(parts: Sequence[Sequence[str]]) -> int:
    """Number of leading parts that all names share; each name keeps at least its last part."""
    columns = list(zip(*(part[:-1] for part in parts), strict=False))
    return next((index for index, column in enumerate(columns) if len(set(column)) > 1), len(columns))


def _leaves(evidence: ModuleEvidence) -> list[int]:
    from scipy.cluster.hierarchy import leaves_list

    return [
        int(leaf) for leaf in leaves_list(ward_tree(1 - np.array(evidence.corrected or evidence.similarity)))
    ]


def _runs(evidence: ModuleEvidence, names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Start, length and colour of languages of one group that stand together."""
    runs: list[tuple[int, int, str]] = []
    groups = [next(g for g, group in enumerate(evidence.groups) if name in group) for name in names]
    for index, group in enumerate(groups):
        if index and groups[index - 1] == group:
            start, length, colour = runs[-1]
            runs[-1] = (start, length + 1, colour)
        else:
            runs.append((index, 1, _colour(evidence, names[index])))
    return runs


def _chosen(plan: SharingPlan) -> list[str]:
    """Modules to split that were measured; a plan made by hand may name others."""
    return [split.module for split in plan.splits if split.module in plan.modules]


def _colour(evidence: ModuleEvidence, language: str) -> str:
    index = next(i for i, group in enumerate(evidence.groups) if language in group)
    return GROUP_COLOURS[index % len(GROUP_COLOURS)]


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    name, size = ("tab10", 10) if count <= 10 else ("tab20", 20)
    return [colormaps[name](index % size) for index in range(count)]


def _size(count: int) -> float:
    return 9 if count <= 8 else 7.5 if count <= _MOST_NUMBERS else 6


ENDINGS = (".html", ".png")

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f8f9; color: #1d2733; font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 17px; margin: 0 0 12px; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid #e4e8ec; border-radius: 10px; padding: 20px 22px; margin-top: 18px; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 18px; }
figure { margin: 0 0 12px; overflow-x: auto; } figure svg { max-width: 100%; height: auto; }
figcaption, .muted { font-size: 13px; color: #66727f; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: 4px 14px 4px 0; text-align: left; border-bottom: 1px solid #e4e8ec; white-space: pre; }
th { color: #66727f; font-weight: 500; } p { margin: 0 0 6px; } li { margin-bottom: 4px; }
dl { margin: 20px 0; } dt { color: #66727f; font-size: 13px; } dd { margin: 0 0 8px; }
"""


def check_ending(path: Path) -> None:
    """Check that a report can be written there, before any work. Raises SprachbundError when not."""
    if path.suffix.lower() not in ENDINGS:
        raise SprachbundError(f"{path} does not end in {' or '.join(ENDINGS)}; name the report so")


def write_report(plan: SharingPlan, path: Path, against: SharingPlan | None = None) -> None:
    """Write the page or the picture, by the path's ending; it appears whole or not at all.

    Args:
        plan: plan with its evidence.
        path: ends in .html, for a page with every split module, or .png, for the first of them.
        against: a plan from another checkpoint's gradients, for what changed since.

    Raises:
        SprachbundError: for another ending, or a plan without evidence.
    """
    check_ending(path)
    if not plan.modules:
        raise SprachbundError(
            "the plan holds no evidence to draw; make one with `share plan`, or leave --out away to read it"
        )
    focus = _chosen(plan) or [max(plan.modules, key=lambda name: plan.modules[name].clear_conflict)]
    if path.suffix.lower() == ".png":
        overview(plan, focus[0], against.modules if against else {}, path)
    else:
        write_text(path, build_page(plan, focus, against))


def build_page(plan: SharingPlan, focus: Iterable[str], against: SharingPlan | None = None) -> str:
    """The page as HTML, with pictures of the modules in focus.

    Args:
        plan: the plan.
        focus: names of modules.
        against: plan of another checkpoint to compare with.
    """
    sections = [
        _section("Who fights, and where", _list(line.strip() for line in report.fight_lines(plan)[1:]))
    ]
    if against is not None:
        sections.append(_section("Since the other checkpoint", _written(report.change_blocks(plan, against))))
    sections += [_module(plan, name) for name in focus]
    sections += [
        _section("Purity by module", _purity(plan, against)),
        _section("All modules", _written(["* is to be split", report.modules_table(plan)])),
        _section("Notes", _list(plan.notes)) if plan.notes else "",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>What the languages share</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>What the languages share</h1><p class="muted">{escape(report.heading(plan))}</p>'
        f"{''.join(sections)}</main></body></html>\n"
    )


def _module(plan: SharingPlan, name: str) -> str:
    evidence = plan.modules[name]
    side = 1.2 + 0.4 * max(4, len(evidence.languages))
    pictures = (
        (
            "corrected cosines of gradients, languages as the dendrogram orders them",
            heat_map,
            side + 0.9,
            side,
        ),
        ("who joins whom: Ward linkage", dendrogram, side + 0.9, side),
        ("energy in the common subspace", energy_bars, side + 0.9, side),
    )
    drawn = "".join(
        _figure(svg(partial(draw, evidence=evidence), f"{title} in {name}", width, height), title)
        for title, draw, width, height in pictures
    )
    split = next((split for split in plan.splits if split.module == name), None)
    facts = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(fact)}</dd>"
        for word, fact in (report.split_facts(split) if split else [("left", "whole")])
    )
    return _section(name, f'<div class="side">{drawn}<dl>{facts}</dl></div>')


def _purity(plan: SharingPlan, against: SharingPlan | None) -> str:
    chosen = _chosen(plan)
    before: dict[str, ModuleEvidence] = against.modules if against else {}
    draw = partial(purity_lines, modules=plan.modules, chosen=chosen, against=before)
    title = "1/2 is as near to the others as to itself; 1 has nothing in common with them"
    return _figure(svg(draw, "purity by module", 9.4, 3.4), title)


def _figure(svg: str, caption: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _written(blocks: Iterable[report.Block]) -> str:
    return "".join(
        _table(block) if isinstance(block, report.ReportTable) else f"<p>{escape(block)}</p>"
        for block in blocks
    )


def _table(table: report.ReportTable) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f"<table><tr>{head}</tr>{rows}</table>"

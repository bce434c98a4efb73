"""A sharing plan to look at: one HTML page that needs nothing else, or one PNG."""

from collections.abc import Iterable
from functools import partial
from html import escape
from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import Evidence, SharingPlan
from sprachbund.sharing import figures, report
from sprachbund.util.files import write_text

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
    """See that a report can be written there, before any work. Raises SprachbundError when not."""
    if path.suffix.lower() not in ENDINGS:
        raise SprachbundError(f"{path} does not end in {' or '.join(ENDINGS)}; name the report so")


def write_report(plan: SharingPlan, path: Path, against: SharingPlan | None = None) -> None:
    """Write the page or the picture, by the path's ending; it appears whole or not at all.

    Args:
        plan: with its evidence.
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
    focus = [split.module for split in plan.splits if split.module in plan.modules]
    focus = focus or [max(plan.modules, key=lambda name: plan.modules[name].delta)]
    if path.suffix.lower() == ".png":
        figures.overview(plan, focus[0], against.modules if against else {}, path)
    else:
        write_text(path, build_page(plan, focus, against))


def build_page(plan: SharingPlan, focus: Iterable[str], against: SharingPlan | None = None) -> str:
    """The page as HTML, with pictures of the modules in focus."""
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
            "similarity of mean gradients, languages as the dendrogram orders them",
            figures.heat_map,
            side + 0.9,
            side,
        ),
        ("who joins whom: Ward linkage", figures.dendrogram, side + 0.9, side),
        ("energy in the common subspace", figures.energy_bars, side + 0.9, side),
    )
    drawn = "".join(
        _figure(figures.svg(partial(draw, evidence=evidence), f"{title} in {name}", width, height), title)
        for title, draw, width, height in pictures
    )
    split = next((split for split in plan.splits if split.module == name), None)
    facts = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(fact)}</dd>"
        for word, fact in (report.split_facts(split) if split else [("left", "whole")])
    )
    return _section(name, f'<div class="side">{drawn}<dl>{facts}</dl></div>')


def _purity(plan: SharingPlan, against: SharingPlan | None) -> str:
    chosen = [split.module for split in plan.splits if split.module in plan.modules]
    before: dict[str, Evidence] = against.modules if against else {}
    draw = partial(figures.purity_lines, modules=plan.modules, chosen=chosen, against=before)
    title = "1/2 is as near to the others as to itself; 1 has nothing in common with them"
    return _figure(figures.svg(draw, "purity by module", 9.4, 3.4), title)


def _figure(svg: str, caption: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _written(blocks: Iterable[report.Block]) -> str:
    return "".join(
        _table(block) if isinstance(block, report.Table) else f"<p>{escape(block)}</p>" for block in blocks
    )


def _table(table: report.Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f"<table><tr>{head}</tr>{rows}</table>"

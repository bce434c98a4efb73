"""Figures and short tables of docs/results.md, from the result manifests of the five systems.

    python -m scripts.results_page

writes docs/images/results_NAME.png and docs/results/summary_NAME.json, for `sprachbund.evaluation.tables`. Recall and
router of mixed speech have intervals since the comparison of six languages, docs/results/code_switch_six.json, and the
gain of a draft since that on a memory-bound decoder, docs/results/dual_scale_memory_bound.json: the `table.json` of
their runs.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprachbund.util.plotting import ACCENT, GRID, INK, MUTED, new_figure, plain_axes

DOCS = Path(__file__).parents[1] / "docs"
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Line:
    """An effect with its interval.

    Attributes:
        panel: part of the figure that it is in.
        label: what is compared.
        value: the effect.
        low: lower end of its interval.
        high: upper end.
    """

    panel: str
    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What one figure and one table show.

    Attributes:
        effect: name of the effect, with its unit; the column of the table and the axis of the figure.
        lines: of the manifests, in order.
        none: value that means no effect; only effects whose is nought are differences, and have a sign.
        interval: what `low` and `high` are, the name of their column.
        drawn: whether there is a figure.
    """

    effect: str
    lines: Callable[[], Sequence[Line]]
    none: float = 0.0
    interval: str = "95 %"
    drawn: bool = True


def rows_of(manifest: str) -> Sequence[Row]:
    """Rows of a manifest in docs/results."""
    rows: Sequence[Row] = json.loads((DOCS / "results" / f"{manifest}.json").read_text(encoding="utf-8"))[
        "rows"
    ]
    return rows


def rows_if_there(manifest: str) -> Sequence[Row]:
    """Rows of a manifest of a comparison that may not have been run yet."""
    return rows_of(manifest) if (DOCS / "results" / f"{manifest}.json").exists() else ()


def line(panel: str, label: str, text: str) -> Line:
    """From "+0.21 (-0.95 to +1.37)"."""
    value, low, high = map(float, re.findall(r"[-+]?\d+(?:\.\d+)?", text))
    return Line(panel=panel, label=label, value=value, low=low, high=high)


def sharing() -> list[Line]:
    """Arms of both comparisons: all languages, the starved one, those new to the model, and a planted conflict."""
    small = [
        line(panel, row["arm"], row[column])
        for panel, column in (("all languages", "difference all"), ("the starved one", "difference starved"))
        for row in rows_of("sharing_small")
        if row[column]
    ]
    new = [
        line("two new languages", row["arm"], row["difference new"])
        for manifest in ("sharing_low", "sharing_low_lora")
        for row in rows_if_there(manifest)
        if row["difference new"]
    ]
    planted = [
        line("planted control: other digits in es, nl", row["arm"], row["difference all"])
        for row in rows_if_there("sharing_low_control")
        if row["difference all"]
    ]
    return [*small, *new, *planted]


def headroom() -> list[Line]:
    """Weights of its own for each language and for groups, and the control."""
    arms = {
        "alone": "each alone",
        "related": "groups of related languages",
        "by words": "groups with the same words",
    }
    shown = {"all": "", "all without *": ", texts as they were"}
    return [
        line(row["texts"], f"{label}{shown[row['language']]}", row[arm])
        for row in rows_of("headroom_bundled")
        if row["language"] in shown
        for arm, label in arms.items()
        if row[arm]
    ]


def dual_scale() -> list[Line]:
    """Speed over the same model without a draft, with the interval over utterances and seeds."""
    drafts = [row for row in rows_of("dual_scale_small") if row["acceptance"] != ""]
    exact = [row for row in drafts if row["texts changed"].startswith("0 of")]
    return [
        line(panel, row["system"], f"{row['over base']:.2f} {row['over base, 95 %']}")
        for panel, rows in (
            ("the text stays as it is", exact),
            ("draft tokens accepted that are not the best", [row for row in drafts if row not in exact]),
        )
        for row in rows
    ]


def dual_scale_quality() -> list[Line]:
    """chrF over the pruned model: what training without a part, acceptance of worse tokens, and pruning change."""
    return [
        line(panel, row["system"], row["from pruned"])
        for panel, rows in (
            ("three seeds; the teacher has one", rows_of("dual_scale_small")),
            (
                "the model of the package, five seeds; the teacher has one",
                rows_if_there("dual_scale_pruning"),
            ),
        )
        for row in rows
        if row["from pruned"]
    ]


def dual_scale_engines() -> list[Line]:
    """Speed over the same model without a draft, by engine."""
    return [
        line(f"engine {row['engine']}", row["model"], row["gain"])
        for row in rows_of("dual_scale_small_engines")
    ]


def dual_scale_memory_bound() -> list[Line]:
    """Speed over the pruned model in the native engine where passes read much, with the interval of its bootstrap."""
    return [
        # Rounded as its interval is, so that it stays within.
        line("engine native", row["system"], f"{row['over base']:.2f} {row['over base, 95 %']}")
        for row in rows_if_there("dual_scale_memory_bound")
        if row["over base, 95 %"]
    ]


SCARCE = "scarce languages"
COMPARED = (
    "code_switch_six",
    "code_switch_bundled",
    "code_switch_router_in_model",
    "code_switch_router_seeds",
    "code_switch_router_further",
    "code_switch_controls",
)
"""Comparisons of six languages whose scores docs/code_switch.md has in short."""


def code_switch_rows() -> list[tuple[str, Row]]:
    """Rows of both comparisons with what their speech is called; that of six languages once it is there."""
    rows = [(str(row["speech"]), row) for row in rows_of("code_switch_small")]
    return rows + [(f"six languages, {row['speech']}", row) for row in rows_if_there("code_switch_six")]


def code_switch() -> list[Line]:
    """Arms against experts in groups, on mixed and spliced speech, and where a language is scarce; the controls."""
    arms = [
        line(speech, row["arm"], row["chrF difference"])
        for speech, row in code_switch_rows()
        if row["speech"] in ("mixed", "spliced people", SCARCE) and row["chrF difference"]
    ]
    controls = [
        line(f"six languages, control: {row['arm']}", row["speech"], row["chrF difference"])
        for arm in ("wrong texts", "other seeds")
        for row in rows_if_there("code_switch_controls")
        if row["arm"] == arm and row["speech"] in (SCARCE, "other languages")
    ]
    return [*arms, *controls]


def code_switch_spans() -> list[Line]:
    """The same of the words that translate embedded spans."""
    return [
        line(speech, row["arm"], row["span recall % difference"])
        for speech, row in code_switch_rows()
        if row.get("span recall % difference")
    ]


def code_switch_router() -> list[Line]:
    """Embedded spans that went to the experts of their language; at last those of a router with neighbours."""
    name = "router right, embedded %"
    better = [
        (f"six languages, neighbours read, {test}{row['speech']}", row)
        for test, manifest in (
            ("", "code_switch_router_seeds"),
            ("further test, ", "code_switch_router_further"),
        )
        for row in rows_if_there(manifest)
    ]
    return [
        line(speech, row["arm"], f"{row[name]} {row[f'{name} interval']}")
        for speech, row in (*code_switch_rows(), *better)
        if row.get(f"{name} interval")
        and row["speech"] != "mixed"  # whose embedded spans are those of code-switched speech
    ]


def units() -> list[Line]:
    """The effect of text at equal steps, by hours of speech, of wrong pairs, and of test sentences planted in it."""
    shuffled = [
        line("control: wrong pairs", f"{row['hours']} h, shuffled over + external MT", row["chrF difference"])
        for row in rows_of("units_equal_steps_shuffled")
        if row["chrF difference"]
    ]
    control = [
        line(
            f"control: {row['test']}", f"{row['hours']} h, planted over + external MT", row["chrF difference"]
        )
        for row in rows_of("units_equal_steps_control")
        if row["chrF difference"]
    ]
    return [
        *_of_text("2,550 steps", "units_equal_steps_curve"),
        *shuffled,
        *control,
    ]


def units_shorter() -> list[Line]:
    """The same in the shorter training of all heads."""
    return _of_text("600 steps", "units_small_curve")


def _of_text(panel: str, manifest: str) -> list[Line]:
    return [
        line(panel, f"{row['hours']} h, {row['data']}", row["chrF difference"])
        for row in rows_of(manifest)
        if row["chrF difference"]
    ]


def encoder_transfer() -> list[Line]:
    """The gap of both starts by hours, for languages that one of them was trained on and others."""
    return [
        line(row["languages"], f"{row['hours']:g} h", f"{row['gap']} {row['lowest to highest']}")
        for row in rows_of("encoder_transfer_small_groups")
    ]


def encoder_transfer_tuned() -> list[Line]:
    """The gap of both starts in every cell, where each start has a learning rate of its own."""
    return [
        line(row["language"], f"{row['hours']:g} h", f"{row['gap']} {row['95%']}")
        for row in rows_if_there("encoder_transfer_tuned_cells")
    ]


def encoder_transfer_controls() -> list[Line]:
    """The gap of two starts of which one must be better, and of two that were made alike, in every cell."""
    return [
        line(row["control"], f"{row['language']}, {row['hours']:g} h", f"{row['gap']} {row['95%']}")
        for row in rows_if_there("transfer_controls")
        if row["95%"]
    ]


SYSTEMS: Mapping[str, Effects] = {
    "sharing": Effects(effect="chrF over uniform fine-tuning", lines=sharing),
    "headroom": Effects(effect="gain, nats for each token", lines=headroom),
    "dual_scale": Effects(effect="speed over the same model without a draft", lines=dual_scale, none=1.0),
    "dual_scale_quality": Effects(effect="chrF over the pruned model", lines=dual_scale_quality),
    "dual_scale_engines": Effects(
        effect="speed over the same model without a draft",
        lines=dual_scale_engines,
        none=1.0,
        interval="lowest to highest of repeats",
        drawn=False,
    ),
    "dual_scale_memory_bound": Effects(
        effect="speed over the pruned model without a draft", lines=dual_scale_memory_bound, none=1.0
    ),
    "code_switch": Effects(effect="chrF over experts in groups", lines=code_switch),
    "code_switch_spans": Effects(
        effect="recall of embedded spans over experts in groups, points", lines=code_switch_spans
    ),
    "code_switch_router": Effects(
        effect="embedded spans that went to the experts of their language, %",
        lines=code_switch_router,
        none=100 / 6,  # chance
    ),
    "units": Effects(effect="chrF over speech only", lines=units),
    "units_shorter": Effects(effect="chrF over speech only", lines=units_shorter, drawn=False),
    "encoder_transfer": Effects(
        effect="WER of the English start less the multilingual one's",
        lines=encoder_transfer,
        interval="lowest to highest of three seeds",
    ),
    "encoder_transfer_tuned": Effects(
        effect="WER of the English start less the multilingual one's, a learning rate for each",
        lines=encoder_transfer_tuned,
    ),
    "encoder_transfer_controls": Effects(
        effect="WER of the second start less the first's", lines=encoder_transfer_controls
    ),
}


def draw(effects: Effects, lines: Sequence[Line], path: Path) -> None:
    """Effects with their intervals, panel under panel, on one scale.

    Args:
        effects: with the name of the scale.
        lines: of all panels.
        path: of the PNG.
    """
    panels = list(dict.fromkeys(line.panel for line in lines))
    sizes = [sum(line.panel == panel for line in lines) for panel in panels]
    figure = new_figure(7.2, 0.5 + sum(0.21 * size + 0.34 for size in sizes))
    grid = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, height_ratios=[0.21 * size + 0.2 for size in sizes]
    )
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        drawn = [line for line in lines if line.panel == panel][::-1]
        plain_axes(axes, "x")
        axes.axvline(effects.none, color=MUTED, linewidth=1)
        for height, each in enumerate(drawn):
            beyond_chance = each.low > effects.none or each.high < effects.none
            colour = ACCENT if beyond_chance else MUTED
            axes.plot(
                [each.low, each.high], [height, height], color=colour, linewidth=2, solid_capstyle="round"
            )
            axes.plot(each.value, height, "o", color=colour, markersize=5)
        axes.set_yticks(range(len(drawn)), [each.label for each in drawn])
        axes.set_ylim(-0.7, len(drawn) - 0.3)
        axes.set_title(panel, loc="left", fontsize=9, color=INK)
        axes.spines["left"].set_color(GRID)
    grid[-1, 0].set_xlabel(effects.effect)
    figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": None})


def written(rows: Sequence[Row]) -> str:
    """A table that is made here, as JSON."""
    values = {"made by": "scripts/results_page.py", "rows": rows}
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def summary(name: str, lines: Sequence[Line]) -> str:
    """The short table of a system as JSON.

    Args:
        name: in `SYSTEMS`.
        lines: its effects.
    """
    effects, digits = SYSTEMS[name], 3 if name == "headroom" else 2
    form = f"{'' if effects.none else '+'}.{digits}f"
    rows = [
        {
            "where": each.panel,
            "what": each.label,
            effects.effect: f"{each.value:{form}}",
            effects.interval: f"{each.low:{form}} to {each.high:{form}}",
        }
        for each in lines
    ]
    return written(rows)


def code_switch_scores(rows: Sequence[Row]) -> str:
    """The scores of docs/code_switch.md as JSON: quality of every arm, what becomes of embedded spans, the router.

    Args:
        rows: of a comparison of six languages.
    """
    shown = [
        {
            "speech": row["speech"],
            "arm": row["arm"],
            "chrF": round(row["chrF"], 1),
            "chrF difference": row["chrF difference"],
            "BLEU": round(row["BLEU"], 1),
            "WER": round(row["WER"], 1),
            **{
                name: f"{row[name]:.1f} ({row[f'{name} interval']})" if row[name] != "" else ""
                for name in ("span recall %", "router right, embedded %")
                if name in row
            },
            "recall difference": row["span recall % difference"],
        }
        for row in rows
    ]
    return written(shown)


DRAFTS = ("dual_scale_small", "dual_scale_pruning")
"""Comparisons of drafts whose columns docs/dual_scale.md has in two tables."""
_OF_QUALITY = (
    "system",
    "M parameters",
    "seeds",
    "learning rate",  # of comparisons that tried some
    "chrF",
    "from teacher",
    "from pruned",
    "p",
    "Holm's p",
)
_OF_SPEED = (
    "system",
    "acceptance",
    "predicted",
    "prediction off by",
    "tokens/s",
    "over base",
    "over base, 95 %",
    "over teacher",
    "over base at 8",
    "over teacher at 8",
    "texts changed",
)


def dual_scale_tables(rows: Sequence[Row]) -> Mapping[str, str]:
    """Quality of the models and speed of all systems as JSON, by the ends of their names.

    Args:
        rows: of a comparison. An exact draft for the pruned model writes its texts, and is in the second table alone.
    """
    # Without a draft, a model is scored; with an exact one of its own, it writes the same.
    scored = [row for row in rows if row["from pruned"] or row["acceptance"] == ""]
    tables = {"quality": (scored, _OF_QUALITY), "speed": (rows, _OF_SPEED)}
    return {
        name: written([{column: row[column] for column in columns if column in row} for row in shown])
        for name, (shown, columns) in tables.items()
    }


def main() -> None:
    """Write all figures and tables of which there are results."""
    for name in DRAFTS:
        for end, table in dual_scale_tables(rows_of(name)).items():
            (DOCS / "results" / f"{name}_{end}.json").write_text(table, encoding="utf-8")
    for name in COMPARED:
        if rows := rows_if_there(name):
            scores = code_switch_scores(rows)
            (DOCS / "results" / f"{name}_scores.json").write_text(scores, encoding="utf-8")
    for name, effects in SYSTEMS.items():
        lines = effects.lines()
        if not lines:
            continue
        if effects.drawn:
            draw(effects, lines, DOCS / "images" / f"results_{name}.png")
        (DOCS / "results" / f"summary_{name}.json").write_text(summary(name, lines), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The tables of comparisons whose texts are stored, with scores, differences and intervals made of the texts again.

    python -m scripts.tables_of_texts --data corpora/standard

writes the rows of docs/results/NAME.json anew from docs/results/NAME.jsonl.gz, which a recipe wrote as
`texts.jsonl.gz`. Columns that are not made of texts stay as they are. Of the corpus, only the languages of the test
part are read: the file of texts does not have them.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sprachbund.data.manifest import Manifest
from sprachbund.evaluation.compare import System
from sprachbund.evaluation.lines import DecodingEvidence, Line
from sprachbund.research.discrete_units import report as units
from sprachbund.research.discrete_units.data import OTHERS, PLANTED, half_of
from sprachbund.research.gradient_sharing import recipe as sharing
from sprachbund.research.texts import WrittenTexts
from sprachbund.util.files import write_text

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NEW = frozenset({"pt", "nl"})
"""Languages of the low-resource comparison that its model did not know."""

Row = dict[str, Any]
Runs = Mapping[str, Sequence[Sequence[Line]]]
"""Arm to the lines of each of its runs."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The content of a file of texts.

    Attributes:
        runs: arm to the lines of each seed.
        test: number of references, and of different ones.
    """

    runs: Runs
    test: Mapping[str, int]


def read_texts(path: Path, sources: Mapping[str, str], target: str = "en") -> Texts:
    """Read what `sprachbund.research.texts` wrote.

    Args:
        path: path of the file.
        sources: utterance to the language spoken.
        target: language of all texts.
    """
    written = WrittenTexts.read(path)
    references = written.references

    def lines(hypotheses: Mapping[str, str]) -> list[Line]:
        return [
            Line(
                id=name,
                source=sources[name],
                target=target,
                hypothesis=text,
                reference=references[name],
                evidence=DecodingEvidence(),
            )
            for name, text in hypotheses.items()
        ]

    runs = {arm: [lines(texts) for texts in own] for arm, own in written.runs.items()}
    test = {"references": len(references), "different references": len(set(references.values()))}
    return Texts(runs=runs, test=test)


def sharing_rows(runs: Runs, old: Sequence[Row]) -> list[Row]:
    """Rows of the low-resource comparison: all languages, and the new ones.

    Args:
        runs: runs of the arms.
        old: rows as they are.
    """
    languages = frozenset(line.source for own in runs.values() for line in own[0])
    made = sharing.rows_of(runs, {"all": languages, "new": NEW})
    return [filled(row, made[row["arm"]]) for row in old]


def units_rows(runs: Runs, old: Sequence[Row], groups: Sequence[Sequence[str]]) -> list[Row]:
    """Rows of a comparison of units.

    Args:
        runs: runs of the arms.
        old: rows as they are, in the order of the arms.
        groups: arms that are compared, the first of each group with the others.
    """
    made = [row for group in groups for row in units.rows_of([System(name=n, runs=runs[n]) for n in group])]
    return [filled(row, new) for row, new in zip(old, made, strict=True)]


def control_rows(
    runs: Runs, old: Sequence[Row], groups: Sequence[Sequence[str]], seeds: int | None = None
) -> list[Row]:
    """Rows of the positive control of a comparison of units: either half of the test, for each group.

    Args:
        runs: runs of the arms.
        old: rows as they are, in the order of the arms.
        groups: arms that are compared, the first of each group with the others.
        seeds: number of the seeds that count, from the first one; all if None.
    """
    of_half = {
        half: {name: [_of_half(lines, half) for lines in own[:seeds]] for name, own in runs.items()}
        for half in (PLANTED, OTHERS)
    }
    made = [
        row
        for group in groups
        for own in of_half.values()
        for row in units.rows_of([System(name=name, runs=own[name]) for name in group])
    ]
    return [filled(row, new) for row, new in zip(old, made, strict=True)]


def _of_half(lines: Sequence[Line], half: str) -> list[Line]:
    return [line for line in lines if line.reference and half_of(line.reference) == half]


def filled(old: Row, new: Row) -> Row:
    """A row with what was made of texts, after its names and before what else it has."""
    names: Row = {key: old[key] for key in ("arm", "hours", "test", "data") if key in old}
    return {**names, **new, **{key: value for key, value in old.items() if key not in {*names, *new}}}


def main() -> None:
    """Write the tables of which there are texts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("corpora/standard"))
    sources = {said.id: said.language for said in Manifest(parser.parse_args().data / "test")}
    kinds = ("ST only", "+ MT", "+ external MT")
    curve = [[f"{amount}, {kind}" for kind in kinds] for amount in ("0.25 h", "ctc_attention", "all")]
    less, external, planted = f"0.25 h, {kinds[2]}", f"ctc_attention, {kinds[2]}", "1 h, + planted MT"
    once = [[less, "0.25 h, + planted MT"], [external, planted]]
    shuffled = [[less, "0.25 h, + shuffled MT"], [external, "1 h, + shuffled MT"]]
    tables: dict[str, tuple[str, Callable[[Runs, Sequence[Row]], list[Row]]]] = {
        "sharing_low": ("sharing_low", sharing_rows),
        "sharing_low_control": ("sharing_low_control", sharing_rows),
        "sharing_low_lora": ("sharing_low_lora", sharing_rows),
        "units_equal_steps_curve": ("units_equal_steps", partial(units_rows, groups=curve)),
        "units_soft_sharing": (
            "units_equal_steps",
            partial(units_rows, groups=[["ctc_attention, + MT", "soft sharing"]]),
        ),
        "units_equal_steps_control": (
            "units_equal_steps",
            partial(control_rows, groups=[[external, f"{planted} 20 times"]]),
        ),
        "units_equal_steps_control_once": ("units_equal_steps", partial(control_rows, groups=once, seeds=1)),
        "units_equal_steps_shuffled": ("units_equal_steps", partial(units_rows, groups=shuffled)),
    }
    for name, (of_texts, rows_of) in tables.items():
        path, texts = RESULTS / f"{name}.json", read_texts(RESULTS / f"{of_texts}.jsonl.gz", sources)
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = rows_of(texts.runs, values.pop("rows"))
        write_text(path, json.dumps({**values, "test": texts.test, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

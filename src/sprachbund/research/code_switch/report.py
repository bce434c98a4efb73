"""The table of the comparison: every arm beside the first, over seeds, by paired bootstrap, and what switches do."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sprachbund.evaluation.code_switch import switch_scores
from sprachbund.evaluation.compare import RunFile, System, compare
from sprachbund.evaluation.failures import Rate, identifier_for, in_wrong_language
from sprachbund.evaluation.lines import Line
from sprachbund.evaluation.router import EMBEDDED, SPANS, TIME, RouteCounts
from sprachbund.research.code_switch.options import ARMS, BASELINE, CodeSwitchRecipe
from sprachbund.util.files import write_text

MADE, SPLICED = "synthetic", "spliced"
TESTS = {MADE: ("test", "monolingual-test"), SPLICED: ("spliced-test",)}
"""Folder of scores to the parts of the data that they are of."""
METRICS = ("chrF", "BLEU")
_SETS: dict[str, tuple[str, Callable[[Line], bool]]] = {
    "code-switched": (MADE, lambda line: line.switched),
    "monolingual": (MADE, lambda line: not line.switched),
    "mixed": (MADE, lambda line: True),
    "spliced people": (SPLICED, lambda line: True),
}
"""Name of a test set to its folder and the lines of it."""
_SCARCE = "scarce languages"
_SWITCHED = ("code-switched", "spliced people")
_SAID = {
    "recalled": "span recall %",
    "near": "errors near a switch %",
    "elsewhere": "errors elsewhere %",
    "untranslated": "spans untranslated %",
    "dropped": "spans dropped %",
}
_ROUTED = {
    SPANS: "router right %",
    EMBEDDED: "router right, embedded %",
    TIME: "router right, time %",
}


@dataclass(frozen=True)
class _Chosen:
    """The translations of a run that belong to a set, or its transcripts."""

    run: RunFile
    belongs: Callable[[Line], bool]
    transcripts: bool = False

    def __iter__(self) -> Iterator[Line]:
        return (line for line in self.run if line.is_transcript == self.transcripts and self.belongs(line))


def scores_of(directory: Path, seed: int, name: str) -> Path:
    """Folder of an arm's scores.

    Args:
        directory: folder of all runs.
        seed: seed of the run.
        name: name of the arm.
    """
    return directory / f"seed-{seed}" / "scores" / name.replace(", ", "-").replace(" ", "-")


def write_table(recipe: CodeSwitchRecipe, directory: Path) -> Path:
    """Every arm on every set: quality beside the first arm's, what becomes of embedded spans, the router."""
    rows: list[dict[str, Any]] = []
    sets = dict(_SETS)
    if recipe.shares:
        sets[_SCARCE] = MADE, lambda line: line.source in recipe.shares
    for title, (folder, belongs) in sets.items():
        if not all((scores_of(directory, seed, BASELINE) / folder).is_dir() for seed in recipe.seeds):
            continue
        systems, transcribing = (
            _systems(recipe, directory, folder, partial(_Chosen, belongs=belongs, transcripts=transcripts))
            for transcripts in (False, True)
        )
        quality, heard = _quality(systems, METRICS), _quality(transcribing, ("WER",))
        rows += [
            {
                "speech": title,
                "arm": system.name,
                **quality[system.name],
                **heard[system.name],
                **(_switches(system) if title in _SWITCHED else {}),
                **(_router(system) if ARMS[system.name].projector == "groups" else {}),
            }
            for system in systems
        ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [{key: row.get(key, "") for key in columns} for row in rows]
    path = directory / "table.json"
    write_text(path, json.dumps({"recipe": recipe.model_dump(mode="json"), "rows": table}, indent=1) + "\n")
    return path


def _systems(
    recipe: CodeSwitchRecipe, directory: Path, folder: str, chosen: Callable[[RunFile], _Chosen]
) -> list[System]:
    """All arms with the lines that are chosen of each seed's run."""
    return [
        System(
            name=name,
            runs=[chosen(RunFile(scores_of(directory, seed, name) / folder)) for seed in recipe.seeds],
        )
        for name in recipe.all_arms
    ]


def _quality(systems: Sequence[System], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Scores of each system, and its difference to the first."""
    several = [*systems, System(name="itself", runs=systems[0].runs)]  # a comparison is of two at least
    rows: dict[str, dict[str, Any]] = {system.name: {} for system in several}
    for (metric, name), mean in compare(several, metrics).means.items():
        low, high = mean.interval
        rows[BASELINE][metric] = mean.baseline
        rows[name] |= {
            metric: mean.system,
            f"{metric} difference": f"{mean.difference:+.2f} ({low:+.2f} to {high:+.2f})",
            f"{metric} p": mean.p_value,
        }
    return rows


def _switches(system: System) -> dict[str, float]:
    """Rates of embedded spans, and how often the output is in another language than asked for, over all runs."""
    lines = [line for run in system.runs for line in run]
    scores = switch_scores(lines)
    return {
        **{said: getattr(scores, name).percent for name, said in _SAID.items()},
        "wrong language %": _confusion(lines).percent,
    }


def _confusion(lines: Sequence[Line]) -> Rate:
    identifier = identifier_for({line.target for line in lines})
    evaluated = [wrong for line in lines if (wrong := in_wrong_language(line, identifier)) is not None]
    return Rate(failed=sum(evaluated), evaluated=len(evaluated))


def _router(system: System) -> dict[str, float]:
    """Shares of the spans of any language, of embedded ones, and of the time, that went to their experts."""
    counts = RouteCounts()
    for run in system.runs:
        for line in run:
            counts.add(line)
    scores = dict(counts.scores())
    return {
        said: scores[name].percent
        for name, said in _ROUTED.items()
        if name in scores and scores[name].evaluated
    }

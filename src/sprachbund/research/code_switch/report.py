"""The table of the comparison: every arm beside the first, over texts and seeds, and what switches do.

Recall of embedded spans and accuracy of the router have intervals of the same kind: utterances are drawn, each with the
counts of all its targets and with those of equal references.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.code_switch import switch_scores
from sprachbund.evaluation.compare import RunFile, System
from sprachbund.evaluation.failures import Rate, identifier_for, in_wrong_language
from sprachbund.evaluation.lines import Line
from sprachbund.evaluation.metrics import Counts
from sprachbund.evaluation.router import EMBEDDED, SPANS, TIME, RouteCounts
from sprachbund.evaluation.significance import Share, compare_means, holm, mean_interval, units_of
from sprachbund.research.arms import compare_arms, with_seeds
from sprachbund.research.code_switch.options import ARMS, BASELINE, CodeSwitchRecipe, Projection, as_folder
from sprachbund.research.table_file import keep_table
from sprachbund.research.texts import TEXTS_FILE, WrittenTexts, write_texts
from sprachbund.research.tuning import TriedRates, as_json, best_rate
from sprachbund.text.languages import MIXED

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
_SCARCE, _OTHERS = "scarce languages", "other languages"
_SWITCHED = ("code-switched", "spliced people", _SCARCE, _OTHERS)
_RECALL = "span recall %"
_SAID = {
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
    """The translations of a run that belong to a set, or its transcripts.

    Of a model that writes mixed speech as a target of its own (`in_mixed`), those are the transcripts of such speech;
    they go under the main language, as the transcripts of other models do.
    """

    run: Iterable[Line]
    belongs: Callable[[Line], bool]
    transcripts: bool = False
    in_mixed: bool = False

    def __iter__(self) -> Iterator[Line]:
        for line in self.run:
            if line.is_transcript != self.transcripts or not self.belongs(line):
                continue
            if self.transcripts and self.in_mixed and line.switched:
                if line.target == MIXED:
                    yield replace(line, target=line.source)
            else:
                yield line


def scores_of(directory: Path, seed: int, name: str) -> Path:
    """Folder of an arm's scores.

    Args:
        directory: folder of all runs.
        seed: seed of the run.
        name: name of the arm.
    """
    return directory / f"seed-{seed}" / "scores" / as_folder(name)


def other_scores_of(directory: Path, name: str, number: int) -> Path:
    """Folder of the scores of a system that is compared with the arms.

    Args:
        directory: folder of all runs.
        name: name of the system.
        number: number of its model, from 0.
    """
    return directory / "others" / as_folder(name) / str(number)


def write_table(
    recipe: CodeSwitchRecipe, directory: Path, rates: Mapping[Projection, TriedRates] | None = None
) -> Path:
    """Every arm on every set: quality beside the first arm's, what becomes of embedded spans, the router.

    The texts on synthetic voices are in `texts.jsonl.gz` beside it.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        rates: kind of projector to rate factors with their losses on dev, where they were tried.
    """
    factors = {kind: best_rate(tried) for kind, tried in (rates or {}).items()}
    rows: list[dict[str, Any]] = []
    sets = dict(_SETS)
    if scarce := {tag for tag, share in recipe.shares.items() if share < 1}:
        sets[_SCARCE] = MADE, lambda line: line.source in scarce
        if scarce < set(recipe.languages):
            sets[_OTHERS] = MADE, lambda line: line.source not in scarce
    there = {folder: runs for folder in TESTS if (runs := _all_runs(recipe, directory, folder))}
    for title, (folder, belongs) in sets.items():
        if folder not in there:
            continue
        systems, transcribing = (
            _systems(there[folder], partial(_Chosen, belongs=belongs, transcripts=transcripts))
            for transcripts in (False, True)
        )
        quality, heard = _quality(systems, METRICS), _quality(transcribing, ("WER",))
        recall = _shares(systems, _recalled) if title in _SWITCHED else {}
        by_language = [s for s in systems if s.name in ARMS and ARMS[s.name].projector == "groups"]
        routed = _shares(by_language, _routed)
        for system in systems:
            kind = ARMS[system.name].projector if system.name in ARMS else None
            rows.append(
                {
                    "speech": title,
                    "arm": system.name,
                    "seeds": len(system.runs),
                    **({"rate factor": factors[kind]} if kind in factors else {}),
                    **quality[system.name],
                    **heard[system.name],
                    **recall.get(system.name, {}),
                    **(_switches(system) if title in _SWITCHED else {}),
                    **routed.get(system.name, {}),
                }
            )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [{key: row.get(key, "") for key in columns} for row in rows]
    made = there[MADE].items()
    test = write_texts(
        directory / TEXTS_FILE,
        ((name, seed, run) for name, runs in made for seed, run in _numbered(recipe, name, runs)),
    )
    about = {
        "test": test,
        **({"dev loss by rate factor": {k: as_json(tried) for k, tried in rates.items()}} if rates else {}),
    }
    return keep_table(directory / "table.json", recipe, {**about, "rows": table})


_Runs = Mapping[str, Sequence[Iterable[Line]]]
"""Arms, then the systems beside them, each with the lines of its runs."""


def _all_runs(recipe: CodeSwitchRecipe, directory: Path, folder: str) -> _Runs:
    """The runs of all systems on one test set; none where the arms have not heard it."""
    others = {
        name: [RunFile(other_scores_of(directory, name, n) / folder) for n in range(len(models))]
        for name, models in recipe.other_models.items()
    }
    if recipe.texts:
        if folder != MADE:  # the file has the texts on synthetic voices
            return {}
        return {**_written_before(recipe, recipe.texts, next(iter(others.values()))[0]), **others}
    arms = {
        name: [RunFile(scores_of(directory, seed, name) / folder) for seed in recipe.seeds]
        for name in recipe.all_arms
    }
    return {**arms, **others} if all(run.path.is_dir() for run in arms[BASELINE]) else {}


def read_written(recipe: CodeSwitchRecipe, path: Path) -> WrittenTexts:
    """The texts of a finished comparison.

    Args:
        recipe: the comparison whose arms they are to have.
        path: their file.

    Raises:
        SprachbundError: there is no such file, it is something else, or it lacks an arm.
    """
    texts = WrittenTexts.read(path)
    if missing := [name for name in recipe.all_arms if name not in texts.runs]:
        raise SprachbundError(
            f"{path} has no texts of {missing[0]!r}; it has those of {', '.join(texts.runs)}; set arms"
        )
    return texts


def _written_before(recipe: CodeSwitchRecipe, path: Path, like: RunFile) -> _Runs:
    """The arms of a finished comparison, by their texts and another run on the same data."""
    texts = read_written(recipe, path)
    return {
        name: [list(texts.lines(name, n, like)) for n in range(len(texts.runs[name]))]
        for name in recipe.all_arms
    }


def _numbered(
    recipe: CodeSwitchRecipe, name: str, runs: Sequence[Iterable[Line]]
) -> Iterator[tuple[int, Iterable[Line]]]:
    """The runs of a system with their seeds, or numbers from 0 where there are no seeds of this comparison."""
    of_seeds = name in ARMS and not recipe.texts
    return zip(recipe.seeds if of_seeds else range(len(runs)), runs, strict=True)


def _systems(runs: _Runs, chosen: Callable[..., _Chosen]) -> list[System]:
    """All systems with the lines that are chosen of each run."""
    systems = []
    for name, own in runs.items():
        in_mixed = name not in ARMS and any(line.target == MIXED for line in own[0])
        systems.append(System(name=name, runs=[chosen(run, in_mixed=in_mixed) for run in own]))
    return systems


def _quality(systems: Sequence[System], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Scores of each system, and its difference to the first."""
    rows: dict[str, dict[str, Any]] = {system.name: {} for system in systems}
    for (metric, name), cells in compare_arms(systems, metrics).cells.items():
        rows[name][metric] = cells.score
        if name != BASELINE:
            rows[name] |= {
                f"{metric} difference": cells.difference,
                f"{metric} p": cells.p,
                f"{metric} Holm's p": cells.holm,
            }
    return rows


def _switches(system: System) -> dict[str, float]:
    """Treatment of embedded spans, and share of outputs in another language than asked for, over all runs."""
    lines = [line for run in system.runs for line in run if line.switched]
    scores = switch_scores(lines)
    return {
        **{said: getattr(scores, name).percent for name, said in _SAID.items()},
        "wrong language %": _confusion(lines).percent,
    }


def _confusion(lines: Sequence[Line]) -> Rate:
    identifier = identifier_for({line.target for line in lines})
    evaluated = [wrong for line in lines if (wrong := in_wrong_language(line, identifier)) is not None]
    return Rate(failed=sum(evaluated), evaluated=len(evaluated))


_Key = tuple[str, str]
"""Corpus and id of an utterance."""
_Counted = Mapping[str, tuple[float, float]]
"""Name of a share to what counts for it, and what it is of."""


def _recalled(line: Line) -> _Counted:
    """Words that translate embedded spans."""
    if not line.switched:
        return {}
    recalled = switch_scores([line]).recalled
    return {_RECALL: (recalled.failed, recalled.evaluated)}


def _routed(line: Line) -> _Counted:
    """Spans of any language, embedded ones, and seconds, that went to their experts."""
    counts = RouteCounts()
    counts.add(line)
    scores = dict(counts.scores())
    return {said: (scores[n].right, scores[n].evaluated) for n, said in _ROUTED.items() if n in scores}


def _shares(systems: Sequence[System], counted: Callable[[Line], _Counted]) -> dict[str, dict[str, Any]]:
    """Shares of each system with their intervals, and their differences to the first one's.

    Args:
        systems: with the same utterances.
        counted: of a line.
    """
    sums = {system.name: [_sums(run, counted) for run in system.runs] for system in with_seeds(systems)}
    rows: dict[str, dict[str, Any]] = {system.name: {} for system in systems}
    names = list(dict.fromkeys(name for runs in sums.values() for run in runs for name in run))
    share, first, said = Share(), systems[0].name, _said_of(systems[0].runs[0])
    for name in names:
        counts = {of: [[_matrix(run.get(name, {}))] for run in runs] for of, runs in sums.items()}
        units = [units_of([key, *said[key]] for key in sorted(sums[first][0].get(name, {})))]
        p_values: dict[str, float] = {}
        for of, runs in counts.items():
            if not any(total[:, 1].sum() for [total] in runs):
                continue
            low, high = mean_interval([share], runs, units=units)
            values = [share.score(total.sum(0)) for [total] in runs]
            rows[of] |= {
                name: sum(values) / len(values),
                f"{name} interval": f"{max(low, 0):.1f} to {min(high, 100):.1f}",
            }
            if of != first:
                compared = compare_means([share], counts[first], runs, units=units)
                low, high = compared.interval
                rows[of] |= {
                    f"{name} difference": f"{compared.difference:+.2f} ({low:+.2f} to {high:+.2f})",
                    f"{name} p": compared.p_value,
                }
                p_values[of] = compared.p_value
        for of, p in zip(p_values, holm(list(p_values.values())), strict=True):
            rows[of][f"{name} Holm's p"] = p
    return rows


def _said_of(run: Iterable[Line]) -> dict[_Key, set[tuple[str, str]]]:
    """Utterance to its references with their languages."""
    said: dict[_Key, set[tuple[str, str]]] = {}
    for line in run:
        said.setdefault((line.corpus, line.id), set()).add((line.target, line.reference))
    return said


def _sums(run: Iterable[Line], counted: Callable[[Line], _Counted]) -> dict[str, dict[_Key, Counts]]:
    """Counts (2,) of each share, by utterance: over all that it was translated into."""
    sums: dict[str, dict[_Key, Counts]] = {}
    for line in run:
        for name, counts in counted(line).items():
            of_name, key = sums.setdefault(name, {}), (line.corpus, line.id)
            of_name[key] = of_name.get(key, np.zeros(2)) + counts
    return sums


def _matrix(sums: Mapping[_Key, Counts]) -> Counts:
    """Counts (N, 2), in the order of the utterances' names."""
    return np.array([sums[key] for key in sorted(sums)]).reshape(-1, 2)

"""Seeds of a code-switched comparison that were trained at two times: differences seed by seed, and their mean.

Of the earlier seeds there are the texts, of the later ones the folder of their runs, on the same test data. Arms of a
seed share a language model, seeds of different times do not. So arms are compared within each seed; the interval of
the mean is Student's over the seeds, on these utterances.
Run: python -m benchmarks.code_switch_seeds runs/six docs/results/code_switch_six.jsonl.gz --out \
    docs/results/code_switch_six_seeds.json
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.rows import show
from scipy.stats import ttest_1samp

from sprachbund.evaluation.code_switch import switch_scores
from sprachbund.evaluation.compare import RunFile, System, compare
from sprachbund.evaluation.lines import Line
from sprachbund.research.code_switch.options import BASELINE, CodeSwitchRecipe
from sprachbund.research.code_switch.report import MADE, scores_of
from sprachbund.research.table_file import keep_table
from sprachbund.research.tasks import read_study
from sprachbund.research.texts import WrittenTexts

Lines = Sequence[Line]


def main() -> None:
    """Write the table of all seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the later seeds")
    parser.add_argument("texts", type=Path, help="texts of the earlier seeds")
    parser.add_argument("--out", type=Path, required=True, help="file with the table")
    given = parser.parse_args()
    recipe = CodeSwitchRecipe.model_validate(read_study(given.runs))
    earlier = WrittenTexts.read(given.texts)
    runs: dict[str, list[Lines]] = {}
    for name in recipe.all_arms:
        later = [RunFile(scores_of(given.runs, seed, name) / MADE) for seed in recipe.seeds]
        written = [earlier.lines(name, n, later[0]) for n in range(len(earlier.runs[name]))]
        runs[name] = [translations(run) for run in (*written, *later)]
    seeds = [*(str(n) for n in range(len(written))), *map(str, recipe.seeds)]
    scarce = {tag for tag, share in recipe.shares.items() if share < 1}
    chosen: dict[str, Callable[[Line], bool]] = {
        "all": lambda line: True,
        "scarce languages": lambda line: line.source in scarce,
    }
    rows = []
    for measure, scores in {"chrF": chrf, "span recall %": recall}.items():
        for speech, belongs in chosen.items():
            of_seeds = [
                scores({name: [line for line in own[n] if belongs(line)] for name, own in runs.items()})
                for n in range(len(seeds))
            ]
            rows += table(measure, speech, seeds, of_seeds)
    keep_table(given.out, recipe, {"texts of earlier seeds": given.texts.name, "rows": rows})
    show(rows)


def translations(run: Iterable[Line]) -> Lines:
    """The lines of a run without its transcripts."""
    return [line for line in run if not line.is_transcript]


def chrf(arms: dict[str, Lines]) -> dict[str, float]:
    """chrF of each arm, the mean over language pairs."""
    means = compare([System(name=name, runs=[lines]) for name, lines in arms.items()], ["chrF"]).means
    first = next(iter(means.values())).baseline
    return {BASELINE: first, **{name: value.system for (_, name), value in means.items()}}


def recall(arms: dict[str, Lines]) -> dict[str, float]:
    """Recall of embedded spans of each arm, in percent."""
    return {
        name: switch_scores([line for line in lines if line.switched]).recalled.percent
        for name, lines in arms.items()
    }


def table(
    measure: str, speech: str, seeds: Sequence[str], of_seeds: Sequence[dict[str, float]]
) -> list[dict[str, Any]]:
    """One row for each seed with what the other arms are above the first one, and one with their means.

    Args:
        measure: name of the scores.
        speech: name of the set that they are of.
        seeds: names of the seeds.
        of_seeds: arm to score, of each seed.
    """
    others = [name for name in of_seeds[0] if name != BASELINE]
    differences = {name: [scores[name] - scores[BASELINE] for scores in of_seeds] for name in others}
    rows = [
        {
            "measure": measure,
            "speech": speech,
            "seed": seed,
            BASELINE: round(of_seeds[n][BASELINE], 1),
            **{name: f"{differences[name][n]:+.2f}" for name in others},
        }
        for n, seed in enumerate(seeds)
    ]
    return [
        *rows,
        {
            "measure": measure,
            "speech": speech,
            "seed": "mean",
            BASELINE: round(mean(scores[BASELINE] for scores in of_seeds), 1),
            **{name: with_interval(differences[name]) for name in others},
        },
    ]


def with_interval(values: Sequence[float]) -> str:
    """The mean of values, with Student's 95 % interval."""
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    return f"{mean(values):+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    main()

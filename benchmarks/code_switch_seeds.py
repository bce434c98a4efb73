"""A comparison of code-switched translation whose seeds were trained at two times: all together, and seed by seed.

Of the earlier seeds there are the texts, of the later ones the folder of their runs, on the same test data. Arms of a
seed share a language model, seeds of different times do not: the spread over all seeds has that of two language models
in it. The router is that of the later seeds alone, since texts say nothing of it.
Run: python -m benchmarks.code_switch_seeds runs/six docs/results/code_switch_six.jsonl.gz --out \
    docs/results/code_switch_six_seeds.json
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import show

from sprachbund.evaluation.compare import RunFile, System, compare
from sprachbund.evaluation.lines import Line
from sprachbund.research.code_switch.options import BASELINE, CodeSwitchRecipe
from sprachbund.research.code_switch.report import MADE, scores_of, table_rows
from sprachbund.research.table_file import keep_table
from sprachbund.research.tasks import read_study
from sprachbund.research.texts import WrittenTexts

METRIC = "chrF"


def main() -> None:
    """Write the tables of all seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the later seeds")
    parser.add_argument("texts", type=Path, help="texts of the earlier seeds")
    parser.add_argument("--out", type=Path, required=True, help="file with both tables")
    given = parser.parse_args()
    recipe = CodeSwitchRecipe.model_validate(read_study(given.runs))
    earlier = WrittenTexts.read(given.texts)
    runs: dict[str, list[Iterable[Line]]] = {}
    for name in recipe.all_arms:
        later = [RunFile(scores_of(given.runs, seed, name) / MADE) for seed in recipe.seeds]
        written = [list(earlier.lines(name, n, later[0])) for n in range(len(earlier.runs[name]))]
        runs[name] = [*later, *written]
    scarce = {tag for tag, share in recipe.shares.items() if share < 1}
    one_by_one = seed_rows(
        runs, [*map(str, recipe.seeds), *(f"earlier {n}" for n in range(len(written)))], scarce
    )
    rows = table_rows({MADE: runs}, scarce, {})
    keep_table(given.out, recipe, {"texts": given.texts.name, "seeds": one_by_one, "rows": rows})
    show(one_by_one)


def seed_rows(
    runs: Mapping[str, Sequence[Iterable[Line]]], seeds: Sequence[str], scarce: set[str]
) -> list[dict[str, Any]]:
    """Difference of each arm to the first one in each seed, in translations of all speech and of scarce languages.

    Args:
        runs: arm to the lines of its runs.
        seeds: names of the seeds, in the order of the runs.
        scarce: languages of the second set.
    """
    rows = []
    for speech, languages in (("mixed", None), ("scarce languages", scarce)):
        for number, seed in enumerate(seeds):
            systems = [
                System(
                    name=name,
                    runs=[
                        [
                            line
                            for line in own[number]
                            if not line.is_transcript and (languages is None or line.source in languages)
                        ]
                    ],
                )
                for name, own in runs.items()
            ]
            means = compare(systems, [METRIC]).means
            rows.append(
                {
                    "speech": speech,
                    "seed": seed,
                    BASELINE: round(next(iter(means.values())).baseline, 2),
                    **{name: f"{mean.difference:+.2f}" for (_, name), mean in means.items()},
                }
            )
    return rows


if __name__ == "__main__":
    main()

"""What size of an effect the comparison of recipes/research/code_switch_six.toml can find, before it is run.

The spread is that of the comparison of size `small` (docs/results/code_switch_small*.json):

- over utterances: from the interval of a difference between two trainings, one seed each (240 utterances);
- over seeds: from the intervals of differences between means of three seeds, less the part of the utterances. Recall
  has none there, so it is the spread between arms that differ in projector or losses alone, which has all in it.

The comparison is then made many times on normal numbers of that spread, with its own interval over seeds and
utterances (`over_seeds`), and the share of the intervals beyond nought is counted. Nobody knows the spread of longer
trainings, or that of three languages.
Run: python -m benchmarks.code_switch_power
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.rows import keep

from sprachbund.evaluation import significance

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NORMAL_95 = 2 * 1.959964
"""Width of a 95% interval in standard deviations."""
UTTERANCES_THERE, SEEDS_THERE = 240, 3
UTTERANCES_HERE = 780
"""Of three scarce languages in the test parts: 130 of each pair and of each language."""
SEEDS, EFFECTS = (3, 5, 10), (0.0, 1.0, 2.0, 3.0, 4.0)
ALIKE = (
    "grouped experts",
    "dense, equal active size",
    "plain mixture",
    "without language loss",
    "without balance loss",
    "languages of the utterance",
)
"""Arms that differ in projector or losses alone."""
DRAWS = 400


def rows_of(manifest: str) -> list[Mapping[str, Any]]:
    """Rows of a manifest in docs/results."""
    rows: list[Mapping[str, Any]] = json.loads((RESULTS / f"{manifest}.json").read_text(encoding="utf-8"))[
        "rows"
    ]
    return rows


def deviations(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Standard deviations that the 95% intervals of chrF differences stand for, in mixed speech."""
    texts = [row["chrF difference"] for row in rows if row["speech"] == "mixed" and row["chrF difference"]]
    ends = np.array([[float(end) for end in re.findall(r"[-+]\d+\.\d+", text)[1:]] for text in texts])
    return (ends[:, 1] - ends[:, 0]) / NORMAL_95


def spreads() -> dict[str, tuple[float, float]]:
    """Measure to the spread of one training over seeds, and of a difference over the utterances there."""
    over_utterances = float(deviations(rows_of("code_switch_small_longer"))[0])
    # Seeds are drawn from as many as there are, so that a bootstrap sees (n - 1) / n of their variance, on both sides.
    seen = 2 * (SEEDS_THERE - 1) / SEEDS_THERE**2
    variance = float(np.mean(deviations(rows_of("code_switch_small")) ** 2))
    over_seeds = ((variance - over_utterances**2 / SEEDS_THERE) / seen) ** 0.5
    recall = [
        row["span recall %"]
        for row in rows_of("code_switch_small_switches")
        if row["speech"] == "code-switched" and row["arm"] in ALIKE
    ]
    return {
        "chrF": (over_seeds, over_utterances),
        "span recall %": (float(np.std(recall, ddof=1)) * SEEDS_THERE**0.5, 0.0),
    }


def power(effect: float, seeds: int, over_seeds: float, over_utterances: float, repeats: int) -> float:
    """Share of comparisons whose interval is beyond nought, in percent.

    Args:
        effect: true difference.
        seeds: of each side.
        over_seeds: standard deviation of one training.
        over_utterances: of the difference between two trainings, over the utterances of the test.
        repeats: comparisons.
    """
    rng = np.random.default_rng([round(10 * effect), seeds, 7])
    of_run = over_utterances / 2**0.5  # noise of one run over utterances that both have heard
    true = rng.normal(0, over_seeds, (repeats, 2, seeds)) + np.array([0.0, effect])[:, None]
    scores = true + rng.normal(0, of_run, true.shape)
    beyond = 0
    for of_sides in scores:
        means = of_sides.mean(1)
        value = float(means[1] - means[0])
        drawn = value + rng.normal(0, of_run * (2 / seeds) ** 0.5, DRAWS)
        (low, high), _ = significance.over_seeds(value, drawn, of_sides.tolist())
        beyond += bool(low > 0 or high < 0)
    return 100 * beyond / repeats


def rows(repeats: int) -> list[dict[str, object]]:
    """A row for each measure and number of seeds."""
    table: list[dict[str, object]] = []
    for name, (over_seeds, over_utterances) in spreads().items():
        here = over_utterances * (UTTERANCES_THERE / UTTERANCES_HERE) ** 0.5
        for seeds in SEEDS:
            shares = {
                f"effect {effect:g}" if effect else "no effect": round(
                    power(effect, seeds, over_seeds, here, repeats), 1
                )
                for effect in EFFECTS
            }
            spread = {"spread over seeds": round(over_seeds, 2), "over utterances": round(here, 2)}
            table.append({"measure": name, "seeds": seeds, **spread, **shares})
    return table


def main() -> None:
    """Print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    keep(options.out, {"repeats": options.repeats, "rows": rows(options.repeats)})


if __name__ == "__main__":
    main()

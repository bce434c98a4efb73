"""What size of an effect the comparison of recipes/research/units_equal_steps.toml can find, by two counts of seeds.

Its plan took the spread over utterances from an interval of ±2.5 chrF for one seed and 200 sentences, and a spread of
1 chrF between the seeds of an arm, but counted the seeds of one arm only. Here the comparison is made many times on
normal numbers of that spread, with its own interval over seeds and utterances (`over_seeds`), and the intervals beyond
nought are counted.
Run: python -m benchmarks.units_power
"""

import argparse
from pathlib import Path

import numpy as np
from benchmarks.rows import keep
from scipy.stats import norm

from sprachbund.evaluation.significance import over_seeds

SEEDS, OVER_SEEDS = 3, 1.0
OVER_UTTERANCES = 2.5 / 1.96 * (200 / 420) ** 0.5
"""Standard deviation of a difference in chrF over 420 utterances."""
EFFECTS = (0.0, 2.0, 3.0, 4.0)


def as_planned(effect: float) -> float:
    """Share of intervals above nought, in percent, by the normal law and with the seeds of one arm."""
    spread = (OVER_UTTERANCES**2 + OVER_SEEDS**2 / SEEDS) ** 0.5
    return 100 * float(norm.sf(1.96 - effect / spread))


def simulated(effect: float, repeats: int) -> float:
    """Share of intervals beyond nought, in percent, by `over_seeds` and with the seeds of both arms.

    Args:
        effect: true difference.
        repeats: comparisons.
    """
    rng, beyond = np.random.default_rng(round(10 * effect)), 0
    for _ in range(repeats):
        sides = rng.normal([[0.0], [effect]], OVER_SEEDS, (2, SEEDS))
        value = float(sides[1].mean() - sides[0].mean()) + rng.normal(0, OVER_UTTERANCES)
        drawn = np.array([value - OVER_UTTERANCES, value + OVER_UTTERANCES])  # of that standard deviation
        (low, high), _ = over_seeds(value, drawn, sides.tolist())
        beyond += bool(low > 0 or high < 0)
    return 100 * beyond / repeats


def main() -> None:
    """Print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = [
        {
            "effect, chrF": effect,
            "as planned %": round(as_planned(effect), 1),
            "by the comparison's own interval %": round(simulated(effect, options.repeats), 1),
        }
        for effect in EFFECTS
    ]
    keep(options.out, {"repeats": options.repeats, "over utterances": OVER_UTTERANCES, "rows": rows})


if __name__ == "__main__":
    main()

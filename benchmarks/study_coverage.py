"""How often the intervals of `sprachbund study fit` hold a planted law, and how far off the law is found.

Gaps follow 4.0 (h / 100)^-0.92 at 100, 250, 500, 1000 and 2500 h. Languages are alike, or differ by a factor with 30%
of spread and mean 1; noise of seeds is added to every gap. Grids are whole, or three languages of eight lack the
largest scale, as in published tables. A law is recovered when A and b are both inside.
Run: python -m benchmarks.study_coverage
"""

import argparse
from pathlib import Path

import numpy as np
from benchmarks.rows import keep

from sprachbund.errors import SprachbundError
from sprachbund.research.encoder_transfer.power_law import Interval, PowerLaw, fit_power_law
from sprachbund.research.encoder_transfer.study_options import By

HOURS = np.array([100.0, 250.0, 500.0, 1000.0, 2500.0])
SCALE, EXPONENT, SPREAD = 4.0, 0.92, 0.3
LANGUAGES, NOISES, WAYS = (4, 8, 16), (0.1, 0.3), ("log", "gaps")
HOLES = {4: (0,), 8: (0, 3), 16: (0, 6)}
"""Languages to numbers of them that lack the largest scale."""


def planted(rng: np.random.Generator, num_languages: int, noise: float, spread: float) -> np.ndarray:
    """Gaps (L, H)."""
    factor = np.exp(rng.normal(-(spread**2) / 2, spread, (num_languages, 1)))
    return factor * SCALE * (HOURS / 100) ** -EXPONENT + rng.normal(0, noise, (num_languages, len(HOURS)))


def holds(scale: Interval, exponent: Interval) -> bool:
    """Whether both planted values are inside."""
    return scale[0] <= SCALE <= scale[1] and exponent[0] <= EXPONENT <= exponent[1]


def row(
    languages: int, holes: int, spread: float, noise: float, by: By, repeats: int, draws: int
) -> dict[str, object]:
    """Coverage over repeats of one setting."""
    rng = np.random.default_rng([languages, int(100 * spread), int(100 * noise)])
    laws: list[PowerLaw] = []
    for seed in range(repeats):
        gaps = planted(rng, languages, noise, spread)
        gaps[:holes, -1] = np.nan
        try:
            laws.append(fit_power_law(list(HOURS), gaps, by=by, draws=draws, seed=seed))
        except SprachbundError:
            continue  # counted below
    ours = [holds(law.scale.interval, law.exponent.interval) for law in laws]
    published = [holds(law.scale.percentile, law.exponent.percentile) for law in laws]
    errors = np.array([law.exponent.value - EXPONENT for law in laws])
    return {
        "languages": languages,
        "of these without 2500 h": holes,
        "differ by": f"{spread:.0%}",
        "noise": noise,
        "by": by,
        "recovered": round(float(np.mean(ours)), 3),
        "by percentiles": round(float(np.mean(published)), 3),
        "error of b": round(float(np.sqrt(np.mean(errors**2))), 3),
        "trusted": round(sum(law.trusted for law in laws) / repeats, 2),
        "no fit": repeats - len(laws),
    }


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    rows = [
        row(languages, holes, spread, noise, by, given.repeats, given.draws)  # type: ignore[arg-type]
        for languages in LANGUAGES
        for holes in HOLES[languages]
        for spread in (0.0, SPREAD)
        for noise in NOISES
        for by in WAYS
    ]
    kept = {"repeats": given.repeats, "draws": given.draws, "rows": rows}
    keep(given.out, kept)


if __name__ == "__main__":
    main()

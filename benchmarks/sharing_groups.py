"""Whether planted groups of languages are found, and whether the measured conflict depends on the noise of gradients.

The gradients are those of `tests/research/gradient_sharing/made.py`: languages of a group share a direction,
every language has one of its own, of 0.3, 0.6 or 1 times the length, and noise of several sizes is added to each of 50
vectors in 128 dimensions. A draw counts when number and members of all groups are right. The conflict is that of two
languages, with the true cosine known. Run from the root: PYTHONPATH=. python -m benchmarks.sharing_groups
"""

import argparse
from pathlib import Path

import numpy as np
from benchmarks.rows import keep
from rich.progress import track
from tests.research.gradient_sharing.made import as_groups, planted_groups, planted_rows, unit

from sprachbund.research.gradient_sharing.analyses import (
    conflict,
    find_groups,
    mean_cosines,
    self_and_cross,
    shared_ratio,
)
from sprachbund.research.gradient_sharing.plan_options import THRESHOLDS

STRUCTURES = ((1, 1, 1, 9), (1, 11), (2, 10), (3, 3, 3, 3), (2,) * 6, (12,))
NOISES = {0.3: (0.5, 1.0, 2.0, 3.0, 4.0), 0.6: (0.5, 1.0, 2.0), 1.0: (0.5, 1.0, 2.0)}
"""Length of a language's own direction to lengths of the noise. Of .3, self similarities are about .84 to .08."""
DRAWS = 12
VETO = 0.9
COSINE, CONFLICT_NOISES = 0.49, (0.5, 1.0, 2.0, 4.0)


def hits(parts: tuple[int, ...], own: float, noise: float) -> int:
    """Draws in which all groups are found."""
    count = 0
    for seed in range(DRAWS):
        rows = planted_rows(parts, noise=noise, own=own, seed=seed)
        tags = list(rows)
        groups = find_groups([rows[tag].astype(float) for tag in tags], veto=VETO)
        count += as_groups([[tags[i] for i in group] for group in groups.partition]) == planted_groups(
            parts, rows
        )
    return count


def measured_conflict(noise: float) -> dict[str, object]:
    """Mean over draws of both conflicts of two languages whose true cosine is COSINE, and the ratios they lead to."""
    deltas, corrected = [], []
    for seed in range(DRAWS):
        random = np.random.default_rng(seed)
        one, other = np.linalg.qr(random.standard_normal((128, 2)))[0].T
        centres = (one, COSINE * one + (1 - COSINE**2) ** 0.5 * other)
        rows = [unit(centre + noise * unit(random.standard_normal((50, 128)))) for centre in centres]
        cosines = mean_cosines(rows)
        own, cross = self_and_cross(cosines)
        deltas.append(own - cross)
        corrected.append(conflict(cosines))
    delta, true = float(np.mean(deltas)), float(np.mean(corrected))
    return {
        "noise": noise,
        "delta": f"{delta:.3f} ± {np.std(deltas):.3f}",
        "rho by delta": shared_ratio(delta, THRESHOLDS["raw"]),
        "conflict": f"{true:.3f} ± {np.std(corrected):.3f}",
        "rho by conflict": shared_ratio(true, THRESHOLDS["corrected"]),
    }


def main() -> None:
    """Two files: groups, and conflict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out: Path = parser.parse_args().out
    rows = [
        {"planted": "+".join(map(str, parts)) if len(parts) > 1 else "none", "own": own}
        | {
            f"noise {noise:g}": f"{hits(parts, own, noise)} of {DRAWS}" if noise in noises else ""
            for noise in NOISES[0.3]
        }
        for own, noises in NOISES.items()
        for parts in track(STRUCTURES, description=f"groups, own direction {own:g}")
    ]
    keep(out / "sharing_groups.json", {"draws": DRAWS, "rows": rows})
    keep(
        out / "sharing_conflict.json",
        {"cosine": COSINE, "rows": [measured_conflict(n) for n in CONFLICT_NOISES]},
    )


if __name__ == "__main__":
    main()

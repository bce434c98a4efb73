"""Whether gradients see a planted conflict: cosines of languages with and without other digits in Spanish and Dutch.

Cosines are corrected for noise, with 95 % from half samples of the vectors. Both first models of the comparison, and
their gradients with 800 utterances a language:

    sprachbund recipe gradient_sharing --size recipes/research/sharing_low_resource.toml --data corpora/standard \
        --out CONTROL --set 'changed_digits=["es", "nl"]' --set 'seeds=[0]' --set 'learning_rates=[]' \
        --set second.learning_rate=3e-4 --set 'arms=["uft"]' --set analysis.utterances=800 --set analysis.batch=4
    (PLAIN: the same without changed_digits)
    sprachbund share analyse CONTROL/first/model CONTROL/control/train --languages de,es,nl,pt --to en \
        --modules 'decoder.layers.?' --utterances 800 --batch 4 --dimensions 512 --out CONTROL/decoder.npz
    sprachbund share analyse PLAIN/first/model corpora/standard/train --languages de,es,nl,pt --to en \
        --modules 'decoder.layers.?' --utterances 800 --batch 4 --dimensions 512 --out PLAIN/decoder.npz
    python -m benchmarks.planted_gradients --planted CONTROL/seed-0/gradients.npz CONTROL/decoder.npz \
        --plain PLAIN/seed-0/gradients.npz PLAIN/decoder.npz --out docs/results/sharing_planted_gradients.json
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from benchmarks.rows import keep

from sprachbund.research.gradient_sharing.analyses import (
    NUM_HALVES,
    corrected,
    corrected_with_errors,
    half_samples,
    mean_cosines,
    ordered_rows,
)
from sprachbund.research.gradient_sharing.plan_options import SharingPlanOptions
from sprachbund.research.gradient_sharing.planning import measure
from sprachbund.research.gradient_sharing.sketches import read_sketches

CHANGED = frozenset({"es", "nl"})
"""Languages whose translations have other digits."""
NORMAL_95, SEED = 1.96, 0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the gradients of one module say.

    Attributes:
        contrast: mean corrected cosine of the pairs that were planted alike, less that of the others.
        error: standard error of it, by half samples.
        cosines: pair of languages to its cosine and half width of the interval.
        groups: groups that `share plan` finds.
        two: the best two groups.
        two_again: share of half samples with the same two groups.
    """

    contrast: float
    error: float
    cosines: Mapping[str, str]
    groups: str
    two: str
    two_again: float


def contrast_of(cosines: np.ndarray, languages: Sequence[str]) -> float:
    """Mean of the pairs with the same digits, less the mean of those with different ones."""
    pairs = list(combinations(range(len(languages)), 2))
    alike = [(languages[a] in CHANGED) == (languages[b] in CHANGED) for a, b in pairs]
    values = np.array([cosines[pair] for pair in pairs])
    return float(values[alike].mean() - values[np.logical_not(alike)].mean())


def seen_in(paths: Sequence[Path]) -> dict[str, Seen]:
    """Modules of some files of gradients."""
    seen = {}
    for sketches in map(read_sketches, paths):
        languages = sketches.languages
        for module in sketches.modules:
            rows = [ordered_rows(sketches.vectors[module][tag].astype(np.float64)) for tag in languages]
            values, errors = corrected_with_errors(rows, SEED)
            halves = [corrected(mean_cosines(half)) for half in half_samples(rows, NUM_HALVES, SEED)]
            contrast = contrast_of(values, languages)
            two = measure(sketches, module, SharingPlanOptions(num_groups=2))
            assert two.stability is not None
            seen[module] = Seen(
                contrast=contrast,
                error=float(
                    np.sqrt(np.mean([(contrast_of(half, languages) - contrast) ** 2 for half in halves]))
                ),
                cosines={
                    f"{languages[a]} {languages[b]}": f"{values[a, b]:.2f} ± {NORMAL_95 * errors[a, b]:.2f}"
                    for a, b in combinations(range(len(languages)), 2)
                },
                groups=named(measure(sketches, module).groups),
                two=named(two.groups),
                two_again=two.stability,
            )
    return seen


def row(module: str, plain: Seen, planted: Seen) -> dict[str, object]:
    """Both models beside each other; their errors are independent."""
    error = float(np.hypot(plain.error, planted.error))
    return {
        "module": module,
        "as they are": f"{plain.contrast:+.2f} ± {NORMAL_95 * plain.error:.2f}",
        "other digits": f"{planted.contrast:+.2f} ± {NORMAL_95 * planted.error:.2f}",
        "change": f"{planted.contrast - plain.contrast:+.2f} ± {NORMAL_95 * error:.2f}",
        "two groups as they are": f"{plain.two} ({plain.two_again:.0%})",
        "two groups with other digits": f"{planted.two} ({planted.two_again:.0%})",
    }


def named(groups: Sequence[Sequence[str]]) -> str:
    """Groups as `share plan` prints them."""
    return ", ".join("+".join(group) for group in groups)


def main() -> None:
    """Measure both models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--planted", type=Path, nargs="+", required=True, help="gradients of the control's model"
    )
    parser.add_argument("--plain", type=Path, nargs="+", required=True, help="gradients without other digits")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    plain, planted = seen_in(given.plain), seen_in(given.planted)
    vectors = {
        len(own) for s in map(read_sketches, given.planted) for m in s.vectors.values() for own in m.values()
    }
    keep(
        given.out,
        {
            "vectors of each language": sorted(vectors),
            "plain": {module: asdict(seen) for module, seen in plain.items()},
            "planted": {module: asdict(seen) for module, seen in planted.items()},
            "rows": [row(module, plain[module], planted[module]) for module in plain],
        },
    )


if __name__ == "__main__":
    main()

"""The headroom of a split of the bundled model's last layer, and a control in which headroom was planted.

In the control, half of the languages write other digits than are spoken (each plus three, modulo ten), so copies of the
last layer that are not shared with the other half have something to gain; a training that is long enough finds it.

    sprachbund data make phrasebook --edition bundled --utterances 3600 --heldout 300 --seed 77 --out DIR
    python -m benchmarks.headroom DIR --out docs/results/headroom_bundled.json
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.rows import keep

from sprachbund.data.manifest import Manifest
from sprachbund.models.io import bundled_directory, load
from sprachbund.research.gradient_sharing.gradients import GradientExample
from sprachbund.research.gradient_sharing.headroom import ALL, Headroom, measure_headroom
from sprachbund.research.gradient_sharing.headroom_options import HeadroomOptions
from sprachbund.research.gradient_sharing.recipe import other_digits
from sprachbund.util.provenance import model_hash

PERMUTED = ("de", "en", "ru")
OTHERS = ("es", "fr", "it")
BY_HALVES = f"{'+'.join(PERMUTED)},{'+'.join(OTHERS)}"
ACROSS = "de+es+fr,en+it+ru"


def changed(example: GradientExample) -> GradientExample:
    """Digits plus three, for half of the languages spoken."""
    if example.source not in PERMUTED:
        return example
    return replace(example, text=other_digits(example.text, example.target))


def row(what: str, language: str, result: Headroom) -> dict[str, object]:
    """One language of the table, or the mean of all."""
    losses = (
        {} if language == ALL else {"before": result.before[language], "together": result.together[language]}
    )
    gains = {
        {BY_HALVES: "halves", ACROSS: "across the halves"}.get(arm, arm): by_language[language]
        for arm, by_language in result.gains.items()
    }
    return {
        "targets": what,
        "language": language,
        **{name: f"{losses[name]:.3f}" if losses else "" for name in ("before", "together")},
        **{
            arm: f"{gain.gain:+.3f} ({gain.interval[0]:+.3f} to {gain.interval[1]:+.3f})"
            for arm, gain in gains.items()
        },
    }


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="a phrasebook with train and dev")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--utterances", type=int, default=240)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    options = HeadroomOptions(
        groups=(BY_HALVES, ACROSS),
        utterances=given.utterances,
        held_out=200,
        epochs=given.epochs,
        learning_rates=(1e-4, 3e-4),
        seeds=3,
    )
    model = load("bundled")
    train, dev = [Manifest(given.data / "train")], [Manifest(given.data / "dev")]
    results = {
        "as they are": measure_headroom(model, train, dev, options),
        "other digits in de, en, ru": measure_headroom(model, train, dev, options, rewrite=changed),
    }
    rows = [row(what, tag, part) for what, part in results.items() for tag in (*part.together, ALL)]
    measured = {what: asdict(part) for what, part in results.items()}
    keep(
        given.out,
        {
            "model_hash": model_hash(bundled_directory()),
            "options": asdict(options),
            "measured": measured,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()

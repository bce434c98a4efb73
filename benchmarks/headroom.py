"""The headroom of a split of the bundled model's last layer, with the control of `share headroom`.

Groups are of related languages. In the control, words of half of the texts are exchanged: copies of the layer gain
there, if the training is long enough to see a gain.

    sprachbund data make phrasebook --edition bundled --utterances 7200 --heldout 300 --seed 77 --out DIR
    python -m benchmarks.headroom DIR --out docs/results/headroom_bundled.json
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.rows import keep

from sprachbund.data.manifest import Manifest
from sprachbund.models.io import bundled_directory, load
from sprachbund.research.gradient_sharing.headroom import (
    ALL,
    BY_WORDS,
    Gain,
    Headroom,
    gain_where_unchanged,
    measure_headroom,
)
from sprachbund.research.gradient_sharing.headroom_options import ALONE, HeadroomOptions
from sprachbund.util.provenance import model_hash

UNCHANGED = "all without *"
RELATED = "de+en,es+fr+it,ru"
COLUMNS = {ALONE: ALONE, RELATED: "related", BY_WORDS: BY_WORDS}
"""Arm to the column of its gain; the second is of the measurement alone, the third of the control."""


def row(what: str, language: str, result: Headroom) -> dict[str, object]:
    """One language of the table, or the mean of all."""
    losses = (
        {"before": result.before[language], "together": result.together[language]}
        if language in result.before
        else {}
    )
    gains = {COLUMNS[arm]: estimate(by_language, language) for arm, by_language in result.gains.items()}
    return {
        "texts": what,
        "language": language,
        **{name: f"{losses[name]:.3f}" if losses else "" for name in ("before", "together")},
        **{name: gains.get(name, "") for name in COLUMNS.values()},
    }


def estimate(gains: Mapping[str, Gain], language: str) -> str:
    """The gain of a language, of all, or of all whose texts are as they were, with its interval."""
    if language == UNCHANGED:
        value, interval = gain_where_unchanged(gains)
    else:
        value, interval = gains[language].gain, gains[language].interval
    return f"{value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})"


def rows_of(measured: Headroom) -> list[dict[str, object]]:
    """The measurement, then its control."""
    assert measured.control is not None
    own = [row("as they are", tag, measured) for tag in (*measured.together, ALL)]
    tags = (*measured.control.together, ALL, UNCHANGED)
    return [*own, *(row("control, words exchanged", tag, measured.control) for tag in tags)]


def main() -> None:
    """Measure, with the control."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="a phrasebook with train and dev")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--utterances", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    options = HeadroomOptions(
        groups=(RELATED,),
        utterances=given.utterances,
        held_out=200,
        epochs=given.epochs,
        learning_rates=(3e-4, 1e-3),
        seeds=3,
    )
    model = load("bundled")
    measured = measure_headroom(
        model, [Manifest(given.data / "train")], [Manifest(given.data / "dev")], options
    )
    keep(
        given.out,
        {
            "model_hash": model_hash(bundled_directory()),
            "options": asdict(options),
            "measured": asdict(measured),
            "rows": rows_of(measured),
        },
    )


if __name__ == "__main__":
    main()

"""Writes scores into the card of a model, from the manifests of its test sets.

python -m scripts.card_scores src/sprachbund/models/assets/bundled docs/results/{synthetic,composed,known}.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sprachbund.evaluation.manifest import ResultManifest, read_manifest
from sprachbund.models.card import Card

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Read the command line and write the card."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="directory of the model")
    parser.add_argument("manifests", type=Path, nargs="+", help="what `sprachbund evaluate` wrote of it")
    given = parser.parse_args()
    write_scores(given.model, given.manifests)


def write_scores(directory: Path, manifests: Sequence[Path]) -> None:
    """Put the scores of these manifests in the place of those that the card has.

    Args:
        directory: directory of the model.
        manifests: one for each row.
    """
    card = Card.read(directory)
    if card is None:
        raise SystemExit(f"{directory} has no card; give the directory of a model")
    scores = [_score(path, read_manifest(path)) for path in manifests]
    card.model_copy(update={"scores": scores}).write(directory)


def _score(path: Path, manifest: ResultManifest) -> dict[str, Any]:
    kind: dict[str, Any] = {"task": "translation", "text": "raw", "guard": True}
    mean = manifest.number("chrF", "all", group="mean", **kind)
    if mean is None:
        raise SystemExit(
            f"{path} has no chrF of translations behind the guard; evaluate a corpus that has some"
        )
    pairs = [number for number in manifest.numbers if number.metric == "chrF" and number.group == "pair"]
    absolute = path.resolve()
    tier = manifest.configuration.get("right_context")
    return {
        "test_set": ", ".join(data.name for data in manifest.data),
        "metric": "chrF, mean over translation pairs, behind the guard"
        + ("" if tier is None else f", {tier} frames ahead"),
        "value": round(mean.value, 2),
        "pairs": len({pair.member for pair in pairs if pair.task == "translation"}),
        "manifest": str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else path),
    }


if __name__ == "__main__":
    main()

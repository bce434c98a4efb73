"""The mean of a conformer's weights and of those that were trained on from it (arXiv 2109.01903), in 8 bits.

    python -m scripts.average_weights bundled runs/next/best/best.*.safetensors --share 0.5 --out runs/averaged

The bundled model was made so: training on gains voices and loses old sentences, and the mean has most of the gain
without the loss. The share is chosen on dev data.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from sprachbund.models.conformer.extension import add_languages
from sprachbund.models.conformer.io import load, save
from sprachbund.models.io import locate


def main() -> None:
    """Read the command line and write the model directory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="directory or name of the model before")
    parser.add_argument("weights", type=Path, nargs="+", help="checkpoints, whose mean is taken first")
    parser.add_argument(
        "--share", type=float, default=0.5, help="of the checkpoints; 1 leaves nothing of the model"
    )
    parser.add_argument(
        "--new-languages", nargs="*", default=[], help="those that the checkpoints have and the model lacks"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    average(given.model, given.weights, given.share, given.out, given.new_languages)


def average(
    model: str, weights: Sequence[Path], share: float, out: Path, new_languages: Sequence[str] = ()
) -> None:
    """Write the mean of a model and of checkpoints.

    Args:
        model: directory or name of the model before.
        weights: checkpoints, whose mean is taken first.
        share: of the checkpoints.
        out: directory of the result.
        new_languages: languages that the checkpoints have and the model lacks; there they begin as in training.
    """
    started = add_languages(load(locate(model)), dict.fromkeys(new_languages, "mean"))
    checkpoints = [load_file(path) for path in weights]
    mean = started.state_dict()
    for name, weight in mean.items():
        trained = sum(checkpoint[name].float() for checkpoint in checkpoints) / len(checkpoints)
        mean[name] = (1.0 - share) * weight.float() + share * trained
    started.load_state_dict(mean)
    save(started, out, bits=8)


if __name__ == "__main__":
    main()

"""The mean of a conformer's weights and of those that were trained on from it (arXiv 2109.01903), in 8 bits.

    python -m scripts.average_weights bundled runs/next/best/best.*.safetensors --share 0.5 --out runs/averaged

The bundled model was made so: training on gains voices and loses old sentences, and the mean has most of the gain
without the loss. The share is chosen on dev data. A language that the model before lacks has its token as it was
trained: there is nothing to keep of it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sprachbund.models.conformer.extension import add_languages
from sprachbund.models.conformer.io import load, save
from sprachbund.models.io import locate

EMBEDDING = "decoder.embedding.weight"
"""Name of the weights that have a row for each token."""


def main() -> None:
    """Read the command line and write the model directory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="directory or name of the model before")
    parser.add_argument(
        "weights", type=Path, nargs="+", help="checkpoints or model directories, whose mean is taken first"
    )
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
        weights: checkpoints or model directories, whose mean is taken first.
        share: of the checkpoints.
        out: directory of the result.
        new_languages: languages that the checkpoints have and the model lacks; their tokens are the checkpoints'.
    """
    started = add_languages(load(locate(model)), dict.fromkeys(new_languages, "mean"))
    checkpoints = [load(path).state_dict() if path.is_dir() else load_file(path) for path in weights]
    mean: dict[str, Tensor] = started.state_dict()
    new = [started.tokenizer.language_id(language) for language in new_languages]
    for name, weight in mean.items():
        trained = torch.stack([checkpoint[name].float() for checkpoint in checkpoints]).mean(0)
        mean[name] = (1.0 - share) * weight.float() + share * trained
        if name == EMBEDDING:
            mean[name][new] = trained[new]
    started.load_state_dict(mean)
    save(started, out, bits=8)


if __name__ == "__main__":
    main()

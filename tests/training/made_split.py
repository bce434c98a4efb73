"""As `tests.training.made`, with a model split by language: `python -m tests.training.made_split DIRECTORY STEPS`."""

import sys
from pathlib import Path

import torch

from sprachbund.models.conformer import Conformer
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.research.gradient_sharing.surgery import apply_plan
from sprachbund.training.loop import train
from tests.training import made

ENCODER = "encoder.layers.1.feed_forward_out"
DECODER = "decoder.layers.0.feed_forward"


def make_split_model() -> Conformer:
    """A branch for each language, in the encoder and in the decoder."""
    split = {"groups": [["de"], ["en"]], "shared_ratio": 0.5, "start": "random"}
    splits = [{**split, "module": ENCODER}, {**split, "module": DECODER, "side": "target"}]
    model = made.make_model()
    apply_plan(model, SharingPlan.model_validate({"splits": splits}))
    return model


def main() -> None:
    torch.set_num_threads(1)
    directory, steps = Path(sys.argv[1]), int(sys.argv[2])
    data = made.make_training_data(directory / "data")
    # So few utterances in a batch that a process's share often lacks a language.
    chosen = made.options(steps, batch_s=1.5)
    model = train(make_split_model(), data, chosen, directory / "run")
    torch.save(model.state_dict(), directory / "run" / "weights.pt")


if __name__ == "__main__":
    main()

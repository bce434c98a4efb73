"""Makes the streaming model of the package from nothing: data, training, calibration, scores, and its card.

    python -m scripts.bundled_streaming --out runs/bundled-streaming
    python -m scripts.bundled_streaming --out runs/bundled-streaming --set training.steps=40000

The same command goes on where it was stopped. What is made is in OUT: `corpora`, a run, `model`, the result, and
`results`, the manifests that docs/streaming_card.md shows. Python's packages and Debian's are needed as `docs/data.md`
lists them. The training begins with the bundled model, which is in the package.
"""

import argparse
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import torch
from scripts.bundled import ROOT, make_sentences, sprachbund
from scripts.card_scores import write_scores

from sprachbund.evaluation.manifest import write_rows
from sprachbund.models.card import Card
from sprachbund.models.conformer import Conformer
from sprachbund.models.io import content_hash, load, save
from sprachbund.text.tokenizer import BLANK
from sprachbund.training.loop import CONVERGENCE_FILE
from sprachbund.util import provenance

RECIPE = ROOT / "recipes" / "bundled_streaming.toml"
TIERS = (27, 13, 6)
TEST_SETS = {
    "synthetic": "phrasebook/test",
    "composed": "telephone/composed",
    "known": "telephone/known",
    "unheard": "telephone/unheard",
    "unseen": "telephone/unseen",
}
"""Name of the manifests to the corpus."""
FITTED_ON = (
    "phrasebook/dev",
    "telephone_more/dev",
    "telephone_more/train",
    "new_voices/train",
    "outside/dev",
)
BLANK_PENALTY = 1.0
"""By so much the bias of the blank is lowered after the training: benchmarks/streaming_blank.py found it on dev."""
TESTED_ON = ("outside_200/test", *TEST_SETS.values())
NAME = "bundled-streaming"
SHIPPED = ROOT / "src" / "sprachbund" / "models" / "assets" / NAME
RESULTS = ROOT / "docs" / "results"


def main() -> None:
    """Read the command line and make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bundled-streaming"), help="folder of everything that is made"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that make data")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="value of the recipe")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure the model in the package instead, and write its card and docs/results",
    )
    given = parser.parse_args()
    out: Path = given.out.resolve()
    make_data(out, given.workers)
    if given.measure:
        measure(out)
        return
    settings = [argument for change in given.set for argument in ("--set", change)]
    if not (out / "run" / "model" / "card.json").exists():
        sprachbund("train", str(RECIPE), "--out", "run", *settings, folder=out)
    calibrate(out)


def make_data(out: Path, workers: int) -> None:
    """Sentences, speech of all synthesizers and of five people, other sound, and the test sets of the bundled model.

    Args:
        out: folder of everything that is made.
        workers: processes.
    """
    make_sentences(out)

    def make(kind: str, name: str, *more: str) -> None:
        sprachbund("data", "make", kind, *more, "--out", f"corpora/{name}", folder=out)

    book = ("--edition", "bundled", "--workers", str(workers))
    trained = (*book, "--heldout", "1")
    wording = ("--sentences", "corpora/sentences", "--sentence-share")
    make("phrasebook", "book", *trained, "--utterances", "20000", "--seed", "101", *wording, "0.6")
    others = ("--utterances", "8000", "--seed", "21", "--synthesizers", "festival,flite,pico")
    make("phrasebook", "other_voices", *trained, *others, *wording, "0.75")
    voices = ("--utterances", "3000", "--seed", "9", "--synthesizers", "espeak-ng,festival,flite,pico")
    make("phrasebook", "new_voices", *trained, *voices)
    make("phrasebook", "dev_book", *book, "--utterances", "6", "--heldout", "40", "--seed", "2")
    telephone = ("--workers", str(workers), "--utterances")
    make("telephone", "telephone_more", *telephone, "10000", "--heldout", "40")
    # Not trained on:
    make("phrasebook", "phrasebook", *book, "--utterances", "500")
    make("telephone", "telephone", *telephone, "40")
    make("outside", "outside", "--per-kind", "400")
    make("outside", "outside_200")


def calibrate(out: Path) -> None:
    """Let the result of the training leave out less, and find out what it does not understand, in `model`.

    Args:
        out: folder of everything that is made.
    """
    model = out / "model"
    if not (model / "domain.json").exists():
        with_blank_penalty(out / "run" / "model", model, BLANK_PENALTY)
        heard = [f"corpora/{part}" for part in FITTED_ON]
        sprachbund("calibrate", *heard, "--max-dropped", "0.015", "--model", "model", folder=out)
    print(f"{model} is finished; copy it to {SHIPPED} to ship it, and measure it with --measure")


def with_blank_penalty(directory: Path, to: Path, penalty: float) -> None:
    """Write a transducer whose blank costs more, so that it leaves out less.

    Args:
        directory: directory of the model.
        to: directory of the result.
        penalty: nats by which the bias of the blank is lowered.
    """
    model = load(directory, offline=True)
    assert isinstance(model, Conformer)
    with torch.no_grad():
        model.transducer.joint.out.bias[BLANK] -= penalty
    save(model, to, bits=8, card=Card.read(directory))


def measure(out: Path) -> None:
    """Measure the model that is in the package, on all test sets by all tiers, and what it does not understand.

    Args:
        out: folder of everything that is made.
    """
    heard = [argument for part in TESTED_ON for argument in ("--test", f"corpora/{part}")]
    sprachbund("calibrate", *heard, "--model", NAME, "--out", "domain", folder=out)
    shutil.copy(out / "domain" / "domain.json", RESULTS / "streaming_domain.json")
    manifests = []
    for tier in TIERS:
        for name, corpus in TEST_SETS.items():
            where = (
                "--engine",
                "native",
                "--threads",
                "1",
                "--tier",
                str(tier),
                "--out",
                f"scores/{name}_{tier}",
                "--overwrite",
            )
            sprachbund("evaluate", f"corpora/{corpus}", "--model", NAME, *where, folder=out)
            manifests.append(RESULTS / f"streaming_{name}_{tier}.json")
            shutil.copy(out / "scores" / f"{name}_{tier}" / "scores.json", manifests[-1])
    write_scores(SHIPPED, manifests)
    write_rows(training_table(out), RESULTS / "streaming_training.json")


def training_table(out: Path) -> dict[str, Any]:
    """The losses on dev as they stand in `convergence.json` of the run.

    Args:
        out: folder of everything that is made.
    """
    evaluations = json.loads((out / "run" / CONVERGENCE_FILE).read_text())["evaluations"]
    batch_s = tomllib.loads(RECIPE.read_text())["training"]["batch_s"]
    return {
        "machine": provenance.machine(),
        "model": content_hash(SHIPPED),
        "command": "python -m scripts.bundled_streaming",
        "rows": [
            {
                "batches": one["step"],
                "hours_of_speech_heard": round(one["step"] * batch_s / 3600, 1),
                "dev_loss": round(one["value"], 4),
            }
            for one in evaluations
        ],
    }


if __name__ == "__main__":
    main()

"""A cascade of the bundled model and a text model that is trained here, beside the bundled model alone.

    sprachbund data make phrasebook --edition standard --utterances 4000 --out corpora/ground
    python -m benchmarks.trained_cascade --data corpora/ground --out runs/trained_cascade

The text model learns four pairs from texts of the phrasebook alone, none of them of a meaning that dev and test hold.
It never hears speech. Both are evaluated on the speech of the test part, and the German sentences of it once more as
a talk of five minutes, live. The results are `docs/results/ground_cascade.json`, `ground_direct.json` and
`ground_live.json`. A run that was broken off goes on.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from sprachbund.research.discrete_units.data import phrases
from sprachbund.util.files import write_json, write_text

SOURCES, TARGET, PAIRS = ("de", "es", "fr", "it"), "en", 20_000
RESULTS = Path("docs/results")
RECIPE = """\
units = "{out}/units"
dev = ["{out}/encoded-dev"]
ratio = 1.0
{bitext}
[mixing]
sampling = 0.0

[model]
head = "attention"
block = "e_branchformer"
embedding_width = 160
width = 160
num_heads = 4
num_lower = 2
num_upper = 2
num_decoder_layers = 3
feed_forward_width = 320
decoder_feed_forward_width = 640
kernel_size = 15
strides = 0
max_tokens = 80

[training]
steps = {steps}
optimizer = "muon"
learning_rate = 2e-3
warmup_steps = 100
batch_s = 60
num_workers = 0
evaluate_every = 250
keep_best = 3

[card]
name = "phrasebook, text into English"
"""
PART = '[[bitext]]\npaths = ["{out}/{source}-{target}.tsv"]\nsource = "{source}"\ntarget = "{target}"\n'


def sprachbund(*words: str | Path) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, "-m", "sprachbund", *map(str, words)], check=True)


def train(data: Path, out: Path, steps: int) -> Path:
    """The directory of the text model."""
    out.mkdir(parents=True, exist_ok=True)
    tables = [out / f"{source}-{TARGET}.tsv" for source in SOURCES]
    for source, table in zip(SOURCES, tables, strict=True):
        if not table.exists():
            write_text(table, phrases(source, TARGET, PAIRS))
    if not (out / "units").exists():
        # Units are of no use to a model of texts; its vocabulary comes with some.
        few = (
            "--layer",
            "5",
            "--share",
            "0.02",
            "--clusters",
            "50",
            "--unit-pieces",
            "60",
            "--text-pieces",
            "2000",
        )
        texts = (word for table in tables for word in ("--texts", table))
        sprachbund("units", "fit", "bundled", data / "train", *few, *texts, "--out", out / "units")
    if not (out / "encoded-dev").exists():
        sprachbund("units", "encode", out / "units", data / "dev", "--out", out / "encoded-dev")
    recipe = out / "recipe.toml"
    parts = "".join(PART.format(out=out, source=source, target=TARGET) for source in SOURCES)
    write_text(recipe, RECIPE.format(out=out, bitext=parts, steps=steps))
    sprachbund("train", recipe, "--out", out / "run")
    return out / "run" / "model"


def evaluate(data: Path, model: Path | str, out: Path, result: Path) -> None:
    """Evaluate a model on the test part, and keep its manifest."""
    sprachbund("evaluate", data / "test", "--model", model, "--to", TARGET, "--out", out)
    shutil.copy(out / "scores.json", result)


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--steps", type=int, default=3000)
    given = options.parse_args()
    model = train(given.data, given.out, given.steps)
    cascade = given.out / "cascade"
    cascade.mkdir(exist_ok=True)
    shutil.copytree(model, cascade / "translator", dirs_exist_ok=True)
    write_json(
        cascade / "config.json",
        {"model_type": "cascade", "recogniser": "bundled", "translator": "translator"},
    )
    evaluate(given.data, cascade, given.out / "evaluated-cascade", RESULTS / "ground_cascade.json")
    evaluate(given.data, "bundled", given.out / "evaluated-direct", RESULTS / "ground_direct.json")
    live = (sys.executable, "-m", "benchmarks.live_cascade", "--then", model, "--what", "trained on texts")
    talk = ("--data", given.data / "test", "--source", "de", "--target", TARGET, "--minutes", "5")
    subprocess.run([*map(str, (*live, *talk)), "--out", RESULTS / "ground_live.json"], check=True)


if __name__ == "__main__":
    main()

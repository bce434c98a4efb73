"""Makes the bundled model from nothing: data, training in stages, calibration, and the directory that is shipped.

    python -m scripts.bundled --out runs/bundled
    python -m scripts.bundled --out runs/bundled --steps 40000 --set training.batch_s=1500      # for a GPU

The same command goes on where it was stopped. What is made is in OUT: `corpora`, a run for each stage, and `model`, the
result. Python's packages and Debian's are needed as `docs/data.md` lists them; catalogues of texts are downloaded from
PyPI. With `--leave-out SPEAKER` one of the recorded speakers is kept out of training, and checkpoints are chosen by
that speaker: this is how the number of steps and the augmentation are chosen, and never by a test set.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "bundled.toml"
# Texts of people who know the languages, under licences that allow models to be shared: Apache-2.0, BSD, MIT and
# PostgreSQL's.
CATALOGUES = (
    "homeassistant==2026.2.3",
    "home-assistant-frontend==20261028.6",
    "django==6.1.3",
    "wagtail==8.0.1",
    "django-oscar==4.2.1",
    "django-allauth==65.21.1",
    "django-machina==1.3.1",
    "django-two-factor-auth==1.18.1",
    "apache-superset==6.1.0",
    "indico==3.0rc1",
    "pgadmin4==9.18",
)
# The encoder learns nothing from long utterances at first (docs/decisions.md).
SHORT = (
    "training.max_duration_s=3.5",
    "examples.time_masks=0",
    "examples.frequency_masks=0",
    "training.steps=1000",
)
MAX_MB = 25.0


def main() -> None:
    """Read the command line and make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bundled"), help="folder of everything that is made"
    )
    parser.add_argument("--steps", type=int, default=12_000, help="steps of the second stage")
    parser.add_argument("--workers", type=int, default=2, help="processes that make data")
    parser.add_argument(
        "--leave-out", metavar="SPEAKER", help="recorded speaker that is kept out of training"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="value of the recipe")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    make_data(out, given.workers, given.leave_out)
    train(out, given.steps, given.set, given.leave_out)
    ship(out)
    calibrate(out)


def make_data(out: Path, workers: int, leave_out: str | None) -> None:
    """Sentences, dev and test parts of the phrasebook, speech of all synthesizers, telephone prompts, and other sound.

    The other training sentences are spoken by espeak-ng while the model trains.

    Args:
        out: folder of everything that is made.
        workers: processes.
        leave_out: recorded speaker that is kept out of training.
    """
    corpora = out / "corpora"
    make_sentences(out)
    book = ("data", "make", "phrasebook", "--edition", "bundled", "--workers", str(workers))
    sprachbund(*book, "--utterances", "500", "--out", str(corpora / "phrasebook"))
    speakers = ("--synthesizers", "espeak-ng,festival,flite,pico")
    wording = ("--sentences", str(corpora / "sentences"), "--sentence-share", "0.75", *speakers)
    voices = ("--utterances", "20000", "--heldout", "1", "--seed", "21", "--out", str(corpora / "voices"))
    sprachbund(*book, *wording, *voices)
    left_out = ("--leave-out", leave_out) if leave_out else ()
    telephone = ("--workers", str(workers), "--out", str(corpora / "telephone"))
    sprachbund("data", "make", "telephone", *speakers, *left_out, *telephone)
    # Two more that nothing is trained on: what the model shall not understand, and new voices that it shall.
    sprachbund("data", "make", "outside", "--per-kind", "400", "--out", str(corpora / "outside"))
    voices = ("--utterances", "3000", "--heldout", "1", "--seed", "9", "--out", str(corpora / "new_voices"))
    sprachbund(*book, *speakers, *voices)


def make_sentences(out: Path) -> None:
    """Sentences of the message catalogues, and composed ones.

    Args:
        out: folder of everything that is made.
    """
    corpora, wheels = out / "corpora", out / "wheels"
    if not (corpora / "sentences" / "train.tsv").exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        run([*pip, "--python-version", "3.14", "--dest", str(wheels), *CATALOGUES])
        sources = sorted(map(str, wheels.glob("*.whl")))
        composed = ("--composed", "100000", "--out", str(corpora / "sentences"))
        sprachbund("data", "make", "sentences", *sources, *composed)


def train(out: Path, steps: int, changes: Sequence[str], leave_out: str | None) -> None:
    """The stages of the recipe, each from where the one before ended.

    Args:
        out: folder of everything that is made.
        steps: of the second stage.
        changes: values of the recipe, as `sprachbund train --set` takes them.
        leave_out: speaker by whom checkpoints are chosen, in place of the training speakers.
    """
    if leave_out:
        changes = [
            *changes,
            'dev=[{path="corpora/telephone/left_out"}, {path="corpora/telephone/dev_prompts"}]',
        ]
    stages = {"short": SHORT, "whole": (f"start={out / 'short' / 'model'}", f"training.steps={steps}")}
    for name, own in stages.items():
        if not (out / name / "model" / "card.json").exists():
            settings = [argument for change in (*own, *changes) for argument in ("--set", change)]
            sprachbund("train", str(RECIPE), "--out", str(out / name), *settings, folder=out)


def ship(out: Path) -> None:
    """Copy the result to `model`, if it is small enough to be part of the package.

    Args:
        out: folder of everything that is made.
    """
    size_mb = sum(path.stat().st_size for path in (out / "whole" / "model").iterdir()) / 1e6
    if size_mb > MAX_MB:
        raise SystemExit(
            f"the model has {size_mb:.1f} MB, more than {MAX_MB:g}; make it narrower in {RECIPE}"
        )
    shutil.copytree(out / "whole" / "model", out / "model", dirs_exist_ok=True)


def calibrate(out: Path) -> None:
    """Let the model find out what it does not understand, and when a speaker has finished.

    Args:
        out: folder of everything that is made.
    """
    corpora, model = out / "corpora", out / "model"
    if not (model / "domain.json").exists():
        parts = ("phrasebook/dev", "telephone/dev", "telephone/train", "new_voices/train", "outside/dev")
        heard = [str(corpora / part) for part in parts]
        sprachbund("calibrate", *heard, "--max-dropped", "0.015", "--model", str(model))
    if not (model / "turns.json").exists():
        sprachbund("calibrate", str(corpora / "telephone" / "train"), "--turns", "--model", str(model))
    print(f"{model} is finished; copy it to src/sprachbund/models/assets/bundled to ship it")


def sprachbund(*arguments: str, folder: Path | None = None) -> None:
    """Run a command of the package.

    Args:
        arguments: behind `sprachbund`.
        folder: to run it in.
    """
    run([sys.executable, "-m", "sprachbund", *arguments], folder)


def run(command: Sequence[str], folder: Path | None = None) -> None:
    """Run a command, and end with its exit status if it fails.

    Args:
        command: program and arguments.
        folder: to run it in.
    """
    print("$", " ".join(command), flush=True)
    if status := subprocess.run(command, cwd=folder, check=False).returncode:
        raise SystemExit(status)


if __name__ == "__main__":
    main()

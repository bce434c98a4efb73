"""A cascade of the bundled model and a text model that is trained here, beside the bundled model alone.

    sprachbund data make phrasebook --edition standard --utterances 4000 --out corpora/ground
    python -m benchmarks.trained_cascade --data corpora/ground --out runs/trained_cascade

The text model learns four pairs from texts of the phrasebook alone, none of them of a meaning that dev and test hold.
It never hears speech. Both are evaluated on the speech of the test part, and the German sentences of it once more as
a talk of five minutes, live. `ground_failures.json` has which half of the cascade a wrong translation comes from.
The others in `docs/results` are `ground_cascade.json`, `ground_direct.json` and `ground_live.json`. A run that was
broken off goes on.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import write

from sprachbund.research.discrete_units.data import phrases
from sprachbund.util.files import write_json, write_text
from sprachbund.util.provenance import commit

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


def evaluate(data: Path, model: Path | str, out: Path, *, to: str = TARGET) -> None:
    """Evaluate a model on the test part."""
    sprachbund("evaluate", data / "test", "--model", model, "--to", to, "--out", out, "--overwrite")


def texts(evaluated: Path, *, translated: bool) -> dict[str, dict[str, Any]]:
    """Of every utterance in another language the translation, or the transcript, by its id."""
    lines = map(json.loads, (evaluated / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines())
    return {
        line["id"]: line
        for line in lines
        if line["source"] in SOURCES and (line["target"] == line["source"]) != translated
    }


def failures(cascade: Path, transcripts: Path, direct: Path) -> list[dict[str, Any]]:
    """A row for each language: how many sentences are wrong, and of the cascade's whether the transcript already is.

    What one of the two models drops is counted, and left out of the rest. Wrong is what is not the reference, word for
    word.
    """

    def wrong(line: dict[str, Any]) -> bool:
        return bool(line["hypothesis"].split() != line["reference"].split())

    def dropped(line: dict[str, Any]) -> bool:
        return line["evidence"]["dropped"] is not None

    both, one = texts(cascade, translated=True), texts(direct, translated=True)
    written = texts(transcripts, translated=False)
    rows = []
    for source in SOURCES:
        all_of = [name for name, line in both.items() if line["source"] == source]
        kept = [n for n in all_of if not (dropped(both[n]) or dropped(one[n]) or dropped(written[n]))]
        by_cascade = [n for n in kept if wrong(both[n])]
        rows.append(
            {
                "from": source,
                "utterances": len(all_of),
                "dropped by the cascade": sum(dropped(both[n]) for n in all_of),
                "dropped by the direct model": sum(dropped(one[n]) for n in all_of),
                "kept by both": len(kept),
                "wrong, direct": sum(wrong(one[n]) for n in kept),
                "wrong, cascade": len(by_cascade),
                "behind a wrong transcript": sum(wrong(written[n]) for n in by_cascade),
                "behind a right transcript": sum(not wrong(written[n]) for n in by_cascade),
                "wrong transcripts": sum(wrong(written[n]) for n in kept),
            }
        )
    return rows


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
    of_cascade, transcripts, direct = (
        given.out / f"evaluated-{n}" for n in ("cascade", "transcripts", "direct")
    )
    evaluate(given.data, cascade, of_cascade)
    evaluate(given.data, cascade, transcripts, to=",".join(SOURCES))
    evaluate(given.data, "bundled", direct)
    shutil.copy(of_cascade / "scores.json", RESULTS / "ground_cascade.json")
    shutil.copy(direct / "scores.json", RESULTS / "ground_direct.json")
    rows = failures(of_cascade, transcripts, direct)
    write(RESULTS / "ground_failures.json", {"commit": commit(), "rows": rows})
    live = (sys.executable, "-m", "benchmarks.live_cascade", "--then", model, "--what", "trained on texts")
    talk = ("--data", given.data / "test", "--source", "de", "--target", TARGET, "--minutes", "5")
    subprocess.run([*map(str, (*live, *talk)), "--out", RESULTS / "ground_live.json"], check=True)


if __name__ == "__main__":
    main()

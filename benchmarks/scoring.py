"""What scoring and comparing cost: processor time and memory by the number of hypotheses.

The hypotheses are made: references of 2 to 12 words in 20 pairs, and systems that get a quarter to a third of the
words wrong. Every measurement is a fresh process; `score` reads a file of hypotheses and scores all of it, as
`evaluate` does while it decodes; `compare` is the real command, two systems, chrF and BLEU, bootstrap of 1,000
draws. Run: python -m benchmarks.scoring
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.rows import keep

from sprachbund.evaluation.lines import HYPOTHESES_FILE, DecodingEvidence, Line, LineWriter, read_lines
from sprachbund.evaluation.manifest import ModelUsed
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.scoring import Scoring

LANGUAGES = ("en", "de", "es", "fr", "it")
WORDS = [f"{a}{b}{c}" for a in ("ba", "de", "fi", "go", "lu") for b in ("", "n", "ra") for c in ("", "ste")]
WRONG = {"first": 0.30, "second": 0.25}


def made(count: int, wrong: float, seed: int) -> Iterator[Line]:
    """Lines whose references depend on the count alone, a share of whose words is wrong."""
    pairs = [(s, t) for s in LANGUAGES for t in LANGUAGES if s != t]
    words, errors = random.Random(7), random.Random(seed)
    for number in range(count):
        source, target = pairs[number % len(pairs)]
        reference = [words.choice(WORDS) for _ in range(words.randint(2, 12))]
        hypothesis = [errors.choice(WORDS) if errors.random() < wrong else word for word in reference]
        yield Line(
            id=f"{number}",
            source=source,
            target=target,
            hypothesis=" ".join(hypothesis),
            reference=" ".join(reference),
            evidence=DecodingEvidence(dropped="made" if errors.random() < 0.02 else None),
            transcript=" ".join(reversed(reference)),
            kind=f"kind-{number % 30}",
            speaker=f"speaker-{number % 60}",
        )


def score(path: Path) -> None:
    """Score a file."""
    scoring = Scoring(LANGUAGES, EvaluationOptions())
    for line in read_lines(path):
        scoring.add(line)
    scoring.manifest(ModelUsed(path="", name="", sha256=""), [])


def measure(*command: str) -> tuple[float, float]:
    """Processor seconds and peak MiB of a process, and of nothing else."""
    counted = [sys.executable, "-m", "benchmarks.scoring", "--counted", *command]
    done = subprocess.run(counted, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def counted(command: Sequence[str]) -> None:
    """Run a command as the only child, and print its cost behind what it printed."""
    subprocess.run(command, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, sizes in (("score", "1000,10000,30000"), ("compare", "1000,10000,100000")):
        parser.add_argument(f"--{name}", default=sizes, metavar="N,…", help="numbers of hypotheses")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--counted", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.counted:
        return counted(given.counted)
    if given.file:
        return score(given.file)
    wanted = {
        name: [int(size) for size in getattr(given, name).split(",") if size] for name in ("score", "compare")
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in sorted({*wanted["score"], *wanted["compare"]}):
            runs = {name: Path(folder) / f"{count}" / name for name in WRONG}
            for seed, (name, path) in enumerate(runs.items()):
                with LineWriter(path / HYPOTHESES_FILE) as writer:
                    for line in made(count, WRONG[name], seed):
                        writer.write(line)
            if count in wanted["score"]:
                file = str(runs["first"] / HYPOTHESES_FILE)
                rows.append(
                    row("score", count, *measure(sys.executable, "-m", "benchmarks.scoring", "--file", file))
                )
            if count in wanted["compare"]:
                command = [sys.executable, "-m", "sprachbund", "compare", *map(str, runs.values())]
                rows.append(row("compare", count, *measure(*command)))
    keep(given.out, {"rows": rows})


def row(what: str, count: int, seconds: float, peak: float) -> dict[str, object]:
    """A measurement; a comparison reads as many hypotheses of each of two systems."""
    return {"what": what, "hypotheses": count, "cpu_s": round(seconds, 1), "peak_mib": round(peak)}


if __name__ == "__main__":
    main()

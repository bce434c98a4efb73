"""What it costs to turn speech into units: reading, k-means and files beside the features alone, and memory.

`features` is the encoder over speech that is in memory; `one process` and `two processes` are `units encode` from the
corpus on disk to the manifest, starting processes and loading the model included. Rounds are interleaved; a ratio is
to one process in the same round. `more` ratios are of what four times as much speech costs beyond so much: without the
start. `cpu` counts the processor's seconds of all processes, which mean the same on a machine that is busy with other
work; time gained by two processes shows only where two cores are free (`cores`). Memory is the largest resident size of
a fresh process that makes units and encodes, for so much speech and for four times as much.
Run: python -m benchmarks.units [--full]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmarks.rows import keep

from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.engines.benchmark import peak_mib
from sprachbund.models.io import bundled_directory
from sprachbund.models.tokens.sources import encoder_hash
from sprachbund.models.tokens.unit_options import FitOptions, KMeansOptions, VocabularyOptions
from sprachbund.units.encoded import Encoding, Extraction, encode
from sprachbund.units.fit import Fit, make_units
from sprachbund.util.computing import Computing

LAYER = 5
MEAN_S = 6.3
"""Length of an utterance in the corpus that the published numbers are of."""
BLOCK = 16
TIMES = 4
"""How much more speech the longer runs take."""
OPTIONS = FitOptions(
    kmeans=KMeansOptions(clusters=100, n_init=1, max_iter=2),
    vocabulary=VocabularyOptions(unit_pieces=200, text_pieces=60),
    share=1.0,
)


def write_noise(directory: Path, count: int) -> Path:
    """Noise is as much work as speech."""
    rng = np.random.default_rng(0)
    with ManifestWriter(directory) as writer:
        for number in range(count):
            samples = 0.1 * rng.standard_normal(round(16_000 * MEAN_S * rng.uniform(0.5, 1.5)))
            text = "".join(rng.choice(list("abcde f"), 60))
            writer.add(samples, text=text, language="en", speaker="", utterance_id=f"u{number}")
    return directory


def extraction() -> Extraction:
    directory = bundled_directory()
    return Extraction(directory=directory, layer=LAYER, name="bundled", hash=encoder_hash(directory))


def fit(root: Path) -> Fit:
    return Fit(
        extraction=extraction(),
        data=(root / "corpus",),
        out=root / "units",
        options=OPTIONS,
        computing=Computing(block=BLOCK),
    )


def encoding(root: Path, name: str, workers: int) -> Encoding:
    return Encoding(
        units=root / "units",
        extraction=extraction(),
        data=root / "corpus",
        out=root / name,
        computing=Computing(workers=workers, block=BLOCK),
    )


def forms(root: Path) -> dict[str, Callable[[int], object]]:
    """Each form, given the number of the round."""
    source, manifest = extraction().open(), Manifest(root / "corpus")
    samples = [manifest.samples(i) for i in range(len(manifest))]
    return {
        "features": lambda n: [source.features(samples[i : i + 16]) for i in range(0, len(samples), 16)],
        "one process": lambda n: encode(encoding(root, f"one{n}", 1)),
        "two processes": lambda n: encode(encoding(root, f"two{n}", 2)),
    }


def processor_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(run: Callable[[int], object], number: int) -> tuple[float, float]:
    """Seconds, and seconds of all processes' processor."""
    start, used = time.perf_counter(), processor_s()
    run(number)
    return time.perf_counter() - start, processor_s() - used


def times(root: Path, rounds: int) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds of speech; and of each form (rounds, 2) seconds and processor seconds, one after the other."""
    make_units(fit(root))
    tried = forms(root)
    tried["features"](-1)  # warms up
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in tried}
    for number in range(rounds):
        for name, form in tried.items():
            taken[name].append(timed(form, number))
    speech_s = float(Manifest(root / "corpus").durations_s.sum())
    return speech_s, {name: np.array(values) for name, values in taken.items()}


def compare(count: int, rounds: int) -> list[dict[str, object]]:
    """A row for each form: whole runs, and what more speech costs once the processes run."""
    measured = []
    for number in (count, TIMES * count):
        with tempfile.TemporaryDirectory() as name:
            write_noise(Path(name) / "corpus", number)
            measured.append(times(Path(name), rounds if number == count else 1))
    (short_s, short), (long_s, long) = measured
    more = {
        name: (np.median(long[name], 0) - np.median(short[name], 0)) / (long_s - short_s) for name in short
    }
    return [
        {
            "form": name,
            "speech_s_per_s": round(float(short_s / np.median(taken[:, 0])), 1),
            "time_ratio": _ratio(taken[:, 0] / short["one process"][:, 0]),
            "cpu_ratio": _ratio(taken[:, 1] / short["one process"][:, 1]),
            "more_time_ratio": _ratio(more[name][0] / more["one process"][0]),
            "more_cpu_ratio": _ratio(more[name][1] / more["one process"][1]),
            "least_s": round(float(taken[:, 0].min()), 2),
            "most_s": round(float(taken[:, 0].max()), 2),
        }
        for name, taken in short.items()
    ]


def _ratio(values: np.ndarray) -> float:
    return round(float(np.median(values)), 2)


def peak_mb(count: int) -> dict[str, float]:
    """Of a fresh process that makes units of so many utterances and encodes them."""
    with tempfile.TemporaryDirectory() as root:
        write_noise(Path(root) / "corpus", count)
        command = [sys.executable, "-m", "benchmarks.units", "--memory", root]
        completed = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        "speech_h": round(count * MEAN_S / 3600, 3),
        "peak_mb": round(float(completed.stdout.splitlines()[-1])),
    }


def measure_memory(root: Path) -> float:
    make_units(fit(root))
    encode(encoding(root, "encoded", 1))
    return peak_mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more speech, more rounds")
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(measure_memory(options.memory))
        return
    count, rounds = (200, 5) if options.full else (32, 2)
    rows = compare(count, rounds)
    memory = [peak_mb(count), peak_mb(TIMES * count)]
    result = {"layer": LAYER, "rounds": rounds, "rows": rows, "memory": memory}
    keep(Path(__file__).with_suffix(".json"), result)
    for line in memory:
        print(f"{line['speech_h']} h of speech: {line['peak_mb']} MB at most")


if __name__ == "__main__":
    main()

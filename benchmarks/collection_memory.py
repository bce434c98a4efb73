"""Memory of `share analyse` beside the model: the most that a process holds while it makes one sketch.

The model stays on the CPU, so gradients on the device and copies of them in the machine are one figure here. Each case
is a fresh process; the model is held before the measurement begins. For another version of the package, set PYTHONPATH
and --version. Run: python -m benchmarks.collection_memory
"""

import argparse
import json
import multiprocessing
import tempfile
from pathlib import Path

import torch
from benchmarks.rows import keep
from benchmarks.sharing_cost import corpus, model

from sprachbund.research.gradient_sharing.collect import Collection
from sprachbund.research.gradient_sharing.collect_options import CollectOptions

SHAPE = {"width": 1024, "num_encoder_layers": 8, "num_decoder_layers": 1}


def high_water_bytes() -> int:
    """Most memory that this process held so far; on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def measure(folder: Path, accumulate: int) -> dict[str, object]:
    """One row, in a process of its own."""
    torch.set_num_threads(1)
    data = corpus(folder / "data", 2 * accumulate)
    options = CollectOptions(languages=("aa",), utterances=2 * accumulate, batch=2, accumulate=accumulate)
    collection = Collection(model(8192, **SHAPE), [data], options, folder / "parts")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = high_water_bytes()
    collection.run()
    gradient = 4 * collection.num_coordinates
    peak = high_water_bytes() - before
    return {
        "accumulate": accumulate,
        "analysed_m": round(collection.num_coordinates / 1e6, 1),
        "gradient_mb": round(gradient / 1e6),
        "held_mb": round(peak / 1e6),
        "gradients": round(peak / gradient, 2),
    }


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", default="now", help="name of this version in the table")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "collection_memory.json")
    given = parser.parse_args()
    rows = []
    if given.out.exists():
        rows = [row for row in json.loads(given.out.read_text())["rows"] if row["version"] != given.version]
    context = multiprocessing.get_context("spawn")
    for accumulate in (1, 4):
        with tempfile.TemporaryDirectory() as folder, context.Pool(1) as pool:
            rows.append({"version": given.version, **pool.apply(measure, (Path(folder), accumulate))})
    keep(given.out, {"rows": rows})


if __name__ == "__main__":
    main()

"""Where the memory goes of a process that starts with the native engine and writes the text of one window of 30 s.

Every shape is measured in a process of its own, after one that packs the weights, by what Linux says is resident, which
counts mapped files as far as they were read. Random weights serve. Run: python benchmarks/memory.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
Steps = dict[str, float]
"""MiB resident after each step, and at most."""
MOST = "most held"


def held_mib(field: str = "VmRSS") -> float:
    """Resident now, or at most so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not say how much memory a process holds")


def start(folder: Path, threads: int) -> Steps:
    """Go through the start in this process."""
    steps = {"Python": held_mib()}
    import numpy as np

    steps["numpy"] = held_mib()
    from sprachbund.cli.startup import undisturbed

    with undisturbed():
        import torch

        steps["torch"] = held_mib()
        from sprachbund.decoding.options import DecodingOptions
        from sprachbund.decoding.search import search
        from sprachbund.engines.choice import engine_for
        from sprachbund.models.base import Target
        from sprachbund.models.whisper.io import load
    torch.set_num_threads(threads)
    steps["other modules"] = held_mib()
    audio = np.load(folder / "audio.npy")
    steps["recording of 240 s"] = held_mib()
    directory = folder / "transformers"
    family = load(directory, offline=True)
    steps["tokenizer, head of the weights"] = held_mib()
    family = engine_for(
        family, "native", threads=threads, directory=directory, cache=folder / "packed", compare=False
    ).family  # type: ignore[assignment]
    steps["packed weights"] = held_mib()
    with torch.inference_mode():
        features = family.features([audio[: 30 * 16_000]])
        steps["features"] = held_mib()
        memory = family.encode(features)
        steps["encoder"] = held_mib()
        options = DecodingOptions(min_tokens=100, max_tokens=100)
        search(family, memory, [[Target(language="en", source="en")]], options)
    return {**steps, MOST: held_mib("VmHWM")}


def measure(shape: str, args: argparse.Namespace) -> Steps:
    """The steps of a shape, in a new process."""
    folder = args.folder / shape
    if not (folder / "made").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, HERE / "peers" / "checkpoint.py", "make", shape, folder], check=True)
        (folder / "made").touch()
    command = [sys.executable, __file__, "--worker", folder, "--threads", str(args.threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads)}
    for _ in range(2):
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(found)  # type: ignore[no-any-return]


def rows_of(measured: dict[str, Steps]) -> list[dict[str, str | float]]:
    """What each step added, in MiB, a column for each shape; decoding is what the most held is above the encoder."""
    rows: list[dict[str, str | float]] = []
    names = [*next(iter(measured.values()))]
    for before, name in zip([None, *names], names, strict=False):
        what = "keys, values, search" if name == MOST else name
        added = {s: steps[name] - (steps[before] if before else 0) for s, steps in measured.items()}
        rows.append({"step": what, **{f"{s}, MiB": round(mib, 1) for s, mib in added.items()}})
    return [*rows, {"step": MOST, **{f"{s}, MiB": round(steps[MOST], 1) for s, steps in measured.items()}}]


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["tiny", "base", "small"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sprachbund-peers")
    parser.add_argument("--out", type=Path, default=HERE / "memory.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(start(args.worker, args.threads)))
        return
    from rows import keep  # not above: what it imports is no part of what is measured

    rows = rows_of({shape: measure(shape, args) for shape in args.shapes})
    keep(args.out, {"threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()

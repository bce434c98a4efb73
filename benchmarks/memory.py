"""Where the memory goes of a process that starts with the native engine and writes the text of one window of 30 s.

faster-whisper beside it is measured in the same way, if its environment is given: by what Linux says is resident after
every step, the process's own pages apart from those of mapped files, which count as far as they were read. Pages of
libraries and of packed weights are of that second kind; they are shared by processes, and the system may take them
back. Every shape has a process of its own, after one that packs the weights. Random weights serve;
those of turbo lie in 16 bits, as it is published, and all of faster-whisper's do.

Run: python -m benchmarks.memory --peers .peers/bin/python
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOKENS = 100
MOST = "most held"
OURS, THEIRS = "sprachbund native int8", "faster-whisper int8"
Held = dict[str, float]
"""MiB: resident, of these the process's own, and the most resident so far."""
Steps = dict[str, Held]
FIELDS = {"resident": "VmRSS", "own": "RssAnon", "files": "RssFile", MOST: "VmHWM"}


def held() -> Held:
    """What is resident now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[field].split()[0]) / 1024 for name, field in FIELDS.items()}


def ours(folder: Path, threads: int) -> Steps:
    """Go through the start of the native engine, and a call, in this process."""
    steps = {"Python": held()}
    import numpy as np

    steps["numpy"] = held()
    from sprachbund.cli.startup import undisturbed

    with undisturbed():
        import torch

        steps["torch"] = held()
        from sprachbund.decoding.options import DecodingOptions
        from sprachbund.decoding.search import search
        from sprachbund.engines.choice import engine_for
        from sprachbund.models.base import Target
        from sprachbund.models.io import load
    torch.set_num_threads(threads)
    steps["other modules"] = held()
    audio = np.load(folder / "audio.npy")
    steps["recording of 240 s"] = held()
    directory = folder / "transformers"
    family = load(directory, offline=True, as_stored=True)
    steps["tokenizer, head of the weights"] = held()
    family = engine_for(
        family, "native", threads=threads, directory=directory, cache=folder / "packed", compare=False
    ).family
    steps["packed weights"] = held()
    with torch.inference_mode():
        features = family.features([audio[: 30 * 16_000]])
        steps["features"] = held()
        memory = family.encode(features)
        steps["encoder"] = held()
        options = DecodingOptions(min_tokens=TOKENS, max_tokens=TOKENS)
        search(family, memory, [[Target(language="en", source="en")]], options)
    steps["keys, values, search"] = held()
    return steps


def theirs(folder: Path, threads: int) -> Steps:
    """The same of faster-whisper, as far as it can be seen from outside."""
    steps = {"Python": held()}
    import numpy as np

    steps["numpy"] = held()
    sys.path.insert(0, str(HERE / "peers"))
    from with_faster_whisper import System
    from worker import Stopwatch

    steps["other modules"] = held()
    audio = np.load(folder / "audio.npy")
    steps["recording of 240 s"] = held()
    system = System(folder, "int8", threads, Stopwatch())
    steps["tokenizer, weights"] = held()
    system.transcribe([audio[: 30 * 16_000]], TOKENS, 1)
    steps["features, encoder, search"] = held()
    return steps


def measure(shape: str, args: argparse.Namespace) -> dict[str, Steps]:
    """The steps of a shape by system, each in a new process."""
    folder = args.folder / shape
    make, python = HERE / "peers" / "checkpoint.py", sys.executable
    if not (folder / "made").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([python, make, "make", shape, folder], check=True)
        (folder / "made").touch()
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads)}
    measured = {OURS: run(python, OURS, folder, args.threads, env)}
    if args.peers is not None:
        env["PYTHONPATH"] = sysconfig.get_path("purelib")  # of torch, which the converter needs
        if not (folder / "converted-ctranslate2").exists():
            subprocess.run([args.peers, make, "ctranslate2", folder], check=True, env=env)
            (folder / "converted-ctranslate2").touch()
        del env["PYTHONPATH"]
        measured[THEIRS] = run(args.peers, THEIRS, folder, args.threads, env)
    return measured


def run(python: str, system: str, folder: Path, threads: int, env: dict[str, str]) -> Steps:
    """The steps of a system in the second of two processes."""
    command = [python, __file__, "--worker", system, "--folder", folder, "--threads", str(threads)]
    for _ in range(2):
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(output)  # type: ignore[no-any-return]


def rows_of(measured: dict[str, dict[str, Steps]]) -> list[dict[str, Any]]:
    """What each step added to the process's own pages and to those of files, in MiB; then what was held at the end."""
    rows: list[dict[str, Any]] = []
    for system in next(iter(measured.values())):
        steps = {shape: of[system] for shape, of in measured.items()}
        names = [*next(iter(steps.values()))]
        for before, name in zip([None, *names], names, strict=False):
            row: dict[str, Any] = {"system": system, "step": name}
            for shape, each in steps.items():
                added = {k: each[name][k] - (each[before][k] if before else 0) for k in ("own", "files")}
                row[f"{shape}, MiB"] = f"{added['own']:.1f} + {added['files']:.1f}"
            rows.append(row)
        last = {shape: each[names[-1]] for shape, each in steps.items()}
        ends = {f"{shape}, MiB": f"{end['own']:.0f} + {end['files']:.0f}" for shape, end in last.items()}
        rows.append({"system": system, "step": "held at the end", **ends})
        peaks = {f"{shape}, MiB": f"{end[MOST]:.0f}" for shape, end in last.items()}
        rows.append({"system": system, "step": MOST, **peaks})
    return rows


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["tiny", "base", "small", "turbo"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", help="Python of an environment with faster-whisper, see peers.py")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sprachbund-peers")
    parser.add_argument("--out", type=Path, default=HERE / "memory.json")
    parser.add_argument("--worker", choices=[OURS, THEIRS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps((ours if args.worker == OURS else theirs)(args.folder, args.threads)))
        return
    from benchmarks.rows import keep  # not above: what it imports is no part of what is measured

    rows = rows_of({shape: measure(shape, args) for shape in args.shapes})
    keep(args.out, {"threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()

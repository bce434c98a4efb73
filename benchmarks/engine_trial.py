"""What `auto` chooses on processors of several kinds, and how far it is from the fastest engine.

Older processors are emulated on this one: the native kernels by SPRACHBUND_INSTRUCTION_SET, torch by
ATEN_CPU_CAPABILITY, oneDNN and MKL by variables of their own. FBGEMM, which computes the products of torch-int8, cannot
be limited that way: its times on older processors are too good. For every kind of processor, a process with an empty
cache loads the model with `auto`, and times that trial; the same process then times all engines on 5 s of sound with
20 tokens (a window of Whisper is filled up), in turn, with the threads that `auto` would give each.

Run: python -m benchmarks.engine_trial --rounds 15
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.rows import keep

_AVX512_VNNI = {
    "SPRACHBUND_INSTRUCTION_SET": "avx512_vnni",
    "DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI",
}
_AVX2 = {
    "SPRACHBUND_INSTRUCTION_SET": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
_PORTABLE = {
    "SPRACHBUND_INSTRUCTION_SET": "portable",
    "ATEN_CPU_CAPABILITY": "default",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
PROCESSORS: dict[str, dict[str, str]] = {
    "this one": {},
    "AVX-512 with VNNI": _AVX512_VNNI,
    "AVX2": _AVX2,
    "SSE4": _PORTABLE,
}
ENGINES = ("torch", "torch-fp32", "torch-bf16", "torch-int8", "native")


def measure(model: str, shape: str | None, rounds: int) -> list[dict[str, Any]]:
    """In a process with the variables of a processor: what `auto` takes, and the times of all engines."""
    import torch

    from sprachbund.engines import trial
    from sprachbund.engines.benchmark import random_whisper
    from sprachbund.engines.choice import engine_for
    from sprachbund.errors import SprachbundError
    from sprachbund.models.io import load, locate

    with TemporaryDirectory() as folder:
        if shape is None:
            directory = locate(model)
            family: Any = load(directory)
        else:
            directory, family = None, random_whisper(shape)
        where: dict[str, Any] = {"directory": directory, "cache": Path(folder)}
        began = time.perf_counter()
        auto = engine_for(family, **where)
        trial_s = time.perf_counter() - began
        works, whys = {}, {}
        for name in ENGINES:
            try:
                engine = auto if name == auto.name else engine_for(family, name, **where)  # type: ignore[arg-type]
            except SprachbundError:
                continue
            works[name], whys[name] = trial._Work(engine.family), engine.why
        times: dict[str, list[float]] = {name: [] for name in works}
        with torch.inference_mode():
            for number in range(rounds + 1):
                for name, work in works.items():
                    seconds = work.whole(True) if shape else work.whole(False)
                    if number:  # the first time warms up
                        times[name].append(1000 * seconds)
    best = min(median(values) for values in times.values())
    return [
        {
            "engine": name,
            "ms": f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})",
            "of the fastest": f"{median(values) / best:.2f}",
            "auto": "chosen" if name == auto.name else "",
            "trial, s": f"{trial_s:.1f}" if name == auto.name else "",
        }
        for name, values in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--shapes", nargs="*", default=["base"], help="of Whisper, with random weights, too")
    parser.add_argument("--processors", nargs="+", default=list(PROCESSORS), choices=PROCESSORS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "docs/results/engine_trial.json"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of one processor and model
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(args.model, args.one or None, args.rounds)))
        return
    from sprachbund.util.provenance import commit, versions

    rows: list[dict[str, Any]] = []
    for shape in ("", *args.shapes):
        for processor in args.processors:
            command = [
                sys.executable,
                "-m",
                "benchmarks.engine_trial",
                "--model",
                args.model,
                "--rounds",
                str(args.rounds),
            ]
            done = subprocess.run(
                [*command, "--one", shape],
                env={**os.environ, "GOMP_SPINCOUNT": "5000", **PROCESSORS[processor]},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            name = f"Whisper {shape}" if shape else args.model
            rows += [
                {"model": name, "processor": processor, **row}
                for row in json.loads(done.stdout.splitlines()[-1])
            ]
            about = {"versions": versions(), "commit": commit()}
            keep(args.out, {"options": {"rounds": args.rounds}, **about, "rows": rows})


if __name__ == "__main__":
    main()

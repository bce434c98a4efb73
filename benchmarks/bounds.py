"""What the processor can do at most, without the engine's code, and how much of it the native engine reaches.

Three files, each with the rows of all processors and instruction sets that were measured; those measured again are
replaced:

- bounds_compute.json: the clock, from a chain of additions of one cycle each; for instructions that work on registers
  and wait for nothing, how many operations a cycle (two for a product and its sum) and a second, of one core and of
  all; and the engine's product with operands in the cache beside it.
- bounds_read.json: how fast memory is read that no cache holds, the best of several numbers of streams and distances of
  prefetching, by threads and size of pages.
- bounds_engine.json: encoder and token of a published shape with random weights, beside the bounds that follow.

Run on an idle machine, about four minutes for the shape of small:

    python -m benchmarks.bounds --processor "AMD EPYC (Zen 4)" --idle
    python -m benchmarks.bounds --processor "AMD EPYC (Zen 4)" --idle --instruction-set avx2
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.rows import machine, show

from sprachbund.engines.benchmark import (
    INT8_LOOPS,
    READING_WAYS,
    SpeedJob,
    measure_speed,
    pages,
    read_by,
    register_gops,
)
from sprachbund.engines.extension import INSTRUCTION_SET, choose_instruction_set, native
from sprachbund.engines.packing import pack_matrix
from sprachbund.util.files import write_json
from sprachbund.util.jobs import run_apart
from sprachbund.util.processor import processor_name, usable_cores

HERE = Path(__file__).parent
READ_BYTES = 2**30
TOKENS, WIDTH = (
    480,
    512,
)  # half a megabyte, for the cache next to a core; many tokens, for a call costs 0.05 ms
TRIALS = 100  # short, so that some are not interrupted
Row = dict[str, Any]


def product_gops() -> float:
    """Of one core, by its own clock: the engine's product of `TOKENS` with a square matrix in 8 bits."""
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    matrix = {name: a.contiguous() for name, a in pack_matrix("matrix", weight).items()}
    values, scale = torch.full((TOKENS, WIDTH), 200, dtype=torch.uint8), torch.ones(TOKENS)
    out, seconds = torch.empty(TOKENS, WIDTH), []
    for _ in range(TRIALS):
        begin = time.thread_time()
        native().product(choose_instruction_set(), values, scale, matrix, WIDTH, out, "keep")
        seconds.append(time.thread_time() - begin)
    return 2 * TOKENS * WIDTH * WIDTH / min(seconds) / 1e9


def compute(about: Row, threads: int, *, forced: bool) -> list[Row]:
    """Clock and peaks; of a set that is not the best one, those of its own instructions."""
    chain, *loops = native().register_loops() or raise_no_loops()
    own = INT8_LOOPS.get(choose_instruction_set(), ())
    clock, alone = register_gops(chain), {loop: register_gops(loop) for loop in loops}
    best = max(own, key=lambda loop: alone[loop], default=None)
    rows = []
    for loop in own if forced else loops:
        row = {
            **about,
            "instructions": loop,
            "clock, GHz": round(clock, 2),
            "operations a cycle": round(alone[loop] / clock, 1),
            "GOPS, one core": round(alone[loop], 1),
            "threads": threads,
            "GOPS, all threads": round(register_gops(loop, threads), 1),
            "the engine's product, GOPS": "",
            "of the peak": "",
        }
        if loop == best:
            product = product_gops()
            row["the engine's product, GOPS"] = round(product, 1)
            row["of the peak"] = f"{product / alone[loop]:.0%}"
        rows.append(row)
    return rows


def raise_no_loops() -> list[str]:
    """There is nothing to measure with."""
    raise SystemExit(
        "the instructions of this processor are not known here; add them to engines/native/peak.cpp"
    )


def reading(about: Row, threads: int) -> list[Row]:
    """GB/s by pages and threads."""
    rows = []
    for large in (False, True):
        memory = pages(READ_BYTES, large=large)
        for count in sorted({1, threads}):
            team = native().Team(count)
            best, way = max((read_by(team, memory, *way), way) for way in READING_WAYS)
            rows.append(
                {
                    **about,
                    "pages": "2 MiB" if large else "4 KiB",
                    "threads": count,
                    "GB/s": round(best, 1),
                    "streams": way[0],
                    "bytes fetched ahead": way[1],
                }
            )
    return rows


def engine(about: Row, shape: str, threads: int, repeats: int) -> Row:
    """Encoder and token of the engine, in a process of its own that measures the bounds too."""
    job = SpeedJob(engine="native", shape=shape, threads=threads, repeats=repeats)
    speed = run_apart(measure_speed, job)
    encoder, token = speed.window.encoder_ms, speed.window.token_ms
    bound = speed.encoder_bound_ms
    return {
        **about,
        "shape": shape,
        "threads": threads,
        "encoder, ms": round(encoder, 1),
        "at the peak in 8 bits, ms": "" if bound is None else round(bound, 1),
        "of the peak": "" if bound is None else f"{bound / encoder:.0%}",
        "token, ms": round(token, 2),
        "MB read": round(speed.bytes_per_token / 1e6, 1),
        "memory, GB/s": round(speed.read_gb_per_s, 1),
        "at the bound, ms": round(speed.bound_ms, 2),
        "times the bound": f"{token / speed.bound_ms:.2f}",
    }


def replace_rows(path: Path, rows: list[Row], keys: tuple[str, ...]) -> None:
    """Write rows, in place of those of the file with the same values of `keys`, and show them.

    The file names every machine, by the processor and the instruction set of its rows.
    """
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    new = {tuple(row[key] for key in keys) for row in rows}
    rows = [row for row in before["rows"] if tuple(row[key] for key in keys) not in new] + rows
    name = {key.replace(" ", "_"): rows[-1][key] for key in ("processor", "instruction set")}
    others = [one for one in before.get("machines", []) if not name.items() <= one.items()]
    write_json(path, {"machines": [*others, machine() | name], "rows": rows})
    show(rows)


def main() -> None:
    """Measure, print tables, write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processor", default=processor_name(), help="hypervisors hide which it is")
    parser.add_argument("--instruction-set", help="of the engine, in place of the best")
    parser.add_argument("--shapes", nargs="*", default=["small"])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--idle", action="store_true", help="nothing else ran on the machine")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the files")
    args = parser.parse_args()
    if args.instruction_set:
        os.environ[INSTRUCTION_SET] = args.instruction_set  # the process of the engine has it, too
    torch.set_num_threads(args.threads)
    isa = choose_instruction_set()
    about = {"processor": args.processor, "instruction set": isa, "idle": "yes" if args.idle else "no"}
    keys = ("processor", "instruction set")
    replace_rows(
        args.out / "bounds_compute.json",
        compute(about, args.threads, forced=bool(args.instruction_set)),
        keys,
    )
    replace_rows(args.out / "bounds_read.json", reading(about, args.threads), keys)
    for shape in args.shapes:
        row = engine(about, shape, args.threads, args.repeats)
        replace_rows(args.out / "bounds_engine.json", [row], (*keys, "shape", "threads"))


if __name__ == "__main__":
    main()

"""How long torch's threads should spin for each other: on idle cores, and with one core held by something else.

A thread that has done its part waits actively at first, then sleeps (libgomp, GOMP_SPINCOUNT). While one spins, the
scheduler takes its core for busy, and does not move the other thread there from a core that something more urgent
holds. One that sleeps has to be woken, several hundred times for a token. Whole processes, in turn within a round: the
recordings of examples/ translated, a call with the shape of Whisper tiny in 8 bits (its tokens are many products),
and steps of training a small transformer. Run on two idle cores, as root: python -m benchmarks.waiting
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rows import keep
from rich.progress import track

from sprachbund.cli.startup import SPINS

WAYS: dict[str, dict[str, str]] = {
    "torch's own": {"GOMP_SPINCOUNT": "300000"},
    f"{SPINS} spins, ours": {"GOMP_SPINCOUNT": SPINS},
    "1000 spins": {"GOMP_SPINCOUNT": "1000"},
    "no spins": {"OMP_WAIT_POLICY": "PASSIVE"},
}
RECORDINGS = sorted((Path(__file__).parent.parent / "examples" / "recordings").iterdir())
MOST_S = 15
STEPS = 40


def training() -> None:
    """Steps of AdamW on a transformer of some millions of parameters, in bf16; prints their seconds."""
    import torch
    from torch import nn

    torch.set_num_threads(2)
    layer = nn.TransformerEncoderLayer(384, 6, 1536, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(4, 200, 384)
    for step in range(STEPS + 5):
        if step == 5:
            began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(time.perf_counter() - began)


def output_of(command: list[str], env: dict[str, str], most_s: float) -> str | None:
    """What a command prints, or None when it took longer; then its children are ended with it."""
    started = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = started.communicate(timeout=most_s)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
        return None
    if started.returncode:
        sys.exit(f"{' '.join(command)} ended with {started.returncode}")
    return printed


def train_s(env: dict[str, str]) -> float:
    """Seconds of the steps, or the most that are waited for."""
    printed = output_of([sys.executable, "-m", "benchmarks.waiting", "--child"], env, MOST_S)
    return MOST_S if printed is None else float(printed)


def translate_s(env: dict[str, str]) -> float:
    """Seconds of the whole command, its start included, or the most that are waited for."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "sprachbund", "translate", *map(str, RECORDINGS)]
        began = time.perf_counter()
        printed = output_of([*command, "--to", "en,es,fr,it,de,ru", "--out", out], env, MOST_S)
        return MOST_S if printed is None else time.perf_counter() - began


def call_s(env: dict[str, str]) -> float:
    """Seconds of a call of 30 s and 100 tokens with random weights, once all is loaded; or the most waited for."""
    shape = ["--shape", "tiny", "--engine", "torch-int8", "--threads", "2", "--json"]
    printed = output_of([sys.executable, "-m", "sprachbund", "bench", *shape], env, 4 * MOST_S)
    if printed is None:
        return MOST_S
    return json.loads(printed)["engines"][0]["window"]["whole_ms"] / 1000


@contextmanager
def held_core() -> Iterator[None]:
    """A process of the highest ordinary priority that never leaves the first core."""
    holder = "import os\nopen('/proc/self/autogroup', 'w').write('-20')\nos.nice(-20)\nwhile True: pass"
    process = subprocess.Popen(["taskset", "-c", "0", sys.executable, "-c", holder], start_new_session=True)
    try:
        time.sleep(1)
        yield
    finally:
        process.kill()
        process.wait()


def measure(repeats: int) -> dict[tuple[str, str], list[float]]:
    """Seconds by what was done and how its threads waited."""
    by_case: dict[tuple[str, str], list[float]] = {}
    works = {"translate": translate_s, "Whisper tiny, a call": call_s, "train": train_s}
    chosen = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    plain = {name: value for name, value in os.environ.items() if name not in chosen}
    for _ in track(range(repeats)):
        for what, work in works.items():
            for way, extra in WAYS.items():
                by_case.setdefault((f"{what}, idle cores", way), []).append(work(plain | extra))
                with held_core():
                    by_case.setdefault((f"{what}, one core held", way), []).append(work(plain | extra))
    return by_case


def shown(seconds: list[float]) -> str:
    """Median and range; what was not waited for says so."""
    if min(seconds) >= MOST_S:
        return f"over {MOST_S}"
    return f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if args.child:
        training()
        return
    measured = measure(args.repeats)
    rows: dict[str, dict[str, Any]] = {}
    for (what, way), seconds in measured.items():
        rows.setdefault(what, {"work": what})[way] = shown(seconds)
    about = {"repeats": args.repeats, "unit": "s"}
    keep(args.out, {**about, "rows": list(rows.values())}, "seconds")


if __name__ == "__main__":
    main()

"""Parakeet on the native engine beside onnx-asr: the same random weights of a published shape, in 8 bits.

Each system is a process of its own and is asked over a pipe, one after the other, round by round. A call goes from
samples to text. Random weights write anything, so the transducer is made to write a token of four frames at every step:
three tokens a second, as in speech, and as many in both systems. What CTC writes takes no time.

python -m benchmarks.transducers, after scripts/onnx_asr.sh
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

FRAMES_OF_A_TOKEN = 4  # of 80 ms
SHAPES = {"parakeet_tdt": "Parakeet TDT 0.6B v3", "parakeet_ctc": "Parakeet CTC 0.6B"}
CASES = {"30 s": 30.0, "5 s": 5.0}
OURS, THEIRS = "sprachbund native int8", "onnx-asr int8"
ONNX_ASR = Path(__file__).parents[1] / "build" / "onnx-asr"
MODEL, GRAPHS, AUDIO = "model", "onnx", "audio.npy"


def make(kind: str, folder: Path) -> None:
    """Write the model for both, and the sound."""
    import torch
    from benchmarks.families import _ENCODER, _tokens

    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    from checkpoint import recording

    from sprachbund.compression.fastconformer_onnx import check_exportable, export
    from sprachbund.models.fastconformer import Parakeet, ParakeetConfig
    from sprachbund.models.io import save

    torch.manual_seed(0)
    size = {"parakeet_tdt": 8193, "parakeet_ctc": 1025}[kind]
    blank = {"blank_token_id": size - 1} if kind == "parakeet_tdt" else {}
    values = {
        "model_type": kind,
        "vocab_size": size,
        "pad_token_id": size - 1,
        **blank,
        "encoder_config": _ENCODER,
    }
    config = ParakeetConfig.model_validate(values)
    model = Parakeet(config, values, _tokens(size, ())).eval()
    sound = recording()
    np.save(folder / AUDIO, sound)
    if model.transducer is not None:
        _write_at_every_step(model)
    save(model, folder / MODEL)
    model.tokens.tokenizer.save(str(folder / MODEL / "tokenizer.json"))
    export(check_exportable(model), folder / GRAPHS, bits=8)


def _write_at_every_step(model: Any) -> None:
    """Let no step of a transducer be a blank, and every token last for so many frames."""
    import torch

    bias, shape = model.transducer.joint.out.bias, model.transducer.shape
    with torch.no_grad():
        bias[shape.blank] -= 1000.0
        bias[shape.vocabulary_size + shape.durations.index(FRAMES_OF_A_TOKEN)] += 1000.0


def ours(folder: Path, threads: int) -> Callable[[np.ndarray], int]:
    """From samples to the number of tokens written; threads wait for each other as those of the command do."""
    from sprachbund.cli.startup import wait_briefly

    wait_briefly()
    import torch

    import sprachbund
    from sprachbund.decoding.options import DecodingOptions
    from sprachbund.decoding.search import search
    from sprachbund.models.base import Target

    torch.set_num_threads(threads)
    family = sprachbund.load(folder / MODEL, engine="native", threads=threads).family

    @torch.inference_mode()
    def call(samples: np.ndarray) -> int:
        memory = family.encode(family.features([samples]))
        [[row]] = search(family, memory, [[Target(language="en", source="en")]], DecodingOptions())
        family.decode_text(row.tokens)
        return len(row.tokens)

    return call


def theirs(folder: Path, threads: int) -> Callable[[np.ndarray], int]:
    """The same of onnx-asr."""
    sys.path.insert(0, str(ONNX_ASR))
    import onnx_asr
    import onnxruntime

    from sprachbund.compression.fastconformer_onnx import LAYOUTS

    kind = json.loads((folder / MODEL / "config.json").read_text())["model_type"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    recogniser = onnx_asr.load_model(
        LAYOUTS[kind],
        folder / GRAPHS,
        quantization="int8",
        sess_options=options,
        providers=["CPUExecutionProvider"],
    )
    timed = recogniser.with_timestamps()
    return lambda samples: len(timed.recognize(samples).tokens)


def work(system: str, folder: Path, threads: int) -> None:
    """Answer requests for so many seconds, one a line, until there are none."""
    begin = time.perf_counter()
    call = {OURS: ours, THEIRS: theirs}[system](folder, threads)
    sound = np.load(folder / AUDIO)
    print(json.dumps({"load_s": time.perf_counter() - begin}), flush=True)
    for line in sys.stdin:
        samples = sound[: round(float(line) * 16_000)]
        begin = time.perf_counter()
        tokens = call(samples)
        took_s = time.perf_counter() - begin
        status = dict(part.split(":", 1) for part in Path("/proc/self/status").read_text().splitlines())
        peak = int(status["VmHWM"].split()[0]) / 1024
        print(json.dumps({"took_s": took_s, "tokens": tokens, "peak_mib": round(peak)}), flush=True)


def measure(kind: str, folder: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """The rows of a shape."""

    def started(system: str) -> "subprocess.Popen[str]":
        command = [
            sys.executable,
            "-m",
            "benchmarks.transducers",
            "--worker",
            system,
            "--folder",
            str(folder),
        ]
        return subprocess.Popen(
            [*command, "--threads", str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def asked(worker: "subprocess.Popen[str]", seconds: float | None) -> dict[str, Any]:
        assert worker.stdin is not None
        assert worker.stdout is not None
        if seconds is not None:
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
        answer: dict[str, Any] = json.loads(worker.stdout.readline())
        return answer

    first = started(OURS)  # packs the weights
    asked(first, None)
    first.communicate()
    workers = {system: started(system) for system in (OURS, THEIRS)}
    load_s = {system: asked(worker, None)["load_s"] for system, worker in workers.items()}
    times: dict[tuple[str, str], list[float]] = {(s, c): [] for s in workers for c in CASES}
    tokens, peaks = {}, {}
    for number in range(rounds + 1):  # the first warms up
        for case, seconds in CASES.items():
            for system, worker in workers.items():
                answer = asked(worker, seconds)
                tokens[system, case], peaks[system] = answer["tokens"], answer["peak_mib"]
                if number:
                    times[system, case].append(answer["took_s"])
                time.sleep(0.3)
    for worker in workers.values():
        worker.communicate()
    return [
        {
            "shape": SHAPES[kind],
            "system": system,
            **{f"{case}, s": _spread(times[system, case], 2) for case in CASES},
            **{
                f"{case}: times as fast as onnx-asr": _spread(
                    [t / o for t, o in zip(times[THEIRS, case], times[system, case], strict=True)], 1
                )
                if system == OURS
                else "-"
                for case in CASES
            },
            **{f"tokens of {case}": tokens[system, case] for case in CASES},
            "load, s": round(load_s[system], 2),
            "peak MiB": peaks[system],
        }
        for system in workers
    ]


def _spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sprachbund-transducers")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--worker", choices=[OURS, THEIRS], help=argparse.SUPPRESS)
    parser.add_argument("--make", choices=SHAPES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make(args.make, args.folder)
    if args.worker:
        return work(args.worker, args.folder, args.threads)
    from benchmarks.rows import keep

    rows = []
    for kind in args.shapes:
        folder = args.folder / kind
        if not (folder / GRAPHS / "config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = [
                sys.executable,
                "-m",
                "benchmarks.transducers",
                "--make",
                kind,
                "--folder",
                str(folder),
            ]
            subprocess.run(command, check=True)
        rows += measure(kind, folder, args.rounds, args.threads)
    keep(args.out, {"threads": args.threads, "rounds": args.rounds, "rows": rows})
    return None


if __name__ == "__main__":
    main()

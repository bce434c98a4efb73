"""A training step in bf16 beside one in fp32 on a CPU, which is why `training.precision` is "auto".

The model has the shape of the bundled one and random weights; speech is noise. A step is the loss and its gradients,
then Muon's orthogonalization of all linear layers. Times are of the processor, one thread, interleaved; a ratio has its
smallest and largest value over the rounds. Whether the processor has instructions for bf16 stands in the file.
Run: python -m benchmarks.training_precision
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.rows import keep
from benchmarks.training_memory import conformer
from tests.training import made
from torch import nn

from sprachbund.training.muon import orthogonalized
from sprachbund.util.devices import is_fast_in_bf16

SHAPE = {
    "width": 256,
    "num_heads": 4,
    "num_encoder_layers": 8,
    "num_decoder_layers": 3,
    "feed_forward_width": 512,
    "kernel_size": 15,
}
NUM_UTTERANCES = 24
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parts(root: Path) -> dict[str, Callable[[torch.dtype], None]]:
    """The parts of a step, by name: functions of the precision."""
    made.make_corpus(root / "speech", 2 * NUM_UTTERANCES)
    training = conformer(root, {}, **SHAPE)
    model, corpus = training.model.train(), training.corpus
    corpus.enter(0)
    batch = corpus.collate([corpus[(0, index, 1.0)] for index in range(NUM_UTTERANCES)])
    matrices = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Linear)]

    def gradients(precision: torch.dtype) -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = model.loss(batch)
        loss.total.backward()

    def muon(precision: torch.dtype) -> None:
        for matrix in matrices:
            orthogonalized(matrix.to(precision))

    return {"loss and gradients": gradients, "Muon": muon}


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        steps = parts(Path(root))
        for number in range(given.rounds + 1):
            for name, run in steps.items():
                for precision, dtype in PRECISIONS.items():
                    start = time.process_time()
                    run(dtype)
                    if number:  # the first warms up
                        seconds.setdefault((name, precision), []).append(time.process_time() - start)
    for precision in PRECISIONS:
        each = zip(*(seconds[name, precision] for name in steps), strict=True)
        seconds["together", precision] = [sum(one) for one in each]
    rows: list[dict[str, Any]] = []
    for name in (*steps, "together"):
        single, half = seconds[name, "fp32"], seconds[name, "bf16"]
        ratios = sorted(one / other for one, other in zip(half, single, strict=True))
        rows.append(
            {
                "part of a step": name,
                "fp32, s": round(median(single), 2),
                "bf16, s": round(median(half), 2),
                "bf16 / fp32": f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            }
        )
    result = {"fast in bf16": is_fast_in_bf16(torch.device("cpu")), "rounds": given.rounds}
    keep(given.out, {**result, "utterances": NUM_UTTERANCES, "rows": rows})


if __name__ == "__main__":
    main()

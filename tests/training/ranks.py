"""Train objectives by one, two and four processes that share every batch, and keep what each step's gradient was.

`python -m tests.training.ranks DIRECTORY COUNTS [--apart] [--some] [OBJECTIVE ...]`, COUNTS as in "1,2,4". Everything
is imported and built once; the processes of all counts are then forked and run side by side, with `--apart` for each
objective anew. With `--some`, four processes run `BY_FOUR` alone. DIRECTORY/COUNT/OBJECTIVE.pt is what the first rank
saw, failure.RANK.txt the error that ended a rank.
"""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from sprachbund.training.loop import train
from tests.training import made
from tests.training.objectives import OBJECTIVES, Objective

STEPS = {1: 1, 3: 2}
"""Most utterances of a batch, fewer than there are processes, of which some then have none; and steps with these."""
BY_FOUR = (
    "attention and CTC",
    "streaming transducer without CTC",
    "text LLM",
    "speech LLM, two kinds of data",
    "tokens by CTC and attention",
    "dual scale",
)
"""Objectives that differ most in how they go from utterances to a sum; all of them by four take longer."""
_LONGEST_S = 240.0


class Gradients:
    """Records the gradients that the optimizer sees, step by step."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(p): name for name, p in model.named_parameters()}
        self.steps: list[dict[str, torch.Tensor]] = []
        self._handle = register_optimizer_step_pre_hook(self._record)

    def _record(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.steps.append({self._names[id(p)]: p.grad.detach().clone() for p in moved})

    def end(self) -> None:
        self._handle.remove()


def run(objective: Objective, directory: Path) -> dict[int, Any]:
    """Gradients, progress and buffers of a few steps, so small that the weights hardly move."""
    found: dict[int, Any] = {}
    for size, steps in STEPS.items():
        gradients, lines = Gradients(objective.model), []
        chosen = made.options(
            steps,
            max_utterances=size,
            batch_s=100.0,
            learning_rate=1e-7,
            warmup_steps=1,
            weight_decay=0.0,
            clip_norm=1e9,
            log_every=1,
            save_every=1000,
        )
        train(objective.model, objective.corpus, chosen, directory / f"run-{size}", report=lines.append)
        gradients.end()
        losses = [line.split(" | ")[0] for line in lines if line.startswith("step ")]
        buffers = {name: buffer.clone() for name, buffer in objective.model.named_buffers()}
        found[size] = {"gradients": gradients.steps, "losses": losses, "buffers": buffers}
    return found


def fork_ranks(counts: Sequence[int], work: Callable[[int, int], None], out: Path) -> dict[str, int]:
    """Run `work(rank, count)` in so many processes for each count, which meet; their exit codes by "COUNT/RANK".

    Forked before torch has computed anything in parallel, they need no second import. What ends one is in
    `out`/COUNT/failure.RANK.txt; those that still run after some minutes are killed.
    """
    children: dict[int, str] = {}
    for count in counts:
        (out / str(count)).mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        for rank in range(count):
            if (child := os.fork()) == 0:
                _in_rank(rank, count, port, work, out / str(count))
            children[child] = f"{count}/{rank}"
    codes, deadline = dict.fromkeys(children.values(), -1), time.monotonic() + _LONGEST_S
    while children and time.monotonic() < deadline:
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return codes


def _in_rank(rank: int, count: int, port: int, work: Callable[[int, int], None], out: Path) -> None:
    if count > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        values = (rank, rank, count, count, "127.0.0.1", port)
        os.environ.update(dict(zip(names, map(str, values), strict=True)))
    try:
        work(rank, count)
    except BaseException:
        (out / f"failure.{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    root, counts = Path(sys.argv[1]), [int(count) for count in sys.argv[2].split(",")]
    apart, some = "--apart" in sys.argv, "--some" in sys.argv
    wanted = [name for name in sys.argv[3:] if not name.startswith("--")] or list(OBJECTIVES)
    root.mkdir(parents=True, exist_ok=True)
    made.make_corpus(root / "data", 8)
    made.make_corpus(root / "other", 10)
    objectives = {name: OBJECTIVES[name](root) for name in wanted}
    failed = []
    for group in [[name] for name in wanted] if apart else [wanted]:

        def work(rank: int, count: int, group: Sequence[str] = tuple(group)) -> None:
            for name in group:
                if some and count == 4 and name not in BY_FOUR:
                    continue
                found = run(objectives[name], root / str(count) / name / str(rank))
                if rank == 0:
                    torch.save(found, root / str(count) / f"{name}.pt")

        codes = fork_ranks(counts, work, root)
        failed += [f"{', '.join(group)}: {where} ended with {code}" for where, code in codes.items() if code]
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()

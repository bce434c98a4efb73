"""What the transducer loss costs, forward and backward: time and peak memory beside the naive form.

On logits: `naive`, log-softmax of all logits and the recursion differentiated by torch, which is what one writes first;
`ours`; and `warprnnt_numba`, the kept library with kernels for CPUs, where it is installed. Behind a joint network:
`joint + naive`; `joint + ours`, which writes the gradient over the logits; `joint in pieces`, which never holds all of
them; `pruned to 8`, the loss of eight tokens a frame, with the network that chooses them. Losses and gradients are
compared before anything is timed. Times are interleaved; memory is of fresh processes: growth of the largest resident
size from a warmed-up start, in units of the logits' bytes (the gradient of what is given as logits is one unit, and so
are logits made by the joint network).
Run: python -m benchmarks.transducer_loss [--full]
"""

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from benchmarks.rows import keep
from torch import Tensor
from torch.nn import functional as F

from sprachbund.nn.pruned_transducer import SimpleJoint, pruned_transducer_loss
from sprachbund.nn.transducer_loss import joint_transducer_loss, transducer_loss
from sprachbund.util.memory import give_back_freed_memory

SHORT = ((4, 60, 15, 500), (8, 100, 25, 1000))
FULL = (*SHORT, (8, 250, 50, 1000), (4, 250, 50, 4000))
JOINT_WIDTH = 256
PRUNE_RANGE = 8
LIBRARY = "warprnnt_numba"
NEVER = -1e30
"""Finite: torch's gradient of a sum over nothing but minus infinity is not a number."""
Given = tuple[Tensor, Tensor, Tensor, Tensor]


def naive(logits: Tensor, targets: Tensor, num_frames: Tensor, num_targets: Tensor) -> Tensor:
    """By anti-diagonals as ours, with torch's own gradient."""
    p = logits.log_softmax(-1)
    index = F.pad(targets, (0, 1))[:, None, :, None].expand(-1, p.shape[1], -1, 1)
    blanks, labels = skewed(p[..., 0]), skewed(p.gather(-1, index)[..., 0])
    reached = [F.pad(p.new_zeros(len(p), 1), (0, p.shape[2] - 1), value=NEVER)]
    for blank, label in zip(blanks, labels, strict=True):
        by_label = F.pad((reached[-1] + label)[:, :-1], (1, 0), value=NEVER)
        reached.append(torch.logaddexp(reached[-1] + blank, by_label))
    rows = torch.arange(len(p))
    last = num_frames - 1 + num_targets, rows, num_targets
    return -(torch.stack(reached)[last] + blanks[last])


def skewed(table: Tensor) -> Tensor:
    """(T + U, B, U + 1) by anti-diagonal."""
    _, frames, width = table.shape
    t = torch.arange(frames + width - 1)[:, None] - torch.arange(width)
    shifted = table[:, t.clamp(0, frames - 1), torch.arange(width)]
    return shifted.masked_fill((t < 0) | (t >= frames), NEVER).transpose(0, 1)


def library(logits: Tensor, targets: Tensor, num_frames: Tensor, num_targets: Tensor) -> Tensor:
    """The library's kernel."""
    from warprnnt_numba import RNNTLossNumba

    lengths = (targets.int(), num_frames.int(), num_targets.int())
    return RNNTLossNumba(blank=0, reduction="none")(logits.log_softmax(-1), *lengths)


FORMS: dict[str, Callable[..., Tensor]] = {"naive": naive, "ours": transducer_loss}
if find_spec(LIBRARY):
    FORMS[LIBRARY] = library


def made(shape: tuple[int, ...]) -> Given:
    """Logits, targets and lengths, the shortest row half as long as the longest."""
    rows, frames, length, vocabulary = shape
    torch.manual_seed(0)
    logits = torch.randn(rows, frames, length + 1, vocabulary).requires_grad_()
    share = torch.linspace(1.0, 0.5, rows)
    lengths = (share * frames).long(), (share * length).long()
    return logits, torch.randint(1, vocabulary, (rows, length)), *lengths


def joint_forms(shape: tuple[int, ...]) -> dict[str, Callable[[], Tensor]]:
    """The loss behind a joint network: with all logits, those of a few frames at a time, those of a few tokens."""
    _, *rest = made(shape)
    simple = SimpleJoint(JOINT_WIDTH, JOINT_WIDTH, shape[-1])
    out = torch.nn.Linear(JOINT_WIDTH, shape[-1])
    encoded = torch.randn(shape[0], shape[1], JOINT_WIDTH, requires_grad=True)
    predicted = torch.randn(shape[0], shape[2] + 1, JOINT_WIDTH, requires_grad=True)

    def joint(a: Tensor, b: Tensor) -> Tensor:
        return out(torch.tanh(a + b))

    def whole(form: Callable[..., Tensor], **options: bool) -> Tensor:
        return form(joint(encoded[:, :, None], predicted[:, None]), *rest, **options)

    def pruned() -> Tensor:
        arcs = simple(encoded, predicted, rest[0], 0)
        return pruned_transducer_loss(joint, encoded, predicted, arcs, *rest, 0, PRUNE_RANGE)

    return {
        "joint + naive": lambda: whole(naive),
        "joint + ours": lambda: whole(transducer_loss, in_place=True),
        "joint in pieces": lambda: joint_transducer_loss(joint, encoded, predicted, *rest),
        f"pruned to {PRUNE_RANGE}": pruned,
    }


def runs_of(shape: tuple[int, ...]) -> dict[str, Callable[[], Tensor]]:
    """Every form on the same input."""
    given = made(shape)
    return {name: (lambda form=form: form(*given)) for name, form in FORMS.items()} | joint_forms(shape)


def check(shape: tuple[int, ...]) -> None:
    """All forms on logits give the same losses and gradients."""
    results = {}
    for name, form in FORMS.items():
        logits, *rest = made(shape)
        loss = form(logits, *rest)
        loss.sum().backward()
        results[name] = loss.detach(), logits.grad
    for name, (loss, gradient) in results.items():
        torch.testing.assert_close(loss, results["naive"][0], rtol=1e-4, atol=1e-3, msg=name)
        torch.testing.assert_close(gradient, results["naive"][1], rtol=1e-2, atol=1e-4, msg=name)


def times_s(shape: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """Seconds of each form, one after the other in every round."""
    runs = runs_of(shape)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run().sum().backward()
            if number:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak(name: str, shape: tuple[int, ...]) -> None:
    """Print how much the largest resident size grows over what the input takes, in bytes."""
    for run in runs_of(SHORT[0]).values():  # libraries load and compile on first use
        run().sum().backward()
    given = made(shape)
    run = (lambda: FORMS[name](*given)) if name in FORMS else joint_forms(shape)[name]
    if name not in FORMS:
        del given
    gc.collect()
    give_back_freed_memory()  # what is used again would not be seen as growth
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the largest size so far is forgotten
    before = _largest_kib()
    run().sum().backward()
    print((_largest_kib() - before) * 1024)


def _largest_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def measured(shape: tuple[int, ...], rounds: int) -> list[dict[str, object]]:
    """One row for each form."""
    check(shape)
    logit_bytes = 4 * shape[0] * shape[1] * (shape[2] + 1) * shape[3]
    rows = []
    times = times_s(shape, rounds)
    for name, seconds in times.items():
        command = [
            sys.executable,
            "-m",
            "benchmarks.transducer_loss",
            "--peak",
            name,
            ",".join(map(str, shape)),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        other = times["naive" if name in FORMS else "joint + naive"]
        rows.append(
            {
                "B,T,U,V": ",".join(map(str, shape)),
                "form": name,
                "median_s": round(median(seconds), 4),
                "least_s": round(min(seconds), 4),
                "most_s": round(max(seconds), 4),
                "times_faster": round(median(a / b for a, b in zip(other, seconds, strict=True)), 2),
                "peak_in_logits": round(int(done.stdout) / logit_bytes, 2),
            }
        )
    return rows


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="larger shapes too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "SHAPE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        name, shape = given.peak
        return peak(name, tuple(int(size) for size in shape.split(",")))
    rows = [row for shape in (FULL if given.full else SHORT) for row in measured(shape, given.rounds)]
    keep(given.out, {"rows": rows})


if __name__ == "__main__":
    main()

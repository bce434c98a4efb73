"""What it costs to send rows to their experts, forward and backward, as the number of experts grows from 2 to 64.

`grouped` is ours: rows sorted by expert, each expert multiplies once. `naive` is the usual loop: for every expert, look
for the rows that chose it, add what it makes of them to the result. `dense` computes every expert for every row and
weights those that were not chosen by 0. `one` is a feed-forward as wide as the experts chosen together: no dispatch at
all, the least that the arithmetic costs. All but the last are compared, result and gradients, before anything is timed.
Times are of the processor, one thread, interleaved, so that others on the machine count little; memory is what is
kept for the backward pass, weights not counted.
Run: python -m benchmarks.moe_dispatch [--full]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.rows import keep
from torch import Tensor

from sprachbund.nn.feed_forward import Branch
from sprachbund.nn.moe import Experts, Router

EXPERTS = (2, 4, 8, 16, 32, 64)
CHOSEN = 2
SHORT = (600, 192, 192)  # rows (a minute of speech at 10 Hz), width, hidden width
FULL = (2400, 1024, 1024)
TITLES = {
    "grouped": "grouped",
    "naive": "naive loop",
    "dense": "dense",
    "one": "one feed-forward of the active size",
}
"""Form to its column."""
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def naive(experts: Experts) -> Form:
    """A loop over experts, with a comparison and an addition over all rows for each."""

    def run(x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e, branch in enumerate(experts.branches):
            rows, slots = (chosen == e).nonzero(as_tuple=True)
            out = out.index_add(0, rows, branch(x[rows]) * weights[rows, slots, None])
        return out

    return run


def dense(experts: Experts) -> Form:
    """Every expert for every row."""

    def run(x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        shares = x.new_zeros(len(x), len(experts.branches)).scatter(1, chosen, weights)
        done = torch.stack([branch(x) for branch in experts.branches], 1)
        return (done * shares[..., None]).sum(1)

    return run


def made(shape: tuple[int, int, int], num_experts: int) -> tuple[dict[str, Form], tuple[Tensor, ...]]:
    """Every form on the same experts, and what they are given."""
    num_rows, width, hidden_width = shape
    torch.manual_seed(0)
    experts = Experts(width, hidden_width, num_experts, "silu")
    one = Branch(width, CHOSEN * hidden_width, "silu")
    x = torch.randn(num_rows, width)
    routing = Router(width, num_groups=1, group_size=num_experts, num_chosen=CHOSEN)(x)
    forms = {
        "grouped": experts,
        "naive": naive(experts),
        "dense": dense(experts),
        "one": lambda x, *_: one(x),
    }
    return forms, (x.requires_grad_(), routing.experts, routing.weights.detach())


def check(forms: dict[str, Form], given: tuple[Tensor, ...]) -> None:
    """All but `one` give the same results and gradients."""
    results = {}
    for name in ("naive", "grouped", "dense"):
        out = forms[name](*given)
        results[name] = out, torch.autograd.grad(out.square().sum(), given[0])[0]
        torch.testing.assert_close(results[name], results["naive"], rtol=1e-3, atol=1e-4, msg=name)


def kept_mib(form: Form, given: tuple[Tensor, ...], weights: set[int]) -> float:
    """What the forward pass keeps for the backward pass, every storage once."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        form(*given).sum()
    return sum(sizes.values()) / 2**20


def measured(shape: tuple[int, int, int], num_experts: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each form."""
    forms, given = made(shape, num_experts)
    check(forms, given)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, form in forms.items():
            start = time.process_time()
            form(*given).sum().backward()
            if number:  # the first warms up
                seconds[name].append(time.process_time() - start)
    weights = {p.untyped_storage().data_ptr() for p in forms["grouped"].parameters()}  # type: ignore[attr-defined]
    return [
        {
            "K": num_experts,
            "form": name,
            "median_ms": round(1e3 * median(own), 2),
            "least_ms": round(1e3 * min(own), 2),
            "most_ms": round(1e3 * max(own), 2),
            "times_naive": round(median(a / b for a, b in zip(seconds["naive"], own, strict=True)), 2),
            "kept_mib": round(kept_mib(forms[name], given, weights), 2),
        }
        for name, own in seconds.items()
    ]


def side_by_side(forms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each number of experts: medians in milliseconds, then what is kept in MiB."""
    rows: dict[int, dict[str, Any]] = {}
    for one in forms:
        rows.setdefault(one["K"], {"experts": one["K"]})[TITLES[one["form"]]] = one["median_ms"]
    for one in forms:
        if one["form"] != "one":
            rows[one["K"]][f"{one['form']} keeps"] = one["kept_mib"]
    return list(rows.values())


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="more rows, wider")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape = FULL if given.full else SHORT
    forms = [row for num_experts in EXPERTS for row in measured(shape, num_experts, given.rounds)]
    rows = side_by_side(forms)
    result = {
        "rows,width,hidden": shape,
        "chosen": CHOSEN,
        "rounds": given.rounds,
        "rows": rows,
        "forms": forms,
    }
    keep(given.out, result)


if __name__ == "__main__":
    main()

"""Attention of a small language model in training on a CPU: torch's fused kernel beside plain products.

The model has the shape of the recipe `code_switch_six`; its weights are frozen and random, and the gradient is that of
its inputs, as in the training of a projector. Each row of the table has the time of forward and backward pass together,
and that of the attention of one layer. Times are of the processor, one thread, interleaved, so that others on the
machine count little; a ratio has its smallest and largest value over the rounds.
Run: python -m benchmarks.attention_backward
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.rows import keep
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

ROWS = 22
LENGTHS = (40, 80, 160, 320)
WIDTH, HEADS, LAYERS, INNER, VOCABULARY = 192, 4, 4, 512, 2500
KERNELS = {"fused": SDPBackend.FLASH_ATTENTION, "plain": SDPBackend.MATH}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def language_model() -> Callable[..., None]:
    """One training step without an update, of rows of a length in a precision."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        vocab_size=VOCABULARY,
        attn_implementation="sdpa",
    )
    model: Any = LlamaForCausalLM(config).requires_grad_(False)

    def step(length: int, precision: torch.dtype, rows: int = ROWS) -> None:
        inputs = torch.randn(rows, length, WIDTH, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = model(inputs_embeds=inputs, use_cache=False, logits_to_keep=length // 4).logits
        logits.float().logsumexp(-1).mean().backward()

    return step


def attention(length: int, precision: torch.dtype) -> None:
    """Attention of one layer, forward and backward."""
    shape = (ROWS, HEADS, length, WIDTH // HEADS)
    query, key, value = (torch.randn(shape, dtype=precision, requires_grad=True) for _ in range(3))
    F.scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()


def measured(length: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each precision."""
    step = language_model()
    forms: dict[str, Callable[..., None]] = {"step": step, "attention": attention}
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for number in range(rounds + 1):
        for precision, dtype in PRECISIONS.items():
            for kernel, backend in KERNELS.items():
                for form, run in forms.items():
                    start = time.process_time()
                    with sdpa_kernel(backend):
                        run(length, dtype)
                    if number:  # the first warms up
                        seconds.setdefault((precision, form, kernel), []).append(time.process_time() - start)
    rows = []
    for precision in PRECISIONS:
        row: dict[str, Any] = {"row length": length, "precision": precision}
        for form in forms:
            fused, plain = (seconds[precision, form, kernel] for kernel in KERNELS)
            ratios = sorted(one / other for one, other in zip(fused, plain, strict=True))
            row |= {
                f"{form}, fused, ms": round(1e3 * median(fused), 1),
                f"{form}, plain, ms": round(1e3 * median(plain), 1),
                f"{form}, ratio": f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            }
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for length in LENGTHS for row in measured(length, given.rounds)]
    keep(given.out, {"rows in a batch": ROWS, "rounds": given.rounds, "rows": rows})


if __name__ == "__main__":
    main()

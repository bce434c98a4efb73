"""What a parasite gains as its model grows: decoders from a small recipe's to Whisper medium's, halved as in training.

Weights are random, so draft tokens are replaced: by the token that the model will write with the probability asked for,
or by another one. The parasite takes all its steps, and the model checks and refuses as always; texts are compared.
Rounds without and with draft tokens alternate within each repeat. The memory is that of 30 s of Whisper, or of 10 s of
the recipe's encoder. The published system (arXiv 2508.11189) is medium's with three blocks, and 85 % of its draft
tokens are accepted.

Run: python -m benchmarks.speculation_shapes --threads 1 2
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.rows import keep
from rich.progress import track
from torch import Tensor

from sprachbund.decoding.drafts.base import DecodingState
from sprachbund.decoding.drafts.network import ParasiteDraft, ParasiteRun
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation, timed
from sprachbund.decoding.state import whole_prompt
from sprachbund.engines.choice import engine_for
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.io import load
from sprachbund.models.pruning import prune_decoder
from sprachbund.models.whisper import PRESETS, WhisperConfig
from sprachbund.nn.drafts import Parasite, ParasiteShape
from sprachbund.research.dual_scale.recipe import fit_tokenizer, new_whisper

RECIPE = WhisperConfig(
    vocabulary_size=1000,
    width=160,
    encoder_layers=1,
    encoder_heads=4,
    encoder_feed_forward_width=640,
    decoder_layers=24,
    decoder_heads=4,
    decoder_feed_forward_width=640,
    max_frames=125,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A decoder before it is halved, or that of the bundled model, and the parasite's blocks."""

    name: str
    config: WhisperConfig | None
    blocks: int

    def model(self) -> Any:
        """With the decoder that the parasite lives on."""
        if self.config is None:
            return load()
        config = replace(self.config, encoder_layers=1)  # the memory is made up
        return prune_decoder(new_whisper(config, fit_tokenizer([], ["en"], 256)), config.decoder_layers // 2)

    @property
    def num_frames(self) -> int:
        """Of a memory."""
        return self.config.max_frames if self.config else RECIPE.max_frames


CASES = (
    Case(name="bundled model", config=None, blocks=1),
    Case(name="small recipe", config=RECIPE, blocks=1),
    Case(name="small recipe", config=RECIPE, blocks=2),
    Case(name="Whisper base", config=PRESETS["base"], blocks=1),
    Case(name="Whisper small", config=PRESETS["small"], blocks=1),
    Case(name="Whisper medium", config=PRESETS["medium"], blocks=1),
    Case(name="Whisper medium", config=PRESETS["medium"], blocks=3),
)
ENGINE = "torch-fp32"
TARGET = Target(language="en", source="en")


class LuckyParasite(ParasiteDraft):
    """Proposes the right token with a probability; one row at a time."""

    probability = 0.0
    written: Sequence[int] = ()

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> ParasiteRun:
        run = super().start(family, memory, targets, capacity)
        prompt, luck = len(whole_prompt(family, targets[0])), np.random.default_rng(0)

        def propose(state: DecodingState, count: int) -> Tensor:
            tokens = ParasiteRun.propose(run, state, count)
            position = int(state.lengths[0]) - prompt
            for i, right in enumerate(self.written[position : position + tokens.shape[1]]):
                tokens[0, i] = right if luck.random() < self.probability else right - 1
            return tokens

        run.propose = propose  # type: ignore[method-assign]
        return run


@torch.inference_mode()
def measure(case: Case, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """A row of the table."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = case.model().eval()
    family = engine_for(model, ENGINE, threads=threads).family
    shape = ParasiteShape.of(model.decoder, num_blocks=case.blocks)
    draft = LuckyParasite.around(Parasite(shape).eval(), model.decoder)
    memory = Memory(
        states=torch.randn(1, case.num_frames, shape.memory_width), num_frames=torch.tensor([case.num_frames])
    )
    options = DecodingOptions(min_tokens=args.tokens, max_tokens=args.tokens, timestamps=False)
    plain_ms: list[float] = []
    gains: dict[float, list[float]] = {p: [] for p in args.accepted}

    def go(speculation: Speculation | None) -> tuple[tuple[int, ...], float]:
        hypotheses: list[Any] = []
        seconds = timed(
            lambda: hypotheses.extend(search(family, memory, [[TARGET]], options, None, speculation)),
            torch.device("cpu"),
        )
        return hypotheses[0][0].tokens, seconds

    draft.written, _ = go(None)
    speculations = {p: Speculation(draft, num_draft_tokens=1) for p in args.accepted}
    for repeat in range(args.repeats + 1):  # the first warms up
        _, plain_s = go(None)
        for p, speculation in speculations.items():
            draft.probability = p
            tokens, drafted_s = go(speculation)
            if tokens != draft.written:
                raise RuntimeError("a draft token changed what the model writes")
            if repeat:
                gains[p].append(plain_s / drafted_s)
        if repeat:
            plain_ms.append(1000 * plain_s / args.tokens)
    return {
        "decoder": f"{case.name}, {len(model.decoder.layers)} layers of {shape.width}",
        "blocks": case.blocks,
        "threads": threads,
        "ms per token": round(median(plain_ms), 2),
        **{f"{p:.0%} right": _spread(gains[p]) for p in args.accepted},
    }


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--accepted", type=float, nargs="+", default=[0.57, 0.77, 0.85, 1.0])
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    todo = [(case, n) for case in CASES for n in args.threads]
    rows = [measure(*one, args) for one in track(todo)]
    about = {
        "engine": ENGINE,
        "tokens": args.tokens,
    }
    keep(
        args.out,
        {**about, "rows": rows},
        "tokens per second, without a draft = 1; median (smallest to largest)",
    )


if __name__ == "__main__":
    main()

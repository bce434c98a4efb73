"""What the router of a speech LLM could know: projectors trained by L_lang alone.

They have the shape of `recipes/research/code_switch_six.toml`. There is no language model, so nothing but the language
of each speech token is learned, from states of the bundled encoder; this takes a minute in place of an hour, and says
what a router could know, not what it learns beside a language model. Options of the router are compared: the layers it
reads, its neighbours, how often embedded speech counts. Spans count as `evaluate` counts them, without any averaging.
`dev` is for choosing among the options, `test` for what the choice is worth.

Run: python -m benchmarks.router_probe corpora/mixed_six
"""

import argparse
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.rows import keep
from rich.progress import track
from torch import Tensor, nn

from sprachbund.data.language_spans import timed_spans
from sprachbund.data.manifest import Manifest
from sprachbund.evaluation.hypotheses import corpus_name
from sprachbund.evaluation.lines import RoutedSpan, routed_s
from sprachbund.models.io import locate
from sprachbund.models.speech_llm import ProjectorOptions
from sprachbund.models.speech_llm.io import read_encoder
from sprachbund.models.speech_llm.objective import stretches, token_languages
from sprachbund.models.speech_llm.projector import Projector
from sprachbund.nn.moe import language_losses
from sprachbund.util.provenance import commit, data_hash

RECIPE = Path("recipes/research/code_switch_six.toml")
PARTS = {"train": 5000, "monolingual-train": 2500, "dev": 1300, "test": 1300, "monolingual-test": 780}
"""Parts of the corpus, and how many utterances of each are taken, evenly over it."""
BATCH, RATE, WARMUP = 12, 2e-3, 50


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Options of a router.

    Attributes:
        name: what is different.
        layers: encoder layers that are read beside the last, counted from 0.
        context: speech tokens that are read on each side.
        embedded: how often embedded speech counts.
    """

    name: str
    layers: tuple[int, ...] = (4,)
    context: int = 0
    embedded: float = 1.0


VARIANTS = (
    Variant(name="as in the comparison"),
    Variant(name="embedded speech counts 4 times", embedded=4.0),
    Variant(name="layers 2 to 4", layers=(2, 3, 4)),
    Variant(name="2 neighbours", context=2),
    Variant(name="5 neighbours", context=5),
    Variant(name="10 neighbours", context=10),
    Variant(name="layers 2 to 4, 4 times", layers=(2, 3, 4), embedded=4.0),
    Variant(name="layers 2 to 4, 4 times, 5 neighbours", layers=(2, 3, 4), context=5, embedded=4.0),
)


@dataclass(frozen=True, kw_only=True)
class Heard:
    """An utterance.

    Attributes:
        states: fp16 (P, 1 + layers, D), those behind the last layer first.
        spans: start and end in seconds, and number of the language.
        main: number of the main language.
        duration_s: length in seconds.
    """

    states: Tensor
    spans: Sequence[tuple[float, float, int]]
    main: int
    duration_s: float


def hear(folder: Path, most: int, tags: Sequence[str], shares: dict[str, float] | None) -> Iterator[Heard]:
    """Utterances of a part with the states of all encoder layers."""
    encoder = read_encoder(locate("bundled")).eval()
    manifest = Manifest(folder, shares)
    chosen = np.linspace(0, len(manifest) - 1, min(most, len(manifest))).astype(int)
    order = chosen[np.argsort(manifest.durations_s[chosen], kind="stable")]
    batches = np.array_split(order, max(1, len(order) // 16))
    for batch in track(batches, f"states of {folder.name}"):
        values, num_frames = encoder.features([manifest.samples(int(i)) for i in batch])
        with torch.inference_mode():
            states, counts = encoder.read(values, num_frames, range(len(encoder.layers)))
        for index, own, count in zip(batch, states, counts.tolist(), strict=True):
            utterance = manifest[int(index)]
            main = tags.index(utterance.language)
            spans = [(start_s, end_s, tags.index(tag)) for start_s, end_s, tag in timed_spans(utterance)]
            yield Heard(
                states=own[:count].half().unflatten(1, (-1, encoder.width)).clone(),
                spans=spans or [(0.0, utterance.duration_s, main)],
                main=main,
                duration_s=utterance.duration_s,
            )


def batch_of(chosen: Sequence[Heard], variant: Variant) -> tuple[Tensor, Tensor]:
    """States (B, P, D) that a router reads, and their numbers (B,)."""
    which = [0, *(1 + layer for layer in variant.layers)]
    rows = [one.states[:, which].flatten(1).float() for one in chosen]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def train(
    heard: Sequence[Heard], variant: Variant, recipe: dict[str, Any], steps: int, seed: int, frame_s: float
) -> Projector:
    """A projector that has learned the language of every speech token."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    sizes = {**recipe["projector"], "encoder_layers": variant.layers, "router_context": variant.context}
    options = ProjectorOptions(groups=tuple(map(tuple, recipe["groups"])), **sizes)
    projector = Projector(
        heard[0].states.shape[2] * (1 + len(variant.layers)), recipe["text_llm"]["width"], options
    )
    optimizer = torch.optim.AdamW(projector.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1.0, (n + 1) / WARMUP) * (0.55 + 0.45 * np.cos(np.pi * n / steps))
    )
    every = torch.eye(len(options.groups), dtype=torch.bool)
    for _ in range(steps):
        chosen = [heard[i] for i in rng.integers(0, len(heard), BATCH)]
        tokens = projector(*batch_of(chosen, variant))
        said = torch.cat([token_languages(one.spans, len(one.states), frame_s) for one in chosen])
        main = torch.tensor([one.main for one in chosen])[tokens.utterance]
        weights = torch.where(said == main, 1.0, variant.embedded) * (said >= 0)
        groups = every[said.clamp(min=0)]
        losses = torch.stack([language_losses(routing, groups) for routing in tokens.routings]).mean(0)
        loss = (weights * losses).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return projector.eval()


@torch.inference_mode()
def score(
    projector: Projector, heard: Sequence[Heard], variant: Variant, frame_s: float, num_groups: int
) -> tuple[float, float]:
    """Embedded spans and time in per cent that went to the experts of their language."""
    names = [str(number) for number in range(num_groups)]
    spans = right = 0
    time_s = right_s = 0.0
    for begin in range(0, len(heard), BATCH):
        chosen = heard[begin : begin + BATCH]
        states, counts = batch_of(chosen, variant)
        probs = projector(states, counts).group_probs()
        for one, own in zip(chosen, probs, strict=True):
            spoken = stretches(own[: len(one.states)], names, frame_s, one.duration_s)
            routes = [RoutedSpan(start_s=a, end_s=b, language=name) for a, b, name in spoken]
            for start_s, end_s, language in one.spans:
                good_s, embedded = routed_s(start_s, end_s, str(language), routes), language != one.main
                time_s, right_s = time_s + end_s - start_s, right_s + good_s
                spans, right = spans + embedded, right + (embedded and 2 * good_s > end_s - start_s)
    return 100 * right / max(1, spans), 100 * right_s / time_s


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that `data make mixed` wrote")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/code_switch_router_probe.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    tags = [tag for group in recipe["groups"] for tag in group]
    frame_s = read_encoder(locate("bundled")).frame_s * recipe["projector"]["spliced_frames"]
    parts = {
        name: list(hear(given.data / name, most, tags, recipe["shares"] if "train" in name else None))
        for name, most in PARTS.items()
    }
    rows = []
    for variant in VARIANTS:
        scores: dict[str, list[float]] = {}
        for seed in range(given.seeds):
            learned = [*parts["train"], *parts["monolingual-train"]]
            projector = train(learned, variant, recipe, given.steps, seed, frame_s)
            for name in ("dev", "test", "monolingual-test"):
                embedded, time = score(projector, parts[name], variant, frame_s, len(tags))
                if name != "monolingual-test":
                    scores.setdefault(f"embedded spans right, {name} %", []).append(embedded)
                if name != "dev":
                    scores.setdefault(f"time right, {name} %", []).append(time)
        row: dict[str, Any] = {
            "router": variant.name,
            "layers read": ", ".join([*map(str, variant.layers), "last"]),
            "neighbours": variant.context,
        }
        for name, values in scores.items():
            row[name] = round(float(np.mean(values)), 1)
        spread = scores["embedded spans right, test %"]
        row["embedded spans right, test, over seeds %"] = f"{min(spread):.1f} to {max(spread):.1f}"
        rows.append(row)
        print(row, flush=True)
    folders = [given.data / name for name in PARTS]
    result = {
        "command": f"python -m benchmarks.router_probe {given.data}",
        "recipe": str(RECIPE),
        "steps": given.steps,
        "batch": BATCH,
        "learning_rate": RATE,
        "seeds": given.seeds,
        "utterances": {name: len(heard) for name, heard in parts.items()},
        "data": {corpus_name(folder): data_hash(folder) for folder in folders},
        "commit": commit(),
        "rows": rows,
    }
    keep(given.out, result, "The router, trained alone")


if __name__ == "__main__":
    main()

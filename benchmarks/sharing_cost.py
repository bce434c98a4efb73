"""What `share analyse` costs: how it grows with parameters, languages, utterances and dimensions, and beside training.

One number is varied at a time about a small case; models have random weights and speech is noise, which costs what
speech costs. Processor time is counted, not the clock, so that whatever else runs on the machine does not matter.
Beside training: the same utterances once through the analysis and once through forward pass, loss of three rows and
CTC, backward pass and AdamW in fp32, without reading or augmenting them. Run: python -m benchmarks.sharing_cost
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.rows import keep
from rich.console import Console
from rich.progress import track
from torch import nn

from sprachbund.data.batch import Batch, Transcripts
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.models.conformer import Conformer, ConformerConfig
from sprachbund.research.gradient_sharing.collect import Collection
from sprachbund.research.gradient_sharing.collect_options import CollectOptions
from sprachbund.text.tokenizer import Tokenizer

TAGS = ("aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh")
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
TEXT = " ".join(WORDS)
SECONDS = 2.0
BASE = {"languages": 4, "utterances": 32, "inner_width": 256, "dimensions": 128, "projection": "count"}
VARIED: dict[str, tuple[Any, ...]] = {
    "languages": (2, 4, 8),
    "utterances": (16, 32, 64),
    "inner_width": (256, 1024, 4096),
    "dimensions": (128, 512, 2048),
}
GAUSSIAN = ({"dimensions": 128}, {"dimensions": 512}, {"inner_width": 1024})
SHAPE = {"width": 128, "num_encoder_layers": 4, "num_decoder_layers": 2}
BUNDLED = {"width": 256, "num_encoder_layers": 8, "num_decoder_layers": 3}
EPOCH_UTTERANCES = 32
ROWS = 3


def model(inner_width: int, **shape: int) -> Conformer:
    """Random weights."""
    tokenizer = Tokenizer.train([TEXT] * 20, TAGS, 60)
    config = ConformerConfig(
        source_languages=TAGS, target_languages=TAGS, feed_forward_width=inner_width, **shape
    )
    return Conformer(config, tokenizer, tokenizer)


def corpus(directory: Path, utterances: int) -> Manifest:
    """Noise in every language, with a text in each."""
    random = np.random.default_rng(0)
    with ManifestWriter(directory) as writer:
        for number in range(utterances * len(TAGS)):
            tag = TAGS[number % len(TAGS)]
            samples = 0.1 * random.standard_normal(int(16_000 * SECONDS)).astype(np.float32)
            others = {other: TEXT for other in TAGS if other != tag}
            writer.add(
                samples,
                text=TEXT,
                language=tag,
                speaker="",
                utterance_id=f"{number}",
                translations=others,
            )
    return Manifest(directory)


def cpu_s(work: Callable[[], object]) -> float:
    """Processor seconds of some work."""
    began = time.process_time()
    work()
    return time.process_time() - began


def collection(network: Conformer, data: Manifest, folder: Path, case: dict[str, Any]) -> Collection:
    """A prepared analysis."""
    options = CollectOptions(
        languages=TAGS[: case["languages"]],
        utterances=case["utterances"],
        dimensions=case["dimensions"],
        projection=case["projection"],
    )
    return Collection(network, [data], options, folder)


def measure(data: Manifest, folder: Path, case: dict[str, Any]) -> dict[str, object]:
    """One row: what was asked for, and what it cost."""
    prepared = collection(model(case["inner_width"], **SHAPE), data, folder, case)
    cost = prepared.cost()  # warms up
    seconds = cpu_s(prepared.run)
    return {
        **{name: case[name] for name in ("languages", "utterances")},
        "parameters": f"{cost.parameters:,}",
        **{name: case[name] for name in ("dimensions", "projection")},
        "passes": cost.passes,
        "cpu_s": round(seconds, 2),
        "gradients_mb": round(cost.memory_bytes / 1e6, 1),
        "file_kb": round(cost.file_bytes / 1e3),
    }


def epoch(network: Conformer, data: Manifest, count: int, batch_size: int = 64) -> None:
    """All utterances once, as a training step takes them."""
    optimizer = torch.optim.AdamW(network.parameters())
    network.train()
    for start in range(0, count, batch_size):
        batch = training_batch(network, data, range(start, min(start + batch_size, count)))
        network(batch).total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def training_batch(network: Conformer, data: Manifest, numbers: range) -> Batch:
    """Utterances with `ROWS` rows each."""
    features = network.features([data.samples(number) for number in numbers])
    text = torch.tensor(network.tokenizer.encode(TEXT))
    tags = [TAGS[row % len(TAGS)] for row in range(ROWS)] * len(numbers)
    return Batch(
        features=features.values,
        num_frames=features.num_frames,
        source_language=torch.tensor([number % len(TAGS) for number in numbers]),
        transcripts=Transcripts(text.repeat(len(numbers), 1), torch.full((len(numbers),), len(text))),
        targets=torch.cat([text, torch.tensor([network.end_token])]).repeat(len(tags), 1),
        num_targets=torch.full((len(tags),), len(text) + 1),
        target_language=torch.tensor([network.tokenizer.language_id(tag) for tag in tags]),
    )


def beside_training(data: Manifest, folder: Path) -> list[dict[str, object]]:
    """The analysis and an epoch of the same utterances, for two shapes."""
    rows: list[dict[str, object]] = []
    for name, shape, inner_width in (("small", SHAPE, 256), ("bundled", BUNDLED, 512)):
        network = model(inner_width, **shape)
        case = {**BASE, "languages": len(TAGS), "utterances": EPOCH_UTTERANCES}
        prepared = collection(network, data, folder / name, case)
        prepared.cost()
        count = len(TAGS) * EPOCH_UTTERANCES
        analysed = cpu_s(prepared.run)
        network.requires_grad_(True)
        epoch(network, data, 8)
        trained = cpu_s(lambda: epoch(network, data, count))  # noqa: B023
        rows.append(
            {
                "shape": name,
                "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
                "utterances": count,
                "analysis_cpu_s": round(analysed, 2),
                "epoch_cpu_s": round(trained, 2),
                "ratio": round(analysed / trained, 2),
            }
        )
    return rows


def main() -> None:
    """Measure, print tables, write JSON files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("grows", "epoch"), help="one of the two tables")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the JSON files")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [BASE]
    cases += [
        {**BASE, what: value} for what, values in VARIED.items() for value in values if value != BASE[what]
    ]
    cases += [{**BASE, "languages": 2, "projection": "gaussian", **changes} for changes in GAUSSIAN]
    with tempfile.TemporaryDirectory() as folder:
        data = corpus(Path(folder) / "data", max(*VARIED["utterances"], EPOCH_UTTERANCES))
        if given.only != "epoch":
            rows = [
                measure(data, Path(folder) / f"{number}", case)
                for number, case in enumerate(track(cases, "analysing", console=Console(stderr=True)))
            ]
            keep(given.out / "sharing_cost.json", {"rows": rows})
        if given.only != "grows":
            rows = beside_training(data, Path(folder))
            keep(given.out / "sharing_epoch.json", {"rows": rows})


if __name__ == "__main__":
    main()

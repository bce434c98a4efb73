"""Memory of a training step: what `train --check` predicts, beside the most that torch's allocator held in two steps.

Random weights and noise serve; a shape is its model, its options and its largest batch. Both numbers are of bytes that
tensors hold, so they do not depend on what else the machine does. Run: python -m benchmarks.training_memory
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.rows import keep
from tests.models.speech_llm_support import make_model as make_speech_llm
from tests.training import made, owned

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import Corpus, ExampleOptions, batches
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.models import whisper
from sprachbund.models.conformer import Conformer
from sprachbund.models.speech_llm import STAGES
from sprachbund.models.speech_llm.model import SpeechLLMExamples
from sprachbund.models.speech_llm.stages import enter
from sprachbund.models.whisper.extension import set_prompt
from sprachbund.models.whisper.model import WhisperExamples
from sprachbund.training.check import check_shape
from sprachbund.training.dual_scale import DualScaleOptions, make_dual_scale
from sprachbund.training.lora import add_lora
from sprachbund.training.memory import recompute_layers
from sprachbund.training.optimizers import make_optimizers
from sprachbund.training.options import TrainingOptions
from sprachbund.training.parallel import LossOf, in_16_bits

HERE = Path(__file__).parent
PLAIN: dict[str, Any] = {"rows_per_utterance": 2, "max_tokens": 24, "time_masks": 0, "frequency_masks": 0}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, on what, and how."""

    model: Any
    corpus: Corpus
    options: TrainingOptions


def conformer(root: Path, options: Mapping[str, Any], **shape: Any) -> Training:
    plain = made.make_model()
    torch.manual_seed(0)
    model = Conformer(plain.config.model_copy(update=shape), plain.tokenizer, plain.transcript_tokenizer)
    return Training(
        model=model,
        corpus=made.make_training_data(root / "speech", time_masks=0, frequency_masks=0),
        options=made.options(2, **options),
    )


def of_whisper(root: Path, build: Callable[[Any], Any], **options: Any) -> Training:
    torch.manual_seed(0)
    if not (root / "whisper").exists():
        owned.make_whisper(root / "whisper")
        owned.make_tones(root / "tones")
    model = set_prompt(whisper.load(root / "whisper"), "wanted-only", ["en", "de"])
    corpus = Corpus(
        [(Manifest(root / "tones"), 1.0)],
        WhisperExamples(model, made.LANGUAGES),
        ExampleOptions(**{**PLAIN, "rows_per_utterance": 1, "spoken": True}),
    )
    return Training(model=build(model), corpus=corpus, options=made.options(2, batch_s=8.0, **options))


def with_adapters(model: Any) -> Any:
    add_lora(model, ("*.query", "*.value"), 8)
    return model


def speech_llm(root: Path, **options: Any) -> Training:
    sizes = {"groups": (("en",), ("de",)), "spliced_frames": 1, "hidden_width": 64}
    model = make_speech_llm(projector=sizes, target_languages=made.LANGUAGES)
    enter(model, STAGES[1])
    corpus = Corpus(
        [(Manifest(root / "speech"), 1.0)],
        SpeechLLMExamples(model, made.LANGUAGES),
        ExampleOptions(**PLAIN),
    )
    given = {"batch_s": 40.0, "optimizer": "adamw", "trainable": STAGES[1].patterns, **options}
    return Training(model=model, corpus=corpus, options=made.options(2, **given))


WIDE = {"width": 192, "feed_forward_width": 512, "num_heads": 4}
DEEP = {"num_encoder_layers": 6, "num_decoder_layers": 3, "width": 96}
BUNDLED = {
    "width": 256,
    "num_heads": 4,
    "num_encoder_layers": 8,
    "num_decoder_layers": 4,
    "feed_forward_width": 1024,
}
SHAPES: Mapping[str, Callable[[Path], Training]] = {
    "conformer of 17 M": lambda root: conformer(root, {"batch_s": 30.0, "optimizer": "adamw"}, **BUNDLED),
    "conformer, wide": lambda root: conformer(root, {"batch_s": 20.0}, **WIDE),
    "conformer, deep, recomputed": lambda root: conformer(root, {"batch_s": 60.0, "recompute": True}, **DEEP),
    "conformer, bf16, AdamW": lambda root: conformer(
        root, {"batch_s": 40.0, "precision": "bf16", "optimizer": "adamw"}, **WIDE
    ),
    "Whisper, LoRA": lambda root: of_whisper(root, with_adapters, trainable=("*lora_*",), optimizer="adamw"),
    "dual scale": lambda root: of_whisper(
        root,
        lambda model: make_dual_scale(model, DualScaleOptions(text_layers=1, blocks=1, whole_layers=1)),
        optimizer="adamw",
    ),
    "speech LLM": speech_llm,
    "speech LLM, frozen in 16 bits": lambda root: speech_llm(root, precision="bf16", frozen_bf16=True),
}
"""By name: a function of a folder for corpora and checkpoints."""


def predicted(training: Training) -> int:
    """Bytes of one process, as `--check` says."""
    options = training.options
    shape = check_shape(training.model, training.corpus, options)
    return shape.strategy(1, shard=False, recompute=options.recompute, accumulate=1).total


def allocated(training: Training, trace: Path) -> int:
    """Most bytes that torch's allocator held for tensors in two steps on the largest batch, weights included."""
    model, data, options = training.model, training.corpus, training.options
    data.enter(0)
    optimizers, loss_of = make_optimizers(model, options), LossOf(model, options).train()
    for optimizer in optimizers:
        optimizer.zero_grad()
    if options.recompute:
        recompute_layers(model)
    plan = BatchingOptions(batch_s=options.batch_s)
    sizes = [float(data.durations_s[batch].max()) * len(batch) for batch in data.plan(plan, 0)]
    batch = next(batches(data, plan, 0, sizes.index(max(sizes))))
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as seen:
        for _ in range(2):
            loss_of(batch).total.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    seen.export_chrome_trace(str(trace))
    events = [e["args"] for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return int(held + max(event["Total Allocated"] for event in events) - before)


def make_speech(directory: Path, count: int) -> None:
    """Noise of 1 to 4 s, with texts of the tests' corpus."""
    rng = np.random.default_rng(0)
    with ManifestWriter(directory) as writer:
        for number in range(count):
            language, other = made.LANGUAGES[number % 2], made.LANGUAGES[1 - number % 2]
            said = rng.integers(0, 4, size=3)
            writer.add(
                rng.normal(0, 0.1, int(16_000 * rng.uniform(1, 4))).astype(np.float32),
                text=" ".join(made.WORDS[language][word] for word in said),
                language=language,
                speaker="",
                utterance_id=f"{number}",
                translations={other: " ".join(made.WORDS[other][word] for word in said)},
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "training_memory.json")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_speech(root / "speech", 48)
        for shape, build in SHAPES.items():
            foreseen = predicted(build(root))
            training = build(root)
            if training.options.frozen_bf16:
                in_16_bits(training.model)
            seen = allocated(training, root / "trace.json")
            rows.append(
                {
                    "shape": shape,
                    "k_parameters": round(sum(p.numel() for p in training.model.parameters()) / 1000),
                    "predicted_MiB": round(foreseen / 2**20, 2),
                    "measured_MiB": round(seen / 2**20, 2),
                    "off_%": round(100 * (foreseen / seen - 1), 1),
                }
            )
            print(rows[-1], flush=True)
    keep(args.out, {"rows": rows}, "memory of a training step")


if __name__ == "__main__":
    main()

"""What a streaming model keeps of the offline model that it starts from, by the kind of its encoder.

The arms see the same batches in the same order. Before training and behind it, the CTC head is asked for the words of
utterances that were not trained on, with the context that a live stream has. Trainings run one at a time, on all cores.

Run: python -m benchmarks.streaming_start TRAIN DEV TEST, for example the parts `train` of `recipes/bundled_mixed.toml`,
`dev_voices/dev` and `telephone/composed`.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from benchmarks.rows import keep

from sprachbund.data.manifest import Manifest
from sprachbund.decoding.ctc import best_path
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.io import load
from sprachbund.nn.streaming_conformer import Tier
from sprachbund.training.preparation import prepare_model
from sprachbund.training.recipe import TranslatorRecipe
from sprachbund.training.translator import run
from sprachbund.util.provenance import commit, data_hash

LANGUAGES = ("en", "es", "fr", "it", "de", "ru")
BUNDLED: Mapping[str, Any] = {"start": "bundled"}
CHUNK, CONV1D = {"convolution": "chunk"}, {"subsampling": "striding_conv1d"}
SLOWER = "chunk, striding_conv1d, at a tenth of the rate"
"""The encoder and its heads, while the transducer, which knows nothing, has the whole rate."""
ARMS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "initialized anew": ({}, {}),
    "causal, dw_striding": (BUNDLED, {}),
    "causal, striding_conv1d": (BUNDLED, CONV1D),
    "chunk, dw_striding": (BUNDLED, CHUNK),
    "chunk, striding_conv1d": (BUNDLED, CHUNK | CONV1D),
    SLOWER: (BUNDLED, CHUNK | CONV1D),
}
"""Arm to what the recipe starts from, and to the options of its encoder."""
RIGHT_CONTEXTS = (27, 13, 6)
WHOLE = Tier(left=200, right=199)
"""One chunk for every utterance: the convolutions alone differ from those of an offline encoder."""
_LOSS = re.compile(r"step (\d+) dev loss ([\d.]+)")


def recipe_of(arm: str, train: Path, dev: Path, steps: int) -> TranslatorRecipe:
    """The recipe of an arm.

    Args:
        arm: name of the arm.
        train: corpus to train on.
        dev: corpus of the losses on dev.
        steps: batches.
    """
    start, options = ARMS[arm]
    streaming = {"left_context": 84, "right_contexts": RIGHT_CONTEXTS, **options}
    if "subsampling" not in options:
        streaming["stem_channels"] = 128
    return TranslatorRecipe.model_validate(
        {
            **start,
            "languages": LANGUAGES,
            "vocabulary_size": 500,
            "train": [{"path": train}],
            "dev": [{"path": dev}],
            "model": {
                "num_encoder_layers": 8,
                # Causal kernels have the taps that are kept.
                "kernel_size": 15 if "convolution" in options else 8,
                "num_decoder_layers": 0,
                "decoder_width": 8,
                "decoder_heads": 1,
                "streaming": streaming,
                "transducer": {
                    "prediction_width": 256,
                    "prediction_layers": 1,
                    "joint_width": 256,
                    "fusion_width": 256,
                    "prune_range": 8,
                },
            },
            "examples": {"rows_per_utterance": 3},
            "training": {
                "steps": steps,
                "learning_rate": 1e-3,
                "rates": {"encoder.*": 1e-4, "*_head.*": 1e-4} if arm == SLOWER else {},
                "warmup_steps": steps // 10,
                "decay_share": 0.5,
                "batch_s": 60,
                "max_duration_s": 6,
                "num_workers": 0,
                "evaluate_every": steps,
            },
            "card": {"name": "trial"},
        }
    )


@torch.inference_mode()
def word_errors(model: Conformer, test: Manifest, utterances: np.ndarray) -> dict[str, float]:
    """Word error rate of the CTC head's best path by the context of the encoder, on utterances of a corpus.

    Args:
        model: a streaming model.
        test: the corpus.
        utterances: indices of the utterances.
    """
    model.eval()
    errors = {}
    for tier in (WHOLE, *model.encoder.tiers):
        model.encoder.tier = tier
        pairs = []
        for part in np.array_split(utterances[np.argsort(test.durations_s[utterances])], 10):
            memory = model.encode(model.features([test.samples(int(index)) for index in part]))
            assert memory.num_frames is not None
            log_probs = model.transcript_log_probs(memory).numpy()
            for index, row, count in zip(part, log_probs, memory.num_frames.tolist(), strict=True):
                tokens, *_ = best_path(row[:count])
                pairs.append((test[int(index)].text, model.decode_transcript(tokens)))
        references, texts = zip(*pairs, strict=True)
        name = "all" if tier == WHOLE else str(tier.right)
        errors[f"{name} ahead"] = round(jiwer.wer(list(references), list(texts)), 3)
    return errors


def measured(arm: str, train: Path, dev: Path, test: Manifest, steps: int, num_test: int) -> dict[str, Any]:
    """One training of an arm: its word error rates before and after it, and its loss on dev.

    Args:
        arm: name of the arm.
        train: corpus to train on.
        dev: corpus of the losses on dev.
        test: corpus of the words.
        steps: batches.
        num_test: utterances of that corpus, spread over it.
    """
    recipe = recipe_of(arm, train, dev, steps)
    utterances = np.linspace(0, len(test) - 1, num_test).astype(int)
    losses: list[float] = []

    def note(line: str) -> None:
        if match := _LOSS.match(line):
            losses.append(float(match[2]))

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        before = prepare_model(recipe, Path(folder), [Manifest(train)]).model
        errors = {f"before, {name}": rate for name, rate in word_errors(before, test, utterances).items()}
        run(recipe, Path(folder), report=note)
        after = word_errors(load(Path(folder) / "model"), test, utterances)
    return {**errors, **{f"after, {name}": rate for name, rate in after.items()}, "dev loss": losses[-1]}


def main() -> None:
    """Train all arms and keep what they came to."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("train", "dev", "test"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--num-test", type=int, default=200)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), help="the rows of others stay")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    test = Manifest(asked.test)
    old = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    by_arm = {row["encoder"]: row for row in old}
    for arm in asked.arms:
        scores = measured(arm, asked.train, asked.dev, test, asked.steps, asked.num_test)
        by_arm[arm] = {"encoder": arm, **scores}
        print(by_arm[arm], flush=True)
    rows = [by_arm[arm] for arm in ARMS if arm in by_arm]
    data = {name: data_hash(path) for name, path in vars(asked).items() if name in ("train", "dev", "test")}
    keep(
        asked.out,
        {"commit": commit(), "data": data, "steps": asked.steps, "utterances": asked.num_test, "rows": rows},
    )


if __name__ == "__main__":
    main()

"""A made corpus, a tiny model, and a training of it: `python -m tests.training.made DIRECTORY STEPS KILLED_AT`."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sprachbund.data.loading import Corpus, ExampleOptions, PieceExamples
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.models.conformer import Conformer, ConformerConfig
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.training.loop import train
from sprachbund.training.options import TrainingOptions

WORDS = {"en": ["one", "two", "three", "four"], "de": ["eins", "zwei", "drei", "vier"]}
LANGUAGES = tuple(WORDS)


def make_corpus(directory: Path, count: int = 48) -> None:
    """Tones whose pitch is the word, so there is something to learn."""
    rng = np.random.default_rng(0)
    with ManifestWriter(directory, shard_size=count // 2) as writer:
        for i in range(count):
            numbers = rng.integers(0, 4, size=rng.integers(1, 4))
            language, other = LANGUAGES[i % 2], LANGUAGES[1 - i % 2]
            time = np.arange(3200) / 16_000
            tones = [np.sin(2 * np.pi * (300 + 250 * n + 60 * (i % 2)) * time) for n in numbers]
            writer.add(
                0.3 * np.concatenate(tones).astype(np.float32),
                text=" ".join(WORDS[language][n] for n in numbers),
                language=language,
                speaker="tone",
                utterance_id=f"tone-{i}",
                translations={other: " ".join(WORDS[other][n] for n in numbers)},
            )


def make_model(dropout: float = 0.0) -> Conformer:
    """A few thousand parameters, the same ones every time."""
    torch.manual_seed(0)
    texts = [" ".join(words) for words in WORDS.values()] * 20
    config = ConformerConfig(
        source_languages=LANGUAGES,
        target_languages=LANGUAGES,
        width=32,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=1,
        feed_forward_width=32,
        kernel_size=5,
        max_tokens=32,
        dropout=dropout,
    )
    return Conformer(config, Tokenizer.train(texts, LANGUAGES, 40), Tokenizer.train(texts, (), 30))


def make_training_data(directory: Path, **options: object) -> Corpus:
    """The corpus in a directory as examples."""
    chosen = ExampleOptions(rows_per_utterance=2, max_tokens=31, **options)  # type: ignore[arg-type]
    model = make_model()
    examples = PieceExamples(model.tokenizer, model.transcript_tokenizer, LANGUAGES)
    return Corpus([(Manifest(directory), 1.0)], examples, chosen)


def options(steps: int, **changes: object) -> TrainingOptions:
    """Small steps in full precision."""
    values = {
        "steps": steps,
        "warmup_steps": 4,
        "learning_rate": 3e-3,
        "precision": "no",
        "batch_s": 6.0,
        "num_workers": 0,
        "log_every": 5,
        "save_every": 1,
        "evaluate_every": 1000,
        "keep_best": 0,
        **changes,
    }
    return TrainingOptions.model_validate(values)


def train_made(
    directory: Path,
    steps: int,
    dropout: float = 0.0,
    report: Callable[[str], None] = print,
    *,
    killed_at: int = 0,
) -> dict[str, torch.Tensor]:
    """Train on the corpus in `directory`/data; the weights, which are in `directory`/run/weights.pt too.

    torchrun's second process kills itself at a step, the first time.
    """

    def on_step(done: int, total: int) -> None:
        if (done, os.environ.get("RANK"), os.environ.get("TORCHELASTIC_RESTART_COUNT")) == (
            killed_at,
            "1",
            "0",
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    data, model = make_training_data(directory / "data"), make_model(dropout)
    run = directory / "run"
    weights = train(model, data, options(steps), run, report=report, on_step=on_step).state_dict()
    torch.save(weights, directory / "run" / "weights.pt")
    return weights


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_made(Path(sys.argv[1]), int(sys.argv[2]), 0.1, killed_at=int(sys.argv[3]))

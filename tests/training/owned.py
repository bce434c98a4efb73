"""Small checkpoints as users own them, tones as speech, and the recipe that fine-tunes the one on the other."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperConfig as HFWhisperConfig
from transformers import WhisperForConditionalGeneration

from sprachbund.data.manifest import ManifestWriter
from sprachbund.models.whisper import WhisperConfig
from sprachbund.training.recipe import TranslatorRecipe
from tests.models.whisper_support import make_tokenizer
from tests.training import made

WORDS = {"en": ("one", "two", "six", "ten"), "de": ("eins", "zwei", "acht", "zehn")}
PITCHES_HZ = (300, 700, 1500, 3000)
SIZES = WhisperConfig(
    vocabulary_size=1775,
    width=64,
    encoder_layers=1,
    encoder_heads=2,
    encoder_feed_forward_width=96,
    decoder_layers=1,
    decoder_heads=2,
    decoder_feed_forward_width=96,
    max_frames=50,
    max_tokens=24,
)
"""A window of one second."""


def make_tones(directory: Path, languages: tuple[str, ...] = ("en", "de"), *, silence: int = 0) -> Path:
    """A word is a pitch, a language its overtone; every text in both languages."""
    time = np.arange(8000) / 16_000
    with ManifestWriter(directory) as writer:
        for language in languages:
            for i, pitch in enumerate(PITCHES_HZ):
                said = WORDS["de" if language == "de" else "en"][i]
                tone = np.sin(2 * np.pi * pitch * time) + (language == "de") * np.sin(
                    5 * np.pi * pitch * time
                )
                writer.add(
                    (0.2 * tone).astype(np.float32),
                    text=said,
                    language=language,
                    speaker="tone",
                    utterance_id=f"{language}-{i}",
                    translations={tag: words[i] for tag, words in WORDS.items() if tag != language},
                )
        for i in range(silence):
            noise = 0.01 * np.random.default_rng(i).standard_normal(8000).astype(np.float32)
            writer.add(noise, text="", language="", speaker="", utterance_id=f"silence-{i}")
    return directory


def make_whisper(directory: Path) -> Path:
    """A Whisper that knows nothing, as transformers writes it."""
    torch.manual_seed(3)
    end = 256
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end + 1}
    model = WhisperForConditionalGeneration(HFWhisperConfig(**SIZES.to_transformers(), init_std=0.1, **ids))
    model.save_pretrained(directory)
    make_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").write_text('{"is_multilingual": true}')
    return directory


def fine_tuning_recipe(data: Path, start: Path, steps: int, **changes: Any) -> TranslatorRecipe:
    """Small steps without masks."""
    training = made.options(steps, **{"batch_s": 8.0, "max_duration_s": 0.9, **changes.pop("training", {})})
    return TranslatorRecipe.model_validate(
        {
            "languages": ("en", "de"),
            "train": [{"path": data}],
            "dev": [{"path": data}],
            "start": start,
            "examples": {"rows_per_utterance": 2, "time_masks": 0, "frequency_masks": 0, "speeds": [1.0]},
            "training": training.model_dump(),
            "card": {"name": "tuned", "licence": "CC0-1.0"},
            **changes,
        }
    )

"""Speech made of tones, one for each letter, and encoders with random weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sprachbund.data.manifest import ManifestWriter
from sprachbund.models.tokens.sources import encoder_hash
from sprachbund.models.tokens.unit_options import FitOptions, KMeansOptions, VocabularyOptions
from sprachbund.units.encoded import Extraction
from sprachbund.util.computing import Computing
from tests.stories.support import write_tiny_model

LETTERS = "abcdef"
TONE_S = 0.16
RATE = 16_000


def tones(text: str, seed: int = 0) -> np.ndarray:
    """A tone for each letter."""
    time = np.arange(round(TONE_S * RATE)) / RATE
    rng = np.random.default_rng(seed)
    parts = [np.sin(2 * np.pi * (300 + 500 * LETTERS.index(c)) * time + rng.uniform(0, 6)) for c in text]
    return (0.3 * np.concatenate(parts) + 0.003 * rng.standard_normal(len(time) * len(text))).astype(
        np.float32
    )


def words(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(LETTERS), int(rng.integers(3, 9)))) for _ in range(count)]


def write_corpus(directory: Path, count: int = 12, extra: Sequence[np.ndarray] = ()) -> Path:
    """Words of tones in two languages, translated into capital letters; then `extra` utterances of sound."""
    with ManifestWriter(directory, shard_size=5) as writer:
        for number, word in enumerate(words(count)):
            writer.add(
                tones(word, number),
                text=word,
                language="de" if number % 2 else "en",
                speaker="t",
                utterance_id=f"u{number:03d}",
                translations={"fr": word.upper()},
            )
        for number, samples in enumerate(extra):
            writer.add(samples, text="a", language="de", speaker="t", utterance_id=f"extra{number}")
    return directory


def conformer(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return write_tiny_model(directory)


def wav2vec(directory: Path, kind: str = "WavLM", norm: str = "layer", rate: int = RATE) -> Path:
    """A tiny checkpoint of transformers: WavLM, Hubert or Wav2Vec2."""
    import transformers

    torch.manual_seed(3)
    config: Any = getattr(transformers, f"{kind}Config")(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
    )
    getattr(transformers, f"{kind}Model")(config).save_pretrained(directory)
    transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=rate, return_attention_mask=norm == "layer", do_normalize=True
    ).save_pretrained(directory)
    return directory


def extraction(directory: Path, layer: int = 2) -> Extraction:
    return Extraction(
        directory=directory, layer=layer, name=str(directory), hash=encoder_hash(directory), batch_s=3.0
    )


def options(**changes: Any) -> FitOptions:
    values: dict[str, Any] = {
        "kmeans": KMeansOptions(clusters=8, batch_size=64, n_init=3),
        "vocabulary": VocabularyOptions(unit_pieces=24, text_pieces=30),
        "share": 1.0,
    }
    return FitOptions(**{**values, **changes})


def computing(**changes: Any) -> Computing:
    return Computing(**{"block": 4, **changes})


def w2v_bert(directory: Path, rate: int = RATE) -> Path:
    """A tiny checkpoint of transformers' w2v-BERT 2.0."""
    import transformers

    torch.manual_seed(3)
    config = transformers.Wav2Vec2BertConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        feature_projection_input_dim=160,
        left_max_position_embeddings=6,
        right_max_position_embeddings=2,
    )
    transformers.Wav2Vec2BertModel(config).save_pretrained(directory)
    transformers.SeamlessM4TFeatureExtractor(sampling_rate=rate).save_pretrained(directory)
    return directory

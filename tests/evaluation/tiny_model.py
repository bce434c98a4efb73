"""A tiny conformer with random weights, and a small corpus, on which everything but quality can be tested."""

from pathlib import Path

import numpy as np
import torch

from sprachbund.data.manifest import ManifestWriter
from sprachbund.models.conformer.config import ConformerConfig
from sprachbund.models.conformer.io import save
from sprachbund.models.conformer.model import Conformer
from sprachbund.text.tokenizer import Tokenizer

LANGUAGES = ("de", "en", "ru")
SENTENCES = [
    {"en": "the train leaves at noon", "de": "der Zug fährt am Mittag", "ru": "поезд отходит в полдень"},
    {"en": "please press two", "de": "bitte drücken Sie zwei", "ru": "пожалуйста нажмите два"},
    {"en": "we arrive on Monday", "de": "wir kommen am Montag an", "ru": "мы приедем в понедельник"},
    {"en": "two tickets to Berlin", "de": "zwei Karten nach Berlin", "ru": "два билета до Берлина"},
    {"en": "it rains in the morning", "de": "am Morgen regnet es", "ru": "утром идёт дождь"},
    {"en": "goodbye and thank you", "de": "auf Wiedersehen und danke", "ru": "до свидания и спасибо"},
]


def save_tiny_model(directory: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    texts = [text for sentence in SENTENCES for text in sentence.values()]
    tokenizer = Tokenizer.train(texts, LANGUAGES, 120)
    config = ConformerConfig(
        source_languages=LANGUAGES,
        target_languages=LANGUAGES,
        width=32,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        feed_forward_width=32,
        max_tokens=24,
    )
    save(Conformer(config, tokenizer, tokenizer), directory)
    return directory


def write_corpus(directory: Path, num_utterances: int = 12, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    with ManifestWriter(directory, shard_size=8) as writer:
        for number in range(num_utterances):
            sentence = dict(SENTENCES[number % len(SENTENCES)])
            language = LANGUAGES[number % 2]  # de, en
            samples = rng.normal(0, 0.1, int(16_000 * rng.uniform(0.5, 2.0))).astype(np.float32)
            text = sentence.pop(language)
            if number == 3:
                del sentence["ru"]
            writer.add(
                samples,
                text=text,
                language=language,
                speaker=f"speaker-{number % 2}",
                utterance_id=f"u{number:03d}",
                translations=sentence,
                custom={"corpus": "tiny", "kind": f"kind-{number % 3}"},
            )
        writer.add(
            samples, text="", language="", speaker="", utterance_id="hum", custom={"kind": "no-speech/hum"}
        )
    return directory

"""A tiny conformer of four languages, and plans that split it."""

from dataclasses import replace

import numpy as np
import torch

from sprachbund.data.batch import Batch, Transcripts
from sprachbund.models.conformer import Conformer, ConformerConfig
from sprachbund.models.sharing_plan import SharingPlan, Split
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.text.tokenizer import Tokenizer

LANGUAGES = ("de", "en", "fr", "ru")
ENCODER = "encoder.layers.1.feed_forward_out"
EARLY = "encoder.layers.1.feed_forward_in"
DECODER = "decoder.layers.0.feed_forward"
TEXTS = ["eins zwei drei", "one two three", "un deux trois", "один два три"] * 20
GROUPS = (("de", "en"), ("fr", "ru"))


def make_model(seed: int = 0, **sizes: object) -> Conformer:
    torch.manual_seed(seed)
    values = {
        "width": 32,
        "num_heads": 2,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
        "feed_forward_width": 48,
        "kernel_size": 5,
        "max_tokens": 24,
        **sizes,
    }
    config = ConformerConfig(source_languages=LANGUAGES, target_languages=LANGUAGES, **values)
    model = Conformer(config, Tokenizer.train(TEXTS, LANGUAGES, 60), Tokenizer.train(TEXTS, (), 40))
    return model.eval()


def make_split(module: str = ENCODER, **changes: object) -> Split:
    return Split.model_validate(
        {"module": module, "groups": GROUPS, "shared_ratio": 0.5, "start": "random", **changes}
    )


def make_plan(*splits: Split) -> SharingPlan:
    return SharingPlan(splits=splits or (make_split(),))


def make_split_model(*splits: Split, **sizes: object) -> Conformer:
    """Random branches that differ a lot, so that a wrong one shows."""
    model = make_model(**sizes)
    split_feed_forwards(model, make_plan(*splits))
    torch.manual_seed(1)
    with torch.no_grad():
        for split in model.sharing_plan.splits:
            for parameter in model.get_submodule(split.module).parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.6)
    return model.eval()


def level_languages(model: Conformer) -> Conformer:
    """Make the head of random weights undecided, so that it hears different languages in different sounds."""
    head = model.language_head
    with torch.no_grad():
        head.weight.normal_(std=3.0)
        features = model.features(make_sounds(8, seed=9))
        under = [replace(features, source_language=torch.full((8,), n)) for n in range(len(LANGUAGES))]
        memories = [model.encode(one) for one in under]
        for _ in range(300):
            own = torch.stack([model.language_log_probs(m)[:, n] for n, m in enumerate(memories)], dim=1)
            head.bias -= 0.3 * (own.median(0).values - own.median())
    return model


def make_sounds(count: int, seed: int = 0) -> list[np.ndarray]:
    """Chords in some noise, of different pitch, loudness and length."""
    rng = np.random.default_rng(seed)
    sounds = []
    for _ in range(count):
        time = np.arange(int(rng.integers(8000, 20_000))) / 16_000
        chord = sum(np.sin(2 * np.pi * f * time * (1 + time)) for f in rng.uniform(100, 3000, 3))
        sounds.append((rng.uniform(0.02, 0.3) * (chord + rng.normal(0, 0.1, len(time)))).astype(np.float32))
    return sounds


def make_batch(model: Conformer, sources: list[int], targets: list[str], seed: int = 0) -> Batch:
    """One utterance for each of `sources` (-1: nobody speaks), its rows in all of `targets`."""
    features = model.features(make_sounds(len(sources), seed))
    generator = torch.Generator().manual_seed(seed)
    num_rows = len(sources) * len(targets)
    tokens = torch.randint(10, len(model.tokenizer), (num_rows, 6), generator=generator)
    return Batch(
        features=features.values,
        num_frames=features.num_frames,
        source_language=torch.tensor(sources),
        transcripts=Transcripts(
            torch.randint(5, 30, (len(sources), 4), generator=generator), torch.full((len(sources),), 4)
        ),
        targets=tokens,
        num_targets=torch.full((num_rows,), 6),
        target_language=torch.tensor([model.tokenizer.language_id(t) for t in targets] * len(sources)),
    )

"""Units of tones, and tiny models that read them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sprachbund.models.tokens.config import TokenConfig
from sprachbund.models.tokens.conformer import TokenConformer
from sprachbund.models.tokens.directory import Units
from sprachbund.models.tokens.reader import make
from sprachbund.units.encoded import EncodedCorpus, Encoding, encode
from sprachbund.units.fit import Fit, make_units
from tests.units.made import computing, conformer, extraction, options, wav2vec, write_corpus

PAIRS = (("de", "fr"), ("en", "fr"))


@dataclass(frozen=True)
class Spoken:
    """A corpus of tones, its units, and it as units."""

    corpus: Path
    units: Units
    encoded: EncodedCorpus


def speak(root: Path, *, hears: bool = False) -> Spoken:
    """With an encoder of random weights, whose convolutions tell tones apart if it `hears`, or else a tiny model."""
    corpus = write_corpus(root / "corpus")
    made = extraction(wav2vec(root / "wavlm"), 1) if hears else extraction(conformer(root / "model"))
    units = make_units(
        Fit(extraction=made, data=(corpus,), out=root / "units", options=options(), computing=computing())
    )
    encoding = Encoding(
        units=root / "units", extraction=made, data=corpus, out=root / "encoded", computing=computing()
    )
    return Spoken(corpus, units, encode(encoding))


def config(**changes: Any) -> TokenConfig:
    values: dict[str, Any] = {
        "embedding_width": 12,
        "width": 16,
        "num_heads": 2,
        "num_lower": 1,
        "num_upper": 1,
        "num_decoder_layers": 1,
        "feed_forward_width": 24,
        "decoder_feed_forward_width": 24,
        "kernel_size": 3,
        "strides": 0,
        "max_tokens": 24,
        "prediction_width": 12,
        "joint_width": 12,
        "pairs": PAIRS,
        "ratio": 2.0,
        "dropout": 0.0,
        "time_masks": 0,
    }
    return TokenConfig(**{**values, **changes})


def model_of(units: Units, seed: int = 0, **changes: Any) -> TokenConformer:
    torch.manual_seed(seed)
    return make(config(**changes), units).eval()


def talkative(model: TokenConformer) -> TokenConformer:
    """With less even outputs and fewer blanks, so that searches have something to find."""
    with torch.no_grad():
        if model.config.has_decoder:
            model.decoder.embedding.weight.mul_(4)
        if model.config.head == "transducer":
            model.transducer.joint.out.weight.mul_(15)
            model.transducer.joint.out.bias[0] += 1
    return model

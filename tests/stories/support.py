"""A small model with random weights and some speech, so that verbs can be run end to end in seconds."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from sprachbund.cli import main
from sprachbund.data.synthesis import Voice, speak
from sprachbund.models.card import Card
from sprachbund.models.conformer import Conformer, ConformerConfig
from sprachbund.models.conformer.io import save
from sprachbund.text.tokenizer import Tokenizer

LANGUAGES = ("de", "en", "fr")
TEXTS = (
    "Guten Tag, wie geht es Ihnen?",
    "Bitte wählen Sie die Nummer noch einmal.",
    "Good morning, how are you today?",
    "Please dial the number again.",
    "Bonjour, comment allez-vous aujourd'hui ?",
    "Veuillez composer le numéro à nouveau.",
)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("sprachbund: error:")]


def command(*args: str | Path) -> Ran:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(arg) for arg in args])
    return Ran(code=code, out=out.getvalue(), err=err.getvalue())


def write_tiny_model(directory: Path) -> Path:
    """A model that writes some text for any speech."""
    torch.manual_seed(5)
    tokenizer = Tokenizer.train(TEXTS, LANGUAGES, 60)
    config = ConformerConfig(
        source_languages=LANGUAGES,
        target_languages=LANGUAGES,
        width=32,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=1,
        feed_forward_width=32,
        max_tokens=24,
    )
    model = Conformer(config, tokenizer, tokenizer)
    with torch.no_grad():
        model.decoder.positions.mul_(20.0)  # the text changes from place to place
    card = Card(name="tiny", licence="CC0-1.0", source_languages=[*LANGUAGES], target_languages=[*LANGUAGES])
    save(model, directory, bits=8, card=card)
    return directory


def speech(text: str = "Good morning, how are you today?", language: str = "en") -> np.ndarray:
    """Synthetic speech, (num_samples,) at 16 kHz, with half a second of silence on both sides."""
    return np.pad(speak(text, Voice(language=language)), 8000)


def write_wav(path: Path, samples: Sequence[float] | np.ndarray, sample_rate: int = 16_000) -> Path:
    soundfile.write(path, np.asarray(samples, np.float32), sample_rate, subtype="PCM_16")
    return path

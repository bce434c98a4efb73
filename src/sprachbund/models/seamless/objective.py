"""What a Seamless model is taught with: features and rows of an utterance.

Shapes: T frames of 20 ms, M stacked mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.examples import Augment, Row
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from sprachbund.models.seamless.model import Seamless

_MIN_SAMPLES = 1040  # five frames of 25 ms every 10 ms: normalising needs more than one
_STACKED = 2


def stacked_log_mel(extractor: Any, samples: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Features (B, T, M) of 16 kHz samples and their lengths (B,), by transformers' extractor."""
    padded = [np.pad(s, (0, max(0, _MIN_SAMPLES - len(s)))) for s in samples]
    found = extractor(padded, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    # A last frame without a second to be stacked with counts as padding, as it does in transformers.
    lengths = found["attention_mask"].sum(1)
    return found["input_features"][:, : int(lengths.max())].float(), lengths


class SeamlessExamples:
    """`sprachbund.data.examples.Examples` of a Seamless model.

    Args:
        model: whose tokens and features are used.
        languages: spoken in the data and, where the model writes them, drawn as targets.

    Raises:
        SprachbundError: a language that the model does not hear, or none that it writes.
    """

    frames_per_s = 50
    whole_windows = False

    def __init__(self, model: Seamless, languages: Sequence[str]) -> None:
        if unknown := sorted(set(languages) - set(model.source_languages)):
            raise SprachbundError(
                f"the model does not hear {', '.join(unknown)}; add to the recipe fine_tuning.new_languages = "
                f'{{{unknown[0]} = "mean"}}'
            )
        self.tokens = model.tokens
        self.extractor = model.extractor
        self.source_languages = list(languages)
        self.target_languages = [tag for tag in languages if tag in model.tokens.languages.tags]
        if not self.target_languages:
            raise SprachbundError(
                f"the model writes none of {', '.join(languages)}; add to the recipe's languages one that it writes, "
                f"such as {', '.join(model.tokens.languages.tags[:5])}"
            )
        self.max_tokens = model.max_tokens - 1  # the prompt has two, the end is not given
        self.max_window_s: float | None = model.max_window_s
        self._numbers = {tag: i for i, tag in enumerate(model.source_languages)}

    def number(self, language: str) -> int:
        """Place of a source language among the model's."""
        return self._numbers[language]

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """Stacked log-mel (T, M) and T; it is augmented before frames are stacked."""
        values, _ = stacked_log_mel(self.extractor, [samples])
        frames = augment(values[0].unflatten(1, (_STACKED, -1)).flatten(0, 1))
        features = frames.unflatten(0, (-1, _STACKED)).flatten(1)
        return features, features.shape[0]

    def transcript(self, text: str) -> list[int]:
        """None: Seamless has no CTC head."""
        return []

    def row(self, text: str, source: str | None, target: str) -> Row:
        """Language token and the text's tokens; where nobody speaks the row ends at once."""
        tokens = self.tokens
        return tokens.language_token(target), [*tokens.text_to_tokens(text.strip()), tokens.end]

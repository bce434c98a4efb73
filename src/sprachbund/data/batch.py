"""The batch: tensors with lengths, and the languages of every row, so nothing guesses them from a position.

Shapes: B utterances, T frames, M mel bins, S transcript tokens, R target rows (R = G B, the G rows of utterance
b are b G .. b G + G - 1), U target tokens, W tokens of the transcript.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

NO_LANGUAGE = -1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Speech with its transcripts and its translations.

    Attributes:
        features: log-mel (B, T, M).
        num_frames: valid frames (B,).
        source_language: index of the language spoken (B,) among the model's; -1 where nobody speaks.
        transcripts: tokens (B, S) of what was said, padded with 0.
        num_transcript: valid transcript tokens (B,).
        targets: tokens (R, U) of the rows wanted, each ended, padded with 0.
        num_targets: valid target tokens (R,); 0 for a row that does not count.
        target_language: language token (R,) each row starts with.
        spoken: tokens (B, W) of what was said as the model would write it, padded with 0; none where nobody asked.
        num_spoken: valid tokens (B,) of `spoken`.
    """

    features: Tensor
    num_frames: Tensor
    source_language: Tensor
    transcripts: Tensor
    num_transcript: Tensor
    targets: Tensor
    num_targets: Tensor
    target_language: Tensor
    spoken: Tensor | None = None
    num_spoken: Tensor | None = None

    @property
    def num_utterances(self) -> int:
        """B."""
        return self.features.shape[0]

    @property
    def rows_per_utterance(self) -> int:
        """G."""
        return self.targets.shape[0] // self.features.shape[0]

    @property
    def padding(self) -> float:
        """Share of the feature frames that are padding."""
        return 1.0 - float(self.num_frames.sum()) / (self.features.shape[0] * self.features.shape[1])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        values: dict[str, Tensor | None] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if v is not None}
        return replace(self, **moved)

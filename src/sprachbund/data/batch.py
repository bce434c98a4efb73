"""The batch: tensors with lengths, and the languages of every row, so nothing guesses them from a position.

Shapes: B utterances, T frames, M mel bins, S transcript tokens, R target rows (R = G B, the G rows of utterance
b are b G .. b G + G - 1), U target tokens, W tokens of the transcript.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

NO_LANGUAGE = -1
_BY_ROW = {"targets", "num_targets", "target_language"}
"""Fields that hold rows, not utterances."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Speech with its transcripts and its translations.

    Attributes:
        features: log-mel (B, T, M); of a model that reads tokens, their ids (B, T).
        num_frames: valid frames (B,).
        source_language: index of the language spoken (B,) among the model's; -1 where nobody speaks.
        transcripts: tokens (B, S) of what was said, padded with 0.
        num_transcript: valid transcript tokens (B,).
        targets: tokens (R, U) of the rows wanted, each ended, padded with 0.
        num_targets: valid target tokens (R,); 0 for a row that does not count.
        target_language: language token (R,) each row starts with.
        spoken: tokens (B, W) of what was said as the model would write it, padded with 0; none where nobody asked.
        num_spoken: valid tokens (B,) of `spoken`.
        kind: of data that it is of, for the log; no model looks at it.
        weight: of its loss beside those of other batches; 0 for a placeholder.
        languages: boolean (B, L), the languages that occur, by their numbers among the model's, of which the last may
            be missing; None takes `source_language` alone.
        spans: for each utterance its stretches (start_s, end_s, number of the language); None where nobody asked.
        sides: number (B,) of the data that an utterance is from, in a batch of several; None in others.
        side_weights: what the loss of each of these counts.
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
    kind: str = ""
    weight: float = 1.0
    languages: Tensor | None = None
    spans: tuple[tuple[tuple[float, float, int], ...], ...] | None = None
    sides: Tensor | None = None
    side_weights: tuple[float, ...] = ()

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

    @property
    def is_placeholder(self) -> bool:
        """Whether it stands for a share of a batch without utterances."""
        return self.weight == 0

    def placeholder(self) -> "Batch":
        """The same utterances, none of which counts.

        A process that has no utterances of a batch takes part in the step with one: its loss has the graph of every
        other, weighs nothing and counts no token, so that gradients are exchanged as in any step.
        """
        return replace(self, num_targets=torch.zeros_like(self.num_targets), weight=0.0)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def select(self, utterances: Tensor) -> "Batch":
        """The utterances (b,), with their rows."""
        each = self.rows_per_utterance
        rows = (utterances[:, None] * each + torch.arange(each, device=utterances.device)).flatten()
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {
            name: v[rows if name in _BY_ROW else utterances]
            for name, v in values.items()
            if isinstance(v, Tensor)
        }
        if self.spans is not None:
            chosen["spans"] = tuple(self.spans[b] for b in utterances.tolist())
        return replace(self, **chosen)

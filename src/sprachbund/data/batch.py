"""The batch: tensors with lengths, and the languages of every row, so nothing infers them from a position.

Shapes: B utterances, T frames, M mel bins, S transcript tokens, R target rows (R = G B, the G rows of utterance
b are b G .. b G + G - 1), U target tokens, L languages.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Row = tuple[int, list[int]]
"""Language token and the tokens to be learned, the end included; what a row starts with is not among them."""
Augment = Callable[[Tensor], Tensor]
"""Changes log-mel (T, M) of an utterance without its padding."""

NO_LANGUAGE = -1
_BY_ROW = {"targets", "num_targets", "target_language"}
"""Fields that hold rows, not utterances."""


@dataclass(frozen=True)
class Transcripts:
    """Transcripts of the utterances.

    Attributes:
        tokens: (B, S), padded with 0.
        num_tokens: valid tokens (B,); 0 where the transcript is not known.
    """

    tokens: Tensor
    num_tokens: Tensor

    def to(self, device: torch.device | str) -> "Transcripts":
        """The same on another device."""
        return Transcripts(self.tokens.to(device), self.num_tokens.to(device))

    def select(self, utterances: Tensor) -> "Transcripts":
        """Transcripts of the utterances (b,) alone."""
        return Transcripts(self.tokens[utterances], self.num_tokens[utterances])


@dataclass(frozen=True)
class MixedLanguages:
    """The languages of mixed speech, for models with experts by language.

    Attributes:
        languages: boolean (B, L), the languages that occur, by their numbers among the model's, of which the last may
            be missing.
        spans: for each utterance its stretches (start_s, end_s, number of the language).
    """

    languages: Tensor
    spans: tuple[tuple[tuple[float, float, int], ...], ...]

    def to(self, device: torch.device | str) -> "MixedLanguages":
        """The same on another device."""
        return MixedLanguages(self.languages.to(device), self.spans)

    def select(self, utterances: Tensor) -> "MixedLanguages":
        """Languages of the utterances (b,) alone."""
        return MixedLanguages(self.languages[utterances], tuple(self.spans[b] for b in utterances.tolist()))


@dataclass(frozen=True)
class Sides:
    """Corpus of each utterance in a batch that several corpora share.

    Attributes:
        index: number (B,) of the data.
        weights: weight of each corpus in the loss.
    """

    index: Tensor
    weights: tuple[float, ...]

    def to(self, device: torch.device | str) -> "Sides":
        """The same on another device."""
        return Sides(self.index.to(device), self.weights)

    def select(self, utterances: Tensor) -> "Sides":
        """Corpora of the utterances (b,) alone."""
        return Sides(self.index[utterances], self.weights)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of examples: fields of all families, and parts that some need besides.

    Attributes:
        features: log-mel (B, T, M); of a model that reads tokens, their ids (B, T).
        num_frames: valid frames (B,).
        source_language: index of the language spoken (B,) among the model's; -1 where nobody speaks.
        targets: tokens (R, U) of the rows wanted, each ended, padded with 0.
        num_targets: valid target tokens (R,); 0 for a row that does not count.
        target_language: language token (R,) each row starts with.
        kind: kind of the data, for the log alone: "speech", or a kind of text; empty for data of one kind.
        weight: weight of its loss beside those of other batches; 0 for a placeholder.
        transcripts: what was said, in the tokens of a CTC head; None for a family without one.
        spoken: the same in the tokens that the model writes, for models that read texts too; None where nobody asked.
        mixture: None where nobody asked; then `source_language` alone occurs.
        sides: None where all utterances are from the same data.
    """

    features: Tensor
    num_frames: Tensor
    source_language: Tensor
    targets: Tensor
    num_targets: Tensor
    target_language: Tensor
    kind: str = ""
    weight: float = 1.0
    transcripts: Transcripts | None = None
    spoken: Transcripts | None = None
    mixture: MixedLanguages | None = None
    sides: Sides | None = None

    @property
    def is_speech(self) -> bool:
        """Whether its utterances are spoken, not texts for a model that reads both."""
        return self.kind in ("", "speech")

    @property
    def num_utterances(self) -> int:
        """Number B of utterances."""
        return self.features.shape[0]

    @property
    def rows_per_utterance(self) -> int:
        """Number G of rows of each utterance."""
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
        moved: dict[str, Any] = {name: value.to(device) for name, value in self._held.items()}
        return replace(self, **moved)

    def select(self, utterances: Tensor) -> "Batch":
        """The utterances (b,), with their rows."""
        each = self.rows_per_utterance
        rows = (utterances[:, None] * each + torch.arange(each, device=utterances.device)).flatten()
        chosen: dict[str, Any] = {}
        for name, value in self._held.items():
            if isinstance(value, Tensor):
                chosen[name] = value[rows if name in _BY_ROW else utterances]
            else:
                chosen[name] = value.select(utterances)
        return replace(self, **chosen)

    @property
    def _held(self) -> dict[str, Tensor | Transcripts | MixedLanguages | Sides]:
        """The tensors, and the parts that there are."""
        kinds = (Tensor, Transcripts, MixedLanguages, Sides)
        return {name: value for name, value in vars(self).items() if isinstance(value, kinds)}

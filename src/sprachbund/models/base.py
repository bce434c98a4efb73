"""What every model family offers, so that searches, commands and the service need to know only this.

Shapes: B utterances, T frames, M mel bins, D width, R rows, Q tokens of a step, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from sprachbund.nn.decoder import DecoderCache


@dataclass(frozen=True, kw_only=True)
class Features:
    """Log-mel of several utterances.

    Attributes:
        values: (B, T, M); of families that read tokens, their ids (B, T).
        num_frames: valid frames (B,).
        source_language: the language spoken (B,), by its place among the model's source languages; -1, or None for
            all, where it is not known. Only models split by language ask for it.
        declared: boolean (B, L), the source languages that may occur; None where any may. Only models whose experts
            belong to languages ask for it; they have `allowed_groups`.
    """

    values: Tensor
    num_frames: Tensor
    source_language: Tensor | None = None
    declared: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What an encoder made of the features.

    Attributes:
        states: (B, T, D).
        num_frames: valid frames (B,); None if all are valid.
        source_language: the language (B,) whose branches the rows went through, given or found out, by its place
            among the model's; None from an encoder that is not split by language.
        language_log_probs: (B, L) what was found out on the way; None when the languages were given.
    """

    states: Tensor
    num_frames: Tensor | None
    source_language: Tensor | None = None
    language_log_probs: Tensor | None = None

    def select(self, rows: Tensor) -> "Memory":
        """The utterances at the indices `rows` (b,)."""
        values: dict[str, Tensor | None] = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {name: None if v is None else v[rows] for name, v in values.items()}
        return Memory(**chosen)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked of the decoder for one row.

    Attributes:
        language: BCP-47 tag of the text wanted.
        source: BCP-47 tag of the speech, None when unknown.
        context: text that came before, or a glossary; shown to the model where the family has room for it.
        timestamps: whether the row is to hold timestamp tokens (families that have them).
        prefix: tokens that the text begins with; searches go on from there, and give what comes after.
    """

    language: str
    source: str | None = None
    context: str = ""
    timestamps: bool = False
    prefix: tuple[int, ...] = ()


@runtime_checkable
class Family(Protocol):
    """A speech-to-text model with an attention decoder.

    A family may have more, which searches use where it is there: `tokens.timestamps` (a range of tokens, one for
    each `frame_s`), `has_timestamps` (False where it was not taught to write them), `alignment_heads` (pairs of layer
    and head that follow the speech), `begin_suppressed` (tokens forbidden at the first step), `memory_frame_s` (of the
    memory, where it is not `frame_s`), `sharing_plan` (of a model that is split by language), `shows_attention` (False
    where `step` gives no weights).
    """

    @property
    def name(self) -> str:
        """Of the family."""
        ...

    @property
    def source_languages(self) -> tuple[str, ...]:
        """BCP-47 tags it hears, in the order of `language_log_probs`."""
        ...

    @property
    def end_token(self) -> int:
        """Ends a row."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest row, the prompt included."""
        ...

    @property
    def max_window_s(self) -> float:
        """Longest speech it takes at once."""
        ...

    @property
    def frame_s(self) -> float:
        """Seconds of a memory frame."""
        ...

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every (source, target) the model knows; (x, x) is transcription of x."""
        ...

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Log-mel of utterances given as 16 kHz mono float32 samples."""
        ...

    def encode(self, features: Features) -> Memory:
        """Run the encoder; one that is split by language finds out the languages that are not given."""
        ...

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, len(source_languages)) of the language spoken."""
        ...

    def prompt(self, target: Target) -> list[int]:
        """Tokens that a row starts with. Raises SprachbundError for a pair the model does not know."""
        ...

    def start(
        self,
        memory: Memory,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        targets: Sequence[Target] | None = None,
    ) -> DecoderCache:
        """An empty cache; row r reads memory r // rows_per_memory.

        `targets` are those of the R rows; only models whose decoder is split by language need them.
        """
        ...

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q)."""
        ...

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): tokens never to be emitted for this target (special tokens, other languages' tags)."""
        ...

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        """Log-probability (R,) of "no speech" read off the first step's logits (R, V); None without such a token."""
        ...

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        ...


# What a family's loss gives back.

CTC, LANGUAGE = "ctc", "language"
"""Names of the heads that several families have."""


@dataclass(frozen=True)
class HeadLoss:
    """Loss of a head beside what writes the text.

    Attributes:
        total: the sum over what is counted, without a gradient.
        count: of what the log's mean is over: transcript tokens of CTC, utterances of the language head.
    """

    total: Tensor
    count: int


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Sums over what was counted, so that parts of a batch add up to the whole.

    Attributes:
        total: what to differentiate: the sum over target tokens plus the weighted sums of the other heads, each
            brought to the same scale of a target token.
        attention: cross-entropy of what writes the text, summed over target tokens: of the decoder, or minus the
            log-probability that a transducer gives the text; by it checkpoints are ranked.
        num_tokens: target tokens counted.
        heads: losses of the heads that the family has, by name.
        parts: other sums over target tokens, by the name that they have in the log.
        counts: of things that happened, by the name that they have in the log.
    """

    total: Tensor
    attention: Tensor
    num_tokens: int
    heads: Mapping[str, HeadLoss] = field(default_factory=dict)
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_text(
        cls,
        total: Tensor,
        num_tokens: int,
        *,
        attention: Tensor | None = None,
        parts: Mapping[str, Tensor] | None = None,
    ) -> "Loss":
        """The loss of what writes the text, where there are no other heads or they are added later.

        Args:
            total: what to differentiate.
            num_tokens: target tokens counted.
            attention: cross-entropy of what writes the text; the total if None.
            parts: other sums, by name.
        """
        return cls(
            total=total,
            attention=total if attention is None else attention,
            num_tokens=num_tokens,
            parts=parts or {},
        )


@runtime_checkable
class PartlyTrained(Protocol):
    """A model whose loss leaves some parameters without a gradient.

    Several processes exchange gradients of all parameters that require one, so what has none is to be known before.
    Of a model that does not say so, every batch gives every parameter a gradient.
    """

    @property
    def untrained(self) -> Sequence[nn.Module]:
        """Parts that no batch trains, by the model's own options, such as a head whose loss has no weight."""
        ...

    @property
    def has_unused_parameters(self) -> bool:
        """Whether there are batches, or shares of one, that leave further parts without a gradient.

        Branches of split layers and experts are known to the training loop and need not be named.
        """
        ...

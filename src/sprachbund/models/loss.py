"""What a family's loss gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Sums over what was counted, so that parts of a batch add up to the whole.

    Attributes:
        total: what to differentiate: the sum over target tokens plus the weighted sums of the other heads, each
            brought to the same scale of a target token.
        attention: cross-entropy of what writes the text, summed over target tokens: of the decoder, or minus the
            log-probability that a transducer gives the text; by it checkpoints are ranked.
        ctc: CTC loss summed over transcripts.
        language: cross-entropy of the language head, summed over utterances with speech.
        num_tokens: target tokens counted.
        num_transcript: transcript tokens counted.
        parts: other sums over target tokens, by the name that they have in the log.
        counts: of things that happened, by the name that they have in the log.
    """

    total: Tensor
    attention: Tensor
    ctc: Tensor
    language: Tensor
    num_tokens: int
    num_transcript: int
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
        nothing = total.detach().new_zeros(())
        return cls(
            total=total,
            attention=total if attention is None else attention,
            ctc=nothing,
            language=nothing,
            num_tokens=num_tokens,
            num_transcript=0,
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

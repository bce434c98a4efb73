"""Which language is spoken: one model's opinion on several windows, within the languages the caller
allows."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

UNDETERMINED = "und"
"""BCP-47 tag for speech in a language that the model cannot tell."""

DECISIVE = 0.9
"""Posterior from which one window alone decides."""

_EVEN = 1e-4  # a posterior this close to uniform says that the model has learned nothing about the language


@dataclass(frozen=True, kw_only=True)
class IdentifiedLanguage:
    """A language and its probability among the allowed ones."""

    language: str
    probability: float


def language_posterior(log_probs: Tensor, languages: Sequence[str], allowed: Sequence[str] | None) -> Tensor:
    """Average log-probabilities (W, L) over windows and renormalise over the allowed languages; (L,), 0
    elsewhere.

    Args:
        log_probs: one row per window, one column per entry of `languages`.
        languages: BCP-47 tags of the columns.
        allowed: those to choose from; None allows all.
    """
    wanted = torch.tensor([allowed is None or language in allowed for language in languages])
    mean = log_probs.double().cpu().mean(0).masked_fill(~wanted, -torch.inf)
    return mean.softmax(0)


def identify(
    log_probs: Tensor, languages: Sequence[str], allowed: Sequence[str] | None
) -> IdentifiedLanguage:
    """The likeliest allowed language over the windows `log_probs` (W, L).

    `UNDETERMINED` when the model gives all of several languages the same probability.
    """
    posterior = language_posterior(log_probs, languages, allowed)
    best = int(posterior.argmax())
    num_allowed = int((posterior > 0).sum())
    if num_allowed > 1 and float(posterior[best]) < 1 / num_allowed + _EVEN:
        return IdentifiedLanguage(language=UNDETERMINED, probability=float(posterior[best]))
    return IdentifiedLanguage(language=languages[best], probability=float(posterior[best]))


class LanguageTracker:
    """Identifies span after span of one recording.

    A span that is decisive by itself is believed, so that a change of language is followed at once; any other
    is judged together with the spans before it. The answer does not depend on how spans are batched.
    """

    def __init__(self, languages: Sequence[str], allowed: Sequence[str] | None, num_windows: int) -> None:
        self._languages, self._allowed = languages, allowed
        self._recent: deque[Tensor] = deque(maxlen=num_windows)

    def push(self, log_probs: Tensor) -> IdentifiedLanguage:
        """Language of the next span from its log-probabilities (L,)."""
        found = self.peek(log_probs)
        self._recent.append(log_probs)
        return found

    def peek(self, log_probs: Tensor) -> IdentifiedLanguage:
        """The same of a span that has not ended, which later ones are not to be judged by."""
        alone = identify(log_probs[None], self._languages, self._allowed)
        if alone.probability >= DECISIVE:
            return alone
        recent = deque([*self._recent, log_probs], maxlen=self._recent.maxlen)
        return identify(torch.stack(list(recent)), self._languages, self._allowed)

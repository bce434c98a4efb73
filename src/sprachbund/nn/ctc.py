"""Connectionist temporal classification: the loss with what cannot be aligned set apart, and a head for many languages.

Graves et al., ICML 2006. Shapes: B rows, T frames, U target tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def min_num_frames(targets: Tensor, num_targets: Tensor) -> Tensor:
    """Frames (B,) that the first `num_targets` of `targets` (B, U) need: one each, and a blank between equal ones."""
    equal = targets[:, 1:] == targets[:, :-1]
    equal &= torch.arange(1, equal.shape[1] + 1, device=targets.device) < num_targets[:, None]
    return num_targets + equal.sum(1)


def ctc_loss(
    log_probs: Tensor, num_frames: Tensor, targets: Tensor, num_targets: Tensor, blank: int = 0
) -> tuple[Tensor, Tensor]:
    """-ln P(targets) of every row (B,), nought where they do not fit; and boolean (B,), where they fit.

    Args:
        log_probs: (B, T, V), over the last dimension.
        num_frames: (B,) valid frames.
        targets: (B, U), none of them the blank; padding may hold anything.
        num_targets: (B,), 0 to U.
        blank: id of the blank.
    """
    fits = min_num_frames(targets, num_targets) <= num_frames
    losses = F.ctc_loss(
        log_probs.float().transpose(0, 1),
        targets,
        num_frames,
        num_targets,
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return torch.where(fits, losses, 0.0), fits


class CtcHead(nn.Module):
    """Log-probabilities of pieces at every frame, in the language that is wanted.

    CTC reads no prompt, so the language is added to the states before a layer that mixes both.

    Args:
        width: D.
        vocabulary_size: V, the blank included.
        num_languages: languages that may be wanted.
    """

    def __init__(self, width: int, vocabulary_size: int, num_languages: int = 1) -> None:
        super().__init__()
        self.languages = nn.Embedding(num_languages, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary_size)

    def forward(self, states: Tensor, languages: Tensor) -> Tensor:
        """(B, T, V) of states (B, T, D) and the indices (B,) of the languages wanted."""
        x = F.gelu(self.mix(states + self.languages(languages)[:, None]))
        return self.head(x).float().log_softmax(-1)

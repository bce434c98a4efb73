"""The transducer loss near the likely alignments alone (arXiv 2206.13236).

The logits of a transducer are its largest tensor, and a large part of the work in training. Most of them belong to
tokens that no likely alignment reaches at that frame. So a joint network without a hidden layer is trained beside the
real one: its loss needs no logits of pairs, and its alignments say which tokens of the text each frame may write. The
real joint network computes the logits of these alone.

Shapes: B rows, T frames, U target tokens, W = U + 1 tokens so far, S width of the band, D width of the encoder, P width
of the prediction network, J of the joint network, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.transducer_loss import arc_log_probs, check_values, following_targets, lattice_loss

SIMPLE_LOSS_SCALE = 0.5
"""Weight of the simple network's loss; that of the published recipes."""


class SimpleJoint(nn.Module):
    """A joint network without a hidden layer: the logits of frame t and token u are A encoded_t + B predicted_u.

    Args:
        encoder_width: D.
        prediction_width: P.
        vocabulary_size: V.
    """

    def __init__(self, encoder_width: int, prediction_width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(encoder_width, vocabulary_size)
        self.prediction = nn.Linear(prediction_width, vocabulary_size, bias=False)

    def forward(
        self, encoded: Tensor, predicted: Tensor, targets: Tensor, blank: int
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T, W) of the blank, and of the next target.

        They are in single precision at least. The normalization is a matrix product: the exponential of a sum is a
        product of exponentials. Where a frame and a token contradict each other by more than some 87 nats, it is too
        large, and the log-probabilities too small.

        Args:
            encoded: (B, T, D).
            predicted: (B, W, P).
            targets: (B, U); padding may hold any number.
            blank: id of the blank.
        """
        of_frames, of_tokens = self.encoder(encoded), self.prediction(predicted)
        kind = torch.promote_types(of_frames.dtype, torch.float32)
        of_frames, of_tokens = of_frames.to(kind), of_tokens.to(kind)
        top_of_frames, top_of_tokens = (x.detach().amax(-1, keepdim=True) for x in (of_frames, of_tokens))
        with torch.autocast(encoded.device.type, enabled=False):
            total = (of_frames - top_of_frames).exp() @ (of_tokens - top_of_tokens).exp().mT
        total = total.clamp(min=torch.finfo(kind).tiny).log() + top_of_frames + top_of_tokens.mT
        following = following_targets(targets, of_frames.shape[-1], blank)
        blanks = of_frames[..., blank, None] + of_tokens[:, None, :, blank] - total
        labels = of_frames.gather(2, following[:, None].expand(-1, encoded.shape[1], -1))
        labels = labels + of_tokens.gather(2, following[..., None]).mT - total
        return blanks, labels


def pruned_transducer_loss(
    joint: Callable[[Tensor, Tensor], Tensor],
    encoded: Tensor,
    predicted: Tensor,
    simple: tuple[Tensor, Tensor],
    targets: Tensor,
    num_frames: Tensor,
    num_targets: Tensor,
    blank: int,
    prune_range: int,
    *,
    fast_emit: float = 0.0,
) -> Tensor:
    """-ln of the probability of all alignments within the band, plus the weighted loss of the simple network; (B).

    The first part is never below the loss of `transducer_loss`, and the same where the band holds all tokens.

    Args:
        joint: makes logits (B, T, S, V) out of (B, T, 1, J) and (B, T, S, J).
        encoded: (B, T, J), frames as the joint network takes them.
        predicted: (B, W, J), tokens so far as the joint network takes them.
        simple: log-probabilities (B, T, W) of the simple network, see `SimpleJoint`.
        targets: (B, U); padding may hold any number.
        num_frames: (B,), 1 to T.
        num_targets: (B,), 0 to U.
        blank: id of the blank.
        prune_range: tokens so far that a frame may have, at least 2; more where a text could not be written otherwise.
        fast_emit: weight of FastEmit in both parts (arXiv 2010.11148, equation 14).

    Raises:
        ValueError: lengths out of range, targets that are blank or beyond V.
    """
    with torch.no_grad():
        vocabulary = joint(encoded[:, :1, None], predicted[:, None, :1]).shape[-1]
    width = predicted.shape[1]
    check_values(targets, num_targets, (encoded.shape[1], width, vocabulary), num_frames, blank)
    num_frames, num_targets = (n.to(encoded.device, torch.long) for n in (num_frames, num_targets))
    # Frames of a row with more tokens than bands can hold would have no alignment.
    tokens_a_frame = torch.div(num_targets, num_frames, rounding_mode="floor").max() + 1
    size = min(max(prune_range, int(tokens_a_frame) + 1), width)
    starts = band_starts(occupancy_of_blanks(*simple, num_frames, num_targets), num_frames, num_targets, size)
    band = starts[..., None] + torch.arange(size, device=starts.device)  # (B, T, S)
    tokens = predicted.gather(1, band.flatten(1)[..., None].expand(-1, -1, predicted.shape[-1]))
    logits = joint(encoded[:, :, None], tokens.unflatten(1, band.shape[1:]))
    following = following_targets(targets, vocabulary, blank)
    following = following[:, None].expand(-1, encoded.shape[1], -1).gather(2, band)
    arcs = arc_log_probs(logits, following, blank, in_place=True)
    nothing = arcs[0].new_full((*encoded.shape[:2], width), -torch.inf)
    blanks, labels = (nothing.scatter(2, band, arc) for arc in arcs)
    losses = lattice_loss(blanks, labels, num_frames, num_targets, fast_emit)
    return losses + SIMPLE_LOSS_SCALE * lattice_loss(*simple, num_frames, num_targets, fast_emit)


def occupancy_of_blanks(blanks: Tensor, labels: Tensor, num_frames: Tensor, num_targets: Tensor) -> Tensor:
    """Probability (B, T, W) that an alignment leaves frame t with u tokens, given the text; no gradient.

    Args:
        blanks: log-probabilities (B, T, W) of the blank.
        labels: log-probabilities (B, T, W) of the next target.
        num_frames: (B,).
        num_targets: (B,).
    """
    with torch.enable_grad():
        blanks = blanks.detach().requires_grad_()
        loss = lattice_loss(blanks, labels.detach(), num_frames, num_targets).sum()
        return -torch.autograd.grad(loss, blanks)[0]


def band_starts(occupancy: Tensor, num_frames: Tensor, num_targets: Tensor, size: int) -> Tensor:
    """First token (B, T) of every frame's band of `size` tokens.

    Each band holds as much as it can of the alignments' first and last tokens at its frame. Then bands are moved so
    that none starts before the one at its left, neighbours share a token, the first holds the start and the last the
    end: some alignment lies within them always.

    Args:
        occupancy: (B, T, W), see `occupancy_of_blanks`.
        num_frames: (B,).
        num_targets: (B,); at most `size` - 1 tokens a frame.
        size: S, from 1 to W; 2 at least where a text has a token.
    """
    entries = F.pad(occupancy[:, :-1], (0, 0, 1, 0))
    entries[:, 0, 0] = 1.0
    summed = F.pad((occupancy + entries).cumsum(-1), (1, 0))
    starts = (summed[..., size:] - summed[..., :-size]).argmax(-1)
    t = torch.arange(occupancy.shape[1], device=occupancy.device)
    highest = (num_targets + 1 - size).clamp(min=0)[:, None]
    starts = torch.where(t >= num_frames[:, None] - 1, highest, starts.minimum(highest))
    starts = starts.cummax(1).values
    furthest = t * (size - 1)
    needed = (starts - furthest).flip(1).cummax(1).values.flip(1) + furthest
    return needed.minimum(furthest)

"""The transducer loss: minus the log-probability of a text, summed over all alignments with the frames.

It is thrifty, since the logits (B, T, U+1, V) are the largest tensor of a model: beside them and their gradient, only
tables (B, T, U+1) are held. What a vocabulary's worth of numbers is needed for is done a few frames at a time.

Shapes: B rows, T frames, U target tokens, W = U + 1 tokens so far, V vocabulary, J width of the joint network,
N = T + U anti-diagonals.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_CELLS = 2**19
"""Logits worked on at a time: 2 MiB in single precision, which caches hold; a frame at least."""


def transducer_loss(
    logits: Tensor,
    targets: Tensor,
    num_frames: Tensor,
    num_targets: Tensor,
    blank: int = 0,
    *,
    fast_emit: float = 0.0,
    in_place: bool = False,
) -> Tensor:
    """-ln P(targets) for every row, arXiv 1211.3711, equations 16 to 18; (B).

    Sums are in single precision at least, whatever the logits are in. A text that no path can give (logits of minus
    infinity) costs infinity and has no gradient.

    Args:
        logits: (B, T, U+1, V), not normalised; what stands in padding does not matter, be it not a number.
        targets: (B, U) integers.
        num_frames: (B,), 1 to T.
        num_targets: (B,), 0 to U.
        blank: the id that takes a step in time.
        fast_emit: weight of FastEmit (arXiv 2010.11148, equation 14): gradients of tokens, not of blanks, are
            multiplied by 1 + it. The loss itself stays as it is. The paper found 0.005 best.
        in_place: let the backward pass write the gradient over the logits, which halves the memory; whatever else
            needs them for its own gradient then fails loudly.

    Raises:
        ValueError: for shapes that do not fit, lengths out of range, targets that are blank or beyond V.
    """
    _check_shapes(logits, targets, num_frames, num_targets)
    check_values(targets, num_targets, logits.shape[1:], num_frames, blank)
    if in_place and logits.requires_grad and (logits.is_leaf or not logits.is_contiguous()):
        raise ValueError(
            "in_place overwrites the logits; they have to be contiguous and computed, not a leaf"
        )
    following = following_targets(targets, logits.shape[-1], blank)[:, None]
    blanks, labels = arc_log_probs(logits, following, blank, in_place=in_place)
    return lattice_loss(blanks, labels, num_frames, num_targets, fast_emit)


def joint_transducer_loss(
    joint: Callable[[Tensor, Tensor], Tensor],
    encoded: Tensor,
    predicted: Tensor,
    targets: Tensor,
    num_frames: Tensor,
    num_targets: Tensor,
    blank: int = 0,
    *,
    fast_emit: float = 0.0,
    frames_at_once: int = 8,
) -> Tensor:
    """The same loss without ever holding the logits of more than a few frames; (B).

    Logits are made twice, forward and backward: time is paid for memory that does not grow with T V.

    Args:
        joint: makes logits (B, t, U+1, V) out of (B, t, 1, J) and (B, 1, U+1, J).
        encoded: (B, T, J), frames as the joint network takes them.
        predicted: (B, U+1, J), tokens so far as the joint network takes them.
        targets: as in `transducer_loss`, and so are the others.
        num_frames: (B,).
        num_targets: (B,).
        blank: the id that takes a step in time.
        fast_emit: as in `transducer_loss`.
        frames_at_once: t.

    Raises:
        ValueError: as `transducer_loss` does.
    """
    with torch.no_grad():
        one = joint(encoded[:, :1, None], predicted[:, None, :1])
    cells = one.expand(-1, encoded.shape[1], predicted.shape[1], -1)
    _check_shapes(cells, targets, num_frames, num_targets)
    check_values(targets, num_targets, cells.shape[1:], num_frames, blank)

    following = following_targets(targets, cells.shape[-1], blank)[:, None]

    def tables(frames: Tensor, tokens: Tensor) -> Any:
        return arc_log_probs(joint(frames[:, :, None], tokens[:, None]), following, blank)

    parts = [
        checkpoint(tables, frames, predicted, use_reentrant=False)
        for frames in encoded.split(frames_at_once, dim=1)
    ]
    blanks, labels = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return lattice_loss(blanks, labels, num_frames, num_targets, fast_emit)


# A transducer of tokens and durations (arXiv 2304.06795). E durations; d is one of them.

_IMPOSSIBLE = -1e30
"""A log-probability of nought: sums of it have gradients that are numbers."""


def duration_transducer_loss(
    joint: Callable[[Tensor, Tensor], Tensor],
    encoded: Tensor,
    predicted: Tensor,
    targets: Tensor,
    num_frames: Tensor,
    num_targets: Tensor,
    blank: int,
    durations: Sequence[int],
    *,
    frames_at_once: int = 8,
) -> Tensor:
    """-ln P(targets) (B,) of a transducer that says with each token or blank how many frames it takes.

    Every path from the first frame to exactly behind the last counts; the last step is a blank, and a blank takes a
    frame at least (arXiv 2304.06795, equations 4 to 6). A text that no path can give costs infinity and has no
    gradient. Logits of no more frames than `frames_at_once` are held, and made twice.

    Args:
        joint: makes logits (B, t, U+1, V + E) out of (B, t, 1, J) and (B, 1, U+1, J).
        encoded: (B, T, J), frames as the joint network takes them.
        predicted: (B, U+1, J), tokens so far as the joint network takes them.
        targets: (B, U) integers.
        num_frames: (B,), 1 to T.
        num_targets: (B,), 0 to U.
        blank: id of the blank.
        durations: durations in frames, in the order of their logits.
        frames_at_once: t.

    Raises:
        ValueError: as `transducer_loss` does.
    """
    with torch.no_grad():
        one = joint(encoded[:, :1, None], predicted[:, None, :1])[..., : -len(durations)]
    cells = one.expand(-1, encoded.shape[1], predicted.shape[1], -1)
    _check_shapes(cells, targets, num_frames, num_targets)
    check_values(targets, num_targets, cells.shape[1:], num_frames, blank)

    following = following_targets(targets, cells.shape[-1], blank)[:, None]

    def tables(frames: Tensor, tokens: Tensor) -> Any:
        logits = joint(frames[:, :, None], tokens[:, None])
        of_tokens, of_durations = logits.split([logits.shape[-1] - len(durations), len(durations)], dim=-1)
        arcs = arc_log_probs(of_tokens, following, blank)
        return *arcs, of_durations.float().log_softmax(-1)

    parts = [
        checkpoint(tables, frames, predicted, use_reentrant=False)
        for frames in encoded.split(frames_at_once, dim=1)
    ]
    blanks, labels, takes = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    total = _duration_paths(
        blanks, labels, takes, num_frames.to(blanks.device), num_targets.to(blanks.device), durations
    )
    possible = total > _IMPOSSIBLE / 2
    return torch.where(possible, -total, torch.where(possible, total, torch.inf).detach())


def _duration_paths(
    blanks: Tensor,
    labels: Tensor,
    takes: Tensor,
    num_frames: Tensor,
    num_targets: Tensor,
    durations: Sequence[int],
) -> Tensor:
    """ln of the sum over all paths (B,), by anti-diagonals n = t + u, each of which needs earlier ones alone.

    Args:
        blanks: log-probabilities of the blank (B, T, W).
        labels: log-probabilities of the next target (B, T, W).
        takes: log-probabilities of durations (B, T, W, E).
        num_frames: valid frames (B,).
        num_targets: valid targets (B,).
        durations: durations in frames.
    """
    _, frames, width = blanks.shape
    t, u = (torch.arange(n, device=blanks.device) for n in (frames, width))
    inside = (t[:, None] < num_frames[:, None, None]) & (u <= num_targets[:, None, None])
    more = inside & (u < num_targets[:, None, None])
    steps = []  # of each duration: arcs by blank and by token, skewed
    for number, duration in enumerate(durations):
        by_label = (labels + takes[..., number]).masked_fill(~more, _IMPOSSIBLE)
        by_blank = (blanks + takes[..., number]).masked_fill(~inside, _IMPOSSIBLE)
        steps.append(
            (duration, _skew(by_blank).clamp(min=_IMPOSSIBLE), _skew(by_label).clamp(min=_IMPOSSIBLE))
        )
    start = blanks.new_full((len(blanks), width), _IMPOSSIBLE)
    reached = [torch.cat([torch.zeros_like(start[:, :1]), start[:, 1:]], dim=1)]
    diagonals = frames + width
    for n in range(1, diagonals):
        arcs = []
        for duration, by_blank, by_label in steps:
            if 0 < duration <= n and n - duration < len(by_blank):
                arcs.append(reached[n - duration] + by_blank[n - duration])
            if duration + 1 <= n and n - duration - 1 < len(by_label):
                arcs.append(
                    F.pad(
                        (reached[n - duration - 1] + by_label[n - duration - 1])[:, :-1],
                        (1, 0),
                        value=_IMPOSSIBLE,
                    )
                )
        # A token may lead behind the last frame only by ending there, where no blank follows: such paths are none.
        here = torch.stack(arcs).logsumexp(0) if arcs else start
        reached.append(here.clamp(min=_IMPOSSIBLE))
    ends = []
    table = torch.stack(reached)  # (N, B, W)
    rows = torch.arange(len(blanks), device=blanks.device)
    for duration, by_blank, _ in steps:
        last = num_frames - duration
        step = (last + num_targets).clamp(min=0)
        fits = (last >= 0) & (duration > 0)
        end = table[step, rows, num_targets] + by_blank[step.clamp(max=len(by_blank) - 1), rows, num_targets]
        ends.append(torch.where(fits, end, _IMPOSSIBLE))
    return torch.stack(ends).logsumexp(0)


def lattice_loss(
    blanks: Tensor, labels: Tensor, num_frames: Tensor, num_targets: Tensor, fast_emit: float = 0.0
) -> Tensor:
    """The loss (B,) out of log-probabilities of blank and of the next target, both (B, T, U+1).

    `labels[:, :, U]`, where no target is left, is not looked at.

    Args:
        blanks: log-probabilities of the blank (B, T, U+1).
        labels: log-probabilities of the next target (B, T, U+1).
        num_frames: valid frames (B,).
        num_targets: valid targets (B,).
        fast_emit: weight of FastEmit (arXiv 2010.11148).
    """
    loss: Tensor = _Lattice.apply(blanks, labels, num_frames, num_targets, fast_emit)
    return loss


def following_targets(targets: Tensor, vocabulary_size: int, blank: int) -> Tensor:
    """The target (B, W) that follows after so many tokens; the blank after all of them.

    Args:
        targets: (B, U); padding may hold any number.
        vocabulary_size: V.
        blank: id of the blank.
    """
    return F.pad(targets.long().clamp(0, vocabulary_size - 1), (0, 1), value=blank)


def arc_log_probs(
    logits: Tensor, following: Tensor, blank: int, *, in_place: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the blank and of the next target, (B, T, W) each, in single precision at least.

    Args:
        logits: (B, T, W, V).
        following: the next target (B, T, W), or (B, 1, W) where it is the same at all frames.
        blank: id of the blank.
        in_place: let the backward pass write the gradient over the logits.
    """
    arcs: tuple[Tensor, Tensor] = _ArcLogProbs.apply(logits, following[..., None], blank, in_place)
    return arcs


class _ArcLogProbs(Function):
    """The gradient needs only the logits again, and next targets (B, T or 1, W, 1)."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, following: Tensor, blank: int, in_place: bool
    ) -> tuple[Tensor, Tensor]:
        following = following.expand(-1, logits.shape[1], -1, -1)
        kind = torch.promote_types(logits.dtype, torch.float32)
        blanks, labels = (logits.new_empty(logits.shape[:3], dtype=kind) for _ in range(2))
        for t in _chunks(logits):
            part = logits[:, t].log_softmax(-1, dtype=kind)
            blanks[:, t] = part[..., blank]
            labels[:, t] = part.gather(-1, following[:, t])[..., 0]
        ctx.save_for_backward(logits, following)
        ctx.blank, ctx.in_place = blank, in_place
        return blanks, labels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, blanks: Tensor, labels: Tensor) -> tuple[Tensor, None, None, None]:
        logits, following = ctx.saved_tensors
        gradient = logits.detach() if ctx.in_place else torch.empty_like(logits)
        used = blanks + labels
        for t in _chunks(logits):
            part = logits[:, t].softmax(-1, dtype=blanks.dtype).mul_(-used[:, t, :, None])
            part[..., ctx.blank] += blanks[:, t]
            part.scatter_add_(-1, following[:, t], labels[:, t, :, None])
            # What no path goes through is padding, where anything may stand.
            gradient[:, t] = part.masked_fill_((used[:, t] == 0)[..., None], 0.0)
        return gradient, None, None, None


class _Lattice(Function):
    """Forward and backward variables over anti-diagonals, all rows at once (arXiv 1211.3711, equations 16 and 18)."""

    @staticmethod
    def forward(
        ctx: Any,
        blanks: Tensor,
        labels: Tensor,
        num_frames: Tensor,
        num_targets: Tensor,
        fast_emit: float,
    ) -> Tensor:
        _, frames, width = blanks.shape
        t = torch.arange(frames, device=blanks.device)[None, :, None]
        u = torch.arange(width, device=blanks.device)
        num_frames, num_targets = (n.to(t.device, torch.long) for n in (num_frames, num_targets))
        t_left, u_left = num_frames[:, None, None] - t, num_targets[:, None, None] - u
        floor = torch.tensor(-torch.inf, dtype=blanks.dtype, device=blanks.device)
        blank_arcs = _skew(torch.where((t_left > 0) & (u_left >= 0), blanks, floor))
        label_arcs = _skew(torch.where((t_left > 0) & (u_left > 0), labels, floor))
        reached = _reached(blank_arcs, label_arcs)
        rows = torch.arange(len(blanks), device=blanks.device)
        ends = num_frames + num_targets, rows, num_targets
        total = reached[ends]
        ctx.save_for_backward(blank_arcs, label_arcs, reached, total, *ends)
        ctx.frames, ctx.label_weight = frames, 1.0 + fast_emit
        return -total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        blank_arcs, label_arcs, reached, total, *ends = ctx.saved_tensors
        left = _left(blank_arcs, label_arcs, (ends[0], ends[1], ends[2]))
        total = torch.where(total.isneginf(), torch.inf, total)  # a text that cannot be has no gradient
        here = reached[:-1] - total[:, None]
        blanks = -(here + blank_arcs + left[1:]).exp_() * weight[:, None]
        labels = -(here + label_arcs + _from_right(left[1:])).exp_() * (weight * ctx.label_weight)[:, None]
        return _unskew(blanks, ctx.frames), _unskew(labels, ctx.frames), None, None, None


def _reached(blank_arcs: Tensor, label_arcs: Tensor) -> Tensor:
    """ln of the sum over all paths from the start to every cell, (N + 1, B, W) by anti-diagonal."""
    cells = _walled(blank_arcs)
    here, before = cells[..., 1:], cells[..., :-1]  # the same cells, one token less
    here[0, :, 0] = 0.0
    steps = zip(here, before, blank_arcs, F.pad(label_arcs[..., :-1], (1, 0)), here[1:], strict=False)
    for cell, previous, blank, label, result in steps:
        torch.logaddexp(cell + blank, previous + label, out=result)
    return here


def _left(blank_arcs: Tensor, label_arcs: Tensor, ends: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """ln of the sum over all paths from every cell to the end, (N + 1, B, W) by anti-diagonal."""
    cells = _walled(blank_arcs)
    here, after = cells[..., :-1], cells[..., 1:]  # the same cells, one token more
    here[ends] = 0.0
    results, cell, following = (list(rows)[::-1] for rows in (here[:-1], here[1:], after[1:]))
    arcs = (list(rows)[::-1] for rows in (blank_arcs, label_arcs))
    for to, by_blank, by_label, blank, label in zip(results, cell, following, *arcs, strict=True):
        # Ends are 0 already, and nothing leads on from them.
        torch.maximum(to, torch.logaddexp(by_blank + blank, by_label + label), out=to)
    return here


def _walled(arcs: Tensor) -> Tensor:
    """Cells (N + 1, B, W + 1) that no path has reached, with one column more at the edge."""
    return arcs.new_full((len(arcs) + 1, arcs.shape[1], arcs.shape[2] + 1), -torch.inf)


def _from_right(cells: Tensor) -> Tensor:
    """The table shifted by one token; minus infinity behind the last."""
    return F.pad(cells[..., 1:], (0, 1), value=-torch.inf)


def _skew(table: Tensor) -> Tensor:
    """(B, T, W) by anti-diagonal: (N, B, W) whose [n, b, u] is [b, n - u, u]; minus infinity outside."""
    _, frames, width = table.shape
    padded = F.pad(table.transpose(1, 2), (0, width), value=-torch.inf).flatten(1)
    return padded[:, :-width].unflatten(1, (width, frames + width - 1)).permute(2, 0, 1).contiguous()


def _unskew(cells: Tensor, frames: int) -> Tensor:
    """The inverse of `_skew`."""
    diagonals, _, width = cells.shape
    flat = F.pad(cells.permute(1, 2, 0).flatten(1), (0, width))
    return flat.unflatten(1, (width, diagonals + 1))[..., :frames].transpose(1, 2)


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Stretches of frames with about `CHUNK_CELLS` logits."""
    rows, frames, width, vocabulary = logits.shape
    step = max(1, CHUNK_CELLS // max(1, rows * width * vocabulary))
    for start in range(0, frames, step):
        yield slice(start, start + step)


def _check_shapes(logits: Tensor, targets: Tensor, num_frames: Tensor, num_targets: Tensor) -> None:
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(f"logits are {logits.dtype} {tuple(logits.shape)}; give floats (B, T, U+1, V)")
    rows, _, width, _ = logits.shape
    if targets.shape != (rows, width - 1):
        raise ValueError(
            f"targets are {tuple(targets.shape)} beside logits {tuple(logits.shape)}; give ({rows}, {width - 1})"
        )
    for name, lengths in (("num_frames", num_frames), ("num_targets", num_targets)):
        if lengths.shape != (rows,):
            raise ValueError(f"{name} is {tuple(lengths.shape)}; give ({rows},), one length a row")


def check_values(
    targets: Tensor, num_targets: Tensor, cells: tuple[int, ...], num_frames: Tensor, blank: int
) -> None:
    """Check that lengths and targets lie within the cells of a loss.

    Args:
        targets: (B, U).
        num_targets: (B,).
        cells: T, U + 1 and V.
        num_frames: (B,).
        blank: id of the blank.

    Raises:
        ValueError: naming the value that does not.
    """
    frames, width, vocabulary = cells
    if not 0 <= blank < vocabulary:
        raise ValueError(f"blank is {blank}; the vocabulary has ids 0 to {vocabulary - 1}")
    bounds = (("num_frames", num_frames, 1, frames), ("num_targets", num_targets, 0, width - 1))
    for name, lengths, low, high in bounds:
        if lengths.is_floating_point():
            raise ValueError(f"{name} is {lengths.dtype}; lengths are integers")
        wrong = lengths[(lengths < low) | (lengths > high)]
        if len(wrong):
            raise ValueError(f"{name} holds {int(wrong[0])}; every row needs {low} to {high}")
    real = torch.arange(width - 1, device=targets.device) < num_targets.to(targets.device)[:, None]
    wrong = targets[real & ((targets < 0) | (targets >= vocabulary) | (targets == blank))]
    if len(wrong):
        raise ValueError(
            f"targets hold {int(wrong[0])}; they have to lie in 0 to {vocabulary - 1} and not be the blank, {blank}"
        )

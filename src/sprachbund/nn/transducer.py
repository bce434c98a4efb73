"""The part of a transducer behind its encoder: a network over the tokens so far, one that joins them with frames, and
what both remember between chunks of a stream (arXiv 1211.3711, section 2).

Shapes: B rows, T frames, U target tokens, D width of the encoder, P width of the prediction network, J of the joint
network, V vocabulary, L layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# The transducer loss: minus the log-probability of a text, summed over all alignments with the frames.
#
# Kept thrifty, since its logits (B, T, U+1, V) are the largest tensor of a model: beside them and their
# gradient, only tables (B, T, U+1) are held. What a vocabulary's worth of numbers is needed for is done a
# few frames at a time. Shapes: B batch, T frames, U target tokens, W = U + 1 tokens so far, V vocabulary,
# N = T + U anti-diagonals.

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
    _check_values(targets, num_targets, logits.shape[1:], num_frames, blank)
    if in_place and logits.requires_grad and (logits.is_leaf or not logits.is_contiguous()):
        raise ValueError(
            "in_place overwrites the logits; they have to be contiguous and computed, not a leaf"
        )
    blanks, labels = _ArcLogProbs.apply(logits, targets, blank, in_place)
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
    _check_values(targets, num_targets, cells.shape[1:], num_frames, blank)

    def tables(frames: Tensor, tokens: Tensor) -> Any:
        return _ArcLogProbs.apply(joint(frames[:, :, None], tokens[:, None]), targets, blank, False)

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
    _check_values(targets, num_targets, cells.shape[1:], num_frames, blank)

    def tables(frames: Tensor, tokens: Tensor) -> Any:
        logits = joint(frames[:, :, None], tokens[:, None])
        of_tokens, of_durations = logits.split([logits.shape[-1] - len(durations), len(durations)], dim=-1)
        arcs = _ArcLogProbs.apply(of_tokens, targets, blank, False)
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


class _ArcLogProbs(Function):
    """Log-probabilities of blank and of the next target, (B, T, W) each; the gradient needs only the logits again."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, blank: int, in_place: bool
    ) -> tuple[Tensor, Tensor]:
        within = targets.long().clamp(0, logits.shape[-1] - 1)  # padding may hold any number
        following = F.pad(within, (0, 1), value=blank)[:, None, :, None]
        kind = torch.promote_types(logits.dtype, torch.float32)
        blanks, labels = (logits.new_empty(logits.shape[:3], dtype=kind) for _ in range(2))
        for t in _chunks(logits):
            part = logits[:, t].log_softmax(-1, dtype=kind)
            blanks[:, t] = part[..., blank]
            labels[:, t] = part.gather(-1, following.expand(-1, part.shape[1], -1, -1))[..., 0]
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
            part.scatter_add_(-1, following.expand(-1, part.shape[1], -1, -1), labels[:, t, :, None])
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


def _check_values(
    targets: Tensor, num_targets: Tensor, cells: tuple[int, ...], num_frames: Tensor, blank: int
) -> None:
    """See that lengths and targets (B, U) lie within `cells`, which are (T, U+1, V)."""
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


JointActivation = Literal["tanh", "relu"]
JOINT_ACTIVATIONS: dict[JointActivation, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": F.relu}


@dataclass(frozen=True, kw_only=True)
class TransducerShape:
    """Sizes of the part behind the encoder.

    Attributes:
        vocabulary_size: V, the blank included.
        encoder_width: D.
        prediction_width: P.
        prediction_layers: L.
        joint_width: J.
        dropout: dropout between layers of the prediction network, behind it, and in the joint network; in training.
        blank: the id that takes a step in time.
        activation: activation of the joint network; NeMo's checkpoints have "relu".
        durations: frames that a token or blank may take, of a token-and-duration transducer (arXiv 2304.06795), whose
            joint network has a logit for each behind those of the vocabulary; empty for others.
        max_symbols: most tokens at one frame: a model that never chooses the blank must not hold up a stream.
    """

    vocabulary_size: int
    encoder_width: int
    prediction_width: int = 640
    prediction_layers: int = 2
    joint_width: int = 640
    dropout: float = 0.0
    blank: int = 0
    activation: JointActivation = "tanh"
    durations: tuple[int, ...] = ()
    max_symbols: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.blank < self.vocabulary_size:
            raise ValueError(f"blank is {self.blank}; the vocabulary has ids 0 to {self.vocabulary_size - 1}")
        if self.durations and (min(self.durations) < 0 or max(self.durations) == 0):
            raise ValueError(f"durations are {self.durations}; they are frames, and one has to be above 0")


@dataclass(frozen=True, kw_only=True)
class TransducerState:
    """Progress of rows in their streams: the tokens so far and the frames consumed. It is never changed in place.

    Attributes:
        hidden: (B, L, P) of the prediction network.
        cell: (B, L, P) of the prediction network.
        predicted: (B, J) what the joint network takes of the tokens so far.
        num_frames: (B,) frames consumed.
    """

    hidden: Tensor
    cell: Tensor
    predicted: Tensor
    num_frames: Tensor

    def take(self, rows: Tensor) -> Self:
        """The rows whose indices are given (b,), in that order, any of them more than once."""
        return type(self)(**{name: tensor[rows] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return type(self)(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, ready for `safetensors.torch.save`."""
        return {
            "hidden": self.hidden,
            "cell": self.cell,
            "predicted": self.predicted,
            "num_frames": self.num_frames,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`.

        Raises:
            ValueError: naming what is missing or too much.
        """
        different = {field.name for field in fields(cls)} ^ set(tensors)
        if different:
            raise ValueError(f"{', '.join(sorted(different))}: too much or missing in a transducer's state")
        return cls(**tensors)

    @classmethod
    def stack(cls, states: Sequence["TransducerState"]) -> Self:
        """Rows of several streams as one batch, in order."""
        parts = [state.tensors() for state in states]
        return cls(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


class PredictionNetwork(nn.Module):
    """LSTM over the tokens so far. It starts on a blank, whose embedding is nought and stays so."""

    def __init__(self, shape: TransducerShape) -> None:
        super().__init__()
        self.blank = shape.blank
        self.embedding = nn.Embedding(shape.vocabulary_size, shape.prediction_width, padding_idx=shape.blank)
        between = shape.dropout if shape.prediction_layers > 1 else 0.0
        width, layers = shape.prediction_width, shape.prediction_layers
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=between)

    def forward(self, targets: Tensor) -> Tensor:
        """Return the outputs (B, U+1, P) after no token, one token, … all of `targets` (B, U).

        Padding may hold any number.
        """
        known = targets.clamp(0, self.embedding.num_embeddings - 1)
        embedded = self.embedding(F.pad(known, (1, 0), value=self.blank))
        # oneDNN has no LSTM in bf16 for processors without AVX-512, and torch asks it for one under autocast.
        device = embedded.device.type
        known_here = torch.amp.is_autocast_available(device)  # the meta device has no autocast to switch off
        with torch.autocast(device, enabled=False) if known_here else nullcontext():
            output, _ = self.lstm(embedded)
        return output

    def step(self, tokens: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output (B, P), hidden and cell (B, L, P) after one more token (B,) a row.

        Args:
            tokens: (B,), the newest ones.
            hidden: (B, L, P).
            cell: (B, L, P).
        """
        before = hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous()
        output, (hidden, cell) = self.lstm(self.embedding(tokens[:, None]), before)
        return output[:, 0], hidden.transpose(0, 1), cell.transpose(0, 1)


class JointNetwork(nn.Module):
    """W f(A encoded + B predicted), f the activation: A and B are applied once to each, not to every pair of them."""

    def __init__(self, shape: TransducerShape) -> None:
        super().__init__()
        self.encoder = nn.Linear(shape.encoder_width, shape.joint_width)
        self.prediction = nn.Linear(shape.prediction_width, shape.joint_width, bias=False)
        self.out = nn.Linear(shape.joint_width, shape.vocabulary_size + len(shape.durations))
        self.dropout, self.activation = shape.dropout, JOINT_ACTIVATIONS[shape.activation]

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Logits (…, V), and those of durations, of projected frames and tokens (…, J) that broadcast."""
        joined = F.dropout(self.activation(encoded + predicted), self.dropout, self.training)
        return self.out(joined)


class LanguageFusion(nn.Module):
    """Encoder states with the language of their row: W f(A states + b_language), f = ReLU.

    Args:
        width: D of the states.
        inner_width: inner width of f.
        num_languages: rows of b.
    """

    def __init__(self, width: int, inner_width: int, num_languages: int) -> None:
        super().__init__()
        self.states = nn.Linear(width, inner_width)
        self.language = nn.Embedding(num_languages, inner_width)
        self.out = nn.Linear(inner_width, width)

    def forward(self, states: Tensor, languages: Tensor) -> Tensor:
        """States (R, T, D) of states (R, T, D) and languages (R,)."""
        return self.out(F.relu(self.states(states) + self.language(languages)[:, None]))


class Transducer(nn.Module):
    """Prediction and joint network, the loss through them, and their state in a stream.

    Args:
        shape: see `TransducerShape`.
        prediction: module in place of a `PredictionNetwork`; a new one by default.
        joint: module in place of a `JointNetwork`; a new one by default.
    """

    def __init__(self, shape: TransducerShape, *, prediction: Any = None, joint: Any = None) -> None:
        super().__init__()
        self.shape = shape
        self.prediction: PredictionNetwork = PredictionNetwork(shape) if prediction is None else prediction
        self.joint: JointNetwork = JointNetwork(shape) if joint is None else joint

    def loss(
        self,
        encoded: Tensor,
        num_frames: Tensor,
        targets: Tensor,
        num_targets: Tensor,
        *,
        prompt: Tensor | None = None,
        fast_emit: float = 0.0,
        frames_at_once: int | None = None,
    ) -> Tensor:
        """-ln P(targets) of every row (B,), see `transducer_loss` and `duration_transducer_loss`.

        Args:
            encoded: (B, T, D).
            num_frames: (B,), 1 to T.
            targets: (B, U).
            num_targets: (B,), 0 to U.
            prompt: (B, P) tokens that the prediction network reads first, such as the language wanted.
            fast_emit: weight of FastEmit.
            frames_at_once: make logits of no more frames than this at a time, twice; None holds all of them.

        Raises:
            ValueError: as `transducer_loss` does; for FastEmit in a transducer with durations.
        """
        frames = self.joint.encoder(encoded)
        read = targets if prompt is None else torch.cat([prompt, targets], dim=1)
        predicted = self.prediction(read)[:, read.shape[1] - targets.shape[1] :]
        tokens = self.joint.prediction(F.dropout(predicted, self.shape.dropout, self.training))
        rest = (targets, num_frames, num_targets, self.shape.blank)
        if self.shape.durations:
            if fast_emit:
                raise ValueError("FastEmit is for transducers without durations")
            some = frames_at_once or encoded.shape[1]
            return duration_transducer_loss(
                self.joint, frames, tokens, *rest, self.shape.durations, frames_at_once=some
            )
        if frames_at_once is None:
            logits = self.joint(frames[:, :, None], tokens[:, None])
            # Nothing else needs the logits: the layer they come from does not look at its output again.
            return transducer_loss(logits, *rest, fast_emit=fast_emit, in_place=True)
        return joint_transducer_loss(
            self.joint, frames, tokens, *rest, fast_emit=fast_emit, frames_at_once=frames_at_once
        )

    def start(self, num_rows: int) -> TransducerState:
        """The state before the first frame."""
        weight = next(self.parameters())  # of the prediction network: engines pack linear layers
        blanks = torch.full((num_rows,), self.shape.blank, device=weight.device)
        return self.advance(blanks, self.nothing(num_rows, weight))

    def nothing(self, num_rows: int, like: Tensor) -> TransducerState:
        """A state of noughts, in dtype and device of `like`; the first blank is still to be read."""
        shape = self.shape
        nought = like.new_zeros(num_rows, shape.prediction_layers, shape.prediction_width)
        return TransducerState(
            hidden=nought,
            cell=nought,
            predicted=like.new_zeros(num_rows, shape.joint_width),
            num_frames=torch.zeros(num_rows, dtype=torch.long, device=like.device),
        )

    def advance(self, tokens: Tensor, state: TransducerState) -> TransducerState:
        """The state after one more token (B,) a row, at the same frames."""
        output, hidden, cell = self.prediction.step(tokens, state.hidden, state.cell)
        return TransducerState(
            hidden=hidden, cell=cell, predicted=self.joint.prediction(output), num_frames=state.num_frames
        )

    def check_state(self, state: TransducerState, num_rows: int) -> None:
        """Check that a state is one of this model, for so many rows.

        Raises:
            ValueError: naming the sizes seen and wanted.
        """
        shape = self.shape
        memory = (num_rows, shape.prediction_layers, shape.prediction_width)
        wanted = {
            "hidden": memory,
            "cell": memory,
            "predicted": (num_rows, shape.joint_width),
            "num_frames": (num_rows,),
        }
        for name, tensor in state.tensors().items():
            if tensor.shape != wanted[name]:
                raise ValueError(
                    f"the state's {name} is {tuple(tensor.shape)} and {wanted[name]} is needed; "
                    "it belongs to another model or number of streams"
                )

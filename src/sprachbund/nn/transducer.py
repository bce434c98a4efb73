"""The part of a transducer behind its encoder: a network over the tokens so far, one that joins them with frames, and
what both remember between chunks of a stream (arXiv 1211.3711, section 2).

Shapes: B rows, T frames, U target tokens, D width of the encoder, P width of the prediction network, J of the joint
network, V vocabulary, L layers.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.pruned_transducer import SimpleJoint, pruned_transducer_loss
from sprachbund.nn.transducer_loss import (
    duration_transducer_loss,
    joint_transducer_loss,
    transducer_loss,
)

_FRAMES_AT_ONCE = 8
"""Frames whose logits an exact loss holds at a time where training needs those of few tokens."""

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
        prune_range: tokens so far that a frame may have in the loss of training, see `pruned_transducer_loss`; all of
            them if None.
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
    prune_range: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.blank < self.vocabulary_size:
            raise ValueError(f"blank is {self.blank}; the vocabulary has ids 0 to {self.vocabulary_size - 1}")
        if self.durations and (min(self.durations) < 0 or max(self.durations) == 0):
            raise ValueError(f"durations are {self.durations}; they are frames, and one has to be above 0")
        if self.prune_range is not None and (self.durations or self.prune_range < 2):
            raise ValueError(
                f"prune_range is {self.prune_range}; it is at least 2, and for transducers without durations"
            )


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
        if shape.prune_range is not None:
            self.simple_joint = SimpleJoint(
                shape.encoder_width, shape.prediction_width, shape.vocabulary_size
            )

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

        In training with a `prune_range`, it is the loss of `pruned_transducer_loss`; in evaluation, it is exact.

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
        predicted = F.dropout(predicted, self.shape.dropout, self.training)
        tokens = self.joint.prediction(predicted)
        rest = (targets, num_frames, num_targets, self.shape.blank)
        if self.shape.durations:
            if fast_emit:
                raise ValueError("FastEmit is for transducers without durations")
            some = frames_at_once or encoded.shape[1]
            return duration_transducer_loss(
                self.joint, frames, tokens, *rest, self.shape.durations, frames_at_once=some
            )
        if self.shape.prune_range is not None and self.training:
            simple = self.simple_joint(encoded, predicted, targets, self.shape.blank)
            return pruned_transducer_loss(
                self.joint, frames, tokens, simple, *rest, self.shape.prune_range, fast_emit=fast_emit
            )
        if frames_at_once is None and self.shape.prune_range is None:
            logits = self.joint(frames[:, :, None], tokens[:, None])
            # Nothing else needs the logits: the layer they come from does not look at its output again.
            return transducer_loss(logits, *rest, fast_emit=fast_emit, in_place=True)
        # Batches that fit into memory in the training of a pruned loss need not fit with all logits.
        some = frames_at_once or _FRAMES_AT_ONCE
        return joint_transducer_loss(
            self.joint, frames, tokens, *rest, fast_emit=fast_emit, frames_at_once=some
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

"""Calibrations of a model, fitted after its training: whether it understands, and whether a speaker has finished.

*Domain*: a model of a narrow domain writes sentences of that domain for whatever it hears, and is sure of them: the
log-probability of its text says little. Its encoder's states differ, though, and a CTC head beside the decoder writes
something else. Networks with one hidden layer read the mean state over the frames of a span, and some signals
(`sprachbund.decoding.domain`), and give one probability for each text. `sprachbund calibrate` fits it on speech that
the model understands and sound that it does not. Layers in the middle of the encoder still tell how something sounds,
such as that two people speak at once; the last one tells what was said.

*Ends of turns*: whether a speaker who pauses has finished a sentence, one probability for each pause. A logistic
regression reads two mean encoder states of the speech so far: over all frames, and over the last ones, where a voice
falls or stays up, and the last words are. `sprachbund calibrate --turns` fits it on whole sentences and on the same
sentences cut off at a word. Audio models of turn ends, such as smart-turn of Pipecat, work alike, with an encoder of
their own.

Both are files of the model's directory; a model without them has no such probability.

Shapes: B utterances, T frames, D width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.nn.encoder import mean_frame
from sprachbund.util.files import read_model, write_json

DOMAIN_FILE = "domain.json"
TURNS_FILE = "turns.json"
LAST_S = 0.64
"""Seconds of the last frames, the silence behind the speech included."""
Signal = Literal["mean_log_probability", "ctc_disagreement"]
"""The natural logarithm per token of the text, which every family has; and, of models with a CTC head that transcribes,
the edit distance of its transcript and the decoder's, over the length of the longer one."""


class _Fitted(BaseModel):
    """Fitted parameters, as the model's directory stores them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    file: ClassVar[str]
    """Name of the file in the directory."""

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The one of a model directory, None when there is none. Raises SprachbundError for a broken file."""
        path = directory / cls.file
        return read_model(path, cls, advice="calibrate the model again") if path.exists() else None

    def write(self, directory: Path) -> None:
        """Write it into a model directory."""
        write_json(directory / self.file, self.model_dump())


def lost_calibrations(start: str, source: Path, made: Path, final: Path) -> list[str]:
    """What is said of the calibrations of a model that another one, made of it, does not have.

    Args:
        start: the model as a person named it.
        source: its directory.
        made: directory of the other model.
        final: the name that this directory is going to have.
    """
    return [
        f"the calibration of {start} ({name}) is not carried over, since it was fitted on other weights; run "
        f"`sprachbund calibrate CORPUS… --model {final}{option}`"
        for name, option in ((DOMAIN_FILE, ""), (TURNS_FILE, " --turns"))
        if (source / name).exists() and not (made / name).exists()
    ]


class HiddenUnit(BaseModel):
    """A unit of a hidden layer, which adds `weight` times max(0, `bias` + what `signals` and `encoder` give).

    Attributes:
        weight: weight of its output in the log-odds.
        bias: bias of its input.
        signals: weight of each signal.
        encoder: weights (D,) of the mean encoder state.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    weight: float
    bias: float
    signals: dict[Signal, float]
    encoder: list[float]


class Domain(_Fitted):
    """Calibration of the probability that a text is not what was said.

    The log-odds are `bias`, what `signals` and `encoder` give, and what each hidden unit adds. A file of before has no
    hidden units; a newer one has nothing beside them.

    Attributes:
        threshold: threshold of the probability; a text above it is dropped.
        bias: bias of the log-odds.
        signals: weight of each signal.
        encoder: weights (D,) of the mean encoder state; zeros if empty.
        hidden: the hidden units, of all networks.
        layers: encoder layers whose mean states, side by side, are the mean encoder state here, so that D counts all of
            them; 0 is what the first layer reads. The states behind the whole encoder if empty.
    """

    file: ClassVar[str] = DOMAIN_FILE
    threshold: float = Field(ge=0, le=1)
    bias: float
    signals: dict[Signal, float] = {}
    encoder: list[float] = []
    hidden: list[HiddenUnit] = []
    layers: list[Annotated[int, Field(ge=0)]] = []

    @property
    def threshold_log_odds(self) -> float:
        """The threshold as log-odds."""
        return math.log(max(self.threshold, 1e-9) / max(1 - self.threshold, 1e-9))

    @property
    def signal_names(self) -> set[Signal]:
        """Signals that have a weight."""
        return set(self.signals).union(*(unit.signals for unit in self.hidden))

    def log_odds(self, of_state: Sequence[float], signals: Mapping[Signal, float]) -> float:
        """Log-odds of that a text is not what was said.

        Args:
            of_state: (1 + H,) of the span, see `weigh_states`.
            signals: signals of the text and its span.

        Raises SprachbundError: it belongs to a model with other signals.
        """
        if missing := self.signal_names - signals.keys():
            raise SprachbundError(
                f"{DOMAIN_FILE} has weights of {', '.join(sorted(missing))}, which this model does not give; calibrate "
                "the model again"
            )
        direct, *inputs = of_state
        log_odds = self.bias + direct + _weighed(self.signals, signals)
        for unit, given in zip(self.hidden, inputs, strict=True):
            log_odds += unit.weight * max(0.0, unit.bias + given + _weighed(unit.signals, signals))
        return log_odds

    def weigh_states(self, means: Tensor) -> list[list[float]]:
        """Return what mean states (B, D) add to the log-odds directly, and to each of H hidden units: (B, 1 + H).

        Raises SprachbundError: it belongs to a model of another width.
        """
        width = means.shape[1]
        rows = [unit.encoder for unit in self.hidden]
        if self.encoder or not rows:
            rows.append(self.encoder)
        if others := {len(row) for row in rows} - {width}:
            raise SprachbundError(
                f"{DOMAIN_FILE} has {others.pop()} weights, and the encoder {width} values a frame; calibrate the "
                "model again"
            )
        weighed: list[list[float]] = (means @ self._state_weights.to(means.device).T).tolist()
        return weighed

    @cached_property  # live sessions ask several times a second
    def _state_weights(self) -> Tensor:
        """Of the log-odds and of each hidden unit: (1 + H, D)."""
        width = len(self.encoder or self.hidden[0].encoder)
        return torch.tensor([self.encoder or [0.0] * width, *(unit.encoder for unit in self.hidden)])


def _weighed(weights: Mapping[Signal, float], signals: Mapping[Signal, float]) -> float:
    return sum(weight * signals[name] for name, weight in weights.items())


class TurnEnds(_Fitted):
    """Calibration of the probability that a speaker who pauses has finished.

    Attributes:
        bias: bias of the log-odds.
        whole: weights (D,) of the mean encoder state.
        last: weights (D,) of the mean over the last `LAST_S` seconds.
    """

    file: ClassVar[str] = TURNS_FILE
    bias: float
    whole: list[float]
    last: list[float]

    def probabilities(self, states: Tensor) -> list[float]:
        """The probability (B,) that each speaker has finished.

        Args:
            states: (B, 2 D) of `turn_states`.

        Raises:
            SprachbundError: it belongs to a model of another width.
        """
        weights = torch.tensor([*self.whole, *self.last], device=states.device)
        if len(weights) != states.shape[1]:
            raise SprachbundError(
                f"{TURNS_FILE} has {len(weights)} weights, and the encoder {states.shape[1] // 2} values a frame; "
                "calibrate the model again"
            )
        return [probability(self.bias + log_odds) for log_odds in (states @ weights).tolist()]


@dataclass(frozen=True)
class Calibration:
    """The calibrations that were fitted on a model.

    Attributes:
        domain: calibration of the speech that it does not understand; None where it was not fitted.
        turns: calibration of whether a speaker who pauses has finished; None likewise.
    """

    domain: Domain | None = None
    turns: TurnEnds | None = None

    @classmethod
    def read(cls, directory: Path) -> "Calibration":
        """Read the calibrations of a model directory. Raises SprachbundError for a broken file."""
        return cls(domain=Domain.read(directory), turns=TurnEnds.read(directory))


def probability(log_odds: float) -> float:
    """The probability, 0 to 1, of log-odds."""
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, log_odds))))


def num_spoken(
    states: Tensor, num_frames: Tensor | None, durations_s: Sequence[float], frame_s: float
) -> Tensor:
    """Return the number of frames (B,) of encoder states that hold the speech, one at least.

    The arguments are those of `mean_states`.
    """
    if num_frames is None:
        num_frames = torch.tensor([math.ceil(s / frame_s) for s in durations_s], device=states.device)
    return num_frames.clamp(1, states.shape[1])


def mean_states(
    states: Tensor, num_frames: Tensor | None, durations_s: Sequence[float], frame_s: float
) -> Tensor:
    """Mean encoder states (B, D) over the frames that hold the speech.

    Args:
        states: (B, T, D).
        num_frames: valid frames (B,); None where the encoder fills speech up to a window.
        durations_s: (B,) lengths of the speech, which count in that case.
        frame_s: seconds of a frame.
    """
    counts = num_spoken(states, num_frames, durations_s, frame_s)[:, None]
    valid = torch.arange(states.shape[1], device=states.device) < counts
    return mean_frame(states, valid[..., None])


def turn_states(
    states: Tensor, num_frames: Tensor | None, durations_s: Sequence[float], frame_s: float
) -> Tensor:
    """Mean encoder states over all frames of the speech and over the last of them, side by side: (B, 2 D).

    Args:
        states: (B, T, D).
        num_frames: valid frames (B,); None where the encoder fills speech up to a window.
        durations_s: (B,) lengths of the speech, which count in that case.
        frame_s: seconds of a frame.
    """
    counts = num_spoken(states, num_frames, durations_s, frame_s)
    whole = mean_states(states, counts, durations_s, frame_s)
    number = round(LAST_S / frame_s)
    last = [
        row[max(0, n - number) : n].float().mean(0) for row, n in zip(states, counts.tolist(), strict=True)
    ]
    return torch.cat([whole, torch.stack(last)], dim=1)

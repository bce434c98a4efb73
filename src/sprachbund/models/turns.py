"""Whether a speaker who pauses has finished a sentence: one probability for each pause.

A logistic regression reads two mean encoder states of the speech so far: over all frames, and over the last ones, where
a voice falls or stays up, and the last words are. `sprachbund calibrate --turns` fits it on whole sentences and on the
same sentences cut off at a word, and writes it into the model's directory; models without it have no such probability.
Audio models of turn ends, such as smart-turn of Pipecat, work alike, with an encoder of their own.

Shapes: B utterances, T frames, D width.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.domain import mean_states, num_spoken, probability
from sprachbund.util.files import read_model, write_json

TURNS_FILE = "turns.json"
LAST_S = 0.64
"""Seconds of the last frames, the silence behind the speech included."""


class TurnEnds(BaseModel):
    """A logistic regression, as the model's directory holds it.

    Attributes:
        bias: of the log-odds.
        whole: weights (D,) of the mean encoder state.
        last: weights (D,) of the mean over the last `LAST_S` seconds.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    bias: float
    whole: list[float]
    last: list[float]

    @classmethod
    def read(cls, directory: Path) -> "TurnEnds | None":
        """The one of a model directory, None when there is none. Raises SprachbundError for a broken file."""
        path = directory / TURNS_FILE
        return read_model(path, cls, advice="calibrate the model again") if path.exists() else None

    def write(self, directory: Path) -> None:
        """Write it into a model directory."""
        write_json(directory / TURNS_FILE, self.model_dump())

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

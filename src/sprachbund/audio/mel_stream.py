"""Log-mel of audio that arrives in blocks of any size; equal, frame by frame, to that of the whole."""

from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .constants import HOP, WINDOW
from .logmel import emphasise, emphasised_log_mel, log_mel

StreamedNormalisation = Literal["fixed", "nemo"]
"""Those in which a frame depends on the samples under it alone."""

_HALF = WINDOW // 2


class LogMelStream:
    """Frames of a normalisation, each as soon as the 200 samples behind its centre are there.

    Args:
        num_mel_bins: M.
        normalise: see `log_mel`.
    """

    def __init__(self, num_mel_bins: int = 80, normalise: StreamedNormalisation = "fixed") -> None:
        self.num_mel_bins, self.normalise = num_mel_bins, normalise
        self._before: float | None = None  # the sample in front of the next ones
        self._held = np.zeros(_HALF, np.float32)  # from 200 samples before the centre of the next frame on

    def push(self, samples: NDArray[np.float32]) -> Tensor:
        """Take the next samples (N,) and give the frames (T, M) that they complete."""
        new = samples.astype(np.float32, copy=False)
        if self.normalise == "nemo" and len(new):
            before, self._before = self._before, float(new[-1])
            new = emphasise(torch.from_numpy(new), before).numpy()
        self._held = np.concatenate([self._held, new])
        return self._frames(max(0, (len(self._held) - WINDOW) // HOP + 1))

    def finish(self) -> Tensor:
        """End the audio: the last frames (T, M), with silence behind them."""
        num_left = max(0, (len(self._held) - _HALF) // HOP)
        self._held = np.pad(self._held, (0, WINDOW))
        return self._frames(num_left)

    def tensors(self) -> dict[str, Tensor]:
        """What is held of the samples so far, to be kept or moved; ready for `safetensors.torch.save`."""
        before = [] if self._before is None else [self._before]
        return {"held": torch.from_numpy(self._held.copy()), "before": torch.tensor(before)}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        num_mel_bins: int = 80,
        normalise: StreamedNormalisation = "fixed",
    ) -> Self:
        """The stream that gave `tensors`, where it was.

        Raises:
            ValueError: naming what is missing or too much.
        """
        if different := {"held", "before"} ^ set(tensors):
            raise ValueError(
                f"{', '.join(sorted(different))}: too much or missing in the state of log-mel frames"
            )
        made = cls(num_mel_bins, normalise)
        made._held = tensors["held"].numpy().copy()
        made._before = tensors["before"].tolist()[0] if len(tensors["before"]) else None
        return made

    def _frames(self, count: int) -> Tensor:
        if count == 0:
            return torch.zeros(0, self.num_mel_bins)
        # Frame t of a piece is centred on its sample 160 t, so the piece has to begin a whole hop earlier.
        lead = -(-_HALF // HOP) * HOP - _HALF
        piece = np.pad(self._held[: (count - 1) * HOP + WINDOW], (lead, 0))
        first = (lead + _HALF) // HOP
        if self.normalise == "nemo":
            mel = emphasised_log_mel(torch.from_numpy(piece), self.num_mel_bins)
        else:
            mel = log_mel(piece, self.num_mel_bins, normalise="fixed")
        self._held = self._held[count * HOP :]
        return mel.T[first : first + count]

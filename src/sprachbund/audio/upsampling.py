"""From the 16 kHz of the package to the 24 kHz of neural codecs, in pieces of any length.

Every two samples become three, by a causal low-pass filter (Kaiser's window; Oppenheim and Schafer, Discrete-Time
Signal Processing, section 7.5.3): the sound comes 2 ms late. Pieces give what the whole gives, and all that is kept of
a stream is the sound that its next samples need again.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE

CODEC_RATE = 24_000
"""Samples per second of what comes out."""
DELAY_S = 0.002
"""How late it comes."""
_IN, _OUT = 2, 3
_PAST = round(2 * DELAY_S * SAMPLE_RATE)
"""Samples before that three new ones depend on; the filter is symmetric."""
_BETA = 9.0
"""Of the window; aliases are 90 dB down."""


def _kernel() -> Tensor:
    """Filters (3, 1, taps), in double precision, of the three samples that two become.

    At 48 kHz, where both rates meet, one filter h of 3 * `_PAST` + 1 taps is run over the samples with two noughts
    behind each; what is computed is only the terms that are not nought, of every second output.
    """
    taps = _OUT * _PAST + 1
    time = np.arange(taps) - taps // 2
    filtered = np.sinc(time / _OUT) * np.kaiser(taps, _BETA)
    filtered *= _OUT / filtered.sum()
    kernel = np.zeros((_OUT, 1, _PAST + _IN))
    for phase in range(_OUT):
        for tap in range(_PAST + _IN):
            index = _IN * phase - _OUT * (tap - _PAST)
            if 0 <= index < taps:
                kernel[phase, 0, tap] = filtered[index]
    return torch.from_numpy(kernel)


_KERNEL = _kernel()


class UpsampledStream:
    """The sound of one stream at 24 kHz."""

    def __init__(self) -> None:
        self._held = np.zeros(_PAST, np.float32)

    def push(self, samples: NDArray[np.float32]) -> Tensor:
        """Take the next samples (N,) at 16 kHz, and give those at 24 kHz that they complete; an odd one waits."""
        held = np.concatenate([self._held, samples.astype(np.float32, copy=False)])
        pairs = (len(held) - _PAST) // _IN
        self._held = held[pairs * _IN :]
        if pairs == 0:
            return torch.zeros(0)
        # In double precision, so that it rounds to the same sound whatever the pieces are.
        heard = torch.from_numpy(held[: _PAST + pairs * _IN]).double()
        return torch.conv1d(heard[None, None], _KERNEL, stride=_IN)[0].T.flatten().float()

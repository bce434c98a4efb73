"""Features of our own models: the families conformer and whisper, the bundled model among them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from sprachbund.audio import logmel
from sprachbund.audio.constants import HOP, SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.models.directory import load
from sprachbund.models.family import Features
from sprachbund.nn.shared_private import is_split
from sprachbund.units.sources import Cut, placed

_KNOWN = ("conformer", "whisper")


class OwnEncoder:
    """The encoder of one of our models, cut off after a layer; satisfies `sprachbund.units.sources.Encoder`.

    Raises:
        SprachbundError: another family, an encoder that is split by language, no such layer or device.
    """

    only_equal_lengths = False

    def __init__(self, directory: Path, layer: int, device: str) -> None:
        self._model = cast(Any, load(directory, offline=True))
        self.family: str = self._model.name
        if self.family not in _KNOWN:
            raise SprachbundError(
                f"{directory} is of the family {self.family}; units are made of {' or '.join(_KNOWN)} models, "
                "or of speech encoders such as WavLM"
            )
        if is_split(self._model.encoder):
            raise SprachbundError(
                f"the encoder of {directory} is split by language, and units are to be the same for all; "
                "name the model that it was split from"
            )
        placed(self._model, device)
        self._device = device
        self._cut = Cut(self._model.encoder, layer, str(directory))
        self.num_layers = self._cut.num_layers
        self.width: int = self._model.config.width
        self.frame_s: float = self._model.frame_s
        self.window_s: float = self._model.max_window_s
        self._stride = round(self.frame_s * SAMPLE_RATE / HOP)
        self._whole_windows = not getattr(self._model, "real_length", True)

    def num_frames(self, num_samples: int) -> int:
        """Log-mel frames, divided by the encoder's stride and rounded up."""
        return -(-logmel.num_frames(num_samples) // self._stride)

    def padded(self, num_samples: int) -> int:
        """A whole window for models that were trained on those."""
        return round(self.window_s * SAMPLE_RATE) if self._whole_windows else num_samples

    def states(self, samples: Sequence[np.ndarray]) -> Tensor:
        """The layer's output (B, T, D)."""
        features: Features = self._model.features(samples)
        self._model.encode(
            Features(values=features.values.to(self._device), num_frames=features.num_frames.to(self._device))
        )
        return self._cut.output

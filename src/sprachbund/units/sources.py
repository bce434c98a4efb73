"""Where features come from: a layer of one of our own encoders, or of a speech encoder of transformers.

An utterance gives the same features alone and among others, so that nothing depends on how work is shared out.
Shapes: T frames, D width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.units.files import encoder_hash


class SourceInfo(BaseModel):
    """What features are of, so that others can be told from them.

    Attributes:
        name: the model as it was named.
        family: of the model.
        layer: whose output they are, 1 for the first; before any norm that follows the last one.
        num_layers: that the encoder has.
        width: D.
        frame_s: seconds of a frame.
        sample_rate: of the speech that it takes.
        window_s: speech that is longer is cut into windows.
        hash: of the model's weights and configuration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    layer: int
    num_layers: int
    width: int
    frame_s: float
    sample_rate: int
    window_s: float
    hash: str


class Encoder(Protocol):
    """A speech encoder, cut off after the layer that is asked for."""

    family: str
    num_layers: int
    width: int
    frame_s: float
    window_s: float
    only_equal_lengths: bool
    """Whether utterances of a batch must be equally long, or they would change each other."""

    def num_frames(self, num_samples: int) -> int:
        """Frames of an utterance that fits the window."""
        ...

    def padded(self, num_samples: int) -> int:
        """Samples that are computed for an utterance of so many."""
        ...

    def states(self, samples: Sequence[np.ndarray]) -> Tensor:
        """The layer's output (B, T, D) for utterances, each of one frame at least."""
        ...


class Source:
    """Features of utterances of any length.

    Args:
        encoder: see `Encoder`.
        info: what is written down of it.
        batch_s: seconds of speech, padding counted, that are computed at once.
    """

    def __init__(self, encoder: Encoder, info: SourceInfo, batch_s: float = 60.0) -> None:
        self._encoder, self.info = encoder, info
        self._batch = round(batch_s * SAMPLE_RATE)
        self._window = round(encoder.window_s * SAMPLE_RATE)

    def num_frames(self, num_samples: int) -> int:
        """Frames T that so many samples give."""
        whole, rest = divmod(num_samples, self._window)
        return whole * self._encoder.num_frames(self._window) + self._encoder.num_frames(rest)

    @torch.inference_mode()
    def features(self, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features (T, D) float32 of each utterance, (num_samples,) float32 at 16 kHz; T may be zero."""
        windows = [
            (row, each[start : start + self._window])
            for row, each in enumerate(samples)
            for start in range(0, len(each), self._window)
        ]
        windows = [(row, w) for row, w in windows if self._encoder.num_frames(len(w))]
        parts: list[np.ndarray] = [np.zeros((0, self.info.width), np.float32)] * len(windows)
        for batch in self._batches([len(w) for _, w in windows]):
            states = self._encoder.states([windows[i][1] for i in batch]).float().cpu().numpy()
            for place, i in enumerate(batch):
                parts[i] = states[place, : self._encoder.num_frames(len(windows[i][1]))]
        empty = np.zeros((0, self.info.width), np.float32)
        return [
            np.concatenate(
                [empty, *(part for (owner, _), part in zip(windows, parts, strict=True) if owner == row)]
            )
            for row in range(len(samples))
        ]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Windows of like lengths together, as many as fit."""
        batch: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
            full = (len(batch) + 1) * self._encoder.padded(lengths[i]) > self._batch
            unequal = self._encoder.only_equal_lengths and batch and lengths[batch[0]] != lengths[i]
            if batch and (full or unequal):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch


class Cut:
    """An encoder's layers, cut off after one of them, whose output is kept whenever the encoder runs."""

    def __init__(self, encoder: nn.Module, layer: int, name: str) -> None:
        layers = encoder.layers
        assert isinstance(layers, nn.ModuleList)
        self.num_layers = len(layers)
        if not 1 <= layer <= len(layers):
            raise SprachbundError(
                f"{name} has layers 1 to {len(layers)}, not {layer}; give one of them as --layer"
            )
        encoder.layers = layers[:layer]
        self.output: Tensor
        layers[layer - 1].register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, given: Any, output: Any) -> None:
        self.output = output[0] if isinstance(output, tuple) else output


def open_source(
    directory: Path,
    layer: int,
    *,
    name: str = "",
    device: str = "cpu",
    batch_s: float = 60.0,
    model_hash: str = "",
) -> Source:
    """The features of a layer of a model.

    Args:
        directory: of a model of ours, or a checkpoint of transformers.
        layer: 1 for the first.
        name: to be written down; the directory if empty.
        device: where to compute, as torch names it.
        batch_s: seconds of speech computed at once.
        model_hash: of the directory where it is known already.

    Raises:
        SprachbundError: not a speech encoder, no such layer, speech of another sampling rate, or no such device.
    """
    from sprachbund.models.directory import FAMILIES
    from sprachbund.units.foreign import ForeignEncoder, model_type
    from sprachbund.units.own import OwnEncoder

    kind = OwnEncoder if model_type(directory) in FAMILIES else ForeignEncoder
    encoder: Encoder = kind(directory, layer, device)
    info = SourceInfo(
        name=name or str(directory),
        family=encoder.family,
        layer=layer,
        num_layers=encoder.num_layers,
        width=encoder.width,
        frame_s=encoder.frame_s,
        sample_rate=SAMPLE_RATE,
        window_s=encoder.window_s,
        hash=model_hash or encoder_hash(directory),
    )
    return Source(encoder, info, batch_s)


def placed(module: nn.Module, device: str) -> nn.Module:
    """A module for inference on a device. Raises SprachbundError for one that is not there."""
    try:
        return module.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SprachbundError(f"device {device!r} cannot be used ({reason}); try cpu") from error

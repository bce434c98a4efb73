"""Sources of features: a layer of one of our own encoders, or of a speech encoder of transformers.

An utterance gives the same features alone and among others, so that nothing depends on how work is shared out.
Shapes: T frames, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from sprachbund.audio import features as logmel
from sprachbund.audio.constants import HOP, SAMPLE_RATE, WINDOW
from sprachbund.errors import SprachbundError, first_line
from sprachbund.models import FAMILIES
from sprachbund.models.base import Features
from sprachbund.models.hub import NO_CODE, family_of, quiet_transformers
from sprachbund.models.seamless.model import stacked_log_mel
from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.feed_forward import is_split
from sprachbund.util.files import files_sha256, read_object

_MODEL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "pytorch_model*.bin",
    "*.index.json",
)


class SourceInfo(BaseModel):
    """The source of features, by which others are recognised.

    Attributes:
        name: the model as it was named.
        family: family of the model.
        layer: layer whose output they are, 1 for the first; before any norm that follows the last one.
        num_layers: layers that the encoder has.
        width: D.
        frame_s: seconds of a frame.
        sample_rate: sample rate of the speech that it takes.
        window_s: speech that is longer is cut into windows.
        hash: hash of the model's weights and configuration.
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


class FeatureSource:
    """Features of utterances of any length.

    Args:
        encoder: see `Encoder`.
        info: description of the source, as it is stored with the units.
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
            for index, i in enumerate(batch):
                parts[i] = states[index, : self._encoder.num_frames(len(windows[i][1]))]
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


class TruncatedEncoder:
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


def encoder_hash(directory: Path) -> str:
    """SHA-256 over all of a model directory that decides its features."""
    return files_sha256(path for pattern in _MODEL_FILES for path in directory.glob(pattern))


def open_source(
    directory: Path,
    layer: int,
    *,
    name: str = "",
    device: str = "cpu",
    batch_s: float = 60.0,
    model_hash: str = "",
) -> FeatureSource:
    """The features of a layer of a model.

    Args:
        directory: directory of a model of ours, or a checkpoint of transformers.
        layer: 1 for the first.
        name: name that is written down; the directory if empty.
        device: device to compute on, as torch names it.
        batch_s: seconds of speech computed at once.
        model_hash: hash of the model, where it is known already.

    Raises:
        SprachbundError: not a speech encoder, no such layer, speech of another sampling rate, or no such device.
    """
    encoder: Encoder = _kind(directory)(directory, layer, device)
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
    return FeatureSource(encoder, info, batch_s)


def _kind(directory: Path) -> type["OwnEncoder"] | type["TransformersEncoder"] | type["StackedMelEncoder"]:
    family = model_type(directory)
    if family in (W2V_BERT, *SEAMLESS):
        return StackedMelEncoder
    return OwnEncoder if family in FAMILIES else TransformersEncoder


def placed(module: nn.Module, device: str) -> nn.Module:
    """A module for inference on a device. Raises SprachbundError for one that is not there."""
    try:
        return module.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise SprachbundError(f"device {device!r} cannot be used ({first_line(error)}); try cpu") from error


# Models of this project: conformer and whisper.

_KNOWN = ("conformer", "whisper")


def _load_own(directory: Path) -> Any:
    """Not by `sprachbund.models.io`, which loads models of units too."""
    family = family_of(directory)
    if family not in _KNOWN:
        raise SprachbundError(
            f"{directory} is of the family {family}; units are made of {', '.join(_KNOWN)} or SeamlessM4T models, "
            "or of speech encoders such as WavLM"
        )
    if family == "conformer":
        from sprachbund.models.conformer.io import load as load_conformer

        return load_conformer(directory)
    from sprachbund.models.whisper import load as load_whisper

    return load_whisper(directory, offline=True)


def _refuse_split(encoder: nn.Module, directory: Path) -> None:
    if is_split(encoder):
        raise SprachbundError(
            f"the encoder of {directory} is split by language, and units are to be the same for all; "
            "name the model that it was split from"
        )


class OwnEncoder:
    """The encoder of one of our models, cut off after a layer; satisfies `Encoder`.

    Raises:
        SprachbundError: another family, an encoder that is split by language, no such layer or device.
    """

    only_equal_lengths = False

    def __init__(self, directory: Path, layer: int, device: str) -> None:
        self._model = _load_own(directory)
        self.family: str = self._model.name
        _refuse_split(self._model.encoder, directory)
        placed(self._model, device)
        self._device = device
        self._cut = TruncatedEncoder(self._model.encoder, layer, str(directory))
        self.num_layers = self._cut.num_layers
        self.width: int = self._model.config.width
        self.frame_s: float = self._model.frame_s
        self.window_s: float = self._model.max_window_s
        self._stride = round(self.frame_s * SAMPLE_RATE / HOP)
        window = self._model.capabilities.fixed_window
        self._whole_windows = window is not None and not window.real_length

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


# Encoders of transformers that read samples: WavLM, HuBERT, wav2vec 2.0, XLS-R.

SAMPLE_ENCODERS = ("hubert", "sew", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer", "wavlm")
"""Model types whose layers are `encoder.layers`, behind convolutions over samples that the configuration describes."""
_WINDOW_S = 30.0
"""Attention costs the square of the length; their training saw about half of this."""


def model_type(directory: Path) -> str:
    """The family that a model directory names. Raises SprachbundError when there is no such thing."""
    path = directory / "config.json"
    if not path.exists():
        raise SprachbundError(f"{directory} has no config.json, so it is not a model; check the path")
    config = read_object(path, advice="copy it again")
    if not (name := config.get("family") or config.get("model_type")):
        raise SprachbundError(f"{path} does not name a model; copy it again")
    return str(name)


class TransformersEncoder:
    """A speech encoder of transformers, cut off after a layer; satisfies `Encoder`.

    Raises:
        SprachbundError: transformers or the checkpoint cannot be read, the model does not read samples of 16 kHz,
            no such layer or device.
    """

    window_s = _WINDOW_S

    def __init__(self, directory: Path, layer: int, device: str) -> None:
        self.family = model_type(directory)
        if self.family not in SAMPLE_ENCODERS:
            raise SprachbundError(
                f"{directory} holds a {self.family} model, which is no encoder of samples; name a checkpoint of type "
                f"{', '.join(SAMPLE_ENCODERS)}, a w2v-BERT 2.0, a SeamlessM4T or a Whisper"
            )
        self._extractor, model = _load(directory)
        _refuse_rate(self._extractor.sampling_rate, directory)
        placed(model, device)
        self._model, self._device = model, device
        self._cut = TruncatedEncoder(model.encoder, layer, str(directory))
        self.num_layers = self._cut.num_layers
        self.width: int = model.config.hidden_size
        self.frame_s: float = model.config.inputs_to_logits_ratio / SAMPLE_RATE
        # A norm over time sees padding, and such models were trained without masks.
        self.only_equal_lengths = model.config.feat_extract_norm == "group"

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames behind the convolutions; 0 for fewer samples than they see at once."""
        for kernel, stride in zip(
            self._model.config.conv_kernel, self._model.config.conv_stride, strict=True
        ):
            num_samples = max(0, (num_samples - kernel) // stride + 1)
        return num_samples

    def padded(self, num_samples: int) -> int:
        """The samples themselves."""
        return num_samples

    def states(self, samples: Sequence[np.ndarray]) -> Tensor:
        """The layer's output (B, T, D)."""
        given = self._extractor(
            [np.asarray(each) for each in samples],
            sampling_rate=SAMPLE_RATE,
            padding=True,
            return_attention_mask=not self.only_equal_lengths,
            return_tensors="pt",
        )
        self._model(**{name: value.to(self._device) for name, value in given.items()})
        return self._cut.output


def _refuse_rate(rate: int, directory: Path) -> None:
    if rate != SAMPLE_RATE:
        raise SprachbundError(
            f"{directory} takes speech of {rate} Hz, corpora are of {SAMPLE_RATE} Hz; name another model"
        )


def _load(directory: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoFeatureExtractor, AutoModel
    except ImportError as error:
        raise SprachbundError("speech encoders need transformers; pip install transformers") from error
    try:
        with quiet_transformers():
            extractor = AutoFeatureExtractor.from_pretrained(directory, local_files_only=True, **NO_CODE)
            model = AutoModel.from_pretrained(
                directory, local_files_only=True, dtype=torch.float32, **NO_CODE
            )
    except (OSError, ValueError, KeyError) as error:
        raise SprachbundError(
            f"{directory} cannot be read as a speech encoder ({first_line(error)})"
        ) from error
    return extractor, model


# Encoders that read log-mel frames stacked in pairs: w2v-BERT 2.0 of transformers, and SeamlessM4T.

W2V_BERT = "wav2vec2-bert"
SEAMLESS = ("seamless_m4t", "seamless_m4t_v2")
_STACKED = 2
"""Log-mel frames that are one; each sees `WINDOW` samples."""


class StackedMelEncoder:
    """The encoder of w2v-BERT 2.0 or SeamlessM4T, cut off after a layer; satisfies `Encoder`.

    A layer of SeamlessM4T has 50 frames a second: its adaptor, which leaves one for every eight, comes after the last.

    Raises:
        SprachbundError: the checkpoint cannot be read, an encoder that is split by language, no such layer or device.
    """

    only_equal_lengths = False
    frame_s = _STACKED * HOP / SAMPLE_RATE
    window_s = _WINDOW_S

    def __init__(self, directory: Path, layer: int, device: str) -> None:
        self.family = model_type(directory)
        if self.family == W2V_BERT:
            self._extractor, model = _load(directory)
            self._encode: Callable[[Tensor, Tensor], Any] = partial(_encode_w2v_bert, model)
            layers = model.encoder
            self.width: int = model.config.hidden_size
        else:
            from sprachbund.models.seamless.io import load as load_seamless

            seamless = load_seamless(directory, offline=True)
            self._extractor, model = seamless.extractor, seamless.encoder
            self._encode, layers = model, model
            _refuse_split(model, directory)
            self.width = seamless.config.hidden_size
        _refuse_rate(self._extractor.sampling_rate, directory)
        placed(model, device)
        self._device = device
        self._cut = TruncatedEncoder(layers, layer, str(directory))
        self.num_layers = self._cut.num_layers

    def num_frames(self, num_samples: int) -> int:
        """Pairs of whole log-mel frames."""
        return max(0, (num_samples - WINDOW) // HOP + 1) // _STACKED

    def padded(self, num_samples: int) -> int:
        """The samples themselves."""
        return num_samples

    def states(self, samples: Sequence[np.ndarray]) -> Tensor:
        """The layer's output (B, T, D)."""
        values, num_frames = stacked_log_mel(self._extractor, samples)
        self._encode(values.to(self._device), num_frames.to(self._device))
        return self._cut.output


def _encode_w2v_bert(model: nn.Module, values: Tensor, num_frames: Tensor) -> None:
    model(values, attention_mask=valid_frames(num_frames, values.shape[1]).long())

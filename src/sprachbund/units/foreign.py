"""Features of speech encoders of transformers that read samples: WavLM, HuBERT, wav2vec 2.0, XLS-R and their like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.models.quiet import quiet_transformers
from sprachbund.units.sources import Cut, placed
from sprachbund.util.files import read_object

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


class ForeignEncoder:
    """A speech encoder of transformers, cut off after a layer; satisfies `sprachbund.units.sources.Encoder`.

    Raises:
        SprachbundError: transformers or the checkpoint cannot be read, the model does not read samples of 16 kHz,
            no such layer or device.
    """

    window_s = _WINDOW_S

    def __init__(self, directory: Path, layer: int, device: str) -> None:
        self.family = model_type(directory)
        self._extractor, model = _load(directory)
        if getattr(model, "main_input_name", "") != "input_values" or not hasattr(
            getattr(model, "encoder", None), "layers"
        ):
            raise SprachbundError(
                f"{directory} holds a {self.family} model, which is no encoder of samples; name a WavLM, HuBERT, "
                "wav2vec 2.0 or XLS-R checkpoint, or a Whisper"
            )
        if (rate := self._extractor.sampling_rate) != SAMPLE_RATE:
            raise SprachbundError(
                f"{directory} takes speech of {rate} Hz, corpora are of {SAMPLE_RATE} Hz; name another model"
            )
        placed(model, device)
        self._model, self._device = model, device
        self._cut = Cut(model.encoder, layer, str(directory))
        self.num_layers = self._cut.num_layers
        self.width: int = model.config.hidden_size
        self.frame_s: float = model.config.inputs_to_logits_ratio / SAMPLE_RATE
        # A norm over time sees padding, and such models were trained without masks.
        self.only_equal_lengths = model.config.feat_extract_norm == "group"

    def num_frames(self, num_samples: int) -> int:
        """What the convolutions leave; none where there are fewer samples than they see at once."""
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


def _load(directory: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoFeatureExtractor, AutoModel
    except ImportError as error:
        raise SprachbundError("speech encoders need transformers; pip install transformers") from error
    try:
        with quiet_transformers():
            extractor = AutoFeatureExtractor.from_pretrained(directory, local_files_only=True)
            model = AutoModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SprachbundError(f"{directory} cannot be read as a speech encoder ({reason})") from error
    return extractor, model

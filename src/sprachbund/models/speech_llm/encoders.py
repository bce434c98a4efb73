"""Speech encoders for a speech LLM: this project's own, and what is common to all.

Shapes: B utterances, T feature frames, M mel bins, S states, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.audio.constants import FRAMES_PER_S, HOP, SAMPLE_RATE
from sprachbund.audio.features import log_mel, num_frames
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer, ConformerConfig
from sprachbund.models.seamless.model import Seamless, stacked_log_mel
from sprachbund.models.whisper.config import WhisperConfig
from sprachbund.models.whisper.model import WhisperEncoder, memory_frames

_STRIDE = 2  # of Whisper's second convolution


class SpeechEncoder(nn.Module):
    """An encoder of speech, from samples to states; the interface that all kinds share.

    Attributes:
        kind: name of the kind in config.json.
        width: D.
        frame_s: seconds of a state.
        max_window_s: longest speech.
        frames_per_s: frames of the features in a second.
        whole_windows: whether every utterance costs as much as the longest.
        is_log_mel: whether the features are plain log-mel, which training may mask.
        adapted: last parts of the names of the linear layers that adapters go on.
        shows_layers: whether the states behind each layer can be read: those of all utterances at once, of the same
            moments as the last ones.
        one_by_one: whether its layers run once for each utterance of a batch.
    """

    kind: str
    width: int
    frame_s: float
    max_window_s: float
    frames_per_s: int
    whole_windows: bool = False
    is_log_mel: bool = True
    shows_layers: bool = True
    one_by_one: bool = False
    adapted: tuple[str, ...]
    encoder: Any

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Layers of the encoder, for code that measures or recomputes by layers."""
        layers: Sequence[nn.Module] = self.encoder.layers
        return layers

    def features(self, samples: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Features (B, T, M) of 16 kHz mono float32 samples, and their valid frames (B,)."""
        raise NotImplementedError

    def forward(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, S, D) of features, and how many are valid (B,)."""
        raise NotImplementedError

    def check_layers(self, layers: Sequence[int]) -> None:
        """Check that states behind these layers can be read. Raises SprachbundError."""
        if layers and not self.shows_layers:
            raise SprachbundError(
                f"the layers of this {self.kind} encoder cannot be read: it shortens speech behind them, or hears "
                "utterances one by one; leave encoder_layers out"
            )
        if layers and max(layers) >= len(self.layers):
            raise SprachbundError(
                f"encoder_layers names layer {max(layers)}; the encoder's are 0 to {len(self.layers) - 1}: name some"
            )

    def read(self, values: Tensor, num_frames: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same as `forward`, with the normed states behind each of the layers beside the last: (B, S, D (1 +
        layers)).

        Args:
            values: features (B, T, M).
            num_frames: valid frames (B,).
            layers: numbers of the layers.
        """
        layer_states: dict[int, Tensor] = {}

        def keep(number: int) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, given, out: layer_states.update(
                {number: out[0] if isinstance(out, tuple) else out}
            )

        handles = [self.layers[number].register_forward_hook(keep(number)) for number in layers]
        try:
            states, num_states = self(values, num_frames)
        finally:
            for handle in handles:
                handle.remove()
        width = states.shape[1:]
        normed = [F.layer_norm(layer_states[number][:, : width[0]], width[1:]) for number in layers]
        return torch.cat([states, *normed], dim=-1), num_states

    def settings(self) -> dict[str, Any]:
        """Return the entry of config.json from which `build` makes the encoder again."""
        raise NotImplementedError


class ReadStates(nn.Module):
    """The part of an encoder that a speech LLM reads, as a module of its own.

    Args:
        encoder: encoder of the model.
        layers: layers whose states are read beside the last ones.
    """

    def __init__(self, encoder: SpeechEncoder, layers: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, tuple(layers)

    def _get_name(self) -> str:
        return f"{super()._get_name()} {self.layers}"

    def forward(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """As `SpeechEncoder.read`."""
        return self.encoder.read(values, num_frames, self.layers)


class CachedSpeech(SpeechEncoder):
    """Stands in an encoder's place while a model is trained on its states.

    Args:
        encoder: encoder whose states the features are.
    """

    def __init__(self, encoder: SpeechEncoder) -> None:
        super().__init__()
        self.kind, self.width, self.frame_s = encoder.kind, encoder.width, encoder.frame_s
        self.max_window_s, self.frames_per_s = encoder.max_window_s, encoder.frames_per_s
        self.adapted = encoder.adapted

    @property
    def layers(self) -> Sequence[nn.Module]:
        """None is computed."""
        return ()

    def read(self, values: Tensor, num_frames: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The features, which the encoder's `read` gave.

        Args:
            values: states (B, S, D).
            num_frames: valid states (B,).
            layers: layers that were read.
        """
        return values, num_frames


class WhisperSpeech(SpeechEncoder):
    """The encoder of a Whisper model, on whole windows as it was trained; only states of the speech are kept.

    Args:
        config: sizes; those of the decoder are not used.
        encoder: encoder with its weights; new if None.
    """

    kind = "whisper"
    frame_s = _STRIDE * HOP / SAMPLE_RATE
    frames_per_s = FRAMES_PER_S
    whole_windows = True
    adapted = ("query", "value")

    def __init__(self, config: WhisperConfig, encoder: WhisperEncoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder or WhisperEncoder(config)
        self.width = config.width
        self.max_window_s = config.max_frames * self.frame_s

    def features(self, samples: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Log-mel padded with silence to a window."""
        rows = [log_mel(s, self.config.num_mel_bins, pad_to_s=self.max_window_s).T for s in samples]
        return torch.stack(rows), torch.tensor([max(1, num_frames(len(s))) for s in samples])

    def forward(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """As `SpeechEncoder`."""
        window = self.config.max_frames * _STRIDE
        if values.shape[1] < window:
            raise SprachbundError(
                f"features of {values.shape[1]} frames are less than Whisper's window of {window}; "
                "compute them with the model's features()"
            )
        num_states = memory_frames(num_frames)
        states = self.encoder(values[:, :window].to(self.encoder.positions.dtype))
        return states[:, : int(num_states.max())], num_states

    def settings(self) -> dict[str, Any]:
        """As `SpeechEncoder`."""
        return self.config.to_transformers()


class ConformerSpeech(SpeechEncoder):
    """The encoder of a conformer of this project.

    Args:
        config: sizes; those of the decoder are not used.
        encoder: encoder with its weights; new if None.
    """

    kind = "conformer"
    frame_s = Conformer.frame_s
    max_window_s = Conformer.max_window_s
    frames_per_s = FRAMES_PER_S
    adapted = ("query", "value")

    def __init__(self, config: ConformerConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder or Conformer(config, ("",), ("",)).encoder  # type: ignore[arg-type]  # for their lengths
        self.width = config.width

    def features(self, samples: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Log-mel on a fixed scale, padded to the longest."""
        padded = [np.pad(s, (0, max(0, HOP - len(s)))) for s in samples]
        rows = [log_mel(s, self.config.num_mel_bins, normalise="fixed").T for s in padded]
        lengths = torch.tensor([row.shape[0] for row in rows])
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths

    def forward(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """As `SpeechEncoder`."""
        states, num_states = self.encoder(values, num_frames)
        return states, num_states

    def settings(self) -> dict[str, Any]:
        """As `SpeechEncoder`."""
        return self.config.model_dump(mode="json")


class SeamlessSpeech(SpeechEncoder):
    """The encoder of a SeamlessM4T model, either version, with its adaptor.

    Args:
        family: the model; its decoder is not kept.
    """

    kind = "seamless"
    frames_per_s = 50
    is_log_mel = False  # two frames are stacked in one
    shows_layers = False  # its adaptor has longer steps
    adapted = ("linear_q", "linear_v")

    def __init__(self, family: Any) -> None:
        super().__init__()
        self.encoder = family.encoder
        self.extractor: Any = family.extractor
        self.width = family.config.hidden_size
        self.frame_s, self.max_window_s = family.frame_s, family.max_window_s

    def features(self, samples: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """As `SpeechEncoder`."""
        return stacked_log_mel(self.extractor, samples)

    def forward(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """As `SpeechEncoder`."""
        states, num_states = self.encoder(values, num_frames)
        return states, num_states

    def settings(self) -> dict[str, Any]:
        """None: it is always read from where it came from."""
        return {}


def build(kind: str, settings: dict[str, Any]) -> SpeechEncoder:
    """An encoder of this project from what `settings` gave, with new weights.

    Raises:
        SprachbundError: a kind that is none of this project's.
    """
    if kind == WhisperSpeech.kind:
        return WhisperSpeech(WhisperConfig.from_transformers(settings))
    if kind == ConformerSpeech.kind:
        return ConformerSpeech(ConformerConfig.model_validate(settings))
    raise SprachbundError(
        f"config.json says that a speech encoder {kind!r} lies inside; that can be whisper, conformer or transformers"
    )


def of_family(family: Any) -> SpeechEncoder:
    """The encoder of a loaded model of this project.

    Raises:
        SprachbundError: a family without such an encoder, or one that is split by language.
    """
    if family.capabilities.sharing_plan is not None:
        raise SprachbundError(
            "an encoder that is split by language cannot hear mixed speech; take one that is not"
        )
    if family.name == WhisperSpeech.kind:
        return WhisperSpeech(family.config, family.encoder)
    if family.name == ConformerSpeech.kind:
        return ConformerSpeech(family.config, family.encoder)
    if isinstance(family, Seamless):
        return SeamlessSpeech(family)
    raise not_taken(family.name)


def not_taken(family: str) -> SprachbundError:
    """The error for a family without an encoder for a speech LLM."""
    return SprachbundError(
        f"the encoder of the family {family!r} is not taken; give a whisper, conformer or seamless model, "
        "or an encoder of transformers"
    )

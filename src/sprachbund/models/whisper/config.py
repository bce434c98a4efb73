"""The shape of a Whisper model, from and to the `config.json` of Hugging Face, and the published shapes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.nn.limits import HEADS, INNER_WIDTH, LAYERS, MEL_BINS, POSITIONS, VOCABULARY, WIDTH, Limit

FIRST_MULTILINGUAL_VOCABULARY = 51_865
"""Published English-only checkpoints have one token less than this, multilingual ones at least as many."""

_TRANSFORMERS_NAMES = {
    "vocabulary_size": "vocab_size",
    "width": "d_model",
    "num_mel_bins": "num_mel_bins",
    "encoder_layers": "encoder_layers",
    "encoder_heads": "encoder_attention_heads",
    "encoder_feed_forward_width": "encoder_ffn_dim",
    "decoder_layers": "decoder_layers",
    "decoder_heads": "decoder_attention_heads",
    "decoder_feed_forward_width": "decoder_ffn_dim",
    "max_frames": "max_source_positions",
    "max_tokens": "max_target_positions",
    "dropout": "dropout",
}
_OPTIONAL = {"max_frames", "max_tokens", "dropout"}
_LIMITS = {
    "vocabulary_size": VOCABULARY,
    "width": Limit(4, WIDTH.most),  # positions are sines and cosines
    "num_mel_bins": MEL_BINS,
    "encoder_layers": Limit(1, LAYERS.most),
    "encoder_heads": HEADS,
    "encoder_feed_forward_width": INNER_WIDTH,
    "decoder_layers": Limit(1, LAYERS.most),
    "decoder_heads": HEADS,
    "decoder_feed_forward_width": INNER_WIDTH,
    "max_frames": POSITIONS,
    "max_tokens": POSITIONS,
}


@dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Sizes of a Whisper model.

    Attributes:
        vocabulary_size: V.
        width: D, of encoder and decoder.
        num_mel_bins: M.
        encoder_layers: L of the encoder.
        encoder_heads: H of the encoder.
        encoder_feed_forward_width: width of the encoder's feed-forward.
        decoder_layers: L of the decoder.
        decoder_heads: H of the decoder.
        decoder_feed_forward_width: width of the decoder's feed-forward.
        max_frames: memory frames of the longest window (half as many as log-mel frames).
        max_tokens: longest row of tokens, prompt included.
        dropout: dropout in training.
    """

    vocabulary_size: int
    width: int
    num_mel_bins: int = 80
    encoder_layers: int
    encoder_heads: int
    encoder_feed_forward_width: int
    decoder_layers: int
    decoder_heads: int
    decoder_feed_forward_width: int
    max_frames: int = 1500
    max_tokens: int = 448
    dropout: float = 0.0

    @classmethod
    def from_transformers(cls, values: Mapping[str, Any], *, source: str = "config.json") -> "WhisperConfig":
        """Read the keys of a Hugging Face `config.json`.

        Raises:
            SprachbundError: another model type, a missing or unusable key, an activation other than GELU.
        """
        if values.get("model_type") != "whisper":
            raise SprachbundError(
                f"{source} describes a model of type {repr(values.get('model_type'))[:60]}, not 'whisper'; "
                "give a Whisper or Distil-Whisper directory"
            )
        if values.get("activation_function", "gelu") != "gelu":
            raise SprachbundError(
                f"{source} asks for the activation {repr(values['activation_function'])[:60]}; only 'gelu' is known"
            )
        ours = {name: values[key] for name, key in _TRANSFORMERS_NAMES.items() if values.get(key) is not None}
        missing = [
            key for name, key in _TRANSFORMERS_NAMES.items() if name not in ours and name not in _OPTIONAL
        ]
        if missing:
            raise SprachbundError(f"{source} has no usable value for {', '.join(missing)}; restore the file")
        for name, value in ours.items():
            if reason := _why_not(name, value):
                raise SprachbundError(
                    f"{source} has no usable value for {_TRANSFORMERS_NAMES[name]}: it is {repr(value)[:60]}, "
                    f"not {reason}; restore the file"
                )
        config = cls(**ours)
        for side, heads in (("encoder", config.encoder_heads), ("decoder", config.decoder_heads)):
            if config.width % heads:
                raise SprachbundError(
                    f"{source} asks for {heads} {side} heads, which do not divide d_model {config.width}; "
                    "restore the file"
                )
        return config

    def to_transformers(self) -> dict[str, Any]:
        """The same sizes as keys of a Hugging Face `config.json`, and what transformers needs beside them."""
        sizes = {_TRANSFORMERS_NAMES[name]: value for name, value in asdict(self).items()}
        return {
            "model_type": "whisper",
            "architectures": ["WhisperForConditionalGeneration"],
            "is_encoder_decoder": True,
            "activation_function": "gelu",
            "num_hidden_layers": self.encoder_layers,
            **sizes,
        }


def _why_not(name: str, value: object) -> str | None:
    """Description of the values allowed; None when the value is one of them."""
    if name == "dropout":
        is_share = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
        return None if is_share else "a number from 0 to less than 1"
    return None if _LIMITS[name].holds(value) else str(_LIMITS[name])


def _published(width: int, layers: int, *, decoder_layers: int | None = None, **more: int) -> WhisperConfig:
    """Heads are always 64 wide and feed-forwards four times the width."""
    return WhisperConfig(
        **{"vocabulary_size": FIRST_MULTILINGUAL_VOCABULARY, **more},
        width=width,
        encoder_layers=layers,
        encoder_heads=width // 64,
        encoder_feed_forward_width=4 * width,
        decoder_layers=decoder_layers or layers,
        decoder_heads=width // 64,
        decoder_feed_forward_width=4 * width,
    )


_V3 = {"vocabulary_size": FIRST_MULTILINGUAL_VOCABULARY + 1, "num_mel_bins": 128}  # Cantonese was added
_ENGLISH = {"vocabulary_size": FIRST_MULTILINGUAL_VOCABULARY - 1}
PRESETS: dict[str, WhisperConfig] = {
    "tiny": _published(384, 4),
    "tiny.en": _published(384, 4, **_ENGLISH),
    "base": _published(512, 6),
    "base.en": _published(512, 6, **_ENGLISH),
    "small": _published(768, 12),
    "small.en": _published(768, 12, **_ENGLISH),
    "medium": _published(1024, 24),
    "medium.en": _published(1024, 24, **_ENGLISH),
    "large-v2": _published(1280, 32),
    "large-v3": _published(1280, 32, **_V3),
    "turbo": _published(1280, 32, decoder_layers=4, **_V3),
    "distil-large-v3": _published(1280, 32, decoder_layers=2, **_V3),
}
"""The published shapes (arXiv 2212.04356, table 1; turbo and distil-large-v3 from their model cards)."""

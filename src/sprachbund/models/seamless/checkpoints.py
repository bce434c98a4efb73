"""Classes of transformers for Seamless checkpoints, published shapes, and the names of their weights.

transformers is an optional dependency: it is imported when a Seamless model is loaded.
"""

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from sprachbund.errors import SprachbundError

VERSIONS = {
    "seamless_m4t": ("SeamlessM4TConfig", "SeamlessM4TForSpeechToText"),
    "seamless_m4t_v2": ("SeamlessM4Tv2Config", "SeamlessM4Tv2ForSpeechToText"),
}
"""`model_type` of a checkpoint to the names of its configuration and of its speech-to-text part."""

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "medium": (
        "seamless_m4t",
        {
            "vocab_size": 256_206,
            "max_position_embeddings": 4096,
            "speech_encoder_layers": 12,
            "decoder_layers": 12,
            "decoder_ffn_dim": 4096,
            "encoder_layers": 12,
            "encoder_ffn_dim": 4096,
            "t2u_encoder_layers": 4,
            "t2u_decoder_layers": 4,
        },
    ),
    "large": ("seamless_m4t", {}),
    "large-v2": ("seamless_m4t_v2", {}),
}
"""Published shapes: version, and what differs from its default configuration (arXiv 2308.11596, 2312.05187)."""


def library() -> ModuleType:
    """The package transformers. Raises SprachbundError when it is not installed, with the way to install it."""
    try:
        import transformers
    except ImportError:
        raise SprachbundError(
            "SeamlessM4T models need the package transformers; run: pip install 'sprachbund[seamless]'"
        ) from None
    return transformers


def speech_to_text(config: Any) -> nn.Module:
    """The speech-to-text model of transformers for one of its configurations, with random weights."""
    model: nn.Module = classes(config.model_type)[1](config)
    return model


def classes(version: str) -> tuple[Any, Any]:
    """Configuration and speech-to-text class of a version, one of `VERSIONS`."""
    config, model = VERSIONS[version]
    # transformers loads its classes when they are asked for by name.
    return getattr(library(), config), getattr(library(), model)


def preset(name: str) -> Any:
    """The configuration, in transformers' class, of a published shape: a key of `PRESETS`."""
    version, changes = PRESETS[name]
    return classes(version)[0](**changes)


_SHARED = "shared.weight"
_RENAMED = (
    (r"^encoder\.layers\.(\d+)\.feed_forward_in\.", r"encoder.layers.\1.ffn1."),
    (r"^encoder\.layers\.(\d+)\.feed_forward_out\.", r"encoder.layers.\1.ffn2."),
    (r"^encoder\.layers\.(\d+)\.(ffn\d)\.norm\.", r"encoder.layers.\1.\2_layer_norm."),
    (r"^(encoder\..*ffn\d)\.expand\.", r"\1.intermediate_dense."),
    (r"^(encoder\..*ffn\d)\.contract\.", r"\1.output_dense."),
    (r"^encoder\.layers\.", "encoder.encoder.layers."),
    (r"^encoder\.norm\.", "encoder.encoder.layer_norm."),
    (r"^encoder\.", "speech_encoder."),
    (r"^(decoder|text_encoder)\.embedding\.weight$", _SHARED),
    (r"^(decoder|text_encoder)\.norm\.", r"\1.layer_norm."),
    (r"\.self_norm\.", ".self_attn_layer_norm."),
    (r"\.cross_norm\.", ".cross_attention_layer_norm."),
    (r"\.feed_forward\.norm\.", ".ffn_layer_norm."),
    (r"\.feed_forward\.expand\.", ".ffn.fc1."),
    (r"\.feed_forward\.contract\.", ".ffn.fc2."),
    (r"\.self_attention\.", ".self_attn."),
    (r"^((decoder|text_encoder)\..*)\.query\.", r"\1.q_proj."),
    (r"^((decoder|text_encoder)\..*)\.key\.", r"\1.k_proj."),
    (r"^((decoder|text_encoder)\..*)\.value\.", r"\1.v_proj."),
    (r"^((decoder|text_encoder)\..*)\.out\.", r"\1.out_proj."),
    (r"^decoder\.", "text_decoder."),
)
"""Our parameter names to those of transformers, one rule after the other."""


def transformers_name(name: str) -> str:
    """transformers' name of our parameter or buffer `name`."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under transformers' names, as its `from_pretrained` reads them."""
    return {transformers_name(name): tensor.contiguous() for name, tensor in weights.items()}

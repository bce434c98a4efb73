"""Classes of transformers for text-to-text checkpoints, their shapes, and the names of their weights.

transformers is an optional dependency: it is imported when such a model is loaded.
"""

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import optional_setting
from sprachbund.nn.feed_forward import ACTIVATIONS
from sprachbund.nn.text_to_text import TextToTextShape
from sprachbund.util.files import validate

KINDS = {
    "m2m_100": ("M2M100Config", "M2M100ForConditionalGeneration"),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration"),
    "marian": ("MarianConfig", "MarianMTModel"),
}
"""`model_type` of a checkpoint to the names of its configuration and of its model."""
EMBEDDING = "model.shared.weight"
_POSITIONS_LATER = 2
"""Rows of the tables of learned positions that no token gets."""
_LEARNED_POSITIONS = re.compile(r"(encoder|decoder)\.positions")
_BIAS = "decoder.logits_bias"
_SAME_ACTIVATION = {"swish": "silu"}


def library() -> ModuleType:
    """The package transformers. Raises SprachbundError when it is not installed, with the way to install it."""
    try:
        import transformers
    except ImportError:
        raise SprachbundError(
            "translators of text need the package transformers; run: pip install 'sprachbund[translation]'"
        ) from None
    return transformers


def classes(kind: str) -> tuple[Any, Any]:
    """Configuration and model class of a kind, one of `KINDS`."""
    config, model = KINDS[kind]
    # transformers loads its classes when they are asked for by name.
    return getattr(library(), config), getattr(library(), model)


def text_to_text(config: Any) -> nn.Module:
    """The model of transformers for one of its configurations, with random weights."""
    model: nn.Module = classes(config.model_type)[1](config)
    return model


def shape_of(config: Any, source: str) -> TextToTextShape:
    """The shape of a configuration of transformers.

    Args:
        config: of a model with an encoder and a decoder, in the names of BART.
        source: where it is from, for errors.

    Raises:
        SprachbundError: a shape that is not built here.
    """
    activation = _SAME_ACTIVATION.get(config.activation_function, config.activation_function)
    if activation not in ACTIVATIONS:
        raise SprachbundError(
            f"{source}: its activation is {activation}; {', '.join(ACTIVATIONS)} are built here"
        )
    if optional_setting(config, "share_encoder_decoder_embeddings") is False:
        raise SprachbundError(
            f"{source}: source and target have embeddings of their own (share_encoder_decoder_embeddings is "
            "false), which is not built here; take a checkpoint with one for both"
        )
    if not config.tie_word_embeddings:
        raise SprachbundError(
            f"{source}: its output matrix is not tied to the embedding (tie_word_embeddings is false), which is not "
            "built here; take a checkpoint as it was published"
        )
    sizes = {
        "width": config.d_model,
        "num_encoder_heads": config.encoder_attention_heads,
        "num_decoder_heads": config.decoder_attention_heads,
        "num_encoder_layers": config.encoder_layers,
        "num_decoder_layers": config.decoder_layers,
        "encoder_feed_forward_width": config.encoder_ffn_dim,
        "decoder_feed_forward_width": config.decoder_ffn_dim,
        "activation": activation,
        "scaled": config.scale_embedding,
        "positions": config.max_position_embeddings,
        "dropout": float(config.dropout),
    }
    return validate(TextToTextShape, sizes, source, advice="copy the model again")


_RENAMED = (
    (r"^(decoder\.)?embedding\.weight$", EMBEDDING),
    (r"^decoder\.logits_bias$", "final_logits_bias"),
    (r"^(encoder|decoder)\.", r"model.\1."),
    (r"\.positions$", ".embed_positions.weight"),
    (r"\.embedding_norm\.", ".layernorm_embedding."),
    (r"^(model\.\w+)\.norm\.", r"\1.layer_norm."),
    (r"\.self_norm\.", ".self_attn_layer_norm."),
    (r"\.cross_norm\.", ".encoder_attn_layer_norm."),
    (r"\.self_attention\.", ".self_attn."),
    (r"\.cross_attention\.", ".encoder_attn."),
    (r"\.feed_forward\.norm\.", ".final_layer_norm."),
    (r"\.feed_forward\.expand\.", ".fc1."),
    (r"\.feed_forward\.contract\.", ".fc2."),
    (r"attn\.query\.", "attn.q_proj."),
    (r"attn\.key\.", "attn.k_proj."),
    (r"attn\.value\.", "attn.v_proj."),
    (r"attn\.out\.", "attn.out_proj."),
)
"""Our names of parameters to those of transformers, one rule after the other."""


def transformers_name(name: str) -> str:
    """transformers' name of our parameter or buffer `name`."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def as_ours(name: str, weight: Tensor) -> Tensor:
    """What we hold under our name `name` of transformers' weight: no rows of positions for padding, a bias (V,)."""
    if name == _BIAS:
        return weight[0]
    return weight[_POSITIONS_LATER:] if _LEARNED_POSITIONS.fullmatch(name) else weight


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under transformers' names and in its shapes, as its `from_pretrained` reads them."""
    return {
        transformers_name(name): _as_theirs(name, weight).contiguous() for name, weight in weights.items()
    }


def _as_theirs(name: str, weight: Tensor) -> Tensor:
    if name == _BIAS:
        return weight[None]
    return F.pad(weight, (0, 0, _POSITIONS_LATER, 0)) if _LEARNED_POSITIONS.fullmatch(name) else weight

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
from sprachbund.nn.t5 import T5Shape
from sprachbund.nn.text_to_text import TextToTextShape
from sprachbund.util.files import validate

KINDS = {
    "m2m_100": ("M2M100Config", "M2M100ForConditionalGeneration"),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration"),
    "marian": ("MarianConfig", "MarianMTModel"),
    "t5": ("T5Config", "T5ForConditionalGeneration"),
}
"""`model_type` of a checkpoint to the names of its configuration and of its model."""
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


def shape_of(config: Any, source: str) -> TextToTextShape | T5Shape:
    """The shape of a configuration of transformers.

    Args:
        config: configuration of a kind of `KINDS`.
        source: name of the file, for errors.

    Raises:
        SprachbundError: a shape that is not built here.
    """
    return t5_shape(config, source) if config.model_type == "t5" else text_to_text_shape(config, source)


def t5_shape(config: Any, source: str) -> T5Shape:
    """The shape of T5 v1.1.

    Args:
        config: configuration of transformers.
        source: name of the file, for errors.

    Raises:
        SprachbundError: the first T5, which has no gates and ties its output matrix.
    """
    if config.feed_forward_proj != "gated-gelu":
        raise SprachbundError(
            f"{source}: feed_forward_proj is {config.feed_forward_proj!r}; of T5 its version 1.1 is built here, which "
            "has 'gated-gelu': take a checkpoint such as google/madlad400-3b-mt"
        )
    if config.scale_decoder_outputs:
        raise SprachbundError(
            f"{source}: its output matrix is tied to the embedding (tie_word_embeddings is not false); of T5 its "
            "version 1.1 is built here, take a checkpoint such as google/madlad400-3b-mt"
        )
    sizes = {
        "width": config.d_model,
        "num_heads": config.num_heads,
        "head_width": config.d_kv,
        "feed_forward_width": config.d_ff,
        "num_encoder_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "buckets": config.relative_attention_num_buckets,
        "max_distance": config.relative_attention_max_distance,
        "epsilon": float(config.layer_norm_epsilon),
        "dropout": float(config.dropout_rate),
    }
    return validate(T5Shape, sizes, source, advice="copy the model again")


def text_to_text_shape(config: Any, source: str) -> TextToTextShape:
    """The shape of M2M-100, mBART and Marian.

    Args:
        config: configuration of transformers, in the names of BART.
        source: name of the file, for errors.

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


_BART = (
    (r"^(decoder\.)?embedding\.weight$", "model.shared.weight"),
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
_T5 = (
    (r"^(decoder\.)?embedding\.weight$", "shared.weight"),
    (r"^decoder\.output_head\.", "lm_head."),
    (r"^(encoder|decoder)\.positions$", r"\1.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    (r"^(encoder|decoder)\.norm\.", r"\1.final_layer_norm."),
    (r"^(encoder|decoder)\.layers\.", r"\1.block."),
    (r"\.self_norm\.", ".layer.0.layer_norm."),
    (r"\.cross_norm\.", ".layer.1.layer_norm."),
    (r"\.self_attention\.", ".layer.0.SelfAttention."),
    (r"\.cross_attention\.", ".layer.1.EncDecAttention."),
    (r"^(encoder.*)\.feed_forward\.", r"\1.layer.1."),
    (r"^(decoder.*)\.feed_forward\.", r"\1.layer.2."),
    (r"\.(layer\.\d)\.norm\.", r".\1.layer_norm."),
    (r"\.gate\.", ".DenseReluDense.wi_0."),
    (r"\.expand\.", ".DenseReluDense.wi_1."),
    (r"\.contract\.", ".DenseReluDense.wo."),
    (r"Attention\.query\.", "Attention.q."),
    (r"Attention\.key\.", "Attention.k."),
    (r"Attention\.value\.", "Attention.v."),
    (r"Attention\.out\.", "Attention.o."),
)
"""Our names of parameters to those of transformers, one rule after the other."""


def transformers_name(name: str, kind: str) -> str:
    """transformers' name of our parameter or buffer `name`, in a model of a kind."""
    for pattern, replacement in _T5 if kind == "t5" else _BART:
        name = re.sub(pattern, replacement, name)
    return name


def as_ours(name: str, weight: Tensor, kind: str) -> Tensor:
    """Return the weight of transformers as we hold it: without rows of positions for padding, a bias as (V,).

    Args:
        name: ours.
        weight: transformers'.
        kind: kind of the model.
    """
    if name == _BIAS:
        return weight[0]
    return weight[_POSITIONS_LATER:] if _has_spare_rows(name, kind) else weight


def to_transformers(weights: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Our weights of a kind of model under transformers' names and in its shapes, as `from_pretrained` reads them."""
    return {
        transformers_name(name, kind): _as_theirs(name, weight, kind).contiguous()
        for name, weight in weights.items()
    }


def _as_theirs(name: str, weight: Tensor, kind: str) -> Tensor:
    if name == _BIAS:
        return weight[None]
    return F.pad(weight, (0, 0, _POSITIONS_LATER, 0)) if _has_spare_rows(name, kind) else weight


def _has_spare_rows(name: str, kind: str) -> bool:
    return kind != "t5" and _LEARNED_POSITIONS.fullmatch(name) is not None

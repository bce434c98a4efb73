"""What NeMo and transformers call the parts of a cache-aware FastConformer transducer, and what we call them."""

import re
from collections.abc import Mapping

from torch import Tensor

_LAYER = "encoder.layers.N."


def _layer(parts: Mapping[str, str]) -> dict[str, str]:
    return {_LAYER + theirs: _LAYER + ours for theirs, ours in parts.items()}


_BOTH = _layer(
    {
        "norm_feed_forward1": "feed_forward_in.norm",
        "feed_forward1.linear1": "feed_forward_in.expand",
        "feed_forward1.linear2": "feed_forward_in.contract",
        "norm_self_att": "attention_norm",
        "norm_conv": "convolution.norm",
        "conv.pointwise_conv1": "convolution.gate",
        "conv.depthwise_conv": "convolution.depthwise",
        "conv.pointwise_conv2": "convolution.out",
        "norm_feed_forward2": "feed_forward_out.norm",
        "feed_forward2.linear1": "feed_forward_out.expand",
        "feed_forward2.linear2": "feed_forward_out.contract",
        "norm_out": "norm",
    }
)
NEMO = {
    **_BOTH,
    **_layer(
        {
            "self_attn.linear_q": "attention.query",
            "self_attn.linear_k": "attention.key",
            "self_attn.linear_v": "attention.value",
            "self_attn.linear_out": "attention.out",
            "self_attn.linear_pos": "attention.distance",
            "self_attn.pos_bias_u": "attention.content_bias",
            "self_attn.pos_bias_v": "attention.distance_bias",
            "conv.batch_norm": "convolution.inner_norm",
        }
    ),
    "encoder.pre_encode.conv.0": "encoder.stem.first",
    "encoder.pre_encode.conv.2": "encoder.stem.depthwise.0",
    "encoder.pre_encode.conv.3": "encoder.stem.pointwise.0",
    "encoder.pre_encode.conv.5": "encoder.stem.depthwise.1",
    "encoder.pre_encode.conv.6": "encoder.stem.pointwise.1",
    "encoder.pre_encode.out": "encoder.stem.out",
    "decoder.prediction.embed": "transducer.prediction.embedding",
    "decoder.prediction.dec_rnn.lstm": "transducer.prediction.lstm",
    "joint.enc": "transducer.joint.encoder",
    "joint.pred": "transducer.joint.prediction",
    "joint.joint_net.1": "transducer.joint.out",  # trained without dropout
    "joint.joint_net.2": "transducer.joint.out",
    "ctc_decoder.decoder_layers.0": "ctc_head",
}
"""https://github.com/NVIDIA/NeMo: ConformerEncoder, RNNTDecoder, RNNTJoint, and the CTC head of hybrids."""

TRANSFORMERS = {
    **_BOTH,
    **_layer(
        {
            "self_attn.q_proj": "attention.query",
            "self_attn.k_proj": "attention.key",
            "self_attn.v_proj": "attention.value",
            "self_attn.o_proj": "attention.out",
            "self_attn.relative_k_proj": "attention.distance",
            "self_attn.bias_u": "attention.content_bias",
            "self_attn.bias_v": "attention.distance_bias",
            "conv.norm": "convolution.inner_norm",
        }
    ),
    "encoder.subsampling.conv_in": "encoder.stem.first",
    "encoder.subsampling.layers.0.depthwise_conv": "encoder.stem.depthwise.0",
    "encoder.subsampling.layers.0.pointwise_conv": "encoder.stem.pointwise.0",
    "encoder.subsampling.layers.1.depthwise_conv": "encoder.stem.depthwise.1",
    "encoder.subsampling.layers.1.pointwise_conv": "encoder.stem.pointwise.1",
    "encoder.subsampling.linear": "encoder.stem.out",
    "encoder_projector": "transducer.joint.encoder",
    "decoder.embedding": "transducer.prediction.embedding",
    "decoder.lstm": "transducer.prediction.lstm",
    "decoder.decoder_projector": "transducer.joint.prediction",
    "joint.head": "transducer.joint.out",
}
"""transformers' `nemotron_asr_streaming`."""


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under our names in single precision, and the names of those that are not known."""
    found, unknown = {}, []
    for name, value in weights.items():
        own = _own_name(name, names)
        if own is None:
            unknown.append(name)
        else:
            found[own] = _plain(own, value.float())
    return found, unknown


def _own_name(name: str, names: Mapping[str, str]) -> str | None:
    layer = re.match(r"encoder\.layers\.(\d+)\.", name)
    general = name if layer is None else _LAYER + name[layer.end() :]
    module, _, parameter = general.rpartition(".")
    own = names.get(general) or (f"{names[module]}.{parameter}" if module in names else None)
    return own if own is None or layer is None else own.replace(_LAYER, layer.group(), 1)


def _plain(name: str, value: Tensor) -> Tensor:
    """Pointwise convolutions (O, I, 1) as the matrices that they are; depthwise ones stay."""
    return value[..., 0] if value.ndim == 3 and "depthwise" not in name else value

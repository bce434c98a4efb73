"""The speech encoder of Seamless; its text decoder is NLLB's, `sprachbund.nn.text_to_text.FixedPositionDecoder`.

It has attention and convolution of transformers, and feed-forwards and order of its own. The feed-forwards are
ours so that they can be measured and split by language like those of any family; the order is ours so that padding
stays out of the adaptor's convolutions: with transformers a row's text can depend on the rows beside it. Shapes: B
utterances, T frames of 20 ms, S memory frames, M stacked mel bins, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import layout_of, optional_setting
from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.encoder import EncoderLayers
from sprachbund.nn.feed_forward import FeedForward, Route


class SeamlessLayer(nn.Module):
    """One conformer layer (arXiv 2005.08100) around the attention and the convolution of `layer`.

    Args:
        layer: a conformer layer of transformers, of either version of Seamless.
        embed_positions: positions of the attention of version 1, which all layers share.
        config: configuration of the checkpoint.
    """

    def __init__(self, layer: Any, embed_positions: nn.Module | None, config: Any) -> None:
        super().__init__()
        width, inner_width = config.hidden_size, config.speech_encoder_intermediate_size
        self.feed_forward_in = FeedForward(width, inner_width)
        self.self_attn_layer_norm = layer.self_attn_layer_norm
        self.self_attn = layer.self_attn
        self.conv_module = layer.conv_module
        self.feed_forward_out = FeedForward(width, inner_width)
        self.final_layer_norm = layer.final_layer_norm
        self.embed_positions = embed_positions
        self.dropout = config.speech_encoder_dropout

    def forward(self, x: Tensor, allowed: Tensor, route: Route | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `allowed` is boolean (B, 1, T, T), `route` the languages of the rows.

        Args:
            x: (B, T, D).
            allowed: boolean (B, 1, T, T), the frames that each frame attends to.
            route: languages of the rows, where feed-forwards are split by them.
        """
        positions = {}
        if self.embed_positions is not None:
            positions["relative_position_embeddings"] = self.embed_positions(x)
        valid = allowed[:, 0].diagonal(dim1=1, dim2=2)  # every frame that is not padding sees itself
        x = x + 0.5 * self._dropped(self.feed_forward_in(x, route))
        attended, _ = self.self_attn(self.self_attn_layer_norm(x), attention_mask=allowed, **positions)
        x = x + self._dropped(attended)
        x = x + self.conv_module(x, attention_mask=valid)
        x = x + 0.5 * self._dropped(self.feed_forward_out(x, route))
        return self.final_layer_norm(x)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


SHARED_POSITIONS: Mapping[str, bool] = {"seamless_m4t": True, "seamless_m4t_v2": False}
"""Model type to whether the layers of the encoder share a module of positions, or each has a table of its own."""


def shared_positions(encoder: Any) -> nn.Module | None:
    """The positions that all layers of a speech encoder of transformers share; None where they share none."""
    shared = layout_of(SHARED_POSITIONS, encoder.config.model_type, "a Seamless")
    positions: nn.Module | None = encoder.encoder.embed_positions if shared else None
    return positions


class SeamlessEncoder(nn.Module):
    """Stacked log-mel in, memory out: conformer layers, then an adaptor with one state for every eight frames.

    Args:
        encoder: the speech encoder of transformers, of either version; its parts become parts of this.

    Raises:
        SprachbundError: a configuration that no published checkpoint has.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        config = encoder.config
        _check(config)
        self.chunk = optional_setting(config, "speech_encoder_chunk_size")  # version 2 alone has chunks
        num_left_chunks = optional_setting(config, "speech_encoder_left_chunk_num")
        self.num_left_chunks: int = -1 if num_left_chunks is None else num_left_chunks
        self.feature_projection = encoder.feature_projection
        embed_positions = shared_positions(encoder)
        self.layers = EncoderLayers(
            SeamlessLayer(layer, embed_positions, config) for layer in encoder.encoder.layers
        )
        self.norm = encoder.encoder.layer_norm
        self.intermediate_ffn = encoder.intermediate_ffn
        self.adapter = encoder.adapter
        self.inner_layer_norm = encoder.inner_layer_norm

    def forward(
        self, values: Tensor, num_frames: Tensor, route: Route | None = None
    ) -> tuple[Tensor, Tensor]:
        """States (B, S, D) and valid states (B,) of features (B, T, M) with `num_frames` (B,) valid frames.

        A route of n B rows gives the states under n routes, (n B, S, D); see `EncoderLayers`.

        Args:
            values: features (B, T, M).
            num_frames: valid frames (B,).
            route: languages of the rows, where feed-forwards are split by them.
        """
        valid = valid_frames(num_frames, values.shape[1])
        x = self.feature_projection(values).masked_fill(~valid[..., None], 0.0)
        x = self.norm(self.layers(x, self._allowed(valid), route))
        x = x + 0.5 * self.intermediate_ffn(x)
        num_frames = num_frames.repeat(x.shape[0] // num_frames.shape[0])
        for layer in self.adapter.layers:
            x, num_frames = _adapt(layer, x, num_frames)
        return self.inner_layer_norm(x), num_frames

    def _allowed(self, valid: Tensor) -> Tensor:
        """(B, 1, T, T): frames seen from frames. Version 2 sees its own chunk and some to the left."""
        length = valid.shape[1]
        seen = valid[:, None, None, :].expand(-1, 1, length, -1)
        if self.chunk is None:
            return seen
        chunks = torch.arange(length, device=valid.device) // self.chunk
        back = chunks[:, None] - chunks
        near = back >= 0 if self.num_left_chunks < 0 else (back >= 0) & (back <= self.num_left_chunks)
        return seen & near


def _adapt(layer: Any, x: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
    """An adaptor layer of transformers on x (B, T, D), padding kept out; (B, S, D) and valid states (B,)."""
    valid = valid_frames(num_frames, x.shape[1])
    residual = _shortened(layer.residual_conv, layer.residual_layer_norm(x), valid)
    x = _shortened(layer.self_attn_conv, layer.self_attn_layer_norm(x), valid)
    conv = layer.residual_conv
    num_states = (num_frames + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1
    allowed = valid_frames(num_states, x.shape[1])[:, None, None, :].expand(-1, 1, x.shape[1], -1)
    attended, _ = layer.self_attn(x, attention_mask=allowed)
    x = residual + layer.self_attn_dropout(attended)
    return x + layer.ffn(layer.ffn_layer_norm(x)), num_states


def _shortened(conv: nn.Conv1d, x: Tensor, valid: Tensor) -> Tensor:
    x = x.masked_fill(~valid[..., None], 0.0)
    return F.glu(conv(x.transpose(1, 2)), dim=1).transpose(1, 2)


def _check(config: Any) -> None:
    wanted = {
        "speech_encoder_hidden_act": ("swish", "silu"),
        "position_embeddings_type": ("relative", "relative_key"),
        "add_adapter": (True,),
        "activation_function": ("relu",),
    }
    for key, values in wanted.items():
        if (value := optional_setting(config, key)) not in values:
            raise SprachbundError(
                f"config.json has {key} = {value!r}; only {values[0]!r} is known, "
                "which all published Seamless checkpoints have"
            )

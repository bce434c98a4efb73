"""E-Branchformer, and an encoder of tokens that stand for speech or for text alike.

arXiv 2309.15826, section 2. Shapes: B rows, S tokens, T frames, E embedding width, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.conformer import ConformerLayer, Subsampling, depthwise, sinusoids, valid_frames
from sprachbund.nn.feed_forward import FeedForward, Route

# E-Branchformer (arXiv 2210.00077): attention and a gated convolution in parallel, merged by a convolution.
#
# Takes the place of a conformer layer: padding changes nothing here either. Shapes: B batch, T frames, D
# width, H heads, F hidden width of the gated branch.


class GatedConvolution(nn.Module):
    """Expand to F, gate one half by the other convolved over time, contract (cgMLP, arXiv 2207.02971, section 3.2.2).

    The gate starts at one, as there: the convolution's weights near nought, its bias one.
    """

    def __init__(self, width: int, hidden_width: int, kernel_size: int) -> None:
        super().__init__()
        half = hidden_width // 2
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * half)
        self.gate_norm = nn.LayerNorm(half)
        self.depthwise = depthwise(half, kernel_size)
        self.contract = nn.Linear(half, width)
        if not self.depthwise.weight.is_meta:
            nn.init.normal_(self.depthwise.weight, std=1e-6)
        nn.init.ones_(self.depthwise.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D); `valid` (B, T, 1) hides padding from its neighbours."""
        kept, gate = F.gelu(self.expand(self.norm(x))).chunk(2, dim=-1)
        gate = self.gate_norm(gate) * valid
        return self.contract(kept * self.depthwise(gate.transpose(1, 2)).transpose(1, 2))


class EBranchformerLayer(nn.Module):
    """Half feed-forward, the two branches merged, half feed-forward, norm (arXiv 2210.00077, section 2).

    Args:
        width: D.
        num_heads: H.
        feed_forward_width: hidden width of each feed-forward, and F of the gated branch.
        kernel_size: kernel size of both depthwise convolutions, odd.
        dropout: after the second feed-forward, in training, as in a conformer layer.
    """

    def __init__(
        self, width: int, num_heads: int, feed_forward_width: int, kernel_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(width, feed_forward_width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, num_heads)
        self.gated = GatedConvolution(width, feed_forward_width, kernel_size)
        self.merge_depthwise = depthwise(2 * width, kernel_size)
        self.merge = nn.Linear(2 * width, width)
        self.feed_forward_out = FeedForward(width, feed_forward_width)
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, x: Tensor, valid: Tensor, route: Route | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `valid` is boolean (B, T), `route` the languages of the rows.

        Args:
            x: (B, T, D).
            valid: boolean (B, T), frames that are not padding.
            route: languages of the rows, where layers are split by them.
        """
        x = x + 0.5 * self.feed_forward_in(x, route)
        normed = self.attention_norm(x)
        far = self.attention(normed, *self.attention.keys_values(normed), valid[:, None, None])
        both = torch.cat([far, self.gated(x, valid[..., None])], dim=-1) * valid[..., None]
        x = x + self.merge(both + self.merge_depthwise(both.transpose(1, 2)).transpose(1, 2))
        x = x + F.dropout(0.5 * self.feed_forward_out(x, route), self.dropout, self.training)
        return self.norm(x)


Block = Literal["conformer", "e_branchformer"]
BLOCKS: dict[Block, type[ConformerLayer] | type[EBranchformerLayer]] = {
    "conformer": ConformerLayer,
    "e_branchformer": EBranchformerLayer,
}


@dataclass(frozen=True, kw_only=True)
class EncodedTokens:
    """The output of an encoder of tokens.

    Attributes:
        states: (B, T, D).
        inner: (B, T, D) after the lower layers, where the source is to be read off.
        num_frames: valid frames (B,).
    """

    states: Tensor
    inner: Tensor
    num_frames: Tensor


class TokenEncoder(nn.Module):
    """Embedding, convolutions of stride 2, lower and upper layers.

    Args:
        vocabulary_size: V.
        embedding_width: E.
        width: D.
        num_heads: H.
        num_lower: layers below the layer where the source is read off.
        num_upper: layers above it.
        feed_forward_width: hidden width of every layer.
        kernel_size: kernel size of the depthwise convolutions.
        strides: convolutions of stride 2; none leaves as many frames as tokens.
        block: kind of the layers.
        dropout: dropout in every layer, in training.
        time_masks: stretches of the embedded tokens that are hidden, in training.
        max_mask_share: longest such stretch, as a share of the row.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        embedding_width: int,
        width: int,
        num_heads: int,
        num_lower: int,
        num_upper: int,
        feed_forward_width: int,
        kernel_size: int,
        strides: int = 1,
        block: Block = "e_branchformer",
        dropout: float = 0.0,
        time_masks: int = 0,
        max_mask_share: float = 0.0,
    ) -> None:
        super().__init__()
        # Drawn below: on the meta device, drawing numbers would import torch's compiler.
        self.embedding = nn.Embedding.from_pretrained(
            torch.empty(vocabulary_size, embedding_width), freeze=False
        )
        self.project = nn.Linear(embedding_width, width)
        self.subsampling = Subsampling(width, width, strides)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            BLOCKS[block](width, num_heads, feed_forward_width, kernel_size, dropout)
            for _ in range(num_lower + num_upper)
        )
        self.num_lower, self.stride = num_lower, 2**strides
        self.time_masks, self.max_mask_share = time_masks, max_mask_share
        if not self.embedding.weight.is_meta:
            nn.init.normal_(self.embedding.weight, std=embedding_width**-0.5)

    def forward(self, tokens: Tensor, num_tokens: Tensor) -> EncodedTokens:
        """Encode `tokens` (B, S) of which the first `num_tokens` (B,) are valid; T is S / stride, rounded up."""
        x = self.embedding(tokens)
        if self.training and self.time_masks:
            hidden = time_mask(num_tokens, x.shape[1], self.time_masks, self.max_mask_share)
            x = x.masked_fill(hidden[..., None], 0.0)
        x, num_frames = self.subsampling(self.project(x), num_tokens)
        x = self.norm(x) + sinusoids(x.shape[1], x.shape[2]).to(x)
        valid = valid_frames(num_frames, x.shape[1])
        inner = x
        for number, layer in enumerate(self.layers):
            x = layer(x, valid)
            inner = x if number < self.num_lower else inner
        return EncodedTokens(states=x, inner=inner, num_frames=num_frames)


def time_mask(lengths: Tensor, size: int, count: int, max_share: float) -> Tensor:
    """Boolean (B, size): `count` stretches of each row, from none to `max_share` of its length (arXiv 1904.08779).

    Args:
        lengths: (B,).
        size: columns of the mask.
        count: stretches of a row.
        max_share: longest stretch, as a share of the row's length.
    """
    device = lengths.device
    longest = (max_share * lengths[:, None]).floor()
    widths = (torch.rand(len(lengths), count, device=device) * (longest + 1)).floor()
    starts = (torch.rand(len(lengths), count, device=device) * (lengths[:, None] - widths + 1)).floor()
    positions = torch.arange(size, device=device)[:, None]
    inside = (positions >= starts[:, None]) & (positions < (starts + widths)[:, None])
    return inside.any(-1)

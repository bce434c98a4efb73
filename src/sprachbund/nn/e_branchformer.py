"""E-Branchformer, arXiv 2210.00077: attention and a gated convolution side by side, merged by another convolution.

Takes the place of a conformer layer: padding changes nothing here either. Shapes: B batch, T frames, D width, H heads,
F hidden width of the gated branch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.feed_forward import FeedForward, Route


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
        self.depthwise = _depthwise(half, kernel_size)
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
        feed_forward_width: of each feed-forward, and F of the gated branch.
        kernel_size: of both depthwise convolutions, odd.
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
        self.merge_depthwise = _depthwise(2 * width, kernel_size)
        self.merge = nn.Linear(2 * width, width)
        self.feed_forward_out = FeedForward(width, feed_forward_width)
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, x: Tensor, valid: Tensor, route: Route | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `valid` is boolean (B, T), `route` the languages of the rows."""
        x = x + 0.5 * self.feed_forward_in(x, route)
        normed = self.attention_norm(x)
        far = self.attention(normed, *self.attention.keys_values(normed), valid[:, None, None])
        both = torch.cat([far, self.gated(x, valid[..., None])], dim=-1) * valid[..., None]
        x = x + self.merge(both + self.merge_depthwise(both.transpose(1, 2)).transpose(1, 2))
        x = x + F.dropout(0.5 * self.feed_forward_out(x, route), self.dropout, self.training)
        return self.norm(x)


def _depthwise(width: int, kernel_size: int) -> nn.Conv1d:
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel size {kernel_size} is even; it needs a centre")
    return nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)

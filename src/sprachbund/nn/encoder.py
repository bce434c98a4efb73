"""One pre-norm transformer encoder layer, the plain kind that Whisper's encoder is made of."""

from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.feed_forward import Activation, FeedForward, Route


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward (arXiv 1706.03762, section 3.1; pre-norm).

    Args:
        width: D.
        num_heads: H.
        feed_forward_width: width of the feed-forward.
        dropout: after the feed-forward, in training.
        activation: of the feed-forward.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        feed_forward_width: int,
        *,
        dropout: float = 0.0,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, num_heads)
        self.feed_forward = FeedForward(width, feed_forward_width, activation)
        self.dropout = dropout

    def forward(self, x: Tensor, allowed: Tensor | None = None, route: Route | None = None) -> Tensor:
        """One layer on x (B, T, D); `allowed` is boolean (B, 1, 1, T), False on padding; (B, T, D).

        `route` holds the languages of the rows.
        """
        normed = self.self_norm(x)
        x = x + self.self_attention(normed, *self.self_attention.keys_values(normed), allowed)
        return x + F.dropout(self.feed_forward(x, route), self.dropout, self.training)

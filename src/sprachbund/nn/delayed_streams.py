"""A decoder that reads codes of speech and writes a token of text at every frame (arXiv 2509.08753).

Each position adds up the embeddings of the token written before and of the codes of the frame, one for each codebook.
The layers are those of Moshi (arXiv 2410.00037, section 3.2): RMSNorm, attention with rotary positions and a sliding
window, RMSNorm, SwiGLU. Modules have the names that their weights have in files of transformers.

Shapes: R rows, T frames, Q codebooks, K entries of one, D width, V vocabulary of the text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.causal_lm import Angles, CausalLayers, CausalShape, GroupedAttention, Store
from sprachbund.nn.sliding_window import SlidingCache, through_window


@dataclass(frozen=True, kw_only=True)
class CodeShape:
    """The part of the embeddings that stands for codes.

    Attributes:
        num_codebooks: Q.
        num_entries: K, the code in front of the first frame among them.
        first: the code in front of the first frame.
    """

    num_codebooks: int
    num_entries: int
    first: int


class _FeedForward(nn.Module):
    """A gated feed-forward (arXiv 2002.05202, equation 6), gate and inner values in one matrix."""

    def __init__(self, shape: CausalShape) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.width, 2 * shape.inner_width, bias=False)
        self.fc2 = nn.Linear(shape.inner_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(R, 1, D) to (R, 1, D)."""
        gate, inner = self.fc1(x).chunk(2, dim=-1)
        contracted: Tensor = self.fc2(F.silu(gate) * inner)
        return contracted


class _Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual.

    torch's norm rounds behind the weight, as these models do; that of `sprachbund.nn.causal_lm` in front of it.
    """

    def __init__(self, shape: CausalShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.self_attn = GroupedAttention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.mlp = _FeedForward(shape)

    def forward(self, x: Tensor, angles: Angles, store: Store, allowed: Tensor) -> Tensor:
        """(R, 1, D) to (R, 1, D); arguments as of `GroupedAttention.forward`."""
        x = x + self.self_attn(self.input_layernorm(x), angles, store, allowed)
        mixed: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return mixed


class DelayedStreamsDecoder(CausalLayers):
    """A decoder from codes of frames to tokens of text, one for each frame.

    Args:
        shape: shape of the layers; its context is the sliding window, its vocabulary that of the text.
        codes: shape of the embeddings of codes.
    """

    def __init__(self, shape: CausalShape, codes: CodeShape) -> None:
        super().__init__(shape, _Layer, nn.RMSNorm(shape.width, shape.norm_epsilon))
        self.codes = codes
        # Embeddings of the text, of the codes of each codebook, and one that stands for no code and is not used here.
        rows = shape.vocabulary_size + codes.num_codebooks * codes.num_entries + 1
        self.embed_tokens = nn.Embedding.from_pretrained(torch.empty(rows, shape.width), freeze=False)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary_size, bias=False)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """The sum (R, T, D), in single precision, of what codes (R, T, Q) are embedded as."""
        first = torch.arange(self.codes.num_codebooks, device=codes.device) * self.codes.num_entries
        embedded: Tensor = self.embed_tokens(codes + first + self.shape.vocabulary_size)
        return embedded.float().sum(dim=-2)

    def before_speech(self, num_rows: int) -> Tensor:
        """Return the input (R, 1, D) in front of the first frame."""
        first = torch.full((num_rows, 1, self.codes.num_codebooks), self.codes.first)
        return self.embed_codes(first.to(self.embed_tokens.weight.device))

    def step(self, states: Tensor, tokens: Tensor, cache: SlidingCache) -> tuple[Tensor, SlidingCache]:
        """Logits (R, V) behind the next frame, and the cache that holds it.

        Args:
            states: codes of the frame, embedded (R, 1, D).
            tokens: tokens written before (R,).
            cache: cache of the R rows.
        """
        embedded = self.embed_tokens(tokens)[:, None].float() + states
        x = embedded.to(self.embed_tokens.weight.dtype)
        x, cache = through_window(self, x, cache, self.shape.context)
        logits: Tensor = self.lm_head(x[:, 0])
        return logits, cache

"""Sizes of an mBART that reads tokens, and the languages and units that it was trained with."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sprachbund.models.token_conformer.shape import Head, ReadTokens
from sprachbund.nn.feed_forward import Activation
from sprachbund.nn.limits import POSITIONS, Flag, Heads, InnerWidth, Layers, Share, SomeLayers, Weight, Width


class MbartShape(BaseModel):
    """Sizes; the defaults are those of mBART-50 (arXiv 2008.00401).

    Attributes:
        width: D of encoder and decoder.
        num_encoder_heads: H of the encoder.
        num_decoder_heads: H of the decoder.
        num_encoder_layers: of the encoder.
        num_decoder_layers: of the decoder.
        encoder_feed_forward_width: of each encoder layer.
        decoder_feed_forward_width: of each decoder layer.
        activation: of the feed-forwards.
        scaled: whether embeddings are multiplied by the root of D.
        positions: longest row of tokens, on either side.
        dropout: after each feed-forward, in training.
        label_smoothing: of the cross-entropy (arXiv 1512.00567, section 7).
        language_weight: of the loss of the head that names the source language, as of one token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Width = 1024
    num_encoder_heads: Heads = 16
    num_decoder_heads: Heads = 16
    num_encoder_layers: Layers = 12
    num_decoder_layers: SomeLayers = 12
    encoder_feed_forward_width: InnerWidth = 4096
    decoder_feed_forward_width: InnerWidth = 4096
    activation: Activation = "relu"
    scaled: Flag = True
    positions: int = Field(default=1024, strict=True, ge=2, le=POSITIONS.most)
    dropout: Share = 0.1
    label_smoothing: Share = 0.1
    language_weight: Weight = 0.1

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        for name, heads in (("encoder", self.num_encoder_heads), ("decoder", self.num_decoder_heads)):
            if self.width % heads:
                raise ValueError(f"num_{name}_heads {heads} does not divide width {self.width}")
        return self


MBART_50, MBART_50_TOKENS = MbartShape(), 250_054
"""The published shape, and the size of its vocabulary."""


class MbartConfig(MbartShape, ReadTokens):
    """Shape, languages and units of a model."""

    @property
    def max_tokens(self) -> int:
        """Longest row that it writes: one less than its positions, for its prompt has two tokens."""
        return self.positions - 1

    @property
    def max_source_tokens(self) -> int:
        """Longest row that it reads, the end included, behind the language's token."""
        return self.positions - 1

    @property
    def head(self) -> Head:
        """What writes the text."""
        return "attention"

    @property
    def source_ctc_weight(self) -> float:
        """It has no CTC."""
        return 0.0

    @property
    def strides(self) -> int:
        """It keeps a state for every token."""
        return 0

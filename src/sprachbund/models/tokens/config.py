"""Configurations of the models with token input: a conformer, and mBART."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sprachbund.nn.limits import (
    Flag,
    Heads,
    InnerWidth,
    Kernel,
    Layers,
    Positions,
    Share,
    SomeLayers,
    Weight,
    Width,
)
from sprachbund.nn.text_to_text import TextToTextShape
from sprachbund.nn.token_encoder import Block

Head = Literal["attention", "ctc", "transducer", "ctc_attention"]
HEADS: tuple[Head, ...] = ("attention", "ctc", "transducer", "ctc_attention")


class TokenShape(BaseModel):
    """Sizes of a model, its head, and the weights of its losses; the published ones as defaults (arXiv 2309.15826).

    Attributes:
        head: head that writes the text: "attention", "ctc", "transducer" or "ctc_attention".
        block: kind of the encoder's layers.
        embedding_width: width of the embeddings of the tokens read.
        width: width D of encoder and decoder.
        num_heads: attention heads of encoder and decoder.
        num_lower: encoder layers below the CTC on the transcript.
        num_upper: encoder layers above it.
        num_decoder_layers: layers of the attention decoder, in heads that have one.
        feed_forward_width: hidden width of each encoder layer's feed-forwards and gated branch.
        decoder_feed_forward_width: hidden width of each decoder layer's feed-forward.
        kernel_size: kernel of the depthwise convolutions, in frames.
        strides: convolutions of stride 2 in front; 0 leaves a frame for every token.
        tied: whether an attention decoder uses its embedding as output matrix too.
        max_tokens: longest text in tokens, its language token included.
        prediction_width: width of a transducer's LSTM.
        joint_width: width of a transducer's joint network, where frames and text meet.
        dropout: probability of dropout in every layer.
        time_masks: stretches of the embedded tokens that are hidden in training.
        max_mask_share: longest of them, as a share of the row.
        label_smoothing: label smoothing of the decoder's cross-entropy (arXiv 1512.00567, section 7).
        ctc_weight: weight of the CTC loss on the target, beside the transducer's loss or the decoder's.
        source_ctc_weight: weight of the CTC loss on the transcript, where there is one; 0 leaves it out.
        language_weight: weight of the loss of the head that names the source language, counted as one token.
        decoding_ctc_weight: weight of the CTC prefix score beside the decoder's in joint search.
        soft_sharing: whether text goes through an encoder of its own, and only the head is shared: the model that the
            published one is compared with.
        text_layers: layers of that encoder of text; as many as speech has if None.
        frames_at_once: frames of a transducer whose logits are held at a time in training; all if None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: Head = "attention"
    block: Block = "e_branchformer"
    embedding_width: Width = 512
    width: Width = 256
    num_heads: Heads = 4
    num_lower: Layers = 12
    num_upper: Layers = 6
    num_decoder_layers: SomeLayers = 6
    feed_forward_width: InnerWidth = 1024
    decoder_feed_forward_width: InnerWidth = 2048
    kernel_size: Kernel = 31
    strides: int = Field(default=1, strict=True, ge=0, le=3)
    tied: Flag = True
    max_tokens: Positions = 256
    prediction_width: Width = 512
    joint_width: Width = 640
    dropout: Share = 0.1
    time_masks: int = Field(default=5, strict=True, ge=0, le=1000)
    max_mask_share: float = Field(default=0.05, strict=True, ge=0, le=1)
    label_smoothing: Share = 0.1
    ctc_weight: Share = 0.3
    source_ctc_weight: Share = 0.3
    language_weight: Weight = 0.1
    decoding_ctc_weight: float = Field(default=0.3, strict=True, ge=0, le=1)
    soft_sharing: Flag = False
    text_layers: Layers | None = None
    frames_at_once: Positions | None = None

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide width {self.width}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} is even; the convolutions need a centre")
        if self.text_layers is not None and not self.soft_sharing:
            raise ValueError(
                f"text_layers {self.text_layers} is for an encoder of text alone; set soft_sharing to true"
            )
        return self

    @property
    def has_decoder(self) -> bool:
        """Whether an attention decoder is among its parts."""
        return self.head in ("attention", "ctc_attention")


class ReadTokens(BaseModel):
    """Languages and units of a model that reads tokens, whatever its shape.

    Attributes:
        pairs: (source, target) languages that it was trained on, of speech or of text.
        ratio: times that each piece of a source text is repeated.
        mark_repeats: whether each piece of a source text is followed by marks in the place of its repetitions.
        keep_repeats: whether it reads a unit for every frame of speech.
        max_window_s: longest speech it takes at once.
        frame_s: seconds of a frame of the features that units are made of.
        units: hashes of k-means and vocabulary, and the sampling rate; see `directory.Identity`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: tuple[tuple[str, str], ...] = Field(min_length=1)
    ratio: float = Field(default=4.0, strict=True, allow_inf_nan=False)  # the reader knows which
    mark_repeats: Flag = False
    keep_repeats: Flag = False
    max_window_s: float = Field(default=15.0, strict=True, gt=0, le=3600)
    frame_s: float = Field(default=0.02, strict=True, gt=0, le=60)
    units: dict[str, str | int] = {}

    @property
    def source_languages(self) -> tuple[str, ...]:
        """Heard or read."""
        return tuple(sorted({source for source, _ in self.pairs}))

    @property
    def target_languages(self) -> tuple[str, ...]:
        """Languages written."""
        return tuple(sorted({target for _, target in self.pairs}))


class TokenConfig(TokenShape, ReadTokens):
    """Shape, languages and units of a model."""

    @property
    def max_source_tokens(self) -> None:
        """It has no positions, and reads rows of any length."""


# mBART.


class MbartShape(TextToTextShape):
    """Sizes; the defaults are those of mBART-50 (arXiv 2008.00401).

    Attributes:
        label_smoothing: label smoothing of the cross-entropy (arXiv 1512.00567, section 7).
        language_weight: weight of the loss of the head that names the source language, as of one token.
    """

    label_smoothing: Share = 0.1
    language_weight: Weight = 0.1


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
        """The head that writes the text."""
        return "attention"

    @property
    def source_ctc_weight(self) -> float:
        """It has no CTC."""
        return 0.0

    @property
    def strides(self) -> int:
        """It keeps a state for every token."""
        return 0

"""Configuration of a conformer model: sizes, heads, weights of the losses, languages."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sprachbund.audio.features import StreamedNormalisation
from sprachbund.nn.limits import (
    Flag,
    Frames,
    Heads,
    InnerWidth,
    Kernel,
    Layers,
    MelBins,
    Positions,
    PruneRange,
    Share,
    SomeLayers,
    Weight,
    Width,
)
from sprachbund.nn.streaming_conformer import ConvolutionContext, SubsamplingKind, Tier
from sprachbund.nn.transducer import JointActivation

_STEM_CHANNELS = 256  # the default; a stored configuration names it whatever the subsampling


class StreamingPart(BaseModel):
    """Configuration of a streaming encoder: causal, chunk-masked, cached (arXiv 2312.17279).

    Attributes:
        left_context: frames of 80 ms behind a chunk.
        right_contexts: frames ahead that it is trained for, one drawn for every batch; the first is the one of whole
            recordings.
        convolution: "causal", where a layer's convolution sees the frames before, or "chunk", where it sees the later
            ones of its chunk too (arXiv 2304.09325), as that of an offline encoder does.
        subsampling: "dw_striding", as in NeMo's checkpoints, or "striding_conv1d", that of an offline encoder.
        stem_channels: channels of a subsampling "dw_striding".
        scale_input: whether the first layer's input is multiplied by the square root of the width, as in NeMo's
            checkpoints.
        front_end: normalisation of the log-mel features, see `sprachbund.audio.features.log_mel`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    left_context: Frames = 70
    right_contexts: tuple[Frames, ...] = Field(default=(13, 6, 1, 0), min_length=1)
    convolution: ConvolutionContext = "causal"
    subsampling: SubsamplingKind = "dw_striding"
    stem_channels: Width = _STEM_CHANNELS
    scale_input: Flag = False
    front_end: StreamedNormalisation = "fixed"

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.tiers()
        if self.subsampling == "striding_conv1d" and self.stem_channels != _STEM_CHANNELS:
            raise ValueError(
                f'stem_channels is {self.stem_channels}, but a subsampling "striding_conv1d" has as many as the '
                "encoder is wide; leave it out"
            )
        return self

    def tiers(self) -> list[Tier]:
        """The same as the encoder wants it."""
        return [Tier(left=self.left_context, right=right) for right in self.right_contexts]


class TransducerPart(BaseModel):
    """A transducer head, which writes frame by frame (arXiv 1211.3711).

    Attributes:
        prediction_width: width of the LSTM over the text so far.
        prediction_layers: layers of this LSTM.
        joint_width: width of the joint network, where frames and text meet.
        weight: weight of its loss beside that of the attention decoder; 1 leaves the decoder's loss out.
        fast_emit: weight of FastEmit, which makes tokens come earlier (arXiv 2010.11148).
        activation: activation of the joint network.
        prompted: whether it reads the language wanted before it begins; one that does not writes what is spoken.
        fusion_width: width of a layer between encoder and transducer that is given the language wanted too, see
            `sprachbund.nn.transducer.LanguageFusion`; none if None.
        frames_at_once: frames whose logits are held at a time in training; all if None.
        prune_range: tokens of the text that a frame may write in the loss of training (arXiv 2206.13236); all if None.
            A small network beside the joint network, which is in the model then, finds out which.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prediction_width: Width = 640
    prediction_layers: SomeLayers = 2
    joint_width: Width = 640
    activation: JointActivation = "tanh"
    prompted: Flag = True
    fusion_width: InnerWidth | None = None
    weight: float = Field(default=1.0, strict=True, gt=0.0, le=1.0)
    fast_emit: Weight = 0.005
    frames_at_once: Positions | None = None
    prune_range: PruneRange | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.frames_at_once is not None and self.prune_range is not None:
            raise ValueError(
                "frames_at_once and prune_range both save the memory of logits; prune_range saves time too, "
                "frames_at_once is exact: give one of them"
            )
        return self


class ConformerShape(BaseModel):
    """Sizes of a model, and the weights of its losses.

    Attributes:
        num_mel_bins: mel bins of the input features.
        width: width D of the encoder's states.
        num_heads: attention heads of the encoder.
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the attention decoder.
        feed_forward_width: hidden width of each of an encoder layer's two feed-forwards.
        decoder_width: width of the decoder's states; `width` if None.
        decoder_heads: attention heads of the decoder; `num_heads` if None.
        decoder_feed_forward_width: hidden width of a decoder layer's feed-forward; four times the decoder's width if
            None.
        kernel_size: kernel of the encoder's depthwise convolutions, in frames of 80 ms.
        max_tokens: longest text in tokens, its language token included.
        dropout: probability of dropout in encoder, decoder and transducer.
        ctc_weight: weight of the CTC loss on the transcript (arXiv 1609.06773, equation 8).
        language_weight: weight of the loss of the language head.
        label_smoothing: label smoothing of the decoder's cross-entropy (arXiv 1512.00567, section 7).
        streaming: options of an encoder that streams; None for one that hears all at once.
        transducer: options of a head that writes frame by frame; where its loss has all the weight, it writes the text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_mel_bins: MelBins = 80
    width: Width = 256
    num_heads: Heads = 4
    num_encoder_layers: Layers = 8
    num_decoder_layers: Layers = 3
    feed_forward_width: InnerWidth = 512
    decoder_width: Width | None = None
    decoder_heads: Heads | None = None
    decoder_feed_forward_width: InnerWidth | None = None
    kernel_size: Kernel = 15
    max_tokens: Positions = 128
    dropout: Share = 0.0
    ctc_weight: Weight = 0.5
    language_weight: Weight = 1.0
    label_smoothing: Share = 0.1
    streaming: StreamingPart | None = None
    transducer: TransducerPart | None = None

    @property
    def writes_by_frames(self) -> bool:
        """Whether text comes from the transducer head, not from the attention decoder."""
        return self.transducer is not None and self.transducer.weight == 1.0


class ConformerConfig(ConformerShape):
    """Shape and languages of a model.

    Attributes:
        source_languages: languages it hears.
        target_languages: languages it writes.
    """

    source_languages: tuple[str, ...]
    target_languages: tuple[str, ...]

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        width, num_heads = self.decoder_width or self.width, self.decoder_heads or self.num_heads
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide width {self.width}; change one")
        if width % num_heads:
            raise ValueError(
                f"{num_heads} heads of the decoder do not divide its width {width}; set decoder_heads"
            )
        centred = self.streaming is None or self.streaming.convolution == "chunk"
        if centred and self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} is even; the convolutions need a centre")
        return self

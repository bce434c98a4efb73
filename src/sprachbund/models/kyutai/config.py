"""config.json of Kyutai STT in transformers' layout, as far as something is computed with it.

What is built in one way only has one value here; any other is an error that names the field.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sprachbund.models.causal_lm import RotaryConfig
from sprachbund.models.hub import ConfigPart, Token
from sprachbund.nn.causal_lm import CausalShape, Rotary
from sprachbund.nn.delayed_streams import CodeShape
from sprachbund.nn.limits import Heads, InnerWidth, Kernel, SomeLayers, Vocabulary, Width
from sprachbund.nn.mimi import HALVING, MimiShape

FRAME_SAMPLES = 1920
"""Samples of a frame, 80 ms at 24 kHz."""
Epsilon = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
WindowSize = Annotated[int, Field(strict=True, ge=2, le=65_536)]
Few = Annotated[int, Field(strict=True, ge=1, le=64)]


class PlainRotaryConfig(RotaryConfig):
    """Rotary positions that are not stretched."""

    rope_type: Literal["default"] = "default"


class _Attending(ConfigPart):
    """Keys that codec and decoder share."""

    hidden_size: Width
    num_hidden_layers: SomeLayers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    head_dim: Width
    sliding_window: WindowSize
    rope_parameters: PlainRotaryConfig = PlainRotaryConfig()
    attention_bias: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Fill in values that are left out, and accept the names that earlier releases of transformers wrote."""
        if not isinstance(given, dict):
            return given
        values = {key: value for key, value in given.items() if value is not None}
        if given.get("sliding_window", 0) is None:
            values["sliding_window"] = None  # no window, which is not built
        for name in ("hidden_size", "num_attention_heads"):
            if name in cls.model_fields and not cls.model_fields[name].is_required():
                values.setdefault(name, cls.model_fields[name].default)
        rotary = values.pop("rope_scaling", None)
        rotary = values.get("rope_parameters", rotary) or {}
        if isinstance(rotary, dict):
            rotary = {**rotary, "rope_type": rotary.get("rope_type", rotary.get("type", "default"))}
            if "rope_theta" in values:
                rotary.setdefault("rope_theta", values["rope_theta"])
        values["rope_parameters"] = rotary
        heads, width = values.get("num_attention_heads"), values.get("hidden_size")
        values.setdefault("num_key_value_heads", heads)
        if isinstance(heads, int) and isinstance(width, int) and heads > 0:
            values.setdefault("head_dim", width // heads)
        return values

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even number")
        return self

    @property
    def rotary(self) -> Rotary:
        """The positions in our names."""
        return self.rope_parameters.rotary


class MimiConfig(_Attending):
    """Configuration of the codec; of the half that makes sound, the sizes of its weights alone."""

    model_type: Literal["mimi"] = "mimi"
    sampling_rate: Literal[24_000] = 24_000
    frame_rate: Annotated[float, Field(ge=12.5, le=12.5)] = 12.5
    audio_channels: Literal[1] = 1
    hidden_size: Width = 512
    num_filters: Width = 64
    num_residual_layers: Few = 1
    upsampling_ratios: tuple[Annotated[int, Field(strict=True, ge=1, le=960)], ...] = (8, 6, 5, 4)
    kernel_size: Kernel = 7
    last_kernel_size: Kernel = 3
    residual_kernel_size: Kernel = 3
    dilation_growth_rate: Few = 2
    use_causal_conv: Literal[True] = True
    pad_mode: Literal["constant"] = "constant"
    compress: Few = 2
    codebook_size: Vocabulary = 2048
    codebook_dim: Width = 256
    num_quantizers: Annotated[int, Field(strict=True, ge=2, le=1024)] = 32
    use_conv_shortcut: Literal[False] = False
    vector_quantization_hidden_dimension: Width = 256
    num_semantic_quantizers: Few = 1
    upsample_groups: Width = 512
    num_hidden_layers: SomeLayers = 8
    intermediate_size: InnerWidth = 2048
    num_attention_heads: Heads = 8
    hidden_act: Literal["gelu"] = "gelu"
    norm_eps: Epsilon = 1e-5
    sliding_window: WindowSize = 250

    @model_validator(mode="after")
    def _check(self) -> Self:
        if math.prod(self.upsampling_ratios) * HALVING != FRAME_SAMPLES:
            raise ValueError(
                f"upsampling_ratios {list(self.upsampling_ratios)} do not multiply to {FRAME_SAMPLES // HALVING}; only "
                "frames of 80 ms are built here"
            )
        if self.num_semantic_quantizers >= self.num_quantizers:
            raise ValueError(
                f"num_semantic_quantizers is {self.num_semantic_quantizers} and num_quantizers {self.num_quantizers}"
            )
        if self.codebook_dim != self.vector_quantization_hidden_dimension:
            raise ValueError(
                f"codebook_dim is {self.codebook_dim} and vector_quantization_hidden_dimension "
                f"{self.vector_quantization_hidden_dimension}; they are one width here"
            )
        if self.hidden_size % self.upsample_groups:
            raise ValueError(
                f"upsample_groups {self.upsample_groups} does not divide hidden_size {self.hidden_size}"
            )
        if self.num_filters % self.compress:
            raise ValueError(f"compress {self.compress} does not divide num_filters {self.num_filters}")
        return self

    @property
    def shape(self) -> MimiShape:
        """The same in our names."""
        return MimiShape(
            width=self.hidden_size,
            num_filters=self.num_filters,
            strides=self.upsampling_ratios[::-1],
            kernel=self.kernel_size,
            last_kernel=self.last_kernel_size,
            residual_kernel=self.residual_kernel_size,
            num_residual=self.num_residual_layers,
            dilation_growth=self.dilation_growth_rate,
            compress=self.compress,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_key_heads=self.num_key_value_heads,
            head_width=self.head_dim,
            inner_width=self.intermediate_size,
            window=self.sliding_window,
            norm_epsilon=self.norm_eps,
            rotary=self.rotary,
            num_semantic=self.num_semantic_quantizers,
            num_acoustic=self.num_quantizers - self.num_semantic_quantizers,
            num_codes=self.codebook_size,
            code_width=self.codebook_dim,
            projected=self.codebook_dim != self.hidden_size,
        )


class _Own(ConfigPart):
    """Our own key."""

    source_languages: list[str] | None = Field(default=None, min_length=1)


class KyutaiConfig(_Attending):
    """Configuration of the model.

    Attributes:
        vocab_size: V of the text.
        ffn_dim: width of the feed-forwards, gate and inner values together.
        codebook_vocab_size: entries of a codebook's embedding.
        audio_bos_token_id: code in front of the first frame.
        bos_token_id: token in front of the first; any row of the embedding.
        pad_token_id: token of a frame without text.
        codec_config: configuration of the codec.
        sprachbund: our own key.
    """

    model_type: Literal["kyutai_speech_to_text"]
    vocab_size: Vocabulary = 4001
    hidden_size: Width = 2048
    num_hidden_layers: SomeLayers = 48
    num_attention_heads: Heads = 32
    ffn_dim: Annotated[int, Field(strict=True, ge=2, le=2**20, multiple_of=2)] = 11_264
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon = 1e-8
    sliding_window: WindowSize = 375
    num_codebooks: Annotated[int, Field(strict=True, ge=2, le=1024)] = 32
    codebook_vocab_size: Vocabulary = 2049
    audio_bos_token_id: Token = 2048
    bos_token_id: Token = 48_000
    pad_token_id: Token = 3
    eos_token_id: None = None
    tie_word_embeddings: Literal[False] = False
    frame_size: Literal[1920] = 1920
    codec_config: MimiConfig = MimiConfig.model_validate({})
    sprachbund: _Own = _Own()

    @model_validator(mode="after")
    def _check(self) -> Self:
        codec = self.codec_config
        if codec.num_quantizers != self.num_codebooks:
            raise ValueError(
                f"num_codebooks is {self.num_codebooks} and the codec's num_quantizers {codec.num_quantizers}; here "
                "every codebook is read"
            )
        if codec.codebook_size > self.codebook_vocab_size:
            raise ValueError(
                f"codebook_vocab_size is {self.codebook_vocab_size} and the codec's codebook_size {codec.codebook_size}"
            )
        for name, token, size in (
            ("audio_bos_token_id", self.audio_bos_token_id, self.codebook_vocab_size),
            ("pad_token_id", self.pad_token_id, self.vocab_size),
            ("bos_token_id", self.bos_token_id, self.num_embeddings),
        ):
            if token >= size:
                raise ValueError(f"{name} is {token}, which is none of {size}")
        return self

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding."""
        return self.vocab_size + self.num_codebooks * self.codebook_vocab_size + 1

    @property
    def shape(self) -> CausalShape:
        """The decoder in our names."""
        return CausalShape(
            vocabulary_size=self.vocab_size,
            width=self.hidden_size,
            inner_width=self.ffn_dim // 2,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_key_heads=self.num_key_value_heads,
            head_width=self.head_dim,
            context=self.sliding_window,
            norm_epsilon=self.rms_norm_eps,
            rotary=self.rotary,
        )

    @property
    def codes(self) -> CodeShape:
        """Shape of the embeddings of codes in our names."""
        return CodeShape(
            num_codebooks=self.num_codebooks,
            num_entries=self.codebook_vocab_size,
            first=self.audio_bos_token_id,
        )


class ExtractorConfig(ConfigPart):
    """Content of preprocessor_config.json: the silence around the speech.

    Attributes:
        audio_delay_seconds: seconds that the text is behind the speech.
        audio_silence_prefix_seconds: silence in front of the speech.
    """

    feature_size: Literal[1] = 1
    sampling_rate: Literal[24_000] = 24_000
    padding_value: Annotated[float, Field(ge=0, le=0)] = 0.0
    chunk_length_s: None = None
    audio_delay_seconds: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.0
    audio_silence_prefix_seconds: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.0

"""config.json of Voxtral Realtime in transformers' layout, as far as it is computed with.

What this package builds in one way only has one value here; any other is an error that names the field. Keys that are
not named here concern training, and are carried along.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sprachbund.models.causal_lm import CausalConfig, Context, RotaryConfig
from sprachbund.models.hub import ConfigPart
from sprachbund.nn.causal_lm import CausalShape
from sprachbund.nn.limits import Flag, Heads, InnerWidth, MelBins, SomeLayers, Width

MEL_PER_STATE = 2
"""Log-mel frames of a state of the encoder."""
LANGUAGES = ("en", "zh", "hi", "es", "ar", "fr", "pt", "ru", "de", "ja", "ko", "it", "nl")
"""Languages of the published model, whose config.json does not name them."""
Delay = Annotated[int, Field(strict=True, ge=1, le=125)]


class RealtimeSettings(ConfigPart):
    """Our own key.

    Attributes:
        languages: BCP-47 tags of the languages spoken; those published if None.
        delay: frames of 80 ms that the text is behind the speech, which the model is given; less is quicker, more makes
            fewer errors. That of the vocabulary file, or `default_num_delay_tokens`, if None.
        window_s: longest speech of a recording at once.
    """

    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    delay: Delay | None = None
    window_s: Annotated[float, Field(ge=1, le=3600)] = 30.0


class RealtimeEncoderConfig(ConfigPart):
    """Sizes of the encoder in transformers' names; the defaults are those of its class."""

    hidden_size: Width = 1280
    intermediate_size: InnerWidth = 5120
    num_hidden_layers: SomeLayers = 32
    num_attention_heads: Heads = 32
    num_key_value_heads: Heads | None = None
    head_dim: Width = 64
    num_mel_bins: MelBins = 128
    max_position_embeddings: Context = 1500
    rms_norm_eps: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1e-5
    rope_parameters: RotaryConfig = RotaryConfig()
    sliding_window: Context = 750
    activation_function: Literal["gelu"] = "gelu"
    hidden_act: Literal["silu"] = "silu"

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """The base of the rotary positions stands by itself in some files."""
        if not isinstance(given, dict) or "rope_theta" not in given:
            return given
        rotary = given.get("rope_parameters") or {}
        if not isinstance(rotary, dict):
            return given
        return {**given, "rope_parameters": {"rope_theta": given["rope_theta"], **rotary}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_key_value_heads not in (None, self.num_attention_heads):
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}, and every one of {self.num_attention_heads} heads "
                "has keys of its own here"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even number")
        return self

    @property
    def shape(self) -> CausalShape:
        """The same in our names; it has no vocabulary."""
        return CausalShape(
            vocabulary_size=1,
            width=self.hidden_size,
            inner_width=self.intermediate_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_key_heads=self.num_attention_heads,
            head_width=self.head_dim,
            context=self.sliding_window,
            norm_epsilon=self.rms_norm_eps,
            rotary=self.rope_parameters.rotary,
            qkv_bias=True,
            key_bias=False,
            out_bias=True,
            down_bias=True,
        )


_TEXT: dict[str, Any] = {
    "vocab_size": 131_072,
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "sliding_window": 8192,
}


class VoxtralRealtimeConfig(ConfigPart):
    """Configuration of a Voxtral Realtime.

    Attributes:
        model_type: the kind.
        audio_config: configuration of the encoder.
        text_config: configuration of the decoder, a Mistral that is given the delay.
        projector_hidden_act: activation between the matrices of the projector.
        audio_length_per_tok: log-mel frames of a token.
        downsample_factor: states of the encoder that are joined to one frame.
        default_num_delay_tokens: frames that the text is behind the speech.
        tie_word_embeddings: the output matrix is the embedding.
        sprachbund: our own key.
    """

    model_type: Literal["voxtral_realtime"]
    audio_config: RealtimeEncoderConfig = RealtimeEncoderConfig()
    text_config: CausalConfig
    projector_hidden_act: Literal["gelu"] = "gelu"
    audio_length_per_tok: Annotated[int, Field(strict=True, ge=2, le=64)] = 8
    downsample_factor: Annotated[int, Field(strict=True, ge=1, le=32)] = 4
    default_num_delay_tokens: Delay = 6
    tie_word_embeddings: Flag = True
    sprachbund: RealtimeSettings = RealtimeSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Defaults of the decoder, and the kind that its layers are of."""
        text = given.get("text_config", {}) if isinstance(given, dict) else None
        if not isinstance(text, dict):
            return given
        kind = text.get("model_type", "voxtral_realtime_text")
        if kind != "voxtral_realtime_text":
            raise ValueError(f"text_config.model_type is {kind!r}; voxtral_realtime_text is built here")
        rotary = {} if isinstance(text.get("rope_parameters"), dict) else {"rope_theta": 1e6}
        return {**given, "text_config": {**_TEXT, **rotary, **text, "model_type": "mistral"}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.tie_word_embeddings and self.text_config.tie_word_embeddings):
            raise ValueError("tie_word_embeddings is false; the output matrix is the embedding here")
        if self.text_config.sliding_window is None:
            raise ValueError(
                "text_config.sliding_window is null; a stream needs a window, or memory has no bound"
            )
        if self.audio_length_per_tok != MEL_PER_STATE * self.downsample_factor:
            raise ValueError(
                f"audio_length_per_tok is {self.audio_length_per_tok}, and {self.downsample_factor} states of "
                f"{MEL_PER_STATE} log-mel frames make a token: give {MEL_PER_STATE * self.downsample_factor}"
            )
        return self

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages, under our own key or as published."""
        return tuple(dict.fromkeys(self.sprachbund.languages or LANGUAGES))

    @property
    def text_window(self) -> int:
        """Frames that the decoder attends to."""
        assert self.text_config.sliding_window is not None  # `_check` has seen to it
        return self.text_config.sliding_window

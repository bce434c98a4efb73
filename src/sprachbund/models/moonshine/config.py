"""config.json of Moonshine in transformers' layout, as far as something is computed with it.

What is built in one way only has one value here; any other is an error that names the field.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sprachbund.models.hub import ConfigPart, Token
from sprachbund.nn.feed_forward import Activation
from sprachbund.nn.limits import (
    Flag,
    Frames,
    Heads,
    InnerWidth,
    Layers,
    Positions,
    SomeLayers,
    Vocabulary,
    Width,
)


class PartialRotaryConfig(ConfigPart):
    """Rotary positions; without this part, each kind has a share of its own of a head that is turned."""

    rope_type: Literal["default"] = "default"
    rope_theta: float = Field(default=10_000.0, gt=1.0)
    partial_rotary_factor: float = Field(default=1.0, gt=0.0, le=1.0)


class _Own(ConfigPart):
    """Our own key."""

    source_languages: list[str] | None = Field(default=None, min_length=1, max_length=1)


class _Config(ConfigPart):
    """Keys that both kinds have.

    Attributes:
        vocab_size: V.
        hidden_size: D of the decoder.
        intermediate_size: inner width of its feed-forwards.
        max_position_embeddings: longest row.
        decoder_start_token_id: begins a row.
        eos_token_id: ends it.
        sprachbund: our own key.
    """

    vocab_size: Vocabulary = 32_768
    hidden_size: Width
    intermediate_size: InnerWidth
    attention_bias: Literal[False] = False
    eos_token_id: Token = 2
    rope_parameters: PartialRotaryConfig | None = None
    sprachbund: _Own = _Own()


class MoonshineConfig(_Config):
    """Configuration of a Moonshine; encoder and decoder have one width.

    Attributes:
        model_type: the kind.
    """

    model_type: Literal["moonshine"]
    hidden_size: Width = 288
    intermediate_size: InnerWidth = 1152
    encoder_num_hidden_layers: SomeLayers = 6
    decoder_num_hidden_layers: SomeLayers = 6
    encoder_num_attention_heads: Heads = 8
    decoder_num_attention_heads: Heads = 8
    encoder_num_key_value_heads: int | None = None
    decoder_num_key_value_heads: int | None = None
    encoder_hidden_act: Activation = "gelu"
    decoder_hidden_act: Activation = "silu"
    max_position_embeddings: Positions = 512
    decoder_start_token_id: Token = 1
    rope_parameters: PartialRotaryConfig = PartialRotaryConfig(partial_rotary_factor=0.9)
    tie_word_embeddings: Literal[True] = True

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Older files give the numbers of the rotary positions by fields of their own."""
        if not isinstance(given, dict):
            return given
        rotary = given.get("rope_scaling") or given.get("rope_parameters") or {}
        if not isinstance(rotary, dict):
            return given
        own = {name: given[name] for name in ("rope_theta", "partial_rotary_factor") if given.get(name)}
        kind = rotary.get("type", "default")
        return {
            **given,
            "rope_parameters": {"rope_type": kind, "partial_rotary_factor": 0.9, **own, **rotary},
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        for side, heads, of_keys in (
            ("encoder", self.encoder_num_attention_heads, self.encoder_num_key_value_heads),
            ("decoder", self.decoder_num_attention_heads, self.decoder_num_key_value_heads),
        ):
            if of_keys not in (None, heads):
                raise ValueError(
                    f"{side}_num_key_value_heads differs from its heads, which is not built here"
                )
            if self.hidden_size % heads:
                raise ValueError(f"{heads} heads do not divide hidden_size {self.hidden_size}")
        _check_tokens(self.vocab_size, self.eos_token_id, self.decoder_start_token_id)
        return self

    @property
    def start_token(self) -> int:
        """Begins a row."""
        return self.decoder_start_token_id

    @property
    def rotary(self) -> PartialRotaryConfig:
        """Rotary positions of both sides."""
        return self.rope_parameters


class StreamingEncoderConfig(ConfigPart):
    """Configuration of the streaming encoder.

    Attributes:
        sliding_windows: window of each layer: frames that one sees, itself and the past, and one more than those ahead.
    """

    hidden_size: Width = 320
    intermediate_size: InnerWidth = 1280
    hidden_act: Activation = "gelu"
    num_hidden_layers: Layers = 6
    num_attention_heads: Heads = 8
    num_key_value_heads: int | None = None
    head_dim: Width | None = None
    attention_bias: Literal[False] = False
    sample_rate: Literal[16_000] = 16_000
    frame_ms: float = Field(default=5.0, ge=5.0, le=5.0)
    max_position_embeddings: Positions = 4096
    sliding_windows: tuple[tuple[Frames, Frames], ...] = (
        (16, 4),
        (16, 4),
        (16, 0),
        (16, 0),
        (16, 4),
        (16, 4),
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_key_value_heads not in (None, self.num_attention_heads):
            raise ValueError("num_key_value_heads differs from num_attention_heads, which is not built here")
        if len(self.sliding_windows) != self.num_hidden_layers:
            raise ValueError(
                f"{len(self.sliding_windows)} sliding_windows for {self.num_hidden_layers} layers"
            )
        return self

    @property
    def head_width(self) -> int:
        """Width E of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


class StreamingMoonshineConfig(_Config):
    """Configuration of a streaming Moonshine.

    Attributes:
        model_type: the kind.
        encoder_config: configuration of the encoder.
    """

    model_type: Literal["moonshine_streaming"]
    encoder_config: StreamingEncoderConfig
    hidden_size: Width = 320
    intermediate_size: InnerWidth = 1280
    num_hidden_layers: SomeLayers = 6
    num_attention_heads: Heads = 8
    num_key_value_heads: int | None = None
    head_dim: Width | None = None
    hidden_act: Activation = "silu"
    max_position_embeddings: Positions = 4096
    decoder_start_token_id: Token | None = None
    bos_token_id: Token = 1
    tie_word_embeddings: Flag = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_key_value_heads not in (None, self.num_attention_heads):
            raise ValueError("num_key_value_heads differs from num_attention_heads, which is not built here")
        _check_tokens(self.vocab_size, self.eos_token_id, self.start_token)
        return self

    @property
    def rotary(self) -> PartialRotaryConfig:
        """Rotary positions of the decoder."""
        return self.rope_parameters or PartialRotaryConfig(partial_rotary_factor=0.8)

    @property
    def start_token(self) -> int:
        """Begins a row."""
        return self.bos_token_id if self.decoder_start_token_id is None else self.decoder_start_token_id

    @property
    def head_width(self) -> int:
        """E of the decoder."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


def _check_tokens(vocabulary_size: int, end: int, start: int) -> None:
    for name, token in (("eos_token_id", end), ("the token of a row's start", start)):
        if token >= vocabulary_size:
            raise ValueError(f"{name} is {token} and vocab_size {vocabulary_size}")

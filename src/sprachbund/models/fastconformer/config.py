"""config.json of Parakeet, Canary and Cohere ASR in transformers' layout, as far as something is computed with it.

What this package builds in one way only has one value here; any other is an error that names the field. Keys that are
not named here concern training, and are carried along.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import CONFIG_KEY, ConfigPart, Token
from sprachbund.nn.fast_conformer import FastConformerShape
from sprachbund.nn.feed_forward import Activation
from sprachbund.nn.limits import (
    WIDTH,
    Flag,
    Heads,
    InnerWidth,
    Kernel,
    MelBins,
    Positions,
    SomeLayers,
    Vocabulary,
    Width,
)
from sprachbund.nn.transducer import JointActivation, TransducerShape

EUROPEAN = (
    "bg hr cs da nl en et fi fr de el hu it lv lt mt pl pt ro sk sl es sv ru uk".split()  # noqa: SIM905
)
"""Languages of Parakeet-TDT 0.6B v3 and Canary 1B v2 (arXiv 2509.14128)."""
_PUBLISHED: dict[tuple[str, int], list[str]] = {
    ("parakeet_tdt", 8193): EUROPEAN,
    ("parakeet_tdt", 1025): ["en"],
    ("parakeet_rnnt", 1025): ["en"],
    ("parakeet_ctc", 1025): ["en"],
    ("canary", 16_384): EUROPEAN,
    ("canary", 5248): ["en", "de", "es", "fr"],
    ("cohere_asr", 16_384): [
        "ar",
        "de",
        "el",
        "en",
        "es",
        "fr",
        "it",
        "ja",
        "ko",
        "nl",
        "pl",
        "pt",
        "vi",
        "zh",
    ],
}
"""Languages by kind and size of the vocabulary: transformers' layout does not name them."""


class EncoderConfig(ConfigPart):
    """Sizes of the encoder in transformers' names; the defaults are those of its class."""

    hidden_size: Width = 1024
    num_hidden_layers: SomeLayers = 24
    num_attention_heads: Heads = 8
    intermediate_size: InnerWidth = 4096
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Flag = True
    convolution_bias: Flag = True
    conv_kernel_size: Kernel = 9
    subsampling_factor: Literal[8] = 8
    subsampling_conv_channels: Width = 256
    subsampling_conv_kernel_size: Literal[3] = 3
    subsampling_conv_stride: Literal[2] = 2
    num_mel_bins: MelBins = 80
    scale_input: Flag = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide hidden_size {self.hidden_size}")
        if self.conv_kernel_size % 2 == 0 or self.num_mel_bins % 8 or self.hidden_size % 2:
            raise ValueError("conv_kernel_size has to be odd, num_mel_bins a multiple of 8, hidden_size even")
        return self

    @property
    def shape(self) -> FastConformerShape:
        """The same in our names."""
        return FastConformerShape(
            num_mel_bins=self.num_mel_bins,
            width=self.hidden_size,
            num_heads=self.num_attention_heads,
            num_layers=self.num_hidden_layers,
            feed_forward_width=self.intermediate_size,
            kernel_size=self.conv_kernel_size,
            stem_channels=self.subsampling_conv_channels,
            scale_input=self.scale_input,
        )


class _Own(ConfigPart):
    """Our own key.

    Attributes:
        source_languages: BCP-47 tags.
        tokenizers: languages that have a tokenizer each, in the order of their tokens.
    """

    source_languages: list[str] | None = Field(default=None, min_length=1)
    tokenizers: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,32}$")], ...] = ()


class _Config(ConfigPart):
    """Keys that both kinds have.

    Attributes:
        encoder_config: configuration of the encoder.
        vocab_size: V, the blank included.
        sprachbund: our own key.
    """

    encoder_config: EncoderConfig
    vocab_size: Vocabulary
    sprachbund: _Own = _Own()

    @property
    def encoder(self) -> EncoderConfig:
        """Of the encoder."""
        return self.encoder_config

    def languages(self, kind: str, source: str) -> tuple[str, ...]:
        """BCP-47 tags of the languages heard: those under our own key, or those published.

        Args:
            kind: `model_type`.
            source: config.json, for errors.

        Raises:
            SprachbundError: neither says.
        """
        listed = self.sprachbund.source_languages or _PUBLISHED.get((kind, self.vocab_size))
        if listed is None:
            raise SprachbundError(
                f"{source} does not name the model's languages, and no published {kind} has {self.vocab_size} tokens; "
                f'add their tags: "{CONFIG_KEY}": {{"source_languages": ["en"]}}'
            )
        return tuple(dict.fromkeys(listed))


class ParakeetConfig(_Config):
    """Configuration of a Parakeet with a CTC head or a transducer.

    Attributes:
        model_type: the kind.
        pad_token_id: the blank, with CTC.
        blank_token_id: the blank of a transducer.
        decoder_hidden_size: width of prediction and joint network.
        num_decoder_layers: layers of the prediction network.
        hidden_act: activation of the joint network.
        max_symbols_per_step: most tokens at one frame.
        durations: frames that a token may take, with "parakeet_tdt".
    """

    model_type: Literal["parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"]
    pad_token_id: Token
    blank_token_id: Token = 8192
    decoder_hidden_size: Width = 640
    num_decoder_layers: Annotated[int, Field(strict=True, ge=1, le=64)] = 2
    hidden_act: JointActivation = "relu"
    max_symbols_per_step: Annotated[int, Field(strict=True, ge=1, le=1000)] = 10
    durations: tuple[Annotated[int, Field(strict=True, ge=0, le=WIDTH.most)], ...] = (0, 1, 2, 3, 4)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.blank >= self.vocab_size:
            raise ValueError(f"the blank is {self.blank} and vocab_size {self.vocab_size}")
        if self.model_type == "parakeet_tdt" and not any(self.durations):
            raise ValueError(f"durations are {self.durations}; one has to be above 0")
        return self

    @property
    def blank(self) -> int:
        """Id of the blank."""
        return self.pad_token_id if self.model_type == "parakeet_ctc" else self.blank_token_id

    @property
    def transducer(self) -> TransducerShape | None:
        """Sizes of the transducer; None with CTC."""
        if self.model_type == "parakeet_ctc":
            return None
        return TransducerShape(
            vocabulary_size=self.vocab_size,
            encoder_width=self.encoder.hidden_size,
            prediction_width=self.decoder_hidden_size,
            prediction_layers=self.num_decoder_layers,
            joint_width=self.decoder_hidden_size,
            blank=self.blank,
            activation=self.hidden_act,
            durations=self.durations if self.model_type == "parakeet_tdt" else (),
            max_symbols=self.max_symbols_per_step,
        )


class CanaryDecoderConfig(ConfigPart):
    """Sizes of the decoder in transformers' names; the defaults are those of its class."""

    vocab_size: Vocabulary = 16_384
    hidden_size: Width = 1024
    intermediate_size: InnerWidth = 4096
    num_hidden_layers: SomeLayers = 8
    num_attention_heads: Heads = 8
    num_key_value_heads: int | None = 8
    head_dim: int | None = 128
    hidden_act: Activation = "relu"
    max_position_embeddings: Positions = 1024
    attention_bias: Flag = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_key_value_heads not in (None, self.num_attention_heads):
            raise ValueError("num_key_value_heads differs from num_attention_heads, which is not built here")
        if (self.head_dim or self.hidden_size // self.num_attention_heads) * self.num_attention_heads != (
            self.hidden_size
        ):
            raise ValueError("head_dim times num_attention_heads is not hidden_size, which is not built here")
        return self


class CanaryConfig(_Config):
    """Configuration of a Canary.

    Attributes:
        model_type: the kind.
        decoder_config: configuration of the decoder.
        eos_token_id: ends a row.
        decoder_start_token_id: begins a prompt.
        tie_word_embeddings: whether the output matrix is the embedding.
    """

    stored_positions: ClassVar[bool] = False
    model_type: Literal["canary"]
    decoder_config: CanaryDecoderConfig
    eos_token_id: Token = 3
    decoder_start_token_id: Token = 7
    tie_word_embeddings: Literal[True] = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        decoder = self.decoder_config
        if decoder.vocab_size != self.vocab_size:
            raise ValueError(f"vocab_size is {self.vocab_size}, and {decoder.vocab_size} of the decoder")
        for name, token in (("eos", self.eos_token_id), ("decoder_start", self.decoder_start_token_id)):
            if token >= self.vocab_size:
                raise ValueError(f"{name}_token_id is {token} and vocab_size {self.vocab_size}")
        return self


class CohereConfig(_Config):
    """Configuration of a Cohere ASR: a Canary with a projection between encoder and decoder, and positions that are
    stored.

    Attributes:
        model_type: the kind.
        eos_token_id: ends a row.
        tie_word_embeddings: whether the output matrix is the embedding.
    """

    stored_positions: ClassVar[bool] = True
    model_type: Literal["cohere_asr"]
    hidden_size: Width = 1024
    intermediate_size: InnerWidth = 4096
    num_hidden_layers: SomeLayers = 8
    num_attention_heads: Heads = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: Activation = "relu"
    max_position_embeddings: Positions = 1024
    attention_bias: Flag = True
    eos_token_id: Token = 3
    tie_word_embeddings: Flag = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.eos_token_id >= self.vocab_size:
            raise ValueError(f"eos_token_id is {self.eos_token_id} and vocab_size {self.vocab_size}")
        _ = self.decoder_config  # says what is not built
        return self

    @property
    def decoder_config(self) -> CanaryDecoderConfig:
        """Configuration of the decoder, whose fields stand beside the others here."""
        return CanaryDecoderConfig(**{name: vars(self)[name] for name in CanaryDecoderConfig.model_fields})


def library_values(values: dict[str, Any], languages: tuple[str, ...]) -> dict[str, Any]:
    """config.json as it is written: what was read, with the languages under our own key.

    Args:
        values: values of the file that was read.
        languages: BCP-47 tags.
    """
    return {**values, CONFIG_KEY: {**values.get(CONFIG_KEY, {}), "source_languages": [*languages]}}

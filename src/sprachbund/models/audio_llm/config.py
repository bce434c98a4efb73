"""config.json of Voxtral, Granite Speech and Qwen3-ASR in transformers' layout, as far as it is computed with.

What this package builds in one way only has one value here; any other is an error that names the field. Keys that are
not named here concern training, and are carried along.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sprachbund.models.causal_lm import CausalConfig
from sprachbund.models.hub import ConfigPart, Token
from sprachbund.models.whisper.config import WhisperConfig
from sprachbund.nn.block_conformer import BlockConformerShape, QFormerShape
from sprachbund.nn.limits import (
    FRAMES,
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

Pair = tuple[str, str]
Times = Annotated[int, Field(strict=True, ge=1, le=64)]
SomeFrames = Annotated[int, Field(strict=True, ge=1, le=FRAMES.most)]


class AudioLLMSettings(ConfigPart):
    """Our own key.

    Attributes:
        pairs: BCP-47 tags of the languages heard and written; those published if None.
        transcribe: instruction to transcribe, for models that are asked in words.
        translate: instruction to translate; `{language}` becomes the language's English name.
        window_s: longest speech at once.
        max_new_tokens: longest text.
    """

    pairs: list[Pair] | None = Field(default=None, min_length=1)
    transcribe: str | None = Field(default=None, min_length=1)
    translate: str | None = Field(default=None, min_length=1)
    window_s: Annotated[float, Field(ge=1, le=3600)] = 30.0
    max_new_tokens: Annotated[int, Field(strict=True, ge=1, le=65_536)] = 512

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.translate is not None and "{language}" not in self.translate:
            raise ValueError(f"translate is {self.translate!r}; it has to name the {{language}}")
        return self


class AudioLLMConfig(ConfigPart):
    """The fields that all kinds have.

    Attributes:
        text_config: configuration of the language model.
        sprachbund: our own key.
    """

    text_config: CausalConfig
    sprachbund: AudioLLMSettings = AudioLLMSettings()

    def published(self) -> list[Pair]:
        """Pairs of the published models: transformers' layout does not name them."""
        raise NotImplementedError

    @property
    def pairs(self) -> list[Pair]:
        """(source, target) pairs, under our own key or as published."""
        return list(dict.fromkeys(self.sprachbund.pairs or self.published()))


def _in_text_config(given: Any, **defaults: Any) -> Any:
    """Values with defaults inside their `text_config`."""
    if isinstance(given, dict) and isinstance(given.get("text_config"), dict):
        return {**given, "text_config": {**defaults, **given["text_config"]}}
    return given


def _tied_by_whole(given: Any) -> Any:
    """Values whose output matrix is tied by the whole model, whatever its `text_config` says."""
    if isinstance(given, dict) and isinstance(given.get("text_config"), dict):
        tied = given.get("tie_word_embeddings", True)
        return {**given, "text_config": {**given["text_config"], "tie_word_embeddings": tied}}
    return given


# Voxtral.


class VoxtralEncoderConfig(ConfigPart):
    """Sizes of Voxtral's encoder, which is Whisper's, in transformers' names; the defaults are those of its class."""

    hidden_size: Width = 1280
    intermediate_size: InnerWidth = 5120
    num_hidden_layers: SomeLayers = 32
    num_attention_heads: Heads = 20
    num_mel_bins: MelBins = 128
    max_source_positions: Positions = 1500
    activation_function: Literal["gelu"] = "gelu"
    scale_embedding: Literal[False] = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2:
            raise ValueError(f"{self.num_attention_heads} heads do not divide hidden_size {self.hidden_size}")
        if self.intermediate_size % self.hidden_size or self.max_source_positions % self.group:
            raise ValueError(
                f"the projector joins intermediate_size / hidden_size states, and {self.intermediate_size} / "
                f"{self.hidden_size} of {self.max_source_positions} do not come out even"
            )
        return self

    @property
    def group(self) -> int:
        """States that the projector joins."""
        return self.intermediate_size // self.hidden_size

    @property
    def whisper(self) -> WhisperConfig:
        """The same in the names of our Whisper; it has no decoder."""
        return WhisperConfig(
            vocabulary_size=1,
            width=self.hidden_size,
            num_mel_bins=self.num_mel_bins,
            encoder_layers=self.num_hidden_layers,
            encoder_heads=self.num_attention_heads,
            encoder_feed_forward_width=self.intermediate_size,
            decoder_layers=1,
            decoder_heads=1,
            decoder_feed_forward_width=1,
            max_frames=self.max_source_positions,
        )


_VOXTRAL = ("en", "es", "fr", "pt", "hi", "de", "nl", "it")


class VoxtralConfig(AudioLLMConfig):
    """Configuration of a Voxtral (arXiv 2507.13264).

    Attributes:
        model_type: the kind.
        audio_config: configuration of the encoder.
        projector_hidden_act: activation between the matrices of the projector.
        audio_token_id: token that processors of transformers put in the place of speech; nothing is computed with it.
    """

    model_type: Literal["voxtral"]
    audio_config: VoxtralEncoderConfig = VoxtralEncoderConfig()
    projector_hidden_act: Literal["gelu"] = "gelu"
    audio_token_id: Token | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        return _in_text_config(
            given,
            model_type="llama",
            vocab_size=131_072,
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=30,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131_072,
            rms_norm_eps=1e-5,
            head_dim=128,
            **({} if _has_rotary(given) else {"rope_theta": 1e8}),
        )

    def published(self) -> list[Pair]:
        """Eight languages, into each other."""
        return [(source, target) for source in _VOXTRAL for target in _VOXTRAL]


def _has_rotary(given: Any) -> bool:
    text = given.get("text_config") if isinstance(given, dict) else None
    return isinstance(text, dict) and isinstance(text.get("rope_parameters"), dict)


# Granite Speech.


class GraniteEncoderConfig(ConfigPart):
    """Sizes of Granite Speech's encoder in transformers' names; the defaults are those of its class."""

    input_dim: MelBins = 160
    hidden_dim: Width = 1024
    num_layers: SomeLayers = 10
    num_heads: Heads = 8
    dim_head: Width = 128
    feedforward_mult: Times = 4
    conv_expansion_factor: Times = 2
    conv_kernel_size: Kernel = 15
    context_size: SomeFrames = 200
    max_pos_emb: SomeFrames = 512
    output_dim: Vocabulary = 42
    cat_hidden_layers: tuple[Annotated[int, Field(strict=True, ge=0, le=512)], ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.context_size > self.max_pos_emb:
            raise ValueError(f"context_size {self.context_size} is more than max_pos_emb {self.max_pos_emb}")
        if self.input_dim % 2:
            raise ValueError(f"input_dim is {self.input_dim}; it holds two frames, so it has to be even")
        if any(layer >= self.num_layers for layer in self.cat_hidden_layers or ()):
            raise ValueError(f"cat_hidden_layers are {self.cat_hidden_layers} of {self.num_layers} layers")
        return self

    @property
    def shape(self) -> BlockConformerShape:
        """The same in our names."""
        return BlockConformerShape(
            input_width=self.input_dim,
            width=self.hidden_dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            head_width=self.dim_head,
            feed_forward_times=self.feedforward_mult,
            convolution_times=self.conv_expansion_factor,
            kernel_size=self.conv_kernel_size,
            block=self.context_size,
            max_distance=self.max_pos_emb,
            num_pieces=self.output_dim,
            shown_layers=tuple(sorted(set(self.cat_hidden_layers or ()))),
        )


class GraniteProjectorConfig(ConfigPart):
    """Sizes of the Q-Former in transformers' names; the defaults are those of its class."""

    model_type: Literal["blip_2_qformer"] = "blip_2_qformer"
    hidden_size: Width = 768
    intermediate_size: InnerWidth = 3072
    num_hidden_layers: SomeLayers = 12
    num_attention_heads: Heads = 12
    encoder_hidden_size: Width = 1408
    cross_attention_frequency: Annotated[int, Field(strict=True, ge=1, le=512)] = 2
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1e-12
    use_qformer_text_input: Literal[False] = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide hidden_size {self.hidden_size}")
        return self

    @property
    def shape(self) -> QFormerShape:
        """The same in our names."""
        return QFormerShape(
            width=self.hidden_size,
            inner_width=self.intermediate_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            memory_width=self.encoder_hidden_size,
            cross_every=self.cross_attention_frequency,
            norm_epsilon=self.layer_norm_eps,
        )


class GraniteSpeechConfig(AudioLLMConfig):
    """Configuration of a Granite Speech (arXiv 2505.08699); "plus" shows its projector lower layers of the encoder too.

    Attributes:
        model_type: the kind.
        encoder_config: configuration of the encoder.
        projector_config: configuration of the Q-Former.
        audio_token_index: stands for speech in prompts.
        downsample_rate: frames that a query stands for.
        window_size: frames that are read together.
        has_lora_adapter: whether adapters of the language model lie beside it, for speech alone.
    """

    model_type: Literal["granite_speech", "granite_speech_plus"]
    encoder_config: GraniteEncoderConfig = GraniteEncoderConfig()
    projector_config: GraniteProjectorConfig = GraniteProjectorConfig()
    audio_token_index: Token = 49_155
    downsample_rate: SomeFrames = 5
    window_size: SomeFrames = 15
    has_lora_adapter: Flag = True

    _recent: ClassVar[int] = 100_000
    """Vocabularies of Granite 4 are larger than this."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        return _tied_by_whole(_in_text_config(given, model_type="granite"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.window_size % self.downsample_rate:
            raise ValueError(f"downsample_rate {self.downsample_rate} does not divide {self.window_size}")
        wanted = self.encoder_config.hidden_dim * (1 + len(self.encoder_config.shape.shown_layers))
        if self.projector_config.encoder_hidden_size != wanted:
            raise ValueError(
                f"the projector's encoder_hidden_size is {self.projector_config.encoder_hidden_size}, and the "
                f"encoder gives {wanted}"
            )
        if self.encoder_config.cat_hidden_layers and self.model_type == "granite_speech":
            raise ValueError("cat_hidden_layers belong to granite_speech_plus")
        return self

    def published(self) -> list[Pair]:
        """Five or six languages, into English and from it, and from English into two more or three."""
        heard = [
            "en",
            "fr",
            "de",
            "es",
            "pt",
            *(["ja"] if self.text_config.vocab_size > self._recent else []),
        ]
        written = [*heard, *(tag for tag in ("it", "ja", "zh") if tag not in heard)]
        return [
            *((tag, tag) for tag in heard),
            *((tag, "en") for tag in heard[1:]),
            *(("en", tag) for tag in written[1:]),
        ]


# Qwen3-ASR.

QWEN_LANGUAGES = {
    "ar": "Arabic",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fi": "Finnish",
    "fil": "Filipino",
    "fr": "French",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "mk": "Macedonian",
    "ms": "Malay",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "vi": "Vietnamese",
    "yue": "Cantonese",
    "zh": "Chinese",
}
"""Languages of Qwen3-ASR, and the names that it writes for them."""


class QwenEncoderConfig(ConfigPart):
    """Sizes of Qwen3-ASR's encoder in transformers' names; the defaults are those of its class."""

    num_mel_bins: MelBins = 128
    encoder_layers: SomeLayers = 24
    encoder_attention_heads: Heads = 16
    encoder_ffn_dim: InnerWidth = 4096
    d_model: Width = 1024
    activation_function: Literal["gelu"] = "gelu"
    scale_embedding: Literal[False] = False
    n_window: SomeFrames = 50
    n_window_infer: SomeFrames = 800
    output_dim: Width = 3584
    downsample_hidden_size: Width = 480
    max_position_embeddings: Positions = 13

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Names that transformers takes too."""
        also = {
            "num_hidden_layers": "encoder_layers",
            "hidden_size": "d_model",
            "num_attention_heads": "encoder_attention_heads",
            "intermediate_size": "encoder_ffn_dim",
        }
        if not isinstance(given, dict):
            return given
        return {also.get(key, key): value for key, value in given.items() if also.get(key, "") not in given}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.d_model % self.encoder_attention_heads or self.d_model % 2 or self.d_model < 4:
            raise ValueError(f"{self.encoder_attention_heads} heads do not divide d_model {self.d_model}")
        if self.n_window_infer % (2 * self.n_window):
            raise ValueError(f"n_window_infer {self.n_window_infer} is no multiple of {2 * self.n_window}")
        if self.max_position_embeddings < convolved(2 * self.n_window):
            raise ValueError(
                f"max_position_embeddings is {self.max_position_embeddings}, and a piece has "
                f"{convolved(2 * self.n_window)} states"
            )
        return self


def convolved(length: int) -> int:
    """Length behind three convolutions of stride 2, each of which rounds up."""
    for _ in range(3):
        length = (length + 1) // 2
    return length


class QwenAsrConfig(AudioLLMConfig):
    """Configuration of a Qwen3-ASR (arXiv 2601.21337).

    Attributes:
        model_type: the kind.
        audio_config: configuration of the encoder.
        audio_token_id: stands for speech in prompts.
    """

    model_type: Literal["qwen3_asr"]
    audio_config: QwenEncoderConfig = QwenEncoderConfig()
    audio_token_id: Token = 151_676

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if isinstance(given, dict) and "thinker_config" in given:
            raise ValueError(
                "it has the layout of the package qwen-asr; take the model whose name ends in -hf"
            )
        filled = _in_text_config(
            given,
            model_type="qwen3",
            vocab_size=151_936,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=65_536,
        )
        return _tied_by_whole(filled)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.audio_config.output_dim != self.text_config.hidden_size:
            raise ValueError(
                f"output_dim is {self.audio_config.output_dim} and the language model's width "
                f"{self.text_config.hidden_size}"
            )
        return self

    def published(self) -> list[Pair]:
        """Transcription of thirty languages."""
        return [(tag, tag) for tag in QWEN_LANGUAGES]

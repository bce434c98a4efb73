"""Speech-to-text and text-to-text SeamlessM4T (arXiv 2308.11596; version 2: arXiv 2312.05187).

One decoder writes behind the encoder of speech or that of texts. Text-to-unit and vocoder are left out.

Shapes: B utterances, T stacked log-mel frames of 20 ms, S memory frames, M stacked mel bins, D width, R rows, Q tokens
of a step, U tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.batch import NO_LANGUAGE, Augment, Batch, Row
from sprachbund.errors import SprachbundError
from sprachbund.models.attention import DecodesByAttention
from sprachbund.models.base import (
    Alignment,
    Capabilities,
    Features,
    Loss,
    Memory,
    Target,
    check_window,
    equal_log_probs,
)
from sprachbund.models.calibration import Calibration
from sprachbund.models.hub import CONFIG_KEY, optional_setting
from sprachbund.models.language_codes import to_bcp47
from sprachbund.models.seamless.checkpoints import library, preset, speech_to_text
from sprachbund.models.seamless.layers import SeamlessEncoder
from sprachbund.models.seamless.tokens import SPOKEN, SeamlessTokens
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.models.splitting import encode_routed, source_route, start_route
from sprachbund.models.teacher_forcing import DecoderBatch, make_decoder_batch, prompted_loss, row_route
from sprachbund.nn.conformer import sinusoids
from sprachbund.nn.feed_forward import Route
from sprachbund.nn.text_to_text import FixedPositionDecoder, TextToTextEncoder, TextToTextShape
from sprachbund.text.languages import described
from sprachbund.util.devices import ANY_DEVICE

# Training examples: features and rows of an utterance.

_MIN_SAMPLES = 1040  # five frames of 25 ms every 10 ms: normalising needs more than one
_STACKED = 2


def stacked_log_mel(extractor: Any, samples: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Features (B, T, M) of 16 kHz samples and their lengths (B,), by transformers' extractor."""
    padded = [np.pad(s, (0, max(0, _MIN_SAMPLES - len(s)))) for s in samples]
    extracted = extractor(padded, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    # A last frame without a second to be stacked with counts as padding, as it does in transformers.
    lengths = extracted["attention_mask"].sum(1)
    return extracted["input_features"][:, : int(lengths.max())].float(), lengths


class SeamlessExamples:
    """`sprachbund.data.loading.Examples` of a Seamless model.

    Args:
        model: model whose tokens and features are used.
        languages: languages spoken in the data and, where the model writes them, drawn as targets.

    Raises:
        SprachbundError: a language that the model does not hear, or none that it writes.
    """

    frames_per_s = 50
    whole_windows = False

    def __init__(self, model: Seamless, languages: Sequence[str]) -> None:
        if unknown := sorted(set(languages) - set(model.source_languages)):
            raise SprachbundError(
                f"the model does not hear {', '.join(unknown)}; add to the recipe fine_tuning.new_languages = "
                f'{{{unknown[0]} = "mean"}}'
            )
        self.tokens = model.tokens
        self.extractor = model.extractor
        self.source_languages = list(languages)
        self.target_languages = [tag for tag in languages if tag in model.tokens.languages.tags]
        if not self.target_languages:
            raise SprachbundError(
                f"the model writes none of {', '.join(languages)}; add to the recipe's languages one that it writes, "
                f"such as {', '.join(model.tokens.languages.tags[:5])}"
            )
        self.max_tokens = model.max_tokens - 1  # the prompt has two, the end is not given
        self.max_window_s: float | None = model.max_window_s
        self._numbers = {tag: i for i, tag in enumerate(model.source_languages)}

    def number(self, language: str) -> int:
        """Place of a source language among the model's."""
        return self._numbers[language]

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """Stacked log-mel (T, M) and T; it is augmented before frames are stacked."""
        values, _ = stacked_log_mel(self.extractor, [samples])
        frames = augment(values[0].unflatten(1, (_STACKED, -1)).flatten(0, 1))
        features = frames.unflatten(0, (-1, _STACKED)).flatten(1)
        return features, features.shape[0]

    def transcript(self, text: str) -> None:
        """None: Seamless has no CTC head."""

    def row(self, text: str, source: str | None, target: str) -> Row:
        """Language token and the text's tokens; where nobody speaks the row ends at once.

        Args:
            text: text of the row, in the language `target`.
            source: BCP-47 tag of the language spoken; None where nobody speaks.
            target: BCP-47 tag of the language written.
        """
        tokens = self.tokens
        return tokens.language_token(target), [*tokens.text_to_tokens(text.strip()), tokens.end]


_PROMPT_TOKENS = 2
_FEATURE_FRAME_S = 0.02


class SeamlessTextEncoder(TextToTextEncoder):
    """Pre-norm layers over the tokens of a text, with the decoder's embedding.

    Args:
        config: configuration of transformers, either version.
        embedding: the decoder's.
        positions: (S, D), a table that is never stored.
    """

    def __init__(self, config: Any, embedding: nn.Embedding, positions: Tensor) -> None:
        shape = TextToTextShape(
            width=config.hidden_size,
            num_encoder_heads=config.encoder_attention_heads,
            num_decoder_heads=config.decoder_attention_heads,
            num_encoder_layers=config.encoder_layers,
            num_decoder_layers=config.decoder_layers,
            encoder_feed_forward_width=config.encoder_ffn_dim,
            decoder_feed_forward_width=config.decoder_ffn_dim,
            activation=config.activation_function,
            scaled=config.scale_embedding,
            positions=len(positions),
            dropout=config.dropout,
        )
        super().__init__(shape, positions)
        self.embedding = embedding

    def forward(self, tokens: Tensor, num_tokens: Tensor) -> Tensor:
        """States (B, S, D) of tokens (B, S), of which the first `num_tokens` (B,) are valid."""
        return super().forward(self.embedding(tokens), num_tokens)


class Seamless(DecodesByAttention, nn.Module):
    """A SeamlessM4T model, either version; satisfies `sprachbund.models.base.Family` once it has its tokens.

    Args:
        hf_model: the speech-to-text model of transformers, whose encoder becomes part of this; on the meta device
            for shapes alone. `directory.from_transformers` brings the weights.
        tokens: the vocabulary.
        extractor: transformers' feature extractor; the published one if None.
        reads_text: whether it has the encoder of texts too.

    Attributes:
        label_smoothing: label smoothing of the loss (arXiv 1512.00567, section 7).
    """

    name = "seamless"
    max_window_s = 30.0  # ours: no checkpoint states a limit, and attention grows with the square

    def __init__(
        self,
        hf_model: Any,
        *,
        tokens: SeamlessTokens | None = None,
        extractor: Any = None,
        reads_text: bool = False,
    ) -> None:
        super().__init__()
        config = hf_model.config
        self.config = config
        self.generation = hf_model.generation_config
        self.extractor = library().SeamlessM4TFeatureExtractor() if extractor is None else extractor
        self.label_smoothing = 0.0
        self.sharing_plan: SharingPlan | None = None
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self.encoder = SeamlessEncoder(hf_model.speech_encoder)
        self.max_tokens = _PROMPT_TOKENS + _new_tokens(config, self.generation)
        first = (
            config.pad_token_id + 1
        )  # row of the table that the first token gets; padding has those before
        self.max_source_tokens: int = config.max_position_embeddings
        with torch.device("cpu"):  # it is never stored, so it has to be real in a model built on meta too
            longest = max(self.max_tokens, self.max_source_tokens if reads_text else 0)
            table = sinusoids(first + longest, config.hidden_size)[first:]
            positions = table[: self.max_tokens].clone()
        self.decoder = FixedPositionDecoder(
            vocabulary_size=config.vocab_size,
            positions=positions,
            num_heads=config.decoder_attention_heads,
            num_layers=config.decoder_layers,
            feed_forward_width=config.decoder_ffn_dim,
            scaled=config.scale_embedding,
            dropout=config.dropout,
        )
        self.text_encoder = SeamlessTextEncoder(config, self.decoder.embedding, table) if reads_text else None
        self.frame_s = _FEATURE_FRAME_S * config.adaptor_stride**config.num_adapter_layers
        self._tokens = tokens
        self.source_languages = () if tokens is None else _sources(config, tokens)

    @classmethod
    def shape(cls, name: str) -> Seamless:
        """A published shape ("medium", "large", "large-v2") on the meta device: every shape, no memory."""
        with torch.device("meta"):
            return cls(speech_to_text(preset(name)))

    @property
    def tokens(self) -> SeamlessTokens:
        """The vocabulary. Raises SprachbundError for a model built without one."""
        if self._tokens is None:
            raise SprachbundError(
                "this Seamless model was built without a tokenizer; load it from a directory"
            )
        return self._tokens

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.encoder.parameters()).device

    @property
    def end_token(self) -> int:
        """Token that ends a row, </s>."""
        return self.tokens.end

    @property
    def capabilities(self) -> Capabilities:
        """An attention decoder that shows what it reads, without timestamps, behind one encoder or two."""
        reads = None if self.text_encoder is None else self
        return Capabilities(
            encoder=self.encoder,
            decoder=self.decoder,
            alignment=Alignment(frame_s=self.frame_s),
            encode_text=None if self._tokens is None else self._tokens.text_to_tokens,
            sharing_plan=self.sharing_plan,
            text_input=reads,
            text_encoder=self.text_encoder,
            token_offsets=reads,
            devices=ANY_DEVICE,
        )

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every language it hears with every language it writes."""
        written = () if self._tokens is None else self._tokens.languages.tags
        return frozenset((s, t) for s in self.source_languages for t in written)

    def hear(self, languages: Iterable[str]) -> None:
        """Add BCP-47 tags of languages spoken, after those known; the prompt names none, so no token is needed."""
        self.source_languages = tuple(dict.fromkeys([*self.source_languages, *languages]))
        ours = optional_setting(self.config, CONFIG_KEY) or {}
        self.config.update({CONFIG_KEY: {**ours, "source_languages": [*self.source_languages]}})

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Log-mel (B, T, M) of 16 kHz mono float32 samples: each bin normalised, two frames stacked in one.

        Raises:
            SprachbundError: an utterance is longer than `max_window_s`.
        """
        check_window(samples, self.max_window_s)
        values, lengths = stacked_log_mel(self.extractor, samples)
        return Features(values=values.to(self.device), num_frames=lengths.to(self.device))

    def text_features(self, texts: Sequence[str]) -> Features:
        """Source tokens (B, S) of texts; `encode` puts the language in front.

        Raises:
            SprachbundError: a text has more tokens than the model reads.
        """
        end = self.tokens.end
        rows = [[end, *self.tokens.text_to_tokens(text), end] for text in texts]
        if (longest := max(map(len, rows), default=0)) > self.max_source_tokens:
            raise SprachbundError(
                f"a text has {longest} tokens and the model {self.name} reads {self.max_source_tokens}, its language "
                "and end included; give shorter texts, such as sentences"
            )
        values = nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows],
            batch_first=True,
            padding_value=int(self.config.pad_token_id),
        )
        num_tokens = torch.tensor([len(row) for row in rows])
        return Features(values=values.to(self.device), num_frames=num_tokens.to(self.device))

    def source_offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Character ranges of the text that the tokens of `text_features` stand for; (0, 0) for tokens that stand for
        none.
        """
        return [[(0, 0), *self.tokens.offsets(text), (0, 0)] for text in texts]

    def encode(self, features: Features) -> Memory:
        """Run the encoder of what is given, speech or texts.

        States of speech are (B, S, D), one for every eight frames; see `encode_routed` for a split encoder. Those of
        texts are one for each token; the language of a text is given by `features.source_language`, as by
        `sprachbund.models.translation`.

        Raises:
            SprachbundError: texts in a language that the model only hears, or a model without an encoder of texts.
        """
        if not features.values.is_floating_point():
            return self._encode_text(features)
        return encode_routed(self, features, partial(self._encode, features))

    def language_log_probs(self, memory: Memory) -> Tensor:
        """All languages equal, (B, len(source_languages)): Seamless has not learned to tell them apart."""
        if memory.language_log_probs is not None:
            return memory.language_log_probs
        return equal_log_probs(memory, len(self.source_languages))

    def prompt(self, target: Target) -> list[int]:
        """</s> and the language wanted; the language spoken is not given.

        Raises:
            SprachbundError: a language that the model does not hear, or does not write.
        """
        self._check_source(target.source)
        return [self.tokens.end, self.tokens.language_token(target.language)]

    def forward(self, features: Features, tokens: Tensor, targets: Sequence[Target] | None = None) -> Tensor:
        """Logits (B, U, V) after each token of whole rows (B, U), prompt included.

        Args:
            features: features of B utterances.
            tokens: whole rows (B, U).
            targets: targets of the rows; only a decoder that is split by language needs them.
        """
        memory = self.encode(features)
        route = start_route(self, targets, memory.states.device)
        return self.decoder.logits(self.decoder(tokens, memory.states, memory.num_frames, route))

    def decoder_batch(self, batch: Batch) -> DecoderBatch:
        """Return the rows that the decoder is trained on; the prompt is no target.

        The features of the batch are those of `features`; its `target_language` are language tokens.
        """
        features = Features(values=batch.features, num_frames=batch.num_frames)
        memory = self._encode(features, source_route(self, batch.source_language))
        prompts = [[self.tokens.end, token] for token in batch.target_language.tolist()]
        route = row_route(self, batch, self.tokens.language_token)
        return make_decoder_batch(memory, batch, prompts, route)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the decoder_batch."""
        return prompted_loss(self, self.decoder_batch(batch), self.label_smoothing)

    def target_tokens(self, text: str) -> list[int]:
        """Tokens that are to follow the prompt when the model is trained to write `text`, the end included."""
        return [*self.tokens.text_to_tokens(text.strip()), self.tokens.end]

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): every token that is no text, but the end."""
        mask = torch.zeros(self.config.vocab_size, dtype=torch.bool)
        mask[list(self.tokens.not_text - {self.tokens.end})] = True
        return mask.to(self.device)

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.tokens.tokens_to_text(tokens)

    def _encode_text(self, features: Features) -> Memory:
        if self.text_encoder is None:
            raise SprachbundError(f"this {self.name} model has no encoder of texts; give it speech")
        language = features.source_language
        if language is None:
            language = torch.full_like(features.num_frames, NO_LANGUAGE)
        marks = [self._source_token(number) for number in language.tolist()]
        first = torch.tensor(marks, device=self.device)[:, None]
        tokens = torch.cat([first, features.values[:, 1:]], dim=1)
        states = self.text_encoder(tokens, features.num_frames)
        return Memory(states=states, num_frames=features.num_frames, source_language=language)

    def _source_token(self, number: int) -> int:
        """Token of a language by its index among those heard; the end for one that is not known."""
        if number == NO_LANGUAGE:
            return self.tokens.end
        tag = self.source_languages[number]
        if tag not in self.tokens.languages.tags:
            raise SprachbundError(
                f"this model hears {tag!r} and does not read it; it reads {described(self.tokens.languages.tags)}"
            )
        return self.tokens.language_token(tag)

    def _encode(self, features: Features, route: Route | None) -> Memory:
        values = features.values.to(next(self.encoder.parameters()).dtype)
        states, num_frames = self.encoder(values, features.num_frames, route)
        return Memory(states=states, num_frames=num_frames)

    def _check_source(self, source: str | None) -> None:
        if source is not None and source not in self.source_languages:
            raise SprachbundError(
                f"this model does not hear {source!r}; if it was fine-tuned to, add "
                f'"{CONFIG_KEY}": {{"source_languages": [...]}} to its config.json'
            )


def num_parameters(model: nn.Module) -> int:
    """Number of parameters, the tied output matrix counted once."""
    return sum(p.numel() for p in model.parameters())


def _new_tokens(config: Any, generation: Any) -> int:
    name = "max_new_tokens"
    wanted = optional_setting(generation, name) or optional_setting(config, name) or 256
    return min(int(wanted), config.max_position_embeddings - _PROMPT_TOKENS)


def _sources(config: Any, tokens: SeamlessTokens) -> tuple[str, ...]:
    """BCP-47 tags of what is heard: as `config.json` says under our key, or what was published."""
    ours = optional_setting(config, CONFIG_KEY) or {}
    listed = ours.get("source_languages") if isinstance(ours, dict) else None
    if listed is not None:
        if not isinstance(listed, list) or not listed or not all(isinstance(tag, str) for tag in listed):
            raise SprachbundError(
                f"'source_languages' in config.json has to list language tags, not {listed!r}"
            )
        return tuple(dict.fromkeys(listed))
    own = set(tokens.languages.codes)
    return tuple(dict.fromkeys(tokens.languages.tag(c) if c in own else to_bcp47(c) for c in SPOKEN))

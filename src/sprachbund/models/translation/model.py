"""Text-to-text translators that are public: M2M-100, NLLB-200, mBART-50, Marian and MADLAD-400.

arXiv 2010.11125, 2207.04672, 2008.00401, 1804.00344 and 2309.04662; Marian is the toolkit of the Opus-MT models
(Tiedemann and Thottingal 2020, EAMT), and MADLAD-400 is a T5 v1.1. Marian models with several targets and MADLAD-400
read the language wanted in front of the source, so that the encoder can run only when it is known, in `start`.

They read text and hear nothing, so they translate text, or are the second half of a cascade behind a recogniser.

Shapes: B texts, S source tokens, D width, L source languages, R rows, Q tokens of a step, U tokens of a row, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.data.batch import NO_LANGUAGE
from sprachbund.errors import SprachbundError
from sprachbund.models.attention import DecodesByAttention
from sprachbund.models.base import (
    Capabilities,
    Features,
    Memory,
    Target,
    equal_log_probs,
    hears_nothing,
    not_written,
)
from sprachbund.models.calibration import Calibration
from sprachbund.models.hub import CONFIG_KEY, optional_setting
from sprachbund.models.translation.checkpoints import shape_of
from sprachbund.models.translation.tokens import Offsets, TranslationTokens
from sprachbund.nn.conformer import sinusoids
from sprachbund.nn.decoder import DecoderCache, TextDecoder
from sprachbund.nn.limits import POSITIONS
from sprachbund.nn.t5 import T5Decoder, T5Encoder, T5Shape
from sprachbund.nn.text_to_text import (
    FixedPositionDecoder,
    MarianDecoder,
    MarianEncoder,
    MbartDecoder,
    MbartEncoder,
    TextToTextEncoder,
    TextToTextShape,
    marian_positions,
)
from sprachbund.text.languages import described
from sprachbund.util.devices import ANY_DEVICE

_NEW_TOKENS = 256
"""Longest text where a checkpoint does not say."""


class TextTranslator(DecodesByAttention, nn.Module):
    """A translator of text; satisfies `sprachbund.models.base.Family` once it has its tokens.

    Args:
        config: configuration of the checkpoint, in transformers' class.
        generation: its settings of generation.
        tokens: the vocabulary; without it the model has shapes and weights, but no languages.

    Raises:
        SprachbundError: a shape that is not built here, or languages in the configuration that it has not got.
    """

    # Texts have no length in seconds. Whoever cuts speech or tries engines asks all the same.
    max_window_s = 30.0
    frame_s = 1.0
    _source_tokens: Tensor
    _suppressed: Tensor

    def __init__(self, config: Any, generation: Any, tokens: TranslationTokens | None = None) -> None:
        super().__init__()
        self.config, self.generation = config, generation
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        shape = shape_of(config, "config.json")
        self.encoder, self.decoder = _build(config, shape)
        self.embedding: nn.Embedding = self.decoder.embedding
        self.max_source_tokens = shape.positions
        self.max_tokens = min(_longest_row(generation), shape.positions)
        self._tokens = tokens
        self.source_languages, self.target_languages = _languages(config, generation, tokens)
        self._pairs = frozenset(
            (s, t) for s in self.source_languages for t in self.target_languages if s != t
        )
        with torch.device("cpu"):  # neither is stored, so they have to be real in a model built on meta too
            self.register_buffer("_source_tokens", self._language_table(), persistent=False)
            self.register_buffer("_suppressed", self._not_written(), persistent=False)

    @property
    def name(self) -> str:
        """Name of the kind of checkpoint, as its config.json has it."""
        return str(self.config.model_type)

    @property
    def tokens(self) -> TranslationTokens:
        """The vocabulary. Raises SprachbundError for a model built without one."""
        if self._tokens is None:
            raise SprachbundError("this model was built without a tokenizer; load it from a directory")
        return self._tokens

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embedding.weight.device

    @property
    def end_token(self) -> int:
        """Token that ends a row, </s>."""
        return self.tokens.end

    @property
    def capabilities(self) -> Capabilities:
        """An attention decoder over text, which knows where each source token stands in it."""
        return Capabilities(
            encoder=self.encoder,
            decoder=self.decoder,
            encode_text=None if self._tokens is None else self._tokens.written.tokens,
            text_input=self,
            token_offsets=self,
            devices=ANY_DEVICE,
        )

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every language it reads with every other that it writes; it has not learned to copy."""
        return self._pairs

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Not there.

        Raises:
            SprachbundError: always.
        """
        raise hears_nothing(self)

    def text_features(self, texts: Sequence[str]) -> Features:
        """Source tokens (B, S) of texts; `encode` puts the language in its place.

        Raises:
            SprachbundError: a text has more tokens than the model reads.
        """
        rows = [self.tokens.source(text) for text in texts]
        if (longest := max(map(len, rows), default=0)) > self.max_source_tokens:
            raise SprachbundError(
                f"a text has {longest} tokens and the model {self.name} reads {self.max_source_tokens}, its language "
                "and end included; give shorter texts, such as sentences"
            )
        values = nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=self.tokens.padding
        )
        num_tokens = torch.tensor([len(row) for row in rows])
        return Features(values=values.to(self.device), num_frames=num_tokens.to(self.device))

    def source_offsets(self, texts: Sequence[str]) -> list[Offsets]:
        """Character ranges of the text that the tokens of `text_features` stand for; (0, 0) for tokens that stand for
        none.
        """
        return [self.tokens.source_offsets(text) for text in texts]

    def encode(self, features: Features) -> Memory:
        """Run the encoder; states are (B, S, D).

        The languages come from `features.source_language`. A text whose language is not known is encoded without one:
        whoever finds it out encodes again, see `sprachbund.decoding.encoding.encode_again`. Where the language wanted
        comes first, the states are the embedded tokens, and `start` runs the encoder.
        """
        if self.tokens.marked != "source":
            embedded = self.embedding(features.values)
            states = self.encoder(embedded, features.num_frames) if self.tokens.marked is None else embedded
            return Memory(states=states, num_frames=features.num_frames)
        language = features.source_language
        if language is None:
            language = torch.full_like(features.num_frames, NO_LANGUAGE)
        tokens = torch.cat([self._source_tokens[language][:, None], features.values[:, 1:]], dim=1)
        states = self.encoder(self.embedding(tokens), features.num_frames)
        return Memory(states=states, num_frames=features.num_frames, source_language=language)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """All languages equal, (B, L): it has not learned to tell them apart."""
        return equal_log_probs(memory, len(self.source_languages))

    def prompt(self, target: Target) -> list[int]:
        """Return the first token of a row, and the language wanted, where the source does not begin with it.

        Raises:
            SprachbundError: a language that the model does not read, or does not write.
        """
        if target.source is not None and target.source not in self.source_languages:
            raise SprachbundError(
                f"this model does not read {target.source!r}; it reads {described(self.source_languages)}"
            )
        if target.language not in self.target_languages:
            raise not_written(target.language, self.target_languages)
        start = int(self.config.decoder_start_token_id)
        return (
            [start, self.tokens.language_token(target.language)]
            if self.tokens.marked == "source"
            else [start]
        )

    def start(
        self,
        memory: Memory,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        targets: Sequence[Target] | None = None,
    ) -> DecoderCache:
        """An empty cache for R rows.

        Args:
            memory: memory of B texts.
            rows_per_memory: rows for each text; row r reads memory r // rows_per_memory.
            capacity: most tokens of a row; `max_tokens` if None.
            targets: targets of the R rows; a model whose source begins with the language wanted needs them.

        Raises:
            SprachbundError: several languages are wanted of one text, and its source has room for one.
        """
        if self.tokens.marked == "target":
            memory = replace(memory, states=self._encoded_for(memory, targets, rows_per_memory))
        return super().start(memory, rows_per_memory=rows_per_memory, capacity=capacity, targets=targets)

    def _encoded_for(self, memory: Memory, targets: Sequence[Target] | None, rows_per_memory: int) -> Tensor:
        """States (B, S, D) of embedded sources, each behind the token of the language wanted of it."""
        assert memory.num_frames is not None
        if targets is None:
            raise SprachbundError(f"the model {self.name} reads the language wanted; give the targets")
        wanted = [target.language for target in targets]
        groups = [set(wanted[i : i + rows_per_memory]) for i in range(0, len(wanted), rows_per_memory)]
        if several := next((group for group in groups if len(group) > 1), None):
            raise SprachbundError(
                f"the model {self.name} reads the language wanted with the text, one at a time; ask for "
                f"{' and '.join(sorted(several))} one after the other"
            )
        tokens = [self.tokens.language_token(group.pop()) for group in groups]
        marks = self.embedding(torch.tensor(tokens, device=memory.states.device))[:, None]
        index = self.tokens.language_index
        own = [memory.states[:, :index], marks, memory.states[:, index + 1 :]]
        states: Tensor = self.encoder(torch.cat(own, dim=1), memory.num_frames)
        return states

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): every token that is no text, but the end."""
        return self._suppressed.clone()

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.tokens.tokens_to_text(tokens)

    def _language_table(self) -> Tensor:
        """(L + 1,) tokens of the source languages; the last, which -1 finds, is that of a language not known."""
        if self._tokens is None or self._tokens.marked != "source":
            return torch.zeros(1, dtype=torch.long)
        own = [self._tokens.language_token(tag) for tag in self.source_languages]
        return torch.tensor([*own, own[0] if len(own) == 1 else self._tokens.end])

    def _not_written(self) -> Tensor:
        mask = torch.zeros(self.config.vocab_size, dtype=torch.bool)
        if self._tokens is not None:
            mask[list(self._tokens.not_text - {self._tokens.end})] = True
        return mask


def _build(
    config: Any, shape: TextToTextShape | T5Shape
) -> tuple[TextToTextEncoder | T5Encoder, TextDecoder]:
    """Encoder and decoder of a configuration."""
    if isinstance(shape, T5Shape):
        return T5Encoder(shape), T5Decoder(config.vocab_size, shape)
    if config.model_type == "mbart":
        return MbartEncoder(shape, key_bias=True), MbartDecoder(config.vocab_size, shape, key_bias=True)
    if config.model_type == "marian":
        with torch.device("cpu"):  # it is never stored, so it has to be real in a model built on meta too
            table = marian_positions(shape.positions, shape.width)
        return MarianEncoder(shape, table), MarianDecoder(config.vocab_size, shape, table)
    first = config.pad_token_id + 1  # row of the table that the first token gets; padding has those before
    with torch.device("cpu"):  # it is never stored, so it has to be real in a model built on meta too
        positions = sinusoids(first + shape.positions, shape.width)[first:]
    decoder = FixedPositionDecoder(
        vocabulary_size=config.vocab_size,
        positions=positions,
        num_heads=shape.num_decoder_heads,
        num_layers=shape.num_decoder_layers,
        feed_forward_width=shape.decoder_feed_forward_width,
        scaled=shape.scaled,
        dropout=shape.dropout,
        activation=shape.activation,
    )
    return TextToTextEncoder(shape, positions), decoder


def _longest_row(generation: Any) -> int:
    """Tokens of a row, its prompt of two included, as transformers would generate them."""
    prompt = 2
    for key, more in (("max_new_tokens", prompt), ("max_length", 0)):
        if value := optional_setting(generation, key):
            if not POSITIONS.holds(value):
                raise SprachbundError(
                    f"{key} in generation_config.json is {repr(value)[:60]}, not {POSITIONS}; copy it again"
                )
            return more + int(value)
    return prompt + _NEW_TOKENS


def _languages(
    config: Any, generation: Any, tokens: TranslationTokens | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """BCP-47 tags read and written: those that `config.json` lists under our key, or all that the vocabulary names.

    A checkpoint whose settings of generation force a language writes that one alone.
    """
    if tokens is None:
        return (), ()
    written = tokens.targets
    if (
        tokens.marked == "source"
        and (forced := optional_setting(generation, "forced_bos_token_id")) is not None
    ):
        written = tuple(tag for tag in written if tokens.language_token(tag) == forced) or written
    # Tokens tell apart the languages that are marked; of others the checkpoint knows no more than we do.
    marked = tokens.languages.tags
    return (
        _listed(config, "source_languages", marked if tokens.marked == "source" else None, tokens.sources),
        _listed(config, "target_languages", marked if tokens.marked else None, written),
    )


def _listed(
    config: Any, key: str, known: tuple[str, ...] | None, otherwise: tuple[str, ...]
) -> tuple[str, ...]:
    """The list under our key of config.json, every item of which has to be known; `otherwise` without it."""
    import langcodes

    ours = optional_setting(config, CONFIG_KEY) or {}
    listed = ours.get(key) if isinstance(ours, dict) else None
    if listed is None:
        if not otherwise:
            raise SprachbundError(
                f"the checkpoint does not name its {key.replace('_', ' ')}; add to its config.json, with their tags, "
                f'"{CONFIG_KEY}": {{"{key}": ["fr", "it"]}}'
            )
        return otherwise
    valid = isinstance(listed, list) and bool(listed) and all(isinstance(tag, str) for tag in listed)
    if not valid or not all(langcodes.tag_is_valid(tag) if known is None else tag in known for tag in listed):
        having = "" if known is None else f"; it has {described(known)}"
        raise SprachbundError(
            f"{key!r} in config.json has to list language tags of this model, not {repr(listed)[:60]}{having}"
        )
    return tuple(dict.fromkeys(listed))

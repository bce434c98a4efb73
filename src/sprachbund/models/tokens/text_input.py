"""Common base of the families that read tokens: the reader of text and speech, and the tokens that may be written.

Shapes: B utterances, R rows, Q tokens of a step, S source tokens, W tokens that may be written.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Capabilities, Features, Memory, Target
from sprachbund.models.calibration import Calibration
from sprachbund.models.tokens.config import ReadTokens
from sprachbund.nn.decoder import DecoderCache, TextDecoder
from sprachbund.text.punctuation import FULL_STOP

# The reader; `reader.UnitReader` reads with units. Shapes: V vocabulary, N samples.


class Vocabulary(Protocol):
    """One space of ids for speech and text, 0 the blank; see `sprachbund.models.tokens.vocabulary.JointVocabulary`."""

    end: int
    is_unit: np.ndarray
    """(V,) True for pieces of units."""
    suppressed: np.ndarray
    """(V,) True for what is never written."""

    def __len__(self) -> int: ...

    def language_id(self, language: str) -> int:
        """Token of a language. Raises KeyError for one that it lacks."""
        ...

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of ids; all that is none vanishes."""
        ...


class Reader(Protocol):
    """Turns speech and text into source tokens, without their end; see `sprachbund.models.tokens.reader.UnitReader`."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the tokens."""
        ...

    @property
    def directory(self) -> Path:
        """Directory of the units."""
        ...

    def speech(self, samples: Sequence[np.ndarray]) -> list[list[int]]:
        """Tokens (S,) of each utterance, (N,) float32 at 16 kHz. Raises SprachbundError for one without a frame."""
        ...

    def text(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens (S,) of each text, made as long as speech."""
        ...


class WrittenTokens:
    """The tokens that may be written, numbered without gaps: the joint vocabulary without its pieces of units.

    Args:
        vocabulary: the joint one.

    Attributes:
        ids: (W,) the id in the joint vocabulary of each; 0 is the blank in both.
        end: ends a row.
        suppressed: boolean (W,), what is never written all the same: blank, unknown, language tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.ids = np.flatnonzero(~vocabulary.is_unit)
        self._rows = {int(token): row for row, token in enumerate(self.ids)}
        self.end = self._rows[vocabulary.end]
        self.suppressed = vocabulary.suppressed[self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, ids: Sequence[int]) -> list[int]:
        """Ids of the joint vocabulary as such tokens. Raises KeyError for a unit."""
        return [self._rows[int(token)] for token in ids]

    def language(self, tag: str) -> int:
        """Token of a language. Raises SprachbundError for one without."""
        try:
            return self._rows[self._vocabulary.language_id(tag)]
        except KeyError:
            raise SprachbundError(
                f"the vocabulary of the units has no token for {tag}; make the units from data that hold it"
            ) from None

    @cached_property
    def words_only(self) -> bool:
        """Whether no token has a full stop."""
        return not any(FULL_STOP in self.decode([token]) for token in range(len(self)))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of such tokens; special ones vanish."""
        return self._vocabulary.decode_text([int(self.ids[token]) for token in tokens])


class ReadsTokens(nn.Module):
    """The part of a family that knows tokens and languages.

    Args:
        config: languages and units.
        reader: turns speech and text into tokens.

    Attributes:
        written: the tokens that may be written.

    Raises:
        SprachbundError: a target language for which the vocabulary has no token.
    """

    name: str
    config: Any
    decoder: TextDecoder | None

    def __init__(self, config: ReadTokens, reader: Reader) -> None:
        super().__init__()
        self.config, self.reader = config, reader
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self.decoder = None  # until a family with an attention decoder makes it
        self.written = WrittenTokens(reader.vocabulary)
        self.end_token = self.written.end
        self.max_window_s = config.max_window_s
        self.source_languages, self.target_languages = config.source_languages, config.target_languages
        self.language_tokens = [self.written.language(tag) for tag in config.target_languages]

    @property
    def capabilities(self) -> Capabilities:
        """It reads text too, by the same encoder; units do not say when they were spoken, so words get no times."""
        return Capabilities(
            encoder=self.get_submodule("encoder"),
            decoder=self.decoder,
            words_only=self.written.words_only,
            text_input=self,
        )

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every (source, target) it was trained on."""
        return frozenset(self.config.pairs)

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Source tokens (B, S) of utterances given as 16 kHz mono float32 samples.

        Raises:
            SprachbundError: an utterance too short for a frame, or an encoder of the units that is not there.
        """
        return self.tokens_read(self.reader.speech(samples))

    def text_features(self, texts: Sequence[str]) -> Features:
        """Source tokens (B, S) of texts."""
        return self.tokens_read(self.reader.text(texts))

    def tokens_read(self, rows: Sequence[Sequence[int]]) -> Features:
        """Source tokens (B, S), each row ended, so that none is empty; padded with the blank."""
        ended = [torch.tensor([*row, self.reader.vocabulary.end]) for row in rows]
        return Features(
            values=nn.utils.rnn.pad_sequence(ended, batch_first=True),
            num_frames=torch.tensor([len(row) for row in ended]),
        )

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (W,): blank, unknown and language tokens are never written; units are not among them."""
        return torch.from_numpy(self.written.suppressed.copy())

    def no_speech_log_prob(self, logits: Tensor) -> None:
        """It has no token for the absence of speech."""
        return None

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.written.decode(tokens)

    def target_index(self, language: str) -> int:
        """Place of a language among those it writes. Raises SprachbundError for one that it does not write."""
        if language not in self.target_languages:
            known = ", ".join(self.target_languages)
            raise SprachbundError(f"this model does not write {language!r}; it writes {known}")
        return self.target_languages.index(language)

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
            memory: memory of B utterances.
            rows_per_memory: rows for each utterance; row r reads memory r // rows_per_memory.
            capacity: most tokens of a row; `max_tokens` if None.
            targets: targets of the R rows.
        """
        return self._attention_decoder().start(
            memory.states, memory.num_frames, rows_per_memory=rows_per_memory, capacity=capacity
        )

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (R, Q, W) after each of `tokens` (R, Q).

        Args:
            tokens: (R, Q), which follow what the cache holds.
            cache: cache of the R rows; the tokens are added to it.
            weights: has to be None: attention is not shown.

        Raises:
            SprachbundError: attention weights are asked for, which times of words are read from.
        """
        if weights is not None:
            raise SprachbundError(
                f"the model {self.name} reads units, which do not say when they were spoken; leave out times of words"
            )
        return self._attention_decoder().step(tokens, cache)

    def _attention_decoder(self) -> TextDecoder:
        if self.decoder is None:
            raise SprachbundError(
                f"this {self.name} writes by its {self.config.head} head and has no attention decoder"
            )
        return self.decoder

"""What a Whisper model is taught with: features and rows of an utterance, and the prompts of a batch's rows.

Where nobody speaks a row is <|startoftranscript|> <|nospeech|> <|endoftext|> (arXiv 2212.04356, section 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sprachbund.audio.constants import FRAMES_PER_S, WINDOW
from sprachbund.audio.logmel import log_mel, num_frames
from sprachbund.data.batch import NO_LANGUAGE, Batch
from sprachbund.data.examples import Augment, Row
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Target
from sprachbund.text.languages import writes_spaces

if TYPE_CHECKING:
    from sprachbund.models.whisper.model import Whisper
    from sprachbund.models.whisper.tokens import WhisperTokens

_LONGEST_PROMPT = 4  # start, language, task, no timestamps


def target_tokens(model: Whisper, text: str, language: str) -> list[int]:
    """Tokens that are to follow the prompt for `language`, the end included."""
    return _text_tokens(model.tokens, text, language)


def row_language(tokens: WhisperTokens, language: str) -> int:
    """The token that stands for a target language in a batch; English-only models have none of their own."""
    return tokens.languages.get(language, tokens.start)


def row_prompts(model: Whisper, batch: Batch) -> list[list[int]]:
    """Prompts of the R rows of a batch, by its languages; rows without speech, or that do not count, get the start."""
    named = {row_language(model.tokens, target): target for _, target in model.pairs()}
    sources = batch.source_language.repeat_interleave(batch.rows_per_utterance).tolist()
    asked = list(zip(sources, batch.target_language.tolist(), batch.num_targets.tolist(), strict=True))
    known: dict[tuple[int, int], list[int]] = {}
    for source, token, _ in {row for row in asked if row[0] != NO_LANGUAGE and row[2]}:
        target = Target(language=named[token], source=model.source_languages[source])
        known[source, token] = model.prompt(target)
    return [known.get((source, token), [model.tokens.start]) for source, token, _ in asked]


class WhisperExamples:
    """`sprachbund.data.examples.Examples` of a Whisper model.

    Args:
        model: whose tokens, prompts and window are used.
        languages: spoken in the data and drawn as targets.

    Raises:
        SprachbundError: a language that the model does not know.
    """

    frames_per_s = FRAMES_PER_S

    def __init__(self, model: Whisper, languages: Sequence[str]) -> None:
        known = model.source_languages
        if unknown := sorted(set(languages) - set(known)):
            raise SprachbundError(
                f"the model has no token for {', '.join(unknown)}; give it one with "
                f'fine_tuning.new_languages = {{{unknown[0]} = "mean"}}'
            )
        self.tokens = model.tokens
        self.source_languages = list(languages)
        self.target_languages = sorted({t for s, t in model.pairs() if s in languages and t in languages})
        self.max_tokens = model.max_tokens - _LONGEST_PROMPT + 1
        self.max_window_s = model.max_window_s
        self.whole_windows = not model.real_length
        self.num_mel_bins = model.config.num_mel_bins
        self._pairs = model.pairs()
        self._numbers = {tag: i for i, tag in enumerate(known)}

    def number(self, language: str) -> int:
        """Place of a source language among the model's."""
        return self._numbers[language]

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """Log-mel (T, M) as `Whisper.features` gives it, the utterance augmented and the silence after it not."""
        if not self.whole_windows:
            samples = np.pad(samples, (0, max(0, WINDOW - len(samples))))
        pad_to_s = self.max_window_s if self.whole_windows else None
        features = log_mel(samples, self.num_mel_bins, pad_to_s=pad_to_s).T
        own = num_frames(len(samples))
        return torch.cat([augment(features[:own]), features[own:]]), own

    def transcript(self, text: str) -> list[int]:
        """None: Whisper has no CTC head."""
        return []

    def row(self, text: str, source: str | None, target: str) -> Row | None:
        """The text's tokens, None for a pair that the model does not know."""
        tokens = self.tokens
        if source is None:
            if tokens.no_speech is None:
                raise SprachbundError(
                    "the data hold recordings without speech, and the model has no <|nospeech|> token; leave them out"
                )
            return tokens.start, [tokens.no_speech, tokens.end]
        if (source, target) not in self._pairs:
            return None
        return row_language(tokens, target), _text_tokens(tokens, text, target)


def _text_tokens(tokens: WhisperTokens, text: str, language: str) -> list[int]:
    """Whisper begins a text with a space where the language separates words by one."""
    space = " " if writes_spaces(language) else ""
    return [*tokens.text_to_tokens(space + text.strip()), tokens.end]

"""Voxtral (arXiv 2507.13264): Whisper's encoder, four states to a speech token, and a Llama or Mistral.

It hears windows of 30 s, filled up with silence; longer speech is several windows, one behind the other, in one prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.audio.constants import HOP, SAMPLE_RATE
from sprachbund.audio.features import log_mel
from sprachbund.models.audio_llm.config import VoxtralConfig
from sprachbund.models.audio_llm.model import AudioLLM
from sprachbund.models.audio_llm.tokens import LLMTokens
from sprachbund.models.base import Target
from sprachbund.models.whisper.model import WhisperEncoder
from sprachbund.nn.conformer import valid_frames
from sprachbund.text.languages import language_name

_FRAMES_PER_STATE = 2
TRANSLATE = "Translate this speech into {language}. Give the translation only."
"""The published model has no instruction of its own for translations; it is asked as in a conversation."""


@dataclass(frozen=True, kw_only=True)
class WindowFeatures:
    """Log-mel of whole windows, silence behind the end of the utterance.

    Attributes:
        num_mel_bins: M.
        window: frames of a window.
    """

    num_mel_bins: int
    window: int

    def __call__(self, samples: np.ndarray) -> tuple[Tensor, int]:
        """Features (T, M) of an utterance, T a multiple of the window."""
        count = max(1, -(-len(samples) // (self.window * HOP)))
        mel = log_mel(samples, self.num_mel_bins, pad_to_s=count * self.window * HOP / SAMPLE_RATE).T
        return mel, mel.shape[0]


class GroupProjector(nn.Module):
    """Neighbouring states, joined, through two matrices.

    Args:
        group: states that are joined.
        states_width: width of a state.
        width: width of the language model.
    """

    def __init__(self, group: int, states_width: int, width: int) -> None:
        super().__init__()
        self.group = group
        self.linear_1 = nn.Linear(group * states_width, width, bias=False)
        self.linear_2 = nn.Linear(width, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """Projections (B, S / group, width) of states (B, S, D)."""
        joined = states.unflatten(1, (-1, self.group)).flatten(2)
        projected: Tensor = self.linear_2(F.gelu(self.linear_1(joined)))
        return projected


class Voxtral(AudioLLM):
    """A recogniser and translator of eight languages.

    Args:
        config: shape and languages.
        values: config.json as it was read.
        tokens: the vocabulary.
        ends: tokens that end a row.

    Raises:
        SprachbundError: the vocabulary lacks a token of the prompt.
    """

    def __init__(
        self, config: VoxtralConfig, values: Mapping[str, Any], tokens: LLMTokens, ends: Sequence[int]
    ) -> None:
        super().__init__(config, values, tokens, ends)
        audio = config.audio_config
        self.encoder = WhisperEncoder(audio.whisper)
        self.projector = GroupProjector(audio.group, audio.hidden_size, self.llm.width)
        self.window = _FRAMES_PER_STATE * audio.max_source_positions
        self.front_end = WindowFeatures(num_mel_bins=audio.num_mel_bins, window=self.window)
        self.frame_s = _FRAMES_PER_STATE * audio.group * HOP / SAMPLE_RATE
        self._translate = config.sprachbund.translate or TRANSLATE
        self._before = [tokens.token(name) for name in ("<s>", "[INST]", "[BEGIN_AUDIO]")]
        self._end, self._transcribe = tokens.token("[/INST]"), tokens.token("[TRANSCRIBE]")

    def hear(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Speech tokens (B, P, D) of features (B, T, M), and how many (B,) are each utterance's; windows are alone."""
        counts = (num_frames + self.window - 1) // self.window
        most = int(counts.max())
        padded = F.pad(values, (0, 0, 0, max(0, most * self.window - values.shape[1])))
        windows = padded[:, : most * self.window].unflatten(1, (most, self.window))
        valid = valid_frames(counts, most)
        projected = self.projector(self.encoder(windows[valid]))
        states = projected.new_zeros(*valid.shape, *projected.shape[1:])
        states[valid] = projected
        return states.flatten(1, 2), counts * projected.shape[1]

    def around(self, target: Target) -> tuple[list[int], list[int]]:
        """The transcription request of the published model, or an instruction behind the speech."""
        if target.source is None:
            return self._before, [self._end, self._transcribe]
        if target.source == target.language:
            language = self.tokens.text_to_tokens(f"lang:{target.language}")
            return self._before, [self._end, *language, self._transcribe]
        asked = self._translate.format(language=language_name(target.language))
        return self._before, [*self.tokens.text_to_tokens(asked), self._end]

    def room_s(self, num_tokens: int) -> float:
        """Seconds of the whole windows that so many tokens hold."""
        window_s = self.window * HOP / SAMPLE_RATE
        return num_tokens // round(window_s / self.frame_s) * window_s

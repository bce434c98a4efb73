"""Qwen3-ASR (arXiv 2601.21337): an encoder of pieces of a second, and a Qwen3 that names the language it hears.

Convolutions read pieces of 100 frames, each with positions of its own; attention sees windows of eight seconds. The
model writes "language English<asr_text>" and then what was said; a language that is known is written for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.features import log_mel
from sprachbund.errors import SprachbundError
from sprachbund.models.audio_llm.config import QWEN_LANGUAGES, QwenAsrConfig, QwenEncoderConfig, convolved
from sprachbund.models.audio_llm.model import AudioLLM
from sprachbund.models.audio_llm.tokens import LLMTokens
from sprachbund.models.base import Memory, Target
from sprachbund.models.causal_lm import ChatTemplate
from sprachbund.nn.causal_lm import PrefixCache
from sprachbund.nn.conformer import sinusoids, valid_frames
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.text.languages import language_name

_SHORTEST = SAMPLE_RATE // 2
_MARK = "<asr_text>"


@dataclass(frozen=True, kw_only=True)
class PlainFeatures:
    """Whisper's log-mel at the utterance's own length, of half a second at least.

    Attributes:
        num_mel_bins: M.
    """

    num_mel_bins: int

    def __call__(self, samples: np.ndarray) -> tuple[Tensor, int]:
        """Features (T, M) of an utterance."""
        padded = np.pad(samples, (0, max(0, _SHORTEST - len(samples))))
        mel = log_mel(padded, self.num_mel_bins).T
        return mel, mel.shape[0]


class PieceEncoder(nn.Module):
    """Three convolutions on pieces of the features, then layers that attend within windows.

    Args:
        config: sizes.
    """

    def __init__(self, config: QwenEncoderConfig) -> None:
        super().__init__()
        channels, width = config.downsample_hidden_size, config.d_model
        self.piece = 2 * config.n_window
        self.states_per_piece = convolved(self.piece)
        self.window = self.states_per_piece * (config.n_window_infer // self.piece)
        self.conv2d1 = nn.Conv2d(1, channels, 3, 2, padding=1)
        self.conv2d2 = nn.Conv2d(channels, channels, 3, 2, padding=1)
        self.conv2d3 = nn.Conv2d(channels, channels, 3, 2, padding=1)
        self.conv_out = nn.Linear(channels * convolved(config.num_mel_bins), width, bias=False)
        with torch.device("cpu"):  # never stored, so it has to be real in a model built on meta too
            positions = sinusoids(self.states_per_piece, width)
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor
        self.layers = nn.ModuleList(
            EncoderLayer(width, config.encoder_attention_heads, config.encoder_ffn_dim, key_bias=True)
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(width)

    def num_states(self, num_frames: Tensor) -> Tensor:
        """States (B,) of so many frames (B,)."""
        rest = num_frames % self.piece
        for _ in range(3):
            rest = (rest + 1) // 2
        return num_frames // self.piece * self.states_per_piece + rest

    def forward(self, features: Tensor, num_frames: Tensor) -> Tensor:
        """States (B, S, D) of features (B, T, M), of which `num_frames` (B,) frames are valid."""
        valid = valid_frames(num_frames, features.shape[1])
        # Behind its end a row is nought, whatever its neighbours have there.
        x = F.pad(features.masked_fill(~valid[..., None], 0.0), (0, 0, 0, -features.shape[1] % self.piece))
        pieces = x.unflatten(1, (-1, self.piece))
        x = pieces.flatten(0, 1).transpose(1, 2)[:, None]  # (B N, 1, M, frames of a piece)
        for convolution in (self.conv2d1, self.conv2d2, self.conv2d3):
            x = F.gelu(convolution(x))
        x = self.conv_out(x.permute(0, 3, 1, 2).flatten(2)) + self.positions.to(x.dtype)
        x = x.unflatten(0, pieces.shape[:2]).flatten(1, 2)
        counts = self.num_states(num_frames)
        x = x[:, : int(counts.max())]
        windows = torch.arange(x.shape[1], device=x.device) // self.window
        allowed = (windows[:, None] == windows) & valid_frames(counts, x.shape[1])[:, None, :]
        allowed = allowed | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)  # padding sees itself
        for layer in self.layers:
            x = layer(x, allowed[:, None])
        normed: Tensor = self.norm(x)
        return normed


class MlpProjector(nn.Module):
    """Two matrices with GELU between them.

    Args:
        states_width: width of a state.
        width: width of the language model.
    """

    def __init__(self, states_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(states_width, states_width)
        self.linear_2 = nn.Linear(states_width, width)

    def forward(self, states: Tensor) -> Tensor:
        """Projections (B, S, width) of states (B, S, D)."""
        projected: Tensor = self.linear_2(F.gelu(self.linear_1(states)))
        return projected


class QwenAsr(AudioLLM):
    """A recogniser of thirty languages.

    Args:
        config: shape and languages.
        values: config.json as it was read.
        tokens: the vocabulary.
        ends: tokens that end a row.
        template: writes the conversation.

    Raises:
        SprachbundError: the vocabulary lacks a token of the prompt, or the template has no place for speech; a language
            that the model has no name for.
    """

    language_from_text = False
    reads_context = True

    def __init__(
        self,
        config: QwenAsrConfig,
        values: Mapping[str, Any],
        tokens: LLMTokens,
        ends: Sequence[int],
        template: ChatTemplate,
    ) -> None:
        super().__init__(config, values, tokens, ends)
        audio = config.audio_config
        self.encoder = PieceEncoder(audio)
        self.projector = MlpProjector(audio.d_model, self.llm.width)
        self.front_end = PlainFeatures(num_mel_bins=audio.num_mel_bins)
        self.frame_s = 2 * audio.n_window / self.frames_per_s / convolved(2 * audio.n_window)
        self._speech, self._template = tokens.name(config.audio_token_id), template
        self._mark = tokens.token(_MARK)
        self._names = {tag: QWEN_LANGUAGES.get(tag, language_name(tag)) for tag in self.source_languages}

    def hear(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Speech tokens (B, P, D) of features (B, T, M), and how many (B,) are each utterance's."""
        assert isinstance(self.encoder, PieceEncoder)
        return self.projector(self.encoder(values, num_frames)), self.encoder.num_states(num_frames)

    def around(self, target: Target) -> tuple[list[int], list[int]]:
        """A system turn with the context, the speech, and the assistant's turn up to the language, if it is known."""
        (head, tail), behind = self._turns
        context = self.context_tokens(target.context) if target.context else []
        known = [] if target.source is None else self._language_tokens(target.language)
        return [*head, *context, *tail], [*behind, *known]

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, S) of the languages that the model would name."""
        # The language is asked behind the speech, so it does not matter which one is named here.
        anything = [Target(language=self.source_languages[0])] * len(memory.states)
        cache = self.start(memory, capacity=64, targets=anything)
        behind = torch.tensor(self._turns[1], device=self.device).expand(len(memory.states), -1)
        logits = self.step(behind, cache)[:, -1]
        scores = logits.new_zeros(len(memory.states), len(self._names), dtype=torch.float32)
        paths = {n: self._language_tokens(tag) for n, tag in enumerate(self._names)}
        self._score(paths, logits, cache, scores)
        return scores.log_softmax(dim=-1)

    def _score(
        self, paths: Mapping[int, Sequence[int]], logits: Tensor, cache: PrefixCache, scores: Tensor
    ) -> None:
        """Add to `scores` (B, S) the log-probabilities of what is left of each path, as far as paths differ."""
        log_probs = logits.float().log_softmax(dim=-1)
        for token in {path[0] for path in paths.values()}:
            members = {n: path[1:] for n, path in paths.items() if path[0] == token}
            scores[:, list(members)] += log_probs[:, token, None]
            if len(members) > 1:
                held = cache.lengths.cpu()
                given = torch.full((len(scores), 1), token, device=self.device)
                self._score(members, self.step(given, cache)[:, -1], cache, scores)
                cache.rewind(held)

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): all that is no text, but the end, and the mark behind a language that is not known."""
        mask = super().suppressed(target)
        mask[self._mark] = target.source is not None
        return mask

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without the language that is named in front of it."""
        own = list(tokens)
        if self._mark in own:
            own = own[own.index(self._mark) + 1 :]
        return super().decode_text(own)

    def _language_tokens(self, tag: str) -> list[int]:
        return self.tokens.markup_to_tokens(f"language {self._names[tag]}{_MARK}")

    @cached_property
    def _turns(self) -> tuple[tuple[list[int], list[int]], list[int]]:
        """Tokens before the speech, in front of the context and behind it, and those behind the speech."""
        context = "\N{OBJECT REPLACEMENT CHARACTER}"
        speech = [{"type": "audio", "audio": ""}]
        user = {"role": "user", "content": speech}
        system = {"role": "system", "content": [{"type": "text", "text": context}]}
        before, *behind = self._template.render([system, user]).split(self._speech)
        parts = before.split(context)
        if len(behind) != 1 or len(parts) != 2:
            raise SprachbundError(
                f"{self._template.source}: the chat template does not write a system turn and {self._speech} once; "
                "copy it again"
            )
        head, tail, end = (self.tokens.markup_to_tokens(part) for part in (*parts, *behind))
        return (head, tail), end or [self.end_token]

"""Voxtral Realtime: a causal encoder, and a language model that writes one token for every 80 ms while it hears.

Speech is a stream of log-mel frames. Two convolutions and causal layers make a state of two of them, and four states,
joined and projected, are added to the embedding of the token that was written last. The text is some frames behind the
speech, and every layer of the decoder is given how many. Both networks attend to a window of what is behind, so that a
stream may go on for ever.

Shapes: R rows, B utterances, T frames of 80 ms, M mel bins, D width of the decoder, E width of the encoder,
V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.audio.constants import HOP, SAMPLE_RATE
from sprachbund.audio.features import LogMelStream
from sprachbund.errors import SprachbundError
from sprachbund.models.audio_llm.tokens import LLMTokens
from sprachbund.models.audio_llm.voxtral import GroupProjector
from sprachbund.models.base import (
    Alignment,
    Capabilities,
    Features,
    FrameFrontEnd,
    FrameState,
    FrameTokens,
    Memory,
    Target,
)
from sprachbund.models.calibration import Calibration
from sprachbund.models.frames import TranscribesByFrames, whole_features, whole_memory
from sprachbund.models.voxtral_realtime.config import RealtimeEncoderConfig, VoxtralRealtimeConfig
from sprachbund.nn.causal_lm import CausalLayers, CausalLM, CausalShape, SwiGLU
from sprachbund.nn.sliding_window import SlidingCache, through_window
from sprachbund.util.devices import ANY_DEVICE

_CONDITION_WIDTH = 32
_CONDITION_BASE = 10_000.0
_LONGEST_WORD = 10
"""Frames of silence that are heard behind the delay, so that the last word has room for all of its tokens."""
_BEGIN, _PAD = "<s>", "[STREAMING_PAD]"


class RealtimeFrontEnd:
    """Log-mel of one stream in frames of 80 ms, with silence in front.

    Args:
        num_mel_bins: M.
        mel_per_frame: log-mel frames of each.
        lead: frames of silence before the speech.
        delay: frames that the text is behind.
    """

    def __init__(self, num_mel_bins: int, mel_per_frame: int, lead: int, delay: int) -> None:
        self._mel = LogMelStream(num_mel_bins, "voxtral")
        self._per_frame, self._samples = mel_per_frame, mel_per_frame * HOP
        self._behind = (delay + _LONGEST_WORD) * self._samples
        self._num_samples = 0
        self._left = self._mel.push(np.zeros(lead * self._samples, np.float32))

    def push(self, samples: np.ndarray) -> Tensor:
        """The frames (T, mel_per_frame * M) that the next samples (N,) complete."""
        self._num_samples += len(samples)
        return self._whole(self._mel.push(samples))

    def finish(self) -> Tensor:
        """The frames left, with silence behind."""
        missing = -self._num_samples % self._samples
        rest = self._mel.push(np.zeros(missing + self._behind, np.float32))
        return self._whole(torch.cat([rest, self._mel.finish()]))

    def _whole(self, mel: Tensor) -> Tensor:
        mel = torch.cat([self._left, mel])
        count = len(mel) // self._per_frame
        self._left = mel[count * self._per_frame :]
        return mel[: count * self._per_frame].unflatten(0, (count, self._per_frame)).flatten(1)


@dataclass(frozen=True, kw_only=True)
class RealtimeState:
    """The state of rows (R,) between two frames; it satisfies `sprachbund.models.base.FrameState`.

    Attributes:
        mel: the newest two log-mel frames (R, M, 2), which the first convolution sees again.
        hidden: the newest frame (R, E, 1) behind it, for the second.
        heard: state of the encoder's layers.
        written: state of the decoder's layers.
        token: token that was written last (R,).
        ended: boolean (R,), whether the end was written; nothing is behind it.
    """

    mel: Tensor
    hidden: Tensor
    heard: SlidingCache
    written: SlidingCache
    token: Tensor
    ended: Tensor

    def take(self, rows: Tensor) -> Self:
        """The rows at the indices `rows` (r,)."""
        return type(self)(
            mel=self.mel[rows],
            hidden=self.hidden[rows],
            heard=self.heard.take(rows),
            written=self.written.take(rows),
            token=self.token[rows],
            ended=self.ended[rows],
        )

    @classmethod
    def stack(cls, states: Sequence[Self]) -> Self:
        """Rows of several states, one state behind the other."""
        return cls(
            mel=torch.cat([state.mel for state in states]),
            hidden=torch.cat([state.hidden for state in states]),
            heard=SlidingCache.stack([state.heard for state in states]),
            written=SlidingCache.stack([state.written for state in states]),
            token=torch.cat([state.token for state in states]),
            ended=torch.cat([state.ended for state in states]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by name."""
        caches = {"heard": self.heard, "written": self.written}
        return {
            "mel": self.mel,
            "hidden": self.hidden,
            "token": self.token,
            "ended": self.ended,
            **{
                f"{at}.{name}": value
                for at, cache in caches.items()
                for name, value in cache.tensors().items()
            },
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The state that gave `tensors`. Raises ValueError naming what is missing or too much."""
        parts = ("keys", "values", "lengths")
        wanted = {
            "mel",
            "hidden",
            "token",
            "ended",
            *(f"{at}.{n}" for at in ("heard", "written") for n in parts),
        }
        if different := wanted ^ set(tensors):
            raise ValueError(f"{', '.join(sorted(different))}: too much or missing in the state of a stream")
        heard, written = (
            SlidingCache.from_tensors({name: tensors[f"{at}.{name}"] for name in parts})
            for at in ("heard", "written")
        )
        return cls(
            mel=tensors["mel"],
            hidden=tensors["hidden"],
            heard=heard,
            written=written,
            token=tensors["token"],
            ended=tensors["ended"],
        )


class RealtimeEncoder(CausalLayers):
    """Two causal convolutions, the second of stride two, and causal layers.

    Args:
        config: sizes.
    """

    def __init__(self, config: RealtimeEncoderConfig) -> None:
        super().__init__(config.shape)
        self.window = config.sliding_window
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.hidden_size, 3)
        self.conv2 = nn.Conv1d(config.hidden_size, config.hidden_size, 3, stride=2)

    def forward(
        self, mel: Tensor, before: Tensor, hidden: Tensor, cache: SlidingCache
    ) -> tuple[Tensor, Tensor, Tensor, SlidingCache]:
        """States (R, N / 2, E) of N log-mel frames, and what the next call is given of the three others.

        Args:
            mel: (R, N, M), N even.
            before: the two frames (R, M, 2) in front of it; of a new stream noughts, and so are the others.
            hidden: the frame (R, E, 1) in front of it behind the first convolution.
            cache: cache of the layers.
        """
        seen = torch.cat([before, mel.transpose(1, 2)], dim=2)
        inner = torch.cat([hidden, F.gelu(self.conv1(seen))], dim=2)
        states, cache = through_window(self, F.gelu(self.conv2(inner)).transpose(1, 2), cache, self.window)
        return states, seen[:, :, -2:], inner[:, :, -1:], cache


class DelayedFeedForward(SwiGLU):
    """A feed-forward whose input is scaled by what a small network makes of the delay.

    Args:
        shape: shape of the decoder.
        delay: frames that the text is behind the speech.
    """

    def __init__(self, shape: CausalShape, delay: int) -> None:
        super().__init__(shape)
        self.delay = delay
        self.linear1 = nn.Linear(shape.width, _CONDITION_WIDTH, bias=False)
        self.linear2 = nn.Linear(_CONDITION_WIDTH, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(R, Q, D) to (R, Q, D)."""
        scale = self.linear2(F.gelu(self.linear1(embedded_delay(self.delay, x))))
        return super().forward(x * (1 + scale))


def embedded_delay(delay: int, like: Tensor) -> Tensor:
    """Cosines and sines (D,) of a number of frames, as positions have them (arXiv 1706.03762, section 3.5).

    Args:
        delay: frames.
        like: (..., D), whose precision and device it gets.
    """
    half = like.shape[-1] // 2
    rates = torch.exp(-math.log(_CONDITION_BASE) * torch.arange(half).float() / half).to(like)
    angles = delay * rates
    return torch.cat([angles.cos(), angles.sin()])


class VoxtralRealtime(TranscribesByFrames, nn.Module):
    """A recogniser of thirteen languages; satisfies `sprachbund.models.base.Family` and `FrameDecoder`.

    Args:
        config: shape and languages.
        values: config.json as it was read.
        tokens: the vocabulary.
        ends: tokens that end a text.
        lead: frames of silence before the speech.
        delay: frames that the text is behind the speech.

    Attributes:
        files: other files of the directory, by name, to be carried along.

    Raises:
        SprachbundError: the vocabulary lacks the tokens of the prompt.
    """

    def __init__(
        self,
        config: VoxtralRealtimeConfig,
        values: Mapping[str, Any],
        tokens: LLMTokens,
        ends: Sequence[int],
        *,
        lead: int,
        delay: int,
    ) -> None:
        super().__init__()
        self.config, self.values, self.tokens = config, dict(values), tokens
        self.name = config.model_type
        self.ends, self.lead, self.delay = tuple(dict.fromkeys(ends)), lead, delay
        self.frame_s = config.audio_length_per_tok * HOP / SAMPLE_RATE
        self.source_languages = config.languages
        self.max_window_s = config.sprachbund.window_s
        self.files: dict[str, bytes] = {}
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self.begin, self.pad = tokens.token(_BEGIN), tokens.token(_PAD)
        shape = config.text_config.shape
        self.encoder = RealtimeEncoder(config.audio_config)
        self.projector = GroupProjector(
            config.downsample_factor, config.audio_config.hidden_size, shape.width
        )
        self.llm = CausalLM(shape)
        for layer in self.llm.layers:
            layer.mlp = DelayedFeedForward(shape, delay)

    # The family.

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.llm.embed_tokens.weight.device

    @property
    def capabilities(self) -> Capabilities:
        """One token for every frame, which is its time; several languages are told apart by the text."""
        return Capabilities(
            encoder=self.encoder,
            frame_decoder=self,
            alignment=Alignment(frame_s=self.frame_s),
            language_from_text=len(self.source_languages) > 1,
            devices=ANY_DEVICE,
        )

    @property
    def end_token(self) -> int:
        """Ends a row."""
        return self.ends[0]

    @property
    def max_tokens(self) -> int:
        """Longest row: a token for every frame of a window."""
        return round(self.max_window_s / self.frame_s)

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Frames (B, T, 8 M) of log-mel of 16 kHz mono float32 samples, silence before and behind them.

        Raises:
            SprachbundError: an utterance is longer than a window.
        """
        longest_s = max((len(s) for s in samples), default=0) / SAMPLE_RATE
        if longest_s > self.max_window_s + 1 / SAMPLE_RATE:
            raise SprachbundError(
                f"an utterance lasts {longest_s:.1f} s, and a window {self.max_window_s:g}; cut it, or set "
                "sprachbund.window_s in config.json"
            )
        return whole_features(self, samples, self.device)

    def encode(self, features: Features) -> Memory:
        """Run encoder and projector; states are (B, T, D)."""
        return whole_memory(self, features)

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): none; what is no text is written, and is no part of the text."""
        return torch.zeros(self.tokens.size, dtype=torch.bool, device=self.device)

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.tokens.tokens_to_text(tokens)

    # Frame by frame.

    def front_end(self) -> FrameFrontEnd:
        """Log-mel of a new stream."""
        return RealtimeFrontEnd(
            self.config.audio_config.num_mel_bins, self.config.audio_length_per_tok, self.lead, self.delay
        )

    def start_frames(self, num_rows: int) -> RealtimeState:
        """The state of rows in front of their first frame."""
        weight, audio = self.llm.embed_tokens.weight, self.config.audio_config
        return RealtimeState(
            mel=weight.new_zeros(num_rows, audio.num_mel_bins, 2),
            hidden=weight.new_zeros(num_rows, audio.hidden_size, 1),
            heard=SlidingCache.empty(self.encoder, num_rows),
            written=SlidingCache.empty(self.llm, num_rows),
            token=torch.full((num_rows,), self.begin, device=weight.device),
            ended=torch.zeros(num_rows, dtype=torch.bool, device=weight.device),
        )

    def encode_frames(self, frames: Tensor, state: FrameState) -> tuple[Tensor, RealtimeState]:
        """Hear the next frames.

        Args:
            frames: (R, T, 8 M).
            state: state of the R rows.

        Returns:
            What is added to the embeddings of tokens (R, T, D), and the state behind them.
        """
        assert isinstance(state, RealtimeState)
        weight = self.llm.embed_tokens.weight
        mel = frames.to(weight).unflatten(2, (self.config.audio_length_per_tok, -1)).flatten(1, 2)
        states, before, hidden, heard = self.encoder(mel, state.mel, state.hidden, state.heard)
        return self.projector(states), replace(state, mel=before, hidden=hidden, heard=heard)

    def write_frames(self, states: Tensor, state: FrameState) -> tuple[FrameTokens, RealtimeState]:
        """Write one token for each of the next encoded frames.

        The frames of silence in front of the speech, and those of the delay, are read with padding and write nothing.

        Args:
            states: (R, T, D).
            state: state of the R rows.
        """
        assert isinstance(state, RealtimeState)
        written, token, ended = state.written, state.token, state.ended
        prompt = self.lead + self.delay
        silent = min(max(0, prompt - int(written.lengths.max())), states.shape[1])
        tokens = [torch.full_like(token, self.pad)] * silent
        log_probs = [torch.zeros(len(token), device=token.device)] * silent
        if silent:  # in one pass, since nothing depends on what is written
            given = torch.stack([token, *tokens[1:]], dim=1)
            _, written = self._read(given, states[:, :silent], written)
            token = tokens[0]
        for t in range(silent, states.shape[1]):
            out, written = self._read(token[:, None], states[:, t : t + 1], written)
            best, likeliest = self.llm.logits(out[:, 0]).float().log_softmax(-1).max(-1)
            quiet = ended | (written.lengths <= prompt)
            token = torch.where(quiet, self.pad, likeliest)
            ended = ended | torch.isin(token, torch.tensor(self.ends, device=token.device))
            tokens.append(token)
            log_probs.append(torch.where(quiet, 0.0, best))
        after = replace(state, written=written, token=token, ended=ended)
        return FrameTokens(tokens=torch.stack(tokens, dim=1), log_probs=torch.stack(log_probs, dim=1)), after

    def _read(self, tokens: Tensor, states: Tensor, cache: SlidingCache) -> tuple[Tensor, SlidingCache]:
        """States (R, T, D) of the decoder behind tokens (R, T) and the frames (R, T, D) that they are read with."""
        return through_window(self.llm, self.llm.embed(tokens) + states, cache, self.config.text_window)

    def is_text(self, tokens: Tensor) -> Tensor:
        """Boolean, for tokens (...) of any shape: which are text."""
        return ~self.tokens.not_text.to(tokens.device)[tokens]

"""Kyutai STT (arXiv 2509.08753): a codec hears speech, and a decoder writes a token of text for every frame of it.

Text and speech are two streams of one model, the text some frames behind. It transcribes, and is given no language.
Shapes: B utterances, R rows, N samples, T frames, D width, V vocabulary, L source languages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.models.base import (
    Alignment,
    Capabilities,
    Features,
    FrameState,
    FrameTokens,
    Memory,
    Target,
    check_window,
)
from sprachbund.models.calibration import Calibration
from sprachbund.models.fastconformer.tokens import FastConformerTokens
from sprachbund.models.frames import TranscribesByFrames, whole_features, whole_memory
from sprachbund.models.kyutai.config import FRAME_SAMPLES, ExtractorConfig, KyutaiConfig
from sprachbund.nn.delayed_streams import DelayedStreamsDecoder
from sprachbund.nn.mimi import MimiEncoder, MimiState
from sprachbund.nn.sliding_window import SlidingCache
from sprachbund.util.devices import ANY_DEVICE

_FRAMES_AT_ONCE = 125
"""Frames whose sound is in memory as what the convolutions make of it; 10 s."""
_AFTER_S = 1.0
"""Silence behind the speech, beside that for the delay."""
_ENCODER, _DECODER, _TOKEN = "encoder.", "decoder.", "token"


# From the 16 kHz of the package to the 24 kHz of the codec, in pieces of any length. Every two samples become three, by
# a causal low-pass filter (Kaiser's window; Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5.3).
# Pieces give what the whole gives, and all that is kept of a stream is the sound that its next samples need again.

CODEC_RATE = 24_000
"""Samples per second of what comes out."""
DELAY_S = 0.002
"""Delay of the resampled sound."""
_IN, _OUT = 2, 3
_PAST = round(2 * DELAY_S * SAMPLE_RATE)
"""Samples before that three new ones depend on; the filter is symmetric."""
_BETA = 9.0
"""Beta of the Kaiser window; aliases are 90 dB down."""


def _kernel() -> Tensor:
    """Filters (3, 1, taps), in double precision, of the three samples that two become.

    At 48 kHz, where both rates meet, one filter h of 3 * `_PAST` + 1 taps is run over the samples with two noughts
    behind each; what is computed is only the terms that are not nought, of every second output.
    """
    taps = _OUT * _PAST + 1
    time = np.arange(taps) - taps // 2
    filtered = np.sinc(time / _OUT) * np.kaiser(taps, _BETA)
    filtered *= _OUT / filtered.sum()
    kernel = np.zeros((_OUT, 1, _PAST + _IN))
    for phase in range(_OUT):
        for tap in range(_PAST + _IN):
            index = _IN * phase - _OUT * (tap - _PAST)
            if 0 <= index < taps:
                kernel[phase, 0, tap] = filtered[index]
    return torch.from_numpy(kernel)


_KERNEL = _kernel()


class UpsampledStream:
    """The sound of one stream at 24 kHz."""

    def __init__(self) -> None:
        self._held = np.zeros(_PAST, np.float32)

    def push(self, samples: NDArray[np.float32]) -> Tensor:
        """Take the next samples (N,) at 16 kHz, and give those at 24 kHz that they complete; an odd one waits."""
        held = np.concatenate([self._held, samples.astype(np.float32, copy=False)])
        pairs = (len(held) - _PAST) // _IN
        self._held = held[pairs * _IN :]
        if pairs == 0:
            return torch.zeros(0)
        # In double precision, so that it rounds to the same sound whatever the pieces are.
        heard = torch.from_numpy(held[: _PAST + pairs * _IN]).double()
        return torch.conv1d(heard[None, None], _KERNEL, stride=_IN)[0].T.flatten().float()


# States and frames of streams.


@dataclass(frozen=True, kw_only=True)
class KyutaiState:
    """The state of rows between two frames; satisfies `sprachbund.models.base.FrameState`.

    Attributes:
        encoder: encoder of the codec.
        decoder: positions that the decoder has read.
        token: token written last (R,).
    """

    encoder: MimiState
    decoder: SlidingCache
    token: Tensor

    def take(self, rows: Tensor) -> Self:
        """The rows at the indices `rows` (r,)."""
        return type(self)(
            encoder=self.encoder.take(rows), decoder=self.decoder.take(rows), token=self.token[rows]
        )

    @classmethod
    def stack(cls, states: Sequence[Self]) -> Self:
        """Rows of several states, one state behind the other."""
        return cls(
            encoder=MimiState.stack([state.encoder for state in states]),
            decoder=SlidingCache.stack([state.decoder for state in states]),
            token=torch.cat([state.token for state in states]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by name; ready for `safetensors.torch.save`."""
        return {
            **{_ENCODER + name: value for name, value in self.encoder.tensors().items()},
            **{_DECODER + name: value for name, value in self.decoder.tensors().items()},
            _TOKEN: self.token,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The state that gave `tensors`. Raises ValueError naming what is missing or too much."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}

        if other := [
            name for name in tensors if not name.startswith((_ENCODER, _DECODER)) and name != _TOKEN
        ]:
            raise ValueError(f"{', '.join(sorted(other))}: too much in a state of Kyutai STT")
        try:
            return cls(
                encoder=MimiState.from_tensors(part(_ENCODER)),
                decoder=SlidingCache.from_tensors(part(_DECODER)),
                token=tensors[_TOKEN],
            )
        except KeyError as error:
            raise ValueError(f"{error}: missing in a state of Kyutai STT") from error


class KyutaiFrontEnd:
    """Frames (T, 1920) of a stream at 24 kHz; satisfies `sprachbund.models.base.FrameFrontEnd`.

    Args:
        extractor: says how much silence is around the speech.
    """

    def __init__(self, extractor: ExtractorConfig) -> None:
        self._sound = UpsampledStream()
        self._behind_s = extractor.audio_delay_seconds + _AFTER_S
        self._held = torch.zeros(int(extractor.audio_silence_prefix_seconds * CODEC_RATE))

    def push(self, samples: np.ndarray) -> Tensor:
        """Take the next samples (N,) at 16 kHz, and give the frames that they complete."""
        return self._frames(self._sound.push(samples))

    def finish(self) -> Tensor:
        """End the sound: the frames left, with silence in which the text is written to its end."""
        # One frame less: its position is that in front of the first frame.
        silence = round(self._behind_s * SAMPLE_RATE) - FRAME_SAMPLES * SAMPLE_RATE // CODEC_RATE
        return self._frames(self._sound.push(np.zeros(silence, np.float32)))

    def _frames(self, new: Tensor) -> Tensor:
        held = torch.cat([self._held, new])
        count = len(held) // FRAME_SAMPLES
        self._held = held[count * FRAME_SAMPLES :]
        return held[: count * FRAME_SAMPLES].unflatten(0, (count, FRAME_SAMPLES))


class Kyutai(TranscribesByFrames, nn.Module):
    """A recogniser that writes while it hears; satisfies `Family` and `FrameDecoder` of `sprachbund.models.base`.

    Args:
        config: shape and tokens.
        extractor: silence around the speech.
        values: config.json as it was read, to be written again.
        tokens: the vocabulary.
        languages: BCP-47 tags of what it hears.

    Attributes:
        files: other files of the directory that it was read from, by name; written again.
        unused: weights of the half of the codec that makes sound, by their names in the file; written again.
    """

    max_window_s = 30.0
    """Ours: speech is cut at its pauses. The model goes on for as long as somebody speaks."""
    end_token = -1  # rows end with the speech
    frame_s = FRAME_SAMPLES / CODEC_RATE

    def __init__(
        self,
        config: KyutaiConfig,
        extractor: ExtractorConfig,
        values: Mapping[str, Any],
        tokens: FastConformerTokens,
        languages: Sequence[str],
    ) -> None:
        super().__init__()
        self.config, self.extractor, self.values, self.tokens = config, extractor, dict(values), tokens
        self.name = config.model_type
        self.files: Mapping[str, bytes] = {}
        self.unused: Mapping[str, Tensor] = {}
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self.source_languages = tuple(languages)
        before_s, behind_s = extractor.audio_silence_prefix_seconds, extractor.audio_delay_seconds
        # To the nearest frame; one less for the position in front of the first, which has a token too.
        self.lead = int(before_s / self.frame_s)
        self.delay = round((before_s + behind_s) / self.frame_s) - 1 - self.lead
        self.codec = MimiEncoder(config.codec_config.shape)
        self.decoder = DelayedStreamsDecoder(config.shape, config.codes)

    @property
    def device(self) -> torch.device:
        """Device that the model computes on."""
        return self.decoder.lm_head.weight.device

    @property
    def max_tokens(self) -> int:
        """Frames of the longest speech, with the silence around it."""
        extractor = self.extractor
        around_s = extractor.audio_silence_prefix_seconds + extractor.audio_delay_seconds + _AFTER_S
        return int((self.max_window_s + around_s) / self.frame_s)

    @property
    def capabilities(self) -> Capabilities:
        """One token for every frame; several languages are told apart by the text."""
        return Capabilities(
            encoder=self.codec,
            frame_decoder=self,
            alignment=Alignment(frame_s=self.frame_s),
            language_from_text=len(self.source_languages) > 1,
            devices=ANY_DEVICE,
        )

    # Frames.

    def front_end(self) -> KyutaiFrontEnd:
        """Front end of a new stream."""
        return KyutaiFrontEnd(self.extractor)

    def start_frames(self, num_rows: int) -> KyutaiState:
        """The state of rows in front of their first frame: what is read there is read, and its token written."""
        begin = torch.full((num_rows,), self.config.bos_token_id, device=self.device)
        logits, cache = self.decoder.step(
            self.decoder.before_speech(num_rows), begin, SlidingCache.empty(self.decoder, num_rows)
        )
        return KyutaiState(encoder=self.codec.start(num_rows), decoder=cache, token=self._likeliest(logits))

    def encode_frames(self, frames: Tensor, state: FrameState) -> tuple[Tensor, KyutaiState]:
        """Embedded codes (R, T, D) of the next frames (R, T, 1920), and the state behind them.

        Args:
            frames: frames at 24 kHz.
            state: state of the R rows.
        """
        assert isinstance(state, KyutaiState)
        states, encoder = [], state.encoder
        for piece in frames.to(self.codec.downsample.conv.weight).split(_FRAMES_AT_ONCE, dim=1):
            codes, encoder = self.codec(piece.flatten(1), encoder)
            states.append(self.decoder.embed_codes(codes))
        return torch.cat(states, dim=1), KyutaiState(
            encoder=encoder, decoder=state.decoder, token=state.token
        )

    def write_frames(self, states: Tensor, state: FrameState) -> tuple[FrameTokens, KyutaiState]:
        """The likeliest token for each of the next encoded frames (R, T, D), and the state behind them.

        Args:
            states: states of the frames.
            state: state of the R rows.
        """
        assert isinstance(state, KyutaiState)
        cache, token = state.decoder, state.token
        tokens, log_probs = [], []
        for frame in states.split(1, dim=1):
            logits, cache = self.decoder.step(frame, token, cache)
            token = self._likeliest(logits)
            tokens.append(token)
            log_probs.append(logits.float().log_softmax(-1).gather(-1, token[:, None])[:, 0])
        written = FrameTokens(tokens=torch.stack(tokens, 1), log_probs=torch.stack(log_probs, 1))
        return written, KyutaiState(encoder=state.encoder, decoder=cache, token=token)

    def is_text(self, tokens: Tensor) -> Tensor:
        """Boolean, of the shape of tokens: which are neither padding nor marks of words' beginnings."""
        marks = torch.tensor(sorted({*self.tokens.special, self.config.pad_token_id}), device=tokens.device)
        return ~torch.isin(tokens, marks)

    def _likeliest(self, logits: Tensor) -> Tensor:
        """Tokens (R,); entries of the output behind the vocabulary, such as of the first token, are never written."""
        return logits[:, : self.tokens.num_tokens].argmax(dim=-1)

    # The family.

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Frames (B, T, 1920) of 16 kHz mono float32 samples, with silence around them.

        Raises:
            SprachbundError: an utterance is longer than `max_window_s`.
        """
        check_window(samples, self.max_window_s)
        return whole_features(self, samples, self.device)

    def encode(self, features: Features) -> Memory:
        """Embedded codes (B, T, D) of whole utterances."""
        return whole_memory(self, features)

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): none; its search writes what is likeliest."""
        return torch.zeros(self.config.vocab_size, dtype=torch.bool, device=self.device)

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, padding and marks left out."""
        return self.tokens.decode([t for t in tokens if t != self.config.pad_token_id])

"""Moonshine (arXiv 2410.15608) and its streaming kind: an encoder of samples and an attention decoder.

A checkpoint transcribes one language and is given none. Shapes: B utterances, N samples, S memory frames, D width, R
rows, Q tokens of a step, V vocabulary, L source languages.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.models.base import (
    Alignment,
    Capabilities,
    Features,
    Memory,
    Target,
    check_window,
    not_written,
)
from sprachbund.models.calibration import Calibration
from sprachbund.models.fastconformer.tokens import FastConformerTokens
from sprachbund.models.moonshine.config import MoonshineConfig, PartialRotaryConfig, StreamingMoonshineConfig
from sprachbund.nn.decoder import DecoderCache
from sprachbund.nn.moonshine import (
    FRAME_SAMPLES,
    MIN_SAMPLES,
    SHORT_FRAME,
    STREAMING_FRAME,
    InterleavedRotary,
    MoonshineDecoder,
    MoonshineEncoder,
    StreamingMoonshineEncoder,
)
from sprachbund.util.devices import ANY_DEVICE

_MAX_TOKENS = 448
"""Longest row; half a minute of fast speech has fewer."""


class Moonshine(nn.Module):
    """A recogniser of one language; satisfies `sprachbund.models.base.Family`.

    Args:
        config: configuration of one of both kinds.
        values: config.json as it was read, to be written again.
        tokens: the vocabulary.
        language: BCP-47 tag of what it hears.

    Attributes:
        files: other files of the directory that it was read from, by name; written again.
    """

    max_window_s = 30.0
    """Ours: attention grows with the square, and speech is cut at its pauses."""

    def __init__(
        self,
        config: MoonshineConfig | StreamingMoonshineConfig,
        values: Mapping[str, Any],
        tokens: FastConformerTokens,
        language: str,
    ) -> None:
        super().__init__()
        self.values, self.tokens = dict(values), tokens
        self.name: str = config.model_type
        self.files: Mapping[str, bytes] = {}
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self.source_languages = (language,)
        self.end_token, self._start_token = config.eos_token_id, config.start_token
        self.max_tokens = min(_MAX_TOKENS, config.max_position_embeddings)
        self.encoder: MoonshineEncoder | StreamingMoonshineEncoder
        self.pos_emb: nn.Embedding | None = None
        self.proj: nn.Linear | None = None
        if isinstance(config, MoonshineConfig):
            heads, layers = config.decoder_num_attention_heads, config.decoder_num_hidden_layers
            activation, head_width = config.decoder_hidden_act, config.hidden_size // heads
            self.encoder = _encoder(config)
            self._frame_samples = FRAME_SAMPLES
        else:
            heads, layers, activation = (
                config.num_attention_heads,
                config.num_hidden_layers,
                config.hidden_act,
            )
            head_width = config.head_width
            self.encoder = _streaming_encoder(config)
            self._frame_samples = STREAMING_FRAME
            width = config.encoder_config.hidden_size
            # What positions the decoder knows of the memory are added to it; the encoder has none.
            self.pos_emb = _empty_embedding(config.max_position_embeddings, width)
            if width != config.hidden_size:
                self.proj = nn.Linear(width, config.hidden_size, bias=False)
        self.decoder = MoonshineDecoder(
            vocabulary_size=config.vocab_size,
            max_tokens=self.max_tokens,
            width=config.hidden_size,
            num_heads=heads,
            head_width=head_width,
            num_layers=layers,
            inner_width=config.intermediate_size,
            activation=activation,
            rotary=_rotary(config.rotary, head_width),
        )
        self.proj_out = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    @property
    def device(self) -> torch.device:
        """Device that the model computes on."""
        return next(self.parameters()).device

    @property
    def frame_s(self) -> float:
        """Seconds of a memory frame."""
        return self._frame_samples / SAMPLE_RATE

    @property
    def capabilities(self) -> Capabilities:
        """An attention decoder that shows what it reads."""
        return Capabilities(
            encoder=self.encoder,
            decoder=self.decoder,
            alignment=Alignment(frame_s=self.frame_s),
            encode_text=self.tokens.encode,
            devices=ANY_DEVICE,
        )

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Transcription of its language."""
        return frozenset((tag, tag) for tag in self.source_languages)

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """The 16 kHz mono float32 samples themselves (B, N), padded to the longest.

        Raises:
            SprachbundError: an utterance is longer than `max_window_s`.
        """
        check_window(samples, self.max_window_s)
        longest = max((len(s) for s in samples), default=0)
        lengths = torch.tensor([max(len(s), MIN_SAMPLES) for s in samples])
        size = -(-max(longest, MIN_SAMPLES) // SHORT_FRAME) * SHORT_FRAME
        values = torch.zeros(len(samples), size)
        for row, one in zip(values, samples, strict=True):
            row[: len(one)] = torch.from_numpy(np.asarray(one, np.float32))
        return Features(values=values.to(self.device), num_frames=lengths.to(self.device))

    def encode(self, features: Features) -> Memory:
        """Run the encoder; states are (B, S, D)."""
        states, num_frames = self.encoder(features.values, features.num_frames)
        if self.pos_emb is not None:
            states = states + self.pos_emb.weight[: states.shape[1]]
        if self.proj is not None:
            states = self.proj(states)
        return Memory(states=states, num_frames=num_frames)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Noughts (B, 1): it hears one language."""
        return memory.states.new_zeros(len(memory.states), 1).float()

    def prompt(self, target: Target) -> list[int]:
        """The token of a row's start. Raises SprachbundError for a language that it does not write."""
        if target.language not in self.source_languages:
            raise not_written(target.language, self.source_languages)
        return [self._start_token]

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
            targets: targets of the R rows; not needed.
        """
        return self.decoder.start(
            memory.states, memory.num_frames, rows_per_memory=rows_per_memory, capacity=capacity
        )

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q).

        Args:
            tokens: (R, Q), which follow what the cache holds.
            cache: cache of the R rows; the tokens are added to it.
            weights: each layer's cross-attention weights (R, H, Q, S) are appended to it, if given.
        """
        states = self.decoder.step(tokens, cache, weights)
        return F.linear(
            states, self.decoder.embed_tokens.weight if self.proj_out is None else self.proj_out.weight
        )

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): every token that is no text, but the end."""
        return self.tokens.suppressed(self.end_token).to(self.device)

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        """None: there is no token for it."""
        return None

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.tokens.decode(tokens)


def _rotary(part: PartialRotaryConfig, head_width: int) -> InterleavedRotary:
    return InterleavedRotary(head_width, part.partial_rotary_factor, part.rope_theta)


def _encoder(config: MoonshineConfig) -> MoonshineEncoder:
    heads = config.encoder_num_attention_heads
    return MoonshineEncoder(
        config.hidden_size,
        heads,
        config.encoder_num_hidden_layers,
        config.intermediate_size,
        config.encoder_hidden_act,
        # transformers makes one table for both sides, of the width of the decoder's heads.
        _rotary(config.rotary, config.hidden_size // config.decoder_num_attention_heads),
    )


def _streaming_encoder(config: StreamingMoonshineConfig) -> StreamingMoonshineEncoder:
    encoder = config.encoder_config
    return StreamingMoonshineEncoder(
        encoder.hidden_size,
        encoder.num_attention_heads,
        encoder.head_width,
        encoder.intermediate_size,
        encoder.hidden_act,
        encoder.sliding_windows,
    )


def _empty_embedding(num_rows: int, width: int) -> nn.Embedding:
    """Rows about to be loaded; drawing numbers would import torch's compiler on the meta device."""
    return nn.Embedding.from_pretrained(torch.empty(num_rows, width), freeze=False)

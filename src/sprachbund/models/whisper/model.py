"""Whisper (arXiv 2212.04356) as a model family: encoder, training examples, and the model.

Shapes: B utterances, T log-mel frames, S memory frames (half of T, rounded up), M mel bins, D width, R rows, Q tokens
of a step, U tokens of a row, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.audio.constants import FRAMES_PER_S, HOP, SAMPLE_RATE, WINDOW
from sprachbund.audio.features import WHISPER_DYNAMIC_RANGE, WHISPER_FLOOR, log_mel, num_frames
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
    TimestampTokens,
    check_window,
)
from sprachbund.models.calibration import Calibration
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.models.splitting import decoder_route, encode_routed, source_route, start_route
from sprachbund.models.teacher_forcing import DecoderBatch, make_decoder_batch, prompted_loss, row_route
from sprachbund.models.whisper.config import WhisperConfig
from sprachbund.models.whisper.files import CheckpointFiles
from sprachbund.models.whisper.tokens import WhisperTasks, WhisperTokens
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.encoder import ConvolutionalEncoder, EncoderLayer, EncoderLayers
from sprachbund.nn.feed_forward import Route
from sprachbund.text.languages import writes_spaces
from sprachbund.util.devices import ANY_DEVICE

# The audio encoder. Masks keep short utterances of a batch from seeing padding.

_MAX_TIMESCALE = 10_000.0


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's fixed positions (length, D): sines in the first half of the width, cosines in the second."""
    steps = math.log(_MAX_TIMESCALE) / (width // 2 - 1)
    rates = torch.exp(-steps * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def memory_frames(num_frames: Tensor) -> Tensor:
    """Return the number of memory frames of `num_frames` log-mel frames: the second convolution has stride two."""
    return (num_frames + 1) // 2


class WhisperEncoder(ConvolutionalEncoder):
    """Two convolutions, positions, pre-norm layers (arXiv 2212.04356, section 2.2)."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, kernel_size=3, stride=2, padding=1)
        # Not learned, but stored by checkpoints and free to differ there. Computing them on the meta device would
        # import torch's compiler: a second at every start.
        positions = torch.empty(config.max_frames, config.width)
        if not positions.is_meta:
            positions = sinusoids(config.max_frames, config.width)
        self.positions = nn.Parameter(positions, requires_grad=False)
        self.layers = EncoderLayers(
            EncoderLayer(
                config.width,
                config.encoder_heads,
                config.encoder_feed_forward_width,
                dropout=config.dropout,
            )
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.width)

    @property
    def convolutions(self) -> list[nn.Conv1d]:
        """Both convolutions."""
        return [self.conv1, self.conv2]

    @property
    def position_table(self) -> Tensor:
        """Table of positions as the checkpoint has it."""
        return self.positions

    @property
    def final_norm(self) -> nn.LayerNorm:
        """Norm behind the layers."""
        return self.norm

    def forward(
        self, features: Tensor, num_frames: Tensor | None = None, route: Route | None = None
    ) -> Tensor:
        """Encode log-mel features (B, T, M) into (B, S, D).

        With `num_frames` (B,), frames after it are kept out of the convolutions and of the attention, so a
        row gives what it would give alone. Rows of a whole window, as Whisper was trained, need none.
        A route of n B rows gives the states under n routes, (n B, S, D); see `EncoderLayers`.
        """
        x = _silence_padding(features.transpose(1, 2), num_frames)
        x = _silence_padding(F.gelu(self.conv1(x)), num_frames)
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        allowed = None
        if num_frames is not None:
            allowed = _valid(memory_frames(num_frames), x.shape[1])[:, None, None, :]
        return self.norm(self.layers(x, allowed, route))


def _valid(lengths: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def _silence_padding(x: Tensor, num_frames: Tensor | None) -> Tensor:
    """Zero the frames after the end of each row of x (B, D, T): what a convolution sees beyond an edge."""
    if num_frames is None:
        return x
    return x * _valid(num_frames, x.shape[2])[:, None, :].to(x.dtype)


# Training examples: features and rows of an utterance, and the prompts of a batch's rows.
#
# Where nobody speaks a row is <|startoftranscript|> <|nospeech|> <|endoftext|> (arXiv 2212.04356, section
# 2.3).

_LONGEST_PROMPT = 4  # start, language, task, no timestamps


def target_tokens(model: Whisper, text: str, language: str) -> list[int]:
    """Tokens that are to follow the prompt for `language`, the end included.

    Args:
        model: model with its tokens.
        text: text of the row.
        language: BCP-47 tag of the text's language.
    """
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
    """`sprachbund.data.loading.Examples` of a Whisper model.

    Args:
        model: model whose tokens, prompts and window are used.
        languages: languages spoken in the data and drawn as targets.

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

    def transcript(self, text: str) -> None:
        """None: Whisper has no CTC head."""

    def row(self, text: str, source: str | None, target: str) -> Row | None:
        """The text's tokens, None for a pair that the model does not know.

        Args:
            text: text of the row, in the language `target`.
            source: BCP-47 tag of the language spoken; None where nobody speaks.
            target: BCP-47 tag of the language written.
        """
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


_FRAMES_PER_STATE = 2  # stride of the encoder's convolutions


class Whisper(DecodesByAttention, nn.Module):
    """A Whisper model; satisfies `sprachbund.models.base.Family` once it has its tokens.

    Args:
        config: sizes.
        tokens: vocabulary; without it the model runs on numbers but cannot prompt or decode.
        checkpoint_files: files of the checkpoint.
        real_length: encode utterances at their own length instead of as windows of 30 s. Much faster on short
            audio; not what published checkpoints were trained on, so measure before relying on it.

    Attributes:
        label_smoothing: label smoothing of the loss (arXiv 1512.00567, section 7).
    """

    name = "whisper"
    frame_s = _FRAMES_PER_STATE * HOP / SAMPLE_RATE

    def __init__(
        self,
        config: WhisperConfig,
        *,
        tokens: WhisperTokens | None = None,
        checkpoint_files: CheckpointFiles | None = None,
        real_length: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_files = checkpoint_files or CheckpointFiles()
        self.real_length = real_length
        self.label_smoothing = 0.0
        self.sharing_plan: SharingPlan | None = None
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self.as_stored = False
        self.max_tokens = config.max_tokens
        self.encoder = WhisperEncoder(config)
        self.decoder = TextDecoder(
            vocabulary_size=config.vocabulary_size,
            max_tokens=config.max_tokens,
            width=config.width,
            num_heads=config.decoder_heads,
            num_layers=config.decoder_layers,
            feed_forward_width=config.decoder_feed_forward_width,
            dropout=config.dropout,
        )
        self._tokens = tokens
        self._tasks = None if tokens is None else self._read_tasks(tokens)
        self.alignment_heads = alignment_heads(config, self.checkpoint_files.generation)

    @classmethod
    def shape(cls, config: WhisperConfig) -> Whisper:
        """The model on the meta device: every shape, no memory."""
        with torch.device("meta"):
            return cls(config)

    @property
    def has_tokens(self) -> bool:
        """Whether the model was built with a vocabulary."""
        return self._tokens is not None

    @property
    def tokens(self) -> WhisperTokens:
        """The vocabulary. Raises SprachbundError for a model built without one."""
        if self._tokens is None:
            raise SprachbundError(
                "this Whisper model was built without a tokenizer; load it from a directory"
            )
        return self._tokens

    @property
    def tasks(self) -> WhisperTasks:
        """The tasks that the checkpoint knows. Raises SprachbundError for a model without a tokenizer."""
        return self._tasks or self._read_tasks(self.tokens)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.decoder.positions.device

    @property
    def source_languages(self) -> tuple[str, ...]:
        """BCP-47 tags of the languages understood, in the order of the vocabulary."""
        known = {source for source, _ in self.pairs()}
        return tuple(tag for tag in self.tokens.languages if tag in known) or tuple(sorted(known))

    @property
    def end_token(self) -> int:
        """Token that ends a row, <|endoftext|>."""
        return self.tokens.end

    @property
    def max_window_s(self) -> float:
        """Longest utterance in seconds."""
        return self.config.max_frames * self.frame_s

    @property
    def capabilities(self) -> Capabilities:
        """Timestamps where it was trained to write them, alignment by the checkpoint's heads, windows of 30 s."""
        first = self.checkpoint_files.listed_tokens("begin_suppress_tokens")
        return Capabilities(
            encoder=self.encoder,
            decoder=self.decoder,
            timestamps=self._timestamps(),
            alignment=Alignment(frame_s=self.frame_s, heads=tuple(self.alignment_heads)),
            begin_suppressed=tuple(t for t in first if 0 <= t < self.config.vocabulary_size),
            reads_context=self.has_tokens and self.tokens.previous is not None,
            encode_text=self.tokens.text_to_tokens if self.has_tokens else None,
            sharing_plan=self.sharing_plan,
            fixed_window=self,
            as_stored=self.as_stored,
            devices=ANY_DEVICE,
        )

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every (source, target) the model knows; see `tasks.Tasks.read` for how that is found out."""
        return self.tasks.pairs

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Log-mel (B, T, M) of utterances given as 16 kHz mono float32 samples.

        Padded with silence to a window, or, at real length, with zeros to the longest; `num_frames` counts
        the frames of the audio itself.

        Raises:
            SprachbundError: an utterance is longer than the window.
        """
        check_window(samples, self.max_window_s)
        if self.real_length:
            samples = [np.pad(s, (0, max(0, WINDOW - len(s)))) for s in samples]  # one frame at least
        pad_to_s = None if self.real_length else self.max_window_s
        rows = [log_mel(s, self.config.num_mel_bins, pad_to_s=pad_to_s).T for s in samples]
        lengths = torch.tensor([num_frames(len(s)) for s in samples])
        values = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Features(values=values.to(self.device), num_frames=lengths.to(self.device))

    def encode(self, features: Features) -> Memory:
        """Run the encoder on features (B, T, M); shorter ones than a window are padded unless at real length.

        Raises:
            SprachbundError: wrong number of mel bins, or more frames than a window.
        """
        _, length, num_mel_bins = features.values.shape
        window = self.config.max_frames * _FRAMES_PER_STATE
        if num_mel_bins != self.config.num_mel_bins or length > window:
            raise SprachbundError(
                f"features of {length} frames x {num_mel_bins} mel bins do not fit this model, which takes "
                f"up to {window} x {self.config.num_mel_bins}; compute them with its features()"
            )
        return encode_routed(self, features, partial(self._encode, features))

    def _encode(self, features: Features, route: Route | None) -> Memory:
        values = features.values.to(self.encoder.positions.dtype)
        if not self.real_length:
            window = self.config.max_frames * _FRAMES_PER_STATE
            return Memory(
                states=self.encoder(_pad_with_silence(values, window), route=route), num_frames=None
            )
        states = self.encoder(values, features.num_frames, route)
        times = states.shape[0] // values.shape[0]
        return Memory(states=states, num_frames=memory_frames(features.num_frames).repeat(times))

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, len(source_languages)) of the language spoken, after <|startoftranscript|>.

        A model whose prompt holds the language wanted has learned nothing there about the language spoken:
        all its languages then come out equal. A decoder that is split by language is asked by its shared
        branches.
        """
        if memory.language_log_probs is not None:
            return memory.language_log_probs
        languages, num_rows = self.source_languages, memory.states.shape[0]
        if self.tasks.target_language_prompt or not self.tasks.language_tokens:
            return memory.states.new_zeros(num_rows, len(languages)).log_softmax(dim=-1)
        start = torch.full((num_rows, 1), self.tokens.start, device=memory.states.device)
        nobody = torch.full((num_rows,), NO_LANGUAGE, device=memory.states.device)
        route = decoder_route(self, nobody, nobody)
        cache = self.decoder.start(memory.states, memory.num_frames, capacity=1, route=route)
        logits = self.step(start, cache)[:, -1]
        return logits[:, [self.tokens.languages[tag] for tag in languages]].float().log_softmax(dim=-1)

    def prompt(self, target: Target) -> list[int]:
        """Tokens that a row starts with. Raises SprachbundError for a pair the model does not know."""
        return self.tasks.prompt(target, self.tokens, self.max_tokens)

    def forward(self, features: Features, tokens: Tensor, targets: Sequence[Target] | None = None) -> Tensor:
        """Logits (B, U, V) after each token of whole rows (B, U), as training needs them.

        Args:
            features: features of B utterances.
            tokens: whole rows (B, U).
            targets: targets of the rows; only a decoder that is split by language needs them.
        """
        memory = self.encode(features)
        route = start_route(self, targets, memory.states.device)
        return self.decoder.logits(self.decoder(tokens, memory.states, memory.num_frames, route))

    def decoder_batch(self, batch: Batch) -> DecoderBatch:
        """Return the rows that the decoder is trained on, under the prompts of their languages; see `objective`."""
        # Whole windows come rounded up to a few frames more.
        values = batch.features[:, : self.config.max_frames * _FRAMES_PER_STATE]
        features = Features(values=values, num_frames=batch.num_frames)
        memory = self._encode(features, source_route(self, batch.source_language))
        route = row_route(self, batch, partial(row_language, self.tokens))
        return make_decoder_batch(memory, batch, row_prompts(self, batch), route)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the decoder_batch."""
        return prompted_loss(self, self.decoder_batch(batch), self.label_smoothing)

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): special tokens, timestamps unless asked for, and what the checkpoint suppresses."""
        allowed = {self.end_token, *(self.tokens.timestamps if target.timestamps else ())}
        return self._mask(
            (self.tokens.not_text | set(self.checkpoint_files.listed_tokens("suppress_tokens"))) - allowed
        )

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        """Log-probability (R,) of "no speech" from the logits (R, V) after <|startoftranscript|>.

        That is the prompt's token number `prompt.index(tokens.start)`, not its last one.
        """
        if self.tokens.no_speech is None:
            return None
        return logits.float().log_softmax(dim=-1)[:, self.tokens.no_speech]

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out; it keeps the space that starts a word."""
        return self.tokens.tokens_to_text(tokens)

    def _timestamps(self) -> TimestampTokens | None:
        if not self.has_tokens or not self.tokens.timestamps or self.tasks.bare_prompt:
            return None
        tokens = self.tokens
        return TimestampTokens(first=tokens.timestamps[0], stop=tokens.behind_timestamps, step_s=self.frame_s)

    def _read_tasks(self, tokens: WhisperTokens) -> WhisperTasks:
        checkpoint_files = self.checkpoint_files
        return WhisperTasks.read(
            self.config, tokens, raw_config=checkpoint_files.config, generation=checkpoint_files.generation
        )

    def _mask(self, tokens: Sequence[int] | set[int] | frozenset[int]) -> Tensor:
        mask = torch.zeros(self.config.vocabulary_size, dtype=torch.bool)
        mask[[t for t in tokens if 0 <= t < self.config.vocabulary_size]] = True
        return mask.to(self.device)


def num_parameters(config: WhisperConfig) -> int:
    """Number of parameters, the encoder's fixed positions and the tied output matrix counted once each."""
    return sum(p.numel() for p in Whisper.shape(config).parameters())


def alignment_heads(config: WhisperConfig, generation: dict[str, Any]) -> list[tuple[int, int]]:
    """(layer, head) whose cross-attention follows the audio; without a list, all in the upper half.

    Distilled checkpoints may keep the list of their teacher, whose layers they lack; those do not count.
    """
    named = [(int(layer), int(head)) for layer, head in generation.get("alignment_heads") or ()]
    if there := [(k, h) for k, h in named if k < config.decoder_layers and h < config.decoder_heads]:
        return there
    upper = range(config.decoder_layers // 2, config.decoder_layers)
    return [(layer, head) for layer in upper for head in range(config.decoder_heads)]


def _pad_with_silence(values: Tensor, length: int) -> Tensor:
    """Pad log-mel (B, T, M) to `length` frames with the value that Whisper features give to silence."""
    missing = length - values.shape[1]
    if missing == 0:
        return values
    loudest = values.amax(dim=(1, 2), keepdim=True)
    # The scale is (log10 + 4) / 4, floored at a distance below the loudest bin.
    silence = torch.maximum(
        loudest - WHISPER_DYNAMIC_RANGE / 4, loudest.new_tensor((np.log10(WHISPER_FLOOR) + 4) / 4)
    )
    return torch.cat([values, silence.expand(-1, missing, values.shape[2])], dim=1)

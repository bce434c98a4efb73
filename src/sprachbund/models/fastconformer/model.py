"""Parakeet, Canary and Cohere ASR: a FastConformer encoder, and a CTC head, a transducer or an attention decoder.

Parakeet (arXiv 2305.05084; with durations 2304.06795) writes what is spoken and is given no language. Canary (arXiv
2406.19674; the published versions 2 and flash: 2509.14128, 2503.05931) is given the language spoken and the one wanted.

Shapes: B utterances, T log-mel frames, S memory frames, M mel bins, D width, R rows, Q tokens of a step, V vocabulary,
L source languages.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.audio.constants import HOP, SAMPLE_RATE
from sprachbund.audio.features import log_mel, normalised_per_bin
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
from sprachbund.models.fastconformer.config import CanaryConfig, CohereConfig, ParakeetConfig
from sprachbund.models.fastconformer.tokens import FastConformerTokens
from sprachbund.models.frames import TranscribesByFrames
from sprachbund.models.teacher_forcing import DecoderBatch, make_decoder_batch, prompted_loss
from sprachbund.nn.ctc import ctc_loss
from sprachbund.nn.fast_conformer import SUBSAMPLING, FastConformerEncoder
from sprachbund.nn.text_to_text import CanaryDecoder, marian_positions
from sprachbund.nn.transducer import Transducer
from sprachbund.text.languages import described
from sprachbund.util.devices import ANY_DEVICE

_MIN_SAMPLES = 2 * HOP  # a variance needs two frames
_FRAMES_AT_ONCE = 8
"""Logits of so many frames are held in training: a vocabulary of 8,193 is large, times tokens and frames."""
_MAX_TOKENS = 512
"""Longest row of Canary. Its positions allow 1,024; half a minute of speech has 375 frames, and fewer tokens."""


def log_mel_of(samples: np.ndarray, num_mel_bins: int, dither: float = 0.0) -> Tensor:
    """Log-mel (T, M) of 16 kHz samples (N,), each bin normalised over the utterance.

    Args:
        samples: (N,).
        num_mel_bins: M.
        dither: strength of noise that is added first; it is the same for all utterances of one length.
    """
    padded = np.pad(samples, (0, max(0, _MIN_SAMPLES - len(samples)))).astype(np.float32)
    if dither and len(samples):
        drawn = torch.Generator().manual_seed(len(samples))
        padded[: len(samples)] += dither * torch.randn(len(samples), generator=drawn).numpy()
    return normalised_per_bin(log_mel(padded, num_mel_bins, normalise="nemo").T)


class _FastConformerModel(nn.Module):
    """Parts and methods that both families share.

    Args:
        config: shape and languages.
        values: config.json as it was read, to be written again.
        tokens: the vocabulary.

    Attributes:
        files: other files of the directory that it was read from, by name, such as the tokenizer's; written again.
    """

    max_window_s = 30.0  # ours: attention grows with the square, and speech is cut at its pauses
    frame_s = SUBSAMPLING * HOP / SAMPLE_RATE
    dither = 0.0

    def __init__(
        self,
        config: ParakeetConfig | CanaryConfig | CohereConfig,
        values: Mapping[str, Any],
        tokens: FastConformerTokens,
    ) -> None:
        super().__init__()
        self.values, self.tokens = dict(values), tokens
        self.name: str = config.model_type
        self.files: Mapping[str, bytes] = {}
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self.source_languages = config.languages(config.model_type, "config.json")
        self.num_mel_bins = config.encoder.num_mel_bins
        self.encoder = FastConformerEncoder(config.encoder.shape)

    @property
    def device(self) -> torch.device:
        """Device that the model computes on; the native engine's modules have no parameters."""
        weight = next(self.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Log-mel (B, T, M) of 16 kHz mono float32 samples, each bin normalised over its utterance.

        Raises:
            SprachbundError: an utterance is longer than `max_window_s`.
        """
        check_window(samples, self.max_window_s)
        mels = [log_mel_of(s, self.num_mel_bins, self.dither) for s in samples]
        num_frames = torch.tensor([mel.shape[0] for mel in mels])
        values = nn.utils.rnn.pad_sequence(mels, batch_first=True)
        return Features(values=values.to(self.device), num_frames=num_frames.to(self.device))

    def encode(self, features: Features) -> Memory:
        """Run the encoder; states are (B, S, D), one for every eight frames."""
        states, num_frames = self.encoder(features.values, features.num_frames)
        return Memory(states=states, num_frames=num_frames)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """All languages equal, (B, L): it has not learned to tell them apart."""
        return equal_log_probs(memory, len(self.source_languages))

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.tokens.decode(tokens)


class _Examples:
    """Common part of `sprachbund.data.loading.Examples` for both families.

    Args:
        model: model whose tokens and features are used.
        languages: languages spoken in the data, and drawn as targets.

    Raises:
        SprachbundError: a language that the model does not know.
    """

    frames_per_s = SAMPLE_RATE // HOP
    whole_windows = False

    def __init__(self, model: "Parakeet | Canary", languages: Sequence[str]) -> None:
        known = model.source_languages
        if unknown := sorted(set(languages) - set(known)):
            raise SprachbundError(
                f"the model does not know {', '.join(unknown)}; it knows {described(known)}"
            )
        self.tokens, self.num_mel_bins, self.dither = model.tokens, model.num_mel_bins, model.dither
        self.source_languages = self.target_languages = list(languages)
        self.max_window_s: float | None = model.max_window_s
        self._numbers = {tag: number for number, tag in enumerate(known)}

    def number(self, language: str) -> int:
        """Place of a source language among the model's."""
        return self._numbers[language]

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """Log-mel (T, M) and T."""
        mel = augment(log_mel_of(samples, self.num_mel_bins, self.dither))
        return mel, mel.shape[0]

    def transcript(self, text: str) -> None:
        """None: what a Parakeet writes is the transcript, and Canary has no CTC head."""


class ParakeetExamples(_Examples):
    """`sprachbund.data.loading.Examples` of a Parakeet; see `_Examples`."""

    def __init__(self, model: "Parakeet", languages: Sequence[str]) -> None:
        super().__init__(model, languages)
        self.end_token, self.max_tokens = model.blank, model.max_tokens

    def row(self, text: str, source: str | None, target: str) -> Row | None:
        """Number of the language and the text's tokens, with a blank behind them; None for a translation.

        Args:
            text: text of the row, in the language `target`.
            source: BCP-47 tag of the language spoken; None where nobody speaks, and nothing is written.
            target: BCP-47 tag of the language written.
        """
        if target not in self._numbers or source not in (None, target):
            return None
        return self._numbers[target], [*self.tokens.encode(text.strip(), target), self.end_token]


class Parakeet(TranscribesByFrames, _FastConformerModel):
    """A recogniser with a CTC head or a transducer; satisfies `sprachbund.models.base.Family`.

    Args:
        config: shape and languages.
        values: config.json as it was read.
        tokens: the vocabulary.
    """

    end_token = -1  # rows end with the speech
    has_unused_parameters = False
    decoder = None  # training looks for layers in both
    max_tokens = _MAX_TOKENS

    def __init__(
        self, config: ParakeetConfig, values: Mapping[str, Any], tokens: FastConformerTokens
    ) -> None:
        super().__init__(config, values, tokens)
        self.blank = config.blank
        self.transducer: Transducer | None = None
        if config.transducer is None:
            self.ctc_head = nn.Linear(config.encoder.hidden_size, config.vocab_size)
        else:
            self.transducer = Transducer(config.transducer)

    @property
    def capabilities(self) -> Capabilities:
        """A transducer or a CTC head, whose frames give times; several languages are told apart by the text."""
        return Capabilities(
            encoder=self.encoder,
            transducer=self.transducer,
            ctc=self if self.transducer is None else None,
            alignment=Alignment(frame_s=self.frame_s),
            language_from_text=len(self.source_languages) > 1,
            encode_text=self.tokens.encode,
            words_only=self.tokens.words_only,
            devices=ANY_DEVICE,
        )

    def ctc_log_probs(self, memory: Memory, targets: Sequence[Sequence[Target]]) -> Tensor:
        """Log-probabilities (R, S, V) of the CTC head, the same for all targets of a memory."""
        log_probs = self.ctc_head(memory.states).float().log_softmax(-1)
        return log_probs.repeat_interleave(len(targets[0]), 0)

    def forward(self, batch: Batch) -> Loss:
        """The loss, as wrappers that watch `forward` expect it."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> Loss:
        """Minus the log-probability of the texts, by CTC or the transducer; features are those of `features`."""
        memory = self.encode(Features(values=batch.features, num_frames=batch.num_frames))
        assert memory.num_frames is not None
        rows, lengths = (
            batch.rows_per_utterance,
            (batch.num_targets - 1).clamp(min=0),
        )  # the blank behind them
        states, frames = (part.repeat_interleave(rows, 0) for part in (memory.states, memory.num_frames))
        if self.transducer is None:
            log_probs = self.ctc_head(states).float().log_softmax(-1)
            losses, _ = ctc_loss(log_probs, frames, batch.targets, lengths, self.blank)
        else:
            losses = self.transducer.loss(
                states, frames, batch.targets, lengths, frames_at_once=_FRAMES_AT_ONCE
            )
            losses = losses.masked_fill(losses.isinf(), 0.0)  # more text than the frames can hold
        total = torch.where(batch.num_targets > 0, losses, 0.0).sum()
        kind = "ctc" if self.transducer is None else "transducer"
        return Loss.of_text(total, int(batch.num_targets.sum()), parts={kind: total.detach()})

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): none; its search writes what is likeliest."""
        return torch.zeros(self.tokens.size, dtype=torch.bool, device=self.device)


def _canary_decoder(config: CanaryConfig | CohereConfig) -> CanaryDecoder:
    """The decoder of a shape; its positions are sinusoids, or stored with the weights."""
    shape = config.decoder_config
    width = shape.hidden_size
    with torch.device("cpu"):  # never stored, so it has to be real in a model built on meta too
        positions = marian_positions(shape.max_position_embeddings, width) / width**0.5
    decoder = CanaryDecoder(
        vocabulary_size=config.vocab_size,
        positions=positions,
        num_heads=shape.num_attention_heads,
        num_layers=shape.num_hidden_layers,
        feed_forward_width=shape.intermediate_size,
        scaled=False,
        dropout=0.0,
        activation=shape.hidden_act,
    )
    if config.stored_positions:
        del decoder.positions
        decoder.positions = nn.Parameter(torch.zeros(shape.max_position_embeddings, width))
    if not config.tie_word_embeddings:
        decoder.output_head = nn.Linear(width, config.vocab_size, bias=False)
    return decoder


class CanaryExamples(_Examples):
    """`sprachbund.data.loading.Examples` of a Canary; see `_Examples`."""

    def __init__(self, model: "Canary", languages: Sequence[str]) -> None:
        super().__init__(model, languages)
        self.pairs, self.end_token = model.pairs(), model.end_token
        self.language_tokens = model.language_tokens
        self.max_tokens = model.max_tokens - model.prompt_length

    def row(self, text: str, source: str | None, target: str) -> Row | None:
        """Token of the target language and the text's tokens; None for a pair that the model does not know.

        Args:
            text: text of the row, in the language `target`.
            source: BCP-47 tag of the language spoken; None where nobody speaks, and the row ends at once.
            target: BCP-47 tag of the language written.
        """
        if (source or target, target) not in self.pairs:
            return None
        return self.language_tokens[target], [*self.tokens.encode(text.strip(), target), self.end_token]


class Canary(DecodesByAttention, _FastConformerModel):
    """A recogniser and translator with an attention decoder; satisfies `sprachbund.models.base.Family`.

    Args:
        config: shape and languages.
        values: config.json as it was read.
        tokens: the vocabulary.

    Attributes:
        language_tokens: BCP-47 tag to token.
        label_smoothing: label smoothing of the loss (arXiv 1512.00567, section 7).

    Raises:
        SprachbundError: the vocabulary lacks a token of the prompt or of a language.
    """

    has_unused_parameters = False
    _translates = ", and translates them into English and from it"

    def __init__(
        self, config: CanaryConfig | CohereConfig, values: Mapping[str, Any], tokens: FastConformerTokens
    ) -> None:
        super().__init__(config, values, tokens)
        self.decoder = _canary_decoder(config)
        self.memory_projection: nn.Module = nn.Identity()
        if (
            isinstance(config, CohereConfig)
            or config.encoder.hidden_size != config.decoder_config.hidden_size
        ):
            self.memory_projection = nn.Linear(config.encoder.hidden_size, config.decoder_config.hidden_size)
        self.end_token = config.eos_token_id
        self.max_tokens = min(_MAX_TOKENS, config.decoder_config.max_position_embeddings)
        self.label_smoothing = 0.0
        self.language_tokens = {tag: tokens.token(f"<|{tag}|>") for tag in self.source_languages}
        # Of the roles of a prompt (NeMo's "canary2"), text before, emotion and inverse normalisation stay empty.
        self._before = [
            *self._first(config),
            *map(tokens.token, ("<|startoftranscript|>", "<|emo:undefined|>")),
        ]
        after = ("<|pnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>")
        self._after = [tokens.token(name) for name in after]

    def _first(self, config: Any) -> list[int]:
        """Tokens that every prompt begins with."""
        return [config.decoder_start_token_id]

    @property
    def capabilities(self) -> Capabilities:
        """An attention decoder that shows what it reads."""
        return Capabilities(
            encoder=self.encoder,
            decoder=self.decoder,
            alignment=Alignment(frame_s=self.frame_s),
            # A text alone does not say which of several tokenizers is meant.
            encode_text=None if self.tokens.of_languages else self.tokens.encode,
            devices=ANY_DEVICE,
        )

    def encode(self, features: Features) -> Memory:
        """Run the encoder and the projection; states are (B, S, D), one for every eight frames."""
        memory = super().encode(features)
        return Memory(states=self.memory_projection(memory.states), num_frames=memory.num_frames)

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Transcription of every language, and translation into and from English, as it was trained."""
        heard = self.source_languages
        translated = (
            {pair for tag in heard for pair in ((tag, "en"), ("en", tag))} if "en" in heard else set()
        )
        return frozenset(translated | {(tag, tag) for tag in heard})

    def prompt(self, target: Target) -> list[int]:
        """The language spoken and the one wanted, with punctuation and capitals.

        Raises:
            SprachbundError: a pair that the model does not know, or a language spoken that is not given.
        """
        if target.source is None:
            raise SprachbundError(
                f"the model {self.name} needs the language spoken; name the source language"
            )
        if (target.source, target.language) not in self.pairs():
            raise SprachbundError(
                f"this model does not know the pair {target.source} to {target.language}; it transcribes "
                f"{described(self.source_languages)}{self._translates}"
            )
        return self._prompt(self.language_tokens[target.source], self.language_tokens[target.language])

    @property
    def prompt_length(self) -> int:
        """Tokens of every prompt."""
        return len(self._before) + 2 + len(self._after)

    def _prompt(self, source: int, target: int) -> list[int]:
        return [*self._before, source, target, *self._after]

    def forward(self, batch: Batch) -> Loss:
        """The loss, as wrappers that watch `forward` expect it."""
        return self.loss(batch)

    def decoder_batch(self, batch: Batch) -> DecoderBatch:
        """Return the rows that the decoder is trained on, behind their prompts.

        The features of the batch are those of `features`; its `target_language` are language tokens. Where nobody
        speaks, the prompt names the language wanted twice.
        """
        memory = self.encode(Features(values=batch.features, num_frames=batch.num_frames))
        tokens = [self.language_tokens[tag] for tag in self.source_languages]
        sources = batch.source_language.repeat_interleave(batch.rows_per_utterance).tolist()
        prompts = [
            self._prompt(target if source == NO_LANGUAGE else tokens[source], target)
            for source, target in zip(sources, batch.target_language.tolist(), strict=True)
        ]
        return make_decoder_batch(memory, batch, prompts)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the decoder_batch."""
        return prompted_loss(self, self.decoder_batch(batch), self.label_smoothing)

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): every token that is no text, but the end."""
        return self.tokens.suppressed(self.end_token).to(self.device)


class CohereAsr(Canary):
    """A Canary that transcribes alone, with a projection behind its encoder (Cohere's open recogniser).

    Args:
        config: shape and languages.
        values: config.json as it was read.
        tokens: the vocabulary.
    """

    dither = 1e-5
    _translates = ""

    def _first(self, config: Any) -> list[int]:
        return [self.tokens.token("▁"), self.tokens.token("<|startofcontext|>")]

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Transcription of every language."""
        return frozenset((tag, tag) for tag in self.source_languages)

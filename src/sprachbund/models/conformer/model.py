"""The conformer family: speech of any of its languages to text in any of its languages.

The row's first token is the language wanted; no source language is needed, a small head on the encoder names
it. Shapes: B utterances, R rows, T frames, M mel bins, D width, U target tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.audio.constants import HOP
from sprachbund.audio.features import StreamedNormalisation, log_mel
from sprachbund.data.batch import NO_LANGUAGE, Batch, Transcripts
from sprachbund.errors import SprachbundError
from sprachbund.models.attention import DecodesByAttention
from sprachbund.models.base import (
    CTC,
    LANGUAGE,
    Alignment,
    Capabilities,
    Features,
    HeadLoss,
    Loss,
    Memory,
    StreamingTransducer,
    Target,
)
from sprachbund.models.calibration import Calibration
from sprachbund.models.conformer.config import ConformerConfig, TransducerPart
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.models.splitting import (
    encode_routed,
    source_route,
)
from sprachbund.models.teacher_forcing import DecoderBatch, make_decoder_batch, prompted_loss, row_route
from sprachbund.nn.conformer import ConformerEncoder, valid_frames
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.feed_forward import Route
from sprachbund.nn.streaming_conformer import ChunkEncoder, StreamingEncoder, StreamingShape
from sprachbund.nn.transducer import LanguageFusion, Transducer, TransducerShape
from sprachbund.text.tokenizer import BLANK, END, UNKNOWN, Tokenizer
from sprachbund.util.devices import ANY_DEVICE, CPU


class Conformer(DecodesByAttention, nn.Module):
    """Speech translator of the conformer family; satisfies `sprachbund.models.base.Family`.

    Args:
        config: shape and languages.
        tokenizer: tokenizer of the texts that it writes.
        transcript_tokenizer: transcript tokenizer of the transcripts of its CTC head, with few pieces: CTC learns the
            sounds of a few hundred pieces much sooner than those of some thousand words.
    """

    name = "conformer"
    end_token = END
    max_window_s = 15.0  # as long as the longest speech of its training
    frame_s = 0.08
    has_unused_parameters = False

    def __init__(
        self, config: ConformerConfig, tokenizer: Tokenizer, transcript_tokenizer: Tokenizer
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.transcript_tokenizer = transcript_tokenizer
        self.sharing_plan: SharingPlan | None = None
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self.source_languages = config.source_languages
        self.max_tokens = config.max_tokens
        self.encoder = _encoder(config)
        self.decoder = TextDecoder(
            vocabulary_size=len(tokenizer),
            max_tokens=config.max_tokens,
            width=config.decoder_width or config.width,
            num_heads=config.decoder_heads or config.num_heads,
            num_layers=config.num_decoder_layers,
            feed_forward_width=config.decoder_feed_forward_width,
            memory_width=config.width,
            dropout=config.dropout,
        )
        self.ctc_head = nn.Linear(config.width, len(transcript_tokenizer))
        self.language_head = nn.Linear(config.width, len(config.source_languages))
        if config.transducer is not None:
            self.transducer = Transducer(_transducer_shape(config, config.transducer, len(tokenizer)))
            if (fusion := config.transducer.fusion_width) is not None:
                self.language_fusion = LanguageFusion(config.width, fusion, len(config.target_languages))

    @property
    def capabilities(self) -> Capabilities:
        """A transducer where it writes the text, live where the encoder streams; else an attention decoder."""
        by_frames, pairs = self.writes_by_frames, self.pairs()
        transcribes = all((tag, tag) in pairs for tag in self.source_languages)
        has_head = self.config.ctc_weight > 0 and transcribes
        return Capabilities(
            encoder=self.encoder,
            decoder=self.decoder,
            transducer=self.transducer if by_frames else None,
            transcript_head=self if has_head else None,
            streaming=self.streaming,
            fuse_language=self._fuse_language if by_frames and self.fuses_language else None,
            alignment=None if by_frames else Alignment(frame_s=self.frame_s),
            # A split encoder has heard by the branches of the language named, which suit no other.
            hears_language=self.config.language_weight > 0
            and len(self.source_languages) > 1
            and self.sharing_plan is None,
            encode_text=self.encode_text,
            words_only=self.tokenizer.words_only,
            sharing_plan=self.sharing_plan,
            # Live text by frames keeps its streams in the host's memory.
            devices=(CPU,) if self.streaming else ANY_DEVICE,
        )

    @property
    def streaming(self) -> StreamingTransducer | None:
        """Encoder and transducer, if the encoder hears chunk by chunk and the transducer writes."""
        if not self.writes_by_frames or not isinstance(self.encoder, ChunkEncoder):
            return None
        return StreamingTransducer(encoder=self.encoder, transducer=self.transducer, front_end=self.front_end)

    @property
    def writes_by_frames(self) -> bool:
        """Whether text comes from the transducer head, not from the attention decoder."""
        return self.config.writes_by_frames

    @property
    def writes_what_is_spoken(self) -> bool:
        """Whether it is a transducer that is not given which language to write."""
        part = self.config.transducer
        return self.writes_by_frames and part is not None and not part.prompted

    @property
    def fuses_language(self) -> bool:
        """Whether states go through a layer that is given the language wanted before the transducer reads them."""
        return self.config.transducer is not None and self.config.transducer.fusion_width is not None

    @property
    def untrained(self) -> list[nn.Module]:
        """Parts that have no weight in its loss."""
        decoder = [self.decoder] if self.writes_by_frames else []
        return [*self._heads_without_weight(), *decoder]

    @property
    def untrained_with_decoder(self) -> list[nn.Module]:
        """The same where another loss trains its decoder, beside which `with_heads` adds those of the heads."""
        transducer = [] if self.config.transducer is None else [self.transducer]
        return [*self._heads_without_weight(), *transducer]

    @property
    def front_end(self) -> StreamedNormalisation:
        """Normalisation of its log-mel features."""
        return "fixed" if self.config.streaming is None else self.config.streaming.front_end

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every (source, target) pair it was trained on."""
        config = self.config
        if self.writes_what_is_spoken:
            return frozenset((s, s) for s in config.source_languages)
        return frozenset((s, t) for s in config.source_languages for t in config.target_languages)

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Log-mel (B, T, M) of utterances as 16 kHz mono float32 samples, padded to a frame and to the longest."""
        padded = [np.pad(s, (0, max(0, HOP - len(s)))) for s in samples]
        mels = [log_mel(s, self.config.num_mel_bins, normalise=self.front_end).T for s in padded]
        num_frames = torch.tensor([mel.shape[0] for mel in mels])
        values = nn.utils.rnn.pad_sequence(mels, batch_first=True)
        return Features(values=values.to(self.device), num_frames=num_frames.to(self.device))

    @property
    def device(self) -> torch.device:
        """Device that the model computes on; engines pack some layers, which then have no `weight`."""
        return next(self.parameters()).device

    def encode(self, features: Features) -> Memory:
        """Run the encoder; the states are (B, ceil(T / 8), D). See `encode_routed` for a split one."""
        run = self._encode_with_means if self.encoder.gives_means else self._encode
        return encode_routed(self, features, partial(run, features))

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, number of source languages) of the language spoken."""
        if memory.language_log_probs is not None:
            return memory.language_log_probs
        assert memory.num_frames is not None
        valid = valid_frames(memory.num_frames, memory.states.shape[1])[..., None]
        mean = (memory.states * valid).sum(1) / memory.num_frames.clamp(min=1)[:, None]
        return self.language_head(mean).float().log_softmax(-1)

    def prompt(self, target: Target) -> list[int]:
        """The language token, if it reads one. Raises SprachbundError for a language it does not write."""
        if target.language not in self.config.target_languages:
            known = ", ".join(self.config.target_languages)
            raise SprachbundError(f"this model does not write {target.language!r}; it writes {known}")
        return [] if self.writes_what_is_spoken else [self.tokenizer.language_id(target.language)]

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): padding, unknown and language tokens are never written."""
        mask = torch.zeros(len(self.tokenizer), dtype=torch.bool)
        mask[[BLANK, UNKNOWN, *map(self.tokenizer.language_id, self.tokenizer.languages)]] = True
        return mask

    def no_speech_log_prob(self, logits: Tensor) -> Tensor:
        """Log-probability (R,) that the row ends at once, which it is trained to do where nobody speaks."""
        return logits.float().log_softmax(-1)[:, END]

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.tokenizer.decode(tokens)

    def transcript_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, T, V) of the CTC head; 0 is the blank."""
        return self.ctc_head(memory.states).float().log_softmax(-1)

    def decode_transcript(self, tokens: Sequence[int]) -> str:
        """Text of tokens of the CTC head."""
        return self.transcript_tokenizer.decode(tokens)

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a text, as the model would write it."""
        return self.tokenizer.encode(text.strip())

    def forward(self, batch: Batch) -> Loss:
        """The loss, as wrappers that watch `forward` expect it."""
        return self.loss(batch)

    def decoder_batch(self, batch: Batch) -> DecoderBatch:
        """Return the rows that the decoder is trained on, behind their language tokens."""
        features = Features(values=batch.features, num_frames=batch.num_frames)
        memory = self._encode(features, source_route(self, batch.source_language))
        prompts = batch.target_language[:, None].tolist()
        return make_decoder_batch(memory, batch, prompts, row_route(self, batch, self.tokenizer.language_id))

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the rows wanted, CTC on the transcript, cross-entropy of the language head."""
        decoder_batch = self.decoder_batch(batch)
        if self.config.transducer is None:
            loss = prompted_loss(self, decoder_batch, self.config.label_smoothing)
        else:
            loss = self._with_transducer(self.config.transducer, decoder_batch, batch)
        return self.with_heads(loss, batch, decoder_batch.memory)

    def _with_transducer(self, part: TransducerPart, decoder_batch: DecoderBatch, batch: Batch) -> Loss:
        """The transducer's loss, summed over rows as cross-entropy is over tokens, and the decoder's beside it."""
        memory = decoder_batch.memory
        assert memory.num_frames is not None
        rows, counted = batch.rows_per_utterance, batch.num_targets > 0
        states = memory.states.repeat_interleave(rows, 0)
        if self.fuses_language:
            states = self.language_fusion(states, self._fused_numbers(batch))
        losses = self.transducer.loss(
            states,
            memory.num_frames.repeat_interleave(rows, 0),
            batch.targets,
            (batch.num_targets - 1).clamp(min=0),  # what ends a row for the decoder is no token here
            prompt=batch.target_language[:, None] if part.prompted else None,
            fast_emit=part.fast_emit,
            frames_at_once=part.frames_at_once,
        )
        total = torch.where(counted, losses, 0.0).sum()
        if part.weight == 1.0:
            return Loss.of_text(total, int(batch.num_targets.sum()), parts={"transducer": total.detach()})
        loss = prompted_loss(self, decoder_batch, self.config.label_smoothing)
        both = part.weight * total + (1 - part.weight) * loss.total
        return replace(loss, total=both, parts={**loss.parts, "transducer": total.detach()})

    def with_heads(self, loss: Loss, batch: Batch, memory: Memory) -> Loss:
        """A loss of the decoder on a batch, and those of the heads on its memory, of CTC where it has a weight."""
        speaks = batch.source_language >= 0
        language = F.nll_loss(
            self.language_log_probs(memory), batch.source_language.clamp(min=0), reduction="none"
        )
        language = (language * speaks).sum()
        weighted = self.config.language_weight * language
        heads = {LANGUAGE: HeadLoss(language.detach(), batch.num_utterances)}
        if self.config.ctc_weight:
            assert batch.transcripts is not None
            ctc = self._ctc_loss(batch.transcripts, batch.source_language, memory)
            weighted = self.config.ctc_weight * ctc + weighted
            heads[CTC] = HeadLoss(ctc.detach(), int(batch.transcripts.num_tokens.sum()))
        # A transcript counts as one of its utterance's rows would; so does the language, as one token of it.
        return replace(loss, total=loss.total + batch.rows_per_utterance * weighted, heads=heads)

    def _heads_without_weight(self) -> list[nn.Module]:
        return [self.ctc_head] if self.config.ctc_weight == 0 else []

    def _encode(self, features: Features, route: Route | None) -> Memory:
        states, num_frames = self.encoder(features.values, features.num_frames, route)
        return Memory(states=states, num_frames=num_frames)

    def _encode_with_means(self, features: Features, route: Route | None) -> Memory:
        means: list[Tensor] = []  # taken in the call itself: engines cast the features by a hook of it
        states, num_frames = self.encoder(features.values, features.num_frames, route, means)
        return Memory(states=states, num_frames=num_frames, layer_means=means[0])

    def _fused_numbers(self, batch: Batch) -> Tensor:
        """Numbers (R,) of the rows' target languages, as `_fuse_language` counts them; any for a row without one."""
        # The order is that of the layer's embedding, which checkpoints declare; routes have another, alphabetical one.
        tokens = [self.tokenizer.language_id(tag) for tag in self.config.target_languages]
        same = batch.target_language[:, None] == torch.tensor(tokens, device=batch.target_language.device)
        return same.int().argmax(1)

    def _fuse_language(self, states: Tensor, targets: Sequence[Target]) -> Tensor:
        numbers = [self.config.target_languages.index(target.language) for target in targets]
        fused: Tensor = self.language_fusion(states, torch.tensor(numbers, device=states.device))
        return fused

    def _ctc_loss(self, transcripts: Transcripts, source_language: Tensor, memory: Memory) -> Tensor:
        assert memory.num_frames is not None
        log_probs = self.ctc_head(memory.states).float().log_softmax(-1).transpose(0, 1)
        losses = F.ctc_loss(
            log_probs,
            transcripts.tokens,
            memory.num_frames,
            transcripts.num_tokens,
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        # Speech without a transcript is not silence.
        unknown = (transcripts.num_tokens == 0) & (source_language != NO_LANGUAGE)
        return losses.masked_fill(unknown, 0.0).sum()


def _encoder(config: ConformerConfig) -> ConformerEncoder | StreamingEncoder:
    if config.streaming is None:
        return ConformerEncoder(
            num_mel_bins=config.num_mel_bins,
            width=config.width,
            num_heads=config.num_heads,
            num_layers=config.num_encoder_layers,
            feed_forward_width=config.feed_forward_width,
            kernel_size=config.kernel_size,
            dropout=config.dropout,
        )
    shape = StreamingShape(
        num_mel_bins=config.num_mel_bins,
        width=config.width,
        num_heads=config.num_heads,
        num_layers=config.num_encoder_layers,
        feed_forward_width=config.feed_forward_width,
        kernel_size=config.kernel_size,
        convolution=config.streaming.convolution,
        subsampling=config.streaming.subsampling,
        stem_channels=config.streaming.stem_channels,
        scale_input=config.streaming.scale_input,
        dropout=config.dropout,
    )
    return StreamingEncoder(shape, config.streaming.tiers())


def _transducer_shape(config: ConformerConfig, part: TransducerPart, vocabulary_size: int) -> TransducerShape:
    return TransducerShape(
        vocabulary_size=vocabulary_size,
        encoder_width=config.width,
        prediction_width=part.prediction_width,
        prediction_layers=part.prediction_layers,
        joint_width=part.joint_width,
        dropout=config.dropout,
        blank=BLANK,
        activation=part.activation,
        prune_range=part.prune_range,
    )

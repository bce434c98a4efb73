"""One model for speech translation and text translation, every weight shared (arXiv 2309.15826).

It reads tokens that stand for speech or for text, and nothing marks which. Pieces of units are read and never written:
its output layers have no place for them. So it has two kinds of ids: those of the joint vocabulary, which it reads, and
those of the tokens that may be written, which are what every search sees; 0 is the blank in both. Shapes: B utterances,
R rows, S source tokens, T frames, U target tokens, D width, V joint vocabulary, W tokens that may be written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.data.batch import Batch, Transcripts
from sprachbund.models.base import (
    CTC,
    LANGUAGE,
    Capabilities,
    Features,
    HeadLoss,
    JointCtc,
    Loss,
    Memory,
    Target,
)
from sprachbund.models.teacher_forcing import make_decoder_batch
from sprachbund.models.tokens.config import TokenConfig
from sprachbund.models.tokens.text_input import Reader, ReadsTokens
from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.ctc import CtcHead, ctc_loss
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.token_encoder import EncodedTokens, TokenEncoder
from sprachbund.nn.transducer import Transducer, TransducerShape

# The loss: that of the head, and CTC on the transcript (arXiv 2309.15826).
#
# For each row (1 - w) head + w CTC(transcript), w only where there is a transcript; text has none, for CTC
# would copy it. Targets that CTC cannot align lose that term and are counted. Shapes: B rows, T frames, U
# target tokens, W vocabulary.


@dataclass(frozen=True, kw_only=True)
class _Written:
    """Losses of a head.

    Attributes:
        total: (B,) its weighted losses.
        main: (B,) of them, that of what writes the text.
        counted: boolean (B,), rows that have such a loss.
        dropped: rows whose CTC term was dropped.
        parts: other losses by name, summed.
    """

    total: Tensor
    main: Tensor
    counted: Tensor
    dropped: int
    parts: dict[str, Tensor]


def token_loss(model: "TokenConformer", batch: Batch) -> Loss:
    """The loss of a batch of one target row for each source row; see `sprachbund.data.batch.Batch`."""
    config = model.config
    encoded = model.encode_tokens(batch.features, batch.num_frames)
    memory = Memory(states=encoded.states, num_frames=encoded.num_frames)
    head = _head(model, batch, memory)
    assert batch.transcripts is not None
    source, reads, dropped = _source(model, batch.transcripts, encoded.inner, encoded.num_frames)
    weight = config.source_ctc_weight * reads
    total = (1 - weight) * head.total + weight * source
    language = language_loss(model.language_log_probs(memory), batch)
    return Loss(
        total=total.sum() + config.language_weight * language,
        attention=head.main.sum(),
        num_tokens=int(batch.num_targets[head.counted].sum()),
        heads={
            CTC: HeadLoss(source.detach().sum(), int(batch.transcripts.num_tokens[reads].sum())),
            LANGUAGE: HeadLoss(language.detach(), batch.num_utterances),
        },
        parts=head.parts,
        counts={"dropped": head.dropped + dropped},
    )


def language_loss(log_probs: Tensor, batch: Batch) -> Tensor:
    """Loss of log-probabilities (B, L) of the source languages, summed over the rows whose language is known."""
    losses = F.nll_loss(log_probs, batch.source_language.clamp(min=0), reduction="none")
    return torch.where(batch.source_language >= 0, losses, 0.0).sum()


def _head(model: "TokenConformer", batch: Batch, memory: Memory) -> _Written:
    """The loss of what writes the text."""
    config, there = model.config, batch.num_targets > 0
    if config.head == "attention":
        loss = _attention(model, batch, memory)
        return _Written(total=loss, main=loss, counted=there, dropped=0, parts={})
    ctc, fits = _target_ctc(model, batch, memory)
    dropped = int((there & ~fits).sum())
    if config.head == "ctc":
        return _Written(total=ctc, main=ctc, counted=there & fits, dropped=dropped, parts={})
    main = (_transducer if config.head == "transducer" else _attention)(model, batch, memory)
    return _Written(
        total=(1 - config.ctc_weight) * main + config.ctc_weight * ctc,
        main=main,
        counted=there,
        dropped=dropped,
        parts={"target_ctc": ctc.detach().sum()},
    )


def _attention(model: "TokenConformer", batch: Batch, memory: Memory) -> Tensor:
    return decoder_loss(model, batch, memory, batch.target_language[:, None].tolist())


def decoder_loss(model: Any, batch: Batch, memory: Memory, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Cross-entropy of every row (B,) under its prompt, of a model with a `decoder`.

    Args:
        model: has a `decoder`.
        batch: batch of R rows.
        memory: memory of the B utterances.
        prompts: tokens of the prompt of each row.
    """
    decoder_batch = make_decoder_batch(memory, batch, prompts)
    hidden = model.decoder(decoder_batch.tokens, memory.states, memory.num_frames)
    logits = model.decoder.logits(hidden[decoder_batch.loss_mask]).float()
    each = F.cross_entropy(
        logits,
        decoder_batch.labels[decoder_batch.loss_mask],
        reduction="none",
        label_smoothing=model.config.label_smoothing,
    )
    rows = decoder_batch.loss_mask.nonzero()[:, 0]
    return each.new_zeros(len(decoder_batch.loss_mask)).index_add(0, rows, each)


def _transducer(model: "TokenConformer", batch: Batch, memory: Memory) -> Tensor:
    """Of every row (B,); the language wanted is read before the text."""
    assert memory.num_frames is not None
    losses = model.transducer.loss(
        memory.states,
        memory.num_frames,
        batch.targets,
        _without_end(batch),
        prompt=batch.target_language[:, None],
        frames_at_once=model.config.frames_at_once,
    )
    return torch.where(batch.num_targets > 0, losses, 0.0)


def _target_ctc(model: "TokenConformer", batch: Batch, memory: Memory) -> tuple[Tensor, Tensor]:
    assert memory.num_frames is not None
    log_probs = model.ctc(memory.states, model.language_indices(batch.target_language))
    losses, fits = ctc_loss(log_probs, memory.num_frames, batch.targets, _without_end(batch))
    return torch.where(batch.num_targets > 0, losses, 0.0), fits


def _source(
    model: "TokenConformer", transcripts: Transcripts, inner: Tensor, num_frames: Tensor
) -> tuple[Tensor, Tensor, int]:
    """CTC on the transcript (B,), boolean (B,) where it counts, and how many transcripts do not fit."""
    wanted = transcripts.num_tokens > 0
    if not model.config.source_ctc_weight or not bool(wanted.any()):
        return inner.new_zeros(len(inner)), torch.zeros_like(wanted), 0
    log_probs = model.source_ctc_head(inner).float().log_softmax(-1)
    losses, fits = ctc_loss(log_probs, num_frames, transcripts.tokens, transcripts.num_tokens)
    return torch.where(wanted, losses, 0.0), wanted & fits, int((wanted & ~fits).sum())


def _without_end(batch: Batch) -> Tensor:
    return (batch.num_targets - 1).clamp(min=0)


class TokenConformer(ReadsTokens):
    """Translator of tokens; satisfies `sprachbund.models.base.Family`, and translates text besides.

    Args:
        config: shape and languages.
        reader: turns speech and text into tokens.

    Attributes:
        written: the tokens that may be written.

    Raises:
        SprachbundError: a target language for which the vocabulary has no token.
    """

    name = "token_conformer"
    blank = 0

    def __init__(self, config: TokenConfig, reader: Reader) -> None:
        super().__init__(config, reader)
        self.max_tokens = config.max_tokens
        self.frame_s = config.frame_s * 2**config.strides
        self.encoder = _encoder(config, len(reader.vocabulary))
        if config.soft_sharing:
            self.text_encoder = _encoder(config, len(reader.vocabulary), config.text_layers)
        size = len(self.written)
        if config.has_decoder:
            self.decoder = TextDecoder(
                vocabulary_size=size,
                max_tokens=config.max_tokens,
                width=config.width,
                num_heads=config.num_heads,
                num_layers=config.num_decoder_layers,
                feed_forward_width=config.decoder_feed_forward_width,
                dropout=config.dropout,
                tied=config.tied,
            )
        if config.head == "transducer":
            self.transducer = Transducer(_transducer_shape(config, size))
        if config.head != "attention":
            self.ctc = CtcHead(config.width, size, len(config.target_languages))
        if config.source_ctc_weight:
            self.source_ctc_head = nn.Linear(config.width, size)
        self.language_head = nn.Linear(config.width, len(self.source_languages))

    @property
    def untrained(self) -> list[nn.Module]:
        """None: a loss of weight 0 still reaches its head, or the head is not built."""
        return []

    @property
    def has_unused_parameters(self) -> bool:
        """Text trains no CTC on transcripts, and with an encoder of its own nothing of that of speech."""
        return self.config.source_ctc_weight > 0 or self.config.soft_sharing

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities by the head: a transducer, CTC, an attention decoder, or the last two together."""
        head, weight = self.config.head, self.config.decoding_ctc_weight
        return replace(
            super().capabilities,
            transducer=self.transducer if head == "transducer" else None,
            ctc=self if head == "ctc" else None,
            joint_ctc=JointCtc(head=self, weight=weight) if head == "ctc_attention" and weight else None,
        )

    def encode(self, features: Features) -> Memory:
        """Run the encoder; the states are (B, T, D)."""
        encoded = self.encode_tokens(features.values, features.num_frames)
        return Memory(states=encoded.states, num_frames=encoded.num_frames)

    def encode_tokens(self, tokens: Tensor, num_tokens: Tensor) -> EncodedTokens:
        """Encode `tokens` (B, S), all of one kind where text has an encoder of its own."""
        if not self.config.soft_sharing:
            return self.encoder(tokens, num_tokens)
        spoken = torch.from_numpy(self.reader.vocabulary.is_unit).to(tokens.device)[tokens[:, 0]]
        return (self.encoder if bool(spoken.any()) else self.text_encoder)(tokens, num_tokens)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, number of source languages) of the language spoken or read."""
        assert memory.num_frames is not None
        valid = valid_frames(memory.num_frames, memory.states.shape[1])[..., None]
        mean = (memory.states * valid).sum(1) / memory.num_frames[:, None]
        return self.language_head(mean).float().log_softmax(-1)

    def prompt(self, target: Target) -> list[int]:
        """The language token. Raises SprachbundError for a language it does not write."""
        return [self.language_tokens[self.target_index(target.language)]]

    def ctc_log_probs(self, memory: Memory, targets: Sequence[Sequence[Target]]) -> Tensor:
        """(R, T, W) of the CTC head for the targets of each memory, in order; language tokens and the end left out."""
        flat = [target for group in targets for target in group]
        targets_index = torch.tensor(
            [self.target_index(t.language) for t in flat], device=memory.states.device
        )
        log_probs = self.ctc(memory.states.repeat_interleave(len(targets[0]), 0), targets_index)
        silent = self.suppressed(flat[0]).to(log_probs.device, copy=True)
        silent[0], silent[self.end_token] = False, True
        return log_probs.masked_fill(silent, -torch.inf)

    def forward(self, batch: Batch) -> Loss:
        """The loss, as wrappers that watch `forward` expect it."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> Loss:
        """See `objective.token_loss`."""
        return token_loss(self, batch)

    def language_indices(self, tokens: Tensor) -> Tensor:
        """Indices (R,) among the target languages of language tokens (R,)."""
        known = torch.tensor(self.language_tokens, device=tokens.device)
        return (tokens[:, None] == known).int().argmax(1)


def _encoder(config: TokenConfig, vocabulary_size: int, num_layers: int | None = None) -> TokenEncoder:
    names = (
        "embedding_width",
        "width",
        "num_heads",
        "num_lower",
        "num_upper",
        "feed_forward_width",
        "kernel_size",
        "strides",
        "block",
        "dropout",
        "time_masks",
        "max_mask_share",
    )
    sizes: dict[str, Any] = config.model_dump(include=set(names))
    if num_layers is not None:  # nothing is read off text, so that it has no lower layers to be told apart
        sizes |= {"num_lower": num_layers, "num_upper": 0}
    return TokenEncoder(vocabulary_size=vocabulary_size, **sizes)


def _transducer_shape(config: TokenConfig, vocabulary_size: int) -> TransducerShape:
    return TransducerShape(
        vocabulary_size=vocabulary_size,
        encoder_width=config.width,
        prediction_width=config.prediction_width,
        prediction_layers=1,
        joint_width=config.joint_width,
        dropout=config.dropout,
    )

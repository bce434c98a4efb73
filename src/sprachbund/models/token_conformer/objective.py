"""The loss of a model with token input: that of its head, and CTC on the transcript below (arXiv 2309.15826).

For each row (1 - w) head + w CTC(transcript), w only where there is a transcript; text has none, for CTC would copy it.
Targets that CTC cannot align lose that term and are counted. Shapes: B rows, T frames, U target tokens, W vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sprachbund.data.batch import Batch
from sprachbund.models.family import Memory
from sprachbund.models.loss import Loss
from sprachbund.models.teaching import make_lesson
from sprachbund.nn.ctc import ctc_loss

if TYPE_CHECKING:
    from sprachbund.models.token_conformer.model import TokenConformer


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What a head costs.

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
    source, reads, dropped = _source(model, batch, encoded.inner, encoded.num_frames)
    weight = config.source_ctc_weight * reads
    total = (1 - weight) * head.total + weight * source
    language = language_loss(model.language_log_probs(memory), batch)
    return Loss(
        total=total.sum() + config.language_weight * language,
        attention=head.main.sum(),
        ctc=source.detach().sum(),
        language=language.detach(),
        num_tokens=int(batch.num_targets[head.counted].sum()),
        num_transcript=int(batch.num_transcript[reads].sum()),
        parts=head.parts,
        counts={"dropped": head.dropped + dropped},
    )


def language_loss(log_probs: Tensor, batch: Batch) -> Tensor:
    """Of log-probabilities (B, L) of the source languages, summed over the rows whose language is known."""
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
    """Cross-entropy of every row (B,) under its prompt, of a model with a `decoder`."""
    lesson = make_lesson(memory, batch, prompts)
    hidden = model.decoder(lesson.tokens, memory.states, memory.num_frames)
    logits = model.decoder.logits(hidden[lesson.counted]).float()
    each = F.cross_entropy(
        logits,
        lesson.wanted[lesson.counted],
        reduction="none",
        label_smoothing=model.config.label_smoothing,
    )
    rows = lesson.counted.nonzero()[:, 0]
    return each.new_zeros(len(lesson.counted)).index_add(0, rows, each)


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
    log_probs = model.ctc(memory.states, model.language_places(batch.target_language))
    losses, fits = ctc_loss(log_probs, memory.num_frames, batch.targets, _without_end(batch))
    return torch.where(batch.num_targets > 0, losses, 0.0), fits


def _source(
    model: "TokenConformer", batch: Batch, inner: Tensor, num_frames: Tensor
) -> tuple[Tensor, Tensor, int]:
    """CTC on the transcript (B,), boolean (B,) where it counts, and how many transcripts do not fit."""
    wanted = batch.num_transcript > 0
    if not model.config.source_ctc_weight or not bool(wanted.any()):
        return inner.new_zeros(len(inner)), torch.zeros_like(wanted), 0
    log_probs = model.source_ctc_head(inner).float().log_softmax(-1)
    losses, fits = ctc_loss(log_probs, num_frames, batch.transcripts, batch.num_transcript)
    return torch.where(wanted, losses, 0.0), wanted & fits, int((wanted & ~fits).sum())


def _without_end(batch: Batch) -> Tensor:
    return (batch.num_targets - 1).clamp(min=0)

"""Dual-scale training (arXiv 2508.11189): one loss on speech and on transcripts, with a draft network.

A translator, a text encoder that feeds the same decoder, and a small network that drafts tokens are trained together
(section 2). The result is the translator with its draft network; the text encoder is used in training only.
Shapes: B utterances, R rows, U tokens of a row, N tokens that count, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.data.batch import Batch
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Loss, Memory
from sprachbund.models.conformer import Conformer
from sprachbund.models.drafts import DraftLogits, DraftNetwork, draft_logits, run_decoder
from sprachbund.models.pruning import prune_decoder
from sprachbund.models.teacher_forcing import DecoderBatch
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.drafts import Parasite
from sprachbund.nn.encoder import TextEncoder
from sprachbund.training.draft import DraftOptions, make_network
from sprachbund.training.lora import add_lora
from sprachbund.training.optimizers import freeze_others
from sprachbund.util.distributed import sum_over_ranks


class DualScaleOptions(BaseModel):
    """Options of the modules that are built around a model, and of their losses.

    Attributes:
        decoder_layers: decoder layers that are kept, by the rule of `sprachbund.models.pruning`; all if None.
        text_layers: layers of the text encoder; 0 leaves the text branch out.
        draft: kind of draft network that is trained along.
        blocks: blocks of the parasite; Medusa heads get as many weights as a parasite of so many blocks.
        heads: Medusa heads, each of which drafts one token of a pass.
        pre_ln_q: whether queries are normed before they are projected; see `sprachbund.nn.drafts.ParasiteShape`.
        detach_kv: whether the parasite's gradients are kept from the decoder's keys and values.
        whole_layers: upper layers of the encoder that are trained wholly; those below are trained by adapters.
        lora_rank: rank of the adapters; 0 leaves them out, so that only the upper layers of the encoder are trained.
        lora_alpha: alpha of the adapters, whose product is multiplied by alpha / rank.
        speech_weight: weight of the cross-entropy on speech (equation 5).
        text_weight: weight of the cross-entropy on transcripts.
        kl_weight: weight of KL(text || speech).
        draft_weight: weight of the draft network's loss, which has the same three parts.
        gate: whether the divergence is added only once the running loss on transcripts is below that on speech, and
            from then on.
        gate_decay: decay of the two running means.
        same_language: share of the utterances that are transcribed instead of translated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoder_layers: PositiveInt | None = None
    text_layers: int = Field(default=6, ge=0)
    draft: Literal["parasite", "medusa", "none"] = "parasite"
    blocks: PositiveInt = 3
    heads: PositiveInt = 1
    pre_ln_q: bool = False
    detach_kv: bool = False
    whole_layers: int = Field(default=4, ge=0)
    lora_rank: NonNegativeInt = 64
    lora_alpha: PositiveInt = 64
    speech_weight: float = Field(default=2.0, ge=0)
    text_weight: float = Field(default=1.0, ge=0)
    kl_weight: float = Field(default=0.5, ge=0)
    draft_weight: float = Field(default=0.2, ge=0)
    gate: bool = True
    gate_decay: float = Field(default=0.99, ge=0, lt=1)
    same_language: float = Field(default=0.0, ge=0, le=1)


class Gate(nn.Module):
    """Opens once one running mean lies below another, and stays open.

    Means count when they have seen about as much as they average over: the first batch alone would decide otherwise.
    It is state of the training, saved with it.
    """

    means: Tensor
    num_seen: Tensor
    opened: Tensor

    def __init__(self, decay: float, *, is_open: bool = False) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("num_seen", torch.tensor(0))
        # A number: not every way for processes to talk can send a boolean.
        self.register_buffer("opened", torch.tensor(int(is_open)))

    @property
    def is_open(self) -> bool:
        """Whether the gate is open, by the losses seen so far."""
        return bool(self.opened)

    @torch.no_grad()
    def see(self, lower: Tensor, upper: Tensor) -> None:
        """Take in a batch's two means, of which `lower` has to come to lie below; none that are not finite."""
        seen = torch.stack([lower, upper]).float()
        is_finite = seen.isfinite().all()
        self.num_seen += is_finite
        seen = torch.where(is_finite, seen, self.means)
        # Weights of an average over all that was seen, until that is as long as the decay's memory.
        keep = torch.clamp(1 - 1 / self.num_seen.clamp(min=1), max=self.decay)
        self.means.mul_(keep).add_(seen * (1 - keep))
        ripe = self.num_seen * (1 - self.decay) >= 1 - 1e-6
        self.opened |= (ripe & (self.means[0] < self.means[1])).long()


class DualScale(nn.Module):
    """The module that is trained: a family's model with a text branch and a draft network; `loss(batch)` is a family's.

    Args:
        base: a family's module, its decoder pruned.
        text_encoder: None leaves the text branch out, and with it the divergence.
        draft_network: draft network made for the base's decoder, or None.
        options: weights of the losses, and the gate.
    """

    has_unused_parameters = False

    def __init__(
        self,
        base: Any,
        text_encoder: TextEncoder | None,
        draft_network: DraftNetwork | None,
        options: DualScaleOptions,
    ) -> None:
        super().__init__()
        self.base = base
        self.text_encoder = text_encoder
        self.draft_network = draft_network
        self.options = options
        self.gate = Gate(options.gate_decay, is_open=not options.gate)

    @property
    def untrained(self) -> Sequence[nn.Module]:
        """Parts of the base that have no weight in the loss."""
        return self.base.untrained_with_decoder if isinstance(self.base, Conformer) else ()

    @property
    def encoder(self) -> Any:
        """Object whose `layers` the training loop reads."""
        return self.base.encoder

    @property
    def decoder(self) -> Any:
        """Object whose `layers` the training loop reads: all layers but the encoder's."""
        text = [] if self.text_encoder is None else list(self.text_encoder.layers)
        return SimpleNamespace(layers=[*self.base.decoder.layers, *text, *_blocks(self.draft_network)])

    def loss(self, batch: Batch) -> Loss:
        """L_base + w L_draft, each of them cross-entropy on speech and on transcripts and their divergence.

        `attention` is the base's cross-entropy on speech, by which checkpoints are ranked. Heads that the base's
        family has beside its decoder are weighted as the cross-entropy on speech.

        Raises:
            ValueError: a batch without transcripts, where there is a text branch.
        """
        speech: DecoderBatch = self.base.decoder_batch(batch)
        decoder_batches = {"speech": speech}
        if self.text_encoder is not None:
            decoder_batches["text"] = self._of_text(speech, batch)
        seen = {
            name: run_decoder(self._decoder, decoder_batch) for name, decoder_batch in decoder_batches.items()
        }
        own = {
            name: [
                DraftLogits(
                    logits=seen[name].logits(self._decoder, decoder_batch.loss_mask),
                    positions=decoder_batch.loss_mask,
                )
            ]
            for name, decoder_batch in decoder_batches.items()
        }
        parts = self._parts(own, decoder_batches)
        total = self._weighted(parts)
        attention = parts["speech"]
        parts = {name: part for name, part in parts.items() if name != "speech"}
        if self.draft_network is not None:
            drafted = {
                name: self._draft_logits(decoder_batch, seen[name])
                for name, decoder_batch in decoder_batches.items()
            }
            ahead = self._parts(drafted, decoder_batches)
            total = total + self.options.draft_weight * self._weighted(ahead)
            parts |= {f"draft-{name}": part for name, part in ahead.items()}
        if self.training and "text" in parts:
            self._watch(parts["text"], attention, decoder_batches)
        return self._with_heads(total, attention, parts, batch, speech)

    @property
    def _decoder(self) -> TextDecoder:
        decoder: TextDecoder = self.base.decoder
        return decoder

    def _of_text(self, speech: DecoderBatch, batch: Batch) -> DecoderBatch:
        """The same rows over what the text encoder makes of the transcripts; rows without one do not count."""
        if self.text_encoder is None or batch.spoken is None:
            raise ValueError("the text branch needs a batch with transcripts; ask the corpus for `spoken`")
        there = batch.spoken.num_tokens.repeat_interleave(batch.rows_per_utterance) > 0
        lengths = batch.spoken.num_tokens.clamp(min=1)
        states = self.text_encoder(self._decoder.embedding, batch.spoken.tokens, lengths)
        memory = Memory(states=states, num_frames=lengths)
        return replace(speech, memory=memory, loss_mask=speech.loss_mask & there[:, None])

    def _draft_logits(self, decoder_batch: DecoderBatch, seen: Any) -> list[DraftLogits]:
        assert self.draft_network is not None
        return draft_logits(
            self.draft_network, self._decoder, decoder_batch, seen, detach_kv=self.options.detach_kv
        )

    def _parts(
        self, predicted: Mapping[str, list[DraftLogits]], decoder_batches: Mapping[str, DecoderBatch]
    ) -> dict[str, Tensor]:
        """Cross-entropy by name of the decoder batch and, where the gate is open, "kl"; sums over tokens."""
        log_probs = {
            name: [g.logits.float().log_softmax(-1) for g in predictions]
            for name, predictions in predicted.items()
        }
        parts = {
            name: sum(
                (
                    g.weight * F.nll_loss(one, decoder_batches[name].labels[g.positions], reduction="sum")
                    for g, one in zip(predictions, log_probs[name], strict=True)
                ),
                start=torch.zeros((), device=predictions[0].logits.device),
            )
            for name, predictions in predicted.items()
        }
        if "text" in predicted and self.gate.is_open and self.options.kl_weight > 0:
            parts["kl"] = sum(
                (
                    text.weight * divergence(log_text, log_speech[text.positions[speech.positions]])
                    for text, speech, log_text, log_speech in zip(
                        predicted["text"],
                        predicted["speech"],
                        log_probs["text"],
                        log_probs["speech"],
                        strict=True,
                    )
                ),
                start=torch.zeros_like(parts["text"]),
            )
        return parts

    def _weighted(self, parts: Mapping[str, Tensor]) -> Tensor:
        options = self.options
        weights = {"speech": options.speech_weight, "text": options.text_weight, "kl": options.kl_weight}
        return sum(
            (weights[name] * part for name, part in parts.items()), start=parts["speech"].new_zeros(())
        )

    def _watch(self, text: Tensor, speech: Tensor, decoder_batches: Mapping[str, DecoderBatch]) -> None:
        """Show the gate the means over tokens, of all processes; a batch without transcripts shows nothing."""
        counts = [decoder_batches[name].loss_mask.sum() for name in ("text", "speech")]
        sums = torch.stack([text.detach(), speech.detach(), *(count.to(text) for count in counts)])
        text_sum, speech_sum, num_text, num_speech = sum_over_ranks(sums).unbind()
        if bool(num_text):
            self.gate.see(text_sum / num_text, speech_sum / num_speech)

    def _with_heads(
        self,
        total: Tensor,
        attention: Tensor,
        parts: dict[str, Tensor],
        batch: Batch,
        decoder_batch: DecoderBatch,
    ) -> Loss:
        loss = Loss.of_text(
            attention.detach().new_zeros(()),
            int(decoder_batch.loss_mask.sum()),
            attention=attention,
            parts={name: part.detach() for name, part in parts.items()},
        )
        if isinstance(self.base, Conformer):
            loss = self.base.with_heads(loss, batch, decoder_batch.memory)
        return replace(loss, total=total + self.options.speech_weight * loss.total)


def divergence(log_text: Tensor, log_speech: Tensor) -> Tensor:
    """KL(text || speech) of log-probabilities (N, V), summed; the text's are a fixed aim (equation 4)."""
    return F.kl_div(log_speech, log_text.detach(), reduction="sum", log_target=True)


def _blocks(draft_network: DraftNetwork | None) -> Iterator[nn.Module]:
    if draft_network is not None:
        yield from draft_network.blocks if isinstance(draft_network, Parasite) else draft_network.stacks


def make_dual_scale(model: Any, options: DualScaleOptions) -> DualScale:
    """Prune a model's decoder and put a text encoder, a draft network and adapters around it.

    The text encoder starts from the first decoder layers of the model as it was; the draft network fits the pruned
    decoder. The model itself is not changed where it is pruned.

    Raises:
        SprachbundError: more layers or blocks than there are, or a transducer, whose head the losses do not reach.
    """
    if isinstance(model, Conformer) and model.writes_by_frames:
        raise SprachbundError(
            "the model writes by a transducer, and dual-scale training is for attention decoders; take dual_scale out "
            "of the recipe, or start from another model"
        )
    base = model if options.decoder_layers is None else prune_decoder(model, options.decoder_layers)
    text = _text_encoder(model, options.text_layers)
    draft_network = None
    if options.draft != "none":
        wanted = DraftOptions(
            kind=options.draft, blocks=options.blocks, heads=options.heads, pre_ln_q=options.pre_ln_q
        )
        draft_network = make_network(base, wanted)
    whole = DualScale(base, text, draft_network, options)
    add_adapters(whole)
    return whole


def add_adapters(whole: DualScale) -> None:
    """Adapters on the linear layers of the lower encoder layers, whose own weights are frozen.

    With rank 0 there are none, and those layers are frozen.
    A model whose encoder has no more layers than are trained wholly gets none, and all of it is trained.
    """
    options = whole.options
    count = len(whole.base.encoder.layers)
    lower = max(0, count - options.whole_layers)
    if lower == 0:
        return
    sides = [f"base.{name}.*" for name, _ in whole.base.named_children() if name != "encoder"]
    parts = {"text_encoder": whole.text_encoder, "draft_network": whole.draft_network}
    other_parts = [f"{name}.*" for name, part in parts.items() if part is not None]
    upper = [f"base.encoder.layers.{n}.*" for n in range(lower, count)]
    if options.lora_rank == 0:
        freeze_others(whole, (*sides, *other_parts, *upper))
        return
    add_lora(
        whole,
        tuple(f"base.encoder.layers.{n}.*" for n in range(lower)),
        options.lora_rank,
        scale=options.lora_alpha / options.lora_rank,
        whole=(*sides, *other_parts, *upper),
    )


def _text_encoder(model: Any, num_layers: int) -> TextEncoder | None:
    if num_layers == 0:
        return None
    try:
        return TextEncoder.like(model.decoder, num_layers)
    except ValueError as error:
        raise SprachbundError(f"{error}; 0 leaves the text branch out") from error

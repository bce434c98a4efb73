"""Training a draft that reads inside a model: a parasite (arXiv 2508.11189) or Medusa heads, the model frozen.

The draft is trained on the teacher-forcing batches of the model, see `sprachbund.models.drafts`, so the code is the
same for every family.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.batch import Batch
from sprachbund.data.loading import Corpus
from sprachbund.decoding.drafts import draft_around
from sprachbund.decoding.drafts.base import torch_decoder
from sprachbund.decoding.drafts.network import NetworkDraft
from sprachbund.decoding.drafts.token_map import TokenMapDraft
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Loss, Target
from sprachbund.models.drafts import DecoderOutput, DraftLogits, DraftNetwork, draft_logits, run_decoder
from sprachbund.models.teacher_forcing import DecoderBatch
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.drafts import MedusaHeads, MedusaShape, Parasite, ParasiteShape
from sprachbund.nn.feed_forward import Activation, FeedForward
from sprachbund.training.checkpoint import digest_of
from sprachbund.training.loop import train
from sprachbund.training.options import TrainingOptions
from sprachbund.util.progress import Report, nothing

Kind = Literal["parasite", "medusa"]


class DraftOptions(BaseModel):
    """Options of a draft network and the loss that it is trained on.

    Attributes:
        kind: parasite or Medusa heads.
        blocks: blocks of the parasite. Medusa heads get as many weights as a parasite of so many blocks.
        heads: Medusa heads, draft tokens of a pass.
        pre_ln_q: whether queries are normed before they are projected; see `sprachbund.nn.drafts.ParasiteShape`.
        label_weight: weight of the cross-entropy of the texts (2 in arXiv 2508.11189, equation 5).
        kl_weight: weight of KL(model || draft) (0.5 there): it makes a draft predict as the model does, right or wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "parasite"
    blocks: int = Field(default=3, ge=1)
    heads: int = Field(default=1, ge=1)
    pre_ln_q: bool = False
    label_weight: float = Field(default=2.0, ge=0)
    kl_weight: float = Field(default=0.5, ge=0)


class DraftTraining(nn.Module):
    """A draft network on a frozen model, with the interface of the training loop.

    The model is kept where `nn.Module` does not look: it is no part of what is trained, saved or averaged.

    Args:
        base: a family's module with a torch decoder.
        network: network that is trained.
        options: weights of the losses.
    """

    def __init__(self, base: Any, network: DraftNetwork, options: DraftOptions) -> None:
        super().__init__()
        self._base = (base.requires_grad_(False).eval(),)
        self.network = network
        self.options = options

    @property
    def base(self) -> Any:
        """The frozen model."""
        return self._base[0]

    @property
    def learns_from(self) -> Sequence[nn.Module]:
        """The frozen model, from which the draft learns."""
        return self._base

    @property
    def encoder(self) -> Any:
        """Object whose `layers` the training loop reads: a draft has none here."""
        return SimpleNamespace(layers=[])

    @property
    def decoder(self) -> Any:
        """Object whose `layers` the training loop reads: the blocks of the draft."""
        network = self.network
        return SimpleNamespace(
            layers=list(network.blocks if isinstance(network, Parasite) else network.stacks)
        )

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the texts and KL divergence from the model, summed over the tokens to be drafted."""
        if self.base.decoder.positions.device != batch.features.device:
            self.base.to(batch.features.device)
        self.base.eval()
        decoder: TextDecoder = self.base.decoder
        with torch.no_grad():
            decoder_batch = self.base.decoder_batch(batch)
            seen = run_decoder(decoder, decoder_batch)
        predictions = draft_logits(self.network, decoder, decoder_batch, seen)
        total = sum(
            (g.weight * self._loss(g, decoder_batch, seen) for g in predictions),
            start=seen.hidden.new_zeros(()),
        )
        return Loss.of_text(total, int(predictions[0].positions.sum()), attention=total.detach())

    def _loss(self, drafted: DraftLogits, decoder_batch: DecoderBatch, seen: DecoderOutput) -> Tensor:
        with torch.no_grad():
            teacher = seen.logits(self.base.decoder, drafted.positions).float().log_softmax(-1)
        log_probs = drafted.logits.float().log_softmax(-1)
        labels = F.nll_loss(log_probs, decoder_batch.labels[drafted.positions], reduction="sum")
        divergence = F.kl_div(log_probs, teacher, reduction="sum", log_target=True)
        return self.options.label_weight * labels + self.options.kl_weight * divergence


def make_network(base: Any, options: DraftOptions) -> DraftNetwork:
    """An untrained network that fits a model.

    Raises:
        SprachbundError: more blocks than the decoder has layers, or a model without a torch decoder.
    """
    decoder = torch_decoder(base, options.kind)
    if options.blocks > len(decoder.layers):
        raise SprachbundError(
            f"{options.blocks} blocks cannot share the decoder's {len(decoder.layers)} layers; "
            f"set blocks to {len(decoder.layers)} at most"
        )
    if options.kind == "medusa":
        width = decoder.embedding.embedding_dim
        shape = MedusaShape.like_parasite(
            width=width, num_heads=options.heads, parasite_blocks=options.blocks
        )
        return MedusaHeads(shape)
    layer: Any = decoder.layers[0]
    feed_forward: nn.Module = layer.feed_forward
    activation: Activation = feed_forward.activation if isinstance(feed_forward, FeedForward) else "gelu"
    shape_of = ParasiteShape.of(decoder, num_blocks=options.blocks, pre_ln_q=options.pre_ln_q)
    parasite = Parasite(shape_of, activation)
    parasite.start_from(decoder)
    return parasite


def train_draft(
    model: Any,
    corpus: Corpus,
    options: DraftOptions,
    training: TrainingOptions,
    directory: Path,
    *,
    dev: Corpus | None = None,
    report: Report = print,
    stop_after: int | None = None,
    on_step: Callable[[int, int], None] = nothing,
) -> NetworkDraft:
    """Train a draft for a model, or resume the run in `directory`; the model comes out with the bits it went in with.

    Args:
        model: a family's module with a torch decoder.
        corpus: training data of the model.
        options: kind and sizes of the draft, and weights of its losses.
        training: steps, learning rate, batches and evaluations.
        directory: directory of the run.
        dev: ranks the checkpoints, and gives the acceptance that the draft is saved with.
        report: takes each progress line.
        stop_after: stop, resumable, after this many steps in all.
        on_step: called with the steps made, and with all of them.

    Raises:
        SprachbundError: the options do not fit the model.
    """
    torch.manual_seed(training.seed)
    before = digest_of(model)
    draft_training = DraftTraining(model, make_network(model, options), options)
    report(
        f"{sum(p.numel() for p in draft_training.parameters()) / 1e6:.2f} M parameters of the {options.kind}"
    )
    train(
        draft_training,
        corpus,
        training,
        directory,
        dev=dev,
        report=report,
        stop_after=stop_after,
        on_step=on_step,
    )
    if digest_of(model) != before:
        raise RuntimeError("the model under the draft has changed in training; this is a bug")
    model.cpu()
    network = draft_training.network.cpu()
    how = {"training": {"steps": training.steps, **options.model_dump(mode="json")}}
    return finished_draft(model, network, dev, report, **how)


def finished_draft(
    model: Any, network: DraftNetwork, dev: Corpus | None, report: Report, **known: Any
) -> NetworkDraft:
    """The draft of a trained network; where there are dev data, with what `measure_draft` finds on them.

    Args:
        model: a family's module, that the network was trained for.
        network: parasite or Medusa heads.
        dev: utterances that it drafts for.
        report: called with the mean acceptance.
        known: further fields of the draft's card.
    """
    draft = draft_around(network, model.decoder, **known)
    if dev is not None:
        measure_draft(model, draft, dev, report)
    return draft


def measure_draft(
    family: Family,
    draft: NetworkDraft | TokenMapDraft,
    corpus: Corpus,
    report: Report,
    *,
    limit: int = 64,
) -> None:
    """Write into a draft's card what greedy search over utterances of a corpus shows of it.

    That is the share of single draft tokens that are accepted, by "source>target", and the median length of the texts.

    Args:
        family: the model.
        draft: proposes tokens.
        corpus: corpus whose utterances, `limit` of them spread evenly, are translated into every target it draws.
        report: called with the mean acceptance.
    """
    count = sum(corpus.counts)
    indices = np.unique(np.linspace(0, count - 1, min(limit, count)).astype(int))
    speculation = Speculation(draft, num_draft_tokens=1)
    for index in indices.tolist():
        utterance, samples = corpus.utterance(index)
        if not utterance.language or len(samples) / SAMPLE_RATE > family.max_window_s:
            continue
        known = [
            Target(language=target, source=utterance.language)
            for target in corpus.targets
            if (utterance.language, target) in family.pairs()
        ]
        with torch.inference_mode():
            memory = family.encode(family.features([samples]))
        # Not by way of the pipeline: what counts is which draft tokens stand, before the guard sees any text.
        search(family, memory, [known], DecodingOptions(draft=NONE, timestamps=False), None, speculation)
    acceptance = {
        f"{r.source_language}>{r.target_language}": round(r.acceptance, 4) for r in speculation.report()
    }
    length = speculation.typical_length if acceptance else None
    draft.card = draft.card.model_copy(update={"acceptance": acceptance, "typical_length": length})
    report(f"acceptance on the dev data: {np.mean(list(acceptance.values()) or [0]):.1%}")

"""Training a draft that reads inside a model: a parasite (arXiv 2508.11189) or Medusa heads, the model frozen.

What the model is taught with is what the draft is taught with: the family's own loss calls its decoder, and what it is
called with is looked at there, so this is the same for every family. Shapes: R rows, U tokens, P tokens of a prompt,
N positions that count, D width, V vocabulary.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
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
from sprachbund.decoding.draft import Draft, torch_decoder
from sprachbund.decoding.drafts.medusa import MedusaDraft
from sprachbund.decoding.drafts.parasite import ParasiteDraft
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.model import Loss
from sprachbund.models.family import Family, Target
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.feed_forward import Activation
from sprachbund.nn.medusa import MedusaHeads, MedusaShape
from sprachbund.nn.parasite import Parasite, ParasiteShape
from sprachbund.training.loop import train
from sprachbund.training.options import TrainingOptions

Kind = Literal["parasite", "medusa"]
_LATER = 0.8
"""Weight of a Medusa head against that of the one before it (arXiv 2401.10774, section 2.2.1)."""


class DraftOptions(BaseModel):
    """What is trained, and on what loss.

    Attributes:
        kind: parasite or Medusa heads.
        blocks: of the parasite. Medusa heads get as many weights as a parasite of so many blocks.
        heads: Medusa heads, tokens guessed ahead.
        pre_ln_q: see `sprachbund.nn.parasite.ParasiteShape`.
        label_weight: of the cross-entropy of the texts (2 in arXiv 2508.11189, equation 5).
        kl_weight: of KL(model || draft) (0.5 there): what makes a draft guess as the model does, right or wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "parasite"
    blocks: int = Field(default=3, ge=1)
    heads: int = Field(default=1, ge=1)
    pre_ln_q: bool = False
    label_weight: float = Field(default=2.0, ge=0)
    kl_weight: float = Field(default=0.5, ge=0)


@dataclass(frozen=True, kw_only=True)
class Taught:
    """What a decoder was given by its family's loss.

    Attributes:
        tokens: (R, U) given, with the prompts.
        wanted: (R, U) token that follows each.
        prompts: (R,) tokens of each row's prompt.
        counted: boolean (R, U), where what follows is a target.
        memory: (B, T, D).
        num_frames: (B,) valid frames, or None.
        route: languages of the rows, where the decoder is split by them.
        hidden: (R, U, D) the decoder's, behind its last norm.
    """

    tokens: Tensor
    wanted: Tensor
    prompts: Tensor
    counted: Tensor
    memory: Tensor
    num_frames: Tensor | None
    route: Any
    hidden: Tensor


@torch.no_grad()
def taught(base: Any, batch: Batch) -> Taught:
    """What the decoder of a family is given for a batch; the family's weights are not touched.

    Raises:
        ValueError: rows in which the targets of the batch do not follow a prompt.
    """
    calls: list[tuple[tuple[Any, ...], Tensor]] = []
    hook = base.decoder.register_forward_hook(lambda module, given, hidden: calls.append((given, hidden)))
    try:
        base.loss(batch)
    finally:
        hook.remove()
    (tokens, memory, num_frames, *route), hidden = calls[-1]
    prompts = _prompt_lengths(tokens, batch)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    behind = places - (prompts[:, None] - 1)
    wanted = batch.targets.gather(1, behind.clamp(0, batch.targets.shape[1] - 1))
    counted = (behind >= 0) & (behind < batch.num_targets[:, None])
    return Taught(
        tokens=tokens,
        wanted=wanted,
        prompts=prompts,
        counted=counted,
        memory=memory,
        num_frames=num_frames,
        route=route[0] if route else None,
        hidden=base.decoder.norm(hidden),
    )


def _prompt_lengths(tokens: Tensor, batch: Batch) -> Tensor:
    """P (R,) of given rows (R, U): the fewest tokens behind which all targets but the last stand."""
    num_given = (batch.num_targets - 1).clamp(min=0)
    places = torch.arange(batch.targets.shape[1], device=tokens.device)
    needed = places < num_given[:, None]
    found = torch.zeros_like(batch.num_targets)
    for length in range(1, tokens.shape[1] + 1):
        shifted = F.pad(tokens[:, length:], (0, batch.targets.shape[1]), value=-1)[
            :, : batch.targets.shape[1]
        ]
        fits = ((shifted == batch.targets) | ~needed).all(1)
        found = torch.where((found == 0) & fits, length, found)
    if bool((found == 0).any()):
        raise ValueError("the decoder was given rows in which the batch's targets do not follow a prompt")
    return found


class DraftStudent(nn.Module):
    """A draft's network on a frozen model, as the training loop wants it.

    The model is kept where `nn.Module` does not look: it is no part of what is trained, saved or averaged.

    Args:
        base: a family's module with a torch decoder.
        network: what is trained.
        options: weights of the losses.
    """

    def __init__(self, base: Any, network: Parasite | MedusaHeads, options: DraftOptions) -> None:
        super().__init__()
        self._base = (base.requires_grad_(False).eval(),)
        self.network = network
        self.options = options

    @property
    def base(self) -> Any:
        """The frozen model."""
        return self._base[0]

    @property
    def encoder(self) -> Any:
        """Where the training loop looks for layers: a draft has none here."""
        return SimpleNamespace(layers=[])

    @property
    def decoder(self) -> Any:
        """Where the training loop looks for layers: the blocks of the draft."""
        network = self.network
        return SimpleNamespace(
            layers=list(network.blocks if isinstance(network, Parasite) else network.stacks)
        )

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the texts and KL divergence from the model, summed over what is to be guessed."""
        if self.base.decoder.positions.device != batch.features.device:
            self.base.to(batch.features.device)
        self.base.eval()
        given = taught(self.base, batch)
        network = self.network
        total, count = (
            self._parasite_loss(network, given)
            if isinstance(network, Parasite)
            else self._medusa_loss(network, given)
        )
        none = total.detach().new_zeros(())
        return Loss(
            total=total,
            attention=total.detach(),
            ctc=none,
            language=none,
            num_tokens=max(1, count),
            num_transcript=0,
        )

    def _parasite_loss(self, parasite: Parasite, given: Taught) -> tuple[Tensor, int]:
        decoder: TextDecoder = self.base.decoder
        num_rows, length = given.tokens.shape
        with torch.no_grad():
            cache = decoder.start(
                given.memory,
                given.num_frames,
                rows_per_memory=num_rows // given.memory.shape[0],
                capacity=length,
                route=given.route,
            )
            decoder.step(given.tokens, cache)
        cross = parasite.remember(given.memory, cache.memory_allowed)
        places = torch.arange(length, device=given.tokens.device)
        # Keys of padding are seen by padding alone, which does not count.
        hidden = parasite.teacher_forced(
            decoder, given.tokens, cache, cross, valid=torch.ones_like(given.counted)
        )
        # Nothing is guessed behind a prompt: its last token is never the newest one when a guess is made.
        chosen = given.counted & (places >= given.prompts[:, None])
        logits = parasite.logits(decoder, hidden[chosen])
        return self._loss(logits, given.wanted[chosen], self._taught_logits(given, chosen)), int(chosen.sum())

    def _medusa_loss(self, heads: MedusaHeads, given: Taught) -> tuple[Tensor, int]:
        total, count = given.hidden.new_zeros(()), 0
        for k, stack in enumerate(heads.stacks):
            ahead = k + 1
            chosen = given.counted[:, :-ahead] & given.counted[:, ahead:]
            logits = F.linear(stack(given.hidden[:, :-ahead][chosen]), self.base.decoder.embedding.weight)
            wanted = given.wanted[:, ahead:][chosen]
            teacher = self._taught_logits(given, F.pad(chosen, (ahead, 0)))
            total = total + _LATER**k * self._loss(logits, wanted, teacher)
            count += int(chosen.sum()) if k == 0 else 0
        return total, count

    def _taught_logits(self, given: Taught, chosen: Tensor) -> Tensor:
        """The model's logits (N, V) where `chosen` (R, U)."""
        with torch.no_grad():
            return F.linear(given.hidden[chosen], self.base.decoder.embedding.weight)

    def _loss(self, logits: Tensor, wanted: Tensor, teacher: Tensor) -> Tensor:
        log_probs = logits.float().log_softmax(-1)
        labels = F.nll_loss(log_probs, wanted, reduction="sum")
        divergence = F.kl_div(log_probs, teacher.float().log_softmax(-1), reduction="sum", log_target=True)
        return self.options.label_weight * labels + self.options.kl_weight * divergence


def make_network(base: Any, options: DraftOptions) -> Parasite | MedusaHeads:
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
    activation: Activation = getattr(layer.feed_forward, "activation", "gelu")
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
    report: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> ParasiteDraft | MedusaDraft:
    """Train a draft for a model, or take up the run in `directory`; the model comes out with the bits it went in with.

    Args:
        model: a family's module with a torch decoder.
        corpus: what the model is taught with.
        options: what to train.
        training: how long, how fast.
        directory: of the run.
        dev: ranks the checkpoints, and gives the acceptance that the draft is saved with.
        report: takes each progress line.
        stop_after: stop, resumable, after this many steps in all.

    Raises:
        SprachbundError: what is asked for does not fit the model.
    """
    torch.manual_seed(training.seed)
    before = _digest(model)
    student = DraftStudent(model, make_network(model, options), options)
    report(f"{sum(p.numel() for p in student.parameters()) / 1e6:.2f} M parameters of the {options.kind}")
    train(student, corpus, training, directory, dev=dev, report=report, stop_after=stop_after)
    if _digest(model) != before:
        raise RuntimeError("the model under the draft has changed in training; this is a bug")
    model.cpu()
    network = student.network.cpu()
    how = {"training": {"steps": training.steps, **options.model_dump(mode="json")}}
    draft: ParasiteDraft | MedusaDraft = (
        ParasiteDraft.around(network, model.decoder, **how)
        if isinstance(network, Parasite)
        else MedusaDraft.around(network, model.decoder, **how)
    )
    if dev is not None:
        found = measure_acceptance(model, draft, dev)
        draft.card = draft.card.model_copy(update={"acceptance": found})
        draft.acceptance = found
        report(f"acceptance on the dev data: {np.mean(list(found.values()) or [0]):.1%}")
    return draft


def measure_acceptance(family: Family, draft: Draft, corpus: Corpus, *, limit: int = 64) -> dict[str, float]:
    """Share of single guesses that stand in greedy search, by "source>target", over utterances of a corpus.

    Args:
        family: the model.
        draft: that guesses.
        corpus: whose utterances, `limit` of them spread evenly, are translated into every target it draws.
    """
    count = sum(corpus.counts)
    indices = np.unique(np.linspace(0, count - 1, min(limit, count)).astype(int))
    speculation = Speculation(draft, guesses=1)
    for index in indices.tolist():
        utterance, samples = corpus.utterance(index)
        if not utterance.language or len(samples) / SAMPLE_RATE > family.max_window_s:
            continue
        known = [
            Target(language=target, source=utterance.language)
            for target in corpus.examples.target_languages
            if (utterance.language, target) in family.pairs()
        ]
        with torch.inference_mode():
            memory = family.encode(family.features([samples]))
        search(family, memory, [known], DecodingOptions(draft=NONE, timestamps=False), None, speculation)
    return {f"{r.source_language}>{r.target_language}": round(r.acceptance, 4) for r in speculation.report()}


def _digest(model: nn.Module) -> str:
    """SHA-256 of all weights."""
    total = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        total.update(name.encode() + weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()

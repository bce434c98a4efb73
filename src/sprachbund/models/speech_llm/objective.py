"""Losses of a speech LLM: cross-entropy of the text behind the speech, and the losses of the router.

L = L_LM + 0.1 L_lang + 0.01 L_bal by default; a reconstruction, arXiv 2511.10670 shows no formula. Shapes:
B utterances, P speech tokens of one, N speech tokens of all utterances, R rows, U target tokens, S source languages,
G groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.data.batch import NO_LANGUAGE, Batch
from sprachbund.data.language_spans import Stretch
from sprachbund.models.base import LANGUAGE as LANGUAGE_HEAD
from sprachbund.models.base import Features, HeadLoss, Loss, Memory, Target
from sprachbund.models.speech_llm.config import LossWeights, SpeechLLMConfig
from sprachbund.models.speech_llm.llm import LanguageModel, Prompts
from sprachbund.models.speech_llm.projector import SpeechTokens
from sprachbund.nn.moe import balance_loss, language_losses
from sprachbund.util.distributed import sum_over_ranks

# Languages of each speech token in mixed speech, for the losses and as the router decides.


@dataclass(frozen=True, kw_only=True)
class RoutedMemory(Memory):
    """Speech tokens, and where the router sent them.

    Attributes:
        group_probs: (B, P, G) mass of each group, the mean over the layers; zeros on padding.
    """

    group_probs: Tensor

    def select(self, rows: Tensor) -> RoutedMemory:
        """The utterances at the indices `rows` (b,)."""
        return RoutedMemory(**vars(super().select(rows)), group_probs=self.group_probs[rows])


def token_languages(spans: Sequence[tuple[float, float, int]], num_tokens: int, token_s: float) -> Tensor:
    """Number of the language at the middle of each speech token (P,); -1 where no span is.

    Args:
        spans: (start_s, end_s, number of the language) of each span.
        num_tokens: P.
        token_s: seconds of a speech token.
    """
    middles = (torch.arange(num_tokens) + 0.5) * token_s
    languages = torch.full((num_tokens,), -1)
    for start_s, end_s, language in spans:
        languages[(middles >= start_s) & (middles < end_s)] = language
    return languages


def stretches(group_probs: Tensor, names: Sequence[str], token_s: float, duration_s: float) -> list[Stretch]:
    """The groups of the likeliest mass, token by token, those that follow each other joined.

    Args:
        group_probs: (P, G) of one utterance's valid tokens.
        names: (G,) what each group is called.
        token_s: seconds of a speech token.
        duration_s: seconds of the speech, where the last token is cut.
    """
    likeliest = group_probs.argmax(-1).tolist()
    spans: list[Stretch] = []
    start = 0
    for group, run in groupby(likeliest):
        end = start + len(list(run))
        spans.append((start * token_s, min(end * token_s, duration_s), names[group]))
        start = end
    return [stretch for stretch in spans if stretch[0] < stretch[1]]


def smoothed(group_probs: Tensor, num_tokens: int) -> Tensor:
    """Group mass (P, G) averaged over `num_tokens` neighbours (odd), so that no span is shorter than can be said."""
    if num_tokens < 2 or not len(group_probs):
        return group_probs
    from scipy.ndimage import uniform_filter1d

    values = uniform_filter1d(group_probs.detach().float().cpu().numpy(), num_tokens, axis=0, mode="nearest")
    return torch.from_numpy(np.ascontiguousarray(values))


# The losses.


class RoutedModel(Protocol):
    """Parts of a speech LLM that its losses are computed with; see `sprachbund.models.speech_llm.model.SpeechLLM`."""

    losses: LossWeights
    llm: LanguageModel

    @property
    def config(self) -> SpeechLLMConfig:
        """Groups of experts and languages written."""

    @property
    def prompts(self) -> Prompts:
        """Tokens before and behind the speech."""

    @property
    def source_languages(self) -> Sequence[str]:
        """Languages heard, in the order of their numbers."""

    @property
    def frame_s(self) -> float:
        """Seconds of a speech token."""

    def hear(self, features: Features, languages: Sequence[str] | None = None) -> SpeechTokens:
        """Speech tokens and routings of features."""

    def group_of_language(self) -> Tensor:
        """Number of the group (S,) of each source language."""


LANGUAGE, BALANCE = "router language", "router balance"
"""Names of the losses in the log."""
_IGNORED = -100


def speech_llm_loss(model: RoutedModel, batch: Batch) -> Loss:
    """The losses of a batch, on the scale of target tokens.

    An utterance's L_lang counts as often as it has target tokens, so that parts of a batch add up; L_bal is of the
    frames that are seen together, and counts as often as the batch has. Processes that share a batch each balance
    their own frames: with L_bal, and with nothing else, their gradient is close to that of one process, not the same.
    Of a batch of several data (`sides`), each has losses of its own, whose means per target token are added by their
    weights. All of them go through the model together, so that it runs once for every batch: processes that hold shards
    of its weights fetch them together, whichever data each has.
    """
    tokens = model.hear(Features(values=batch.features, num_frames=batch.num_frames))
    num_tokens = batch.num_targets.view(batch.num_utterances, -1).sum(1)
    texts = _text_losses(model, batch, tokens)
    languages = _language_losses(model, batch, tokens)
    weights, parts = model.losses, []
    for scale, own in _sides(batch, num_tokens):
        count = num_tokens[own].sum()
        text, language = texts[own].sum(), (languages[own] * num_tokens[own]).sum()
        routings = [routing.select(own[tokens.utterance]) for routing in tokens.routings]
        balance = torch.stack([balance_loss(routing) for routing in routings]).mean() * count
        parts.append([scale * part for part in (text, language, balance)])
    text, language, balance = (torch.stack(part).sum() for part in zip(*parts, strict=True))
    return Loss(
        total=text + weights.language * language + weights.balance * balance,
        attention=text,
        num_tokens=int(num_tokens.sum()),
        heads={LANGUAGE_HEAD: HeadLoss(languages.detach().sum(), batch.num_utterances)},
        parts={LANGUAGE: language.detach(), BALANCE: balance.detach()},
    )


def _sides(batch: Batch, num_tokens: Tensor) -> Iterator[tuple[float, Tensor]]:
    """For each of the data that the batch has utterances of: what its losses count, and its utterances (B,) boolean.

    The factors bring means per target token to the scale of the batch's target tokens.
    """
    if batch.sides is None:
        yield 1.0, torch.ones_like(num_tokens, dtype=torch.bool)
        return
    index, weights = batch.sides.index, batch.sides.weights
    # A process may hold utterances of one side alone; what each counts is decided by the whole batch.
    of_sides: list[int] = sum_over_ranks(
        (num_tokens[:, None] * F.one_hot(index, len(weights))).sum(0)
    ).tolist()
    for side, weight in enumerate(weights):
        own = index == side
        if own.any():  # one that counts nothing too: a process may hold no other
            yield weight * sum(of_sides) / max(1, of_sides[side]), own


def _text_losses(model: RoutedModel, batch: Batch, tokens: SpeechTokens) -> Tensor:
    """Cross-entropy (B,) of each utterance, summed over the target tokens of its rows."""
    rows, wanted = _rows(model, batch, tokens)
    positions = (wanted != _IGNORED).any(0).nonzero().flatten()
    if not len(positions):
        positions = positions.new_zeros(
            1
        )  # where nothing counts: other processes wait for this one in every layer
    logits = model.llm(rows, positions).float()
    losses = F.cross_entropy(
        logits.flatten(0, 1), wanted[:, positions].flatten(), ignore_index=_IGNORED, reduction="none"
    )
    return losses.view(batch.num_utterances, -1).sum(1)


def _rows(model: RoutedModel, batch: Batch, tokens: SpeechTokens) -> tuple[Tensor, Tensor]:
    """Embeddings of whole rows (R, U, D), and the token that is to follow each position (R, U)."""
    device, each = tokens.states.device, batch.rows_per_utterance
    lengths = tokens.num_tokens.tolist()
    rows, wanted = [], []
    for r, target in enumerate(_targets(model, batch)):
        before, behind = model.prompts.around(target)
        text = batch.targets[r, : int(batch.num_targets[r])].tolist()
        embedded = model.llm.embed(torch.tensor([*before, *behind, *text[:-1]], device=device))
        speech = tokens.states[r // each, : lengths[r // each]].to(embedded.dtype)
        row = torch.cat([embedded[: len(before)], speech, embedded[len(before) :]])
        rows.append(row)
        given = len(row) - max(0, len(text) - 1)  # the first target follows the last given one
        ids = [_IGNORED] * (given - 1) + (text or [_IGNORED])
        wanted.append(torch.tensor(ids, device=device))
    return (
        nn.utils.rnn.pad_sequence(rows, batch_first=True),
        nn.utils.rnn.pad_sequence(wanted, batch_first=True, padding_value=_IGNORED),
    )


def _targets(model: RoutedModel, batch: Batch) -> list[Target]:
    """Target of each row; where nobody speaks, a translation."""
    sources = batch.source_language.repeat_interleave(batch.rows_per_utterance).tolist()
    written, heard = model.config.target_languages, model.source_languages
    return [
        Target(language=written[t], source=None if s == NO_LANGUAGE else heard[s])
        for s, t in zip(sources, batch.target_language.tolist(), strict=True)
    ]


def _language_losses(model: RoutedModel, batch: Batch, tokens: SpeechTokens) -> Tensor:
    """L_lang (B,) of each utterance, the mean over its speech tokens and the layers; embedded ones have a weight."""
    said = _languages_of_tokens(model, batch, tokens)
    groups = _groups_of_tokens(model, batch, tokens, said)
    losses = torch.stack([language_losses(routing, groups) for routing in tokens.routings]).mean(0)
    weights = torch.ones_like(losses)
    if said is not None:
        embedded = (said >= 0) & (said != batch.source_language[tokens.utterance])
        weights[embedded] = model.losses.embedded
    sums, totals = (
        losses.new_zeros(batch.num_utterances).index_add(0, tokens.utterance, values)
        for values in (weights * losses, weights)
    )
    return sums / totals.clamp(min=torch.finfo(totals.dtype).tiny)


def _languages_of_tokens(model: RoutedModel, batch: Batch, tokens: SpeechTokens) -> Tensor | None:
    """Number (N,) of each speech token's language, -1 where no span is; None if losses go by utterances."""
    if batch.mixture is None or not model.losses.by_frame:
        return None
    every = zip(batch.mixture.spans, tokens.num_tokens.tolist(), strict=True)
    said = torch.cat([token_languages(spans, n, model.frame_s) for spans, n in every])
    return said.to(tokens.utterance.device)


def _groups_of_tokens(model: RoutedModel, batch: Batch, tokens: SpeechTokens, said: Tensor | None) -> Tensor:
    """Groups that each speech token may go to, boolean (N, G): all where no language is known."""
    group_of = model.group_of_language()
    onehot = F.one_hot(group_of, len(model.config.projector.groups)).bool()  # (S, G)
    numbers = torch.arange(len(group_of), device=group_of.device)
    present = batch.source_language[:, None] == numbers
    if batch.mixture is not None:
        languages = batch.mixture.languages
        present = F.pad(languages, (0, len(group_of) - languages.shape[1]))
    groups = (present[..., None] & onehot).any(1)
    groups = groups | ~groups.any(1, keepdim=True)
    rows = groups[tokens.utterance]
    if said is None:
        return rows
    return torch.where((said >= 0)[:, None], onehot[said.clamp(min=0)], rows)

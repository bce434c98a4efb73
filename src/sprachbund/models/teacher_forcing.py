"""Teacher forcing of decoders whose rows start with a prompt: batch, cross-entropy, and languages of the rows.

Shapes: B utterances, R rows, U target tokens, P tokens of a row with its prompt, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.data.batch import NO_LANGUAGE, Batch
from sprachbund.models.attention import DecodesByAttention
from sprachbund.models.base import Loss, Memory
from sprachbund.models.splitting import decoder_route, target_languages
from sprachbund.nn.feed_forward import Route, is_split


@dataclass(frozen=True, kw_only=True)
class DecoderBatch:
    """A teacher-forcing batch of a decoder: whole rows, whose prompts are input and never a target.

    Attributes:
        tokens: (R, U) input.
        labels: (R, U) the token after each input.
        loss_mask: boolean (R, U), where the label counts in the loss.
        prompts: (R,) number of tokens of each row's prompt.
        memory: memory of the B utterances.
        route: languages of the rows, where the decoder is split by them.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    prompts: Tensor
    memory: Memory
    route: Route | None = None


def make_decoder_batch(
    memory: Memory, batch: Batch, prompts: Sequence[Sequence[int]], route: Route | None = None
) -> DecoderBatch:
    """The teacher-forcing batch of a batch of utterances.

    Args:
        memory: memory of the B utterances.
        batch: its `targets` (R, U) follow the prompts.
        prompts: tokens of the prompt of each of the R rows, at least one.
        route: languages of the rows, where the decoder is split by them.
    """
    tokens, loss_mask = _rows(prompts, batch)
    return DecoderBatch(
        tokens=tokens[:, :-1],
        labels=tokens[:, 1:],
        loss_mask=loss_mask,
        prompts=torch.tensor([len(prompt) for prompt in prompts], device=tokens.device),
        memory=memory,
        route=route,
    )


def prompted_loss(
    model: DecodesByAttention, decoder_batch: DecoderBatch, label_smoothing: float = 0.0
) -> Loss:
    """Cross-entropy by teacher forcing.

    Args:
        model: a family with an attention decoder.
        decoder_batch: decoder batch of R rows.
        label_smoothing: share of the target distribution that is spread over the vocabulary (arXiv 1512.00567,
            section 7).
    """
    memory = decoder_batch.memory
    hidden = model.decoder(decoder_batch.tokens, memory.states, memory.num_frames, decoder_batch.route)
    # Only the tokens that count are projected onto the vocabulary.
    logits = model.decoder.logits(hidden[decoder_batch.loss_mask]).float()
    labels = decoder_batch.labels[decoder_batch.loss_mask]
    attention = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    return Loss.of_text(attention, int(decoder_batch.loss_mask.sum()))


def row_route(model: DecodesByAttention, batch: Batch, token_of: Callable[[str], int]) -> Route | None:
    """Languages of the decoder's rows, None when it is not split; a row that does not count has none.

    Args:
        model: a family with an attention decoder.
        batch: holds a language token for every row.
        token_of: the language token of a target language.
    """
    if not is_split(model.decoder):
        return None
    tokens = [token_of(language) for language in target_languages(model)]
    source = batch.source_language.repeat_interleave(batch.rows_per_utterance)
    same = batch.target_language[:, None] == torch.tensor(tokens, device=batch.target_language.device)
    target = torch.where(same.any(1), same.int().argmax(1), NO_LANGUAGE)
    return decoder_route(model, source, target)


def _rows(prompts: Sequence[Sequence[int]], batch: Batch) -> tuple[Tensor, Tensor]:
    """Whole rows (R, P), and where their second token and the later ones are targets, boolean (R, P - 1)."""
    device = batch.targets.device
    num_targets = batch.num_targets.tolist()
    # A row that does not count keeps a token of padding, so that no row is its prompt alone.
    rows = [
        torch.tensor([*prompt, *row[: max(n, 1)]], device=device)
        for prompt, row, n in zip(prompts, batch.targets.tolist(), num_targets, strict=True)
    ]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    positions = torch.arange(1, tokens.shape[1], device=device)
    first = torch.tensor([len(prompt) for prompt in prompts], device=device)
    loss_mask = (positions >= first[:, None]) & (positions < (first + batch.num_targets)[:, None])
    return tokens, loss_mask

"""Cross-entropy of what follows a prompt, for the families whose rows start with one; and how they are stored.

Shapes: B utterances, R rows, U target tokens, P tokens of a row with its prompt, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.data.batch import NO_LANGUAGE, Batch
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Loss, Memory
from sprachbund.models.splitting import decoder_route, target_languages
from sprachbund.models.weights import Bits
from sprachbund.nn.feed_forward import Route, is_split


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a decoder is taught with: whole rows under prompts, which are given and never a target.

    Attributes:
        tokens: (R, U) given.
        wanted: (R, U) token that follows each.
        counted: boolean (R, U), where what follows is a target.
        prompts: (R,) tokens of each row's prompt.
        memory: of the B utterances.
        route: languages of the rows, where the decoder is split by them.
    """

    tokens: Tensor
    wanted: Tensor
    counted: Tensor
    prompts: Tensor
    memory: Memory
    route: Route | None = None


def make_lesson(
    memory: Memory, batch: Batch, prompts: Sequence[Sequence[int]], route: Route | None = None
) -> Lesson:
    """The lesson of a batch; its `targets` are what follows the prompts of the R rows, one token each at least."""
    tokens, counted = _rows(prompts, batch)
    return Lesson(
        tokens=tokens[:, :-1],
        wanted=tokens[:, 1:],
        counted=counted,
        prompts=torch.tensor([len(prompt) for prompt in prompts], device=tokens.device),
        memory=memory,
        route=route,
    )


def prompted_loss(model: Any, lesson: Lesson, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of a lesson by teacher forcing.

    Args:
        model: a family with a `decoder`.
        lesson: what it is taught with.
        label_smoothing: arXiv 1512.00567, section 7.
    """
    memory = lesson.memory
    hidden = model.decoder(lesson.tokens, memory.states, memory.num_frames, lesson.route)
    # Only the tokens that count are projected onto the vocabulary.
    logits = model.decoder.logits(hidden[lesson.counted]).float()
    wanted = lesson.wanted[lesson.counted]
    attention = F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=label_smoothing)
    return Loss.of_text(attention, int(lesson.counted.sum()))


def row_route(model: Any, batch: Batch, token_of: Callable[[str], int]) -> Route | None:
    """Languages of the decoder's rows, None when it is not split; a row that does not count has none.

    Args:
        model: a family.
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
    places = torch.arange(1, tokens.shape[1], device=device)
    first = torch.tensor([len(prompt) for prompt in prompts], device=device)
    counted = (places >= first[:, None]) & (places < (first + batch.num_targets)[:, None])
    return tokens, counted


def stored(weights: Mapping[str, Tensor], bits: Bits) -> dict[str, Tensor]:
    """Weights as the Hugging Face layout holds them.

    Raises:
        SprachbundError: bits that the layout has no place for.
    """
    if bits == 8:
        raise SprachbundError(
            "this layout holds weights of 16 or 32 bits, not 8; set bits = 16, or leave it out"
        )
    wanted = {16: torch.float16}.get(bits)
    return {name: weight.to(wanted).contiguous() for name, weight in weights.items()}

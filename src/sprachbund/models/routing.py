"""How the languages of a row reach the branches: one mapping for training, evaluation and inference.

A language is given, or it is found out: then each utterance goes through the split layers once for every group, and
the language with the highest log-probability wins, each language being asked under the branch of its own group.
Shapes: B utterances, n routes, L source languages, R rows, T frames, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sprachbund.data.batch import NO_LANGUAGE
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Features, Memory, Target
from sprachbund.models.sharing_plan import Split
from sprachbund.models.splitting import PAIR, target_languages
from sprachbund.nn.feed_forward import Route
from sprachbund.nn.shared_private import UNPLANNED, is_split, splits_in

_EVEN = 1e-6  # log-probabilities that differ by less say nothing about the language


def source_route(model: Any, source_language: Tensor) -> Route | None:
    """The route of an encoder's rows, numbers (B,) of languages; None when the encoder is not split.

    -1 goes through the shared branches alone: an utterance without speech in training.

    Raises:
        SprachbundError: a language that the plan has no group for.
    """
    if not is_split(model.encoder):
        return None
    for number in set(source_language.tolist()) - {NO_LANGUAGE}:
        for split in _splits(model, "encoder"):
            split.group_of(model.source_languages[number])
    return Route(source=source_language)


def decoder_route(model: Any, source: Tensor, target: Tensor) -> Route | None:
    """The route of a decoder's rows, numbers (R,) of languages; None when the decoder is not split.

    Raises:
        SprachbundError: a language or pair that the plan has no group for.
    """
    if not is_split(model.decoder):
        return None
    written = target_languages(model)
    for s, t in set(zip(source.tolist(), target.tolist(), strict=True)):
        for split in _splits(model, "decoder"):
            numbers = {"source": (s,), "target": (t,), "pair": (s, t)}[split.side]
            if NO_LANGUAGE not in numbers:
                names = {"source": model.source_languages[s], "target": written[t]}
                split.group_of(PAIR.join(names.values()) if split.side == "pair" else names[split.side])
    return Route(source=source, target=target)


def start_route(model: Any, targets: Sequence[Target] | None, device: torch.device) -> Route | None:
    """The route of a search's rows, None when the decoder is not split.

    Raises:
        SprachbundError: a language without a group, or a source that is not known where branches go by it.
        ValueError: no targets for a split decoder.
    """
    if not is_split(model.decoder):
        return None
    if targets is None:
        raise ValueError("the decoder is split by language; say what each row's target is")
    by_target = all(split.side == "target" for split in _splits(model, "decoder"))
    if not by_target and any(target.source is None for target in targets):
        raise SprachbundError(
            "this model's decoder is split by the language spoken; name the source language"
        )
    heard, written = list(model.source_languages), target_languages(model)
    source = [NO_LANGUAGE if t.source is None else heard.index(t.source) for t in targets]
    target = [written.index(t.language) for t in targets]
    return decoder_route(model, torch.tensor(source, device=device), torch.tensor(target, device=device))


def encode_routed(model: Any, features: Features, run: Callable[[Route | None], Memory]) -> Memory:
    """Encode under each utterance's language, given or found out.

    With every language given this is one pass. Otherwise the layers from the first split one on run once for every
    group (for every combination of groups, where several modules are split differently).

    Args:
        model: a family with `encoder`, `source_languages` and `language_log_probs`.
        features: of B utterances.
        run: the encoder's pass over them; under a route of n B rows, it gives n B rows.

    Raises:
        SprachbundError: a language that the plan has no group for, or one that the model cannot tell.
    """
    if not is_split(model.encoder):
        return run(None)
    given = features.source_language
    if given is None:
        given = torch.full(features.values.shape[:1], NO_LANGUAGE, device=features.values.device)
    route = source_route(model, given)
    if bool((given != NO_LANGUAGE).all()):
        return replace(run(route), source_language=given)
    return _found_out(model, given, run)


def _found_out(model: Any, given: Tensor, run: Callable[[Route | None], Memory]) -> Memory:
    kinds = _kinds(model)  # (L,)
    planned, count = kinds != NO_LANGUAGE, given.shape[0]
    each = torch.stack(
        [(kinds == k).nonzero()[0, 0] for k in range(int(kinds.max()) + 1)]
    )  # a language of each
    memory = run(Route(source=each.repeat_interleave(count)))
    heard = model.language_log_probs(memory).view(len(each), count, -1)  # (n, B, L)
    own = heard[kinds.clamp(min=0), :, torch.arange(len(kinds), device=given.device)].T  # (B, L)
    own = own.masked_fill(~planned, -torch.inf).log_softmax(-1)
    unknown = given == NO_LANGUAGE
    if len(each) > 1:
        _check_told(model, own[unknown][:, planned])
    language = torch.where(unknown, own.argmax(-1), given)
    rows = kinds[language] * count + torch.arange(count, device=given.device)
    log_probs = torch.where(unknown[:, None], own, heard.flatten(0, 1)[rows])
    return replace(memory.select(rows), source_language=language, language_log_probs=log_probs)


def _kinds(model: Any) -> Tensor:
    """A number (L,) for every language, the same for those that take the same branches in all modules.

    -1 for those without a group in one of them.
    """
    tables = torch.stack([split.table[:-1] for split in splits_in(model.encoder)], dim=1)
    planned = (tables != UNPLANNED).all(1)
    if not bool(planned.any()):
        raise SprachbundError(
            "no language has a group in every split module of the encoder; mend the sharing plan"
        )
    kinds = torch.full_like(tables[:, 0], NO_LANGUAGE)
    kinds[planned] = tables[planned].unique(dim=0, return_inverse=True)[1]
    return kinds


def _check_told(model: Any, log_probs: Tensor) -> None:
    """Refuse to choose a branch by log-probabilities (B, L) that are all the same."""
    if bool((log_probs.amax(-1) - log_probs.amin(-1) < _EVEN).any()):
        raise SprachbundError(
            f"the model {model.name} is split by the language spoken and cannot tell it; name the source language"
        )


def _splits(model: Any, part: str) -> list[Split]:
    return [split for split in model.sharing_plan.splits if split.module.startswith(f"{part}.")]

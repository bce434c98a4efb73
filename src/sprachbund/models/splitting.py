"""Feed-forwards split by language after a sharing plan, and the routes of rows to their branches.

The mapping from language to branch is in one file, the plan in the model directory. The weights carry a digest
of the mapping they were trained under, so that they cannot be run under another.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.data.batch import NO_LANGUAGE
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Features, Memory, Target
from sprachbund.models.sharing_plan import FILE, SharingPlan, Split
from sprachbund.models.weights import read_metadata
from sprachbund.nn.feed_forward import UNPLANNED, FeedForward, Route, SplitFeedForward, is_split, splits_in

PAIR = ">"
"""Between the languages of a pair: "de>fr"."""
METADATA_KEY = "sharing"


def target_languages(model: Any) -> tuple[str, ...]:
    """Languages a family writes; their order gives them the numbers of `Route.target`."""
    return tuple(sorted({target for _, target in model.pairs()}))


def split_feed_forwards(model: Any, plan: SharingPlan) -> None:
    """Put untrained split modules where the plan says, and the plan into `model.sharing_plan`, in place.

    Nothing is changed when the plan does not fit.

    Raises:
        SprachbundError: a module that is not there, is no feed-forward, is too narrow or split already; a language
            that the model does not know; a side that the module cannot see.
    """
    built = {split.module: _built(model, split) for split in plan.splits}
    for name, module in built.items():
        model.set_submodule(name, module)
    model.sharing_plan = plan


def feed_forward_of(model: nn.Module, name: str) -> FeedForward:
    """The feed-forward of that name. Raises SprachbundError when there is none to split."""
    modules = dict(model.named_modules())
    module = modules.get(name)
    if isinstance(module, FeedForward):
        return module
    if isinstance(module, SplitFeedForward):
        raise SprachbundError(f"{name} is split already; apply the plan to the model it was before")
    feed_forwards = [n for n, module in modules.items() if isinstance(module, FeedForward)]
    nearest = ", ".join(difflib.get_close_matches(name, feed_forwards, n=3, cutoff=0.0))
    what = "the model has no module" if module is None else f"{type(module).__name__} is no feed-forward:"
    raise SprachbundError(f"{what} {name!r}; the nearest feed-forwards are {nearest or 'none'}")


def mapping_digest(plan: SharingPlan) -> str:
    """Return a digest of the mapping of languages to branches; evidence and first weights do not count."""
    mapping = sorted([s.module, s.side, [sorted(group) for group in s.groups]] for s in plan.splits)
    return hashlib.sha256(json.dumps(mapping).encode()).hexdigest()


def read_plan(directory: Path, weights: Path) -> SharingPlan | None:
    """The plan of a model directory, None for a model that is not split.

    Raises:
        SprachbundError: the plan is broken, missing, or not the one that the weights were trained under.
    """
    trained = read_metadata(weights).get(METADATA_KEY)
    path = directory / FILE
    if not path.exists():
        if trained is None:
            return None
        raise SprachbundError(
            f"{directory} has no {FILE}, but its weights are split by language; copy it from where the model came from"
        )
    plan = SharingPlan.read(path)
    if trained is None:
        raise SprachbundError(
            f"{path} lies beside weights that are not split; use `share apply`, or take the file away"
        )
    if mapping_digest(plan) != trained:
        raise SprachbundError(
            f"{path} sends languages through other branches than the weights were made for; restore the file, "
            "or apply the changed plan to the model it was made for with `share apply`"
        )
    return plan


def write_plan(model: Any, directory: Path) -> dict[str, str]:
    """Write the model's plan, if it is split; returns what the weights' file is to say about it."""
    plan: SharingPlan | None = model.sharing_plan
    if plan is None:
        (directory / FILE).unlink(missing_ok=True)
        return {}
    plan.write(directory / FILE)
    return {METADATA_KEY: mapping_digest(plan)}


def _built(model: Any, split: Split) -> SplitFeedForward:
    old = feed_forward_of(model, split.module)
    if split.side != "source" and not split.module.startswith("decoder."):
        raise SprachbundError(
            f"{split.module} is split by {split.side}, but only the decoder knows the language written; "
            "split it by source"
        )
    shared, private = split.widths(old.expand.out_features)
    table = _table(model, split)
    with old.norm.weight.device:
        return SplitFeedForward(
            old.expand.in_features,
            shared,
            private,
            table,
            side=split.side,
            activation=old.activation,
            dropout=split.dropout,
        )


def _table(model: Any, split: Split) -> Tensor:
    """Group of every language, or pair, of the model; `UNPLANNED` where the plan says nothing."""
    sides: dict[str, Sequence[str]] = {"source": model.source_languages, "target": target_languages(model)}
    names = [split.side] if split.side != "pair" else ["source", "target"]
    table = torch.full([len(sides[name]) for name in names], UNPLANNED, device="cpu")
    for number, group in enumerate(split.groups):
        for member in group:
            tags = member.split(PAIR) if split.side == "pair" else [member]
            table[tuple(_number(split, tag, sides[n]) for tag, n in zip(tags, names, strict=True))] = number
    return table


def _number(split: Split, tag: str, known: Sequence[str]) -> int:
    if tag not in known:
        raise SprachbundError(
            f"the plan has a group for {tag!r} in {split.module}, which this model does not know; it knows "
            f"{', '.join(known)}; take it out of the plan, or apply the plan to the model it was made for"
        )
    return list(known).index(tag)


# Routes: one mapping from languages to branches for training, evaluation and inference.
#
# A language is given, or it is detected: then each utterance goes through the split layers once for every
# group, and the language with the highest log-probability wins, each language being asked under the branch
# of its own group. Shapes: B utterances, n routes, L source languages, R rows, T frames, D width.

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

    Args:
        model: a family with a sharing plan.
        source: number of the language spoken (R,), -1 for a row that does not count.
        target: number of the language written (R,), -1 for a row that does not count.

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

    Args:
        model: a family.
        targets: targets of the R rows.
        device: device of the route.

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
    """Encode under each utterance's language, given or detected.

    With every language given this is one pass. Otherwise the layers from the first split one on run once for every
    group (for every combination of groups, where several modules are split differently).

    Args:
        model: a family with `encoder`, `source_languages` and `language_log_probs`.
        features: features of B utterances.
        run: the encoder's pass over them; under a route of n B rows, it gives n B rows.

    Raises:
        SprachbundError: a language that the plan has no group for, or one that the model cannot identify.
    """
    if not is_split(model.encoder):
        return run(None)
    given = features.source_language
    if given is None:
        given = torch.full(features.values.shape[:1], NO_LANGUAGE, device=features.values.device)
    route = source_route(model, given)
    if bool((given != NO_LANGUAGE).all()):
        return replace(run(route), source_language=given)
    return _detect_languages(model, given, run)


def _detect_languages(model: Any, given: Tensor, run: Callable[[Route | None], Memory]) -> Memory:
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
        _check_detected(model, own[unknown][:, planned])
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


def _check_detected(model: Any, log_probs: Tensor) -> None:
    """Refuse to choose a branch by log-probabilities (B, L) that are all the same."""
    if bool((log_probs.amax(-1) - log_probs.amin(-1) < _EVEN).any()):
        raise SprachbundError(
            f"the model {model.name} is split by the language spoken and cannot identify it; name the source language"
        )


def _splits(model: Any, part: str) -> list[Split]:
    return [split for split in model.sharing_plan.splits if split.module.startswith(f"{part}.")]

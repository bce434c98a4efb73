"""A sharing plan as modules: what `share apply` changes in a model, and what loading a changed model rebuilds.

The mapping from language to branch stands in one place, the plan in the model directory. The weights carry a digest
of the mapping they were trained under, so that they cannot be run under another.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import FILE, SharingPlan, Split
from sprachbund.models.weights import read_metadata
from sprachbund.nn.feed_forward import FeedForward
from sprachbund.nn.shared_private import UNPLANNED, SplitFeedForward

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
    found = modules.get(name)
    if isinstance(found, FeedForward):
        return found
    if isinstance(found, SplitFeedForward):
        raise SprachbundError(f"{name} is split already; apply the plan to the model it was before")
    feed_forwards = [n for n, module in modules.items() if isinstance(module, FeedForward)]
    nearest = ", ".join(difflib.get_close_matches(name, feed_forwards, n=3, cutoff=0.0))
    what = "the model has no module" if found is None else f"{type(found).__name__} is no feed-forward:"
    raise SprachbundError(f"{what} {name!r}; the nearest feed-forwards are {nearest or 'none'}")


def mapping_digest(plan: SharingPlan) -> str:
    """What tells one mapping of languages to branches from another; evidence and first weights do not count."""
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
            old.expand.in_features, shared, private, table, side=split.side, activation=old.activation
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

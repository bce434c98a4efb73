"""Starts that differ in their encoder alone: layer for layer from other models, all else from one (arXiv 2606.24169).

A comparison of starts speaks of encoders only where decoder, joint network and tokenizer are the same to the last bit;
so a start is made by exchanging encoder layers, and what was made is checked.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer

RANDOM = "random"
"""Names an encoder that nobody trained."""
_ENCODER, _LAYERS = "encoder.", "encoder.layers."
_RANGE = re.compile(r"(?P<source>[^\s:]+):(?P<first>\d+)(?:-(?P<last>\d+))?")


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Encoder layers `first` to `last`, both counted from 0 and taken, of the model called `source`."""

    source: str
    first: int
    last: int


def read_layers(text: str, num_layers: int) -> tuple[Layers, ...]:
    """The source of every layer of an encoder.

    Args:
        text: "en" for all layers of one model, or ranges of several, "en:0-2 ml:3-5".
        num_layers: number of layers of the encoder, L.

    Raises:
        SprachbundError: for text that is none of it, layers that there are not, that are named twice or not at all.
    """
    if ":" not in text:
        return (Layers(source=text.strip(), first=0, last=num_layers - 1),)
    ranges = tuple(_one_range(part, text) for part in text.split())
    named = [layer for part in ranges for layer in range(part.first, part.last + 1)]
    for layer in named:
        if layer >= num_layers:
            raise SprachbundError(
                f"{text!r} names layer {layer}; the encoder has layers 0 to {num_layers - 1}"
            )
        if named.count(layer) > 1:
            raise SprachbundError(f"{text!r} names layer {layer} twice; take it from one model")
    if missing := sorted(set(range(num_layers)) - set(named)):
        raise SprachbundError(
            f"{text!r} does not say where layer {missing[0]} comes from; name all of 0 to {num_layers - 1}"
        )
    return ranges


def splice(base: Conformer, sources: Mapping[str, Conformer], encoder: str, *, seed: int = 0) -> Conformer:
    """A new model with the encoder layers that `encoder` names, and all else of `base`.

    An encoder of one model brings what it has before and behind its layers. An encoder of several has what is before
    its layers from `base`, as published, so that two splices of the same models differ in their layers alone; what is
    behind them goes with the last layer.

    Args:
        base: gives all but the encoder, and the subsampling of an encoder of several models.
        sources: models by name; "random" is an encoder that is drawn anew.
        encoder: see `read_layers`.
        seed: seed of an encoder that is drawn.

    Raises:
        SprachbundError: for a model or layers that there are not, or encoders of other shapes or features.
    """
    whole = base.state_dict()
    parts = read_layers(encoder, len(base.encoder.layers))
    known = {part.source: _tensors(base, sources, part.source, seed) for part in parts}
    for name in known.keys() & sources.keys():
        _check_kind(sources[name], base, name)
    last = max(parts, key=lambda p: p.last)
    source_of = {layer: part.source for part in parts for layer in range(part.first, part.last + 1)}
    behind, of_several = False, len(known) > 1
    for name in [name for name in whole if name.startswith(_ENCODER)]:
        in_layer = name.startswith(_LAYERS)
        behind = behind or in_layer
        if of_several and not behind:
            continue  # the subsampling of `base`
        source = source_of[int(name.split(".")[2])] if in_layer else last.source
        whole[name] = _fitting(known[source], source, name, whole[name])
    made = copy.deepcopy(base)
    made.load_state_dict(whole)
    return made


def check_encoders_alone(models: Mapping[str, Conformer]) -> None:
    """Check that models differ in tensors of their encoders and in nothing else.

    Raises:
        SprachbundError: naming two models and the first thing that differs.
    """
    (name, one), *others = models.items()
    for other_name, other in others:
        if difference := _difference(one, other):
            raise SprachbundError(
                f"{name} and {other_name} differ in {difference}, not in the encoder alone; splice one out of the other"
            )


def _difference(one: Conformer, other: Conformer) -> str | None:
    if one.tokenizer.model != other.tokenizer.model or one.tokenizer.languages != other.tokenizer.languages:
        return "the tokenizer"
    if one.transcript_tokenizer.model != other.transcript_tokenizer.model:
        return "the tokenizer of transcripts"
    if one.config != other.config:
        pairs = zip(one.config, other.config, strict=True)
        return next(f"config.{key}" for (key, a), (_, b) in pairs if a != b)
    left, right = one.state_dict(), other.state_dict()
    for name in dict.fromkeys((*left, *right)):
        if name not in left or name not in right or left[name].shape != right[name].shape:
            return name
        if not name.startswith(_ENCODER) and not left[name].equal(right[name]):
            return name
    return None


def _one_range(part: str, text: str) -> Layers:
    match = _RANGE.fullmatch(part)
    if match is None:
        raise SprachbundError(
            f'{part!r} of {text!r} names no layers; write "NAME:FIRST-LAST", as in "en:0-2 ml:3-5"'
        )
    first, last = int(match["first"]), int(match["last"] or match["first"])
    if last < first:
        raise SprachbundError(f"{part!r} ends before it begins; write {match['source']}:{last}-{first}")
    return Layers(source=match["source"], first=first, last=last)


def _tensors(base: Conformer, sources: Mapping[str, Conformer], name: str, seed: int) -> Mapping[str, Tensor]:
    if name in sources:
        return sources[name].state_dict()
    if name != RANDOM:
        known: Sequence[str] = [*sources, RANDOM]
        raise SprachbundError(f"no model {name!r} to take encoder layers from; there are {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Conformer(base.config, base.tokenizer, base.transcript_tokenizer).state_dict()


def _check_kind(source: Conformer, base: Conformer, name: str) -> None:
    """Check settings that no tensor's shape shows: layers trained on other features, for example, are of no use."""
    for what, own, wanted in (
        ("features", source.front_end, base.front_end),
        ("attention heads", source.config.num_heads, base.config.num_heads),
        ("scaled inputs", _scales_input(source), _scales_input(base)),
    ):
        if own != wanted:
            raise SprachbundError(
                f"the encoder of {name} has {what} {own!r}, {wanted!r} is needed; take models of the same kind"
            )


def _scales_input(model: Conformer) -> bool:
    return model.config.streaming is not None and model.config.streaming.scale_input


def _fitting(tensors: Mapping[str, Tensor], source: str, name: str, like: Tensor) -> Tensor:
    if name not in tensors:
        raise SprachbundError(
            f"{source} has no {name}; encoder layers can be taken from models of the same shape"
        )
    if tensors[name].shape != like.shape:
        seen, wanted = tuple(tensors[name].shape), tuple(like.shape)
        raise SprachbundError(
            f"{name} of {source} has shape {seen}, {wanted} is needed; take models of the same shape"
        )
    return tensors[name]

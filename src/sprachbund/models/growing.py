"""Models with more decoder layers: a deep one that begins where a shallow one has come to.

A deep decoder learns slowly from nothing, a shallow one soon; copies of its layers are a start from which the deep one
is there after a fraction of the steps (progressive stacking, Gong et al., ICML 2019).
"""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from sprachbund.errors import SprachbundError
from sprachbund.models.pruning import follow_depths, num_layers
from sprachbund.nn.decoder import DecoderLayer

Model = TypeVar("Model", bound=nn.Module)


def grow_decoder(model: Model, layers: int) -> Model:
    """A model whose decoder has `layers`: each old layer stands `layers / old` times in a row.

    Every copy adds its part of what the layer added, so that what comes out hardly changes. Drafts are left behind:
    they fit one depth only.

    Raises:
        SprachbundError: no multiple of the layers there are, a family unknown to pruning, or a model that is split by
            languages, where a split belongs to one layer.
    """
    old = num_layers(model, "decoder")
    if layers < old or layers % old:
        raise SprachbundError(f"{old} decoder layers cannot become {layers}: give a multiple of {old}")
    if getattr(model, "sharing_plan", None) is not None:
        raise SprachbundError(
            "a model that is split by languages does not grow: grow it first, then split it"
        )
    new: Any = copy.deepcopy(model)
    times = layers // old
    for layer in new.decoder.layers:
        _divide(layer, times)
    order = tuple(i // times for i in range(layers))
    new.decoder.layers = nn.ModuleList(copy.deepcopy(new.decoder.layers[i]) for i in order)
    new.__dict__.pop("drafts", None)
    follow_depths(new, {"encoder": tuple(range(num_layers(new, "encoder"))), "decoder": order})
    return new


@torch.no_grad()
def _divide(layer: DecoderLayer, times: int) -> None:
    for last in (layer.self_attention.out, layer.cross_attention.out, layer.feed_forward.contract):
        last.weight.div_(times)
        last.bias.div_(times)

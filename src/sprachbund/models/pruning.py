"""Models with fewer layers: each layer stays bit for bit or goes, and what else depends on the depth follows.

For every attention family; the new model shares no memory with the old one, so that it can be distilled.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from torch import nn

from sprachbund.errors import SprachbundError
from sprachbund.models.calibration import Calibration
from sprachbund.models.hub import CONFIG_KEY
from sprachbund.models.sharing_plan import SharingPlan

Side = Literal["encoder", "decoder"]
Layers = Sequence[int] | None
"""Numbers of layers that stay, in order; None for all."""


class Layered(Protocol):
    """A family whose encoder and decoder are stacks of layers.

    Attributes:
        name: name of the family.
        drafts: see `sprachbund.models.base.Family`.
        calibration: likewise.
        sharing_plan: sharing plan of a model that is split by language.
    """

    name: str
    drafts: Mapping[str, Path]
    calibration: Calibration
    sharing_plan: SharingPlan | None

    def get_submodule(self, target: str) -> nn.Module:
        """As `nn.Module`."""
        ...


Model = TypeVar("Model", bound=Layered)


def kept_layers(num_layers: int, keep: int) -> tuple[int, ...]:
    """The layers that stay: the first, the last, and the others evenly between them, rounded down.

    arXiv 2508.11189, section 2: 24 layers become 12 as 0 2 4 6 8 10 12 14 16 18 20 23.

    Raises:
        SprachbundError: fewer than the first and the last, or more than there are.
    """
    least = min(2, num_layers)
    if not least <= keep <= num_layers:
        raise SprachbundError(
            f"{keep} layers cannot be kept of {num_layers}: the first and the last always stay; give {least} to "
            f"{num_layers}, or name the layers"
        )
    return tuple(i * (num_layers - 1) // max(1, keep - 1) for i in range(keep))


def prune_decoder(model: Model, keep: int) -> Model:
    """A model with `keep` of its decoder's layers, those of `kept_layers`. Errors as there."""
    return with_layers(model, decoder=kept_layers(num_layers(model, "decoder"), keep))


def with_layers(model: Model, *, encoder: Layers = None, decoder: Layers = None) -> Model:
    """A model of these layers of another; all that stays has the bits that it had.

    Whatever pairs of languages it was asked for, it still can be. Drafts are left behind: they fit one depth only.

    Args:
        model: model of any family.
        encoder: numbers of the encoder's layers that stay.
        decoder: numbers of the decoder's layers that stay.

    Raises:
        SprachbundError: a family unknown here, or layers that are not there or not in order.
    """
    sides: tuple[tuple[Side, Layers], ...] = (("encoder", encoder), ("decoder", decoder))
    kept = {side: _checked(side, layers, num_layers(model, side)) for side, layers in sides}
    # What stands for a layer here is put in its place instead of a copy of it.
    dropped: dict[int, Any] = {
        id(layer): nn.Identity()
        for side in kept
        for i, layer in enumerate(_stack(model, side))
        if i not in kept[side]
    }
    new: Any = copy.deepcopy(model, dropped)
    for side, layers in kept.items():
        stack = _stack(new, side)  # of its own class, since encoders call it
        new.set_submodule(f"{side}.layers", type(stack)(stack[i] for i in layers))
    new.sharing_plan = _renumbered(new.sharing_plan, kept)
    new.drafts, new.calibration = {}, Calibration()
    follow_depths(new, kept)
    return new


def follow_depths(model: Any, layers: dict[Side, tuple[int, ...]]) -> None:
    """Changes what else of a model depends on its depths, when its stacks are these layers of what it was."""
    _FAMILIES[model.name](model, layers)


def num_layers(model: Layered, side: Side) -> int:
    """Layers of a family's encoder or decoder. Raises SprachbundError for a family unknown here."""
    if model.name not in _FAMILIES:
        raise SprachbundError(f"{model.name} models cannot be pruned; {', '.join(_FAMILIES)} models can")
    return len(_stack(model, side))


def _stack(model: Layered, side: Side) -> nn.ModuleList:
    layers: nn.ModuleList = model.get_submodule(f"{side}.layers")  # type: ignore[assignment]
    return layers


def _checked(side: Side, wanted: Layers, count: int) -> tuple[int, ...]:
    layers = tuple(range(count)) if wanted is None else tuple(wanted)
    there = set(layers) <= set(range(count))
    if not layers or not there or list(layers) != sorted(set(layers)):
        named = ", ".join(map(str, layers)) or "none"
        raise SprachbundError(
            f"layers of the {side} to keep: {named}; name some of 0 to {count - 1}, each once and in order"
        )
    return layers


def _renumbered(plan: SharingPlan | None, kept: dict[Side, tuple[int, ...]]) -> SharingPlan | None:
    """The plan of what is left; None where nothing that is split is left."""
    if plan is None:
        return None
    names = {
        f"{side}.layers.{old}.": f"{side}.layers.{new}."
        for side, layers in kept.items()
        for new, old in enumerate(layers)
    }

    def renamed(module: str) -> str | None:
        prefix = next((old for old in names if module.startswith(old)), None)
        if prefix is not None:
            return names[prefix] + module.removeprefix(prefix)
        return None if ".layers." in module else module

    splits = [(s, name) for s in plan.splits if (name := renamed(s.module))]
    modules = {name: e for module, e in plan.modules.items() if (name := renamed(module))}
    if not splits:
        return None
    return plan.model_copy(
        update={
            "splits": tuple(split.model_copy(update={"module": name}) for split, name in splits),
            "modules": modules,
        }
    )


def _shrink_conformer(model: Any, kept: dict[Side, tuple[int, ...]]) -> None:
    depths = {f"num_{side}_layers": len(layers) for side, layers in kept.items()}
    model.config = model.config.model_copy(update=depths)


def _shrink_whisper(model: Any, kept: dict[Side, tuple[int, ...]]) -> None:
    from sprachbund.models.whisper.model import alignment_heads

    model.config = replace(
        model.config, encoder_layers=len(kept["encoder"]), decoder_layers=len(kept["decoder"])
    )
    config, generation = dict(model.checkpoint_files.config), dict(model.checkpoint_files.generation)
    if model.has_tokens and model.tasks.language_tokens:
        # Without a list the pairs would be inferred from the depths.
        config[CONFIG_KEY] = {**config.get(CONFIG_KEY, {}), "pairs": sorted(map(list, model.pairs()))}
    new_index = {old: new for new, old in enumerate(kept["decoder"])}
    heads = [
        [new_index[layer], h]
        for layer, h in generation.pop("alignment_heads", None) or ()
        if layer in new_index
    ]
    if heads:
        generation["alignment_heads"] = heads
    model.checkpoint_files = replace(model.checkpoint_files, config=config, generation=generation)
    model.alignment_heads = alignment_heads(model.config, generation)


def _shrink_seamless(model: Any, kept: dict[Side, tuple[int, ...]]) -> None:
    model.config.speech_encoder_layers = len(kept["encoder"])
    model.config.decoder_layers = len(kept["decoder"])


_FAMILIES: dict[str, Callable[[Any, dict[Side, tuple[int, ...]]], None]] = {
    "conformer": _shrink_conformer,
    "whisper": _shrink_whisper,
    "seamless": _shrink_seamless,
}
"""Family to what it has to change besides its stacks of layers."""

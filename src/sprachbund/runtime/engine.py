"""Which engine computes a model, and why.

An engine is a family whose parts were exchanged: the native one has a decoder, and encoder layers where it can, that
compute in the compiled kernels with int8 weights; the torch engine is the model itself. Searches see no difference.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.runtime.extension import choose_instruction_set, missing_because, native
from sprachbund.runtime.native_parts import NativeDecoder, NativeLayers
from sprachbund.runtime.packed_cache import packed_for
from sprachbund.runtime.packed_file import Packed
from sprachbund.runtime.packing import DecoderShape, EncoderShape, pack_decoder, pack_encoder, why_not

EngineChoice = Literal["auto", "native", "torch"]
CHOICES: tuple[EngineChoice, ...] = ("auto", "native", "torch")
_Owner = TypeVar("_Owner")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A family ready to compute.

    Attributes:
        name: "native" or "torch".
        family: to encode, start and step with.
        why: a sentence: what computes with how many threads, or why the native engine does not.
        notes: sentences the user should see, such as about a damaged cache.
    """

    name: str
    family: Family
    why: str
    notes: tuple[str, ...] = ()


def engine_for(
    family: Family,
    engine: EngineChoice = "auto",
    *,
    threads: int | None = None,
    instruction_set: str | None = None,
    directory: Path | None = None,
    cache: Path | None = None,
) -> Engine:
    """An engine for a loaded family.

    Args:
        family: with its weights.
        engine: "native" (int8 weights, CPU), "torch" (the model as it is), or "auto": native where it is possible.
        threads: of the native engine; as many as torch uses by default.
        instruction_set: of the kernels, for tests; the best there is by default.
        directory: the model's; its packed weights are then kept and mapped. Without it they are packed in memory.
        cache: where they are kept; the user's cache directory by default.

    Raises:
        SprachbundError: the native engine was asked for and cannot be had, or more threads than cores.
    """
    check_choice(engine, threads)
    if engine == "torch":
        return Engine(name="torch", family=family, why="it was asked for")
    num_threads = choose_threads(threads)
    reason = why_not_native(family)
    if reason is not None:
        if engine == "native":
            raise SprachbundError(f"the native engine cannot run this model: {reason}; use the torch engine")
        return Engine(name="torch", family=family, why=f"the native engine cannot run this model: {reason}")
    kernels = choose_instruction_set(instruction_set)
    packed, notes = (
        (pack(family), ()) if directory is None else packed_for(directory, lambda: pack(family), cache)
    )
    exchanged = _exchange(family, packed, native().Team(num_threads), kernels)
    parts = "encoder and decoder" if "encoder" in packed.shapes else "decoder; its encoder on torch"
    why = f"{kernels} kernels, {num_threads} thread{'s' * (num_threads != 1)}, int8 {parts}"
    return Engine(name="native", family=exchanged, why=why, notes=notes)


def why_not_native(family: Family) -> str | None:
    """Why the native engine cannot run a family here; None when it can."""
    if reason := missing_because():
        return reason
    decoder = getattr(family, "decoder", None)
    if type(decoder) is not TextDecoder:
        return f"its decoder is of the kind {type(decoder).__name__}"
    if decoder.positions.device.type != "cpu":
        return f"it is on the device {decoder.positions.device}"
    return why_not(list(decoder.layers))


def check_choice(engine: EngineChoice, threads: int | None) -> None:
    """Raise the SprachbundError that `engine_for` would, as far as it can be told without a model."""
    if engine not in CHOICES:
        raise SprachbundError(f"there is no engine {engine!r}; choose one of {', '.join(CHOICES)}")
    if engine == "native":
        native()
    if engine != "torch":
        choose_threads(threads)


def choose_threads(wanted: int | None) -> int:
    """The number of threads to use. Raises SprachbundError for fewer than one or more than there are cores."""
    cores = os.cpu_count() or 1
    if wanted is None:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
        return min(torch.get_num_threads(), usable)
    if not 1 <= wanted <= cores:
        raise SprachbundError(f"{wanted} threads asked for; this machine has {cores}, give 1 to {cores}")
    return wanted


def pack(family: Family) -> Packed:
    """Packed weights of what the native engine computes of a family, in memory."""
    parts: dict[str, tuple[EncoderShape, dict[str, torch.Tensor]]] = {
        "decoder": pack_decoder(_decoder(family))
    }
    if layers := _plain_layers(family):
        parts["encoder"] = pack_encoder(layers, _part(family, "encoder").norm)
    return Packed(
        source="memory",
        shapes={name: shape.sizes() for name, (shape, _) in parts.items()},
        arrays={
            f"{name}.{key}": array for name, (_, arrays) in parts.items() for key, array in arrays.items()
        },
    )


def _exchange(family: Family, packed: Packed, team: Any, kernels: str) -> Family:
    decoder = NativeDecoder(DecoderShape(**packed.shapes["decoder"]), packed.part("decoder"), team, kernels)
    parts: dict[str, Any] = {"decoder": decoder}
    if "encoder" in packed.shapes:
        layers = NativeLayers(EncoderShape(**packed.shapes["encoder"]), packed.part("encoder"), team, kernels)
        parts["encoder"] = _with(_part(family, "encoder"), layers=nn.ModuleList([layers]), norm=nn.Identity())
    return _with(family, **parts)


def _with(owner: _Owner, **parts: Any) -> _Owner:
    """A copy that shares everything with its original but these parts."""
    copied = copy.copy(owner)
    if isinstance(copied, nn.Module):
        copied._modules = dict(copied._modules)
    for name, part in parts.items():
        setattr(copied, name, part)
    return copied


def _decoder(family: Family) -> TextDecoder:
    decoder: TextDecoder = _part(family, "decoder")
    return decoder


def _part(family: Family, name: str) -> Any:
    return getattr(family, name)


def _plain_layers(family: Family) -> list[EncoderLayer]:
    """The encoder's layers where the kernels can run all of them, else none."""
    layers: Sequence[nn.Module] = list(getattr(getattr(family, "encoder", None), "layers", ()))
    plain = [layer for layer in layers if isinstance(layer, EncoderLayer)]
    return plain if len(plain) == len(layers) and plain and why_not(list(layers)) is None else []

"""A family whose decoder, and encoder layers where that is possible, compute in the native kernels."""

import copy
from typing import Any, TypeVar

from torch import nn

from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family
from sprachbund.nn.decoder import DecoderLayer, TextDecoder
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.runtime.native_options import NativeOptions, WeightNumbers
from sprachbund.runtime.native_parts import NativeDecoder, NativeLayers, NativeStem, NativeWhisperEncoder
from sprachbund.runtime.packed_file import Packed
from sprachbund.runtime.packing import DecoderShape, decoder_shape, pack_decoder, why_not
from sprachbund.runtime.packing_encoder import (
    EncoderShape,
    StemShape,
    encoder_shape,
    pack_encoder,
    pack_stem,
    stem_of,
    stem_shape,
    why_not_encoder,
)

_Owner = TypeVar("_Owner")


def why_not_family(family: Family) -> str | None:
    """Why the kernels cannot run a family's decoder, without which they run nothing; None when they can."""
    decoder = getattr(family, "decoder", None)
    if type(decoder) is not TextDecoder:
        return f"its decoder is of the kind {type(decoder).__name__}"
    if decoder.output_head is not None:
        return "its decoder has an output matrix of its own"
    if decoder.positions.device.type != "cpu":
        return f"it is on the device {decoder.positions.device}"
    return why_not(list(decoder.layers), DecoderLayer)


def native_parts_of(family: Family) -> str:
    """What of a family the kernels run, in words for users."""
    reason = why_not_encoder(getattr(family, "encoder", None))
    return "encoder and decoder" if reason is None else f"decoder; its encoder on torch, since {reason}"


def pack(family: Family, weights: WeightNumbers = "int8") -> Packed:
    """Packed weights of what the kernels compute of a family, in memory.

    Raises:
        SprachbundError: weights that are not finite, which 4 bits cannot hold.
    """
    parts = {"decoder": pack_decoder(_part(family, "decoder"), weights)[1]}
    if layers := _layers(family):
        behind = _part(family, "encoder").norm if isinstance(layers[0], EncoderLayer) else None
        parts["encoder"] = pack_encoder(layers, behind, weights)[1]
        parts["stem"] = pack_stem(stem_of(_part(family, "encoder")))
    return Packed(
        source="memory",
        shapes=shapes_of(family),
        arrays={f"{name}.{key}": array for name, arrays in parts.items() for key, array in arrays.items()},
        weights=weights,
    )


def shapes_of(family: Family) -> dict[str, dict[str, Any]]:
    """Sizes of the parts that `pack` packs."""
    shapes = {"decoder": decoder_shape(_part(family, "decoder")).sizes()}
    if layers := _layers(family):
        shapes["encoder"] = encoder_shape(layers).sizes()
        shapes["stem"] = stem_shape(stem_of(_part(family, "encoder"))).sizes()
    return shapes


def exchanged(
    family: Family, packed: Packed, team: Any, kernels: str, options: NativeOptions | None = None
) -> Family:
    """The family with what is packed computed in the kernels by a team of threads; the rest is shared with it.

    Raises:
        SprachbundError: packed weights of another shape than the model, or in other numbers than asked for.
    """
    if (wanted := (options or NativeOptions()).weights) != packed.weights:
        raise SprachbundError(
            f"the packed weights are in {packed.weights}, asked for are {wanted}; pack again"
        )
    if packed.shapes != shapes_of(family):
        raise SprachbundError("the packed weights have other shapes than the model; delete their file")
    try:
        return _exchanged(family, packed, team, kernels, options)
    except ValueError as error:  # the kernels check every array
        raise SprachbundError(
            f"the packed weights do not fit the model ({error}); delete their file"
        ) from error


def _exchanged(
    family: Family, packed: Packed, team: Any, kernels: str, options: NativeOptions | None
) -> Family:
    sizes = DecoderShape(**packed.shapes["decoder"])
    decoder = NativeDecoder(sizes, packed.part("decoder"), team, kernels, options)
    parts: dict[str, Any] = {"decoder": decoder}
    if "encoder" in packed.shapes:
        layers = NativeLayers(EncoderShape(**packed.shapes["encoder"]), packed.part("encoder"), team, kernels)
        stem = NativeStem(StemShape(**packed.shapes["stem"]), packed.part("stem"), team, kernels)
        parts["encoder"] = _encoder(_part(family, "encoder"), stem, layers)
    return _with(family, **parts)


def _encoder(encoder: nn.Module, stem: NativeStem, layers: NativeLayers) -> nn.Module:
    if layers.shape.kernel_size == 0:
        # A view of them would keep the file of the weights mapped, of which nothing else is read.
        return NativeWhisperEncoder(stem, _part(encoder, "positions").detach().clone(), layers)
    return _with(encoder, subsampling=stem, layers=nn.ModuleList([layers]))


def _layers(family: Family) -> list[nn.Module]:
    """The encoder's layers where the kernels can run them, else none."""
    encoder = getattr(family, "encoder", None)
    return [] if why_not_encoder(encoder) else list(_part(encoder, "layers"))


def _with(owner: _Owner, **parts: Any) -> _Owner:
    """A copy that shares everything with its original but these parts."""
    copied = copy.copy(owner)
    if isinstance(copied, nn.Module):
        copied._modules = dict(copied._modules)
    for name, part in parts.items():
        setattr(copied, name, part)
    return copied


def _part(owner: Any, name: str) -> Any:
    return getattr(owner, name)

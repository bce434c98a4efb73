"""Quantization: linear layers in 3 to 8 bits, and model directories in 8 bits.

The mathematics and the layer that computes from its packed weights are in `sprachbund.nn.quantized`; the native engine
has kernels of its own for 4 bits (`NativeOptions(weights="int4")`). This form is for studies, for streaming encoders,
for any device and for export. arXiv 2606.24169, weight-only quantization.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.compression.options import KQuantOptions
from sprachbund.engines.choice import why_not_native
from sprachbund.engines.native_engine import pack
from sprachbund.engines.packed_cache import PACKED_FILE, write_with_model
from sprachbund.errors import SprachbundError
from sprachbund.models.weights import SCALE, read_packed_linears
from sprachbund.nn.quantized import (
    BlockLinear,
    BlockWeights,
    importance,
    linear_names,
    packed_layers,
    quantize_blocks,
)
from sprachbund.nn.streaming_conformer import ChunkEncoder


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """The size and error of a quantized linear layer.

    Attributes:
        name: name in the model.
        num_weights: weights in its matrix.
        num_bytes: bytes that they take now.
        weighted_error: weighted error of all blocks together, over that of zeros in their place: 0 is exact.
    """

    name: str
    num_weights: int
    num_bytes: int
    weighted_error: float


def quantize_linears(
    model: nn.Module, names: Iterable[str], options: KQuantOptions | None = None
) -> list[QuantizedLayer]:
    """Exchange the linear layers of these names, in place, for ones in few bits; nothing else is touched.

    Args:
        model: is changed in place.
        names: names of its linear layers.
        options: bits, block and method; the defaults if None.

    Raises:
        SprachbundError: a name that is no linear layer of the model; see `quantize_blocks` for the others.
    """
    options, there, names = options or KQuantOptions(), linear_names(model), list(names)
    for name in names:
        if name not in there:
            raise SprachbundError(f"{name!r} is no linear layer of the model{_nearest(name, there)}")
    return [_exchange(model, name, options) for name in names]


def quantize_encoder(model: nn.Module, options: KQuantOptions | None = None) -> list[QuantizedLayer]:
    """Exchange all linear layers of a model's streaming encoder, in place; decoder and joint network are left alone.

    Raises:
        SprachbundError: the encoder does not stream, or is quantized already; see `quantize_linears` for the others.
    """
    if not isinstance(dict(model.named_children()).get("encoder"), ChunkEncoder):
        raise SprachbundError(
            "the model's encoder does not stream, and only streaming ones run from packed weights; "
            "leave --encoder-bits out to store the model in 8 bits"
        )
    if packed := packed_layers(model):
        bits = next(iter(packed.values())).bits
        raise SprachbundError(
            f"the encoder has {bits} bits already; quantize the model that it was made from"
        )
    names = linear_names(model, "encoder")
    if not names:
        raise SprachbundError(
            "the encoder has no weights of torch; quantize the model that it was exported from"
        )
    return quantize_linears(model, names, options)


def bits_per_weight(layers: Sequence[QuantizedLayer]) -> float:
    """Mean bits of a weight in all quantized layers, scales and zero points included."""
    return 8 * sum(layer.num_bytes for layer in layers) / sum(layer.num_weights for layer in layers)


def weighted_error(weight: Tensor, packed: BlockWeights) -> Tensor:
    """Squared errors of a weight (O, I), each times its importance, by block: (O, G)."""
    missing = -weight.shape[1] % packed.block
    blocks, error = (
        F.pad(x, (0, missing)).unflatten(1, (-1, packed.block))
        for x in (weight.detach().float(), (packed.dequantize() - weight.detach().float()).square())
    )
    valid = F.pad(weight.new_ones(weight.shape).float(), (0, missing)).unflatten(1, (-1, packed.block))
    a = importance(blocks.flatten(0, 1), valid.flatten(0, 1)).view_as(error)
    return (a * error).sum(2)


def _exchange(model: nn.Module, name: str, options: KQuantOptions) -> QuantizedLayer:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    packed = quantize_blocks(
        linear.weight,
        options.bits,
        block=options.block,
        method=options.method,
        symmetric=options.symmetric,
    )
    of_zeros = weighted_error(linear.weight, replace(packed, scales=packed.scales * 0)).sum()
    error = weighted_error(linear.weight, packed).sum() / of_zeros
    made = BlockLinear(packed, linear.bias)
    model.set_submodule(name, made.train(linear.training))
    return QuantizedLayer(
        name=name,
        num_weights=linear.weight.numel(),
        num_bytes=packed.num_bytes,
        weighted_error=float(error.nan_to_num(0.0)),
    )


def _nearest(name: str, there: Sequence[str]) -> str:
    if near := get_close_matches(name, there, n=1, cutoff=0.5):
        return f"; did you mean {near[0]!r}?"
    return f"; it has {len(there)}" + (f", such as {there[0]!r}" if there else "")


# Model directories in 8 bits.
#
# The format is that of `sprachbund.models.weights`: `model.safetensors`, which can be mapped into memory,
# holds of every matrix signed bytes and a scale for each of its rows. The native engine computes in those
# bytes; torch in what they stand for. Beside it may lie the same bytes in the order in which the native
# engine's kernels read them, as `sprachbund.engines.packed_cache` describes; the engine then maps that file
# and has nothing to pack.

QUANTIZABLE = ("conformer", "whisper")
WEIGHT_FILES = ("*.safetensors", "*.bin", f"*{Path(PACKED_FILE).suffix}")


@dataclass(frozen=True, kw_only=True)
class StoredSize:
    """The size of a model directory on disk.

    Attributes:
        bytes_on_disk: bytes on disk of its weights, of its drafts and packed file too.
        bits: bits of a stored matrix; None where there are several.
    """

    bytes_on_disk: int
    bits: int | None


def stored_size(directory: Path) -> StoredSize:
    """Size of the weights in a model directory, and the bits of their matrices."""
    files = sorted({path for pattern in WEIGHT_FILES for path in directory.glob(pattern)})
    bits: set[int] = set()
    for path in files:
        if path.suffix == ".safetensors" and not path.name.startswith("draft"):
            bits |= _bits(path)
    if (packed := read_packed_linears(directory)) is not None:
        bits = {
            packed.bits
        }  # of the matrices that count; those of decoder and joint network are as they were
    shared = next(iter(bits)) if len(bits) == 1 else None
    return StoredSize(bytes_on_disk=sum(path.stat().st_size for path in files), bits=shared)


def check_quantizable(model: Any) -> None:
    """Raise a SprachbundError for a family whose directories have no place for 8 bits."""
    if model.name not in QUANTIZABLE:
        raise SprachbundError(
            f"{model.name} models are written in 16 or 32 bits, not 8; {' and '.join(QUANTIZABLE)} models can"
        )


def check_packable(model: Any) -> None:
    """Raise a SprachbundError where the native engine is not here, or cannot run the model."""
    if reason := why_not_native(model):
        raise SprachbundError(f"the native engine cannot run this model: {reason}; leave --packed out")


def write_packed(model: Any, directory: Path) -> Path:
    """Write the native engine's packed file beside the weights that `model` was loaded from; its path."""
    check_packable(model)
    return write_with_model(directory, lambda: pack(model))


def _bits(path: Path) -> set[int]:
    """Bits of the matrices in a file; their scales are part of them."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if not name.endswith(SCALE)]  # noqa: SIM118 - no mapping
        matrices = [part for name in names if len((part := file.get_slice(name)).get_shape()) > 1]
        return {_WIDTHS.get(part.get_dtype(), 32) for part in matrices}


_WIDTHS = {"I8": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64}

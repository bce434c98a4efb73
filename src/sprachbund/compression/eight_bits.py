"""Model directories whose weights have 8 bits: how they are written, and how large they are.

The format is that of `sprachbund.models.weights`: `model.safetensors`, which can be mapped into memory, holds of every
matrix signed bytes and a scale for each of its rows. The native engine computes in those bytes; torch in what they
stand for. Beside it may lie the same bytes in the order in which the native engine's kernels read them, as
`sprachbund.runtime.packed_file` describes; the engine then maps that file and has nothing to pack.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sprachbund.errors import SprachbundError
from sprachbund.models.packed_linears import read_packed_linears
from sprachbund.models.weights import SCALE
from sprachbund.runtime.engine import why_not_native
from sprachbund.runtime.native_model import pack
from sprachbund.runtime.packed_cache import PACKED_FILE, write_beside

FAMILIES = ("conformer", "whisper")
WEIGHT_FILES = ("*.safetensors", "*.bin", f"*{Path(PACKED_FILE).suffix}")


@dataclass(frozen=True, kw_only=True)
class StoredSize:
    """What a model directory takes.

    Attributes:
        bytes_on_disk: of its weights, of its drafts and packed file too.
        bits: of a stored matrix; None where there are several.
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
    found = next(iter(bits)) if len(bits) == 1 else None
    return StoredSize(bytes_on_disk=sum(path.stat().st_size for path in files), bits=found)


def check_quantizable(model: Any) -> None:
    """Raise a SprachbundError for a family whose directories have no place for 8 bits."""
    if model.name not in FAMILIES:
        raise SprachbundError(
            f"{model.name} models are written in 16 or 32 bits, not 8; {' and '.join(FAMILIES)} models can"
        )


def check_packable(model: Any) -> None:
    """Raise a SprachbundError where the native engine is not here, or cannot run the model."""
    if reason := why_not_native(model):
        raise SprachbundError(
            f"the native engine cannot run this model: {reason}; leave --packed out, the weights have 8 bits without it"
        )


def pack_beside(model: Any, directory: Path) -> Path:
    """Write the native engine's packed file beside the weights that `model` was loaded from; its path."""
    check_packable(model)
    return write_beside(directory, lambda: pack(model))


def _bits(path: Path) -> set[int]:
    """Bits of the matrices in a file; their scales are part of them."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if not name.endswith(SCALE)]  # noqa: SIM118 - no mapping
        matrices = [part for name in names if len((part := file.get_slice(name)).get_shape()) > 1]
        return {_WIDTHS.get(part.get_dtype(), 32) for part in matrices}


_WIDTHS = {"I8": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64}

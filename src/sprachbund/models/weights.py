"""Weights on disk in 32, 16 or 8 bits, in one safetensors file that can be memory-mapped.

In 8 bits a matrix is stored as signed integers with one fp32 scale per output row (`NAME` int8 beside
`NAME.scale`): w is about q * scale, scale = max |row| / 127. Vectors stay in 16 bits. What linear layers hold packed
(`sprachbund.nn.quantized`) is stored as it is held, whatever the bits of the others.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.nn.limits import WIDTH, Flag
from sprachbund.nn.quantized import PACKED, BlockBits, linear_names, make_room, packed_layers
from sprachbund.util.files import atomic_files, is_empty, read_object, validate, write_bytes, write_json
from sprachbund.util.known_files import remembered, user_cache
from sprachbund.util.tensors import load_tensors, save_tensors

Bits = Literal[8, 16, 32]
SCALE = ".scale"
_FLOATING = (torch.float32, torch.float16, torch.bfloat16)
_CHECKED = "checked_weights.json"  # in the user's cache: files whose values were checked
COUNTER = "num_batches_tracked"
"""Ends the name of the one whole number that a model holds: batches that a norm has seen in training."""
_LOOKED_AT = 64
"""Numbers of a tensor that a digest is made of."""
_ADVICE = "copy the model again"
_CONFIG = "config.json"


def write_transformers_directory(
    directory: Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    bits: Bits,
    card: Card | None,
) -> None:
    """Write a model in transformers' layout; config.json comes last, so a broken-off writing is not taken for a model.

    Args:
        directory: directory to be written; safetensors files that lie there are replaced.
        weights: name of a safetensors file to its tensors.
        config: values of config.json.
        files: name to content of the others, such as the tokenizer's.
        bits: bits of a weight, for the card.
        card: card to lie beside the weights.

    Raises:
        SprachbundError: the directory is something else than a model's, or cannot be written.
    """
    with directory_of_a_model(directory):
        if card is not None:
            card.model_copy(update={"bits": bits}).write(directory)
        for name, tensors in weights.items():
            save_tensors(directory / name, tensors, {"format": "pt"})
        with atomic_files(directory, last=_CONFIG) as draft:
            for name, content in files.items():
                write_bytes(draft / name, content)
            write_json(draft / _CONFIG, dict(config), indent=2)


def check_replaceable(directory: Path) -> None:
    """Raise SprachbundError for a directory that is there and holds something else than a model."""
    if directory.exists() and not (
        directory.is_dir() and ((directory / _CONFIG).is_file() or is_empty(directory))
    ):
        raise SprachbundError(f"{directory} exists and is not a model directory; choose another name")


@contextmanager
def directory_of_a_model(directory: Path) -> Iterator[None]:
    """Make room for a model, whose files are written within; config.json is to be the last of them.

    Args:
        directory: directory made if it is not there; safetensors files that lie there are removed.

    Raises:
        SprachbundError: the directory is something else than a model's, or cannot be written.
    """
    check_replaceable(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("*.safetensors*"):
            old.unlink()
        yield
    except OSError as error:
        raise SprachbundError(
            f"{directory} could not be written ({error}); mend that and save again"
        ) from error


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and fp32 scales (rows,) of a weight (rows, ...); rounding to nearest, symmetric."""
    rows = weight.detach().float().flatten(1)
    scale = (rows.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    values = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return values.reshape(weight.shape), scale


def dequantize_rows(values: Tensor, scale: Tensor) -> Tensor:
    """fp32 weight of what `quantize_rows` gave."""
    wide = values.float()  # multiplied in place, since new pages cost more than the products
    return wide.mul_(scale.reshape(-1, *[1] * (values.ndim - 1)))


def write_weights(
    path: Path, weights: Mapping[str, Tensor], bits: Bits, metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights, with `metadata` in the file's head; the file appears whole or not at all.

    Args:
        path: path of the safetensors file.
        weights: by name.
        bits: bits of a matrix; packed ones are stored as they are held.
        metadata: for the file's head.
    """
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if is_packed(name, weights):
            stored[name] = weight.contiguous()
        elif bits == 8 and weight.ndim > 1 and weight.is_floating_point():
            stored[name], stored[name + SCALE] = quantize_rows(weight)
        else:
            stored[name] = weight.detach().to(torch.float32 if bits == 32 else torch.float16).contiguous()
    save_tensors(path, stored, {"format": "pt", "bits": str(bits), **(metadata or {})})


def cast_to_bits(weights: Mapping[str, Tensor], bits: Bits) -> dict[str, Tensor]:
    """Weights in the precision that a file of the Hugging Face layout holds; 32 keeps the precision that they have.

    Raises:
        SprachbundError: 8 bits, which the layout does not hold.
    """
    if bits == 8:
        raise SprachbundError(
            "this layout holds weights of 16 or 32 bits, not 8; set bits = 16, or leave it out"
        )
    dtype = {16: torch.float16}.get(bits)
    return {name: weight.to(dtype).contiguous() for name, weight in weights.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a precision in config.json, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file of weights; empty when there is no such file, or it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}  # reading the weights names what is wrong with them


def read_weights(path: Path) -> dict[str, Tensor]:
    """fp32 weights of a file written by `write_weights`, and those that are packed as they are held.

    Raises:
        SprachbundError: the file is missing, not a whole safetensors file, or not the one that was written; or a
            tensor is of a type that is not written, holds what is no number, or has not the scales that it needs.
    """
    if not path.exists():
        raise SprachbundError(f"{path.parent} has no {path.name}; a model directory needs its weights")
    stored = load_tensors(path)
    for name, value in stored.items():
        _check_stored(name, value, stored, path)
    return {name: _read(name, value, stored) for name, value in stored.items() if not _is_scale(name, stored)}


def check_weights(
    weights: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    source: str | Path,
    *,
    ignored: Iterable[str] = (),
) -> None:
    """Check that weights are those that a configuration asks for: none missing or surplus, all of its shapes and types.

    Args:
        weights: as read.
        wanted: weights of the model that was built, on any device.
        source: source that the weights come from, for the message.
        ignored: regular expressions of names that may be there all the same, since nothing is computed with them.

    Raises:
        SprachbundError: naming the first that differ.
    """
    check_names(weights, wanted, source, ignored=ignored)
    for name, value in wanted.items():
        if weights[name].shape != value.shape:
            seen, need = tuple(weights[name].shape), tuple(value.shape)
            raise SprachbundError(
                f"{source}: {name} has shape {seen}, config.json asks for {need}; they do not fit, {_ADVICE}"
            )
        if weights[name].dtype != value.dtype:
            raise SprachbundError(f"{source}: {name} is {weights[name].dtype}, not {value.dtype}; {_ADVICE}")


def check_names(
    names: Iterable[str], wanted: Iterable[str], source: str | Path, *, ignored: Iterable[str] = ()
) -> None:
    """Check that names of weights are those wanted; arguments and errors as of `check_weights`."""
    names, wanted = set(names), set(wanted)
    if missing := sorted(wanted - names):
        raise SprachbundError(
            f"{source} lacks {len(missing)} weights that config.json asks for ({some(missing)}); {_ADVICE}"
        )
    pattern = re.compile("|".join(ignored) or r"(?!)")
    if surplus := sorted(name for name in names - wanted if not pattern.search(name)):
        raise SprachbundError(
            f"{source} holds {len(surplus)} weights that config.json has no place for ({some(surplus)}); {_ADVICE}"
        )


def check_once(files: Sequence[Path], check: Callable[[], None], about: str = "") -> None:
    """Check the values of weights, not at every start: that would read files whole of which an engine needs little.

    Args:
        files: files that the weights are mapped from; while they stay as they are, a check that found no fault is not
            made again. Without any, it is always made.
        check: raises an error where there is a fault.
        about: the tensors that are checked, where there may be others in the files.
    """

    def checked() -> str:
        check()
        return "checked"

    if files:
        remembered(files, user_cache() / _CHECKED, checked, about)
    else:
        check()


def check_finite(weights: Mapping[str, Tensor], source: str | Path, files: Sequence[Path] = ()) -> None:
    """Check that all values are finite numbers.

    Args:
        weights: by name.
        source: source of the weights, for the message.
        files: as of `check_once`.

    Raises:
        SprachbundError: naming a tensor with another value.
    """

    def check() -> None:
        for name, value in weights.items():
            if not _is_finite(value):
                raise SprachbundError(f"{source}: {name} holds values that are not finite numbers; {_ADVICE}")

    # Their precision counts too: what is finite in a file may not be so in float16.
    check_once(files, check, " ".join(sorted(f"{name} {value.dtype}" for name, value in weights.items())))


def some(names: list[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def is_packed(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is of a packed linear layer, by its name and those beside it."""
    layer, _, what = name.rpartition(".")
    return what in PACKED and f"{layer}.{PACKED[0]}" in weights


def _is_scale(name: str, stored: Mapping[str, Tensor]) -> bool:
    return name.endswith(SCALE) and name.removesuffix(SCALE) in stored


def _is_finite(value: Tensor) -> bool:
    # A sum is finite only if all that was added is. It reads the values once; `isfinite` makes a tensor of answers.
    if not value.is_floating_point() or value.is_meta:
        return True
    return bool(value.sum(dtype=torch.float32).isfinite()) or bool(value.isfinite().all())


def _check_stored(name: str, value: Tensor, stored: Mapping[str, Tensor], path: Path) -> None:
    """See that a tensor is one that `write_weights` writes."""
    if name.rpartition(".")[2] in PACKED:
        return  # `packed_linears` knows what they hold
    if _is_scale(name, stored):
        matrix = stored[name.removesuffix(SCALE)]
        fits = value.dtype == torch.float32 and value.shape == matrix.shape[:1] and matrix.dtype == torch.int8
        if not fits or not bool((value.isfinite() & (value > 0)).all()):
            raise SprachbundError(
                f"{path}: {name} is not a finite scale above 0 for each row of a matrix in 8 bits; {_ADVICE}"
            )
    elif value.dtype == torch.int8:
        if name + SCALE not in stored or value.ndim < 2:
            raise SprachbundError(f"{path}: {name} is in 8 bits and has no {name + SCALE}; {_ADVICE}")
    elif value.dtype not in _FLOATING and not name.endswith(COUNTER):
        raise SprachbundError(f"{path}: {name} is of the type {value.dtype}, which no weight has; {_ADVICE}")
    elif not _is_finite(value):
        raise SprachbundError(f"{path}: {name} holds values that are not finite numbers; {_ADVICE}")


def _read(name: str, value: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    if is_packed(name, stored):
        return value
    return dequantize_rows(value, stored[name + SCALE]) if name + SCALE in stored else value.float()


# config.json of the families that are stored in a form of this package: family, config and, maybe, packed.

KEY = "packed"
"""Key of config.json that states how linear layers are packed."""

_Config = TypeVar("_Config", bound=BaseModel)


def read_stored_config(directory: Path, kind: type[_Config]) -> _Config:
    """Read the configuration of a model that is stored in a form of this package.

    A key that is not known here changes what the weights mean, so the directory is refused and not half read.

    Args:
        directory: the model's.
        kind: class of its configuration.

    Raises:
        SprachbundError: config.json is broken, or has a key of another release.
    """
    path = directory / "config.json"
    values = read_object(path)
    if unknown := sorted(values.keys() - {"family", "config", KEY}):
        raise SprachbundError(
            f"{path} has the key {unknown[0]!r}, which this release does not know; "
            "use the release that wrote the model"
        )
    return validate(kind, values.get("config"), f"{path}: config")


# Linear layers that a model directory holds packed: what config.json says of them, and room for them in a model.


class PackedLinears(BaseModel):
    """The format of all packed linear layers of a model; the names of the weights say which layers are packed.

    Attributes:
        bits: bits of a code.
        block: inputs that share a scale.
        symmetric: whether no zero points are stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: BlockBits
    block: int = Field(default=32, strict=True, ge=8, le=WIDTH.most)
    symmetric: Flag = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.block % 8:
            raise ValueError(f"block is {self.block}, which is no multiple of 8")
        return self


def packed_linears(model: nn.Module) -> PackedLinears | None:
    """Return the format of a model's packed linear layers; None where none is packed.

    Raises:
        SprachbundError: layers differ in their format.
    """
    layers = packed_layers(model).values()
    formats = {(layer.bits, layer.block, layer.zeros is None) for layer in layers}
    if len(formats) > 1:
        seen = " and ".join(str(each[0]) for each in sorted(formats))
        raise SprachbundError(
            f"linear layers are packed in different ways ({seen} bits); a directory holds one"
        )
    if not formats:
        return None
    bits, block, symmetric = formats.pop()
    return PackedLinears.model_validate({"bits": bits, "block": block, "symmetric": symmetric})


def streaming_origin(encoder: nn.Module, transducer: nn.Module) -> dict[str, str]:
    """What tells the weights of a model that streams from others, however alike in shape: numbers and a digest.

    Args:
        encoder: as stored, so that no engine has brought it into numbers of its own.
        transducer: likewise.
    """
    packed = packed_linears(encoder)
    return {
        "numbers": "single precision" if packed is None else f"{packed.bits} bits",
        "weights": weights_digest((encoder, transducer)),
    }


def weights_digest(parts: Iterable[nn.Module]) -> str:
    """Of the first numbers of every tensor: quick, and models that differ in a single layer have other digests.

    Args:
        parts: parts of the model, in a fixed order.
    """
    digest = hashlib.sha256()
    for part in parts:
        for tensor in part.state_dict().values():
            plain = tensor.detach().flatten()[:_LOOKED_AT].cpu()
            digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def read_packed_linears(directory: Path) -> PackedLinears | None:
    """Return the format that the config.json of a model directory states; None for one without packed layers.

    Raises:
        SprachbundError: it is not JSON, or says what cannot be.
    """
    path = directory / "config.json"
    said = read_object(path).get(KEY)
    return None if said is None else validate(PackedLinears, said, f"{path}: {KEY}")


def make_packed_room(model: nn.Module, packed: PackedLinears, weights: Mapping[str, Tensor]) -> None:
    """Make a model on the meta device ready for weights of which some are packed."""
    there = {name.rpartition(".")[0] for name in weights if is_packed(name, weights)}
    names = [name for name in linear_names(model) if name in there]
    make_room(model, names, bits=packed.bits, block=packed.block, symmetric=packed.symmetric)


def check_packed(weights: Mapping[str, Tensor], where: Path) -> None:
    """Raise a SprachbundError for scales that no quantization gives, as damaged files have them."""
    for name, value in weights.items():
        if name.endswith(f".{PACKED[1]}") and is_packed(name, weights):
            sound = value.is_floating_point() and bool((value.isfinite() & (value > 0)).all())
            if not sound:
                raise SprachbundError(f"{where}: {name} holds scales that are not above 0; copy it again")

"""Loading a model by path or Hugging Face id, and saving it, whatever its family."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from sprachbund.errors import SprachbundError
from sprachbund.models import CASCADE, REGISTERED, Registered
from sprachbund.models.base import Family
from sprachbund.models.calibration import Calibration
from sprachbund.models.cascade import RECOGNISER, TRANSLATOR, Cascade, CascadeConfig
from sprachbund.models.catalogue import BUNDLED
from sprachbund.models.drafts import find_drafts
from sprachbund.models.hub import bundled_directory, bytes_of_weights, check_memory, family_of, locate
from sprachbund.models.wrapped import WrappedFamily
from sprachbund.util.devices import CPU, check_kind, find_device
from sprachbund.util.files import read_model, write_json
from sprachbund.util.provenance import model_hash

__all__ = ["BUNDLED", "bundled_directory", "family_of", "load", "locate", "save"]


class Files(Protocol):
    """A module that reads and writes the model directories of its families."""

    @property
    def load(self) -> Callable[..., Family]:
        """Reads a directory."""
        ...

    @property
    def save(self) -> Callable[..., None]:
        """Writes a model into a directory; takes options."""
        ...


def _conformer_files() -> Files:
    from sprachbund.models.conformer import io

    return io


def _whisper_files() -> Files:
    from sprachbund.models.whisper import io

    return io


def _seamless_files() -> Files:
    from sprachbund.models.seamless import io

    return io


def _speech_llm_files() -> Files:
    from sprachbund.models.speech_llm import io

    return io


def _streaming_onnx_files() -> Files:
    from sprachbund.models import streaming_onnx

    return streaming_onnx


def _tokens_files() -> Files:
    from sprachbund.models.tokens import io

    return io


def _translation_files() -> Files:
    from sprachbund.models.translation import io

    return io


def _prompted_files() -> Files:
    from sprachbund.models import prompted

    return prompted


def _fastconformer_files() -> Files:
    from sprachbund.models.fastconformer import io

    return io


def _moonshine_files() -> Files:
    from sprachbund.models.moonshine import io

    return io


def _kyutai_files() -> Files:
    from sprachbund.models.kyutai import io

    return io


def _voxtral_realtime_files() -> Files:
    from sprachbund.models.voxtral_realtime import io

    return io


def _audio_llm_files() -> Files:
    from sprachbund.models.audio_llm import io

    return io


FILES: dict[str, Callable[[], Files]] = {
    "conformer": _conformer_files,
    "whisper": _whisper_files,
    "seamless": _seamless_files,
    "speech_llm": _speech_llm_files,
    "streaming_onnx": _streaming_onnx_files,
    "tokens": _tokens_files,
    "translation": _translation_files,
    "prompted": _prompted_files,
    "fastconformer": _fastconformer_files,
    "moonshine": _moonshine_files,
    "kyutai": _kyutai_files,
    "voxtral_realtime": _voxtral_realtime_files,
    "audio_llm": _audio_llm_files,
}
"""For each `module` of `REGISTERED` a function that imports it, so that no command pays for the others."""


def _cascade(
    recogniser: str | Path, translator: str | Path, *, offline: bool, as_stored: bool = False
) -> Family:
    directories = (locate(recogniser, offline=offline), locate(translator, offline=offline))
    check_memory(sum(_bytes_read(one, as_stored) for one in directories), *directories)
    first, second = (load(one, as_stored=as_stored) for one in directories)
    return Cascade(first, second, directories)


def _bytes_read(directory: Path, as_stored: bool) -> int:
    """Bytes of weights that loading reads, where it does not only map them."""
    family = family_of(directory)
    mapped = as_stored and (family == CASCADE or _registered(family).maps)
    return 0 if mapped else bytes_of_weights(directory)


def _registered(family: str) -> Registered:
    """The entry of a family by its name in config.json."""
    return next(one for one in REGISTERED if family in one.names)


def _read(directory: Path, as_stored: bool) -> Family:
    """A model of any family, on the CPU."""
    family = family_of(directory)
    if family == CASCADE:
        halves = read_model(directory / "config.json", CascadeConfig).halves(directory)
        return _cascade(*halves, offline=True, as_stored=as_stored)
    registered = _registered(family)
    load_files = FILES[registered.module]().load
    return load_files(directory, dtype=None) if as_stored and registered.maps else load_files(directory)


def load(
    path_or_id: str | Path = BUNDLED,
    *,
    then: str | Path | None = None,
    offline: bool = False,
    device: str = CPU,
    as_stored: bool = False,
) -> Family:
    """Load a model for inference.

    Args:
        path_or_id: "bundled", a model directory, a name on the Hugging Face hub, or an alias such as "whisper-small".
        then: a model of texts, named in the same way, that translates what the first one transcribes: a cascade.
        offline: never use the network, even for a name that is not on disk.
        device: computes it: cpu, cuda, cuda:1 …, mps.
        as_stored: keep 16-bit weights of Whisper as the file has them, for an engine that brings to 32 bits what it
            computes with (`sprachbund.engines.choice.engine_for`); a file of safetensors is mapped and not read.

    Raises:
        SprachbundError: when there is no such model, or it is broken or of a family unknown here, or has a file that
            is named like a draft and is none; halves of a cascade that do not fit together; a device that is not
            there, or that the family does not compute on.
    """
    find_device(device)
    if then is not None:
        return move(_cascade(path_or_id, then, offline=offline, as_stored=as_stored), device)
    directory = locate(path_or_id, offline=offline)
    check_memory(_bytes_read(directory, as_stored), directory)
    family = _read(directory, as_stored)
    if family.capabilities.translator is None:  # a cascade has the recogniser's drafts
        family.drafts = find_drafts(directory)
        family.calibration = Calibration.read(directory)
    return move(family, device)


def move(family: Family, device: str) -> Family:
    """Put a model on a device; it is changed in place, and given back.

    Args:
        family: any model; both halves of a cascade are moved.
        device: device, as torch names it.

    Raises:
        SprachbundError: its family does not compute on devices of that kind.
    """
    # By its class: only that says where the modules of both halves are.
    parts = (family.recogniser, family.translator) if isinstance(family, Cascade) else (family,)
    for part in parts:
        check_kind(device, part.capabilities.devices, f"a model of the family {part.name}")
    for part in parts:
        if isinstance(part, nn.Module):
            part.to(device)
    return family


def content_hash(directory: Path) -> str:
    """SHA-256 of a model directory (`sprachbund.util.provenance.model_hash`); of a cascade over those of its halves."""
    if family_of(directory) != CASCADE:
        return model_hash(directory)
    halves = read_model(directory / "config.json", CascadeConfig).halves(directory)
    return sha256("\n".join(content_hash(locate(half, offline=True)) for half in halves).encode()).hexdigest()


def save(family: Family, directory: Path, **options: Any) -> None:
    """Save a model so that `load` finds it.

    Args:
        family: the model.
        directory: directory to be written.
        options: options of the `save` of its family, such as `bits` and `card`.

    Raises:
        SprachbundError: a model that runs from exported graphs, or one that cannot be written there.
    """
    if isinstance(family, Cascade):
        _save_cascade(family, directory, **options)
        return
    own = next((one for one in REGISTERED if family.name in (*one.names, one.of_models)), None)
    if own is None or isinstance(family, WrappedFamily):
        raise SprachbundError(
            f"a model of the kind {type(family).__name__} cannot be written; save the model that it was made from"
        )
    FILES[own.module]().save(family, directory, **options)


def _save_cascade(cascade: Cascade, directory: Path, **options: Any) -> None:
    """Both halves in folders of their own, and config.json last, so that a broken-off writing is no model."""
    save(cascade.recogniser, directory / RECOGNISER, **options)
    save(cascade.translator, directory / TRANSLATOR, **options)
    write_json(directory / "config.json", CascadeConfig(recogniser=RECOGNISER, translator=TRANSLATOR))

"""Loading a model by path or Hugging Face id, and saving it, whatever its family."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.models.drafts import find_drafts
from sprachbund.util.files import read_object

BUNDLED = "bundled"


def bundled_directory() -> Path:
    """Where the model that comes with the package lies."""
    return Path(__file__).parent / "assets" / BUNDLED


def _load_conformer(directory: Path) -> Family:
    from sprachbund.models.conformer.io import load

    return load(directory)


def _load_whisper(directory: Path) -> Family:
    from sprachbund.models.whisper import load

    return load(directory, offline=True)


def _load_seamless(directory: Path) -> Family:
    from sprachbund.models.seamless import load

    return load(directory, offline=True)


def _load_speech_llm(directory: Path) -> Family:
    from sprachbund.models.speech_llm import load

    return load(directory, offline=True)


def _load_reader_of_tokens(directory: Path) -> Family:
    # What it reads is made in a room above this one, which is therefore named and not imported.
    loaded: Family = import_module("sprachbund.units.reader").load(directory)
    return loaded


def _load_streaming_onnx(directory: Path) -> Family:
    from sprachbund.models.streaming_onnx import load

    return load(directory)


FAMILIES: dict[str, Callable[[Path], Family]] = {
    "conformer": _load_conformer,
    "whisper": _load_whisper,
    "seamless_m4t": _load_seamless,
    "seamless_m4t_v2": _load_seamless,
    "speech_llm": _load_speech_llm,
    "streaming_onnx": _load_streaming_onnx,
    "token_conformer": _load_reader_of_tokens,
    "token_mbart": _load_reader_of_tokens,
}


def load(path_or_id: str | Path = BUNDLED, *, offline: bool = False) -> Family:
    """Load a model for inference.

    Args:
        path_or_id: "bundled", a model directory, or the name of a Whisper model on the Hugging Face hub.
        offline: never use the network, even for a name that is not on disk.

    Raises:
        SprachbundError: when there is no such model, or it is broken or of a family unknown here, or has a file that
            is named like a draft and is none.
    """
    directory = locate(path_or_id, offline=offline)
    family = FAMILIES[family_of(directory)](directory)
    family.drafts = find_drafts(directory)
    return family


def locate(path_or_id: str | Path, *, offline: bool = False) -> Path:
    """The directory that a name stands for, downloaded first if need be. Arguments and errors as for `load`."""
    if str(path_or_id) == BUNDLED:
        return bundled_directory()
    from sprachbund.models.hub import find

    return find(path_or_id, offline=offline)


def save(family: Family, directory: Path, **options: Any) -> None:
    """Save a model so that `load` finds it; options are those of its family's own `save`."""
    package = type(family).__module__.rpartition(".")[0]
    import_module(f"{package}.io").save(family, directory, **options)


def family_of(directory: Path) -> str:
    """Name of the family of a model directory. Raises SprachbundError when that cannot be told."""
    path = directory / "config.json"
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise SprachbundError(
            f"{directory} has no config.json, so it is not a model directory; check the path"
        ) from None
    except (OSError, ValueError):
        pass  # what a directory that may not be entered holds is not known; reading it says so
    config = read_object(path)
    family = config.get("family") or config.get("model_type")
    if family == "nemotron_asr_streaming":
        raise SprachbundError(
            f"{directory} is in transformers' form; run: sprachbund convert {directory} --out DIR --language TAG"
        )
    if not isinstance(family, str) or family not in FAMILIES:
        raise SprachbundError(
            f"{path} names the family {repr(family)[:60]}; known here: {', '.join(FAMILIES)}"
        )
    return family

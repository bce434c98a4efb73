"""Loading a model by path or Hugging Face id, and saving it, whatever its family."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.models.catalogue import BUNDLED
from sprachbund.models.download import Progress
from sprachbund.models.drafts import find_drafts
from sprachbund.models.hub import FAMILIES, family_of, find

__all__ = ["BUNDLED", "FAMILIES", "LOADERS", "bundled_directory", "family_of", "load", "locate", "save"]


def bundled_directory() -> Path:
    """Directory of the model that comes with the package."""
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
    # Units are made in a package above this one, which is therefore named and not imported.
    loaded: Family = import_module("sprachbund.units.reader").load(directory)
    return loaded


def _load_streaming_onnx(directory: Path) -> Family:
    from sprachbund.models.streaming_onnx import load

    return load(directory)


LOADERS: dict[str, Callable[[Path], Family]] = {
    "conformer": _load_conformer,
    "whisper": _load_whisper,
    "seamless_m4t": _load_seamless,
    "seamless_m4t_v2": _load_seamless,
    "speech_llm": _load_speech_llm,
    "streaming_onnx": _load_streaming_onnx,
    "token_conformer": _load_reader_of_tokens,
    "token_mbart": _load_reader_of_tokens,
}
"""One for each of `FAMILIES`. Each imports its family when it is called, so that no command pays for the others."""


def _saver(family: Family) -> Callable[..., None]:
    """`save` of the package that a family's class is defined in."""
    package = type(family).__module__.removeprefix("sprachbund.models.").partition(".")[0]
    match package:
        case "conformer":
            from sprachbund.models.conformer.io import save as save_conformer

            return save_conformer
        case "whisper":
            from sprachbund.models.whisper.io import save as save_whisper

            return save_whisper
        case "seamless":
            from sprachbund.models.seamless.io import save as save_seamless

            return save_seamless
        case "speech_llm":
            from sprachbund.models.speech_llm.io import save as save_speech_llm

            return save_speech_llm
        case "tokens":
            from sprachbund.models.tokens.io import save as save_tokens

            return save_tokens
    raise SprachbundError(
        f"a model of the kind {package} cannot be written; save the model that it was made from"
    )


def load(path_or_id: str | Path = BUNDLED, *, offline: bool = False) -> Family:
    """Load a model for inference.

    Args:
        path_or_id: "bundled", a model directory, a name on the Hugging Face hub, or an alias such as "whisper-small".
        offline: never use the network, even for a name that is not on disk.

    Raises:
        SprachbundError: when there is no such model, or it is broken or of a family unknown here, or has a file that
            is named like a draft and is none.
    """
    directory = locate(path_or_id, offline=offline)
    family = LOADERS[family_of(directory)](directory)
    family.drafts = find_drafts(directory)
    return family


def locate(path_or_id: str | Path, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The directory that a name stands for, downloaded first if need be. Arguments and errors as for `load`.

    `progress` is told how far a download has come.
    """
    if str(path_or_id) == BUNDLED:
        return bundled_directory()
    return find(path_or_id, offline=offline, progress=progress)


def save(family: Family, directory: Path, **options: Any) -> None:
    """Save a model so that `load` finds it.

    Args:
        family: the model.
        directory: to be written.
        options: of the `save` of its family, such as `bits` and `card`.

    Raises:
        SprachbundError: a model that runs from exported graphs, or one that cannot be written there.
    """
    _saver(family)(family, directory, **options)

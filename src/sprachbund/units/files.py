"""Files of this room: hashes that name them, folders begun with one setting."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from sprachbund.errors import SprachbundError
from sprachbund.util.files import file_sha256, read_model, read_object, write_json

SETTINGS = "settings.json"
_MODEL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "pytorch_model*.bin",
    "*.index.json",
)

_Read = TypeVar("_Read", bound=BaseModel)


def files_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents, in the order of names."""
    digest = hashlib.sha256()
    for path in sorted(set(paths), key=lambda path: path.name):
        digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def encoder_hash(directory: Path) -> str:
    """SHA-256 over all of a model directory that decides its features."""
    return files_hash(path for pattern in _MODEL_FILES for path in directory.glob(pattern))


def corpus_hash(directory: Path) -> str:
    """SHA-256 over a corpus's cuts; they name every utterance, its place and its texts."""
    return files_hash(directory.glob("cuts.*.jsonl"))


def read_json(path: Path, kind: type[_Read], made_by: str) -> _Read:
    """A file that `write_json` wrote. Raises SprachbundError when it is not there or something else.

    Args:
        path: file.
        kind: pydantic model of its content.
        made_by: command that writes the file, for the error.
    """
    if not path.exists():
        raise SprachbundError(f"there is no {path}; make it with `{made_by}`")
    return read_model(path, kind, advice=f"make it again with `{made_by}`")


def begin(directory: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder, or see that it was begun with the same settings, so that two works never mix.

    Raises:
        SprachbundError: begun with others; the first that differs is named.
    """
    check_begun(directory, settings)
    write_json(directory / SETTINGS, _flat(settings))


def check_begun(directory: Path, settings: Mapping[str, Any]) -> None:
    """Raises SprachbundError when a folder was begun with other settings."""
    path = directory / SETTINGS
    advice = f"delete {directory}, and it is made anew, or name another --out"
    known = read_object(path, advice=advice) if path.exists() else None
    for name, value in _flat(settings).items():
        if known is not None and known.get(name) != value:
            raise SprachbundError(
                f"{directory} was begun with {name} {_shown(known.get(name))}, not {_shown(value)}; "
                "delete it or name another --out"
            )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in settings by their full names, as JSON holds them."""
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(settings)).items():
        inside = _flat(value) if isinstance(value, dict) else None
        flat.update({name: value} if inside is None else {f"{name}.{key}": v for key, v in inside.items()})
    return flat


def _shown(value: Any) -> str:
    """Hashes short."""
    return " ".join(map(_shown, value)) or "none" if isinstance(value, list) else str(value)[:12]

"""Folders of units that are being made, each begun with one setting."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.util.begun import refuse_others
from sprachbund.util.files import is_empty, read_object, write_json

SETTINGS = "settings.json"
PARTS = "parts"
"""Folder, in that of the result, of what is not finished; gone when the result is whole."""


def begin(directory: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder, or see that it was begun with the same settings, so that two works never mix.

    Raises:
        SprachbundError: begun with others; the first that differs is named.
    """
    check_begun(directory, settings)
    write_json(directory / SETTINGS, _flat(settings))


def check_begun(directory: Path, settings: Mapping[str, Any]) -> None:
    """Raises SprachbundError when a folder was begun with other settings, or holds what is not of this work."""
    path = directory / SETTINGS
    advice = f"delete {directory}, and it is made anew, or name another --out"
    if path.exists():
        known = read_object(path, advice=advice)
        refuse_others(directory, known, _flat(settings), advice="delete it or name another --out")
    elif directory.is_dir() and not is_empty(directory, but=(PARTS,)):
        raise SprachbundError(f"{directory} holds something else already; name another --out")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in settings by their full names, as JSON holds them."""
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(settings)).items():
        inside = _flat(value) if isinstance(value, dict) else None
        flat.update({name: value} if inside is None else {f"{name}.{key}": v for key, v in inside.items()})
    return flat

"""What a folder was begun with: a command goes on there with the same settings alone, so that two works never mix."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError

_SHA256 = re.compile(r"[0-9a-f]{64}")


def refuse_others(
    folder: Path, known: Mapping[str, Any], settings: Mapping[str, Any], *, advice: str
) -> None:
    """See that a folder was begun with these settings; of settings in a setting, none may be added or missing.

    Args:
        folder: folder that a command would go on in.
        known: what it was begun with; what `settings` do not name has no effect.
        settings: settings of now, as JSON holds them.
        advice: next step.

    Raises:
        SprachbundError: naming the first setting that differs, and its values.
    """
    for name, value in settings.items():
        if known.get(name) != value:
            where, before, now = _first_difference(name, known.get(name), value)
            values = f"{_shown(before)}, not {_shown(now)}"
            of_hashes = _is_hash(before) and _is_hash(now)  # which say nothing but that they differ
            said = f"another {where} (SHA-256 {values})" if of_hashes else f"{where} {values}"
            raise SprachbundError(f"{folder} was begun with {said}; {advice}")


def _first_difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        for part in (*now, *before):
            if before.get(part) != now.get(part):
                return _first_difference(f"{name}.{part}", before.get(part), now.get(part))
    return name, before, now


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return "none" if value is None else value[:12] if _is_hash(value) else str(value)


def _is_hash(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_hash, value))
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None

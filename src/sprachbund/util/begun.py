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
            raise SprachbundError(
                f"{folder} was begun with {where} {_shown(before)}, not {_shown(now)}; {advice}"
            )


def _first_difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        for part in (*now, *before):
            if before.get(part) != now.get(part):
                return _first_difference(f"{name}.{part}", before.get(part), now.get(part))
    return name, before, now


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return value[:12]
    return "none" if value is None else str(value)

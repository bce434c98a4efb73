"""What a folder of corpora was begun with, so that corpora never mix: every command that fills one asks here first."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.util.begun import refuse_others
from sprachbund.util.files import read_object, write_json

MADE = "made.json"
"""File with the settings that a folder of corpora was begun with."""
PREPARED_FROM = ".prepared-from"
"""What stood in its place in folders that earlier versions filled with recordings."""
_CORPUS = "corpus"


def _holds_shards(out: Path) -> bool:
    """Whether anything of a corpus, packed or not, is in a folder or below."""
    return out.exists() and any(any(out.rglob(f"cuts.*.jsonl{end}")) for end in ("", ".gz"))


def begin(
    out: Path,
    settings: Mapping[str, Any],
    *,
    known: Mapping[str, Any] | None = None,
    before: Mapping[str, Any] = MappingProxyType({}),
) -> bool:
    """Begin to fill a folder, or see that what it holds was begun with the same settings; whether it holds nothing yet.

    Args:
        out: folder of one or more corpora.
        settings: all that the corpora depend on; `corpus` is what they are called.
        known: what a folder without the file was begun with, by what earlier versions left there; None where they left
            nothing.
        before: settings that earlier versions had without writing them down; others are taken to be as they are now,
            but for `corpus`, which has to be known.

    Raises:
        SprachbundError: the folder holds something else; the first setting that differs is named.
    """
    path, wanted = out / MADE, json.loads(json.dumps(settings))
    if not _holds_shards(out):
        write_json(path, wanted)
        return True
    advice = "name a new folder"
    if path.exists():
        known = read_object(path, advice=advice)
    filled = {} if known is None else _filled(known, before)
    if _CORPUS not in filled:
        raise SprachbundError(f"{out} holds another corpus; {advice}")
    refuse_others(out, {**wanted, **filled}, wanted, advice=advice)
    if not path.exists():
        write_json(path, wanted)
    return False


def _filled(known: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What is known with what is missing; of settings in a setting, only where that is there."""
    filled = dict(known)
    for name, value in before.items():
        if not isinstance(value, dict):
            filled.setdefault(name, value)
        elif isinstance(known.get(name), dict):
            filled[name] = value | known[name]
    return filled

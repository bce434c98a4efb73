"""The file of a table: its rows, the options that it was made with, and where and with what."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.util import provenance
from sprachbund.util.files import read_object, write_json


def keep_table(path: Path, recipe: BaseModel, values: Mapping[str, Any]) -> Path:
    """Write a table beside the runs that it is made of.

    Args:
        path: the file, in the folder of the runs.
        recipe: options of the runs. Paths below the working folder are written relative to it, so that the file means
            something on another machine.
        values: the rows, and what else belongs to the table.
    """
    options = _relative(recipe.model_dump(mode="json"), f"{Path.cwd()}/")
    write_json(path, {**made_with(path.parent), "recipe": options, **values})
    return path


def made_with(runs: Path) -> dict[str, Any]:
    """The `machine` that the runs were scored on, or all `machines`; commit and versions of now.

    Args:
        runs: folder of the runs; where none of them has scores, the machine is this one. Scores of old versions name
            none.
    """
    files = sorted(runs.rglob(MANIFEST_FILE))
    named = (read_object(file).get("machine") for file in files) if files else [provenance.machine()]
    machines = [json.loads(text) for text in dict.fromkeys(json.dumps(one) for one in named if one)]
    scored = {"machine": machines[0]} if len(machines) == 1 else {"machines": machines}
    return {**scored, "commit": provenance.commit(), "versions": provenance.versions()}


def _relative(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {key: _relative(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [_relative(one, folder) for one in value]
    return value.removeprefix(folder) if isinstance(value, str) else value

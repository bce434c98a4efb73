"""What units and trainings cost: processor time, over all the times that they were taken up, and data on disk."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sprachbund.util.files import read_model, write_text

COST_FILE = "cost.json"


@contextmanager
def counted(folder: Path, stored_bytes: int) -> Iterator[None]:
    """Add this process's time inside to what was written down in a folder before.

    Args:
        folder: of what is made.
        stored_bytes: of the data that it is made of.
    """
    before = read_cost(folder)["cpu_s"] if (folder / COST_FILE).exists() else 0.0
    began = time.process_time()
    try:
        yield
    finally:
        cost = {"cpu_s": before + time.process_time() - began, "stored_bytes": stored_bytes}
        write_text(folder / COST_FILE, json.dumps(cost) + "\n")


class _Cost(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(allow_inf_nan=False)

    cpu_s: float = Field(ge=0)
    stored_bytes: float = Field(ge=0)


def read_cost(folder: Path) -> Mapping[str, float]:
    """`cpu_s` and `stored_bytes`."""
    advice = "delete it, and the work is counted from here on"
    found = read_model(folder / COST_FILE, _Cost, advice=advice)
    return {"cpu_s": found.cpu_s, "stored_bytes": found.stored_bytes}

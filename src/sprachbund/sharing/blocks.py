"""Finished vectors on disk, block by block: what makes a collection survive being killed or shared out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import load_arrays, write_arrays
from sprachbund.util.files import read_object, write_text

SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Block:
    """Vectors that are made together and kept in one file.

    Attributes:
        key: language or pair.
        vectors: their numbers.
        path: of the file, there when they are made.
    """

    key: str
    vectors: range
    path: Path

    @property
    def made(self) -> bool:
        """Whether it is finished."""
        return self.path.exists()

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays by name."""
        write_arrays(self.path, arrays)

    def read(self) -> dict[str, np.ndarray]:
        """The arrays. Raises SprachbundError when they are not there or broken."""
        if not self.made:
            raise SprachbundError(f"{self.path} is missing; run the command again, it goes on")
        return load_arrays(self.path, advice="delete it, and run the command again")


def divide(keys: Sequence[str], num_vectors: int, size: int, directory: Path) -> Iterator[Block]:
    """Blocks of at most `size` vectors, `num_vectors` for every key."""
    number = 0
    for key in keys:
        for start in range(0, num_vectors, size):
            vectors = range(start, min(start + size, num_vectors))
            yield Block(key=key, vectors=vectors, path=directory / f"block.{number:06d}.npz")
            number += 1


def begin(directory: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder, or see that it was begun with the same settings, so that two collections never mix.

    Raises:
        SprachbundError: begun with others; the first that differs is named.
    """
    path = directory / SETTINGS
    wanted = json.loads(json.dumps(settings))
    advice = f"delete {directory} or name another --out"
    known = read_object(path, advice=advice) if path.exists() else wanted
    for name, value in wanted.items():
        if known.get(name) != value:
            raise SprachbundError(
                f"{directory} was begun with {name} {known.get(name)}, not {value}; delete it or name another --out"
            )
    write_text(path, json.dumps(wanted, indent=1))

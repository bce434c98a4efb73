"""Files of NumPy arrays that appear whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sprachbund.util.files import atomic_path


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a file of one array (`.npy`) atomically."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.save(file, array)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Write a file of arrays by name (`.npz`) atomically."""
    save = np.savez_compressed if compressed else np.savez
    with atomic_path(path) as partial, partial.open("wb") as file:
        save(file, **arrays)  # type: ignore[arg-type]

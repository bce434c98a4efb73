"""Gradient sketches as a file, so that gradients of any framework can be analysed here.

One `.npz` whose arrays are named `module|language`, one row for each gradient vector, and perhaps one array
`info`, a JSON object in a string. `numpy.savez(path, **{"encoder.layers.3.ffn|de": vectors})` writes one.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.util.tensors import load_arrays, write_arrays

INFO = "info"
SEPARATOR = "|"
_UNIT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sketches:
    """Gradient vectors of modules, by language; only their directions count, so rows become unit vectors.

    Attributes:
        vectors: module to language to float32 (N, d): N vectors; d may differ between modules, N everywhere.
        info: settings that they were made with; may be empty.

    Raises:
        SprachbundError: when they cannot be compared; the message names the array as module|language.
    """

    vectors: Mapping[str, Mapping[str, np.ndarray]]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked = {
            module: {tag: _unit_rows(f"{module}{SEPARATOR}{tag}", array) for tag, array in arrays.items()}
            for module, arrays in self.vectors.items()
        }
        _check_together(checked)
        object.__setattr__(self, "vectors", checked)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names, numbers in them in the order of counting: layers.2 before layers.10."""
        return tuple(sorted(self.vectors, key=_counting))

    @property
    def languages(self) -> tuple[str, ...]:
        """Tags, or pairs as "de>fr", sorted; every module has the same."""
        return tuple(sorted({language for arrays in self.vectors.values() for language in arrays}))


def write_sketches(path: Path, sketches: Sketches) -> None:
    """Write the file; it appears whole or not at all."""
    arrays = {
        f"{module}{SEPARATOR}{language}": np.asarray(sketches.vectors[module][language], np.float32)
        for module in sketches.modules
        for language in sorted(sketches.vectors[module])
    }
    if sketches.info:
        arrays[INFO] = np.array(json.dumps(dict(sketches.info), ensure_ascii=False))
    write_arrays(path, arrays)


def read_sketches(path: Path) -> Sketches:
    """Read a file of gradient vectors, whoever wrote it.

    Raises:
        SprachbundError: when it is missing or no such file, or its arrays cannot be compared; the message names
            the array.
    """
    vectors: dict[str, dict[str, np.ndarray]] = {}
    info: dict[str, Any] = {}
    for name, array in _arrays(path):
        if name == INFO:
            info = _info(path, array)
            continue
        module, language = _parts(path, name)
        vectors.setdefault(module, {})[language] = array
    try:
        return Sketches(vectors=vectors, info=info)
    except SprachbundError as error:
        raise SprachbundError(f"{path}: {error}") from error


def _arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    if not path.is_file():
        raise SprachbundError(f"{path} is not a file; check the path, or write one with `share analyse`")
    if not zipfile.is_zipfile(path):
        raise SprachbundError(
            f"{path} is not an .npz file; name one with arrays called module|language, as numpy.savez writes"
        )
    yield from load_arrays(path, advice="write it as plain float32 numbers").items()


def _info(path: Path, array: np.ndarray) -> dict[str, Any]:
    try:
        info = json.loads(str(array.item()))
    except (ValueError, RecursionError) as error:
        raise SprachbundError(
            f"{path}: array 'info' must be one string that holds a JSON object ({error}); mend or leave it out"
        ) from error
    if not isinstance(info, dict):
        raise SprachbundError(f"{path}: array 'info' is not a JSON object but {info!r}; mend or leave it out")
    return info


def _parts(path: Path, name: str) -> tuple[str, str]:
    module, separator, language = name.rpartition(SEPARATOR)
    if not (module and separator and language):
        raise SprachbundError(
            f"{path}: array {name!r} is not named like module|language; "
            "rename it, as in encoder.layers.3.feed_forward|de"
        )
    return module, language


def _unit_rows(name: str, array: np.ndarray) -> np.ndarray:
    """The rows at unit length, as float32; rows that are so already stay as they are, bit for bit."""
    what = f"array {name!r}"
    if array.dtype.kind not in "fiu":
        raise SprachbundError(f"{what} holds {array.dtype}, not real numbers; write float32")
    if array.ndim != 2 or 0 in array.shape:
        raise SprachbundError(
            f"{what} has shape {array.shape}; it needs two axes, vectors by dimensions, neither empty"
        )
    rows = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise SprachbundError(
            f"{what} has values that are not finite in {_rows(bad)}; "
            "collect again without the batches whose loss overflows"
        )
    largest = np.abs(rows).max(1, keepdims=True)
    bad = np.flatnonzero(largest == 0)
    if len(bad):
        raise SprachbundError(
            f"{what} is all zeros in {_rows(bad)}; see that the module takes part in the loss and is not frozen"
        )
    rows /= largest  # squares of tiny gradients would vanish
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    is_unit = np.abs(norms * largest - 1) < _UNIT
    return np.where(is_unit, rows * largest, rows / norms).astype(np.float32)


def _rows(indices: np.ndarray) -> str:
    shown = ", ".join(str(index) for index in indices[:3])
    more = f" and {len(indices) - 3} more" if len(indices) > 3 else ""
    return f"row{'s' if len(indices) > 1 else ''} {shown}{more} (counted from 0)"


def _check_together(vectors: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """See that there are languages to compare in each module, the same ones, in vectors of one length."""
    if not vectors:
        raise SprachbundError("there are no arrays named module|language; write them with `share analyse`")
    everywhere = sorted({language for arrays in vectors.values() for language in arrays})
    for module, arrays in vectors.items():
        missing = [language for language in everywhere if language not in arrays]
        if missing:
            raise SprachbundError(
                f"module {module} has no vectors of {', '.join(missing)}, which other modules have; "
                "collect them, or leave these languages out everywhere"
            )
        lengths = {language: array.shape[1] for language, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{language} {length}" for language, length in sorted(lengths.items()))
            raise SprachbundError(
                f"vectors of module {module} differ in length ({listed}); "
                "project all languages with the same matrix"
            )
    if len(everywhere) < 2:
        raise SprachbundError(
            f"there is one language only, {everywhere[0]}; conflict needs two: collect gradients of another"
        )


def _counting(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]

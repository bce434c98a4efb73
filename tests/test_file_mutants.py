"""Damaged files of every kind that the package writes: read, or refused by one line, and nothing else.

All mutants are read by `python -m benchmarks.reliability.file_mutants`; here a fixed choice of them is.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_PATH = Path(__file__).parents[1] / "benchmarks" / "reliability" / "file_mutants.py"
_SLOW = {
    "recipe of dual_scale",
    "recipe of discrete_units",
    "recipe of gradient_sharing",
    "recipe of code_switch",
}
_PER_KIND = 12


def _harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("file_mutants", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["file_mutants"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


harness = _harness()


@pytest.mark.parametrize("name", [kind.name for kind in harness.KINDS if kind.name not in _SLOW])
def test_a_damaged_file_is_read_or_refused_by_one_line(name: str) -> None:
    kind = next(kind for kind in harness.KINDS if kind.name == name)
    result = harness.run_kind(kind, _PER_KIND)
    assert result.faults == []
    assert result.counts["refused"] or kind.form == "text"  # almost any line is a text


def test_the_harness_tells_faults(tmp_path: Path) -> None:
    def make(folder: Path) -> Path:
        (folder / "a.json").write_text('{"a": 12345678901}')
        return folder / "a.json"

    def read(path: Path) -> None:
        assert path.read_bytes(), "empty"

    result = harness.run_kind(harness.Kind(name="a", make=make, read=read, form="json"))
    assert [change for change, _ in result.faults] == ["empty"]
    assert result.counts["read"] == result.counts.total() - 1

"""Some mutants of every format; `python -m tests.fuzz.long --mutants 10000` reads more of them."""

from pathlib import Path

import pytest

from tests.audio.mutants import KINDS, mutants
from tests.engines.support import needs_native
from tests.fuzz.formats import FORMATS

_MUTANTS = 25
_ELSEWHERE = KINDS
"""Recordings, of which tests/audio/test_mutants.py reads a hundred each."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_native if name == "packed weights" else ())
        for name in FORMATS
        if name not in _ELSEWHERE
    ],
)
def test_mutants_are_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content = FORMATS[name].seed(tmp_path)
    with FORMATS[name].reader() as read:
        assert read(content) == "read"
        result = {read(mutant) for mutant in mutants(content, _MUTANTS, number=[*FORMATS].index(name))}
        assert result <= {"read", "refused"}
        assert read(content) == "read"  # what came before has left nothing behind

"""Damaged heads end in sound or in one line, here and in a confined child; benchmarks/reliability has the long form."""

import resource
from pathlib import Path

import pytest

from tests.audio.mutants import KINDS, mutants, outcome, seed


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_end_in_sound_or_in_one_line(tmp_path: Path, kind: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = seed(kind, tmp_path)
    assert outcome(content) == "read"
    result = [outcome(mutant) for mutant in mutants(content, 100, number=KINDS.index(kind))]
    assert set(result) <= {"read", "refused"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


@pytest.mark.parametrize("kind", ["wav", "caf-alac", "m4a"])
def test_a_confined_child_gives_the_same_end(tmp_path: Path, kind: str) -> None:
    for mutant in mutants(seed(kind, tmp_path), 20, number=KINDS.index(kind)):
        assert outcome(mutant, untrusted=True) == outcome(mutant)

"""Commands that are killed amid their writing and run again end as if nothing had been.

`python -m scripts.crash_points` kills more of them, at every point.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.cases import CASES
from tests.reliability.crash_points import CrashPoint, Machine, difference, explore, spread, tree, unflushed

needs_preloading = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None,
    reason="kills by a preloaded library: needs Linux and cc",
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with Machine(tmp_path_factory.mktemp("killed")) as machine:
        yield machine


@pytest.mark.slow
@needs_preloading
@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("data make", ("made.json", "train/audio.00000.wav", "test/dataset.json")),
        ("train", ("best.json", "transcript_tokenizer.model")),
    ],
)
def test_a_command_that_is_killed_and_run_again_leaves_the_same(
    machine: Machine, name: str, files: tuple[str, ...]
) -> None:
    """Killed amid the writing of files that others need, which were once written in place."""
    seen: set[str] = set()

    def chosen(point: CrashPoint) -> bool:
        """The first write of each of the files."""
        new = [file for file in files if point.amid and file in point.what and file not in seen]
        seen.update(new)
        return bool(new)

    result = explore(CASES[name], machine, points=chosen)
    assert result.faults == []
    assert result.kills == len(files)


def test_differences_are_reported(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "scores.json").write_text('{"took_s": 1, "score": 2}', encoding="utf-8")
    before = tree(tmp_path, {"*/scores.json": ["took_s"]})
    (tmp_path / "sub" / "scores.json").write_text('{"took_s": 3, "score": 2}', encoding="utf-8")
    assert difference(before, tree(tmp_path, {"*/scores.json": ["took_s"]})) is None
    assert difference(tree(tmp_path), before) == "sub/scores.json differs"
    (tmp_path / "a.json.host-1-2.partial").touch()
    assert difference(before, tree(tmp_path)) == "a.json.host-1-2.partial is left over"
    assert difference(before, {}) == "sub is missing"
    assert difference({}, before) == "sub is too much"


def test_a_name_that_is_given_before_the_content_is_on_the_disk_is_reported() -> None:
    log = ["1 create a.partial", "2 write a.partial", "0 fsync a.partial", "3 rename a.partial"]
    assert unflushed(log) == []
    assert unflushed([*log[:2], log[3]]) == ["a.partial"]


def test_points_are_spread_from_the_first_to_the_last() -> None:
    points = [CrashPoint(n, False, "write a") for n in range(10)]
    assert [point.number for point in spread(points, 4)] == [0, 3, 6, 9]
    assert spread(points, None) == points

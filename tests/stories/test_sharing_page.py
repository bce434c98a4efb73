"""docs/sharing.md shows what the commands print, and a plan file that is one."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sprachbund.models.sharing_plan import SharingPlan, Split
from tests.stories.support import command

PAGE = Path(__file__).parents[2] / "docs" / "sharing.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fenced(language: str) -> Iterator[str]:
    return (match[2] for match in FENCE.finditer(PAGE.read_text(encoding="utf-8")) if match[1] == language)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    exec(next(block for block in fenced("python") if "external.npz" in block), {})
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the numbers shown are those of one platform")
def test_what_is_shown_is_what_is_printed(here: Path) -> None:
    shown = list(fenced(""))
    for line in (line for block in fenced("console") for line in block.splitlines() if "external." in line):
        ran = command(*line.split()[2:])
        assert ran.code == 0, ran.err
        if "show" not in line and line.split()[-1] != "other.json":
            assert ran.out in shown, ran.out
        if line.endswith("report.html"):
            assert any(ran.out.startswith(block) for block in shown)


def test_the_plan_shown_is_one_and_every_key_is_reported(here: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    Path("plan.json").write_text(next(fenced("json")))
    split = SharingPlan.read(Path("plan.json")).splits[0]
    assert split.widths(512) == (256, (86, 85, 85))
    keys = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert set(Split.model_fields) <= keys

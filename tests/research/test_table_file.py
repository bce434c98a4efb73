"""Tables say what they were made with, and on which machines."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from sprachbund.errors import SprachbundError
from sprachbund.research.table_file import keep_table
from sprachbund.util import provenance


class Options(BaseModel):
    data: Path
    others: dict[str, list[Path]]
    seeds: list[int]


def scored(folder: Path, processor: str) -> None:
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"machine": {"processor": processor}}))


def kept(root: Path) -> dict[str, object]:
    options = Options(
        data=root / "corpus", others={"theirs": [root / "a" / "model", Path("/b")]}, seeds=[0, 1]
    )
    path = keep_table(root / "run" / "table.json", options, {"test": 7, "rows": [{"arm": "plain"}]})
    values: dict[str, object] = json.loads(path.read_text())
    return values


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_paths_below_the_working_folder_are_relative_to_it(root: Path) -> None:
    values = kept(root)
    assert values["recipe"] == {
        "data": "corpus",
        "others": {"theirs": ["a/model", "/b"]},
        "seeds": [0, 1],
    }
    assert (values["test"], values["rows"]) == (7, [{"arm": "plain"}])


def test_machines_are_those_of_the_scores(root: Path) -> None:
    assert kept(root)["machine"] == provenance.machine()
    scored(root / "run" / "seed-0" / "scores" / "dev", "one")
    scored(root / "run" / "seed-1" / "scores", "one")
    assert kept(root)["machine"] == {"processor": "one"}
    scored(root / "run" / "seed-2" / "scores", "two")
    (root / "run" / "seed-0" / "scores" / "scores.json").write_text('{"format": 1}')  # names none
    values = kept(root)
    assert values["machines"] == [{"processor": "one"}, {"processor": "two"}]
    assert "machine" not in values
    assert values["commit"] == provenance.commit()
    assert values["versions"] == provenance.versions()


def test_scores_that_are_damaged_are_named(root: Path) -> None:
    (root / "run" / "scores.json").write_text("[")
    with pytest.raises(SprachbundError, match=r"scores\.json"):
        kept(root)

"""Folders of corpora: new ones, those that are gone on with, those of earlier versions and those of others."""

import json
from pathlib import Path

import pytest

from sprachbund.data.begun import MADE, begin
from sprachbund.errors import SprachbundError

SETTINGS = {"corpus": "made up", "seed": 1, "augmentation": {"tone": 0.0, "noise": 0.5}}


def with_a_shard(out: Path) -> Path:
    (out / "train").mkdir(parents=True)
    (out / "train" / "cuts.00000.jsonl").touch()
    return out


def test_a_folder_without_a_shard_is_free(tmp_path: Path) -> None:
    out = tmp_path / "new"
    assert begin(out, SETTINGS)
    assert begin(out, {**SETTINGS, "seed": 2})
    assert json.loads((out / MADE).read_text())["seed"] == 2


def test_a_folder_goes_on_with_its_settings_alone(tmp_path: Path) -> None:
    begin(tmp_path, SETTINGS)
    with_a_shard(tmp_path)
    assert not begin(tmp_path, SETTINGS)
    for changed, said in ({"seed": 2}, "seed 1, not 2"), ({"corpus": "b"}, "corpus made up, not b"):
        with pytest.raises(SprachbundError, match=f"was begun with {said}; name a new folder"):
            begin(tmp_path, SETTINGS | changed)


def test_a_folder_that_nothing_is_known_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="holds another corpus; name a new folder"):
        begin(with_a_shard(tmp_path / "theirs"), SETTINGS)
    assert not (tmp_path / "theirs" / MADE).exists()


def test_a_packed_corpus_is_one_too(tmp_path: Path) -> None:
    """A corpus beside its index would never be read."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "cuts.000000.jsonl.gz").touch()
    with pytest.raises(SprachbundError, match="holds another corpus; name a new folder"):
        begin(tmp_path, SETTINGS)


def test_a_folder_that_does_not_say_what_it_holds_is_of_the_command_that_made_such_folders(
    tmp_path: Path,
) -> None:
    (with_a_shard(tmp_path) / MADE).write_text(json.dumps({"edition": "tiny"}))
    with pytest.raises(SprachbundError, match="holds another corpus; name a new folder"):
        begin(tmp_path, SETTINGS)
    assert not begin(tmp_path, SETTINGS, before={"corpus": "made up"})


def test_a_damaged_file_has_advice_that_leads_on(tmp_path: Path) -> None:
    (with_a_shard(tmp_path) / MADE).write_text("{")
    with pytest.raises(SprachbundError, match=r"made\.json is not JSON .*; name a new folder$"):
        begin(tmp_path, SETTINGS)


def test_a_folder_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Either with another file, or with fewer settings: of `seed` nothing is known, and tones were not made."""
    out = with_a_shard(tmp_path / "other")
    assert not begin(out, SETTINGS, known=SETTINGS)
    assert json.loads((out / MADE).read_text()) == SETTINGS
    out = with_a_shard(tmp_path / "fewer")
    (out / MADE).write_text(json.dumps({"corpus": "made up", "augmentation": {"noise": 0.5}}))
    assert not begin(out, SETTINGS, before={"augmentation": {"tone": 0.0}, "voices": []})
    with pytest.raises(SprachbundError, match=r"augmentation\.tone 0\.1, not 0\.0"):
        begin(out, SETTINGS, before={"augmentation": {"tone": 0.1}})

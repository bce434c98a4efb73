"""Atomic writing and reading with errors that name the place."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from sprachbund.errors import SprachbundError
from sprachbund.util import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError, match="half-way"), files.atomic_path(path) as partial:  # noqa: PT012
        partial.write_text("half", encoding="utf-8")
        raise RuntimeError("half-way")
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["index.json"]


def test_a_killed_writer_leaves_the_old_file_and_its_rest_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    files.write_text(path, "old\n")
    script = (
        "import os, signal, sys; from pathlib import Path; from sprachbund.util import files\n"
        "with files.atomic_path(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('new'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert path.read_text(encoding="utf-8") == "old\n"
    assert len(list(tmp_path.glob("best.json.*.partial"))) == 1
    files.write_text(path, "newer\n")
    assert path.read_text(encoding="utf-8") == "newer\n"
    assert [each.name for each in tmp_path.iterdir()] == ["best.json"]


def test_the_file_of_a_writer_that_still_runs_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    with files.atomic_path(path) as partial:
        partial.write_text("first", encoding="utf-8")
        files.write_text(path, "second")
        assert partial.exists()
    assert path.read_text(encoding="utf-8") == "first"


def test_content_is_flushed_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    files.write_text(tmp_path / "a", "text")
    assert calls == ["fsync", "replace", "fsync"]


class _Shape(BaseModel):
    width: int


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"width": 4', r"shape.json is not JSON \(column 12"),
        (b'{\n"width": }', r"shape.json is not JSON \(line 2, column 10"),
        (b'{"width": "\xff"}', r"shape.json, line 1: byte 0xff is not UTF-8"),
        (b'{"width": "wide"}', r"shape.json: width: Input should be a valid integer.*it is 'wide'"),
        (b"[]", r"shape.json: Input should be a valid dictionary"),
        (b"[" * 100_000, r"shape.json is not JSON"),
        (b'{"width": ' + b"9" * 5000 + b"}", r"shape.json is not JSON"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "shape.json"
    path.write_bytes(content)
    with pytest.raises(SprachbundError, match=message) as caught:
        files.read_model(path, _Shape, advice="export the model again")
    assert str(caught.value).endswith("export the model again")
    assert "\n" not in str(caught.value)


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    files.write_json(tmp_path / "shape.json", _Shape(width=3))
    assert files.read_model(tmp_path / "shape.json", _Shape).width == 3
    with pytest.raises(SprachbundError, match=r"missing.json does not exist"):
        files.read_json(tmp_path / "missing.json")
    files.write_json(tmp_path / "list.json", [1])
    with pytest.raises(SprachbundError, match=r"holds a list, not a JSON object"):
        files.read_object(tmp_path / "list.json")


def test_toml_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"a = \n")
    with pytest.raises(SprachbundError, match=r"recipe.toml is not TOML \(.*line 1.*mend the file"):
        files.read_toml(path)


def test_an_interrupted_translation_is_nobodys_leftover(tmp_path: Path) -> None:
    kept = tmp_path / "hour.fr.srt.partial"
    kept.write_text("1\n", encoding="utf-8")
    os.utime(kept, (0, 0))
    files.write_text(tmp_path / "hour", "text")
    files.write_text(tmp_path / "hour.fr", "text")
    assert kept.exists()


def test_a_leftover_of_a_process_that_had_this_ones_id_is_removed(tmp_path: Path) -> None:
    """As in a container that was killed and started again."""
    with files.atomic_path(tmp_path / "a.json") as partial:
        partial.write_text("in use", encoding="utf-8")
        leftover = partial.with_name(partial.name.replace(f"-{os.getpid()}-", f"-{os.getpid()}-99999"))
        leftover.write_text("half", encoding="utf-8")
        files.remove_stale(tmp_path / "a.json")
        assert [each.name for each in tmp_path.iterdir()] == [partial.name]


def _folder(path: Path) -> dict[str, str]:
    return {str(p.relative_to(path)): p.read_text(encoding="utf-8") for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two steps"])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_RENAME_EXCHANGE", 1 << 30)
    path = tmp_path / "model"
    for content in ({"config.json": "1", "part/old": "2"}, {"config.json": "3"}):
        with files.atomic_directory(path) as draft:
            for name, text in content.items():
                files.write_text(draft / name, text)
        assert _folder(path) == content
        assert [each.name for each in tmp_path.iterdir()] == ["model"]
    with pytest.raises(RuntimeError, match="stop"), files.atomic_directory(path) as draft:  # noqa: PT012
        files.write_text(draft / "config.json", "4")
        raise RuntimeError("stop")
    assert _folder(path) == {"config.json": "3"}
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_files_are_moved_into_a_folder_with_the_last_one_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("stays", encoding="utf-8")
    moved: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b))[1])
    with files.atomic_files(tmp_path, last="a.safetensors") as draft:
        for name in ("a.safetensors", "config.json", "sub/z.json"):
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_text(name, encoding="utf-8")
    assert moved[-1] == "a.safetensors"
    names = {"a.safetensors", "config.json", "sub/z.json"}
    assert _folder(tmp_path) == {"mine": "stays"} | {name: name for name in names}


def test_a_folder_with_leftovers_alone_is_empty(tmp_path: Path) -> None:
    (tmp_path / "settings.json.host-12-0.partial").touch()
    assert files.is_empty(tmp_path)
    (tmp_path / "talk.srt.partial").touch()  # the finished part of an interrupted translation
    assert not files.is_empty(tmp_path)


def test_an_error_names_what_was_to_be_written(tmp_path: Path) -> None:
    """A full disk tells no name, and other errors tell the temporary one, which nobody knows."""
    with pytest.raises(OSError, match="No space") as full, files.atomic_path(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(tmp_path / "a.json")
    with (
        pytest.raises(OSError, match="No such file") as wrong,
        files.atomic_directory(tmp_path / "b") as draft,
    ):
        (draft / "none" / "a.json").write_text("x")
    assert wrong.value.filename == str(tmp_path / "b" / "none" / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_a_hash_of_files_does_not_depend_on_where_those_of_one_name_are(tmp_path: Path) -> None:
    """Sets are in another order in every process, so files of one name were, too, and the hash with them."""

    def written(root: Path, contents: Sequence[int]) -> list[Path]:
        paths = [root / f"{number}" / "texts.txt" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.parent.mkdir(parents=True)
            path.write_text(str(content))
        return paths

    forwards = written(tmp_path / "forwards", range(8))
    assert files.files_sha256(forwards) == files.files_sha256(written(tmp_path / "back", range(7, -1, -1)))
    assert files.files_sha256(forwards[1:]) != files.files_sha256(forwards[:-1])

"""The cache of packed weights: under what a model is, found again, and not growing for ever."""

import errno
import json
import os
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sprachbund.engines import packed_cache
from sprachbund.engines.packed_cache import (
    VERSION,
    CheckedFile,
    Packed,
    check_packed,
    content_hash,
    fingerprint,
    packed_for,
    read_packed,
    tidy,
)
from sprachbund.util import known_files
from tests.engines.test_packed_file import example


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "config.json").write_text("{}")
    return directory


class Packer:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Packed:
        self.calls += 1
        return example("memory")


def test_a_model_is_packed_once_and_again_when_it_changes(model: Path, tmp_path: Path) -> None:
    packer, cache = Packer(), tmp_path / "cache"
    for _ in range(3):
        packed, notes = packed_for(model, packer, cache)
        assert notes == ()
        assert torch.equal(packed.arrays["decoder.values"], example().arrays["decoder.values"])
    assert packer.calls == 1
    (model / "model.safetensors").write_bytes(b"other weights")
    packed_for(model, packer, cache)
    assert packer.calls == 2


def _fill(path: Path, content: bytes, how: str) -> None:
    """Another content of the same size under the same time, as rsync -t, tar and container images leave it."""
    if how == "replaced":
        new = path.with_suffix(".new")
        new.write_bytes(content)
        os.replace(new, path)
    else:
        path.write_bytes(content)
    os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.mark.parametrize("how", ["replaced", "written over"])
@pytest.mark.parametrize("resolution_ns", [0, known_files.RESOLUTION_NS], ids=["settled", "just written"])
def test_a_model_of_the_same_size_and_time_is_another_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, resolution_ns: int
) -> None:
    monkeypatch.setattr(known_files, "RESOLUTION_NS", resolution_ns)
    weights, cache, packer = model / "model.safetensors", tmp_path / "cache", Packer()
    seen = []
    for content in (b"weights", b"WEIGHTS"):
        _fill(weights, content, how)
        if resolution_ns == 0:
            time.sleep(0.03)  # longer than a tick of the file system's clock
        seen.append(fingerprint(model, cache))
        packed_for(model, packer, cache)
    assert seen[0] != seen[1]
    assert packer.calls == 2
    assert len(list(cache.glob("*.sbpacked"))) == 2


def test_files_are_read_once_when_they_have_settled(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was written a moment ago may be written to again under the same time."""
    reads: list[object] = []
    monkeypatch.setattr(
        packed_cache, "content_hash", lambda files: (reads.append(files), content_hash(files))[1]
    )
    cache = tmp_path / "cache"
    for _ in range(2):
        fingerprint(model, cache)
    assert len(reads) == 2
    now = time.time_ns()
    monkeypatch.setattr(known_files.time, "time_ns", lambda: now + 3 * 10**9)
    for _ in range(2):
        fingerprint(model, cache)
    assert len(reads) == 3


def test_threads_that_load_one_model_pack_it_once(model: Path, tmp_path: Path) -> None:
    start, calls = threading.Barrier(6), list[int]()

    def load(number: int) -> tuple[str, ...]:
        def pack() -> Packed:
            calls.append(number)
            time.sleep(0.05)
            return example("memory")

        start.wait(20)
        return packed_for(model, pack, tmp_path / "cache")[1]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(load, range(6))) == [()] * 6
    assert len(calls) == 1


@pytest.mark.parametrize("when", ["before it is read", "after it was written"])
def test_a_file_that_another_process_tidied_away_is_no_fault(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    packer, cache, reads = Packer(), tmp_path / "cache", list[Path]()
    if when == "before it is read":
        packed_for(model, packer, cache)

    def read_too_late(path: Path, *args: str, **more: bool) -> Packed:
        reads.append(path)
        if len(reads) == 1:
            path.unlink()
        return read_packed(path, *args)

    monkeypatch.setattr("sprachbund.engines.packed_cache.read_packed", read_too_late)
    packed, notes = packed_for(model, packer, cache)
    assert notes == ()
    assert torch.equal(packed.arrays["decoder.values"], example().arrays["decoder.values"])


def test_the_hash_is_of_the_content(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = fingerprint(model, cache)
    twin = tmp_path / "twin"
    twin.mkdir()
    for file in model.iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    assert fingerprint(twin, cache) == first
    (twin / "config.json").write_text('{"width": 4}')
    assert fingerprint(twin, cache) != first


@pytest.mark.parametrize("inside", [True, False])
def test_parts_of_a_speech_llm_belong_to_it(tmp_path: Path, inside: bool) -> None:
    directory, cache = tmp_path / "model", tmp_path / "cache"
    llm = directory / "llm" if inside else tmp_path / "qwen"
    llm.mkdir(parents=True)
    directory.mkdir(exist_ok=True)
    (directory / "model.safetensors").write_bytes(b"projector")
    named = {"family": "speech_llm", "encoder": {"kind": "whisper"}, "llm": None if inside else str(llm)}
    (directory / "config.json").write_text(json.dumps(named))
    seen = set()
    for content in (b"one", b"two"):
        (llm / "model.safetensors").write_bytes(content)
        seen.add(fingerprint(directory, cache))
        assert fingerprint(directory, cache) in seen
    assert len(seen) == 2


def safetensors(path: Path, tensors: dict[str, bytes], **metadata: str) -> None:
    """A file of vectors of bytes, in the order given."""
    head: dict[str, object] = {"__metadata__": metadata}
    place = 0
    for name, content in tensors.items():
        head[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [place, place + len(content)]}
        place += len(content)
    raw = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(tensors.values()))


def test_equal_models_are_equal_however_their_files_were_written(tmp_path: Path) -> None:
    one, two = tmp_path / "model.safetensors", tmp_path / "other" / "model.safetensors"
    two.parent.mkdir()
    safetensors(one, {"a": b"123", "b": b"45"}, bits="8", format="pt")
    safetensors(two, {"b": b"45", "a": b"123"}, format="pt", bits="8")
    assert one.read_bytes() != two.read_bytes()
    assert content_hash([one]) == content_hash([two])
    for tensors in ({"a": b"124", "b": b"45"}, {"a": b"12", "b": b"345"}, {"b": b"123", "a": b"45"}):
        safetensors(two, tensors, format="pt", bits="8")
        assert content_hash([one]) != content_hash([two])
    safetensors(two, {"a": b"123", "b": b"45"}, bits="16", format="pt")
    assert content_hash([one]) != content_hash([two])
    (tmp_path / "config.json").write_text('{"width": 4, "heads": 2}')
    (two.parent / "config.json").write_text('{ "heads":2,\n"width":4}')
    assert content_hash([tmp_path / "config.json"]) == content_hash([two.parent / "config.json"])


def test_damaged_weights_have_a_hash_too(tmp_path: Path) -> None:
    """Loading says what is wrong with them; hashing must not be in its way."""
    path = tmp_path / "model.safetensors"
    safetensors(path, {"a": b"123", "b": b"45"})
    whole, seen = path.read_bytes(), set()
    for content in (
        whole,
        whole[:-1],
        whole[:20],
        b"",
        b"\xff" * 30,
        struct.pack("<Q", 2) + b"[]",
        whole + b".",
    ):
        path.write_bytes(content)
        seen.add(content_hash([path]))
    assert len(seen) == 6  # what follows after the last tensor is no part of the model


def test_other_versions_of_a_model_are_deleted_and_those_of_others_stay(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = fingerprint(model, cache)
    other, older = cache / f"{'0' * 32}-1.sbpacked", cache / f"{source[:32]}-1.sbpacked"
    forgotten = cache / f"{'1' * 32}-1.sbpacked"
    cache.mkdir()
    abandoned, being_written = cache / "x.1.partial", cache / "y.2.partial"
    for path in (other, older, forgotten, abandoned, being_written):
        path.write_bytes(b"something")
    for path in (forgotten, abandoned):
        os.utime(path, (0, 0))
    packer = Packer()
    assert packed_for(model, packer, cache)[1] == ()
    assert packer.calls == 1  # the older one is not taken for this version's
    assert not older.exists()
    assert not forgotten.exists()
    assert not abandoned.exists()
    assert other.exists()
    assert being_written.exists()
    assert packed_for(model, packer, cache)[1] == ()
    assert packer.calls == 1


def test_a_file_of_an_older_version_is_packed_again_and_said_so(model: Path, tmp_path: Path) -> None:
    packer, cache = Packer(), tmp_path / "cache"
    packed_for(model, packer, cache)
    (path,) = cache.glob("*.sbpacked")
    content = path.read_bytes()
    path.write_bytes(content[:8] + struct.pack("<I", VERSION - 1) + content[12:])
    _, (note,) = packed_for(model, packer, cache)
    assert f"version {VERSION - 1}, this is version {VERSION}" in note
    assert packer.calls == 2


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:032d}-{VERSION}.sbpacked" for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes(10))
        os.utime(path, (i, i))
    tidy(tmp_path, paths[0], limit_bytes=30)
    assert [path.exists() for path in paths] == [True, False, False, True, True]
    tidy(tmp_path, paths[0], limit_bytes=0)
    assert [path.exists() for path in paths] == [True, False, False, False, False]


def test_using_a_file_counts_as_its_last_use(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    packed_for(model, Packer(), cache)
    (path,) = cache.glob("*.sbpacked")
    os.utime(path, (0, 0))
    packed_for(model, Packer(), cache)
    assert path.stat().st_mtime > 0


def test_a_damaged_file_is_packed_again_and_said_so(model: Path, tmp_path: Path) -> None:
    packer, cache = Packer(), tmp_path / "cache"
    packed_for(model, packer, cache)
    (path,) = cache.glob("*.sbpacked")
    path.write_bytes(path.read_bytes()[:-1])
    _, notes = packed_for(model, packer, cache)
    assert packer.calls == 2
    assert len(notes) == 1
    assert "packed again" in notes[0]
    assert packed_for(model, packer, cache)[1] == ()


def test_without_a_place_to_write_packing_goes_on_in_memory(model: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    packed, notes = packed_for(model, Packer(), blocked)
    assert packed.arrays.keys() == example().arrays.keys()
    assert "could not be kept" in notes[0]


def test_arrays_that_changed_on_the_disk_are_noticed_on_request(model: Path, tmp_path: Path) -> None:
    packer, cache = Packer(), tmp_path / "cache"
    assert check_packed(model, cache) == []
    packed_for(model, packer, cache)
    (path,) = cache.glob("*.sbpacked")
    assert check_packed(model, cache) == [CheckedFile(path=path, weights="int8", error=None)]
    content = path.read_bytes()
    path.write_bytes(content[:-70] + b"?" + content[-69:])
    assert packed_for(model, packer, cache)[1] == ()  # a start reads the head alone
    (damaged,) = check_packed(model, cache)
    assert "checksum of its arrays differs" in str(damaged.error)
    assert damaged.rebuilt_by("my model") == (
        f"rm {path} && sprachbund bench --model 'my model' --engine native --repeats 1"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_cache_is_said_and_leaves_nothing_behind(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    cache = tmp_path / "cache"

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("sprachbund.util.files.os.fsync", refuse)
    packed, notes = packed_for(model, Packer(), cache)
    assert packed.arrays.keys() == example().arrays.keys()
    assert os.strerror(number) in notes[0]
    assert "each start will pack them again" in notes[0]
    assert list(cache.iterdir()) == []


def test_the_cache_is_where_the_user_says_or_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert packed_cache.default_cache() == tmp_path / ".cache" / "sprachbund" / "packed"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert packed_cache.default_cache() == tmp_path / ".cache" / "sprachbund" / "packed"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert packed_cache.default_cache() == tmp_path / "elsewhere" / "sprachbund" / "packed"


def test_a_user_without_a_home_has_a_folder_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert packed_cache.default_cache() == Path("/nonexistent/.cache/sprachbund/packed")
    assert not Path("/nonexistent").exists()

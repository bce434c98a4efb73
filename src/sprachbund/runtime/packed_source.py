"""What a model is, as one hash: its tensors, configuration and plan, however the files that hold them were written."""

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_LENGTH = struct.Struct("<Q")
_CHUNK = 2**22


def content_hash(files: Iterable[Path]) -> str:
    """SHA-256 of files of weights and configuration under their names.

    Of safetensors it is the metadata and the tensors by name, of JSON the values, so that neither order nor layout
    matters; of anything else, and of what is damaged, the bytes.
    """
    total = hashlib.sha256()
    for path in files:
        total.update(path.name.encode() + _of_file(path))
    return total.hexdigest()


def _of_file(path: Path) -> bytes:
    try:
        if path.suffix == ".safetensors":
            return _of_tensors(path)
        if path.suffix == ".json":
            return hashlib.sha256(_canonical(json.loads(path.read_bytes()))).digest()
    except (ValueError, KeyError, TypeError, struct.error):
        pass  # whoever loads the model says what is wrong with it
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _of_tensors(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > path.stat().st_size:
            raise ValueError("its head is longer than the file")
        head = json.loads(file.read(length))
        digest.update(_canonical(head.pop("__metadata__", {})))
        for name, tensor in sorted(head.items()):
            begin, end = tensor.pop("data_offsets")
            digest.update(_canonical([name, tensor, end - begin]))
            _add(digest, file, _LENGTH.size + length + begin, end - begin)
    return digest.digest()


def _add(digest: "hashlib._Hash", file: BinaryIO, place: int, size: int) -> None:
    file.seek(place)
    while size > 0:
        piece = file.read(min(size, _CHUNK))
        if not piece:
            raise ValueError("it is cut short")
        digest.update(piece)
        size -= len(piece)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()

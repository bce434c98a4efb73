"""NeMo's `.nemo` files: a tar of a configuration, weights and tokenizers (https://github.com/NVIDIA/NeMo).

The configuration is read as plain YAML and the weights as plain tensors; a file that asks for anything to be run is
refused. Weights of an archive that is not compressed are read from it one after the other, so that it is never in
memory as a whole.
"""

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError, unreadable

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_MOST_BYTES = 2**28
"""Most bytes of a member other than the weights; the largest tokenizers have a few megabytes."""


@dataclass(frozen=True, kw_only=True)
class NemoArchive:
    """An archive whose small files were read.

    Attributes:
        path: path of the archive.
        config: content of its `model_config.yaml`.
        members: other files by name without folders, the weights left out.
    """

    path: Path
    config: Mapping[str, Any]
    members: Mapping[str, bytes]

    @property
    def source(self) -> str:
        """The archive, for errors."""
        return str(self.path)

    def value(self, *keys: str) -> Any:
        """A field of the configuration. Raises SprachbundError where it is missing.

        Args:
            keys: names of the sections and of the field.
        """
        value: Any = self.config
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                raise SprachbundError(
                    f"{self.source}: {CONFIG} lacks {'.'.join(keys)}; it is of another kind of model"
                )
            value = value[key]
        return value

    def optional(self, *keys: str) -> Any:
        """A field of the configuration; None where it is missing.

        Args:
            keys: names of the sections and of the field.
        """
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def check(
        self,
        supported: Mapping[tuple[str, ...], Sequence[Any]],
        defaults: Mapping[tuple[str, ...], Any] | None = None,
    ) -> None:
        """Check that fields have values that are supported.

        Args:
            supported: fields, and the values that each may have.
            defaults: values of fields that may be missing.

        Raises:
            SprachbundError: the first field whose value is another one.
        """
        for keys, values in supported.items():
            value = self.optional(*keys)
            if value is None:
                value = defaults[keys] if defaults and keys in defaults else self.value(*keys)
            if value not in values:
                raise SprachbundError(
                    f"{self.source}: {'.'.join(keys)} is {value!r}; only {values[0]!r} can be read"
                )

    def file(self, named: Any) -> bytes:
        """A file that the configuration names, such as `nemo:0a1b_tokenizer.model`.

        Raises:
            SprachbundError: the archive has no such file.
        """
        name = Path(str(named).removeprefix("nemo:")).name
        if name not in self.members:
            raise SprachbundError(f"{self.source} has no {name}, its tokenizer; copy it again")
        return self.members[name]

    def tensors(self) -> dict[str, Tensor]:
        """The weights under NeMo's names. Raises SprachbundError for anything but plain tensors."""
        with _opened(self.path) as archive:
            (member,) = (one for one in archive if Path(one.name).name == WEIGHTS and one.isfile())
            file = archive.extractfile(member)
            assert file is not None  # of a regular file there is one
            plain = isinstance(archive.fileobj, io.BufferedReader)
            try:
                # A compressed archive cannot be read back and forth.
                content: Any = file if plain else io.BytesIO(file.read())
                tensors = torch.load(content, map_location="cpu", weights_only=True)
            except _BROKEN as error:
                raise _not_whole(self.path) from error
            except Exception as error:  # what damaged pickles raise has no common base
                raise unreadable(f"{self.source}: {WEIGHTS}", error, "copy it again") from error
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise SprachbundError(
                f"{self.source}: {WEIGHTS} holds something else than weights; copy it again"
            )
        return tensors


_BROKEN = (tarfile.TarError, EOFError, OSError)


def open_archive(path: Path) -> NemoArchive:
    """Read the small files of an archive.

    Raises:
        SprachbundError: no such file, not a whole archive, or without weights or a configuration.
    """
    members: dict[str, bytes] = {}
    has_weights = False
    try:
        with _opened(path) as archive:
            for member in archive:
                name, file = Path(member.name).name, archive.extractfile(member) if member.isfile() else None
                if name == WEIGHTS:
                    has_weights = file is not None
                elif file is not None and member.size <= _MOST_BYTES:
                    members[name] = file.read()
    except FileNotFoundError:
        raise SprachbundError(f"there is no file {path}; check the path") from None
    except _BROKEN as error:
        raise _not_whole(path) from error
    for name, there in ((CONFIG, CONFIG in members), (WEIGHTS, has_weights)):
        if not there:
            raise SprachbundError(f"{path} has no {name}, so it is no .nemo file of a model; copy it again")
    return NemoArchive(path=path, config=_configuration(members.pop(CONFIG), str(path)), members=members)


def _not_whole(path: Path) -> SprachbundError:
    return SprachbundError(f"{path} is not a whole .nemo archive; copy it again")


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except tarfile.ReadError:
        return tarfile.open(path, "r:*")


def _configuration(content: bytes, source: str) -> Mapping[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SprachbundError(f"{source}: {CONFIG} is not YAML; copy it again") from error
    if not isinstance(config, Mapping):
        raise SprachbundError(f"{source}: {CONFIG} holds no configuration; copy it again")
    return config

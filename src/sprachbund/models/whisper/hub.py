"""Where a model named by the user is: a directory, or the Hugging Face hub if the network may be used."""

import os
import re
from pathlib import Path

from sprachbund.errors import SprachbundError

_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# Other formats of the same weights lie beside these on the hub; they would double the download.
_DESCRIPTIONS = ["*.json", "merges.txt", "sentencepiece.bpe.model"]
_SAFETENSORS = ["model.safetensors", "model-*-of-*.safetensors"]
_PICKLED = ["pytorch_model.bin", "pytorch_model-*-of-*.bin"]


def find(path_or_id: str | os.PathLike[str], *, offline: bool) -> Path:
    """The directory of a model, downloaded first when `path_or_id` names one on the hub.

    Offline, a model that was downloaded before is still found.

    Raises:
        SprachbundError: no such directory, or the model cannot be had from the hub.
    """
    path = Path(path_or_id)
    # Unlike pathlib's, these raise nothing for names that are too long or lie where nobody may look.
    if os.path.isdir(path):
        return path
    name = str(path_or_id)
    if path.suffix == ".nemo" and os.path.exists(path):
        raise SprachbundError(
            f"{name} is a NeMo file; run: sprachbund convert {name} --out DIR --language TAG"
        )
    if os.path.exists(path):
        raise SprachbundError(f"{name} is a file; give the directory it is in")
    if not _ID.fullmatch(name):
        raise SprachbundError(f"there is no directory {name}; check the path")
    directory = _download(name, _DESCRIPTIONS + _SAFETENSORS, offline=offline)
    if not any(directory.glob("model*.safetensors")):
        directory = _download(name, _DESCRIPTIONS + _PICKLED, offline=offline)
    return directory


def _download(name: str, patterns: list[str], *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        why = "offline, and it was not downloaded before" if offline else "the hub cannot be reached"
        raise SprachbundError(
            f"{name} is not a directory here ({why}); give a directory on this disk"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SprachbundError(
            f"{name} is neither a directory nor to be had from the hub ({reason})"
        ) from error

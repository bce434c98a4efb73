"""Provenance of a measurement: hashes of data and model, machine, versions of libraries, commit."""

import hashlib
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.util.files import PARTIAL, file_sha256
from sprachbund.util.memory import installed_memory
from sprachbund.util.processor import processor_name, usable_cores

LIBRARIES = (
    "sprachbund",
    "torch",
    "numpy",
    "sacrebleu",
    "jiwer",
    "transformers",
    "sentencepiece",
    "onnxruntime",
    "py3langid",
)
_BLOCK = 1 << 20
COMPRESSION_FILE = "compression.json"
"""Report of a compression, in the directory of the smaller model."""
_NOT_MODEL = {"card.json", "README.md", COMPRESSION_FILE}
"""Descriptions of a model; scores are written to them without changing the model."""


def data_hash(directory: Path) -> str:
    """SHA-256 over the names and bytes of a corpus's cuts and sound; not of what is said about it.

    Of tar shards, it is that of the index, which has the checksum of every shard.
    """
    if (index := directory / "index.json").is_file():
        return file_sha256(index)
    files = [*directory.glob("cuts.*.jsonl"), *directory.glob("audio.*.wav")]
    if not files:
        raise SprachbundError(f"{directory} holds no cuts.*.jsonl, so it is not a corpus; check the path")
    return hash_files(files)


def model_hash(directory: Path) -> str:
    """SHA-256 over the names and bytes of the files of a model directory, without its card and reports.

    Whether it is the directory of a model is for the caller to check (`sprachbund.models.io.family_of`).
    """
    names = (path for path in directory.iterdir() if path.name not in _NOT_MODEL)
    files = [path for path in names if path.is_file() and not path.name.endswith(PARTIAL)]
    return hash_files(files)


def hash_files(files: Iterable[Path]) -> str:
    """SHA-256 over names and bytes, in the order of names."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def commit() -> str | None:
    """Commit of the source tree this package runs from, with "+changes" when files differ from it; None elsewhere."""
    here = Path(__file__).parent
    try:
        # Where it is installed below another project, in an environment there, the commit would be that project's.
        _git(here, "ls-files", "--error-unmatch", "--", Path(__file__).name)
        head = _git(here, "rev-parse", "HEAD")
        changes = _git(here, "status", "--porcelain", "--untracked-files=no", "--", str(here.parent))
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+changes" if changes else head


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict[str, str | int]:
    """Processor, cores that may be used, memory and system."""
    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "memory_gb": round(installed_memory() / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(libraries: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Versions of Python and of libraries that are installed; by default of all that can move a number."""
    installed = {"python": platform.python_version()}
    for library in libraries:
        try:
            installed[library] = version(library)
        except PackageNotFoundError:
            continue
    return installed

"""Models of the Hugging Face hub, downloaded into its library's cache; a download that was killed goes on later.

huggingface_hub takes a broken connection up again where it broke, but a process that ends takes its part of a file
with it: from version 2 on, such files have random names and are deleted. Weights are nearly all of a model, so they are
fetched first: with the library's own request for a range of bytes, into the file that versions before 2 would
continue, `blobs/SHA256.incomplete`. It takes its final name in the cache when its SHA-256 is that of the hub. The
library then fetches the small files, finds the weights there, and links both into a snapshot.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError, first_line
from sprachbund.util.files import file_sha256, take_name

DownloadProgress = Callable[[float, float | None], None]
"""Called with the bytes that are there, and with all of them where that is known."""
_SHA256 = re.compile("[0-9a-f]{64}")
_MOST_BYTES = 50 * 10**9
"""The hub sends larger files in its own protocol alone, which the library speaks."""


def download(name: str, patterns: list[str], *, offline: bool, progress: DownloadProgress | None) -> Path:
    """The directory of a model's files, which are downloaded unless they are in the cache.

    Args:
        name: on the hub.
        patterns: patterns of the files wanted.
        offline: look into the cache alone.
        progress: called with how far a download has come; without it, the hub's own library shows that.

    Raises:
        SprachbundError: the model cannot be had, or the download broke off.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with _quiet_hub():
            return _download(name, patterns, offline=offline, progress=progress)
    except SprachbundError:
        raise
    except LocalEntryNotFoundError as error:
        if offline:
            state = "it was downloaded in part only" if _begun(name) else "it was not downloaded before"
            why = f"offline, and {state}"
            advice = f"run `sprachbund models download {name}` where there is a network"
        else:
            why, advice = "the hub cannot be reached", "check the network"
        raise SprachbundError(
            f"{name} is not a directory here ({why}); {advice}, or give a directory on this disk"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise SprachbundError(
            f"{name} is neither a directory nor to be had from the hub ({first_line(error)})"
        ) from error
    except Exception as error:
        # A broken connection raises an error of the HTTP library below, and which one that is depends on the version.
        raise SprachbundError(
            f"the download of {name} was broken off ({first_line(error)}); the same command fetches what is missing"
        ) from error


def _download(name: str, patterns: list[str], *, offline: bool, progress: DownloadProgress | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options: dict[str, Any] = {"local_files_only": offline}
    unlisted: Exception | None = None
    if not offline:
        try:
            listed = HfApi().model_info(name, files_metadata=True)
        except HFValidationError:
            raise
        except Exception as error:
            # The cache may have the model. The library would ask once more, which takes two minutes in some networks.
            unlisted = error
            options["local_files_only"] = True
        else:
            num_bytes = _download_weights(_missing_weights(name, listed, patterns), progress)
            if progress is not None:
                options["tqdm_class"] = _follower(progress, before=num_bytes)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **options))
    except LocalEntryNotFoundError:
        if isinstance(unlisted, HfHubHTTPError):
            raise unlisted from None
        raise


def published_files(name: str) -> list[str]:
    """Names of all files of a model on the hub; none where the hub cannot be reached, for a copy may be here."""
    from huggingface_hub import HfApi

    try:
        with _quiet_hub():
            return [file.rfilename for file in HfApi().model_info(name).siblings or ()]
    except Exception:  # which one that is depends on the version of the HTTP library below
        return []


@dataclass(frozen=True)
class _Weights:
    """A large file of a model, which the cache lacks."""

    name: str
    commit: str
    file: str
    sha256: str
    num_bytes: int

    @property
    def path(self) -> Path:
        """Path of the whole file in the cache. https://huggingface.co/docs/huggingface_hub/guides/manage-cache"""
        return _cached(self.name) / "blobs" / self.sha256

    @property
    def partial(self) -> Path:
        """Path of the part that was downloaded so far."""
        return self.path.with_name(f"{self.sha256}.incomplete")


def _missing_weights(name: str, listed: Any, patterns: list[str]) -> list[_Weights]:
    """The large files of huggingface_hub's `ModelInfo` that match and are not in the cache."""
    from huggingface_hub import try_to_load_from_cache

    return [
        _Weights(name, listed.sha, file.rfilename, file.lfs.sha256, file.lfs.size)
        for file in listed.siblings or ()
        if file.lfs is not None
        and _SHA256.fullmatch(file.lfs.sha256)
        and file.lfs.size <= _MOST_BYTES
        and any(fnmatch(file.rfilename, pattern) for pattern in patterns)
        and not isinstance(try_to_load_from_cache(name, file.rfilename, revision=listed.sha), str)
    ]


def _download_weights(missing: list[_Weights], progress: DownloadProgress | None) -> int:
    """Fetch large files one after the other, each from where it broke off; returns the bytes of all."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    total = sum(weights.num_bytes for weights in missing)
    before = 0
    for weights in missing:
        # The library's own lock of the file: another process with the same download waits.
        lock = Path(HF_HUB_CACHE, ".locks", _cached(weights.name).name, f"{weights.sha256}.lock")
        for path in (lock, weights.path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not weights.path.exists():
                _continue(weights, progress, before=before, total=total)
        before += weights.num_bytes
    return total


def _continue(weights: _Weights, progress: DownloadProgress | None, *, before: int, total: int) -> None:
    """Fetch what a partial file lacks. Raises SprachbundError when the whole file is not the one of the hub."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    # The partial file stays when the network fails: the next download goes on where it ends.
    with weights.partial.open("ab") as file:
        there = file.tell()
        if there < weights.num_bytes:
            bar: dict[str, Any] = {"displayed_filename": weights.file}
            if progress is not None:
                progress(before + there, total)
                follower = _follower(progress, before=before)
                bar["_tqdm_bar"] = follower(unit="B", total=total - before, initial=there)
            http_get(
                hf_hub_url(weights.name, weights.file, revision=weights.commit),
                file,
                resume_size=there,
                expected_size=weights.num_bytes,
                # Compressed on the way, a range would be one of other bytes.
                headers={**build_hf_headers(), "Accept-Encoding": "identity"},
                **bar,
            )
    if file_sha256(weights.partial) != weights.sha256:
        weights.partial.unlink()
        raise SprachbundError(
            f"{weights.file} of {weights.name} arrived damaged (its SHA-256 is not that of the hub) and was removed; "
            "run the same command again"
        )
    take_name(weights.partial, weights.path)


def _cached(name: str) -> Path:
    """The folder of a model in the cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}")


def _begun(name: str) -> bool:
    return any(any(_cached(name).glob(part)) for part in ("snapshots/*/*", "blobs/*.incomplete"))


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """No warnings of huggingface_hub inside: it warns of every retry, and an error is reported here."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _follower(progress: DownloadProgress, *, before: int) -> type:
    """The class of progress bars for huggingface_hub: they show nothing, and hand on the bytes, with those before."""
    from tqdm.auto import tqdm

    class Follower(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self._counts_bytes:
                progress(before + self.n, before + self.total if self.total else None)
            return None

    return Follower

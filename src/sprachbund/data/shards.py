"""Corpora as tar shards with compressed sound: read in sequence, from this machine's disks or from an object store.

`pack` writes them in the layout of lhotse Shar: `shards/cuts.000000.jsonl.gz` has a lhotse cut per line, and
`shards/recording.000000.tar` the sound of each cut as FLAC or Opus, in the same order. Utterances are shuffled once, so
that a shard is a random part of the corpus.

Beside the shards stand two small files, which are all that is read when a corpus is opened. `index.json` has number of
utterances, sizes and checksums of every shard, and `utterances.npy` the length and the language of every utterance, six
bytes each, which are mapped and not read. A shard is fetched whole, in one sequential stream, and compared with its
checksum before its first utterance is used. Shards of a URL are kept in a temporary folder while they are in use.
"""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import (
    INDEX_FILE,
    Manifest,
    Utterance,
    Utterances,
    parse_cut,
    read_info,
    utterance_of,
)
from sprachbund.errors import SprachbundError, first_line
from sprachbund.util.begun import refuse_others
from sprachbund.util.files import (
    atomic_path,
    file_sha256,
    parse_json,
    read_object,
    remove_stale,
    validate,
    write_bytes,
    write_json,
)
from sprachbund.util.jobs import run
from sprachbund.util.progress import Progress, nothing

UTTERANCES_FILE = "utterances.npy"
FOLDER = "shards"
"""Holds what lhotse reads (`CutSet.from_shar(in_dir=...)`), which takes every file of a folder for a shard."""
Codec = Literal["flac", "opus"]
CODECS: tuple[Codec, ...] = get_args(Codec)
_UTTERANCE = np.dtype([("duration_s", "<f4"), ("language", "<u2")])
_PARTS = "parts"
_PACKING_FILE = "packing.json"
_ADVICE = "copy the corpus again, or pack it again with `sprachbund data pack`"
_OPUS_BIT_RATE = 30_000
_BLOCK = 8 * 2**20
"""Bytes of one request to an object store."""
_TRIES = 8
_FIRST_PAUSE_S = 0.1
_FETCHING = 4
"""Shards that are fetched at a time."""
_MOST_OPEN = 32
"""Shards whose texts are kept in memory while utterances are read at random."""

_T = TypeVar("_T")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ShardInfo(_Strict):
    """A shard in the index.

    Attributes:
        utterances: number of them.
        seconds: seconds of speech.
        cuts_bytes: size of the cuts, packed.
        cuts_sha256: SHA-256 of the cuts, packed.
        recording_bytes: size of the tar.
        recording_sha256: SHA-256 of the tar.
    """

    utterances: int = Field(ge=1)
    seconds: float = Field(ge=0)
    cuts_bytes: int = Field(ge=1)
    cuts_sha256: str
    recording_bytes: int = Field(ge=1)
    recording_sha256: str


class ShardIndex(_Strict):
    """`index.json`.

    Attributes:
        version: version of the layout.
        codec: codec of the sound.
        languages: BCP-47 tags, which `utterances.npy` names by their number here.
        utterances_sha256: SHA-256 of `utterances.npy`.
        info: name, licence, attribution … of the corpus, as in `dataset.json`.
        shards: shards in order.
    """

    version: Literal[1] = 1
    codec: Codec
    languages: tuple[str, ...]
    utterances_sha256: str
    info: dict[str, Any]
    shards: tuple[ShardInfo, ...] = Field(min_length=1)


def open_corpus(path: str | Path, shares: dict[str, float] | None = None) -> Utterances:
    """A corpus of either form: a directory that is read at random, or tar shards in a directory or under a URL.

    Args:
        path: path of the directory, or a URL that fsspec knows, such as `s3://bucket/corpus`.
        shares: see `Manifest`; shards are taken whole.

    Raises:
        SprachbundError: no corpus there, or a damaged one; shares of a corpus of shards.
    """
    if not is_packed(path):
        return Manifest(path, shares)
    if shares:
        raise SprachbundError(
            f"{path} is a corpus of shards, of which no share of a language can be taken; pack each language by itself"
        )
    return Shards(path)


def corpus_info(path: Path) -> dict[str, Any]:
    """Return the description of a corpus of either form: name, licence, attribution …"""
    return Shards(path).info() if is_packed(path) else read_info(path)


def is_packed(path: str | Path) -> bool:
    """Whether a corpus is of tar shards: whatever is under a URL, and directories with an index."""
    return is_url(path) or (Path(path) / INDEX_FILE).exists()


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL, also where pathlib made one slash of two. A drive's letter is no scheme."""
    return re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) is not None


class Shards(Utterances):
    """A corpus of tar shards. It reads at random as any corpus, by fetching whole shards.

    Args:
        path: directory or URL.

    Raises:
        SprachbundError: no corpus there, or a damaged index.
    """

    def __init__(self, path: str | Path) -> None:
        self._files = _Files(str(path))
        content = self._files.small(INDEX_FILE)
        name = f"{self._files.url}/{INDEX_FILE}"
        self.index = validate(ShardIndex, parse_json(content, name, advice=_ADVICE), name, advice=_ADVICE)
        self.digest = hashlib.sha256(content).hexdigest()
        self._files.index = self.index
        utterances = self._files.mapped(UTTERANCES_FILE, self.index.utterances_sha256)
        counts = [shard.utterances for shard in self.index.shards]
        if utterances.dtype != _UTTERANCE or len(utterances) != sum(counts):
            raise SprachbundError(
                f"{self._files.url}/{UTTERANCES_FILE} has {len(utterances)} utterances, and {INDEX_FILE} "
                f"{sum(counts)}; {_ADVICE}"
            )
        self._utterances = utterances
        self._shard_numbers: Sequence[int] = range(len(counts))
        self._begins = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._chosen: np.ndarray | None = None
        super().__init__(Path(path), self.index.languages, utterances["language"], utterances["duration_s"])

    def shard(self, number: int) -> Self:
        """One shard as a corpus by itself; nothing is read until its utterances are."""
        begin, end = int(self._begins[number]), int(self._begins[number + 1])
        part = self._with(self._codes[begin:end], np.array(self.durations_s[begin:end]))
        part._shard_numbers, part._begins = [number], np.array([0, end - begin])
        return part

    def only(self, chosen: Sequence[int] | np.ndarray) -> Self:
        """The utterances of these indices, in the order of the corpus."""
        kept = np.sort(np.asarray(chosen, dtype=np.int64))
        part = self._with(self._codes[kept], self.durations_s[kept])
        part._chosen = kept if self._chosen is None else self._chosen[kept]
        return part

    @property
    def is_part(self) -> bool:
        """Whether the corpus is a choice of its utterances."""
        return self._chosen is not None

    def __getitem__(self, index: int) -> Utterance:
        number, row = self._shard_and_row(index)
        return self._files.open(number).utterances[row]

    def samples(self, index: int) -> np.ndarray:
        """Sound of an utterance; see `Utterances`. Raises SprachbundError also where the shard cannot be fetched."""
        number, row = self._shard_and_row(index)
        return self._files.open(number).samples(row, round(float(self.durations_s[index]) * SAMPLE_RATE))

    def _shard_and_row(self, index: int) -> tuple[int, int]:
        """Number of the shard, and row in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = index if self._chosen is None else int(self._chosen[index])
        shard = int(np.searchsorted(self._begins, at, side="right")) - 1
        return self._shard_numbers[shard], at - int(self._begins[shard])

    def every(self, step: int) -> Sequence[int]:
        """About one in `step` utterances: those of every `step`-th shard, which holds a random part of the corpus."""
        if self.is_part:
            return super().every(step)
        shards = range(0, self.num_shards, step)
        return [index for n in shards for index in range(int(self._begins[n]), int(self._begins[n + 1]))]

    def hold(self, now: Iterable[int], soon: Iterable[int] = ()) -> None:
        """Have shards at hand, and let go of all others.

        Args:
            now: numbers of shards; the call returns when they are there.
            soon: numbers of shards that are fetched meanwhile, for a later call.
        """
        self._files.hold(list(now), list(soon))

    def check(self, progress: Progress = nothing) -> int:
        """See `Utterances`; all shards have checksums."""
        for done, number in enumerate(self._shard_numbers):
            progress(done, self.num_shards)
            self._files.open(number).read_all()
            self._files.let_go(number)
        progress(self.num_shards, self.num_shards)
        return self.num_shards

    @property
    def num_shards(self) -> int:
        """Shards of the corpus."""
        return len(self._shard_numbers)

    def content_hash(self) -> str:
        """SHA-256 of the index, which has the checksum of every shard."""
        return self.digest

    def texts_hash(self) -> str:
        """Hash of the texts of all utterances."""
        return self.digest

    def info(self) -> dict[str, Any]:
        """Return the description of the corpus in the index."""
        return dict(self.index.info)

    def cuts(self) -> Any:
        """The corpus as a lazy lhotse CutSet with the sound in it. Local shards alone.

        Raises:
            SprachbundError: it is under a URL, which lhotse reads by itself.
        """
        from lhotse import CutSet

        if is_url(self.directory):
            raise SprachbundError(
                f"{self._files.url} is a URL; open it with lhotse: CutSet.from_shar(fields=...) and smart_open"
            )
        return CutSet.from_shar(in_dir=self.directory / FOLDER)


def cuts_name(number: int) -> str:
    """Name of the cuts of a shard, as lhotse has it."""
    return f"{FOLDER}/cuts.{number:06d}.jsonl.gz"


def recording_name(number: int) -> str:
    """Name of the sound of a shard, as lhotse has it."""
    return f"{FOLDER}/recording.{number:06d}.tar"


# Reading.


class _Shard:
    """An open shard. Texts and sound are fetched when they are first asked for, since some ask for texts alone."""

    def __init__(self, files: "_Files", number: int) -> None:
        self._files, self._number = files, number

    @cached_property
    def utterances(self) -> list[Utterance]:
        """Texts of all of them."""
        name, shard = cuts_name(self._number), self._files.index.shards[self._number]
        packed = self._files.small(name, shard.cuts_bytes, shard.cuts_sha256)
        lines = gzip.decompress(packed).splitlines()
        where = f"{self._files.url}/{name}"
        cuts = [
            parse_cut(line, f"{where}, line {n}", self._files.url) for n, line in enumerate(lines, start=1)
        ]
        if len(cuts) != shard.utterances:
            self._files.refuse(name, f"has {len(cuts)} lines, and its index says {shard.utterances}")
        return [utterance_of(cut) for cut in cuts]

    @cached_property
    def _members(self) -> list[tuple[int, int]]:
        """Start of each utterance's sound in the tar, and its size."""
        name, wanted = recording_name(self._number), self._files.index.shards[self._number].utterances
        try:
            with tarfile.open(self._path, mode="r:") as tar:
                members = [(m.offset_data, m.size) for m in tar if not m.name.endswith(".json")]
        except (OSError, tarfile.TarError) as error:
            self._files.refuse(name, f"is no tar ({error})")
        if len(members) != wanted:
            self._files.refuse(name, f"holds {len(members)} utterances, and its index says {wanted}")
        return members

    @property
    def _path(self) -> Path:  # anew each time: the copy of a URL's shard may have been deleted meanwhile
        return self._files.fetched(self._number)

    def read_all(self) -> None:
        """Have texts and sound at hand, compared with their checksums."""
        assert len(self.utterances) == len(self._members)

    def samples(self, row: int, num_samples: int) -> np.ndarray:
        import soundfile

        offset, size = self._members[row]
        with self._path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        try:
            pcm, rate = soundfile.read(io.BytesIO(content), dtype="int16")
        except soundfile.LibsndfileError as error:
            self._files.refuse(
                recording_name(self._number), f"has an utterance that cannot be read ({error})"
            )
        # The length is known in 32 bits, which hold 8 minutes exactly.
        if rate != SAMPLE_RATE or pcm.ndim != 1 or abs(len(pcm) - num_samples) > 1e-6 * num_samples:
            self._files.refuse(
                recording_name(self._number),
                f"has an utterance of {len(pcm)} samples at {rate} Hz, not {num_samples} at {SAMPLE_RATE}",
            )
        return pcm.astype(np.float32) / 32767


class _Files:
    """The files of a corpus of shards, fetched where they are not on this machine's disks.

    Threads fetch shards ahead. A process that was forked meanwhile has none of them, and fetches what it lacks itself.
    """

    index: ShardIndex

    def __init__(self, path: str) -> None:
        self._is_remote = is_url(path)
        self.url = _url(path) if self._is_remote else path
        self._folder: Path | None = None
        self._whole: set[int] = set()
        self._begin_reading()
        self._begin()

    def _begin_reading(self) -> None:
        self._open: dict[int, _Shard] = {}
        self._held: set[int] = set()
        self._fetched_by: dict[int, int] = {}
        self._deleted: set[int] = set()
        self._is_read_at_random = False

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[Path]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is started anew: what was fetched is found there by its name."""
        own = ("_is_remote", "url", "_folder", "index", "_whole")
        return {name: value for name, value in vars(self).items() if name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_reading()
        self._begin()

    def small(self, name: str, size: int | None = None, sha256: str | None = None) -> bytes:
        """Content of a small file, compared with what the index knows of it."""
        if self._is_remote:
            content = self._retried(lambda fs, root: fs.cat_file(f"{root}/{name}"), name, size)
        else:
            try:
                content = Path(self.url, name).read_bytes()
            except OSError as error:
                self.refuse(name, f"cannot be read ({error.strerror})")
        if size is not None and len(content) != size:
            self.refuse(name, f"is cut off: it has {len(content)} bytes of {size}")
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            self.refuse(name, "is damaged: its checksum is another")
        return bytes(content)

    def mapped(self, name: str, sha256: str) -> np.ndarray:
        """An array that is mapped, not read."""
        if self._is_remote:
            path = self._own_folder() / name
            write_bytes(path, self.small(name, sha256=sha256))
        else:
            path = Path(self.url, name)
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            self.refuse(name, f"cannot be read ({error})")
        return array

    def open(self, number: int) -> _Shard:
        """A shard; of those that were opened long ago, the copies are deleted.

        Where one of these is asked for again, the corpus is read at random. From then on copies stay, since nearly
        every utterance would cost a whole shard otherwise.
        """
        if (shard := self._open.get(number)) is None:
            self._is_read_at_random |= number in self._deleted
            while len(self._open) >= _MOST_OPEN:
                oldest = next(iter(self._open))
                if self._is_read_at_random:
                    del self._open[oldest]
                elif self.let_go(oldest):
                    self._deleted.add(oldest)
            shard = self._open[number] = _Shard(self, number)
        return shard

    def let_go(self, number: int) -> bool:
        """Forget a shard, and delete its copy if this process fetched it and nobody holds it; whether it did."""
        self._open.pop(number, None)
        if number in self._held or self._fetched_by.get(number) != os.getpid():
            return False
        del self._fetched_by[number]
        self._whole.discard(number)
        self._path(number).unlink(missing_ok=True)
        return True

    def hold(self, now: Sequence[int], soon: Sequence[int]) -> None:
        """See `Shards.hold`."""
        self._held = {*now, *soon}
        for number in {*self._open} - {*now}:
            del self._open[number]
        if self._is_remote and self._process == os.getpid():
            for number in self._whole - {*now, *soon}:
                self._path(number).unlink(missing_ok=True)
                self._whole.discard(number)
        self._fetch_ahead(now)
        for number in now:  # read before processes are forked that share them
            self._open.setdefault(number, _Shard(self, number)).read_all()
        self._fetch_ahead(soon)

    def _fetch_ahead(self, numbers: Sequence[int]) -> None:
        if self._process != os.getpid():
            self._begin()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_FETCHING, thread_name_prefix="shards")
            weakref.finalize(self, self._threads.shutdown, wait=False, cancel_futures=True)
        for number in numbers:
            if number not in self._whole and number not in self._coming:
                self._coming[number] = self._threads.submit(self._fetch, number)

    def fetched(self, number: int) -> Path:
        """Path of a shard's sound, once it is there and is whole."""
        if number in self._whole and (not self._is_remote or self._path(number).exists()):
            return self._path(number)
        coming = self._coming.pop(number, None) if self._process == os.getpid() else None
        path = self._fetch(number) if coming is None else coming.result()
        self._whole.add(number)
        return path

    def _fetch(self, number: int) -> Path:
        """Read a shard's sound from end to end and compare it; one of a URL is stored on the way."""
        name, shard = recording_name(number), self.index.shards[number]
        path, size = self._path(number), shard.recording_bytes
        if not self._is_remote:
            try:
                if (held := path.stat().st_size) != size:
                    self.refuse(name, f"is cut off: it has {held} bytes of {size}")
                checksum = file_sha256(path)
            except OSError as error:
                self.refuse(name, f"cannot be read ({error.strerror})")
        elif path.exists():  # of the process that started this one
            return path
        else:
            total = hashlib.sha256()
            with atomic_path(path) as partial, partial.open("wb") as file:
                for begin in range(0, size, _BLOCK):
                    block = self._block(name, begin, min(begin + _BLOCK, size), size)
                    total.update(block)
                    file.write(block)
            checksum = total.hexdigest()
            self._fetched_by[number] = os.getpid()
        if checksum != shard.recording_sha256:
            if self._is_remote:
                path.unlink(missing_ok=True)
            self.refuse(name, "is damaged: its checksum is another")
        return path

    def _block(self, name: str, begin: int, end: int, size: int) -> bytes:
        def read(fs: Any, root: str) -> bytes:
            content = bytes(fs.cat_file(f"{root}/{name}", start=begin, end=end))
            # A server of HTTP may know no ranges, and send all.
            return content[begin:end] if len(content) == size else content

        return self._retried(read, name, end - begin)

    def _retried(self, read: Callable[[Any, str], bytes], name: str, size: int | None) -> bytes:
        """Content that a request returns, retried after longer and longer pauses while the store fails.

        Args:
            read: makes the request, of a file system and the path of the corpus in it.
            name: name of the file.
            size: bytes that it has to give, if that is known.
        """
        held = -1
        for number in range(_TRIES):
            try:
                fs, root = self._file_system()
                content = read(fs, root)
                if size is None or len(content) == size:
                    return content
                held, reason = len(content), f"{len(content)} bytes of {size}"
            except FileNotFoundError:
                self.refuse(name, "does not exist")
            except SprachbundError:
                raise
            except Exception as error:  # every store has errors of its own, and few of them are OSErrors
                reason = first_line(error)
            time.sleep(_FIRST_PAUSE_S * 2**number if number < _TRIES - 1 else 0)
        if held >= 0:
            self.refuse(name, f"is cut off: {reason} came")
        raise SprachbundError(
            f"{self.url}/{name} cannot be fetched, {_TRIES} times in a row ({reason[:200]}); check the store and the "
            "network; the same command goes on"
        )

    def _file_system(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs

            opened: tuple[Any, str] = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise SprachbundError(
                f"{self.url} cannot be opened ({first_line(error)}); pip install 'sprachbund[cloud]', or copy the "
                "corpus here"
            ) from error
        return opened[0], opened[1].rstrip("/")

    def _path(self, number: int) -> Path:
        name = recording_name(number)
        return self._own_folder() / name if self._is_remote else Path(self.url, name)

    def _own_folder(self) -> Path:
        """Folder for shards of a URL: in TMPDIR, removed when this process ends."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="sprachbund-shards-"))
                weakref.finalize(self, _remove, self._folder, os.getpid())
        return self._folder

    def refuse(self, name: str, fault: str) -> NoReturn:
        """Raise the error of a file."""
        raise SprachbundError(f"{self.url}/{name} {fault}; {_ADVICE}")


def _url(path: str) -> str:
    """A URL with its two slashes, of which pathlib leaves one; that of an absolute path has a third."""
    if match := re.match(r"file:(?:/|//+/)(?!/)", path):
        return "file:///" + path[match.end() :].rstrip("/")
    return re.sub(r"^([^/]+:)/+", r"\1//", path.rstrip("/"))


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process has the same folder, and does not own it
        shutil.rmtree(folder, ignore_errors=True)


# Writing.


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The work of packing a corpus, a job of which each file is the entry of a shard.

    Attributes:
        source: corpus.
        out: folder of the shards.
        count: utterances of the corpus.
        codec: "flac" keeps every sample; "opus" takes an eighth of its space.
        shard_utterances: utterances of a shard.
        seed: seed of the order of the utterances.
        threads: threads of each process.
        gpus: GPUs of each process.
    """

    source: Path
    out: Path
    count: int
    codec: Codec = "flac"
    shard_utterances: int = 1000
    seed: int = 0
    threads: int = 1
    gpus: int = 0

    @property
    def files(self) -> list[tuple[Path, int]]:
        """Entry of every shard, and its utterances."""
        size = self.shard_utterances
        return [
            (self.out / _PARTS / f"{number:06d}.json", min(size, self.count - number * size))
            for number in range(-(-self.count // size))
        ]

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        """Open the corpus; see `sprachbund.util.jobs.Job`."""
        manifest = open_corpus(self.source)
        order = np.random.default_rng(self.seed).permutation(self.count)
        size = self.shard_utterances

        def make(number: int, progress: Callable[[int], None]) -> None:
            _write_shard(self, number, manifest, order[number * size : (number + 1) * size], progress)

        return make


def pack(
    source: Path,
    out: Path,
    *,
    codec: Codec = "flac",
    shard_utterances: int = 1000,
    seed: int = 0,
    workers: int = 1,
    ray_address: str | None = None,
    progress: Progress = nothing,
) -> Shards:
    """Write a corpus as tar shards; the same command goes on where it was broken off, and ends at once when it is done.

    Args:
        source: corpus of either form.
        out: folder, new or of the same packing.
        codec: "flac" keeps every sample; "opus" takes an eighth of its space.
        shard_utterances: utterances of a shard.
        seed: seed of the order of the utterances.
        workers: processes.
        ray_address: address of a Ray cluster that shares the folder; "local" for one here; None for plain processes.
        progress: called with utterances done and utterances in all.

    Raises:
        SprachbundError: the folder holds something else, the corpus is damaged, or another than the folder was begun
            with.
    """
    manifest = open_corpus(source)
    settings = {
        "content": manifest.content_hash(),
        "utterances": len(manifest),
        "codec": codec,
        "shard_utterances": shard_utterances,
        "seed": seed,
    }
    begun = out / _PACKING_FILE
    _check_begun(out, settings)
    write_json(begun, settings)
    remove_stale(begun)
    work = Packing(
        source=source,
        out=out,
        count=len(manifest),
        codec=codec,
        shard_utterances=shard_utterances,
        seed=seed,
    )
    if not (out / INDEX_FILE).exists():
        run(work, workers=workers, ray_address=ray_address, progress=progress)
        _write_index(work, manifest.info() or {"name": source.name})
    shutil.rmtree(out / _PARTS, ignore_errors=True)  # gone already, where nothing was left to do
    return Shards(out)


def _check_begun(out: Path, settings: Mapping[str, Any]) -> None:
    """Check that a folder is new, or was begun with these settings. Raises SprachbundError if not."""
    begun = out / _PACKING_FILE
    if not begun.exists() and any(out.glob("cuts.*.jsonl")):
        raise SprachbundError(f"{out} holds a corpus, which would be there twice; choose another --out")
    if not begun.exists() and (out / INDEX_FILE).exists():
        raise SprachbundError(f"{out} holds other shards; choose another --out, or delete it")
    known = read_object(begun) if begun.exists() else settings
    refuse_others(out, known, settings, advice="choose another --out, or delete it")


def _write_shard(
    packing: Packing, number: int, manifest: Utterances, rows: np.ndarray, progress: Callable[[int], None]
) -> None:
    cuts, recording = packing.out / cuts_name(number), packing.out / recording_name(number)
    lines, durations, languages = [], [], []
    with atomic_path(recording) as partial, tarfile.open(partial, "w") as tar:
        for done, index in enumerate(rows.tolist(), start=1):
            utterance = manifest[index]
            pcm = np.rint(manifest.samples(index) * 32767).astype(np.int16)
            held = _recording(utterance.id, len(pcm))
            _add(tar, f"{utterance.id}.{packing.codec}", encoded_sound(pcm, packing.codec))
            _add(tar, f"{utterance.id}.json", json.dumps(held).encode())
            lines.append(json.dumps(_cut(utterance, held), ensure_ascii=False) + "\n")
            durations.append(len(pcm) / SAMPLE_RATE)
            languages.append(utterance.language)
            progress(done)
    packed = gzip.compress("".join(lines).encode(), mtime=0)
    write_bytes(cuts, packed)
    entry = ShardInfo(
        utterances=len(lines),
        seconds=round(sum(durations), 3),
        cuts_bytes=len(packed),
        cuts_sha256=hashlib.sha256(packed).hexdigest(),
        recording_bytes=recording.stat().st_size,
        recording_sha256=file_sha256(recording),
    )
    # Last: it stands for the shard being whole.
    write_json(
        packing.files[number][0],
        {"shard": entry.model_dump(), "durations_s": durations, "languages": languages},
    )


def _write_index(packing: Packing, info: dict[str, Any]) -> None:
    parts = [read_object(path) for path, _ in packing.files]
    languages = sorted({language for part in parts for language in part["languages"]})
    numbers = {language: number for number, language in enumerate(languages)}
    utterances = np.empty(packing.count, _UTTERANCE)
    utterances["duration_s"] = [duration for part in parts for duration in part["durations_s"]]
    utterances["language"] = [numbers[language] for part in parts for language in part["languages"]]
    write_index(packing.out, packing.codec, languages, utterances, info, [part["shard"] for part in parts])


def write_index(
    out: Path,
    codec: Codec,
    languages: Sequence[str],
    utterances: np.ndarray,
    info: dict[str, Any],
    shards: Sequence[dict[str, Any]],
) -> None:
    """Write `utterances.npy` and then `index.json`.

    Args:
        out: folder of the corpus.
        codec: codec of the sound.
        languages: BCP-47 tags.
        utterances: (N,) with the fields duration_s and language, a number of `languages`.
        info: description of the corpus.
        shards: fields of `ShardInfo`.
    """
    stream = io.BytesIO()
    np.save(stream, utterances.astype(_UTTERANCE))
    write_bytes(out / UTTERANCES_FILE, stream.getvalue())
    index = ShardIndex(
        codec=codec,
        languages=tuple(languages),
        utterances_sha256=hashlib.sha256(stream.getvalue()).hexdigest(),
        info=info,
        shards=tuple(ShardInfo(**shard) for shard in shards),
    )
    write_bytes(out / INDEX_FILE, index.model_dump_json(indent=None).encode())


def encoded_sound(pcm: np.ndarray, codec: Codec) -> bytes:
    """The file that packed shards hold of an utterance.

    Args:
        pcm: (num_samples,) 16 kHz mono int16.
        codec: its codec.
    """
    if codec == "opus":
        return _opus(pcm)
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def _opus(pcm: np.ndarray) -> bytes:
    """Ogg Opus by FFmpeg, since libsndfile takes several times as long."""
    import av

    stream = io.BytesIO()
    # Without its version and a random number of the stream, so that the same sound gives the same bytes.
    options = {"fflags": "+bitexact", "serial_offset": "1"}
    with av.open(stream, "w", format="ogg", options=options) as container:
        sound = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        sound.bit_rate = _OPUS_BIT_RATE
        for begin in range(0, len(pcm), SAMPLE_RATE):
            frame = av.AudioFrame.from_ndarray(
                pcm[None, begin : begin + SAMPLE_RATE], format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts = SAMPLE_RATE, begin
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without time and owner, so that the same corpus gives the same bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _recording(utterance_id: str, num_samples: int) -> dict[str, Any]:
    """A recording as lhotse writes it into a tar: the sound is the member before it."""
    return {
        "id": utterance_id,
        "sources": [{"type": "shar", "channels": [0], "source": ""}],
        "sampling_rate": SAMPLE_RATE,
        "num_samples": num_samples,
        "duration": num_samples / SAMPLE_RATE,
        "channel_ids": [0],
    }


def _cut(utterance: Utterance, recording: dict[str, Any]) -> dict[str, Any]:
    supervision = {
        "id": utterance.id,
        "recording_id": recording["id"],
        "start": 0.0,
        "duration": recording["duration"],
        "channel": 0,
        "text": utterance.text,
        "language": utterance.language,
        "speaker": utterance.speaker,
        "custom": {"translations": dict(utterance.translations), **utterance.custom},
    }
    return {
        "id": utterance.id,
        "start": 0.0,
        "duration": recording["duration"],
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
    }

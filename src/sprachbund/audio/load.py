"""Any audio to 16 kHz mono float32, a block at a time: a ten-hour recording needs no ten-hour buffer."""

import io
import math
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from numbers import Real
from pathlib import Path
from typing import IO, Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sprachbund.audio.constants import LOUDEST, MAX_CHANNELS, SAMPLE_RATE, WINDOW_S
from sprachbund.audio.decoders import CHUNK_FRAMES, AudioDecoder, Downmix, open_decoder
from sprachbund.audio.isolated import IsolatedDecoder
from sprachbund.audio.sandbox import DecodingLimits
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import FloatArray, Samples

AudioInput = str | os.PathLike[str] | IO[bytes] | NDArray[Any]
"""A path, an open binary file (seekable or not), or samples of shape (N,) or (N, channels) with a rate."""

_MIN_RATE, _MAX_RATE = (
    1_000,
    1_000_000,
)  # outside of these a header is broken, and resampling would fill the memory
_MARGIN_S = (
    0.25  # resampled before a start in the middle, so that the filter has settled; it rings for about 0.01 s
)
_QUALITY = "HQ"
_ARRAY = "the array of samples"  # its name in errors and warnings


class AudioSource(ABC):
    """Audio that can be read as 16 kHz mono float32.

    Args:
        name: name of the source in errors and warnings.
        duration_s: length in seconds as the file states it; None where only decoding gives it.
        warnings: list that reading adds what it had to leave out to (a file cut off, damaged packets), and that is
            complete once `blocks` is read to the end; a new one if None.

    Attributes:
        damaged_s: times of packets that the latest reading left out so far; what follows one may be heard too early.
    """

    def __init__(self, name: str, duration_s: float | None, warnings: list[str] | None = None) -> None:
        self.name = name
        self.duration_s = duration_s
        self.warnings = [] if warnings is None else warnings
        self.damaged_s: list[float] = []

    @abstractmethod
    def blocks(self, block_s: float = WINDOW_S, *, start_s: float = 0.0) -> Iterator[Samples]:
        """Yield the audio from ``start_s`` on, ``block_s`` seconds at a time, each (N,); the last is shorter.

        Memory stays bounded by the block. A path or seekable file can be read any number of times.

        Raises:
            SprachbundError: NaN, infinite samples or numbers far from -1 to 1, no samples at all or none after
                ``start_s``, damage that leaves nothing to decode.
        """
        ...


class _DecodedAudio(AudioSource):
    """Audio that a decoder reads, opened anew for each reading."""

    def __init__(self, name: str, duration_s: float | None, open_decoder: Callable[[], AudioDecoder]) -> None:
        super().__init__(name, duration_s)
        self._open = open_decoder

    def blocks(self, block_s: float = WINDOW_S, *, start_s: float = 0.0) -> Iterator[Samples]:
        """As of any audio."""
        size = round(block_s * SAMPLE_RATE)
        if size < 1 or start_s < 0:
            raise ValueError(
                f"block_s={block_s}, start_s={start_s}: blocks need a length and cannot start before 0"
            )
        kept: list[Samples] = []
        num_kept, num_yielded = 0, 0
        for piece in self._from(start_s):
            kept.append(piece)
            num_kept += len(piece)
            if num_kept < size:
                continue
            joined = np.concatenate(kept)
            whole = num_kept // size * size
            for begin in range(0, whole, size):
                yield joined[begin : begin + size].copy()
            kept, num_kept, num_yielded = [joined[whole:].copy()], num_kept - whole, num_yielded + whole
        if num_kept:
            yield np.concatenate(kept)
        elif num_yielded == 0:
            raise SprachbundError(_nothing(self.name, start_s, self.duration_s))

    def _from(self, start_s: float) -> Iterator[Samples]:
        """Resampled pieces of any length, the first beginning at ``start_s``."""
        decoder = self._open()
        self.damaged_s = decoder.damaged_s
        with closing(decoder):
            reached_s = decoder.seek(SAMPLE_RATE, max(0.0, start_s - _MARGIN_S)) if start_s else 0.0
            skip = round((start_s - reached_s) * SAMPLE_RATE)
            for piece in _resampled(_checked(decoder.chunks(), self.name, reached_s)):
                if skip < len(piece):
                    yield piece[skip:]
                skip = max(0, skip - len(piece))
        self.warnings += [warning for warning in decoder.warnings if warning not in self.warnings]


def open_audio(
    source: AudioInput,
    sample_rate: int | None = None,
    *,
    name: str | None = None,
    untrusted: bool = False,
    limits: DecodingLimits | None = None,
) -> AudioSource:
    """Open audio of any container, or samples with their rate, without decoding it yet.

    Args:
        source: path, binary file object, or array (N,) or (N, channels); integers are scaled to [-1, 1],
            floats are expected there.
        sample_rate: rate of an array in Hz; not used for files, which state their own.
        name: name of a file object in errors and warnings; its own name if not given.
        untrusted: whether a file comes from somebody who may mean harm: it is then decoded in a process that can do
            nothing else (see `isolated`), with the same samples as result. Nothing is decoded of an array.
        limits: limits of the decoding of an untrusted file; those of `DecodingLimits` if not given.

    Raises:
        SprachbundError: nothing of these kinds; missing, a directory, not permitted, empty, not audio, without an
            audio stream, of too many channels; beyond `limits`, or untrusted where no process can be confined
            (Windows).
    """
    if isinstance(source, np.ndarray):
        return _array_source(source, sample_rate)
    decode: Decode = open_decoder
    if untrusted:
        decode = partial(IsolatedDecoder, limits=limits or DecodingLimits())
    if isinstance(source, str | os.PathLike):
        if _ADDRESS.match(os.fspath(source)) and not os.path.exists(source):
            raise no_recording(os.fspath(source))
        opener = partial(_open_path, Path(source), decode)
        named = os.fspath(source)
        # What was read of a pipe is gone: it is not opened to find faults first.
        return _DecodedAudio(named, None, _once(opener, named)) if _is_pipe(named) else _probed(named, opener)
    _check_file(source)
    name = name or str(getattr(source, "name", "audio stream"))
    try:
        seekable = source.seekable()
    except ValueError as error:  # as files say it
        raise SprachbundError(f"{name} is closed; open it again, as bytes") from error
    if not seekable:
        return _DecodedAudio(name, None, _once(lambda: decode(source, name, seekable=False), name))
    start = source.tell()
    return _probed(name, lambda: _open_stream(source, name, start, decode))


@runtime_checkable
class _File(Protocol):
    """A file object, as far as it is used."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""

    def seekable(self) -> bool:
        """Whether it can go back."""


@runtime_checkable
class _Tensor(Protocol):
    """A tensor, such as torch's, which is not imported for that."""

    def numpy(self) -> object:
        """Its values."""


def _check_file(source: object) -> None:
    """Refuse what is no file object of bytes, with the way to what was meant."""
    if isinstance(source, io.TextIOBase):
        raise SprachbundError(f"{source!r} is open as text; open it as bytes: open(path, 'rb')")
    if isinstance(source, _File):
        return
    if isinstance(source, bytes | bytearray | memoryview):
        advice = "wrap them as io.BytesIO(...) if they are a file"
    elif isinstance(source, list | tuple):
        advice = "give one path, or samples as numpy.array(..., dtype='float32') with sample_rate"
    elif isinstance(source, _Tensor):
        advice = "give its samples as an array, .numpy(), with sample_rate"
    else:
        advice = "give a path, an open binary file, or an array of samples with sample_rate"
    raise SprachbundError(f"audio is of type {type(source).__name__}; {advice}")


def load(
    source: AudioInput,
    start_s: float = 0.0,
    duration_s: float | None = None,
    *,
    sample_rate: int | None = None,
    intact: bool = False,
) -> Samples:
    """Read audio into one array of 16 kHz mono float32, shape (N,).

    Args:
        source: as for ``open_audio``.
        start_s: first second that is read; wav, flac and ogg seek there, other containers decode up to it.
        duration_s: most seconds that are read; None reads to the end, and audio that ends earlier gives less.
        sample_rate: rate of an array in Hz.
        intact: refuse sound that is cut off, or has damage before its end, rather than give what is there.

    Raises:
        SprachbundError: as ``open_audio`` and ``AudioSource.blocks``; a time that audio cannot have.
    """
    if not 0 <= start_s < math.inf:
        raise SprachbundError(f"start_s is {start_s}; give a second of the audio, from 0 on")
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise SprachbundError(f"duration_s is {duration_s}; give a number above 0, or None for all of it")
    audio = open_audio(source, sample_rate)
    blocks = audio.blocks(start_s=start_s)
    if duration_s is None:
        samples = np.concatenate(list(blocks))
        if intact and audio.warnings:
            raise SprachbundError(f"{audio.warnings[0]}; copy or record it again")
        return samples
    wanted, taken = round(duration_s * SAMPLE_RATE), []
    with closing(cast(Any, blocks)):
        for block in blocks:
            taken.append(block[:wanted])
            wanted -= len(taken[-1])
            if wanted <= 0:
                break
    if intact:
        refuse_damage(audio.name, audio.damaged_s, start_s + duration_s)
    return np.concatenate(taken)


def refuse_damage(name: str, damaged_s: Sequence[float], end_s: float) -> None:
    """Raise SprachbundError where packets before the end of a stretch are damaged: its sound may be of other times.

    Args:
        name: name of the source.
        damaged_s: times of damaged packets.
        end_s: end of the stretch.
    """
    if damaged_s and damaged_s[0] < end_s:
        raise SprachbundError(
            f"{name} has damaged packets from {damaged_s[0]:.2f} s on, before the utterance ends at {end_s:.2f} s; "
            "copy or record it again"
        )


class Decode(Protocol):
    """Makes a decoder of an open file: here, or in a process of its own."""

    def __call__(self, file: IO[bytes], name: str, *, seekable: bool) -> AudioDecoder:
        """Open it; see `open_decoder`."""
        ...


def _probed(name: str, opener: Callable[[], AudioDecoder]) -> AudioSource:
    """Open once to find faults and the duration now rather than at the first block."""
    with closing(opener()) as decoder:
        source = _DecodedAudio(name, decoder.duration_s, opener)
        source.warnings += decoder.warnings
    return source


class _OwnedFile:
    """A decoder that closes the file it was given, which the engines leave open."""

    def __init__(self, decoder: AudioDecoder, file: IO[bytes]) -> None:
        self._decoder, self._file = decoder, file
        self.duration_s, self.warnings, self.damaged_s = (
            decoder.duration_s,
            decoder.warnings,
            decoder.damaged_s,
        )
        self.seek, self.chunks = decoder.seek, decoder.chunks

    def close(self) -> None:
        self._decoder.close()
        self._file.close()


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def no_recording(name: str) -> SprachbundError:
    """The error for a file that is not there, or whose name is an address."""
    if _ADDRESS.match(name):
        return SprachbundError(
            f"{name} is an address, and addresses are not opened; download it first, and name the file"
        )
    return SprachbundError(f"{name} does not exist; check the name and the folder")


def _is_pipe(name: str) -> bool:
    """Whether a path is that of a pipe or of another device that is read once, such as the shell's <(command)."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):  # which opening it says
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def _open_path(path: Path, decode: Decode) -> AudioDecoder:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise no_recording(str(path)) from None
    except IsADirectoryError:
        raise SprachbundError(f"{path} is a directory; give the audio files in it, as in {path}/*") from None
    except PermissionError:
        raise SprachbundError(f"{path} may not be read by this user; change its permissions") from None
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error  # the name stands in front
        raise SprachbundError(f"{path} cannot be opened ({reason}); check the name") from error
    try:
        return _OwnedFile(_open_stream(file, str(path), 0, decode), file)
    except BaseException:
        file.close()
        raise


def _open_stream(file: IO[bytes], name: str, start: int, decode: Decode) -> AudioDecoder:
    if not file.seekable():  # a named pipe or device given as a path
        return decode(file, name, seekable=False)
    if file.seek(0, 2) == start:
        raise SprachbundError(f"{name} is empty (0 bytes); record or copy it again")
    file.seek(start)
    return decode(file, name, seekable=True)


def _once(opener: Callable[[], AudioDecoder], name: str) -> Callable[[], AudioDecoder]:
    openers = [opener]

    def open_once() -> AudioDecoder:
        if not openers:
            raise SprachbundError(f"{name} cannot be read twice; save it to a file first")
        return openers.pop()()

    return open_once


def _checked(
    chunks: Iterator[tuple[int, Samples]], name: str, start_s: float
) -> Iterator[tuple[int, Samples]]:
    """Pass chunks on, refusing NaN, infinity, numbers that are no sound and rates that cannot be meant."""
    passed_s = start_s
    for rate, chunk in chunks:
        if not _MIN_RATE <= rate <= _MAX_RATE:
            raise SprachbundError(
                f"{name} states a sample rate of {rate} Hz; rates of {_MIN_RATE} to {_MAX_RATE} Hz are read, "
                "so convert it to 16000 Hz"
            )
        sound = np.abs(chunk) <= LOUDEST  # false for NaN
        if not sound.all():
            first = int(np.argmin(sound))
            advice = "export the audio again without it"
            if np.isfinite(chunk[first]):
                advice = "floats lie between -1 and 1, so divide 16-bit numbers by 32768"
            raise SprachbundError(
                f"{name} has a sample that is {chunk[first]} at {passed_s + first / rate:.4f} s "
                f"(sample {round(passed_s * rate) + first}); {advice}"
            )
        passed_s += len(chunk) / rate
        yield rate, chunk


def _resampled(chunks: Iterator[tuple[int, Samples]]) -> Iterator[Samples]:
    """Bring chunks to 16 kHz as one unbroken signal; a change of rate in the middle starts a new filter."""
    rate_in, stream = SAMPLE_RATE, None
    for rate, chunk in chunks:
        if rate != rate_in:
            if stream is not None:
                yield _flush(stream)
            rate_in, stream = rate, _new_stream(rate)
        yield chunk if stream is None else stream.resample_chunk(chunk)
    if stream is not None:
        yield _flush(stream)


def _new_stream(rate: int) -> Any:
    import soxr

    return (
        None
        if rate == SAMPLE_RATE
        else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality=_QUALITY)
    )


def _flush(stream: Any) -> Samples:
    return cast(Samples, stream.resample_chunk(np.zeros(0, np.float32), last=True))


class _ArrayDecoder:
    """Samples in memory, with the interface of files."""

    def __init__(self, samples: NDArray[Any], sample_rate: int) -> None:
        self._samples, self._rate = samples, sample_rate
        self.damaged_s: list[float] = []
        self.duration_s: float | None = len(samples) / sample_rate
        self.warnings: list[str] = []

    def seek(self, sample_rate_out: int, start_s: float) -> float:
        return 0.0

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        downmix = Downmix()
        for begin in range(0, len(self._samples), CHUNK_FRAMES):
            floats = as_floats(self._samples[begin : begin + CHUNK_FRAMES])
            yield self._rate, floats if floats.ndim == 1 else downmix.mono(floats)
        if downmix.warning is not None:
            self.warnings.append(f"{_ARRAY}: {downmix.warning}")

    def close(self) -> None:
        pass


def refuse_other_types(samples: NDArray[Any], name: str) -> None:
    """Raise SprachbundError for an array of neither integers nor floats, whose name begins the message."""
    if samples.dtype.kind not in "iuf":
        raise SprachbundError(f"{name} is of type {samples.dtype}; give integers or floats")


def as_floats(samples: NDArray[Any]) -> FloatArray:
    """Samples of any shape as float32: integers are scaled to [-1, 1], floats are as they are."""
    if np.issubdtype(samples.dtype, np.integer):
        span = np.iinfo(samples.dtype)
        middle = (float(span.max) + float(span.min) + 1) / 2
        samples = (samples - middle) / (float(span.max) + 1 - middle)
    return samples.astype(np.float32, copy=False)


def _array_source(samples: NDArray[Any], sample_rate: int | None) -> AudioSource:
    name = _ARRAY
    if sample_rate is None:
        raise SprachbundError(f"{name} comes without a sample rate; give sample_rate in Hz")
    if not isinstance(sample_rate, Real) or not 1 <= sample_rate < math.inf:
        raise SprachbundError(f"{name} has the sample rate {sample_rate!r}; give it in Hz")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[1] <= MAX_CHANNELS):
        raise SprachbundError(f"{name} has shape {samples.shape}; give (samples,) or (samples, channels)")
    refuse_other_types(samples, name)
    if len(samples) == 0:
        raise SprachbundError(_nothing(name, 0.0, 0.0))
    return _probed(name, lambda: _ArrayDecoder(samples, sample_rate))


def _nothing(name: str, start_s: float, duration_s: float | None) -> str:
    if start_s > 0:
        length = "" if duration_s is None else f" (it lasts {duration_s:.2f} s)"
        return f"{name} has no audio after {start_s:.2f} s{length}; start earlier"
    if duration_s is not None and 0 < duration_s < 1 / SAMPLE_RATE:
        return (
            f"{name} lasts {1e6 * duration_s:.0f} µs, less than a sample at 16 kHz; record or copy it again"
        )
    return f"{name} holds no audio samples (0 s); record or copy it again"

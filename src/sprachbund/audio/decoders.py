"""The two engines that take files apart: libsndfile where it can seek exactly, FFmpeg for other containers.

Both give mono float32 chunks at the rate of the file, hold one chunk at a time, and write down what they had
to leave out instead of hiding it.
"""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np

from sprachbund.audio.constants import MAX_CHANNELS
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import FloatArray, Samples

CHUNK_FRAMES = 1 << 16
_FLAC_CHUNK_FRAMES = 1 << 13  # damage costs the whole chunk it is in: here about 0.2 s
_SNDFILE_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"fLaC", b"OggS", b"caff", b".snd", b"NIST_1A")
_ENDLESS = 1 << 60  # libsndfile says "unknown length" with a huge number
_OGG_TAIL, _OGG_HEADER, _OGG_LAST = 2 * 65_307, 27, 0x04  # the largest pages have 65,307 bytes
_HEAD = 1 << 16
_OGG_CUT = "cut off: its last page is missing; what comes before is used"
_TOLERANCE_S = 0.5  # headers round; less than this missing is no damage
_LATEST_BEGIN_S, _LATEST_S = 0.02, 0.05  # times are rounded, and those of live recordings jitter
_LONGEST_GAP_S = 3600.0  # without a promised length: a broken time stamp may lie days ahead
_MICROSECONDS = 1_000_000
_UNKNOWN_BYTES = 0x7F000000  # a writer that cannot go back states a length from here on, or none

# FFmpeg also knows formats that are lists of other files and addresses (HLS, concat, DASH, SDP, image sequences), or
# that open a device. Only these, which hold their sound themselves, are read.
_CONTAINERS = (
    "mov", "mp4", "3gp", "3g2", "matroska", "webm", "ogg", "avi", "asf", "flv", "mpegts", "mpeg", "mxf", "nut",
    "rm", "dv", "mp3", "aac", "loas", "ac3", "eac3", "ac4", "dts", "dtshd", "truehd", "mlp", "flac", "wav", "w64",
    "aiff", "caf", "au", "amr", "amrnb", "amrwb", "wv", "ape", "tta", "tak", "mpc", "mpc8", "voc", "dsf", "iff", "qcp",
    "oma", "gsm", "nistsphere", "ircam", "pvf", "paf", "sox", "avr", "xwma",
)  # fmt: skip
_NO_PROTOCOL = "none"  # FFmpeg has no protocol of this name


class Downmix:
    """Means of channels, and whether these were each other's opposites, of which nothing is left."""

    def __init__(self) -> None:
        self._channels, self._mean = 0.0, 0.0

    def mono(self, samples: FloatArray) -> Samples:
        """The mean (N,) of channels (N, C)."""
        with np.errstate(invalid="ignore"):  # the reader reports values that are not finite
            mean = np.asarray(samples.mean(axis=1, dtype=np.float32))
        if samples.shape[1] > 1:
            self._channels += float(np.vdot(samples, samples)) / samples.shape[1]
            self._mean += float(np.vdot(mean, mean))
        return mean

    @property
    def warning(self) -> str | None:
        """What to say of all that was heard; None unless less than a thousandth of its energy is left."""
        if self._mean >= 1e-3 * self._channels:
            return None
        return "its channels cancel each other out; save one of them alone"


@runtime_checkable
class AudioDecoder(Protocol):
    """An opened file: mono float32 chunks with their rate, and what is known without decoding.

    Attributes:
        duration_s: length in seconds as the file states it; None where only decoding gives it.
        warnings: what had to be left out.
        damaged_s: times of packets that were left out so far; what follows one may be heard too early.
    """

    duration_s: float | None
    warnings: list[str]
    damaged_s: list[float]

    def seek(self, sample_rate_out: int, start_s: float) -> float:
        """Move to ``start_s`` or before it, to a time that is a whole output sample; return that time."""
        ...

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """Yield (sample rate, mono samples (N,)) to the end of the audio, then close the file."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def open_decoder(
    file: IO[bytes], name: str, *, seekable: bool, max_channels: int = MAX_CHANNELS
) -> AudioDecoder:
    """Choose the engine for an open binary file positioned at its start.

    Args:
        file: the recording; its own name, if it has one, is not looked at.
        name: name of the source in errors and warnings.
        seekable: whether it can be read again from its start.
        max_channels: most channels of the sound.

    Raises:
        SprachbundError: no engine knows the content, there is no audio in it, or it has too many channels.
    """
    if not seekable:  # FFmpeg then knows a length only where the header states one
        return FfmpegDecoder(file, name, has_length=True, max_channels=max_channels)
    start = file.tell()
    reader = _Callbacks(file)
    head = reader.read(_HEAD)
    reader.check(name)
    file.seek(start)
    if head.startswith(_SNDFILE_MAGIC) and not (head[:4] == b"OggS" and b"video" in head[:64]):
        import soundfile

        whole = _is_ended(_tail(file)) if head.startswith(b"OggS") else True
        try:
            missing_s = _missing_in_riff(_size(file), head)
            return SndfileDecoder(file, name, missing_s=missing_s, whole=whole, max_channels=max_channels)
        except (soundfile.LibsndfileError, TypeError):
            file.seek(start)  # RIFF, Ogg, CAF and SPHERE may hold codecs that libsndfile lacks
    if head.startswith(b"ID3"):  # covers are larger than what was read
        file.seek(start + _id3_size(head))
        head = file.read(_HEAD)
        file.seek(start)
    return FfmpegDecoder(file, name, has_length=_states_its_length(head), max_channels=max_channels)


def _riff_data(head: bytes) -> tuple[int, int, int] | None:
    """Start of the sound in a WAV file, its bytes as the header states them, and bytes per second; None if unknown."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    position, bytes_per_s = 12, 0
    while position + 8 <= len(head):
        chunk, size = (
            head[position : position + 4],
            int.from_bytes(head[position + 4 : position + 8], "little"),
        )
        if chunk == b"fmt ":
            bytes_per_s = int.from_bytes(head[position + 16 : position + 20], "little")
        if chunk == b"data":
            unknown = (
                size in (0, 0xFFFFFFFF) or size >= 0x7FFFF000
            )  # written to a pipe, length never filled in
            return None if unknown or bytes_per_s == 0 else (position + 8, size, bytes_per_s)
        position += 8 + size + size % 2
    return None


def _missing_in_riff(num_bytes: int, head: bytes) -> float:
    """Seconds of audio that the header of a WAV file promises and its `num_bytes` lack."""
    data = _riff_data(head)
    return 0.0 if data is None else max(0, data[0] + data[1] - num_bytes) / data[2]


def _size(file: IO[bytes]) -> int:
    """Bytes from where the file stands to its end."""
    start = file.tell()
    size = file.seek(0, 2) - start
    file.seek(start)
    return size


def _tail(file: IO[bytes]) -> bytes:
    """The last bytes of a file, enough for a page of Ogg."""
    start, size = file.tell(), file.seek(0, 2)
    file.seek(max(start, size - _OGG_TAIL))
    tail = file.read()
    file.seek(start)
    return tail


def _is_ended(tail: bytes) -> bool:
    """Tell whether the last page of an Ogg file is whole and says that it is the last (RFC 3533, section 6)."""
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < _OGG_HEADER or len(page) < _OGG_HEADER + page[26]:
        return False
    lengths = page[_OGG_HEADER : _OGG_HEADER + page[26]]
    return bool(page[5] & _OGG_LAST) and len(page) >= _OGG_HEADER + len(lengths) + sum(lengths)


def _id3_size(head: bytes) -> int:
    """Bytes of the tag at the start of an MP3."""
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))


def _states_its_length(head: bytes) -> bool:
    """Tell whether the duration FFmpeg gives is written in the file; that of an MP3 without Xing is an estimate.

    Args:
        head: start of the file, of an MP3 what follows its tag.
    """
    if head[4:8] == b"ftyp" or head[:4] == b"\x1aE\xdf\xa3":
        return True
    return any(tag in head[:512] for tag in (b"Xing", b"Info", b"VBRI"))


def shortfall(decoded_s: float, promised_s: float | None) -> str | None:
    """Say what is missing when a file ends earlier than its header promises."""
    if promised_s is None or promised_s - decoded_s <= _TOLERANCE_S:
        return None
    return (
        f"cut off: the header promises {promised_s:.2f} s, the file holds {decoded_s:.2f} s, which are used"
    )


class _Callbacks:
    """A file for the callbacks of a decoder, which would print or lose an exception: it is kept, and the file ends."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._fault: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """The next bytes; none after an exception."""
        try:
            content = self._file.read(size) if self._fault is None else b""
            if content is None:
                raise BlockingIOError(
                    errno.EAGAIN, "it does not wait for more; open it so that reading waits"
                )
        except BaseException as error:
            self._fault, content = error, b""
        return content

    def check(self, name: str) -> None:
        """Raise what reading has met: a Ctrl-C as it is, and a file that cannot be read on as SprachbundError."""
        if isinstance(self._fault, OSError | EOFError):
            raise SprachbundError(_unreadable(name, self._fault)) from self._fault
        if self._fault is not None:
            raise self._fault


class _Forgiving(_Callbacks):
    """A file for libsndfile: a seek that cannot be does nothing."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> None:
        with suppress(ValueError, OSError):
            self._file.seek(offset, whence)


def _own_handle(file: IO[bytes]) -> _Forgiving | int:
    """A descriptor of its own for a file on disk, which libsndfile closes; anything else by its methods.

    libsndfile reads Python's files through callbacks, in which a Ctrl-C would be swallowed.
    """
    if not isinstance(file, io.BufferedReader) or not isinstance(file.raw, io.FileIO) or file.tell() != 0:
        return _Forgiving(file)
    try:  # not by the name, which may stand for another file by now, or be that of standard input
        return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
    except OSError:  # not Linux, or the file of another user
        descriptor = os.dup(file.fileno())
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor


def _check_channels(name: str, channels: int, most: int) -> None:
    if channels > most:
        raise SprachbundError(f"{name} has {channels} channels, and {most} are the most; mix it down first")


class _Unnamed(_Callbacks):
    """A file without its name, from which FFmpeg would infer a format; of a pipe it records whether it was cut."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._is_pipe = not file.seekable()
        self._num_bytes, self._head, self._tail = 0, b"", b""
        self.tell, self.seekable = file.tell, file.seekable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (
            OSError,
            ValueError,
        ):  # before the start; PyAV would raise this error later, in FFmpeg's place
            return -errno.EINVAL

    def read(self, size: int = -1) -> bytes:
        """As of any file; what a pipe gave is looked at."""
        content = super().read(size)
        if self._is_pipe:
            self._num_bytes += len(content)
            self._head += content[: _HEAD - len(self._head)]
            if self._head.startswith(b"OggS"):
                self._tail = (self._tail + content)[-_OGG_TAIL:]
        return content

    def head(self) -> bytes | None:
        """The first bytes; of a pipe, those that were read. None for a file that cannot be read."""
        if self._is_pipe:
            return self._head
        try:
            self._file.seek(0)
            return self._file.read(16)
        except (OSError, ValueError):
            return None

    def damage(self, decoded_s: float) -> str | None:
        """Fault of a pipe that ended too early, where FFmpeg does not see it."""
        if self._tail and not _is_ended(self._tail):
            return _OGG_CUT
        return shortfall(decoded_s, decoded_s + _missing_in_riff(self._num_bytes, self._head))


class SndfileDecoder:
    """WAV, FLAC, Ogg, AIFF, CAF, AU, SPHERE through libsndfile; seeks to the sample."""

    def __init__(
        self,
        file: IO[bytes],
        name: str,
        missing_s: float = 0.0,
        *,
        whole: bool = True,
        max_channels: int = MAX_CHANNELS,
    ) -> None:
        import soundfile

        self._name, self._handle = name, _own_handle(file)
        try:
            self._file: Any = soundfile.SoundFile(self._handle)
        except soundfile.LibsndfileError:
            self._check_reading()
            raise
        try:
            self._check_reading()
            _check_channels(name, self._file.channels, max_channels)
        except BaseException:
            self.close()
            raise
        self._rate: int = self._file.samplerate
        self.warnings: list[str] = []
        self.damaged_s: list[float] = []  # libsndfile ends at damage
        known = self._file.frames < _ENDLESS
        self.duration_s: float | None = self._file.frames / self._rate if known else None
        if self.duration_s is not None and missing_s > 0.0:
            self._warn(shortfall(self.duration_s, self.duration_s + missing_s))
        if not whole:
            self._warn(_OGG_CUT)

    def _check_reading(self) -> None:
        """Raise what reading has met, where it is not libsndfile's own."""
        if not isinstance(self._handle, int):
            self._handle.check(self._name)

    def _warn(self, warning: str | None) -> None:
        if warning is not None:
            self.warnings.append(f"{self._name}: {warning}")

    def seek(self, sample_rate_out: int, start_s: float) -> float:
        """Move to the last sample at or before ``start_s`` whose time is a whole number of output samples."""
        if not self._file.seekable():  # GSM and its like
            return 0.0
        step = Fraction(self._rate, sample_rate_out).numerator
        frame = int(start_s * self._rate) // step * step
        if self.duration_s is not None:
            frame = min(frame, self._file.frames // step * step)
        self._file.seek(frame)
        return float(frame / self._rate)

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """Yield mono chunks; damage in the middle ends the audio with a warning."""
        import soundfile

        position = self._file.tell() if self._file.seekable() else 0
        size = _FLAC_CHUNK_FRAMES if self._file.format == "FLAC" else CHUNK_FRAMES
        downmix = Downmix()
        try:
            while len(chunk := self._file.read(size, dtype="float32", always_2d=True)):
                self._check_reading()
                position += len(chunk)
                yield self._rate, downmix.mono(chunk)
            self._check_reading()
        except soundfile.LibsndfileError:
            self._check_reading()
            self._warn(f"damaged at {position / self._rate:.2f} s; only what comes before is used")
        else:
            self._warn(shortfall(position / self._rate, self.duration_s))
            self._warn(downmix.warning)
        finally:
            self.close()

    def close(self) -> None:
        """Release the file."""
        self._file.close()


class FfmpegDecoder:
    """Every other container through the FFmpeg libraries in PyAV; decodes from the start."""

    def __init__(
        self, file: IO[bytes], name: str, *, has_length: bool, max_channels: int = MAX_CHANNELS
    ) -> None:
        import av

        self._name, self._max_channels = name, max_channels
        self.warnings: list[str] = []
        self.damaged_s: list[float] = []
        options = {"protocol_whitelist": _NO_PROTOCOL, "format_whitelist": ",".join(_CONTAINERS)}
        self._file = _Unnamed(file)
        try:
            # An open file alone keeps FFmpeg from nothing: a playlist would lead it to other files and to the network.
            self._container: Any = av.open(self._file, mode="r", container_options=options, **_any_metadata())
        except MemoryError as error:
            raise SprachbundError(
                f"{name} asks for more memory than there is; convert it to wav or flac"
            ) from error
        except (av.error.FFmpegError, ValueError) as error:
            self._file.check(name)
            raise SprachbundError(f"{name} {_undecodable(self._file.head())}") from error
        try:
            self._file.check(name)
            self._stream: Any = self._sound()
            self._check_channels(self._stream.codec_context.layout.nb_channels)
        except BaseException:
            self.close()
            raise
        self._stream.codec_context.thread_count = 1  # a confined process may start none
        self._begin_s = (self._container.start_time or 0) / _MICROSECONDS
        self._decoded_s = 0.0  # with the silence in gaps
        self._ends_s = (
            self._container.duration / _MICROSECONDS if has_length and self._container.duration else None
        )
        self.duration_s: float | None = self._stated_duration()
        # A cover is a picture, and no stream that may outlast the sound.
        lasting = {stream.type for stream in self._container.streams if not _is_cover(stream)}
        self._promised_s = self.duration_s if has_length and lasting == {"audio"} else None

    def _sound(self) -> Any:
        """The stream of sound. Raises SprachbundError where there is none."""
        import av

        stream = self._container.streams.best("audio")
        if isinstance(stream, av.AudioStream) and stream.codec_context is not None:
            return stream
        kinds = [stream.type for stream in self._container.streams]
        if "audio" in kinds:
            raise SprachbundError(f"{self._name} {_undecodable(self._file.head())}")
        held = ", ".join(kinds) or "nothing"
        raise SprachbundError(f"{self._name} has no audio stream (it holds: {held}); give a file with sound")

    def _check_channels(self, channels: int) -> None:
        _check_channels(self._name, channels, self._max_channels)

    def _stated_duration(self) -> float | None:
        if self._stream.duration is not None and self._stream.time_base:
            stated_s = float(self._stream.duration * self._stream.time_base)
        elif self._container.duration is not None:
            stated_s = self._container.duration / _MICROSECONDS
        else:
            return None
        stated_bytes = stated_s * (self._stream.codec_context.bit_rate or 0) / 8
        return None if stated_s < 0 or stated_bytes >= _UNKNOWN_BYTES else stated_s

    def seek(self, sample_rate_out: int, start_s: float) -> float:
        """Stay at the start: FFmpeg's seeks land on packets, whose times many containers only estimate."""
        return 0.0

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """Yield mono chunks, with silence where time passes without audio: before it, in holes, for damage."""
        jumps: list[tuple[float, float]] = []
        downmix = Downmix()
        try:
            for frame in self._frames():
                self._check_channels(frame.layout.nb_channels)  # they may change on the way
                if frame.sample_rate < 1:
                    raise SprachbundError(
                        f"{self._name} states a sample rate of {frame.sample_rate} Hz; export it again"
                    )
                for samples in chain(self._gap(frame, jumps), [downmix.mono(self._floats(frame))]):
                    self._decoded_s += len(samples) / frame.sample_rate
                    yield frame.sample_rate, samples
        finally:
            self.close()
        if self._decoded_s == 0.0 and self.damaged_s:
            if not self._file.seekable() and _has_index_behind(self._file.head() or b""):
                raise SprachbundError(
                    f"{self._name} is an MP4 file whose index is behind its sound, where a pipe cannot go back from; "
                    "save it and name the file"
                )
            raise SprachbundError(
                f"{self._name} is damaged, nothing in it could be decoded; make the file again"
            )
        if self.damaged_s:
            self.warnings.append(
                f"{self._name}: {len(self.damaged_s)} damaged packets left out, the first at {self.damaged_s[0]:.2f} s"
            )
        if jumps:
            self.warnings.append(
                f"{self._name}: its time jumps from {jumps[0][0]:.2f} s to {jumps[0][1]:.2f} s, too far; "
                "the jump is left out"
            )
        missing = shortfall(self._decoded_s, self._promised_s) or self._file.damage(self._decoded_s)
        self.warnings += [
            f"{self._name}: {warning}" for warning in (missing, downmix.warning) if warning is not None
        ]

    def _frames(self) -> Iterator[Any]:
        """Decoded frames; the times of packets that could not be decoded are added to ``damaged_s``."""
        import av

        try:
            for packet in self._container.demux(self._stream):
                self._file.check(self._name)
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    self.damaged_s.append(self._decoded_s)
                    continue
                yield from frames
        except av.error.FFmpegError:  # the container itself breaks off
            self.damaged_s.append(self._decoded_s)
        self._file.check(self._name)

    def _floats(self, frame: Any) -> FloatArray:
        import av

        try:
            return _floats(frame)
        except (
            av.error.FFmpegError,
            ValueError,
            IndexError,
        ) as error:  # a format or layout that cannot be converted
            raise SprachbundError(
                f"{self._name} has sound that cannot be converted ({error}); export it again"
            ) from error

    def _gap(self, frame: Any, jumps: list[tuple[float, float]]) -> Iterator[Samples]:
        """Silence between what was decoded so far and a frame, in pieces: a small file may say that it lasts for hours.

        Args:
            frame: the frame that comes next.
            jumps: gets the times before and after a gap that is not believed.
        """
        late_s = 0.0 if frame.time is None else frame.time - self._begin_s - self._decoded_s
        if late_s <= (_LATEST_S if self._decoded_s else _LATEST_BEGIN_S):  # also of times that go back
            return
        if not self._is_believed(late_s):
            jumps.append((self._decoded_s, self._decoded_s + late_s))
            self._begin_s += late_s  # what follows has the times that follow the jump
            return
        late = round(late_s * frame.sample_rate)
        for begin in range(0, late, CHUNK_FRAMES):
            yield np.zeros(min(CHUNK_FRAMES, late - begin), np.float32)

    def _is_believed(self, late_s: float) -> bool:
        """Whether a gap ends before the file does; where that is unknown, as in fragments of MP4, within an hour."""
        if self._ends_s is None or self._decoded_s > self._ends_s - _TOLERANCE_S:
            return late_s <= _LONGEST_GAP_S
        return self._decoded_s + late_s <= self._ends_s + _TOLERANCE_S

    def close(self) -> None:
        """Release the container; the file stays open for its owner."""
        self._container.close()


def _any_metadata() -> dict[str, Any]:
    """Options with which a title that is not in UTF-8 makes no file unreadable. PyAV 19 takes none, and reads any."""
    import av

    return {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _unreadable(name: str, error: OSError | EOFError) -> str:
    reason = (isinstance(error, OSError) and error.strerror) or error
    return f"{name} cannot be read to its end ({reason}); check the disk or the connection"


def _has_index_behind(head: bytes) -> bool:
    """Whether a file begins like an MP4 with its sound (mdat) before its index (moov), as recorders write it.

    Args:
        head: first bytes of the file.
    """
    position = 0
    while position + 8 <= len(head):
        size, kind = int.from_bytes(head[position : position + 4], "big"), head[position + 4 : position + 8]
        if kind in (b"mdat", b"moov"):
            return kind == b"mdat"
        if size < 8:  # without an end, or of 64 bits
            return False
        position += size
    return False


def _undecodable(head: bytes | None) -> str:
    """What is wrong with a file of which nothing can be decoded, and the next step.

    Args:
        head: its first bytes; None if it cannot be read.
    """
    advice = "give a wav, flac, mp3, ogg, opus, m4a, webm or video file"
    if head is None:
        return f"is not audio that can be decoded; {advice}"
    if not head:
        return "is empty (0 bytes); record or copy it again"
    if head[4:8] == b"ftyp":
        return "is an MP4 file cut off before its index, so nothing can be decoded; copy or record it again"
    return f"is not audio that can be decoded (it starts with {head[:16]!r}); {advice}"


def _floats(frame: Any) -> FloatArray:
    """Channels (N, C) of a PyAV frame of any sample format."""
    import av

    channels = frame.layout.nb_channels
    # PyAV reads beyond the list of planes where there are eight or more, as in 7.1 surround, and crashes.
    wanted = "fltp" if channels < 8 else "flt"
    if frame.format.name != wanted:
        frame = av.AudioResampler(format=wanted).resample(frame)[0]
    return frame.to_ndarray().reshape(-1, channels) if wanted == "flt" else frame.to_ndarray().T

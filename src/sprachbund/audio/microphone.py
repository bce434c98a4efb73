"""Sound of this machine as 16 kHz mono, while it is being made: its inputs, and what it plays itself.

Inputs are read by PortAudio (sounddevice), what is played by SoundCard, since PortAudio has no monitors of PulseAudio.
Threads hand blocks over, so that nothing is lost while text is being computed. An input that vanishes is opened again
when it comes back.
"""

import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import soxr

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError, first_line
from sprachbund.util.arrays import Samples
from sprachbund.util.progress import Report

_BLOCK_S = 0.1
SILENT_S = 2.0
"""A device that hands over nothing for so long is gone: an open one hands over silence, too."""
RETRY_S = 1.0
"""Between two attempts to open a device that is gone."""
_OTHER_WAY = "or pipe raw 16-bit mono sound at 16 kHz into: sprachbund listen -"


@dataclass(frozen=True, kw_only=True)
class InputDevice:
    """A device that records.

    Attributes:
        number: PortAudio's; may change when devices are plugged in.
        name: name of the device.
        system: sound system that offers it, such as ALSA, Core Audio or Windows WASAPI.
        channels: most that it records.
        sample_rate: its own, in Hz.
        is_default: whether it is taken where none is named.
    """

    number: int
    name: str
    system: str
    channels: int
    sample_rate: float
    is_default: bool


def input_devices() -> list[InputDevice]:
    """All devices that record.

    Raises:
        SprachbundError: PortAudio is not installed.
    """
    sounddevice = _sounddevice()
    systems = sounddevice.query_hostapis()
    default = sounddevice.default.device[0]
    return [
        InputDevice(
            number=number,
            name=device["name"],
            system=systems[device["hostapi"]]["name"],
            channels=device["max_input_channels"],
            sample_rate=device["default_samplerate"],
            is_default=number == default,
        )
        for number, device in enumerate(sounddevice.query_devices())
        if device["max_input_channels"] > 0
    ]


def check_microphone(name: str | None = None) -> None:
    """Check that a device can be opened, without recording from it.

    Args:
        name: as of `Microphone`.

    Raises:
        SprachbundError: there is no such device, or PortAudio is not installed.
    """
    sounddevice = _sounddevice()
    try:
        sounddevice.query_devices(_number_or_name(name), "input")
    except (sounddevice.PortAudioError, ValueError) as error:
        raise _unavailable(name, error) from error


def _unavailable(name: str | None, error: Exception) -> SprachbundError:
    known = ", ".join(f"{one.number} {one.name}" for one in input_devices()) or "none"
    return SprachbundError(
        f"the microphone {name or 'of the system'} cannot be opened ({first_line(error)}); there are: "
        f"{known}; name one with --microphone, {_OTHER_WAY}"
    )


class Microphone:
    """An input device; iterate over its sound until `stop` is called.

    Args:
        name: a part of the device's name, or its number in `input_devices`; the system's default if None.
        report: called with a line when the device is gone, and when it is back.

    Raises:
        SprachbundError: there is no such device, it cannot be opened, or PortAudio is not installed.
    """

    def __init__(self, name: str | None = None, *, report: Report = print) -> None:
        self.name, self._report = name, report
        self._blocks: queue.Queue[Samples] = queue.Queue()
        self._stopped = threading.Event()
        self._stream: Any = None
        self._resampler: Any = None
        self._open()

    def stop(self) -> None:
        """End the sound; what was recorded before still comes."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Samples]:
        try:
            while not self._stopped.is_set():
                try:
                    block = self._blocks.get(timeout=SILENT_S)
                except queue.Empty:
                    self._reopen()
                    continue
                yield self._resampled(_joined(block, self._blocks))
            while not self._blocks.empty():
                yield self._resampled(self._blocks.get())
            yield self._resampled(np.zeros(0, np.float32), last=True)
        finally:
            self._close()

    def _open(self) -> None:
        """Find the device and record from it."""
        sounddevice = _sounddevice()
        try:
            device = sounddevice.query_devices(_number_or_name(self.name), "input")
            rate = device["default_samplerate"]
            self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
            self._stream = sounddevice.InputStream(
                device=device["index"],
                samplerate=rate,
                channels=min(2, device["max_input_channels"]),
                dtype="float32",
                blocksize=round(rate * _BLOCK_S),
                callback=self._take,
            )
            self._stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            self._close()
            raise _unavailable(self.name, error) from error

    def _take(self, block: Samples, num_frames: int, time: object, status: object) -> None:
        """Called by PortAudio's thread with (N, channels); must neither wait nor fail."""
        self._blocks.put(block.mean(axis=1, dtype=np.float32))

    def _resampled(self, block: Samples, *, last: bool = False) -> Samples:
        samples: Samples = self._resampler.resample_chunk(block, last=last)
        return samples

    def _reopen(self) -> None:
        """Wait until the device is back; PortAudio looks for devices only when it starts."""
        sounddevice = _sounddevice()
        self._report(
            f"the microphone {self.name or 'of the system'} is gone; listening goes on when it is back"
        )
        self._close()
        while not self._stopped.wait(RETRY_S):
            # The library offers no public way to look again; its documentation names these two.
            sounddevice._terminate()
            sounddevice._initialize()
            try:
                self._open()
            except SprachbundError:
                continue
            self._report("the microphone is back")
            return

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close(ignore_errors=True)


class SystemSound:
    """The sound that this machine plays on its default output; iterate over it until `stop` is called.

    On Linux it is the monitor of PulseAudio or PipeWire, on Windows WASAPI's loop-back.

    Raises:
        SprachbundError: a system that does not hand over its sound, or there is no output.
    """

    def __init__(self) -> None:
        self._output = monitor()
        self._blocks: queue.Queue[Samples | Exception] = queue.Queue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the sound; what was recorded before still comes."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Samples]:
        while not (self._stopped.is_set() and self._blocks.empty()):
            try:
                block = self._blocks.get(timeout=_BLOCK_S)
            except queue.Empty:  # some systems hand over nothing while nothing is played
                continue
            if isinstance(block, Exception):
                raise SprachbundError(
                    f"the sound of this machine is gone ({first_line(block)}); start again when it is back"
                ) from block
            yield _joined(block, self._blocks)

    def _record(self) -> None:
        """In a thread."""
        size = round(_BLOCK_S * SAMPLE_RATE)
        try:
            with self._output.recorder(samplerate=SAMPLE_RATE, blocksize=size) as recorder:
                while not self._stopped.is_set():
                    self._blocks.put(recorder.record(numframes=size).mean(axis=1, dtype=np.float32))
        except Exception as error:  # whatever the system says is for the reader of the blocks
            self._blocks.put(error)


def _joined(first: Samples, blocks: "queue.Queue[Any]") -> Samples:
    """A block and those that wait behind it, so that whoever computes too slowly for the sound sees what waits."""
    parts = [first]
    while blocks.queue and isinstance(blocks.queue[0], np.ndarray):  # nobody else takes any
        parts.append(blocks.get())
    return np.concatenate(parts)


def monitor() -> Any:
    """SoundCard's loop-back of the default output. Raises SprachbundError as of `SystemSound`."""
    if sys.platform == "darwin":
        raise SprachbundError(
            "macOS does not hand over what it plays; install a loop-back device such as BlackHole, choose it as the "
            "output, and name it with --microphone BlackHole"
        )
    try:
        import soundcard

        output = soundcard.default_speaker().id
        name = f"{output}.monitor" if sys.platform == "linux" else output  # PipeWire names monitors so, too
        return soundcard.get_microphone(name, include_loopback=True)
    except (OSError, AssertionError, RuntimeError, IndexError, TypeError) as error:
        # The library has no errors of its own: no libpulse, no server, no output.
        raise SprachbundError(
            "what this machine plays cannot be heard: there is no PulseAudio or PipeWire with an output; look with: "
            f"pactl list short sinks, {_OTHER_WAY}"
        ) from error


def _sounddevice() -> Any:
    """The library. Raises SprachbundError where it finds no PortAudio."""
    try:
        import sounddevice
    except OSError as error:  # it looks for the library when it is imported
        raise SprachbundError(
            "the library PortAudio, which reads microphones, is not installed; run: sudo apt install libportaudio2 "
            f"(Fedora: sudo dnf install portaudio; Arch: sudo pacman -S portaudio), {_OTHER_WAY}"
        ) from error
    return sounddevice


def _number_or_name(name: str | None) -> int | str | None:
    return int(name) if name is not None and name.isdecimal() else name


def raw_blocks(file: IO[bytes], block_s: float = _BLOCK_S) -> Iterator[Samples]:
    """Raw sound, 16-bit little-endian mono at 16 kHz, as it comes through a pipe.

    Raises:
        SprachbundError: it begins as a file of some format does.
    """
    size, rest = 2 * round(block_s * SAMPLE_RATE), b""
    read = getattr(file, "read1", file.read)
    while len(rest) < _HEAD_BYTES and (data := read(size)):
        rest += data
    if (kind := _file_kind(rest)) is not None:
        raise SprachbundError(
            f"standard input is {kind} file; give the file name, or raw 16-bit mono sound at 16 kHz"
        )
    data = b""
    while True:
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        if whole:
            yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / np.float32(32768)
        if not (data := read(size)):
            return


_HEAD_BYTES = 1445
"""The longest frame of an mp3 file with the header of the next one; 45 ms of raw sound."""

_FILE_KINDS = {
    b"RIFF": "a wav",
    b"RF64": "a wav",
    b"FORM": "an aiff",
    b"OggS": "an ogg",
    b"fLaC": "a flac",
    b"\x1aE\xdf\xa3": "a webm or mkv",
}
_MP3_KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Layer III in MPEG 1 and in MPEG 2 (ISO 11172-3, 2.4.2.3, and ISO 13818-3)."""


def _file_kind(head: bytes) -> str | None:
    """Kind of the file that begins with `head`; None for raw sound."""
    if head[4:8] == b"ftyp":
        return "an m4a or mp4"
    if head[:3] == b"ID3" and head[3:4] in (b"\x02", b"\x03", b"\x04"):
        return "an mp3"
    length = _mp3_frame_bytes(head)
    if length is not None and _mp3_frame_bytes(head[length:]) is not None:  # one alone may be a quiet sample
        return "an mp3"
    return _FILE_KINDS.get(head[:4])


def _mp3_frame_bytes(head: bytes) -> int | None:
    """Length of the frame of layer III whose header `head` begins with; None if it begins with none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, index, rate_index = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or index in (0, 15) or rate_index == 3:
        return None
    first = version == 3
    rate = (44_100, 48_000, 32_000)[rate_index] // (1 if first else 2 if version == 2 else 4)
    return (144 if first else 72) * 1000 * _MP3_KBPS[first][index] // rate + (head[2] >> 1 & 1)

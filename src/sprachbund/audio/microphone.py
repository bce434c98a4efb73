"""Sound of this machine's input as 16 kHz mono, while it is being made.

A thread reads the device, so that nothing is lost while text is being computed.
"""

import queue
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError

Samples = NDArray[np.float32]

_SYSTEMS = {"linux": ("alsa", "default"), "darwin": ("avfoundation", ":default"), "win32": ("dshow", "")}


class Microphone:
    """An input device; iterate over its sound until `stop` is called.

    Args:
        device: its name in the system's own terms (alsa, avfoundation, dshow); the default one if None.
        system: name of the way to read it; that of this operating system if None.

    Raises:
        SprachbundError: there is none, or it cannot be read.
    """

    def __init__(self, device: str | None = None, *, system: str | None = None) -> None:
        import av

        own, default = _SYSTEMS.get(sys.platform, ("", ""))
        self.name = device or default
        try:
            self._container: Any = av.open(self.name, format=system or own or None)
            self._stream = self._container.streams.audio[0]
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            raise SprachbundError(
                f"the microphone {self.name or '(none named)'} cannot be opened ({error}); name another with "
                "--microphone, "
                "or pipe raw 16-bit mono sound at 16 kHz into: sprachbund listen -"
            ) from error
        self._blocks: queue.Queue[Samples | Exception | None] = queue.Queue()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the sound; what was recorded before still comes."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Samples]:
        threading.Thread(target=self._record, daemon=True).start()
        while (block := self._blocks.get()) is not None:
            if isinstance(block, Exception):
                raise SprachbundError(f"the microphone {self.name} broke off ({block})")
            yield block

    def _record(self) -> None:
        import av

        resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
        waiting: Exception | None = None
        try:
            for frame in self._container.decode(self._stream):
                for piece in resampler.resample(frame):
                    self._blocks.put(piece.to_ndarray().mean(0, dtype=np.float32))
                if self._stopped.is_set():
                    break
        except (av.FFmpegError, OSError) as error:
            waiting = error
        finally:
            self._container.close()
            self._blocks.put(waiting)


def raw_blocks(file: IO[bytes], block_s: float = 0.1) -> Iterator[Samples]:
    """Raw sound, 16-bit little-endian mono at 16 kHz, as it comes through a pipe."""
    size, rest = 2 * round(block_s * SAMPLE_RATE), b""
    read = getattr(file, "read1", file.read)
    while data := read(size):
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / np.float32(32768)

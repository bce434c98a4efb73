"""The process behind `isolated`: it forks a child for every recording, which is confined and then decodes.

Run by `isolated` as `python -m sprachbund.audio.decoding_server DESCRIPTOR`. The libraries are imported once, so that a
child costs a fork. The descriptor is a Unix socket; each message on it is one byte with three descriptors: the
recording, the channel over which the child answers, and a lifeline. Closing the lifeline's other end kills the child;
when a child has ended, its wait status is written there. The end of the socket ends this process.

On a channel go frames: one byte for the kind, four for the length of what follows (little-endian). The reader sends
OPEN (an object: name, seekable, start, limits), which is answered by OPENED (duration_s, warnings); then SEEK (rate and
second), which is answered by SOUGHT (the second reached); then READ, which is answered by any number of CHUNK (a rate
of four bytes and float32 samples) and END (all warnings). ERROR, one line of text, may come in place of any answer.
"""

import gc
import io
import json
import os
import selectors
import signal
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any, Final

from sprachbund.audio.sandbox import (
    DecodingLimits,
    Sandbox,
    close_all_but,
    confine,
    knows_seccomp,
    leave_network,
)
from sprachbund.errors import SprachbundError

OPEN, OPENED, SEEK, SOUGHT, READ, CHUNK, END, ERROR = (bytes([code]) for code in b"oOsSrcex")
HEADER: Final = struct.Struct("<cI")
RATE: Final = struct.Struct("<I")
STATUS: Final = struct.Struct("<i")
DESCRIPTORS: Final = 3


def send_frame(channel: socket.socket, kind: bytes, content: bytes | memoryview) -> None:
    """Write one frame.

    Args:
        channel: the connected socket.
        kind: one byte, the type of the frame.
        content: the payload.
    """
    channel.sendall(HEADER.pack(kind, len(content)))
    channel.sendall(content)


def main() -> None:
    """Serve until the other end of the socket is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the reader gets it and ends this process
    # Before the imports: a process with threads cannot.
    sandbox = Sandbox(process=True, network_namespace=leave_network(), seccomp=knows_seccomp())
    _import_libraries()
    send_frame(control, OPENED, json.dumps(asdict(sandbox)).encode())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # until here it was a file for what hinders the start
    gc.freeze()  # children then copy less
    _Children(control).serve()


def _import_libraries() -> None:
    """Import what children need, and use it once: what is loaded lazily cannot be loaded in a child."""
    import av
    import numpy as np
    import soundfile

    from sprachbund.audio.decoders import open_decoder

    av.AudioResampler(format="fltp")
    for seekable in (True, False):  # libsndfile, FFmpeg
        file = io.BytesIO()
        soundfile.write(file, np.zeros((4800, 2), np.float32), 16_000, format="WAV")
        file.seek(0)
        for _ in open_decoder(file, "silence", seekable=seekable).chunks():
            pass


class _Children:
    """Forks decoders, kills those that nobody waits for, and reports how they ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lifelines: dict[int, socket.socket] = {}
        self._ended, waker = socket.socketpair()
        for one in (self._ended, waker):
            one.setblocking(False)
        self._waker = waker
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._ended, selectors.EVENT_READ)

    def serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    if not self._take():
                        os._exit(0)  # at once; nothing here needs an end
                elif key.fileobj is self._ended:
                    with suppress(BlockingIOError):
                        self._ended.recv(4096)
                    self._reap()
                elif key.data in self._lifelines:
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)  # not reaped yet, so the number is still its own

    def _take(self) -> bool:
        """Take one recording; False at the end of the socket."""
        message, descriptors, _, _ = socket.recv_fds(self._control, 1, DESCRIPTORS)
        if not message:
            for process in self._lifelines:
                os.kill(process, signal.SIGKILL)
            return False
        if len(descriptors) != DESCRIPTORS:  # this process has too many open; the reader sees its ends close
            for descriptor in descriptors:
                os.close(descriptor)
            return True
        recording, channel, lifeline = descriptors
        try:
            process = os.fork()
        except OSError:
            os.close(lifeline)
        else:
            if process == 0:
                _run_child(recording, channel)
            self._lifelines[process] = socket.socket(fileno=lifeline)
            self._selector.register(self._lifelines[process], selectors.EVENT_READ, process)
        os.close(recording)
        os.close(channel)
        return True

    def _reap(self) -> None:
        for process in list(self._lifelines):
            if (ended := os.waitpid(process, os.WNOHANG))[0] == process:
                lifeline = self._lifelines.pop(process)
                with suppress(KeyError):
                    self._selector.unregister(lifeline)
                with suppress(OSError):
                    lifeline.send(STATUS.pack(ended[1]))
                lifeline.close()


def _run_child(recording: int, descriptor: int) -> None:
    """The whole work of a child process; it does not return."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        close_all_but({recording, descriptor})
        _answer(socket.socket(fileno=descriptor), recording)
        code = 0
    except BaseException:  # the reader has gone, or sees the channel close
        pass
    finally:
        os._exit(code)


def _answer(channel: socket.socket, recording: int) -> None:
    request = json.loads(_receive(channel, OPEN))
    name, limits = request["name"], DecodingLimits(**request["limits"])
    start = request["start"] if request["seekable"] else None
    file: IO[bytes] = (
        io.FileIO(recording) if start is None else io.BufferedReader(_Positioned(recording, start))
    )
    try:
        confine(limits)
    except OSError as error:
        return _refuse(
            channel,
            f"{name} was not decoded: its process could not be confined ({error}); use another system",
        )
    try:
        _decode(channel, file, name, seekable=request["seekable"], channels=limits.channels)
    except SprachbundError as error:
        _refuse(channel, str(error))
    except MemoryError:
        most = f"{limits.memory_bytes >> 20} MiB of memory"
        _refuse(channel, f"{name} needs more than {most} to decode; convert it to wav or flac")
    except ConnectionError:  # the reader has enough
        pass
    except Exception as error:
        _refuse(
            channel, f"{name} cannot be decoded ({type(error).__name__}: {error}); convert it to wav or flac"
        )


def _refuse(channel: socket.socket, reason: str) -> None:
    send_frame(channel, ERROR, reason.encode("utf-8", "replace"))


def _decode(channel: socket.socket, file: IO[bytes], name: str, *, seekable: bool, channels: int) -> None:
    from sprachbund.audio.decoders import open_decoder

    decoder = open_decoder(file, name, seekable=seekable, max_channels=channels)
    send_frame(channel, OPENED, _json(duration_s=decoder.duration_s, warnings=decoder.warnings))
    kind, content = _receive_any(channel)
    if kind == SEEK:
        send_frame(channel, SOUGHT, _json(reached_s=decoder.seek(**json.loads(content))))
        kind, content = _receive_any(channel)
    if kind != READ:
        return
    for rate, samples in decoder.chunks():
        send_frame(channel, CHUNK, RATE.pack(rate) + samples.tobytes())
    send_frame(channel, END, _json(warnings=decoder.warnings))


def _json(**values: Any) -> bytes:
    return json.dumps(values).encode()


def _receive(channel: socket.socket, wanted: bytes) -> bytes:
    kind, content = _receive_any(channel)
    if kind != wanted:
        raise EOFError
    return content


def _receive_any(channel: socket.socket) -> tuple[bytes, bytes]:
    """The next frame of the reader; an empty kind when there is none any more."""
    header = _exactly(channel, HEADER.size)
    if len(header) < HEADER.size:
        return b"", b""
    kind, length = HEADER.unpack(header)
    return kind, _exactly(channel, length)


def _exactly(channel: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size and (more := channel.recv(size - len(content))):
        content += more
    return content


class _Positioned(io.RawIOBase):
    """A descriptor read from a position of its own: the one of the descriptor is shared with the other process."""

    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor, self._position = descriptor, start
        self._size = os.fstat(descriptor).st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise OSError("a position before the start of the file")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        content = os.pread(self._descriptor, len(buffer), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


if __name__ == "__main__":
    main()

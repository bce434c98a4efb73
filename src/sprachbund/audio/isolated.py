"""Untrusted sound: decoded by a child process that can do nothing else, read here like any other decoder.

A fault in a decoder that somebody's recording sets off is then a fault of that child: it reaches no file, no network
and no other recording, and ends with one line. What comes back is checked as if an attacker had written it.
"""

import atexit
import io
import json
import math
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from sprachbund.audio.decoding_server import (
    CHUNK,
    END,
    ERROR,
    HEADER,
    OPEN,
    OPENED,
    RATE,
    READ,
    SEEK,
    SOUGHT,
    STATUS,
    send_frame,
)
from sprachbund.audio.sandbox import DecodingLimits, Sandbox
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import Samples

_SERVER = "sprachbund.audio.decoding_server"
_MAX_FRAME_BYTES = 1 << 26  # the largest packet of any codec decodes to less
_MAX_TEXT, _MAX_WARNINGS = 2000, 100
_START_S, _END_S = 60.0, 5.0
# No more of the environment goes to the server: it may hold keys. Without HOME, Python would ask the system for it,
# through a socket.
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "PYTHONHOME",
    "PYTHONDONTWRITEBYTECODE",
    "TMPDIR",
)
_ADVICE = "convert it to wav or flac on a machine that may fail, and try again"


class DecoderUnavailableError(SprachbundError):
    """No process can be started to decode untrusted sound: a fault of this machine, not of the recording."""


def sandbox() -> Sandbox:
    """The walls around the decoding of untrusted sound on this machine; the first call starts the server."""
    if sys.platform == "win32":
        return Sandbox(process=False, seccomp=False, network_namespace=False)
    return _server().sandbox


def stop() -> None:
    """End the server; the next recording starts another."""
    global _running
    with _starting:
        if _running is not None:
            _running.close()
        _running = None


class IsolatedDecoder:
    """A recording in a child process; a `Decoder` like those in `decoders`.

    Args:
        file: open binary file, from where it stands. One without a descriptor is copied to a temporary file first. Of
            one that cannot seek, nothing may have been read before.
        name: name of the source in errors and warnings.
        seekable: whether it can be read again from its start.
        limits: limits of the decoding.

    Raises:
        DecoderUnavailableError: no child could be started, or the system cannot confine one (Windows).
        SprachbundError: as for `open_decoder`, for a limit passed, and a child that crashed.
    """

    def __init__(self, file: IO[bytes], name: str, *, seekable: bool, limits: DecodingLimits) -> None:
        if sys.platform == "win32":
            raise DecoderUnavailableError(
                f"{name} is from an untrusted source, which is {sandbox()}; use Linux"
            )
        self._name, self._limits = name, limits
        self._waits_s = limits.stall_s if seekable else None
        self._waited_s, self._given_s = 0.0, 0.0
        try:
            with _described(file) as (descriptor, start):
                self._channel, self._lifeline = _begin(descriptor)
        except OSError as error:  # too many open files, a full disk
            raise DecoderUnavailableError(
                f"{name} was not decoded: no process could be started ({error.strerror or error}); try again"
            ) from error
        try:
            request = {"name": name, "seekable": seekable, "start": start, "limits": asdict(limits)}
            self._send(OPEN, request)
            opened = self._expect(OPENED)
            self.duration_s = (
                self._number(opened["duration_s"]) if opened.get("duration_s") is not None else None
            )
            self.warnings = _lines(opened)
            self.damaged_s: list[float] = []  # the child tells of damage in warnings alone
        except BaseException:
            self.close()
            raise

    def seek(self, sample_rate_out: int, start_s: float) -> float:
        """Move to ``start_s`` or before it, to a time that is a whole output sample; return that time."""
        self._send(SEEK, {"sample_rate_out": sample_rate_out, "start_s": start_s})
        reached_s = self._number(self._expect(SOUGHT).get("reached_s"))
        if reached_s > start_s:
            raise self._nonsense()
        return reached_s

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """Yield (sample rate, mono samples (N,)) to the end of the audio, then end the child."""
        try:
            self._send(READ, {})
            while True:
                kind, content = self._receive()
                if kind == END:
                    warnings = _lines(self._object(content))
                    self.warnings += [warning for warning in warnings if warning not in self.warnings]
                    return
                if kind != CHUNK or len(content) < RATE.size or len(content) % 4:
                    raise self._nonsense()
                (rate,) = RATE.unpack_from(content)
                samples = np.frombuffer(content, "<f4", offset=RATE.size)
                self._given_s += len(samples) / max(1, rate)
                if self._given_s > self._limits.duration_s:
                    most = f"{self._limits.duration_s:g} s are the most"
                    raise SprachbundError(
                        f"{self._name} goes on after {self._given_s:.0f} s, and {most}; cut it"
                    )
                yield rate, samples
        finally:
            self.close()

    def close(self) -> None:
        """End the child, wherever it is."""
        for one in (self._channel, self._lifeline):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # for a copy of the socket, too, in a fork of this process
            one.close()

    def _send(self, kind: bytes, value: dict[str, Any]) -> None:
        try:
            send_frame(self._channel, kind, json.dumps(value).encode())
        except OSError:
            raise self._ended() from None

    def _expect(self, wanted: bytes) -> dict[str, Any]:
        kind, content = self._receive()
        if kind != wanted:
            raise self._nonsense()
        return self._object(content)

    def _object(self, content: bytearray) -> dict[str, Any]:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            raise self._nonsense() from None
        if not isinstance(value, dict):
            raise self._nonsense()
        return value

    def _number(self, value: Any) -> float:
        if not isinstance(value, float | int) or not 0 <= value < math.inf:
            raise self._nonsense()
        return float(value)

    def _receive(self) -> tuple[bytes, bytearray]:
        """The next frame of the child; an error in it is raised."""
        kind, length = HEADER.unpack(self._exactly(HEADER.size))
        if length > _MAX_FRAME_BYTES:
            raise self._nonsense()
        content = self._exactly(length)
        if kind == ERROR:
            raise SprachbundError(_line(content.decode("utf-8", "replace")))
        return kind, content

    def _exactly(self, size: int) -> bytearray:
        content = bytearray(size)
        view, began = memoryview(content), time.monotonic()
        try:
            while view:
                self._channel.settimeout(self._patience(time.monotonic() - began))
                count = self._channel.recv_into(view)
                if count == 0:
                    raise self._ended()
                view = view[count:]
        except TimeoutError:
            assert self._waits_s is not None
            raise SprachbundError(
                f"{self._name} was not decoded: the decoder gave nothing for {self._waits_s:g} s and was stopped; "
                f"{_ADVICE}"
            ) from None
        except OSError:
            raise self._ended() from None
        self._waited_s += time.monotonic() - began
        return content

    def _patience(self, waiting_s: float) -> float | None:
        """Seconds still to wait; a decoder has to be as fast as the sound on the whole."""
        if self._waits_s is None:
            return None
        return max(0.001, self._waits_s + self._given_s - self._waited_s - waiting_s)

    def _ended(self) -> SprachbundError:
        """Error that explains why the child ended without an answer."""
        self._lifeline.settimeout(_END_S)
        try:
            status = self._lifeline.recv(STATUS.size)
        except OSError:
            status = b""
        if len(status) < STATUS.size:
            return SprachbundError(
                f"{self._name} was not decoded: its decoder was ended from outside; try again"
            )
        (code,) = STATUS.unpack(status)
        by = os.WTERMSIG(code) if os.WIFSIGNALED(code) else 0
        if by == signal.SIGXCPU:
            took = f"took more than {self._limits.cpu_s} s of processor time and was stopped"
            return SprachbundError(f"{self._name} was not decoded: the decoder {took}; {_ADVICE}")
        how = signal.strsignal(by) if by else f"exit code {os.waitstatus_to_exitcode(code)}"
        return SprachbundError(f"{self._name} was not decoded: its decoder crashed ({how}); {_ADVICE}")

    def _nonsense(self) -> SprachbundError:
        return SprachbundError(f"{self._name} was not decoded: its decoder gave what is no sound; {_ADVICE}")


def _lines(values: dict[str, Any]) -> list[str]:
    """The warnings of a child."""
    warnings = values.get("warnings")
    return [_line(str(one)) for one in warnings[:_MAX_WARNINGS]] if isinstance(warnings, list) else []


def _line(text: str) -> str:
    """In one line that can be printed anywhere."""
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT])


@contextmanager
def _described(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """A descriptor of the file and where it stands; of a copy, if it has none of its own (one of a `GzipFile` would be
    that of the packed file)."""
    raw = file.raw if isinstance(file, io.BufferedReader | io.BufferedRandom) else file
    if isinstance(raw, io.FileIO | tempfile.SpooledTemporaryFile):
        yield raw.fileno(), file.tell() if file.seekable() else 0
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.flush()
        yield copy.fileno(), 0


class _Server:
    """The process `decoding_server`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment |= {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }  # a process with threads cannot fork
        with theirs, tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _SERVER, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process
            )
            theirs.close()
            try:
                self.sandbox = self._greeting()
            except (OSError, ValueError, TypeError, struct.error) as error:
                self.close()
                errors.seek(0)
                output = errors.read()[-_MAX_TEXT:].decode("utf-8", "replace").split("\n")
                reason = next((line for line in reversed(output) if line.strip()), str(error))
                raise DecoderUnavailableError(
                    f"the process that decodes untrusted sound did not start ({_line(reason)}); try: sprachbund doctor"
                ) from error

    def _greeting(self) -> Sandbox:
        self._control.settimeout(_START_S)
        _, length = HEADER.unpack(self._control.recv(HEADER.size, socket.MSG_WAITALL))
        isolation = Sandbox(**json.loads(self._control.recv(length, socket.MSG_WAITALL)))
        self._control.settimeout(None)
        return isolation

    def begin(self, descriptor: int) -> tuple[socket.socket, socket.socket]:
        """Start a child for the recording behind a descriptor; its channel and its lifeline."""
        channel, their_channel = socket.socketpair()
        lifeline, their_lifeline = socket.socketpair()
        with their_channel, their_lifeline:
            try:
                with self._lock:
                    given = [descriptor, their_channel.fileno(), their_lifeline.fileno()]
                    socket.send_fds(self._control, [b"."], given)
            except BaseException:
                channel.close()
                lifeline.close()
                raise
        return channel, lifeline

    def close(self) -> None:
        """End it, and with it all its children."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def let_go(self) -> None:
        """In a fork of the process that started it: leave it to that one."""
        self._control.close()


_starting = threading.Lock()
_running: _Server | None = None


def _server() -> _Server:
    """The one of this process; started when it is first needed."""
    global _running
    with _starting:
        if _running is None:
            _running = _Server()
        return _running


def _begin(descriptor: int) -> tuple[socket.socket, socket.socket]:
    """Start a child; if the server has ended (somebody killed it), by a new one."""
    server = _server()
    try:
        return server.begin(descriptor)
    except ConnectionError:
        _replace(server)
        return _server().begin(descriptor)


def _replace(ended: _Server) -> None:
    global _running
    with _starting:
        if _running is ended:
            _running.close()
            _running = None


def _after_fork() -> None:
    global _running, _starting
    _starting = threading.Lock()
    if _running is not None:
        _running.let_go()
    _running = None


atexit.register(stop)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)

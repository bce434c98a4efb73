"""The server of confined children, with decoders that do what an attacker would make them do: chosen by name."""

import ctypes
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

from sprachbund.audio import decoders, decoding_server


class _Misbehaving:
    duration_s: float | None = None

    def __init__(self, deed: str) -> None:
        self._deed = deed
        self.warnings: list[str] = []
        self.damaged_s: list[float] = []

    def seek(self, sample_rate_out: int, start_s: float) -> float:
        return 0.0

    def close(self) -> None:
        pass

    def chunks(self) -> Iterator[tuple[int, Any]]:
        if self._deed == "hang":
            ctypes.CDLL(None).sched_yield()
            while True:
                pass
        if self._deed == "crash":
            ctypes.string_at(0)
        if self._deed == "exit":
            os._exit(3)
        if self._deed == "grow":
            kept = []
            while True:
                kept.append(np.ones(1 << 22))
        if self._deed == "nonsense":
            yield 16_000, np.zeros(1 << 24, np.float32)
        if self._deed == "slow":  # a sample now and then, for ever
            while True:
                for _ in range(3_000_000):
                    pass
                yield 16_000, np.zeros(1, np.float32)
        if self._deed == "walls":
            self.warnings += [f"{name}: {_tried(attempt)}" for name, attempt in _ATTEMPTS.items()]
        yield 16_000, np.zeros(16_000, np.float32)


def _tried(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except PermissionError:
        return "not permitted"
    except ValueError as error:  # what `resource` makes of it
        return str(error)[:11]
    return "done"


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


_ATTEMPTS: dict[str, Callable[[], object]] = {
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "stat": lambda: os.stat("/etc/passwd"),
    "list": lambda: os.listdir("/"),
    "write": lambda: os.write(1, b"x"),
    "unlink": lambda: os.unlink("/tmp/none"),
    "socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "local": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "fork": _fork,
    "exec": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
}


def _open(file: IO[bytes], name: str, **options: Any) -> Any:
    deed = name.rpartition("/")[2].partition(".")[0]
    if deed in ("hang", "crash", "exit", "grow", "nonsense", "slow", "walls"):
        return _Misbehaving(deed)
    return _whole(file, name, **options)


_whole = decoders.open_decoder
decoders.open_decoder = _open

if __name__ == "__main__":
    decoding_server.main()

"""A stand-in for sounddevice with the parts that are used here, and devices that can be plugged in and out."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np


class PortAudioError(Exception):
    pass


class Machine:
    """Two devices; the default one records a tone of 440 Hz in stereo at 44.1 kHz.

    Attributes:
        plugged: devices that are there.
        seen: those that PortAudio found when it was started last.
        streams: all that were opened.
    """

    def __init__(self, *, blocks_until_gone: int = 10_000) -> None:
        self.names = ["Built-in", "USB headset"]
        self.plugged = {"Built-in", "USB headset"}
        self.seen = set(self.plugged)
        self.blocks_until_gone = blocks_until_gone
        self.streams: list[Any] = []
        self.starts = 0
        machine = self

        class InputStream(_Stream):
            def __init__(self, **options: Any) -> None:
                super().__init__(machine, **options)

        self.module = SimpleNamespace(
            PortAudioError=PortAudioError,
            InputStream=InputStream,
            query_devices=self.query_devices,
            query_hostapis=lambda: ({"name": "ALSA"},),
            default=SimpleNamespace(device=[0, 2]),
            _terminate=lambda: None,
            _initialize=self.start,
        )

    def start(self) -> None:
        self.starts += 1
        self.seen = set(self.plugged)

    def _all(self) -> list[dict[str, Any]]:
        known = [
            {"name": n, "max_input_channels": 2, "default_samplerate": 44_100.0}
            for n in self.names
            if n in self.seen
        ]
        known.append({"name": "Loudspeaker", "max_input_channels": 0, "default_samplerate": 48_000.0})
        return [{**device, "index": number, "hostapi": 0} for number, device in enumerate(known)]

    def query_devices(self, name: int | str | None = -1, kind: str | None = None) -> Any:
        every = self._all()
        if kind is None:
            return every
        inputs = [d for d in every if d["max_input_channels"]]
        wanted = (
            inputs if name is None else [d for d in inputs if name == d["index"] or str(name) in d["name"]]
        )
        if not wanted:
            raise ValueError(f"No input device matching {name!r}")
        return wanted[0]


class _Stream:
    """Calls back from a thread of its own, as fast as it can, until its device is gone or it is closed."""

    def __init__(
        self,
        machine: Machine,
        *,
        device: int,
        samplerate: float,
        channels: int,
        dtype: str,
        blocksize: int,
        callback: Any,
    ) -> None:
        self.machine, self.callback = machine, callback
        self.name = machine.query_devices(device, "input")["name"]
        self.size, self.channels, self.rate = blocksize, channels, samplerate
        self.closed = threading.Event()
        assert dtype == "float32"
        machine.streams.append(self)

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for number in range(self.machine.blocks_until_gone):
            if self.closed.is_set() or self.name not in self.machine.plugged:
                return
            times = (number * self.size + np.arange(self.size)) / self.rate
            tone = (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
            self.callback(np.repeat(tone[:, None], self.channels, 1), self.size, None, None)
            self.closed.wait(0.001)

    def close(self, ignore_errors: bool = True) -> None:
        self.closed.set()


def installed(monkeypatch: Any, **options: Any) -> Machine:
    """A machine with the stand-in in the place of the library."""
    machine = Machine(**options)
    monkeypatch.setitem(__import__("sys").modules, "sounddevice", machine.module)
    return machine

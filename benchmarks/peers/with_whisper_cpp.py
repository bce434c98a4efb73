"""whisper.cpp, by pywhispercpp built on the machine itself: matrices in q8_0.

pywhispercpp hands a filter of logits a copy, so the end token cannot be forbidden. Random weights do not write it in a
hundred tokens; where they did, the count would be an error. Windows below 30 s are encoded at about their own length
(`audio_ctx`). The time of the encoder has the prompt in it: the first hook behind the encoder comes with the first
logits.
"""

import re
import time
from importlib.metadata import version
from pathlib import Path

import _pywhispercpp
import numpy as np
from checkpoint import GGML
from pywhispercpp.model import Model
from worker import RATE, Stopwatch

FRAMES, FRAMES_PER_S, BLOCK = 1500, 50, 64
"""Of a whole window; of a second; lengths are rounded up to so many, as is usual for it."""


def _compiled_for() -> list[str]:
    return re.findall(r"(\w+) = 1", _pywhispercpp.whisper_print_system_info().rpartition("CPU : ")[2])


def _library_version() -> str:
    """Of whisper.cpp itself: the end of its library's name, wherever it was loaded from."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return re.findall(r"/libwhisper\.so\.([\d.]+)$", maps, re.MULTILINE)[0]


class System:
    """Its version has the instructions that it was compiled for."""

    version = f"{_library_version()} (pywhispercpp {version('pywhispercpp')}; {' '.join(_compiled_for())})"

    def __init__(self, folder: Path, precision: str, threads: int, watch: Stopwatch) -> None:
        self.model = Model(str(folder / GGML), n_threads=threads, redirect_whispercpp_logs_to=None)
        self.watch, self.marks = watch, dict[str, float]()
        # What the package's `transcribe` calls, with hooks that it does not offer.
        self.context, self.params = self.model._ctx, self.model._params
        _pywhispercpp.assign_encoder_begin_callback(self.params, lambda *_: self._mark("encode"))
        _pywhispercpp.assign_logits_filter_callback(self.params, lambda *_: self._mark("logits"))

    def transcribe(self, windows: list[np.ndarray], num_tokens: int, beam: int) -> list[str]:
        if beam > 1:
            raise RuntimeError("beams were not tried with whisper.cpp")
        return [self._transcribe(window, num_tokens) for window in windows]

    def _transcribe(self, window: np.ndarray, num_tokens: int) -> str:
        frames = -(-len(window) * FRAMES_PER_S // RATE // BLOCK) * BLOCK
        self.model._set_params(
            {
                "language": "en",
                "no_timestamps": True,
                "no_context": True,
                "single_segment": True,
                "temperature_inc": 0.0,
                "print_progress": False,
                "max_tokens": num_tokens - 1,  # it stops behind the token after so many
                "audio_ctx": min(frames, FRAMES),
            }
        )
        self.marks.clear()
        began = time.perf_counter()
        if _pywhispercpp.whisper_full(self.context, self.params, window, window.size):
            raise RuntimeError("whisper.cpp could not transcribe")
        if (num_written := _pywhispercpp.whisper_full_n_tokens(self.context, 0)) != num_tokens:
            raise RuntimeError(f"{num_written} tokens in place of {num_tokens}")
        self.watch.add("features", 1000 * (self.marks["encode"] - began))
        self.watch.add("encode", 1000 * (self.marks["logits"] - self.marks["encode"]))
        return bytes(_pywhispercpp.whisper_full_get_segment_text(self.context, 0)).decode(errors="replace")

    def _mark(self, name: str) -> bool:
        self.marks.setdefault(name, time.perf_counter())
        return True

"""sprachbund, at the same depth as the others: features, encoder, search and text, without voice activity."""

from pathlib import Path

import numpy as np
import torch
from checkpoint import FOREIGN
from worker import RATE, Stopwatch

import sprachbund
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.models.family import Target
from sprachbund.models.whisper.directory import load
from sprachbund.runtime.engine import engine_for

WINDOW_S = 30
ENGINES = {"native int8": "native", "torch int8": "torch-int8", "bf16": "torch-bf16", "float32": "torch-fp32"}


class System:
    """The precision names the engine: all but native are the torch engine."""

    version = sprachbund.__version__

    def __init__(self, folder: Path, precision: str, threads: int, watch: Stopwatch) -> None:
        torch.set_num_threads(threads)
        directory = folder / FOREIGN
        family = load(directory, offline=True)
        engine = engine_for(
            family, ENGINES[precision], threads=threads, directory=directory, cache=folder / "packed"
        )
        self.family, self.watch = engine.family, watch

    @torch.inference_mode()
    def transcribe(self, windows: list[np.ndarray], num_tokens: int, beam: int) -> list[str]:
        # Audio of a window's length gives the same either way; shorter audio is what real length is for.
        self.family.real_length = len(windows[0]) < WINDOW_S * RATE  # type: ignore[attr-defined]
        with self.watch.part("features"):
            features = self.family.features(windows)
        with self.watch.part("encode"):
            memory = self.family.encode(features)
        options = DecodingOptions(beam_size=beam, min_tokens=num_tokens, max_tokens=num_tokens)
        found = search(self.family, memory, [[Target(language="en", source="en")]] * len(windows), options)
        return [self.family.decode_text(row[0].tokens) for row in found]

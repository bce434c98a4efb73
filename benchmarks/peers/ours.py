"""sprachbund, at the same depth as the others: features, encoder, search and text, without voice activity."""

from pathlib import Path

import numpy as np
from checkpoint import TRANSFORMERS
from worker import DRAFT_LAYERS, MOST_TOKENS, RATE, Stopwatch

import sprachbund
from sprachbund.cli.startup import undisturbed, wait_briefly

wait_briefly()
with undisturbed():  # as the command imports it
    import torch
    from drafted import LuckyDraft

    from sprachbund.decoding.options import DecodingOptions
    from sprachbund.decoding.search import search
    from sprachbund.decoding.speculation import Speculation
    from sprachbund.decoding.state import Hypothesis
    from sprachbund.engines.choice import engine_for, on_same_engine
    from sprachbund.models.base import Family, Memory, Target
    from sprachbund.models.pruning import prune_decoder
    from sprachbund.models.whisper.io import load

WINDOW_S = 30
DRAFTED = ", draft "
LISTED = " of "  # and of how many tokens it chooses
ENGINES = {"native int8": "native", "torch int8": "torch-int8", "bf16": "torch-bf16", "float32": "torch-fp32"}


class System:
    """The precision names the engine: all but native are the torch engine. After it may stand how lucky a draft is."""

    version = sprachbund.__version__

    def __init__(self, folder: Path, precision: str, threads: int, watch: Stopwatch) -> None:
        torch.set_num_threads(threads)
        engine, _, luck = precision.partition(DRAFTED)
        directory = folder / TRANSFORMERS

        # As `sprachbund.load` does. A draft is made of the weights themselves.
        whole = load(directory, offline=True, dtype=torch.float32 if luck else None)
        packed = folder / "packed"
        self.family: Family = engine_for(
            whole, ENGINES[engine], threads=threads, directory=directory, cache=packed, compare=False
        ).family
        self.watch, self.speculation = watch, None
        if luck:
            few = prune_decoder(whole, max(2, whole.config.decoder_layers // DRAFT_LAYERS))
            share, _, listed = luck.partition(LISTED)
            self.draft = LuckyDraft(
                on_same_engine(self.family, few), float(share), int(listed) if listed else None
            )
            self.speculation = Speculation(self.draft)
            self.written = self._write(np.load(folder / "audio.npy"))

    @torch.inference_mode()
    def transcribe(self, windows: list[np.ndarray], num_tokens: int, beam: int) -> list[str]:
        if self.speculation:
            self.draft.written = self.written[len(windows[0])]
        memory = self._encode(windows)
        rows = self._search(memory, len(windows), num_tokens, beam)
        if self.speculation and list(rows[0].tokens) != self.draft.written[:num_tokens]:
            raise RuntimeError("a draft changed what the model writes")
        return [self.family.decode_text(row.tokens) for row in rows]

    def _encode(self, windows: list[np.ndarray]) -> Memory:
        # Audio of a window's length gives the same either way; shorter audio is what real length is for.
        self.family.real_length = len(windows[0]) < WINDOW_S * RATE  # type: ignore[attr-defined]
        with self.watch.part("features"):
            features = self.family.features(windows)
        with self.watch.part("encode"):
            return self.family.encode(features)

    def _search(self, memory: Memory, windows: int, num_tokens: int, beam: int) -> list[Hypothesis]:
        options = DecodingOptions(beam_size=beam, min_tokens=num_tokens, max_tokens=num_tokens)
        targets = [[Target(language="en", source="en")]] * windows
        hypotheses = search(self.family, memory, targets, options, speculation=self.speculation)
        return [row for (row,) in hypotheses]

    @torch.inference_mode()
    def _write(self, audio: np.ndarray) -> dict[int, list[int]]:
        """What the model writes without a draft, by the length of its first window."""
        speculation, self.speculation = self.speculation, None
        sizes = [WINDOW_S * RATE, 5 * RATE]
        written = {
            size: list(self._search(self._encode([audio[:size]]), 1, MOST_TOKENS, 1)[0].tokens)
            for size in sizes
        }
        self.speculation = speculation
        return written

"""openai-whisper: its log-mel, and `decode` of one window."""

from pathlib import Path

import numpy as np
import torch
import whisper
from checkpoint import OPENAI
from worker import Stopwatch


class System:
    version = whisper.__version__

    def __init__(self, folder: Path, precision: str, threads: int, watch: Stopwatch) -> None:
        torch.set_num_threads(threads)
        self.model = whisper.load_model(str(folder / OPENAI), device="cpu")
        encoder = self.model.encoder
        encoder.forward = watch.around("encode", encoder.forward)
        self.watch = watch
        self.end = whisper.tokenizer.get_tokenizer(multilingual=True).eot

    def transcribe(self, windows: list[np.ndarray], num_tokens: int, beam: int) -> list[str]:
        options = whisper.DecodingOptions(
            language="en",
            beam_size=None if beam == 1 else beam,
            sample_len=num_tokens,
            suppress_tokens=[self.end],
            without_timestamps=True,
            fp16=False,
        )
        with self.watch.part("features"):
            padded = [whisper.pad_or_trim(np.array(window)) for window in windows]
            mel = torch.stack([whisper.log_mel_spectrogram(samples) for samples in padded])
        results = whisper.decode(self.model, mel, options)
        if any(len(result.tokens) != num_tokens for result in results):
            raise RuntimeError(f"{[len(r.tokens) for r in results]} tokens in place of {num_tokens}")
        return [result.text for result in results]

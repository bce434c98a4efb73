"""transformers: its feature extractor and `generate`."""

from pathlib import Path

import numpy as np
import torch
import transformers
from checkpoint import FOREIGN
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast
from worker import RATE, Stopwatch


class System:
    version = transformers.__version__

    def __init__(self, folder: Path, precision: str, threads: int, watch: Stopwatch) -> None:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self.dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
        directory = folder / FOREIGN
        self.model = WhisperForConditionalGeneration.from_pretrained(directory, dtype=self.dtype).eval()
        self.extractor = WhisperFeatureExtractor.from_pretrained(directory)
        self.tokenizer = WhisperTokenizerFast.from_pretrained(directory)
        settings = self.model.generation_config
        times = range(settings.no_timestamps_token_id + 1, self.model.config.vocab_size)
        self.never = [
            settings.eos_token_id,
            *times,
        ]  # after a time it would go on with the rest of the window
        encoder = self.model.model.encoder
        encoder.forward = watch.around("encode", encoder.forward)
        self.watch = watch

    @torch.inference_mode()
    def transcribe(self, windows: list[np.ndarray], num_tokens: int, beam: int) -> list[str]:
        with self.watch.part("features"):
            features = self.extractor(windows, sampling_rate=RATE, return_tensors="pt").input_features
        tokens = self.model.generate(
            features.to(self.dtype),
            language="en",
            task="transcribe",
            num_beams=beam,
            max_new_tokens=num_tokens,
            suppress_tokens=self.never,
        )
        if (found := tokens.shape[1]) not in (num_tokens, num_tokens + 4):
            raise RuntimeError(f"{found} tokens in place of {num_tokens}")
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)

"""transformers: its feature extractor and `generate`, alone or with an assistant whose luck is set."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from checkpoint import TRANSFORMERS
from lucky_assistant import fixed_point, lucky_assistant
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast
from worker import MOST_TOKENS, RATE, Stopwatch

ASSISTED = ", assisted "
SIZES = (30 * RATE, 5 * RATE)


class System:
    """The precision names the weights'. After it may stand how often an assistant is right."""

    version = transformers.__version__

    def __init__(self, folder: Path, precision: str, threads: int, watch: Stopwatch) -> None:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        dtype, _, share = precision.partition(ASSISTED)
        self.dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[dtype]
        directory = folder / TRANSFORMERS
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
        self.watch, self.assistant = watch, None
        if share:
            self.assistant = lucky_assistant(self.model, float(share))
            audio = np.load(folder / "audio.npy")
            self.written = {size: fixed_point(partial(self._write, audio[:size])) for size in SIZES}

    @torch.inference_mode()
    def transcribe(self, windows: list[np.ndarray], num_tokens: int, beam: int) -> list[str]:
        if self.assistant is not None:
            self.assistant.expect(self.written[len(windows[0])])
        tokens = self._generate(windows, num_tokens, beam)
        if (num_written := tokens.shape[1]) not in (num_tokens, num_tokens + len(self._prompt())):
            raise RuntimeError(f"{num_written} tokens in place of {num_tokens}")
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    @torch.inference_mode()
    def _write(self, audio: np.ndarray, expected: tuple[int, ...]) -> tuple[int, ...]:
        """Prompt and tokens that come of a window if the assistant expects some."""
        assert self.assistant is not None
        self.assistant.expect(expected)
        return self._prompt() + tuple(self._generate([audio], MOST_TOKENS, 1)[0, -MOST_TOKENS:].tolist())

    def _prompt(self) -> tuple[int, ...]:
        known = self.model.generation_config
        language, task = known.lang_to_id["<|en|>"], known.task_to_id["transcribe"]
        return (known.decoder_start_token_id, language, task, known.no_timestamps_token_id)

    def _generate(self, windows: list[np.ndarray], num_tokens: int, beam: int) -> torch.Tensor:
        with self.watch.part("features"):
            features = self.extractor(windows, sampling_rate=RATE, return_tensors="pt").input_features
        more = (
            {} if self.assistant is None else {"assistant_model": self.assistant}
        )  # None would not be taken
        return self.model.generate(
            features.to(self.dtype),
            language="en",
            task="transcribe",
            num_beams=beam,
            max_new_tokens=num_tokens,
            suppress_tokens=self.never,
            **more,
        )

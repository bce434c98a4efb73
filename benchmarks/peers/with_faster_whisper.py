"""faster-whisper: `WhisperModel.transcribe`, and its batched pipeline for several windows."""

from pathlib import Path

import faster_whisper
import numpy as np
from checkpoint import CONVERTED
from faster_whisper.feature_extractor import FeatureExtractor
from worker import Stopwatch

END = 50_257
WINDOW_S = 30


class System:
    version = faster_whisper.__version__

    def __init__(self, folder: Path, precision: str, threads: int, watch: Stopwatch) -> None:
        self.model = faster_whisper.WhisperModel(
            str(folder / CONVERTED), device="cpu", compute_type=precision, cpu_threads=threads
        )
        times = self.model.hf_tokenizer.token_to_id("<|notimestamps|>") + 1
        # Random weights write times too, at which it would cut the text into segments.
        self.forbidden = [END, *range(times, self.model.hf_tokenizer.get_vocab_size())]
        self.batched = faster_whisper.BatchedInferencePipeline(self.model)
        self.model.encode = watch.around("encode", self.model.encode)
        FeatureExtractor.__call__ = watch.around("features", FeatureExtractor.__call__)

    def transcribe(self, windows: list[np.ndarray], num_tokens: int, beam: int) -> list[str]:
        options = {
            "language": "en",
            "beam_size": beam,
            "temperature": 0.0,
            "compression_ratio_threshold": None,
            "log_prob_threshold": None,
            "no_speech_threshold": None,
            "condition_on_previous_text": False,
            "suppress_tokens": self.forbidden,
            "without_timestamps": True,
            # CTranslate2 stops at half of what prompt and new tokens may be together.
            "max_new_tokens": 2 * num_tokens - (4 if self.model.model.is_multilingual else 2),
            "vad_filter": False,
        }
        audio = np.concatenate(windows)
        if len(windows) == 1:
            segments, _ = self.model.transcribe(audio, **options)
        else:
            clips = [{"start": i * WINDOW_S, "end": (i + 1) * WINDOW_S} for i in range(len(windows))]
            segments, _ = self.batched.transcribe(
                audio, clip_timestamps=clips, batch_size=len(windows), **options
            )
        all_segments = list(segments)
        for segment in all_segments:
            if len(segment.tokens) != num_tokens:
                raise RuntimeError(f"{len(segment.tokens)} tokens in place of {num_tokens}")
        return [segment.text for segment in all_segments]

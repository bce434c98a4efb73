"""OpenVINO GenAI: `WhisperPipeline`, weights in 8 bits, which says itself how long its parts took."""

import os
from pathlib import Path

import numpy as np
import openvino_genai
from checkpoint import OPENVINO
from worker import Stopwatch


class System:
    """Its processor plug-in decides in which numbers it computes beside the weights, unless instructions are held.

    ONEDNN_MAX_CPU_ISA takes the instructions away, and then it must not choose the bf16 that this processor has.
    """

    version = openvino_genai.__version__

    def __init__(self, folder: Path, precision: str, threads: int, watch: Stopwatch) -> None:
        held = {"INFERENCE_PRECISION_HINT": "f32"} if "ONEDNN_MAX_CPU_ISA" in os.environ else {}
        self.pipeline = openvino_genai.WhisperPipeline(
            str(folder / OPENVINO), "CPU", INFERENCE_NUM_THREADS=threads, NUM_STREAMS=1, **held
        )
        self.watch = watch
        settings = self.pipeline.get_generation_config()
        times = range(settings.no_timestamps_token_id + 1, settings.no_timestamps_token_id + 1502)
        # Random weights write times too, which the others never do.
        self.never = [settings.eos_token_id, *times]

    def transcribe(self, windows: list[np.ndarray], num_tokens: int, beam: int) -> list[str]:
        if beam > 1:
            raise RuntimeError("whisper of OpenVINO GenAI searches with one beam")
        texts = []
        for window in windows:  # it takes one recording at a time
            result = self.pipeline.generate(
                window.tolist(),
                language="<|en|>",
                task="transcribe",
                suppress_tokens=self.never,
                begin_suppress_tokens=[],
                max_new_tokens=num_tokens,
                return_timestamps=False,
            )
            metrics = result.perf_metrics
            if (num_written := metrics.get_num_generated_tokens()) != num_tokens:
                raise RuntimeError(f"{num_written} tokens in place of {num_tokens}")
            self.watch.add("features", metrics.get_features_extraction_duration().mean)
            self.watch.add("encode", metrics.get_encode_inference_duration().mean)
            texts.append(result.texts[0])
        return texts

"""faster-whisper behind OpenAI's route for transcriptions, as speaches has it, with requests in batches.

speaches runs each request by itself, or a long recording's windows through `BatchedInferencePipeline`. Here, requests
that wait go through that pipeline together, up to eight, each a clip of one window, which is more than speaches does.
Run by serving.py, in the peers' environment: serve_faster_whisper.py FOLDER PORT THREADS TOKENS
"""

import io
import queue
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import faster_whisper
import numpy as np
import uvicorn
from checkpoint import CONVERTED
from fastapi import FastAPI, File, UploadFile
from fastapi.responses import JSONResponse

BATCH, RATE, END, WINDOW_S = 8, 16_000, 50_257, 30


@dataclass(frozen=True)
class Request:
    audio: np.ndarray
    text: "Future[str]" = field(default_factory=Future)


class Batcher:
    """A thread with the model: all requests that wait, up to a batch, in one call."""

    def __init__(self, folder: Path, threads: int, num_tokens: int) -> None:
        self.model = faster_whisper.WhisperModel(
            str(folder / CONVERTED), device="cpu", compute_type="int8", cpu_threads=threads
        )
        self.pipeline = faster_whisper.BatchedInferencePipeline(self.model)
        times = self.model.hf_tokenizer.token_to_id("<|notimestamps|>") + 1
        self.options = {
            "language": "en",
            "beam_size": 1,
            "temperature": 0.0,
            "compression_ratio_threshold": None,
            "log_prob_threshold": None,
            "no_speech_threshold": None,
            "suppress_tokens": [END, *range(times, self.model.hf_tokenizer.get_vocab_size())],
            "without_timestamps": True,
            # CTranslate2 stops at half of what prompt and new tokens may be together.
            "max_new_tokens": 2 * num_tokens - (4 if self.model.model.is_multilingual else 2),
            "vad_filter": False,
        }
        self.waiting: queue.Queue[Request] = queue.Queue()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            batch = [self.waiting.get()]
            while len(batch) < BATCH and not self.waiting.empty():
                batch.append(self.waiting.get())
            try:
                for request, text in zip(batch, self.transcribe([r.audio for r in batch]), strict=True):
                    request.text.set_result(text)
            except Exception as error:
                for request in batch:
                    request.text.set_exception(error)

    def transcribe(self, recordings: list[np.ndarray]) -> list[str]:
        if len(recordings) == 1:
            segments, _ = self.model.transcribe(
                recordings[0], condition_on_previous_text=False, **self.options
            )
            return [" ".join(segment.text for segment in segments)]
        ends = np.cumsum([len(recording) for recording in recordings]) / RATE
        clips = [
            {"start": float(start), "end": float(end)}
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
        segments, _ = self.pipeline.transcribe(
            np.concatenate(recordings), clip_timestamps=clips, batch_size=len(clips), **self.options
        )
        return [segment.text for segment in segments]


def make_app(batcher: Batcher) -> FastAPI:
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/audio/transcriptions")
    def transcriptions(file: Annotated[UploadFile, File()]) -> JSONResponse:
        audio = faster_whisper.decode_audio(io.BytesIO(file.file.read()))
        request = Request(audio[: WINDOW_S * RATE])
        batcher.waiting.put(request)
        return JSONResponse({"text": request.text.result()})

    return app


def main() -> None:
    folder, port, threads, num_tokens = sys.argv[1:]
    app = make_app(Batcher(Path(folder), int(threads), int(num_tokens)))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()

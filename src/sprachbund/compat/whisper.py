"""openai-whisper's interface: `load_model(...).transcribe(...)` gives a dictionary with `text`, `segments`, `language`.

import sprachbund.compat.whisper as whisper

model = whisper.load_model("turbo")
print(model.transcribe("talk.wav", language="de")["text"])

Arguments that are not served are errors, unless they are at openai-whisper's default. Without effect are
`fp16`, `verbose=False`, `suppress_blank`, `prepend_punctuations`, `append_punctuations` and
`condition_on_previous_text`: spans of speech are decoded apart from each other, so no text conditions the next.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprachbund.api import Model, load
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import load as _load
from sprachbund.compat.arguments import (
    FALLBACK,
    NAMES,
    TranscribeArguments,
    device_by_default,
    prompt_of,
    refuse,
    refuse_others,
    spaced,
    temperatures,
    tokens_of,
)
from sprachbund.errors import SprachbundError

_PACKAGE = "openai-whisper"
_UNSERVED: dict[str, Any] = {
    "carry_initial_prompt": False,
    "clip_timestamps": "0",
    "hallucination_silence_threshold": None,
    "patience": None,
    "length_penalty": None,
    "prompt": None,
    "prefix": None,
    "suppress_tokens": "-1",
    "max_initial_timestamp": 1.0,
}
_WITHOUT_EFFECT = ("best_of", "fp16", "suppress_blank", "prepend_punctuations", "append_punctuations")


def available_models() -> list[str]:
    """Names that `load_model` takes beside directories and names on the hub."""
    return list(NAMES)


def load_audio(file: str, sr: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """Samples (N,) of a recording, 16 kHz mono.

    Raises:
        SprachbundError: a file that cannot be read, or another sampling rate.
    """
    if sr != SAMPLE_RATE:
        raise SprachbundError(f"sr={sr} is not served; models hear {SAMPLE_RATE} Hz")
    return _load(file)


def load_model(
    name: str, device: str | None = None, download_root: str | None = None, in_memory: bool = False
) -> "Whisper":
    """Load a model.

    Args:
        name: a name of openai-whisper, such as "turbo", or anything that `sprachbund.load` takes.
        device: "cpu", "cuda", "cuda:1"; the first GPU, or the CPU, if None.
        download_root: not served; HF_HOME says where downloads are kept.
        in_memory: without effect.

    Raises:
        SprachbundError: there is no such model or device, or an argument is not served.
    """
    refuse(_PACKAGE, {"download_root": download_root}, {"download_root": None})
    return Whisper(load(NAMES.get(name, name), device=str(device or device_by_default())))


class Whisper:
    """A loaded model.

    Args:
        model: model of this package.

    Attributes:
        model: model with all that this package offers.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows more than one language."""
        return len(self.model.family.source_languages) > 1

    def transcribe(
        self,
        audio: str | Path | NDArray[np.float32] | Any,
        *,
        verbose: bool | None = None,
        temperature: float | Sequence[float] = FALLBACK,
        compression_ratio_threshold: float | None = 2.4,
        logprob_threshold: float | None = -1.0,
        no_speech_threshold: float | None = 0.6,
        condition_on_previous_text: bool = True,
        initial_prompt: str | None = None,
        word_timestamps: bool = False,
        task: str = "transcribe",
        language: str | None = None,
        beam_size: int | None = None,
        sample_len: int | None = None,
        without_timestamps: bool = False,
        **others: Any,
    ) -> dict[str, Any]:
        """Transcribe a recording, or translate it into English.

        Args:
            audio: a path, or samples (N,) at 16 kHz, as an array or a tensor.
            verbose: True prints the segments.
            temperature: 0 is greedy or beam search; the others are for text that the thresholds below refuse.
            compression_ratio_threshold: text that compresses better is decoded again, and left out at last.
            logprob_threshold: the same for text of less certainty.
            no_speech_threshold: most doubt of the model that somebody speaks.
            condition_on_previous_text: without effect.
            initial_prompt: shown to the model before each span.
            word_timestamps: adds `words` to segments.
            task: "transcribe" or "translate".
            language: language spoken; identified if None.
            beam_size: hypotheses; 1 if None.
            sample_len: most tokens of a segment.
            without_timestamps: segments are spans of speech.
            others: arguments that have to be at their defaults, or have no effect.

        Returns:
            `text`, `segments` (dictionaries), and `language`, as openai-whisper gives them.

        Raises:
            SprachbundError: an argument that is not served, a language or task that the model does not know, or a
                recording that cannot be read.
        """
        refuse_others(_PACKAGE, others, _UNSERVED, _WITHOUT_EFFECT)
        arguments = TranscribeArguments(
            language=language,
            task=task,
            beam_size=beam_size,
            initial_prompt=prompt_of(initial_prompt),
            word_timestamps=word_timestamps,
            compression_ratio_threshold=compression_ratio_threshold,
            log_probability_threshold=logprob_threshold,
            no_speech_threshold=no_speech_threshold,
            max_tokens=sample_len,
            without_timestamps=without_timestamps,
            temperature=temperatures(self.model, temperature),
        )
        is_file = isinstance(audio, str | Path)
        translation = self.model.translate(
            audio if is_file else np.asarray(audio),
            arguments.target,
            source=language,
            options=arguments.options(),
            sample_rate=None if is_file else SAMPLE_RATE,
        )
        segments = []
        for number, segment in enumerate(filter(arguments.keeps, translation.segments)):
            text = spaced(segment.text, segment.target_language)
            values: dict[str, Any] = {
                "id": number,
                "seek": round(100 * segment.start_s),
                "start": segment.start_s,
                "end": segment.end_s,
                "text": text,
                "tokens": tokens_of(self.model, segment),
                "temperature": segment.temperature,
                "avg_logprob": segment.mean_log_probability,
                "compression_ratio": segment.compression_ratio,
                "no_speech_prob": segment.no_speech_probability or 0.0,
            }
            if word_timestamps:
                values["words"] = [
                    {
                        "word": spaced(word.text, segment.target_language),
                        "start": word.start_s,
                        "end": word.end_s,
                        "probability": word.probability,
                    }
                    for word in segment.words
                ]
            segments.append(values)
            if verbose:
                print(f"[{_clock(segment.start_s)} --> {_clock(segment.end_s)}] {text}")
        text = "".join(segment["text"] for segment in segments)
        return {"text": text, "segments": segments, "language": translation.source_language or language}


def _clock(second: float) -> str:
    minutes, milliseconds = divmod(round(1000 * second), 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"
    return f"{hours:02d}:{shown}" if hours else shown

"""faster-whisper's interface: `WhisperModel(...).transcribe(...)` gives segments one by one, and a `TranscriptionInfo`.

from sprachbund.compat.faster_whisper import WhisperModel

segments, info = WhisperModel("large-v3-turbo").transcribe("talk.wav", vad_filter=True)
for segment in segments:
    print(segment.start, segment.end, segment.text)

`BatchedInferencePipeline(model=model).transcribe("talk.wav", batch_size=16)` takes more spans of speech at a time.
`available_models`, `download_model` and `decode_audio` are here too.

Arguments that are not served are errors, unless they are at faster-whisper's default. In `transcribe`, these have no
effect: `vad_filter` (speech is always found first), `condition_on_previous_text` (spans are decoded apart from each
other), `log_progress`, `num_workers`, `suppress_blank`, `prepend_punctuations`, `append_punctuations`, `multilingual`
(the language is identified span by span in any case), `language_detection_threshold` and `language_detection_segments`.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.api import load
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import load as _load_audio
from sprachbund.audio.load import open_audio
from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import iter_speech_spans
from sprachbund.compat.arguments import (
    FALLBACK,
    NAMES,
    TranscribeArguments,
    device_by_default,
    prompt_of,
    refuse,
    refuse_others,
    spaced,
    span_options,
    temperatures,
    tokens_of,
)
from sprachbund.decoding import result
from sprachbund.decoding.encoding import spoken_log_probs
from sprachbund.decoding.languages import language_posterior
from sprachbund.decoding.options import DecodingOptions, why_no_beam
from sprachbund.engines.options import ENGINE_DEVICES, EngineChoice
from sprachbund.errors import SprachbundError
from sprachbund.models.hub import locate
from sprachbund.util.devices import CPU

_PACKAGE = "faster-whisper"
_UNSERVED: dict[str, Any] = {
    "patience": 1,
    "length_penalty": 1,
    "repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "prefix": None,
    "suppress_tokens": [-1],
    "max_initial_timestamp": 1.0,
    "chunk_length": None,
    "clip_timestamps": "0",
    "hallucination_silence_threshold": None,
}
_WITHOUT_EFFECT = (
    "best_of",  # one text is drawn
    "prompt_reset_on_temperature",  # no text is shown to the next span
    "log_progress",
    "suppress_blank",
    "prepend_punctuations",
    "append_punctuations",
    "multilingual",
    "language_detection_threshold",
    "language_detection_segments",
)
_BEAM = 5
"""Width of the search by default."""
_ENGINES: dict[str, EngineChoice] = {
    "default": "auto",
    "auto": "auto",
    "float32": "torch-fp32",
    "bfloat16": "torch-bf16",
    "int8": "torch-int8",
    "int8_float32": "torch-int8",
    "int8_bfloat16": "torch-int8",
}


@dataclass
class Word:
    """A word, with its times in seconds and its probability."""

    start: float
    end: float
    word: str
    probability: float


@dataclass
class Segment:
    """A segment, with the fields of faster-whisper; `seek` in hundredths of a second."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[Word] | None
    temperature: float | None


@dataclass
class TranscriptionInfo:
    """Facts of a recording.

    Attributes:
        language: language of the first segment; None where nobody speaks and none was given.
        language_probability: probability of that language; 1 where it was given.
        duration: duration of the recording in seconds; 0 where its length is not in its header.
        duration_after_vad: not known before all is decoded; the duration.
        all_language_probs: not kept.
        transcription_options: as they are here.
        vad_options: as they are here.
    """

    language: str | None
    language_probability: float
    duration: float
    duration_after_vad: float
    all_language_probs: list[tuple[str, float]] | None
    transcription_options: DecodingOptions
    vad_options: SpanOptions


def available_models() -> list[str]:
    """Names that `WhisperModel` takes beside directories and names on the hub."""
    return list(NAMES)


def download_model(
    size_or_id: str,
    output_dir: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | None = None,
    revision: str | None = None,
    use_auth_token: str | bool | None = None,
) -> str:
    """Download a model, unless it is there already.

    Args:
        size_or_id: as for `WhisperModel`.
        output_dir: not served; HF_HOME says where downloads are kept.
        local_files_only: never use the network.
        cache_dir: not served, as `output_dir`.
        revision: not served; the newest is taken.
        use_auth_token: not served; HF_TOKEN has it.

    Returns:
        The model's directory.

    Raises:
        SprachbundError: there is no such model, or an argument is not served.
    """
    given = {
        "output_dir": output_dir,
        "cache_dir": cache_dir,
        "revision": revision,
        "use_auth_token": use_auth_token,
    }
    refuse(_PACKAGE, given, dict.fromkeys(given))
    return str(locate(_model_name(size_or_id), offline=local_files_only))


def decode_audio(
    input_file: str | BinaryIO, sampling_rate: int = SAMPLE_RATE, split_stereo: bool = False
) -> NDArray[np.float32]:
    """Samples (N,) of a recording, 16 kHz mono.

    Args:
        input_file: a path or a binary file.
        sampling_rate: 16000; others are not served.
        split_stereo: not served.

    Raises:
        SprachbundError: a file that cannot be read, or an argument is not served.
    """
    given = {"sampling_rate": sampling_rate, "split_stereo": split_stereo}
    refuse(_PACKAGE, given, {"sampling_rate": SAMPLE_RATE, "split_stereo": False})
    return _load_audio(input_file)


def _model_name(size_or_id: str) -> str:
    """What `sprachbund.load` takes; a directory comes first, as there."""
    return size_or_id if os.path.isdir(size_or_id) else NAMES.get(size_or_id, size_or_id)


class WhisperModel:
    """A loaded model.

    Args:
        model_size_or_path: a name of faster-whisper, such as "turbo", or anything that `sprachbund.load` takes.
        device: "cpu", "cuda" or "auto", the first GPU or the CPU.
        device_index: number of the GPU.
        compute_type: "default", "float32", "bfloat16" or "int8", which choose the engine.
        cpu_threads: threads to compute with, as `threads` of `sprachbund.load`; 0 chooses.
        num_workers: without effect.
        download_root: not served; HF_HOME says where downloads are kept.
        local_files_only: never use the network.

    Attributes:
        model: model with all that this package offers.

    Raises:
        SprachbundError: there is no such model or device, or an argument is not served.
    """

    def __init__(
        self,
        model_size_or_path: str,
        device: str = "auto",
        device_index: int = 0,
        compute_type: str = "default",
        cpu_threads: int = 0,
        num_workers: int = 1,
        download_root: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        refuse(_PACKAGE, {"download_root": download_root}, {"download_root": None})
        if compute_type not in _ENGINES:
            raise SprachbundError(
                f"compute_type={compute_type!r} is not served; there are {', '.join(_ENGINES)}"
            )
        engine = _ENGINES[compute_type]
        chosen = device_by_default() if device == "auto" else device
        if chosen != CPU and ENGINE_DEVICES[engine] == (CPU,):
            if device != "auto":
                raise SprachbundError(
                    f"compute_type={compute_type!r} is for CPUs here, and device={device!r}; give device='cpu', or "
                    "compute_type='bfloat16'"
                )
            chosen = CPU
        if chosen == "cuda":
            chosen = f"cuda:{device_index}"
        self.model = load(
            _model_name(model_size_or_path),
            offline=local_files_only,
            engine=engine,
            threads=cpu_threads or None,
            device=chosen,
        )
        self._batch_size: int | None = None

    @property
    def supported_languages(self) -> list[str]:
        """Languages that it hears."""
        return list(self.model.family.source_languages)

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows more than one language."""
        return len(self.supported_languages) > 1

    def transcribe(
        self,
        audio: str | Path | BinaryIO | NDArray[np.float32],
        language: str | None = None,
        task: str = "transcribe",
        *,
        beam_size: int | None = None,
        temperature: float | Sequence[float] = FALLBACK,
        compression_ratio_threshold: float | None = 2.4,
        log_prob_threshold: float | None = -1.0,
        no_speech_threshold: float | None = 0.6,
        condition_on_previous_text: bool = True,
        initial_prompt: str | None = None,
        hotwords: str | None = None,
        word_timestamps: bool = False,
        without_timestamps: bool = False,
        vad_filter: bool = False,
        vad_parameters: Any = None,
        max_new_tokens: int | None = None,
        **others: Any,
    ) -> tuple[Iterator[Segment], TranscriptionInfo]:
        """Transcribe a recording, or translate it into English.

        Args:
            audio: a path, a binary file, or samples (N,) at 16 kHz.
            language: language spoken; identified if None.
            task: "transcribe" or "translate".
            beam_size: hypotheses; 5 if None, or 1 for a model that is searched greedily alone.
            temperature: 0 is greedy or beam search; the others are for text that the thresholds below refuse.
            compression_ratio_threshold: text that compresses better is decoded again, and left out at last.
            log_prob_threshold: the same for text of less certainty.
            no_speech_threshold: most doubt of the model that somebody speaks.
            condition_on_previous_text: without effect.
            initial_prompt: shown to the model before each span.
            hotwords: words to expect, shown with the prompt.
            word_timestamps: adds `words` to segments.
            without_timestamps: segments are spans of speech.
            vad_filter: without effect, speech is always found first.
            vad_parameters: options of the voice activity detection; see `span_options`.
            max_new_tokens: most tokens of a segment.
            others: arguments that have to be at their defaults, or have no effect.

        Returns:
            The segments, each as soon as it is decoded, and what is known of the recording after the first.

        Raises:
            SprachbundError: an argument that is not served, a language or task that the model does not know, or a
                recording that cannot be read.
        """
        refuse_others(_PACKAGE, others, _UNSERVED, _WITHOUT_EFFECT)
        if beam_size is None:
            greedy = why_no_beam(self.model.family, word_timestamps=word_timestamps)
            beam_size = _BEAM if greedy is None else 1
        arguments = TranscribeArguments(
            language=language,
            task=task,
            beam_size=beam_size,
            initial_prompt=prompt_of(initial_prompt, hotwords),
            word_timestamps=word_timestamps,
            compression_ratio_threshold=compression_ratio_threshold,
            log_probability_threshold=log_prob_threshold,
            no_speech_threshold=no_speech_threshold,
            max_tokens=max_new_tokens,
            without_timestamps=without_timestamps,
            temperature=temperatures(self.model, temperature),
            spans=span_options(vad_parameters),
            batch_size=self._batch_size,
        )
        options = arguments.options()
        stream = self.model.stream(
            audio,
            arguments.target,
            source=language,
            options=options,
            sample_rate=SAMPLE_RATE if isinstance(audio, np.ndarray) else None,
        )
        kept = filter(arguments.keeps, stream)
        first = next(kept, None)
        language = stream.source if first is None else first.source_language
        probability = (
            1.0 if first is None or first.language_probability is None else first.language_probability
        )
        duration_s = stream.duration_s or 0.0
        info = TranscriptionInfo(
            language=language,
            language_probability=probability,
            duration=duration_s,
            duration_after_vad=duration_s,
            all_language_probs=None,
            transcription_options=options,
            vad_options=options.spans,
        )
        every = chain([] if first is None else [first], kept)
        return (
            self._segment(number, segment, words=word_timestamps) for number, segment in enumerate(every, 1)
        ), info

    def detect_language(
        self,
        audio: str | Path | BinaryIO | NDArray[np.float32] | None = None,
        features: Any = None,
        vad_filter: bool = False,
        vad_parameters: Any = None,
        language_detection_segments: int = 1,
        language_detection_threshold: float = 0.5,
    ) -> tuple[str, float, list[tuple[str, float]]]:
        """Identify the language that is spoken first.

        Args:
            audio: a path, a binary file, or samples (N,) at 16 kHz.
            features: not served; give the sound.
            vad_filter: without effect, speech is always found first.
            vad_parameters: options of the voice activity detection; see `span_options`.
            language_detection_segments: most spans of speech that are heard; their log-probabilities are averaged.
            language_detection_threshold: probability at which no further span is heard.

        Returns:
            The likeliest language, its probability, and all languages with theirs, the likeliest first.

        Raises:
            SprachbundError: no sound is given, nobody speaks in it, or it cannot be read.
        """
        refuse(_PACKAGE, {"features": features}, {"features": None})
        if audio is None:
            raise SprachbundError("no audio is given; give a path, a file or samples")
        family, heard = self.model.family, list[Tensor]()
        sound = open_audio(audio, sample_rate=SAMPLE_RATE if isinstance(audio, np.ndarray) else None)
        spans = span_options(vad_parameters)
        spans = replace(spans, max_span_s=min(spans.max_span_s, family.max_window_s))
        for _, samples in iter_speech_spans(sound.blocks(), spans):
            heard.append(spoken_log_probs(family, samples))
            posterior = language_posterior(torch.stack(heard), family.source_languages, None).tolist()
            if len(heard) >= language_detection_segments or max(posterior) >= language_detection_threshold:
                break
        if not heard:
            raise SprachbundError("nobody speaks in the audio; give audio with speech")
        every = sorted(zip(family.source_languages, posterior, strict=True), key=lambda one: -one[1])
        return *every[0], every

    def _segment(self, number: int, segment: result.Segment, *, words: bool) -> Segment:
        language = segment.target_language
        return Segment(
            id=number,
            seek=round(100 * segment.start_s),
            start=segment.start_s,
            end=segment.end_s,
            text=spaced(segment.text, language),
            tokens=tokens_of(self.model, segment),
            avg_logprob=segment.mean_log_probability,
            compression_ratio=segment.compression_ratio,
            no_speech_prob=segment.no_speech_probability or 0.0,
            words=[
                Word(start=w.start_s, end=w.end_s, word=spaced(w.text, language), probability=w.probability)
                for w in segment.words
            ]
            if words
            else None,
            temperature=segment.temperature,
        )


class BatchedInferencePipeline:
    """A model that takes several spans of speech at a time.

    Args:
        model: model that decodes.

    Attributes:
        model: model that decodes.
    """

    def __init__(self, model: WhisperModel) -> None:
        self.model = model

    def transcribe(
        self,
        audio: str | Path | BinaryIO | NDArray[np.float32],
        language: str | None = None,
        task: str = "transcribe",
        *,
        batch_size: int = 8,
        without_timestamps: bool = True,
        **others: Any,
    ) -> tuple[Iterator[Segment], TranscriptionInfo]:
        """Transcribe a recording, or translate it into English; see `WhisperModel.transcribe`.

        Args:
            audio: a path, a binary file, or samples (N,) at 16 kHz.
            language: language spoken; identified if None.
            task: "transcribe" or "translate".
            batch_size: most spans of speech that go through the model together; does not change the text.
            without_timestamps: segments are spans of speech.
            others: further arguments of `WhisperModel.transcribe`.

        Returns:
            The segments, and what is known of the recording after the first batch.

        Raises:
            SprachbundError: as `WhisperModel.transcribe`.
        """
        batched = copy.copy(self.model)
        batched._batch_size = batch_size
        return batched.transcribe(audio, language, task, without_timestamps=without_timestamps, **others)

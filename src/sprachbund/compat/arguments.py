"""Shared parts of both interfaces: names of models, and arguments of `transcribe` as decoding options or as errors."""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sprachbund.api import Model
from sprachbund.audio.span_options import SpanOptions
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions, GuardOptions, draws_tokens
from sprachbund.decoding.result import Segment
from sprachbund.errors import SprachbundError
from sprachbund.text.languages import writes_spaces
from sprachbund.util.devices import CPU, available_devices

_SIZES = (
    "tiny",
    "tiny.en",
    "base",
    "base.en",
    "small",
    "small.en",
    "medium",
    "medium.en",
    "large-v2",
)
NAMES: Mapping[str, str] = {
    **{size: f"openai/whisper-{size}" for size in _SIZES},
    "large-v1": "openai/whisper-large",
    **dict.fromkeys(("large-v3", "large"), "whisper-large-v3"),
    **dict.fromkeys(("large-v3-turbo", "turbo"), "whisper-large-v3-turbo"),
    "distil-large-v3": "distil-large-v3",
    **{
        f"distil-{size}": f"distil-whisper/distil-{size}"
        for size in ("large-v3.5", "large-v2", "medium.en", "small.en")
    },
}
"""Names of both packages to those of `sprachbund.load`, which takes all others as they are."""
FALLBACK = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Temperatures of both packages by default."""
_NO_LIMIT = 1e9


def device_by_default() -> str:
    """The device that both packages take by themselves: a GPU, or the CPU where there is none."""
    return "cuda" if any(name.startswith("cuda") for name in available_devices()) else CPU


def refuse(package: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse arguments that change the text in the other package and that nothing here serves.

    Args:
        package: package whose arguments they are.
        given: name to value.
        defaults: name to the package's default, at which an argument counts as not given.

    Raises:
        SprachbundError: an argument is not at its default.
    """
    for name, value in given.items():
        # Arrays are compared number by number, and are no default.
        if isinstance(value, np.ndarray) or value != defaults[name]:
            shown = " ".join(repr(value).split())
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            raise SprachbundError(
                f"{name}={shown} of {package} is not served here; leave it out (default {defaults[name]!r}), see "
                "docs/migrate.md"
            )


def refuse_others(
    package: str, others: Mapping[str, Any], unserved: Mapping[str, Any], without_effect: Collection[str]
) -> None:
    """Refuse what `transcribe` is given beside its own arguments, unless it has no effect.

    Args:
        package: package whose arguments they are.
        others: name to value.
        unserved: name to the package's default of arguments that are not served.
        without_effect: names of arguments that change nothing here.

    Raises:
        SprachbundError: an argument that the package does not have, or one that is not at its default.
    """
    given = {name: value for name, value in others.items() if name not in without_effect}
    if unknown := sorted(given.keys() - unserved.keys()):
        raise SprachbundError(f"transcribe has no argument {unknown[0]!r}")
    refuse(package, given, unserved)


def temperatures(model: Model, temperature: float | Sequence[float]) -> tuple[float, ...]:
    """The temperatures of a fallback; 0 alone, with a warning for others, of a model that draws no tokens.

    Args:
        model: model that is to decode.
        temperature: one, or several in rising order.

    Raises:
        SprachbundError: a temperature outside 0 to 1.
    """
    several = (float(temperature),) if isinstance(temperature, int | float) else tuple(temperature)
    if not several or not all(0 <= one <= 1 for one in several):
        raise SprachbundError(f"temperature={temperature!r} is not between 0 and 1; give 0")
    if draws_tokens(model.family):
        return several
    if several[0] != 0:
        warnings.warn(
            f"temperature={temperature!r}: {model.family.name} draws no tokens, as at 0", stacklevel=3
        )
    return (0.0,)


@dataclass(frozen=True, kw_only=True)
class TranscribeArguments:
    """Arguments of `transcribe` that are served.

    Attributes:
        language: language spoken; None identifies it.
        task: "transcribe", or "translate" into English.
        beam_size: None is greedy.
        initial_prompt: context or glossary.
        word_timestamps: times for words.
        compression_ratio_threshold: None for no limit.
        log_probability_threshold: None for no limit.
        no_speech_threshold: None for no limit.
        max_tokens: most tokens of a segment.
        temperature: temperature in rising order; at the first above 0 there is no beam.
        without_timestamps: segments are the spans of speech as they are.
        spans: options of cutting speech out of the recording.
        batch_size: most spans that go through the model together; None for the default.
    """

    language: str | None
    task: str
    beam_size: int | None
    initial_prompt: str | None
    word_timestamps: bool
    compression_ratio_threshold: float | None
    log_probability_threshold: float | None
    no_speech_threshold: float | None
    max_tokens: int | None
    without_timestamps: bool
    temperature: tuple[float, ...] = (0.0,)
    spans: SpanOptions = field(default_factory=SpanOptions)
    batch_size: int | None = None

    @property
    def target(self) -> str:
        """Language wanted. Raises SprachbundError for a task that there is none."""
        if self.task not in ("transcribe", "translate"):
            raise SprachbundError(f"task={self.task!r} is unknown; give transcribe or translate")
        return "en" if self.task == "translate" else TRANSCRIBE

    def keeps(self, segment: Segment) -> bool:
        """Whether a segment is shown: without a threshold of log-probability, doubt that somebody speaks is enough."""
        sure, doubt = self.log_probability_threshold, self.no_speech_threshold
        silent = segment.no_speech_probability
        if sure is None and doubt is not None and silent is not None and silent > doubt:
            return False
        return segment.dropped is None

    def options(self) -> DecodingOptions:
        """The same as options of decoding."""
        sure, doubt = self.log_probability_threshold, self.no_speech_threshold
        loops = self.compression_ratio_threshold
        guard = GuardOptions(
            max_compression_ratio=_NO_LIMIT if loops is None else loops,
            max_repetition=1.0 if loops is None else GuardOptions.max_repetition,
            max_no_speech_probability=1.0 if doubt is None else doubt,
            min_mean_log_probability=-_NO_LIMIT if sure is None else sure,
            hopeless_mean_log_probability=-_NO_LIMIT
            if sure is None
            else min(sure, GuardOptions.hopeless_mean_log_probability),
        )
        return DecodingOptions(
            beam_size=1 if self.temperature[0] else self.beam_size or 1,
            temperature=self.temperature,
            prompt=self.initial_prompt or None,
            word_timestamps=self.word_timestamps,
            max_tokens=self.max_tokens,
            timestamps=False if self.without_timestamps else "auto",
            guard=guard,
            spans=self.spans,
            batch_size=DecodingOptions.batch_size if self.batch_size is None else self.batch_size,
        )


_SECONDS = {
    "min_speech_duration_ms": "min_speech_s",
    "min_silence_duration_ms": "min_silence_s",
    "speech_pad_ms": "padding_s",
}
_SAME = {"threshold": "threshold", "neg_threshold": "release", "max_speech_duration_s": "max_span_s"}


def span_options(parameters: Any) -> SpanOptions:
    """faster-whisper's `vad_parameters`, a dictionary or an object with such attributes, as options of spans.

    Raises:
        SprachbundError: a parameter that is not known, or values that contradict each other.
    """
    if parameters is None:
        return SpanOptions()
    given = dict(parameters) if isinstance(parameters, Mapping) else dict(vars(parameters))
    values: dict[str, float] = {}
    for name, value in given.items():
        if name in _SECONDS:
            values[_SECONDS[name]] = value / 1000
        elif name in _SAME and value is not None and not math.isinf(value):
            values[_SAME[name]] = value
        elif name not in _SAME:
            known = ", ".join((*_SAME, *_SECONDS))
            raise SprachbundError(f"vad_parameters has {name!r}, which is not served here; there are {known}")
    defaults = asdict(SpanOptions())
    if "threshold" in values and "release" not in values:
        values["release"] = max(0.01, values["threshold"] - 0.15)  # as Silero's own code has it
    if "padding_s" in values and "min_silence_s" not in values:
        values["min_silence_s"] = max(defaults["min_silence_s"], 2 * values["padding_s"])
    values = {**defaults, **values}
    # Of a silence, each side can keep one half.
    values["padding_s"] = min(values["padding_s"], values["min_silence_s"] / 2)
    return SpanOptions(**values)


def prompt_of(*parts: Any) -> str:
    """The text that is shown to the model before each span.

    Args:
        parts: texts, each None where there is none.

    Raises:
        SprachbundError: tokens, which faster-whisper takes as well.
    """
    for part in parts:
        if part is not None and not isinstance(part, str):
            raise SprachbundError(
                f"{part!r} is no text to show to the model; give text, tokens are not served here"
            )
    return " ".join(filter(None, parts))


def spaced(text: str, language: str) -> str:
    """A text with the space in front that both packages give segments and words, where the language writes spaces."""
    text = text.strip()
    return f" {text}" if text and writes_spaces(language) else text


def tokens_of(model: Model, segment: Segment) -> list[int]:
    """Tokens of a segment's text, as the model would write it; none of a model that cannot say."""
    encode = model.family.capabilities.encode_text
    return [] if encode is None else encode(segment.text)

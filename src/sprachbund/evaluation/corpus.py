"""Opens a corpus for evaluation, after looking through all of it: what is broken is named before any work."""

import wave
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.language_spans import timed_spans
from sprachbund.data.manifest import Manifest, Utterance, shard_numbers
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.embedded import embedded_spans, spoken_spans
from sprachbund.evaluation.lines import first_fault, is_tag, json_object
from sprachbund.evaluation.textfiles import check_line_ends

_Place = Annotated[list[int], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    """What evaluation reads of a cut; whatever else it holds is not looked at."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Span(_Part):
    language: str = Field(min_length=1)
    start_s: float | None = None
    end_s: float | None = None
    text: str | None = None
    places: dict[str, _Place] | None = None


class _Custom(_Part):
    translations: dict[str, str] = {}
    spans: list[_Span] | None = None
    main_language: str | None = None
    languages: list[str] | None = None
    foreign_words: list[str] | None = None
    foreign_places: dict[str, list[_Place]] | None = None


class _Supervision(_Part):
    text: str
    language: str | None = None
    speaker: str | None = None
    custom: _Custom | None = None


class _Cut(_Part):
    id: str = Field(min_length=1)
    start: float = Field(ge=0)
    duration: float = Field(gt=0)
    supervisions: list[_Supervision] = Field(min_length=1)


def open_corpus(directory: Path) -> Manifest:
    """A corpus whose every line can be read, whose ids occur once, and whose sound is there to the end.

    Raises:
        SprachbundError: naming file and line of the first fault.
    """
    seen: dict[str, str] = {}
    for number in shard_numbers(directory):
        path = directory / f"cuts.{number:05d}.jsonl"
        end_s = 0.0
        whole = path.read_bytes()
        check_line_ends(path, whole)
        for line, raw in enumerate(whole.splitlines(), start=1):
            cut = _parse(path, line, raw)
            if cut.id in seen:
                raise SprachbundError(
                    f"{path}:{line}: id {cut.id!r} stands at {seen[cut.id]} already; every id may occur once"
                )
            seen[cut.id] = f"{path.name}:{line}"
            end_s = max(end_s, cut.start + cut.duration)
        _check_sound(directory / f"audio.{number:05d}.wav", end_s)
    return Manifest(directory)


def _parse(path: Path, line: int, raw: bytes) -> _Cut:
    try:
        values = json_object(raw)
        cut = _Cut.model_validate(values)
        said = cut.supervisions[0]
        custom = said.custom or _Custom()
        _check_texts(said.language or "", custom)
        if custom.spans or custom.foreign_words:
            _check_spans(cut, dict(values["supervisions"][0]["custom"]))
    except (ValueError, SprachbundError) as error:
        told = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise SprachbundError(
            f"{path}:{line}: not an utterance ({told}); prepare or copy it again"
        ) from error
    return cut


def _check_texts(language: str, custom: _Custom) -> None:
    """Raises ValueError for languages that are none, and for empty references of speech, which would be scored
    on nothing."""
    spans = [span.language for span in custom.spans or ()]
    for tag in (language, *custom.translations, *spans, *(custom.languages or ())):
        if tag and not is_tag(tag):
            raise ValueError(f"{tag!r} is no language tag")
    empty = [tag for tag, text in custom.translations.items() if not text.strip()]
    if language and empty:
        raise ValueError(f"its reference into {empty[0]} is empty: add the text, or take the language out")


def _check_spans(cut: _Cut, custom: dict[str, object]) -> None:
    """Raises SprachbundError for times that are none, overlap or leave the sound, and for places that a reference does
    not have."""
    said = cut.supervisions[0]
    translations = said.custom.translations if said.custom else {}
    utterance = Utterance(
        id=cut.id,
        duration_s=cut.duration,
        text=said.text,
        language=said.language or "",
        speaker=said.speaker or "",
        translations=translations,
        custom=custom,
    )
    spoken_spans(utterance)
    timed_spans(utterance)
    for target in (utterance.language, *translations):
        embedded_spans(utterance, target)


def _check_sound(path: Path, end_s: float) -> None:
    try:
        with wave.open(str(path), "rb") as file:
            rate, num_samples = file.getframerate(), file.getnframes()
            held = (path.stat().st_size - 44) // (file.getsampwidth() * file.getnchannels())
    except (OSError, EOFError, wave.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise SprachbundError(f"{path}: no sound ({reason}); copy the corpus again") from error
    there_s = min(num_samples, held) / SAMPLE_RATE
    if rate != SAMPLE_RATE or there_s < end_s - 0.01:
        raise SprachbundError(
            f"{path}: holds {there_s:.1f} s at {rate} Hz, the utterances reach to {end_s:.1f} s at "
            f"{SAMPLE_RATE} Hz; copy the corpus again"
        )

"""Opens a corpus for evaluation, after looking through all of it: what is broken is named before any work."""

import wave
from functools import cache
from pathlib import Path
from typing import Any

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Manifest, shard_numbers
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import json_object


def open_corpus(directory: Path) -> Manifest:
    """A corpus whose every line can be read, whose ids occur once, and whose sound is there to the end.

    Raises:
        SprachbundError: naming file and line of the first fault.
    """
    seen: dict[str, str] = {}
    for number in shard_numbers(directory):
        path = directory / f"cuts.{number:05d}.jsonl"
        end_s = 0.0
        for line, raw in enumerate(path.read_bytes().splitlines(), start=1):
            cut = _parse(path, line, raw)
            name, place = str(cut["id"]), f"{path.name}:{line}"
            if name in seen:
                raise SprachbundError(
                    f"{path}:{line}: id {name!r} stands at {seen[name]} already; every id may occur once"
                )
            seen[name] = place
            end_s = max(end_s, cut["start"] + cut["duration"])
        _check_sound(directory / f"audio.{number:05d}.wav", end_s)
    return Manifest(directory)


def _parse(path: Path, line: int, raw: bytes) -> dict[str, Any]:
    try:
        cut: dict[str, Any] = json_object(raw)
        said = cut["supervisions"][0]
        if not isinstance(said["text"], str) or float(cut["duration"]) <= 0 or float(cut["start"]) < 0:
            raise ValueError("text, start or duration is not what it should be")
        cut["id"]
        _check_texts(said.get("language") or "", (said.get("custom") or {}).get("translations") or {})
    except (ValueError, KeyError, IndexError, TypeError) as error:
        told = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SprachbundError(
            f"{path}:{line}: not an utterance ({told}); prepare or copy it again"
        ) from error
    return cut


def _check_texts(language: str, translations: Any) -> None:
    """Raises ValueError for languages that are none, and for empty references of speech, which would be scored
    on nothing."""
    if not isinstance(translations, dict):
        raise ValueError("its translations are not language to text")
    for tag in (language, *translations):
        if tag and not _is_tag(tag):
            raise ValueError(f"{tag!r} is no language tag")
    empty = [tag for tag, text in translations.items() if not str(text or "").strip()]
    if language and empty:
        raise ValueError(f"its reference into {empty[0]} is empty: add the text, or take the language out")


@cache
def _is_tag(tag: str) -> bool:
    import langcodes

    return bool(langcodes.tag_is_valid(tag))


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

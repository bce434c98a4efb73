"""Who speaks: the synthesisers that a corpus asks for, their voices and which of these are held out.

espeak-ng speaks every language and is the default. Others speak some: where one has no voice for a language or
a part, espeak-ng stands in, and `spoken_by` counts who spoke in the end.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.audio.stretch import SAMPLE_RATE, change_voice
from sprachbund.data.manifest import Manifest
from sprachbund.data.synthesis import FloatArray, Split, Voice, draw_tempo, draw_voice, speak, voiced_part
from sprachbund.data.synthesis_programs import PROGRAMS, InstalledVoice, installed_voices, say
from sprachbund.errors import SprachbundError

ESPEAK = "espeak-ng"
SYNTHESIZERS = (ESPEAK, *PROGRAMS)
DEFAULT_SYNTHESIZERS = (ESPEAK,)

HELD_OUT_PEOPLE: dict[str, Split] = {"awb": "dev", "ked": "dev", "rms": "test", "lp": "test"}
"""Part of every voice whose name has this word in it; all others are for training.

By person and not by voice: kal and slt lent theirs to both festival and flite.
"""


@dataclass(frozen=True, kw_only=True)
class ProgramVoice:
    """A voice of festival or flite in one manner of speaking.

    ``ratio`` multiplies pitch and formants, ``tempo`` the voice's own pace.
    """

    voice: InstalledVoice
    ratio: float = 1.0
    tempo: float = 1.0

    @property
    def name(self) -> str:
        """The speaker, whatever the manner of speaking."""
        return f"{self.voice.program}-{self.voice.language}-{self.voice.name}"


AnyVoice = Voice | ProgramVoice


def check_synthesizers(synthesizers: Sequence[str], languages: Iterable[str]) -> tuple[str, ...]:
    """The voices, besides those of espeak-ng, that a corpus with these languages will be spoken by.

    Raises `SprachbundError` for an unknown synthesiser, one that is not installed, that lacks a voice which
    Debian has for one of the languages, or that speaks none of them.
    """
    if not synthesizers:
        raise SprachbundError(f"no synthesiser named: choose from {', '.join(SYNTHESIZERS)}")
    names: list[str] = []
    for synthesizer in synthesizers:
        if synthesizer not in SYNTHESIZERS:
            raise SprachbundError(
                f"unknown synthesiser '{synthesizer}': choose from {', '.join(SYNTHESIZERS)}"
            )
        if synthesizer != ESPEAK:
            names += _names_of_voices(synthesizer, list(languages))
    return tuple(names)


def _names_of_voices(synthesizer: str, languages: Sequence[str]) -> list[str]:
    voices = installed_voices(synthesizer)
    packages = PROGRAMS[synthesizer].packages
    for language in languages:
        if language in packages and not any(voice.language == language for voice in voices):
            raise SprachbundError(
                f"{synthesizer} has no voice for '{language}' here: apt-get install {packages[language]}"
            )
    names = [ProgramVoice(voice=voice).name for voice in voices if voice.language in languages]
    if not names:
        raise SprachbundError(
            f"{synthesizer} has a voice for none of {', '.join(languages)}: leave it out of the synthesizers"
        )
    return names


def draw_any_voice(
    language: str, rng: random.Random, split: Split, synthesizers: Sequence[str] = DEFAULT_SYNTHESIZERS
) -> AnyVoice:
    """A random speaker and manner of speaking for ``language`` (BCP-47), from each synthesiser equally often.

    Left out are those without a voice for the language in this part; espeak-ng speaks if none is left.
    """
    casts = {name: () if name == ESPEAK else _cast(name, language, split) for name in synthesizers}
    able = [name for name in synthesizers if name == ESPEAK or casts[name]] or [ESPEAK]
    # One alone costs no draw, so that what espeak-ng speaks by itself stays the same.
    synthesizer = rng.choice(able) if len(able) > 1 else able[0]
    if synthesizer == ESPEAK:
        return draw_voice(language, rng, split)
    tempo = draw_tempo(rng)
    return ProgramVoice(
        voice=rng.choice(casts[synthesizer]), ratio=2.0 ** rng.uniform(-0.25, 0.25), tempo=tempo
    )


def _cast(synthesizer: str, language: str, split: Split) -> tuple[InstalledVoice, ...]:
    voices = installed_voices(synthesizer)
    return tuple(voice for voice in voices if voice.language == language and split_of_voice(voice) == split)


def split_of_voice(voice: InstalledVoice) -> Split:
    """The part that a voice speaks in, by `HELD_OUT_PEOPLE`."""
    return next((HELD_OUT_PEOPLE[word] for word in voice.name.split("_") if word in HELD_OUT_PEOPLE), "train")


def speak_as(text: str, voice: AnyVoice, *, exact: bool = True) -> FloatArray:
    """``text`` spoken by any voice: float32 mono samples in [-1, 1] at 16 kHz, trimmed of silence.

    ``exact`` is as in `sprachbund.data.synthesis.speak`; the other synthesisers are always exact. Raises
    `SprachbundError` as `speak` does.
    """
    if isinstance(voice, Voice):
        return speak(text, voice, SAMPLE_RATE, exact=exact)
    import soxr

    raw, rate_hz = say(text, voice.voice)
    begin, end = voiced_part(raw, rate_hz)
    samples = raw[begin:end].astype(np.float32) / 32768.0
    samples = soxr.resample(samples, rate_hz, SAMPLE_RATE) if rate_hz != SAMPLE_RATE else samples
    return change_voice(samples, voice.ratio, voice.tempo).clip(-1.0, 1.0)


def synthesis_info(directory: Path, synthesizers: Sequence[str]) -> dict[str, Any]:
    """What `dataset.json` says of a part that others than the default may speak: who did, how often, by language.

    Counted, since espeak-ng stands in; nothing for the default.
    """
    if tuple(synthesizers) == DEFAULT_SYNTHESIZERS:
        return {}
    spoken_by: dict[str, Counter[str]] = {}
    voices = set()
    for utterance in Manifest(directory):
        program = utterance.speaker.partition("-")[0]
        if program == "espeak" or program in PROGRAMS:
            name = ESPEAK if program == "espeak" else program
            spoken_by.setdefault(name, Counter())[utterance.language] += 1
        if program in PROGRAMS:
            voices.add(utterance.speaker)
    counts = {name: dict(sorted(spoken_by[name].items())) for name in sorted(spoken_by)}
    return {"synthesizers": list(synthesizers), "spoken_by": counts, "voices": sorted(voices)}

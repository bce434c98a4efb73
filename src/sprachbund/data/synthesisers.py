"""Synthesisers that a corpus asks for, their voices, and which of these are held out.

espeak-ng speaks every language and is the default. Others speak some: where one has no voice for a language or
a part, espeak-ng stands in, and `spoken_by` counts who spoke in the end.
"""

import os
import random
import subprocess
import tempfile
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from sprachbund.audio.augment import change_voice
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Manifest
from sprachbund.data.synthesis import (
    CRASHES,
    NothingSaidError,
    Split,
    SynthesisError,
    Voice,
    draw_tempo,
    draw_voice,
    speak,
    voiced_part,
)
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import FloatArray

# festival, flite and pico, for more variety than one synthesiser has: their voices were made of recordings of
# people.
#
# None is ever needed. The programs are asked themselves which voices they have, and what they say is
# read from the file they write. flite starts in milliseconds, so it is run for every sentence; festival is
# not, so one runs for as long as the process that asks it, and gives the same samples whatever it said
# before. pico is a library in a Python package; its noise differs a little from call to call.

Pcm = npt.NDArray[np.int16]

PATIENCE_S = 60.0
"""A program that takes longer for one sentence hangs."""

# kal16 in telephone quality; nothing but times of day
_FLITE_LEFT_OUT = ("kal", "awb_time")


@dataclass(frozen=True, kw_only=True)
class InstalledVoice:
    """A voice of a program: its name there, the BCP-47 tag of its language, and the coding of its texts."""

    program: str
    name: str
    language: str
    coding: str = "ascii"


@cache
def installed_voices(program: str) -> tuple[InstalledVoice, ...]:
    """The voices that a program of `PROGRAMS` has on this machine, by name.

    Raises `SprachbundError` if the program is not installed or does not answer.
    """
    return tuple(sorted(PROGRAMS[program].voices(), key=lambda voice: voice.name))


def say(text: str, voice: InstalledVoice) -> tuple[Pcm, int]:
    """``text`` as the program renders it: 16-bit mono samples, and their rate in Hz.

    Raises `SprachbundError` if the program is missing, crashes, hangs, or says nothing.
    """
    import soundfile

    spoken = _encoded(text, voice)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        PROGRAMS[voice.program].say(spoken, voice, path)
        try:
            samples, rate_hz = soundfile.read(path, dtype="int16")
        except soundfile.LibsndfileError:
            samples, rate_hz = np.zeros(0, np.int16), 0
    if not samples.any():
        raise NothingSaidError(f"{voice.program} says nothing for {text!r} as '{voice.name}': check the text")
    return samples, rate_hz


def _encoded(text: str, voice: InstalledVoice) -> bytes:
    """The text as the voice reads it; accents that its language does not have are dropped, as people do."""
    flat = " ".join(text.split())
    if not flat:
        raise SynthesisError(f"{voice.program} says nothing for {text!r}: check the text")
    try:
        return flat.encode(voice.coding)
    except UnicodeEncodeError:
        letters = (c for c in unicodedata.normalize("NFKD", flat) if not unicodedata.combining(c))
    try:
        return "".join(letters).encode(voice.coding)
    except UnicodeEncodeError as error:
        raise SynthesisError(
            f"voice '{voice.name}' of {voice.program} cannot read {text!r}: it knows {voice.coding} only"
        ) from error


def _run(program: str, *arguments: str | bytes) -> str:
    """Run a program to its end; what it printed."""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=PATIENCE_S, check=False)
    except FileNotFoundError as error:
        raise _missing(program) from error
    except subprocess.TimeoutExpired as error:
        raise SynthesisError(
            f"{program} took over {PATIENCE_S:.0f} s: run it by hand to see why", killed=True
        ) from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise _ended(program, done.returncode, last or "it says no more")
    return done.stdout.decode(errors="replace")


def _ended(program: str, status: int, last: str) -> SynthesisError:
    killed = status < 0 and status not in CRASHES
    return SynthesisError(f"{program} ended with status {status}: {last}", killed=killed)


def _missing(program: str) -> SprachbundError:
    return SprachbundError(f"{program} is not installed: {PROGRAMS[program].install}")


def _flite_voices() -> list[InstalledVoice]:
    """From a line like "Voices available: kal slt"; those built in are all English."""
    names = _run("flite", "-lv").partition(":")[2].split()
    return [
        InstalledVoice(program="flite", name=name, language="en")
        for name in names
        if name not in _FLITE_LEFT_OUT
    ]


def _say_with_flite(text: bytes, voice: InstalledVoice, path: Path) -> None:
    _run("flite", "-voice", voice.name, "-t", text, "-o", str(path))


_LIST_VOICES = r"""(mapcar
 (lambda (voice)
  (let ((facts (cadr (voice.description voice))))
   (format t "%s\t%s\t%s\n" voice (cadr (assoc 'language facts)) (cadr (assoc 'coding facts)))))
 (voice.list))"""


def _festival_voices() -> list[InstalledVoice]:
    """Voices whose description names a language; most, not all, also name their coding."""
    from babel import Locale

    tags = {name.lower(): tag for tag, name in Locale("en").languages.items()}
    rows = [line.split("\t") for line in _run("festival", "-b", _LIST_VOICES).splitlines()]
    return [
        InstalledVoice(
            program="festival",
            name=row[0],
            language=tags[row[1]],
            coding="ascii" if row[2] == "nil" else row[2],
        )
        for row in rows
        if len(row) == 3 and row[1] in tags
    ]


class _Festival:
    """A running festival, which reads Scheme from a pipe; it ends when the pipe does, or at an error."""

    def __init__(self) -> None:
        try:
            self.process = subprocess.Popen(
                ["festival", "--pipe"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except FileNotFoundError as error:
            raise _missing("festival") from error

    def run(self, command: bytes) -> None:
        """Have one command carried out."""
        assert self.process.stdin
        assert self.process.stdout
        timer = threading.Timer(PATIENCE_S, self.process.kill)
        timer.start()
        last = b"it says no more"
        try:
            self.process.stdin.write(command + b'\n(format t "\\nready\\n")\n(fflush nil)\n')
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line == b"ready\n":
                    return
                last = line.strip() or last
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        status = self.process.wait()
        raise _ended("festival", status, last.decode(errors="replace"))


_LOCK = threading.Lock()
_running: dict[int, _Festival] = {}  # by process: one that was forked must not use its parent's pipe


def _say_with_festival(text: bytes, voice: InstalledVoice, path: Path) -> None:
    command = b'(voice.select \'%s) (utt.save.wave (utt.synth (Utterance Text "%s")) "%s" \'riff)' % (
        voice.name.encode(),
        _escaped(text),
        _escaped(os.fsencode(path)),
    )
    with _LOCK:
        here = _running.get(os.getpid())
        if here is None or here.process.poll() is not None:
            here = _running[os.getpid()] = _Festival()
        here.run(command)


def _escaped(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


_PICO_VOICES = {"de-DE": "de", "en-GB": "en", "en-US": "en", "es-ES": "es", "fr-FR": "fr", "it-IT": "it"}


def _pico() -> ModuleType:
    try:
        import py_nanotts
    except ImportError as error:
        raise _missing("pico") from error
    return py_nanotts


def _pico_voices() -> list[InstalledVoice]:
    """Voices that are part of the package."""
    _pico()
    return [
        InstalledVoice(program="pico", name=name, language=language, coding="utf-8")
        for name, language in _PICO_VOICES.items()
    ]


def _say_with_pico(text: bytes, voice: InstalledVoice, path: Path) -> None:
    import soundfile

    said = _pico().NanoTTS().speak(text.decode("utf-8"), voice=voice.name)
    soundfile.write(path, np.frombuffer(said, "<i2"), SAMPLE_RATE, subtype="PCM_16")


@dataclass(frozen=True, kw_only=True)
class Program:
    """The calls of a program that synthesises speech, and what to install where it has no voice for a language.

    Attributes:
        voices: lists what is installed.
        say: writes encoded text, spoken by a voice, as a sound file.
        install: command that installs it.
        packages: Debian's package with a voice, by language, where it is one of its own; no others have one.
    """

    voices: Callable[[], list[InstalledVoice]]
    say: Callable[[bytes, InstalledVoice, Path], None]
    install: str
    packages: dict[str, str]


PROGRAMS = {
    "festival": Program(
        voices=_festival_voices,
        say=_say_with_festival,
        install="apt-get install festival",
        packages={"en": "festvox-kallpc16k", "it": "festvox-itapc16k", "ru": "festvox-ru"},
    ),
    "flite": Program(
        voices=_flite_voices,
        say=_say_with_flite,
        install="apt-get install flite",
        packages={"en": "flite"},
    ),
    "pico": Program(voices=_pico_voices, say=_say_with_pico, install="pip install py-nanotts", packages={}),
}


ESPEAK = "espeak-ng"
SYNTHESIZERS = (ESPEAK, *PROGRAMS)
DEFAULT_SYNTHESIZERS = (ESPEAK,)

HELD_OUT_PEOPLE: dict[str, Split] = {
    "awb": "dev",
    "ked": "dev",
    "en-GB": "dev",
    "it-IT": "dev",
    "rms": "test",
    "lp": "test",
}
"""Part of every voice whose name has this word in it; all others are for training.

By person and not by voice: kal and slt lent theirs to both festival and flite.
"""


@dataclass(frozen=True, kw_only=True)
class ProgramVoice:
    """A voice of festival, flite or pico in one manner of speaking.

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

    Args:
        language: BCP-47 tag.
        rng: source of all random choices.
        split: "train", "dev" or "test", which have different voices.
        synthesizers: names of synthesisers.
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

    ``exact`` is as in `sprachbund.data.synthesis.speak`; festival and flite are always exact, pico never. Raises
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
    """Return the entries of `dataset.json` about who spoke a part, how often, by language; empty for the default.

    Utterances are counted, since espeak-ng stands in where another synthesiser has no voice.
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

"""Speech for the phrasebook from espeak-ng, so that spoken training data needs no recordings and no network.

espeak-ng is called in-process through the ``espeakng-loader`` wheel: several hundred utterances a second on
one core. Its oscillators keep running between utterances, so the same text sounds slightly different after
another one. Where the same voice must give the same samples, whatever was said before, the library is loaded
afresh (``exact``, the default).
"""

import _ctypes
import ctypes
import random
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import FloatArray

CRASHES = {
    -number
    for number in signal.Signals
    if number.name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
}
"""Exit codes of a process that a fault of native code ended."""


class SynthesisError(SprachbundError):
    """A synthesiser fails on a text.

    Args:
        message: one line for people.
        killed: its program was ended from outside, so the same text may well be spoken another time.
    """

    def __init__(self, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


class NothingSaidError(SynthesisError):
    """A synthesiser works and has no sound for a text."""


Split = Literal["train", "dev", "test"]

ESPEAK_RATE_HZ = 22_050
DEFAULT_SPEED_WPM = 175
_SPEED_LIMITS_WPM = (80, 450)  # outside, espeak-ng silently takes the nearest

DEV_VARIANTS = ("f4", "m3", "belinda", "Denis", "zac")
TEST_VARIANTS = ("Annie", "grandma", "boris", "quincy", "travis")
HELD_OUT_VARIANTS = DEV_VARIANTS + TEST_VARIANTS

# Left out: whispers, Demonic (several voices at once), Reed and caleb (never the same twice), names with
# spaces.
_TRAIN_VARIANTS = (
    "Alex", "Alicia", "Andrea", "Andy", "AnxiousAndy", "Diogo", "Gene", "Gene2", "Henrique", "Hugo",
    "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "RicishayMax", "RicishayMax2",
    "RicishayMax3", "Storm", "Tweaky", "UniRobot", "adam", "anika", "anikaRobot", "announcer", "antonio",
    "aunty", "benjamin", "croak", "david", "ed", "edward", "edward2", "f1", "f2", "f3", "f5", "fast",
    "grandpa", "gustave", "ian", "iven", "iven2", "iven3", "iven4", "john", "kaukovalta", "klatt", "klatt2",
    "klatt3", "klatt4", "klatt5", "klatt6", "linda", "m1", "m2", "m4", "m5", "m6", "m7", "m8", "marcelo",
    "max", "michel", "miguel", "mike2", "norbert", "pablo", "paul", "pedro", "rob", "robert", "robosoft",
    "robosoft2", "robosoft3", "robosoft4", "robosoft5", "robosoft6", "robosoft7", "robosoft8", "sandro",
    "shelby", "steph", "steph2", "steph3", "victor",
)  # fmt: skip

VARIANTS = ("", *_TRAIN_VARIANTS, *HELD_OUT_VARIANTS)
"""Every usable espeak-ng variant of a voice; the empty name is the language's own voice."""

ACCENTS: dict[str, tuple[str, ...]] = {
    "en": ("en-US", "en-US", "en-GB", "en-GB", "en-GB-scotland", "en-029"),
    "es": ("es", "es-419"),
    "fr": ("fr", "fr", "fr-BE", "fr-CH"),
    "pt": ("pt", "pt-BR"),
}
"""Regional voices by language; a repeated tag is drawn more often. Languages not listed have one voice."""

# espeak-ng's own name where it is not the lower-cased tag
_ESPEAK_NAMES = {
    "en-GB": "en", "de-DE": "de", "es-ES": "es", "fr-FR": "fr", "it-IT": "it", "nl-NL": "nl", "pt-PT": "pt",
    "ru-RU": "ru", "zh": "cmn",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One synthetic speaker in one manner of speaking.

    ``language`` is a BCP-47 tag with an optional region, ``variant`` one of `VARIANTS`. ``speed_wpm`` is
    words per minute (80 to 450), ``pitch`` and ``pitch_range`` run from 0 to 99 with 50 as the voice's own,
    ``word_gap_ms`` is extra silence between words.
    """

    language: str
    variant: str = ""
    speed_wpm: int = DEFAULT_SPEED_WPM
    pitch: int = 50
    pitch_range: int = 50
    word_gap_ms: int = 0

    def __post_init__(self) -> None:
        low, high = _SPEED_LIMITS_WPM
        if not low <= self.speed_wpm <= high:
            raise SprachbundError(f"speed_wpm is {self.speed_wpm}: choose {low} to {high}")
        if not (0 <= self.pitch <= 99 and 0 <= self.pitch_range <= 99):
            raise SprachbundError(
                f"pitch is {self.pitch} and pitch_range {self.pitch_range}: both must be 0 to 99"
            )
        if self.variant not in VARIANTS:
            raise SprachbundError(
                f"unknown voice variant '{self.variant}': choose from sprachbund.data.synthesis.VARIANTS"
            )

    @property
    def name(self) -> str:
        """The speaker: language and variant, whatever the manner of speaking."""
        return f"espeak-{self.language}-{self.variant or 'plain'}"


def draw_voice(language: str, rng: random.Random, split: Split) -> Voice:
    """A random speaker and manner of speaking for ``language`` (BCP-47).

    Training never draws from `HELD_OUT_VARIANTS`; dev
    and test draw only from `DEV_VARIANTS` and `TEST_VARIANTS`.

    Args:
        language: BCP-47 tag.
        rng: source of all random choices.
        split: "train", "dev" or "test", which have different voices.
    """
    variants: dict[str, Sequence[str]] = {
        "train": ("", *_TRAIN_VARIANTS),
        "dev": DEV_VARIANTS,
        "test": TEST_VARIANTS,
    }
    if split not in variants:
        raise SprachbundError(f"unknown split '{split}': choose from {', '.join(variants)}")
    tempo = draw_tempo(rng)
    return Voice(
        language=rng.choice(ACCENTS.get(language, (language,))),
        variant=rng.choice(variants[split]),
        speed_wpm=round(DEFAULT_SPEED_WPM * tempo),
        pitch=round(min(99.0, max(0.0, rng.gauss(50.0, 22.0)))),
        pitch_range=rng.randint(15, 90),
        word_gap_ms=rng.choice((0, 0, 0, 0, 20, 50, 120, 250)),
    )


def draw_tempo(rng: random.Random) -> float:
    """A tempo of 0.5 to 2.0 times the default, denser around 1."""
    return 2.0 ** min(1.0, max(-1.0, rng.gauss(0.0, 0.42)))


def speak(text: str, voice: Voice, sample_rate: int = SAMPLE_RATE, *, exact: bool = True) -> FloatArray:
    """``text`` spoken by ``voice``: float32 mono samples in [-1, 1], trimmed of silence at both ends.

    With ``exact`` the samples depend on nothing but the arguments; without, utterances come more than twice
    as fast but depend slightly on what this process said before.

    Raises `SprachbundError` if espeak-ng is not installed, does not know the language, or says nothing.
    """
    return speak_with_words(text, voice, sample_rate, exact=exact)[0]


def speak_with_words(
    text: str, voice: Voice, sample_rate: int = SAMPLE_RATE, *, exact: bool = True
) -> tuple[FloatArray, list[tuple[int, float]]]:
    """The same as `speak`, and ``(character, start_s)`` of every word: its start in ``text`` and in the samples.

    Args:
        text: text to speak.
        voice: speaker and manner.
        sample_rate: Hz.
        exact: whether the same text and voice always give the same samples.
    """
    with _LOCK:
        raw, events = _engine(exact).speak(text, voice)
    if not len(raw) or not raw.any():
        raise NothingSaidError(f"espeak-ng says nothing for {text!r} in '{voice.language}': check the text")
    begin, end = voiced_part(raw, ESPEAK_RATE_HZ)
    samples = raw[begin:end].astype(np.float32) / 32768.0
    words = [(character, max(0, sample - begin) / ESPEAK_RATE_HZ) for character, sample in events]
    if sample_rate != ESPEAK_RATE_HZ:
        import soxr

        samples = soxr.resample(samples, ESPEAK_RATE_HZ, sample_rate).clip(-1.0, 1.0)
    return samples, _starts_of_words(text, words)


def voiced_part(raw: npt.NDArray[np.int16], rate_hz: int, margin_s: float = 0.05) -> tuple[int, int]:
    """Begin and end of what is not silence in 16-bit samples, with a margin; not all may be zero.

    Args:
        raw: 16-bit samples (num_samples,).
        rate_hz: sampling rate.
        margin_s: seconds kept on both sides.
    """
    magnitude = np.abs(raw.astype(np.int32))
    loud = np.flatnonzero(magnitude > magnitude.max() * 0.005)  # 46 dB below the peak
    margin = int(margin_s * rate_hz)
    return max(0, int(loud[0]) - margin), min(len(raw), int(loud[-1]) + margin)


def _starts_of_words(text: str, words: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Only events at the start of a written word: espeak-ng also reports parts of numbers and names."""
    kept: dict[int, float] = {}
    for character, start_s in words:
        after_gap = character == 0 or not text[character - 1].isalnum()
        if character < len(text) and after_gap and text[character].isalnum():
            kept.setdefault(character, start_s)
    return sorted(kept.items())


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1
_EVENT_LIST_END, _EVENT_WORD = 0, 1
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7


class _Engine:
    """The espeak-ng library, loaded once; not thread-safe (the library keeps its state in globals)."""

    def __init__(self) -> None:
        library_path, data_path = _installed()
        self.library = library = ctypes.CDLL(library_path)
        library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
            ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 1000, data_path.encode(), _DO_NOT_EXIT)
        if rate_hz != ESPEAK_RATE_HZ:
            raise SprachbundError(f"espeak-ng answered {rate_hz} to a start: reinstall espeakng-loader")
        library.espeak_ng_SetRandSeed(1)
        self.chunks: list[bytes] = []
        self.events: list[tuple[int, int]] = []
        self.callback = _CALLBACK(self._receive)  # kept: the library holds only a bare pointer
        library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples: Any, num_samples: int, events: Any) -> int:
        if samples and num_samples > 0:
            self.chunks.append(ctypes.string_at(samples, num_samples * 2))
        index = 0
        while events[index].type != _EVENT_LIST_END:
            if events[index].type == _EVENT_WORD:
                self.events.append((events[index].text_position - 1, events[index].sample))
            index += 1
        return 0

    def speak(self, text: str, voice: Voice) -> tuple[npt.NDArray[np.int16], list[tuple[int, int]]]:
        """Raw 16-bit samples at 22,050 Hz and (character, sample) of every word event."""
        self._choose(voice)
        self.chunks, self.events = [], []
        encoded = text.encode()
        failed = self.library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _UTF8, None, None)
        if failed:
            raise SynthesisError(f"espeak-ng failed with code {failed} on {text!r}")
        return np.frombuffer(b"".join(self.chunks), np.int16), self.events

    def _choose(self, voice: Voice) -> None:
        name = _ESPEAK_NAMES.get(voice.language, voice.language.lower())
        full_name = f"{name}+{voice.variant}" if voice.variant else name
        if self.library.espeak_SetVoiceByName(full_name.encode()):
            raise SprachbundError(
                f"espeak-ng has no voice for language '{voice.language}': see espeak-ng --voices"
            )
        settings = {
            _RATE: voice.speed_wpm,
            _VOLUME: 100,
            _PITCH: voice.pitch,
            _RANGE: voice.pitch_range,
            _WORD_GAP: voice.word_gap_ms // 10,
        }
        for parameter, value in settings.items():
            self.library.espeak_SetParameter(parameter, value, 0)

    def close(self) -> None:
        """Unload the library, which resets all of its state."""
        self.library.espeak_Terminate()
        unload = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # type: ignore[attr-defined]
        unload(self.library._handle)


_LOCK = threading.Lock()
_loaded: list[_Engine] = []


def _engine(fresh: bool) -> _Engine:
    if fresh and _loaded:
        _loaded.pop().close()
    if not _loaded:
        _loaded.append(_Engine())
    return _loaded[0]


@cache
def _installed() -> tuple[str, str]:
    """Paths of the library and its data."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise SprachbundError(
            "speech synthesis needs espeak-ng, which is not installed: pip install 'sprachbund[train]'"
        ) from error
    return str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())

"""Speech to be labelled, from wherever it lies: a corpus, a folder of recordings, a recording; texts or none.

Long recordings are cut at pauses into pieces that a teacher takes at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sprachbund.audio.activity import VoiceActivity
from sprachbund.audio.load import open_audio
from sprachbund.audio.spans import SpanOptions, iter_speech_spans
from sprachbund.data.manifest import Manifest, read_info, shard_numbers
from sprachbund.data.own_sources import AUDIO_SUFFIXES
from sprachbund.errors import SprachbundError

_UNKNOWN_S = 60.0  # a recording whose header does not tell its length counts as so long


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """One utterance, whatever is known of it.

    Attributes:
        id: unique within its source.
        samples: (num_samples,) float32 at 16 kHz.
        language: BCP-47 tag of the speech; None where it is to be found out, "" where nobody speaks.
        text: transcript, if there is one.
        speaker: if known.
        translations: language to text.
        custom: whatever else is said of it.
    """

    id: str
    samples: np.ndarray
    language: str | None
    text: str = ""
    speaker: str = ""
    translations: Mapping[str, str] = field(default_factory=dict)
    custom: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / 16_000


class Source(Protocol):
    """Speech in pieces that can be read one by one, in any order."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def languages(self) -> frozenset[str]:
        """BCP-47 tags of what is spoken, as far as that is known."""
        ...

    @property
    def durations_s(self) -> list[float]:
        """Seconds of every piece."""
        ...

    @property
    def info(self) -> dict[str, Any]:
        """What is said of it as a whole: name, licence, attribution."""
        ...

    def read(self, piece: int) -> Iterator[Spoken]:
        """The utterances of a piece."""
        ...


def open_source(path: Path, language: str | None, max_s: float) -> Source:
    """A corpus directory, a folder of recordings, or one recording.

    Args:
        path: of it.
        language: spoken in recordings; None where it is to be found out. A corpus tells its own.
        max_s: longest piece that a recording is cut into.

    Raises:
        SprachbundError: nothing there, no audio in it, a folder of corpora, or a language given for a corpus.
    """
    if path.is_dir() and shard_numbers(path):
        if language is not None:
            raise SprachbundError(
                f"{path} is a corpus, which says itself what is spoken; leave {language} out, or label the "
                "recordings by themselves"
            )
        return CorpusSource(path)
    if not path.exists():
        raise SprachbundError(f"{path} is not there; name a corpus, a folder of recordings or a recording")
    if parts := sorted({str(cuts.parent) for cuts in path.glob("*/cuts.*.jsonl")}):
        raise SprachbundError(f"{path} holds the corpora {', '.join(parts)}; name one of them")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    audio = [p for p in files if p.suffix.lower() in AUDIO_SUFFIXES and not p.name.startswith(".")]
    if not audio:
        raise SprachbundError(f"{path} holds no audio ({len(files)} files); name a folder of recordings")
    return FolderSource(path, audio, language, max_s)


class CorpusSource:
    """The utterances of a corpus; see `Source`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest = Manifest(path)

    @property
    def languages(self) -> frozenset[str]:
        """Languages spoken."""
        return frozenset(self._manifest.languages.tolist()) - {""}

    @property
    def durations_s(self) -> list[float]:
        """Seconds of every utterance."""
        return [float(s) for s in self._manifest.durations_s]

    @property
    def info(self) -> dict[str, Any]:
        """What its `dataset.json` says."""
        return {"name": self.path.name, **read_info(self.path)}

    def read(self, piece: int) -> Iterator[Spoken]:
        """The utterance with its texts."""
        said = self._manifest[piece]
        yield Spoken(
            id=said.id,
            samples=self._manifest.samples(piece),
            language=said.language,
            text=said.text,
            speaker=said.speaker,
            translations=said.translations,
            custom=said.custom,
        )


class FolderSource:
    """Recordings without texts, cut at pauses; see `Source`."""

    def __init__(self, path: Path, files: list[Path], language: str | None, max_s: float) -> None:
        self.path = path
        self._files, self._language = files, language
        self._spans = SpanOptions(max_span_s=min(SpanOptions.max_span_s, max_s))
        self._activity = VoiceActivity()

    @property
    def languages(self) -> frozenset[str]:
        """The language that was given."""
        return frozenset({self._language} if self._language else ())

    @cached_property
    def durations_s(self) -> list[float]:
        """Seconds of every recording, as its header says."""
        return [_duration_s(path) for path in self._files]

    @property
    def info(self) -> dict[str, Any]:
        """Its name."""
        return {"name": self.path.name}

    def read(self, piece: int) -> Iterator[Spoken]:
        """The stretches of speech in a recording, named by their first millisecond."""
        path = self._files[piece]
        root = self.path if self.path.is_dir() else self.path.parent
        name = path.relative_to(root).as_posix().replace("/", "-")
        for span, samples in iter_speech_spans(
            open_audio(path).blocks(), self._spans, activity=self._activity
        ):
            yield Spoken(
                id=f"{name}-{round(1000 * span.start_s):08d}",
                samples=samples,
                language=self._language,
                custom={"source": str(path), "start_s": round(span.start_s, 3)},
            )


def _duration_s(path: Path) -> float:
    """What a header says; reading tells what is wrong with a file that has none."""
    try:
        return open_audio(path).duration_s or _UNKNOWN_S
    except SprachbundError:
        return _UNKNOWN_S

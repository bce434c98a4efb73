"""What a public corpus is on its way into manifests: parts, their utterances, and what is left out and why.

A reader of a corpus only says what is where; sound is read when an utterance is written, one at a time,
so that memory does not grow with the corpus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
Progress = Callable[[str, int, int], None]


def _silent(part: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """What is taken from a corpus.

    Attributes:
        languages: spoken languages, BCP-47; all that are there when empty.
        targets: languages of translations, BCP-47; all that are there when empty.
        splits: names of parts; all that are there when empty.
        skip_bad: leave utterances out whose sound cannot be read, instead of ending at the first.
        progress: told the part, entries done, and entries in all.
    """

    languages: Sequence[str] = ()
    targets: Sequence[str] = ()
    splits: Sequence[str] = ()
    skip_bad: bool = False
    progress: Progress = _silent

    def takes(self, language: str) -> bool:
        """Whether speech in a language is wanted."""
        return not self.languages or language in self.languages

    def takes_target(self, language: str) -> bool:
        """Whether translations into a language are wanted."""
        return not self.targets or language in self.targets

    def takes_split(self, split: str) -> bool:
        """Whether a part is wanted."""
        return not self.splits or split in self.splits


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A stretch of a recording on disk.

    Attributes:
        path: of the recording, of any container.
        start_s: where the stretch begins, in seconds.
        duration_s: its length in seconds; None to the end.
        channel: which channel is heard; None mixes all.
    """

    path: Path
    start_s: float = 0.0
    duration_s: float | None = None
    channel: int | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One utterance of a corpus.

    Attributes:
        where: file and line, for messages.
        utterance_id: unique in its part.
        sound: a stretch of a recording, or what reads the sound, to be called before the next entry is taken.
        language: BCP-47 tag of the speech.
        text: transcript; empty where the corpus has none.
        speaker: who speaks; empty when unknown.
        translations: language to text.
        custom: what else the corpus says.
    """

    where: str
    utterance_id: str
    sound: Cut | Callable[[], Samples]
    language: str
    text: str
    speaker: str = ""
    translations: Mapping[str, str] = field(default_factory=dict)
    custom: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something in the corpus that becomes no utterance.

    Attributes:
        where: file and line.
        reason: why, in words that can be counted.
        published: whether the makers count it among their utterances.
    """

    where: str
    reason: str
    published: bool = True


Entry = Item | LeftOut


@dataclass(frozen=True, kw_only=True)
class Part:
    """A split of a corpus: its name, how many entries it has, and the entries, the same ones each time."""

    name: str
    total: int
    entries: Callable[[], Iterator[Entry]]

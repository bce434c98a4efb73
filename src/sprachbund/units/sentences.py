"""What a model with token input learns from: sentences that were spoken, and sentences that were written.

Speech and text come from the same triples of units, transcript and translation; more text from outside. Each kind has
the same form, and which of them a sentence is of decides nothing but how its source is turned into tokens.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sprachbund.data.bitext import Bitext
from sprachbund.errors import SprachbundError
from sprachbund.units.encoded import Encoded, UnitUtterance

Kind = Literal["speech", "text", "bitext"]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A source and its translation.

    Attributes:
        name: for messages.
        source: units as characters where it was spoken, else text.
        spoken: whether `source` is units.
        source_language: BCP-47 tag.
        target: text.
        target_language: BCP-47 tag.
        transcript: what was said; empty where it is not known, and of text.
    """

    name: str
    source: str
    spoken: bool
    source_language: str
    target: str
    target_language: str
    transcript: str = ""


class Spoken:
    """Sentences of a corpus as units, one for each utterance and each of its translations that is wanted.

    Args:
        encoded: the corpus.
        pairs: (source, target) languages wanted.
        as_text: their transcripts in the place of their units.
        keep_repeats: a unit for every frame.
        hours: of speech taken, spread at random, smaller amounts a part of larger ones; all if None.

    Attributes:
        missing: utterances in a source language that lack a translation, or as text a transcript.

    Raises:
        SprachbundError: an utterance without units.
    """

    def __init__(
        self,
        encoded: Encoded,
        pairs: Sequence[tuple[str, str]],
        *,
        as_text: bool = False,
        keep_repeats: bool = False,
        hours: float | None = None,
    ) -> None:
        self.kind: Kind = "text" if as_text else "speech"
        self._encoded, self._keep_repeats = encoded, keep_repeats
        self._places: list[tuple[int, str]] = []
        self.missing = 0
        self.seconds = 0.0
        taken = within_hours(encoded, {source for source, _ in pairs}, hours)
        for number, utterance in enumerate(encoded):
            if number not in taken:
                continue
            if not utterance.units and utterance.language:
                raise SprachbundError(
                    f"{encoded.directory}: {utterance.id} has no units; encode the corpus again, with --skip-bad"
                )
            for target in (t for s, t in pairs if s == utterance.language):
                if not utterance.text_in(target) or (as_text and not utterance.text):
                    self.missing += 1
                    continue
                self._places.append((number, target))
                self.seconds += utterance.duration_s

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sentence:
        number, target = self._places[index]
        utterance = self._encoded[number]
        as_text = self.kind == "text"
        return Sentence(
            name=f"{utterance.id} ({target})",
            source=utterance.text if as_text else self._units(utterance),
            spoken=not as_text,
            source_language=utterance.language,
            target=utterance.text_in(target) or "",
            target_language=target,
            transcript="" if as_text else utterance.text,
        )

    def _units(self, utterance: UnitUtterance) -> str:
        return utterance.with_repeats if self._keep_repeats else utterance.units


def within_hours(encoded: Encoded, languages: Collection[str], hours: float | None) -> Collection[int]:
    """Numbers of the utterances in some languages that make up so many hours, in a fixed random order; of all if None.

    Raises:
        SprachbundError: there are not so many hours.
    """
    durations_s = np.array([u.duration_s if u.language in languages else 0.0 for u in encoded])
    if hours is None:
        return range(len(durations_s))
    order = np.random.default_rng(0).permutation(np.flatnonzero(durations_s))
    if durations_s.sum() < 3600 * hours:
        raise SprachbundError(
            f"{encoded.directory} holds {durations_s.sum() / 3600:.3g} h of speech in {', '.join(sorted(languages))}, "
            f"and {hours:g} are wanted; ask for less"
        )
    behind = np.cumsum(durations_s[order]) - durations_s[order]
    return set(order[behind < 3600 * hours].tolist())


class Written:
    """Sentences of a bitext."""

    kind: Kind = "bitext"
    missing = 0
    seconds = 0.0

    def __init__(self, bitext: Bitext) -> None:
        self._bitext = bitext

    def __len__(self) -> int:
        return len(self._bitext)

    def __getitem__(self, index: int) -> Sentence:
        pair = self._bitext.pairs[index]
        return Sentence(
            name=pair.where,
            source=pair.source,
            spoken=False,
            source_language=self._bitext.source_language,
            target=pair.target,
            target_language=self._bitext.target_language,
        )


Sentences = Spoken | Written

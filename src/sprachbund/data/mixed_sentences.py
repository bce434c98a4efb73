"""Sentences in which some slots are said in another language, with the place of every switch in text and in sound.

Whoever says them (a synthesiser, recordings of people), a sentence is a sequence of runs, each in one language. Sound
is made run by run and joined, so that the times of a switch are known to the sample.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.corpora.spans import Place, places_of_pieces
from sprachbund.data.editions import Part, draw_meaning
from sprachbund.data.phrasebook import Meaning, Piece, render_pieces
from sprachbund.data.phrasebook.sentences import templates
from sprachbund.data.synthesis import FloatArray

MAX_GAP_S = 0.12
"""Longest silence between two runs, beside the margins that each has."""
_TWO_SLOTS = 0.3
"""Share of the sentences in which two slots are embedded, where there are two."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Words of one language that follow each other.

    Attributes:
        text: the words.
        language: BCP-47 tag.
        slots: said in it, if it is embedded.
    """

    text: str
    language: str
    slots: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MixedSentence:
    """What is said, and what it is in all languages.

    Attributes:
        meaning: of it.
        main: BCP-47 tag of the language of the sentence.
        runs: two at least; neighbours differ in language.
    """

    meaning: Meaning
    main: str
    runs: tuple[Run, ...]

    @property
    def text(self) -> str:
        """As it is said."""
        return " ".join(run.text for run in self.runs)

    def fields(
        self, times_s: Sequence[tuple[float, float]], languages: Iterable[str], corpus: str
    ) -> dict[str, Any]:
        """As a manifest holds it.

        Args:
            times_s: begin and end of each run.
            languages: of the texts.
            corpus: its name.
        """
        others = [tag for tag in languages if tag != self.main]
        rendered = {tag: render_pieces(self.meaning, tag) for tag in others}
        spans = [self._span(run, time_s, rendered) for run, time_s in zip(self.runs, times_s, strict=True)]
        for span, place in zip(
            spans, places_of_pieces([r.text for r in self.runs], self.text, self.main), strict=True
        ):
            if "places" in span and place is not None:
                span["places"][self.main] = list(place)
        spoken = list(dict.fromkeys([self.main, *(run.language for run in self.runs)]))
        return {
            "text": self.text,
            "language": self.main,
            "translations": {tag: "".join(p.text for p in pieces) for tag, pieces in rendered.items()},
            "custom": {
                "kind": self.meaning.kind,
                "meaning": self.meaning.key,
                "corpus": corpus,
                "code_switched": True,
                "main_language": self.main,
                "languages": spoken,
                "spans": spans,
            },
        }

    def _span(
        self, run: Run, time_s: tuple[float, float], rendered: Mapping[str, Sequence[Piece]]
    ) -> dict[str, Any]:
        start_s, end_s = time_s
        span: dict[str, Any] = {
            "language": run.language,
            "start_s": start_s,
            "end_s": end_s,
            "text": run.text,
        }
        if run.language != self.main:
            places = {tag: place_of(run.slots, pieces, tag) for tag, pieces in rendered.items()}
            span["places"] = {tag: list(place) for tag, place in places.items() if place}
        return span


def draw_mixed(main: str, embedded: str, part: Part, rng: random.Random) -> MixedSentence:
    """A sentence of a part with one slot, or two, in another language."""
    while True:
        meaning = draw_meaning(part, rng)
        if meaning.kind in templates() and (sentence := mixed(meaning, main, embedded, rng)):
            return sentence


def mixed(meaning: Meaning, main: str, embedded: str, rng: random.Random) -> MixedSentence | None:
    """A meaning with some of its slots embedded; None where a switch would be inside a word, or none would be heard."""
    slots = list(templates()[meaning.kind].slots)
    count = 2 if len(slots) > 1 and rng.random() < _TWO_SLOTS else 1
    chosen = dict.fromkeys(rng.sample(slots, count), embedded)
    pieces = render_pieces(meaning, main, rng, embedded=chosen)
    runs = [list(run) for _, run in groupby(pieces, key=lambda piece: piece.language)]
    texts = ["".join(piece.text for piece in run) for run in runs]
    between_words = all(one[-1:] == " " or other[:1] == " " for one, other in pairwise(texts))
    plain = {piece.slot: piece.text for piece in render_pieces(meaning, main)}
    alike = any(p.text == plain[p.slot] for p in pieces if p.language == embedded)
    if len(runs) < 2 or not between_words or alike or not all(text.strip() for text in texts):
        return None
    made = tuple(
        Run(
            text=text.strip(),
            language=run[0].language,
            slots=tuple(piece.slot for piece in run if piece.slot) if run[0].language == embedded else (),
        )
        for text, run in zip(texts, runs, strict=True)
    )
    return MixedSentence(meaning=meaning, main=main, runs=made)


def place_of(slots: Sequence[str], pieces: Sequence[Piece], language: str) -> Place | None:
    """Where the words that translate some slots stand in a rendering; None where others stand between them."""
    whole = "".join(piece.text for piece in pieces)
    places = places_of_pieces([piece.text for piece in pieces], whole, language)
    own = {
        i: place for i, (piece, place) in enumerate(zip(pieces, places, strict=False)) if piece.slot in slots
    }
    if len(own) < len(slots) or any(place is None for place in own.values()):
        return None
    found = sorted(place for place in own.values() if place)
    words = sum(end - start for start, end in found)
    return (found[0][0], found[-1][1]) if found[-1][1] - found[0][0] == words else None


def join_runs(
    sounds: Sequence[FloatArray], rng: random.Random
) -> tuple[FloatArray, list[tuple[float, float]]]:
    """Sounds one behind the other with short silence between, and begin and end of each in seconds."""
    parts: list[FloatArray] = []
    times_s, length = [], 0
    for number, sound in enumerate(sounds):
        gap = round(rng.uniform(0, MAX_GAP_S) * SAMPLE_RATE) if number else 0
        parts += [np.zeros(gap, np.float32), sound]
        start, length = length + gap, length + gap + len(sound)
        times_s.append((start / SAMPLE_RATE, length / SAMPLE_RATE))
    return np.concatenate(parts), times_s

"""An endless stream of composed utterances: numbers, dates and times, joined prompts, prompts followed by a
number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sprachbund.data.asterisk.carriers import CARRIERS, NUMBER_PROMPTS
from sprachbund.data.asterisk.clips import Clips, Samples
from sprachbund.data.asterisk.compose.composer import COMPOSABLE, Composed, compose
from sprachbund.data.asterisk.compose.joining import join
from sprachbund.data.asterisk.prompts import PromptSet, is_clip
from sprachbund.data.phrasebook.meaning import Meaning, split_of
from sprachbund.errors import SprachbundError

# Shares of: a composed meaning, two prompts, a prompt and a number.
SHARES = (0.6, 0.2, 0.2)
KIND_WEIGHTS = {"digits": 3.0, "number": 4.0, "ordinal": 1.0, "date": 3.0, "time": 3.0}
OTHER_WEIGHT = 1.0
MIN_PROMPT_WORDS, MAX_PROMPT_WORDS = 2, 14
# A meaning belongs to the test part once in fifty draws, and not every meaning can be said by every speaker.
MAX_DRAWS = 400
MAX_FAILURES = 50


@dataclass(frozen=True, kw_only=True)
class ComposedUtterance:
    """A composed utterance with its words and their translations (language to text); samples are
    (num_samples,).
    """

    samples: Samples
    text: str
    language: str
    speaker: str
    translations: Mapping[str, str]
    kind: str


def composed_utterances(
    clips_by_speaker: Mapping[str, Clips],
    rng: random.Random,
    split: str,
    *,
    prompts: PromptSet | None = None,
    kinds: Sequence[str] | None = None,
    speakers: Sequence[str] | None = None,
) -> Iterator[ComposedUtterance]:
    """Yield composed utterances of ``split`` without end, speaker after speaker at random.

    Meanings belong to one split by their hash, prompts by their sentence; without ``prompts`` only meanings
    are composed. Speakers kept for testing take part only when named in ``speakers``. Raises SprachbundError
    when no speaker is left or nothing can be composed.
    """
    chosen = [c for c in clips_by_speaker.values() if (c.speaker in speakers if speakers else not c.held_out)]
    if not chosen:
        raise SprachbundError(
            f"no speaker to compose with; there are {', '.join(clips_by_speaker) or 'none'}"
        )
    composers = [_SpeakerComposer(clips, split, prompts, kinds) for clips in chosen]
    failures = 0
    while failures < MAX_FAILURES:
        made = rng.choice(composers).draw(rng)
        failures = failures + 1 if made is None else 0
        if made is not None:
            yield made
    raise SprachbundError(f"nothing can be composed for split {split!r}; give more kinds or more speakers")


class _SpeakerComposer:
    """Composes for one speaker and split."""

    def __init__(
        self, clips: Clips, split: str, prompts: PromptSet | None, kinds: Sequence[str] | None
    ) -> None:
        self.clips, self.split, self.prompts = clips, split, prompts
        self.kinds = [kind for kind in COMPOSABLE[clips.language] if kinds is None or kind in kinds]
        self.weights = [KIND_WEIGHTS.get(kind, OTHER_WEIGHT) for kind in self.kinds]
        names = [name for name in clips.samples if prompts and prompts.split_of_prompt(name) == split]
        self.names = [name for name in names if _joinable(name, clips)]
        self.openers = [name for name in clips.samples if prompts and name in NUMBER_PROMPTS]
        ways: tuple[tuple[Callable[[random.Random], ComposedUtterance | None], bool], ...] = (
            (self.meaning, bool(self.kinds)),
            (self.two_prompts, len(self.names) > 1),
            (self.prompt_and_number, bool(self.openers)),
        )
        usable = [(way, share) for (way, ok), share in zip(ways, SHARES, strict=True) if ok]
        self.ways, self.shares = [way for way, _ in usable], [share for _, share in usable]

    def draw(self, rng: random.Random) -> ComposedUtterance | None:
        """One utterance; None when all draws fell into another split or lacked a recording.

        The way is chosen first and kept, so that the shares are the same in every split.
        """
        if not self.ways:
            return None
        way = rng.choices(self.ways, self.shares)[0]
        return next((made for _ in range(MAX_DRAWS) if (made := way(rng)) is not None), None)

    def meaning(self, rng: random.Random) -> ComposedUtterance | None:
        """A meaning of the phrasebook."""
        meaning = _drawn(rng.choices(self.kinds, self.weights)[0], rng)
        if split_of(meaning) != self.split:
            return None
        made = compose(meaning, self.clips.language, self.clips, rng)
        return None if made is None else self._utterance(made, _renderings(meaning), meaning.kind)

    def two_prompts(self, rng: random.Random) -> ComposedUtterance | None:
        """Two prompts one after the other; translated one after the other."""
        first, second = rng.sample(self.names, 2)
        samples = join([self.clips.samples[first], self.clips.samples[second]], rng)
        text = f"{self.clips.texts[first]} {self.clips.texts[second]}"
        return self._utterance(
            Composed(samples=samples, text=text), _both(self._texts(first), self._texts(second)), "prompts"
        )

    def prompt_and_number(self, rng: random.Random) -> ComposedUtterance | None:
        """A prompt that an exchange follows with a number, a time or digits."""
        opener = rng.choice(self.openers)
        meaning = _argument(NUMBER_PROMPTS[opener], rng)
        if split_of(meaning) != self.split:
            return None
        tail = compose(meaning, self.clips.language, self.clips, rng)
        if tail is None:
            return None
        samples = join([self.clips.samples[opener], tail.samples], rng)
        text = f"{self.clips.texts[opener]} {tail.text}"
        return self._utterance(
            Composed(samples=samples, text=text),
            _both(self._texts(opener), _renderings(meaning)),
            "prompt+number",
        )

    def _texts(self, name: str) -> Mapping[str, str]:
        return self.prompts.texts[name] if self.prompts else {}

    def _utterance(
        self, made: Composed, renderings: Mapping[str, str], kind: str
    ) -> ComposedUtterance | None:
        language = self.clips.language
        translations = {other: text for other, text in renderings.items() if other != language}
        return ComposedUtterance(
            samples=made.samples,
            text=made.text,
            language=language,
            speaker=self.clips.speaker,
            translations=translations,
            kind=kind,
        )


def _joinable(name: str, clips: Clips) -> bool:
    """Whether a recording is a whole prompt of moderate length, not a building block."""
    num_words = len(clips.texts[name].split())
    return not is_clip(name) and name not in CARRIERS and MIN_PROMPT_WORDS <= num_words <= MAX_PROMPT_WORDS


def _both(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    return {language: f"{first[language]} {second[language]}" for language in first if language in second}


def _argument(kind: str, rng: random.Random) -> Meaning:
    if kind == "digit":
        return Meaning(kind="digits", slots={"digits": str(rng.randint(0, 9))})
    if kind == "digits":
        return Meaning(
            kind="digits", slots={"digits": "".join(str(rng.randint(0, 9)) for _ in range(rng.randint(2, 7)))}
        )
    if kind == "number":
        return Meaning(kind="number", slots={"value": rng.randint(1, 120)})
    return _drawn(kind, rng)


def _drawn(kind: str, rng: random.Random) -> Meaning:
    from sprachbund.data.phrasebook import draw_kind

    return draw_kind(kind, rng)


def _renderings(meaning: Meaning) -> dict[str, str]:
    from sprachbund.data.phrasebook import LANGUAGES, render

    return {language: render(meaning, language) for language in LANGUAGES}

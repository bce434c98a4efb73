"""Recordings of people spliced across languages: an exchange's announcement whose number, time or date is another's.

The runs of an announcement are composed as those of one language are (`sprachbund.data.asterisk.compose`), each from
the recordings of a speaker of its language. Two people speak, so a change of voice goes with each switch.
"""

import random
from collections.abc import Mapping

import numpy as np

from sprachbund.data.asterisk.clips import Clips
from sprachbund.data.asterisk.compose.composer import play
from sprachbund.data.asterisk.compose.telephone import RUNS
from sprachbund.data.editions import Part
from sprachbund.data.mixed_sentences import MixedSentence, Run
from sprachbund.data.phrasebook import Meaning, draw_kind, split_of
from sprachbund.data.synthesis import FloatArray
from sprachbund.errors import SprachbundError

_MAX_DRAWS = 20_000
"""Of meanings, one in fifty of which is held out, and not all of which can be said with the recordings there are."""


def draw_spliced(
    main: str, embedded: str, part: Part, clips: Mapping[str, Clips], rng: random.Random
) -> tuple[MixedSentence, list[FloatArray]]:
    """An announcement of a part, and the sound of its runs.

    Args:
        main: language of the announcement.
        embedded: language of the value in it.
        part: that the meaning belongs to.
        clips: a speaker of each of the two.
        rng: draws.

    Raises:
        SprachbundError: the recordings suffice for none.
    """
    kinds = sorted(RUNS)
    for _ in range(_MAX_DRAWS):
        meaning = draw_kind(rng.choice(kinds), rng)
        if split_of(meaning) == part and (made := spliced(meaning, main, embedded, clips, rng)):
            return made
    raise SprachbundError(
        f"no announcement in {main} with words in {embedded} can be spliced from the recordings of "
        f"{' and '.join(c.speaker for c in clips.values())}; leave the pair out, or get the whole packages"
    )


def spliced(
    meaning: Meaning, main: str, embedded: str, clips: Mapping[str, Clips], rng: random.Random
) -> tuple[MixedSentence, list[FloatArray]] | None:
    """A meaning said so; None where a recording is missing, or a language has no such words."""
    runs, sounds = [], []
    for slots, build in RUNS[meaning.kind]:
        tag = embedded if slots else main
        pieces = build(meaning, tag, rng)
        made = play(pieces, clips[tag], rng) if pieces else None
        if made is None:
            return None
        runs.append(Run(text=made.text, language=tag, slots=slots))
        sounds.append(np.trim_zeros(made.samples))  # of the silence that was put around it
    return MixedSentence(meaning=meaning, main=main, runs=tuple(runs)), sounds

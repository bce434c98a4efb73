"""What a report needs of the hypotheses, taken from them in one pass: counts of all, texts of the few it shows."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from operator import itemgetter

import numpy as np

from sprachbund.evaluation.lines import Line, in_chunks
from sprachbund.evaluation.metrics import Counts, chrf
from sprachbund.text.normalize import has_no_spaces, spaced_characters

_SEED = 5


@dataclass(kw_only=True)
class Gathered:
    """Of N lines of speech.

    Attributes:
        counts: chrF's (N, K).
        durations_s: of the sound, N.
        lengths: words in the reference (characters in scripts without spaces), N.
        worst: lowest sentence chrF, one target of an utterance, pairs in turn so that one bad pair is not all.
        random: drawn with the same chance each.
    """

    counts: Counts = field(default_factory=lambda: np.zeros((0, 0)))
    durations_s: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    worst: Sequence[Line] = ()
    random: list[Line] = field(default_factory=list)


def gather(lines: Iterable[Line], num_examples: int, *, guarded: bool) -> Gathered:
    """One pass over the lines of an evaluation; those without speech are passed over.

    Args:
        lines: as the model wrote them.
        num_examples: worst and random ones to keep, each.
        guarded: whether to count what the guard lets pass, or all.
    """
    scorer, rng, found = chrf(), random.Random(_SEED), Gathered()
    counts: list[Counts] = []
    worst: dict[tuple[str, str], list[tuple[float, Line]]] = {}
    for some in in_chunks(line for line in lines if line.source):
        seen = [line.behind_guard().hypothesis if guarded else line.hypothesis for line in some]
        counts.append(scorer.statistics(seen, [line.reference for line in some]))
        _keep_random(found.random, some, len(found.durations_s), num_examples, rng)
        found.durations_s += [line.duration_s for line in some]
        found.lengths += [float(len(units(line.reference, line.target))) for line in some]
        for row, line, text in zip(counts[-1], some, seen, strict=True):
            if text != line.reference:
                worst.setdefault(line.pair, []).append((float(scorer.score(row)), line))
        # Half of them may be of utterances that another pair shows.
        worst = {pair: nsmallest(2 * num_examples, kept, key=itemgetter(0)) for pair, kept in worst.items()}
    found.counts = np.concatenate(counts) if counts else found.counts
    found.worst = _in_turn([worst[pair] for pair in sorted(worst)], num_examples)
    return found


def units(text: str, language: str) -> list[str]:
    """Words as people see them; characters in scripts without spaces."""
    return spaced_characters(text).split() if has_no_spaces(language) else text.split()


def _keep_random(kept: list[Line], some: Sequence[Line], passed: int, size: int, rng: random.Random) -> None:
    """Reservoir sampling: every line passed so far has the same chance to be among the kept."""
    for number, line in enumerate(some, start=passed):
        place = number if number < size else rng.randrange(number + 1)
        if number < size:
            kept.append(line)
        elif place < size:
            kept[place] = line


def _in_turn(queues: Sequence[Sequence[tuple[float, Line]]], count: int) -> list[Line]:
    chosen: list[Line] = []
    taken: set[tuple[str, str]] = set()
    for place in range(max(map(len, queues), default=0)):
        there = [queue[place] for queue in queues if place < len(queue)]
        for _, line in sorted(there, key=itemgetter(0)):
            if len(chosen) < count and (line.corpus, line.id) not in taken:
                taken.add((line.corpus, line.id))
                chosen.append(line)
    return chosen

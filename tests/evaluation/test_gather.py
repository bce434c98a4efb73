"""What a report takes from the lines, against all lines held at once."""

from collections import Counter
from dataclasses import replace

import numpy as np

from sprachbund.evaluation.lines import CHUNK
from sprachbund.evaluation.metrics import chrf
from sprachbund.evaluation.report import gather
from tests.evaluation.made import line, made_lines

PAIRS = (("en", "de"), ("fr", "de"), ("de", "fr"))


def test_worst_are_the_lowest_of_each_pair_in_turn():
    lines = [replace(x, id=f"{x.source}{n}") for n, x in enumerate(made_lines(CHUNK, 0.2, pairs=PAIRS))]
    result = gather([*lines, line("hm", "", source="", kind="hum")], 6, guarded=True)
    scorer = chrf()
    counts = scorer.statistics([x.hypothesis for x in lines], [x.reference for x in lines])
    assert (result.counts == counts).all()
    score = {x.id: scorer.score(row) for x, row in zip(lines, counts, strict=True)}
    assert Counter(x.pair for x in result.worst) == dict.fromkeys(PAIRS, 2)
    for pair in PAIRS:
        lowest = sorted(score[x.id] for x in lines if x.pair == pair)[:2]
        assert [score[x.id] for x in result.worst if x.pair == pair] == lowest


def test_worst_are_of_different_utterances_and_what_the_guard_dropped_counts():
    lines = [
        line("falsch", f"wort {n}", id=f"{n}", target=target)
        for n in range(8)
        for target in ("de", "fr", "ru")
    ]
    assert sorted(x.id for x in gather(lines, 8, guarded=True).worst) == [str(n) for n in range(8)]
    right = line("ja", "ja", id="r", evidence=replace(lines[0].evidence, dropped="loop"))
    assert gather([right], 3, guarded=True).worst == [right]
    assert gather([right], 3, guarded=False).worst == []


def test_random_ones_have_the_same_chance():
    lines = made_lines(20, 0.2)
    assert len(gather(lines[:3], 5, guarded=True).random) == 3
    drawn = gather(lines * 50, 400, guarded=True).random
    places = np.array([lines.index(x) for x in drawn])
    assert np.bincount(places, minlength=20).min() > 5

import time

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import DecodingEvidence
from sprachbund.evaluation.speed import DecodingCost, Stopwatch, add_cost, race, race_rows
from tests.evaluation.made import line


def speed(wall_s, audio_s=10.0):
    return DecodingCost(audio_s=audio_s, wall_s=wall_s, num_tokens=100, num_targets=2, peak_memory_mb=1)


def test_the_watch_counts_the_work_and_not_the_reader():
    def work():
        for n in range(4):
            time.sleep(0.02)
            yield line("", "x", id=str(n // 2), duration_s=2.0, evidence=DecodingEvidence(num_tokens=5))

    watch = Stopwatch()
    for _ in watch.watch(work()):
        time.sleep(0.05)
    result = watch.speed()
    assert 0.08 <= result.wall_s < 0.2
    assert result.audio_s == 4.0  # two utterances, each in two languages
    assert (result.num_tokens, result.num_targets) == (20, 2)
    assert result.real_time_factor == pytest.approx(result.wall_s / 4)


def test_a_race_takes_turns_and_gives_ratios():
    pauses, order = {"slow": 0.2, "fast": 0.02}, []

    def work(name):
        order.append(name)
        time.sleep(pauses[name])
        yield line("", "x", id="1", duration_s=2.0)

    taken = race({"slow": "slow", "fast": "fast"}, work, rounds=3)
    assert order == ["slow", "fast"] * 4  # once to warm up
    slow, fast = race_rows(taken)
    assert slow["time_ratio"] == 1
    assert fast["lowest_ratio"] <= fast["time_ratio"] <= fast["highest_ratio"] < 0.9
    with pytest.raises(SprachbundError, match="different sound"):
        race_rows({"a": [speed(2.0)], "b": [speed(2.0, audio_s=11.0)]})


def test_further_costs_have_ratios():
    rows = [{"system": "a"}, {"system": "b"}]
    add_cost(rows, "peak_memory_mb", [200.0, 50.0])
    assert rows[1] == {"system": "b", "peak_memory_mb": 50, "peak_memory_ratio": 0.25}

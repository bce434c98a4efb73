"""Scores of talks: by hand, means, and what cannot be scored."""

import random
from pathlib import Path

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.emissions import Emission, EmissionLog, ReferenceSegment
from sprachbund.evaluation.latency import (
    CLOCKS,
    ERASED,
    FLICKER,
    LATENCY_SCORES,
    QUALITY,
    latency_table,
    means,
    score_talk,
)
from tests.evaluation.made_talks import log_of, made_log, made_references, shown


def segment(text: str, start_s: float, end_s: float, target: str = "de") -> ReferenceSegment:
    return ReferenceSegment(talk="t", target=target, start_s=start_s, end_s=end_s, text=text)


# A talk of 20 s: "eins zwei" is said from 2 to 6, "drei vier" from 10 to 14.
REFERENCES = [segment("Eins zwei", 2, 6), segment("Drei, vier", 10, 14)]


def test_stream_scores_by_hand() -> None:
    result = score_talk(log_of("eins zwei drei vier", [5, 7, 12, 16], 20.0), REFERENCES)
    # Delays from each segment's beginning: 3 5 and 2 6; a word each 2 s.
    # LAAL stops at the first word after the segment (4 s), which counts: (3 + 5-2)/2 = 3 and (2 + 6-2)/2 = 3.
    assert result.scores["ideal"]["StreamLAAL"] == pytest.approx(3.0)
    # The recording's references end at 14 s: of the second segment "vier" came after, so (3 + 3)/2 and 2.
    assert result.scores["ideal"]["LongYAAL"] == pytest.approx((3.0 + 2.0) / 2)
    assert [pair.hypothesis for pair in result.segments] == ["eins zwei", "drei vier"]


def test_computation_counts_on_its_own_clock() -> None:
    emissions = tuple(
        Emission(text=text, audio_s=t, wall_s=t + 1) for text, t in (("eins zwei", 4.0), ("drei vier", 12.0))
    )
    log = EmissionLog(talk="t", target="de", duration_s=20.0, emissions=emissions)
    scores = score_talk(log, REFERENCES).scores
    for name in ("AL", "LAAL", "DAL", "ATD", "YAAL", "StreamLAAL", "LongYAAL"):
        assert scores["computation"][name] == pytest.approx((scores["ideal"][name] or 0) + 1), name
    assert scores["computation"]["AP"] == pytest.approx((scores["ideal"]["AP"] or 0) + 1 / 20)


def test_a_single_segment_has_one_latency_whatever_it_is_called() -> None:
    log, references = made_log(random.Random(4)), made_references(random.Random(5), num=1)
    scores = score_talk(log, references).scores
    for clock in CLOCKS:
        assert scores[clock]["StreamLAAL"] == pytest.approx(scores[clock]["LAAL"])
        assert scores[clock]["LongYAAL"] == pytest.approx(scores[clock]["YAAL"])


def test_the_same_log_gives_the_same_numbers() -> None:
    log, references = made_log(random.Random(6)), made_references(random.Random(7))
    assert score_talk(log, references) == score_talk(log, references)


def test_flicker_of_the_screen() -> None:
    log = log_of("eins", [1.0], 20.0, shown=shown("ein", "eins", "eins zwei"))
    result = score_talk(log, REFERENCES)
    assert (result.flicker, result.erased_per_minute) == (1 / 2, 3.0)  # one word in 20 s
    result = score_talk(log_of("eins", [1.0], 20.0), REFERENCES)
    assert (result.flicker, result.erased_per_minute) == (None, None)


def test_silence_is_counted_and_has_no_latency() -> None:
    result = score_talk(EmissionLog(talk="t", target="de", duration_s=20.0, emissions=()), REFERENCES)
    assert {result.scores[clock][name] for clock in CLOCKS for name in LATENCY_SCORES} == {None}
    assert (result.num_units, result.num_empty_segments) == (0, 2)
    assert result.quality["chrF"] == 0.0


def test_characters_count_where_a_language_has_no_spaces() -> None:
    emissions = (Emission(text="你好", audio_s=1.0, wall_s=1.0), Emission(text="吗", audio_s=2.0, wall_s=2.0))
    log = EmissionLog(talk="t", target="zh", duration_s=4.0, emissions=emissions)
    result = score_talk(log, [segment("你好 吗", 0, 4, "zh")])
    assert (result.unit, result.num_units, result.num_reference) == ("character", 3, 3)
    assert result.segments[0].hypothesis == "你好吗"
    assert result.scores["ideal"]["AL"] == pytest.approx(((1 - 0) + (1 - 4 / 3) + (2 - 8 / 3)) / 3)


def test_means_count_talks_alike_and_segments_alike() -> None:
    long = score_talk(log_of("eins zwei drei vier", [5, 7, 12, 16], 20.0), REFERENCES)  # 3 and 3
    short = score_talk(log_of("eins", [5.0], 6.0, talk="s"), [segment("eins", 0, 6)])  # 5
    silent = score_talk(
        EmissionLog(talk="n", target="de", duration_s=6.0, emissions=()), [segment("eins", 0, 6)]
    )
    [mean] = means([long, short, silent])
    assert (mean.num_talks, mean.num_silent) == (3, 1)
    assert mean.scores["ideal"]["StreamLAAL"] == pytest.approx((3 + 3 + 5) / 3)
    assert mean.scores["ideal"]["AL"] == pytest.approx(((long.scores["ideal"]["AL"] or 0) + 5) / 2)
    french = score_talk(log_of("un", [1.0], 6.0, target="fr"), [segment("un", 0, 6, "fr")])
    assert [m.target for m in means([long, french])] == ["all"]
    assert means([long, french])[0].scores["ideal"]["StreamLAAL"] == pytest.approx((3 + 1) / 2)
    assert means([long]) == []


def test_table_has_a_line_for_each_clock() -> None:
    talk = score_talk(log_of("eins zwei drei vier", [5, 7, 12, 16], 20.0), REFERENCES)
    table = latency_table([talk, talk], means([talk, talk]))
    assert [row[:3] for row in table.rows] == [
        ["t", "de", "ideal"],
        ["", "", "computation"],
        ["t", "de", "ideal"],
        ["", "", "computation"],
        ["mean of 2", "de", "ideal"],
        ["", "", "computation"],
    ]
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_references_that_do_not_fit_are_refused() -> None:
    log = log_of("eins", [1.0], 10.0)
    with pytest.raises(SprachbundError, match="talk 't' into de has no references"):
        score_talk(log, [])
    with pytest.raises(SprachbundError, match=r"a reference ends at 14\.0 s, the audio at 10\.0 s"):
        score_talk(log, REFERENCES)


def test_the_page_tells_every_score() -> None:
    page = (Path(__file__).parents[2] / "docs/latency.md").read_text(encoding="utf-8")
    names = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")}
    assert {*LATENCY_SCORES, FLICKER, ERASED, ", ".join(QUALITY)} <= names

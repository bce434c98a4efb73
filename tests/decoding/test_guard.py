"""The guard on planted failures, and on text that people do say."""

import zlib

import pytest

from sprachbund.decoding.guard import compression_ratio, drop_reason, repetition
from sprachbund.decoding.options import GuardOptions

HEALTHY = {
    "duration_s": 4.0,
    "speech_probability": 0.9,
    "no_speech_probability": 0.05,
    "mean_log_probability": -0.3,
    "options": GuardOptions(),
}


@pytest.mark.parametrize(
    "text",
    [
        "good morning",
        "five five five five two one",
        "no no no",
        "the train to the airport leaves at a quarter past ten from platform two",
        "ja ja ja ja",
        "你好,今天的天气很好。",
        "two thousand two hundred and twenty two point two two",
        "press one for english press two for german press three for french",
    ],
)
def test_what_people_say_passes(text):
    assert drop_reason(text, **HEALTHY) is None


@pytest.mark.parametrize(
    ("text", "changed", "reason"),
    [
        ("", {}, "no text"),
        (" ... ♪ ", {}, "no text"),
        ("thank you", {"speech_probability": 0.2}, "no speech: voice activity 0.20"),
        (
            "thank you",
            {"no_speech_probability": 0.8, "mean_log_probability": -1.2},
            "no speech: the model's own probability of none is 0.80",
        ),
        ("thank you", {"mean_log_probability": -3.0}, "guessing: mean log-probability -3.00"),
        ("so " * 60, {}, "loop: compression ratio"),
        ("oh oh oh oh oh oh", {}, "loop: 83% of the text"),
        ("谢谢观看谢谢观看谢谢观看", {}, "loop: 67% of the text"),
        ("a quite ordinary sentence", {"duration_s": 0.1}, None),
        ("abc defg hij " + "klm nop qrs tuv " * 2, {"duration_s": 0.4}, "too much text"),
    ],
)
def test_failures_are_named(text, changed, reason):
    dropped_for = drop_reason(text, **{**HEALTHY, **changed})
    assert (
        (dropped_for is None)
        if reason is None
        else dropped_for is not None and dropped_for.startswith(reason)
    )


def test_one_weak_sign_alone_does_not_drop_speech():
    assert drop_reason("guten tag", **{**HEALTHY, "no_speech_probability": 0.95}) is None
    assert drop_reason("guten tag", **{**HEALTHY, "mean_log_probability": -1.5}) is None
    assert (
        drop_reason("guten tag", **{**HEALTHY, "no_speech_probability": None, "mean_log_probability": -1.5})
        is None
    )


def test_the_guard_can_be_switched_off_except_for_empty_text():
    off = {**HEALTHY, "options": GuardOptions(enabled=False), "speech_probability": 0.0}
    assert drop_reason("thank you", **off) is None
    assert drop_reason(" ", **off) == "no text"


def test_repetition_counts_the_share_that_repeats():
    assert repetition("") == 0.0
    assert repetition("one two three four") == 0.0
    assert repetition("a b " * 5) == pytest.approx(0.8)
    assert repetition("x y z w " + "go " * 6) == pytest.approx(5 / 10)
    assert repetition("good by now " * 3) == pytest.approx(6 / 9)
    assert repetition("good by now " * 2) == 0.0


def test_the_compression_ratio_is_that_of_zlib():
    text = "der zug nach köln " * 3
    assert compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode()))
    assert compression_ratio("") == 0.0

import pytest

from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.errors import SprachbundError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"length_penalty": -0.5}, "length_penalty is -0.5"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"min_tokens": 9, "max_tokens": 5}, "max_tokens is 5; give 9 or more"),
        ({"language_windows": 0}, "language_windows is 0"),
        ({"allowed_languages": ()}, r"allowed_languages is \(\); name at least one"),
        ({"allowed_languages": "de"}, r"allowed_languages is 'de'; give a tuple, such as \('de',\)"),
        ({"hot_words": "Berlin"}, r"hot_words is 'Berlin'; give a tuple, such as \('Berlin',\)"),
        ({"beam_size": "3"}, "beam_size is '3'; give 1 or more"),
        ({"temperature": 3}, r"temperature is 3; give a tuple of numbers, such as \(0\.0,\)"),
        ({"temperature": (0.0, "a")}, "give a tuple of numbers"),
        ({"tempos": 1.3}, "tempos is 1.3; give a tuple of numbers"),
    ],
)
def test_impossible_values_are_named(values, message):
    with pytest.raises(SprachbundError, match=message):
        DecodingOptions(**values)


def test_guard_thresholds_are_checked():
    with pytest.raises(SprachbundError, match=r"max_repetition is 1\.5"):
        GuardOptions(max_repetition=1.5)
    with pytest.raises(SprachbundError, match=r"min_mean_log_probability is 0\.5"):
        GuardOptions(min_mean_log_probability=0.5)


def test_the_defaults_are_greedy_and_hashable():
    assert DecodingOptions().beam_size == 1
    assert hash(DecodingOptions()) == hash(DecodingOptions())

"""Folders go on with the settings that they were begun with, and name the first that is another."""

from pathlib import Path
from typing import Any

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.util.begun import refuse_others

FOLDER = Path("here")


@pytest.mark.parametrize(
    ("known", "now", "said"),
    [
        ({"seed": 1}, {"seed": 2}, "seed 1, not 2"),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, "a.b.c 1, not 2"),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, "a.c 2, not none"),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, "a.c none, not 2"),
        ({"a": {"b": 1}}, {"a": None}, "a {'b': 1}, not none"),
        ({"voices": ["x", "y"]}, {"voices": []}, "voices x, y, not none"),
        (
            {"content": "0" * 64},
            {"content": "f" * 64},
            "another content (SHA-256 000000000000, not ffffffffffff)",
        ),
        ({}, {"seed": 2}, "seed none, not 2"),
    ],
)
def test_the_first_setting_that_differs_is_named(
    known: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    with pytest.raises(SprachbundError) as refused:
        refuse_others(FOLDER, known, now, advice="name a new folder")
    assert str(refused.value) == f"here was begun with {said}; name a new folder"


def test_the_same_settings_go_on_and_others_that_are_known_have_no_effect() -> None:
    refuse_others(
        FOLDER, {"seed": 1, "path": "gone", "a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}, "seed": 1}, advice=""
    )

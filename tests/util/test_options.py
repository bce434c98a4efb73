"""What options dataclasses declare: ranges, choices, documentation, former names."""

import math
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest

from sprachbund.errors import SprachbundError
from sprachbund.util.options import (
    Option,
    OptionValueError,
    Range,
    RenamedWarning,
    check,
    declared,
    documented,
    renamed,
)


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Simple:
    count: Annotated[int, Range(1, 8)] = 1
    limit: int = 1
    share: float = 0.5
    spoken: bool = True
    name: str = ""
    names: tuple[str, ...] = ()
    shares: Annotated[tuple[float, ...], Range(0, 1)] = ()
    how: Literal["this", "that"] = "this"
    prompt: str | None = None
    path: Path = Path()
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Some:
    """Options of a test.

    Attributes:
        count: how many; 1 is
            the least: two lines.
        how: one of two.
        inner: more.

    Raises:
        Nothing: this is no attribute.
    """

    count: Annotated[int | None, Range(1, 8), Option("--count", metavar="N")] = None
    how: Literal["this", "that"] = "this"
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check(self)


def test_what_a_field_declares_is_read() -> None:
    count, how, inner = declared(Some)
    assert (count.name, count.type, count.range) == ("count", int, Range(1, 8))
    assert count.option == Option("--count", metavar="N")
    assert (how.choices, how.option, inner.is_nested) == (("this", "that"), None, True)
    assert documented(Some) == {
        "count": "how many; 1 is the least: two lines.",
        "how": "one of two.",
        "inner": "more.",
    }


def test_values_outside_are_named_with_what_to_give() -> None:
    assert Some(count=8).count == 8
    with pytest.raises(OptionValueError, match=r"^count is 9; give 1 to 8$"):
        Some(count=9)
    with pytest.raises(OptionValueError, match=r"^how is 'other'; choose one of this, that$"):
        Some(how="other")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 2.5}, "count is 2.5; give a whole number, 1 to 8"),
        ({"count": 2.0}, "count is 2.0; give a whole number, 1 to 8"),
        ({"count": True}, "count is True; give 1 to 8"),
        ({"count": None}, "count is None; give 1 to 8"),
        ({"limit": "3"}, "limit is '3'; give a whole number"),
        ({"share": "half"}, "share is 'half'; give a number"),
        ({"share": True}, "share is True; give a number"),
        ({"spoken": "yes"}, "spoken is 'yes'; give True or False"),
        ({"spoken": 1}, "spoken is 1; give True or False"),
        ({"name": 3}, "name is 3; give a string"),
        ({"names": None}, "names is None; give a tuple"),
        ({"names": "de"}, "names is 'de'; give a tuple, such as ('de',)"),
        ({"shares": (0.5, 2.0)}, "shares is 2.0; give 0 to 1"),
        ({"path": None}, "path is None; leave it out, or give a value"),
        ({"inner": 3}, "inner is 3; give Inner"),
        ({"how": None}, "how is None; choose one of this, that"),
        ({"prompt": 3}, "prompt is 3; give a string"),
    ],
)
def test_values_of_another_type_are_named_with_what_to_give(values: dict[str, object], message: str) -> None:
    with pytest.raises(OptionValueError, match=f"^{re.escape(message)}$"):
        Simple(**values)  # type: ignore[arg-type]


def test_numbers_of_numpy_and_whole_numbers_for_fractions_are_of_the_type() -> None:
    assert Simple(count=np.int64(3), share=1, prompt=None).count == 3
    assert Simple(share=np.float32(0.5)).share == 0.5


def test_users_who_know_fields_by_other_names_are_told_those() -> None:
    advice = "set `nbest` and `beam_size` to 2, or see `sprachbund --help`"
    wrong = OptionValueError("nbest", 2, advice, reason="and `beam_size` is 1")
    assert str(wrong) == (
        "nbest is 2, and beam_size is 1; set nbest and beam_size to 2, or see `sprachbund --help`"
    )
    assert wrong.named({"beam_size": "--beam", "nbest": "--nbest"}, "two") == (
        "--nbest is two, and --beam is 1; set --nbest and --beam to 2, or see `sprachbund --help`"
    )


def test_an_error_goes_from_one_process_to_another() -> None:
    wrong = OptionValueError("threads", 99, "give 1 to 2", reason="and this machine has 2 cores")
    read = pickle.loads(pickle.dumps(wrong))
    assert (type(read), vars(read), str(read)) == (OptionValueError, vars(wrong), str(wrong))


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (Range(1), (1, math.inf), (0.5, math.nan), "1 or more"),
        (Range(high=0), (-math.inf, 0), (0.1, math.nan), "0 or less"),
        (Range(0, 1), (0, 1), (-0.1, 1.1), "0 to 1"),
        (Range(0, above=True), (1e-9, 1e9), (0, -1, math.inf, math.nan), "a number above 0"),
        (Range(0, 1, above=True), (1e-9, 1), (0, 1.1), "a number above 0, up to 1"),
    ],
)
def test_ranges(allowed: Range, inside: tuple[float, ...], outside: tuple[float, ...], words: str) -> None:
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)
    assert str(allowed) == words


def test_stored_values_come_under_the_names_of_today() -> None:
    with pytest.warns(RenamedWarning, match="old is called new now"):
        assert renamed({"old": 1, "other": 2}, {"old": "new"}, "run.json") == {"new": 1, "other": 2}
    assert renamed({"new": 1}, {"old": "new"}, "run.json") == {"new": 1}
    with pytest.raises(SprachbundError, match="old is the former name of new; keep new alone"):
        renamed({"old": 1, "new": 2}, {"old": "new"}, "run.json")

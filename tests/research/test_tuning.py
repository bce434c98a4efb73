"""Learning rates that are tried: the best one, and what is said of it."""

import math
from pathlib import Path
from typing import Any

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.research import size_file
from sprachbund.research.code_switch.options import CodeSwitchRecipe
from sprachbund.research.discrete_units.options import DiscreteUnitsRecipe
from sprachbund.research.encoder_transfer.options import EncoderTransferRecipe
from sprachbund.research.gradient_sharing.options import GradientSharingRecipe
from sprachbund.research.tuning import as_json, best_rate, rates_left, read_tried, report_rates
from sprachbund.training.options import read_recipe
from sprachbund.util.files import write_json


def test_the_rate_of_the_lowest_loss_is_best_also_after_writing(tmp_path: Path) -> None:
    tried = {1e-3: 2.5, 2e-3: 1.5, 1e-4: 1.75}
    write_json(tmp_path / "rates.json", as_json(tried))
    assert read_tried(tmp_path / "rates.json") == tried
    assert best_rate(tried) == 2e-3


@pytest.mark.parametrize("rates", [(1e-3, 2e-3), (2e-3, 1e-3)])
def test_a_loss_that_is_no_number_is_not_the_lowest(rates: tuple[float, float], tmp_path: Path) -> None:
    tried = {rate: math.nan if rate == 2e-3 else 3.0 for rate in rates}
    assert best_rate(tried) == 1e-3
    write_json(tmp_path / "rates.json", as_json(tried))
    assert best_rate(read_tried(tmp_path / "rates.json")) == 1e-3
    assert "null" in (tmp_path / "rates.json").read_text()  # JSON has no other word for it


def test_a_file_that_holds_no_rates_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    for content in ([1, 2], {"fast": 1.0}, {"1": "low"}, {}):
        write_json(tmp_path / "rates.json", content)
        with pytest.raises(SprachbundError, match=r"rates\.json.*; delete it, and the rates are tried again"):
            read_tried(tmp_path / "rates.json")


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (DiscreteUnitsRecipe, "learning_rates"),
        (GradientSharingRecipe, "learning_rates"),
        (EncoderTransferRecipe, "learning_rates"),
        (CodeSwitchRecipe, "tuning_rate_factors"),
    ],
)
def test_a_rate_that_no_folder_can_be_named_after_is_refused(kind: type[Any], option: str) -> None:
    """A folder's name is read as another number, and the rate would be tried for ever."""
    tiny = size_file(f"{kind.__module__.split('.')[-2]}", "tiny")
    assert getattr(read_recipe(kind, tiny, [f"{option}=[1e-3, 1.23457e-3]"]), option) == (1e-3, 1.23457e-3)
    with pytest.raises(SprachbundError, match=r"0\.00123456789 has more than six digits; write 0\.00123457"):
        read_recipe(kind, tiny, [f"{option}=[1e-3, 1.23456789e-3]"])


def test_a_rate_at_an_end_of_those_tried_is_said_to_be_there() -> None:
    lines: list[str] = []
    losses = {"a": (1.0, 2.0, 3.0), "b": (2.0, 1.0, 3.0), "c": (3.0, 2.0, 1.0)}
    rates = [1e-3, 2e-3, 4e-3]
    report_rates({name: dict(zip(rates, of, strict=True)) for name, of in losses.items()}, lines.append)
    report_rates({"a": {3.0: 1.0}}, lines.append, what="rate factor")
    assert lines == [
        "learning rate of a: 0.001, the smallest one tried; a better one may lie beyond it",
        "learning rate of b: 0.002",
        "learning rate of c: 0.004, the largest one tried; a better one may lie beyond it",
        "rate factor of a: 3",  # there was nothing to choose
    ]


@pytest.mark.parametrize(
    ("best", "more", "order"),
    [
        (3e-3, 9, [2e-3, 4e-3, 8e-3]),
        (1.2e-3, 9, [2e-3, 4e-3, 1e-3, 5e-4]),
        (2e-2, 9, [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]),
        (2e-2, 2, [2e-3, 4e-3, 8e-3, 1.6e-2]),
        (2e-2, 0, [2e-3, 4e-3]),
    ],
)
def test_rates_are_tried_until_the_best_lies_between_others(
    best: float, more: int, order: list[float]
) -> None:
    tried: dict[float, float] = {}
    while left := rates_left([2e-3, 4e-3], more, tried):
        tried[left[0]] = abs(math.log(left[0] / best))
    assert list(tried) == order


def test_a_single_rate_has_no_neighbour_and_nothing_lies_beyond_it() -> None:
    assert rates_left([1e-3], 3, {}) == [1e-3]
    assert rates_left([1e-3], 3, {1e-3: 1.0}) == []

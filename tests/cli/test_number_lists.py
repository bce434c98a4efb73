"""Lists of numbers on the command line, from an options class."""

from dataclasses import dataclass
from typing import Annotated

import pytest

from sprachbund.cli.console import UsageError
from sprachbund.cli.options import Panel, offered_fields
from sprachbund.util.options import Option


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Options.

    Attributes:
        shares: of something.
    """

    shares: Annotated[tuple[float, ...], Option("--shares", metavar="X,…")] = (0.75, 0.5)


def test_numbers_with_commas_are_read_and_shown_as_they_are_given() -> None:
    [shares] = offered_fields(Widths, Panel("Options"), ("widths",))
    [parameter] = shares.parameters()
    assert parameter.default == ["0.75,0.5"]
    assert shares.value({shares.key: ["1, .25", "3e-1"]}) == (1.0, 0.25, 0.3)
    assert shares.value({shares.key: parameter.default}) == Widths().shares
    with pytest.raises(
        UsageError, match=r"--shares is 'a,b'; write numbers with commas between, as in 0\.75,0\.5"
    ):
        shares.value({shares.key: ["a,b"]})

"""Options declared once: a field of a dataclass carries its allowed range and its name on the command line.

    @dataclass(frozen=True, kw_only=True)
    class SearchOptions:
        '''How to search.

        Attributes:
            beam_size: hypotheses kept per row; 1 is greedy.
        '''

        beam_size: Annotated[int, Range(1), Option("--beam", metavar="N")] = 1

        def __post_init__(self) -> None:
            check(self)

The type, the default and the text under "Attributes:" are not repeated anywhere: `sprachbund.cli.options` makes options
of the command line from them. This module imports nothing heavy, since every start of the command reads it.
"""

import inspect
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sprachbund.errors import SprachbundError

_ENTRY = re.compile(r"    (\w+): (.+(?:\n {5,}.+)*)")


class RenamedWarning(FutureWarning):
    """A name that is still accepted, and will not be in the next version."""


class OptionValueError(SprachbundError):
    """A value that an option does not allow.

    Args:
        field: name of the field.
        value: seen.
        advice: what to give, after a semicolon.
    """

    def __init__(self, field: str, value: Any, advice: str) -> None:
        super().__init__(f"{field} is {value!r}; {advice}")
        self.field, self.value, self.advice = field, value, advice


@dataclass(frozen=True)
class Range:
    """Values that a number may have; NaN never is one.

    Attributes:
        low: smallest value.
        high: largest value.
        above: whether `low` itself and infinity are excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (
            self.low < value < math.inf and value <= self.high
            if self.above
            else self.low <= value <= self.high
        )

    @property
    def is_bounded(self) -> bool:
        """Whether there is a smallest and a largest value."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __str__(self) -> str:
        """What to give, in words: "1 to 8", "1 or more", "a number above 0"."""
        if self.above:
            return f"a number above {self.low:g}" + (f", up to {self.high:g}" if self.high < math.inf else "")
        if math.isinf(self.low):
            return f"{self.high:g} or less"
        return f"{self.low:g} or more" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Option:
    """How a field is given on the command line.

    Attributes:
        name: with its dashes. One that begins with "--no-" switches off a field that is True by default.
        metavar: stands for the value in the help.
        help: of the command line, where the field's documentation says it from another side; None takes that one.
        unit: what is given is multiplied by it, such as 1e6 for megabytes of a field that counts bytes.
        old: former name, still accepted.
    """

    name: str
    metavar: str | None = None
    help: str | None = None
    unit: float | None = None
    old: str | None = None


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a field of an options dataclass declares.

    Attributes:
        name: of the field.
        type: without None and without what is declared.
        choices: values that a `Literal` allows; empty for other types.
        range: None for no limits.
        option: None for a field that the command line does not offer.
    """

    name: str
    type: Any
    choices: tuple[Any, ...]
    range: Range | None
    option: Option | None

    @property
    def is_nested(self) -> bool:
        """Whether the field holds options itself."""
        return isinstance(self.type, type) and is_dataclass(self.type)


_DECLARED = dict[type[Any], tuple[Declared, ...]]()  # reading type hints takes longer than checking values


def declared(kind: type[Any]) -> tuple[Declared, ...]:
    """The fields of an options dataclass, in order."""
    if kind not in _DECLARED:
        _DECLARED[kind] = tuple(_read_declared(kind))
    return _DECLARED[kind]


def _read_declared(kind: type[Any]) -> Iterator[Declared]:
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        bare, extras = hints[one.name], tuple[Any, ...]()
        if get_origin(bare) is Annotated:
            bare, *rest = get_args(bare)
            extras = tuple(rest)
        if get_origin(bare) in (Union, UnionType):
            [bare] = [part for part in get_args(bare) if part is not NoneType]
        yield Declared(
            name=one.name,
            type=bare,
            choices=get_args(bare) if get_origin(bare) is Literal else (),
            range=next((extra for extra in extras if isinstance(extra, Range)), None),
            option=next((extra for extra in extras if isinstance(extra, Option)), None),
        )


def documented(kind: type[Any]) -> dict[str, str]:
    """Name to text of what stands under "Attributes:" in a docstring; empty where Python runs without docstrings."""
    _, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")
    section = re.split(r"\n(?=\S)", attributes)[0]
    return {name: " ".join(text.split()) for name, text in _ENTRY.findall(section)}


def check(options: Any) -> None:
    """See that every value lies in its declared range and among its choices; None always does.

    Raises:
        OptionValueError: names the field, its value, and what to give.
    """
    values = vars(options)
    for one in declared(type(options)):
        value = values[one.name]
        if value is None:
            continue
        if one.range is not None and value not in one.range:
            raise OptionValueError(one.name, value, f"give {one.range}")
        if one.choices and value not in one.choices:
            raise OptionValueError(one.name, value, f"choose one of {', '.join(map(str, one.choices))}")


def renamed(values: Mapping[str, Any], names: Mapping[str, str], source: str) -> dict[str, Any]:
    """Stored values under the names of today.

    Args:
        values: as they were read.
        names: former name to the name of today.
        source: what the values stand in, for the warning.

    Raises:
        SprachbundError: a value is there under both names.
    """
    current = dict(values)
    for old, new in names.items():
        if old not in current:
            continue
        if new in current:
            raise SprachbundError(f"{source}: {old} is the former name of {new}; keep {new} alone")
        current[new] = current.pop(old)
        warnings.warn(
            f"{source}: {old} is called {new} now; the next version no longer reads the former name",
            RenamedWarning,
            stacklevel=3,
        )
    return current

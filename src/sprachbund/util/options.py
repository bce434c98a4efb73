"""Options declared once: a field of a class carries its allowed range and its name on the command line.

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
of the command line from them. What recipes and files hold is a pydantic model, which says `Field(ge=1)` in place of
`Range(1)` and checks itself; the rest is the same:

    steps: Annotated[int, Field(ge=1), Option("--steps", metavar="N")] = 2000

This module imports nothing heavy, since every start of the command reads it.
"""

import inspect
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sprachbund.errors import SprachbundError

_ENTRY = re.compile(r"    (\w+): (.+(?:\n {5,}.+)*)")
_NAMED_FIELD = re.compile(r"`(\w+)`")


class RenamedWarning(FutureWarning):
    """A name that is still accepted, and will not be in the next version."""


class OptionValueError(SprachbundError):
    """A value that an option does not allow, by itself or beside others.

    Advice and reason have the names of fields in backticks, as in "set `beam_size` to 1", so that a command line or a
    form can put its own there.

    Args:
        field: name of the field.
        value: seen.
        advice: the next step, such as allowed values, after a semicolon.
        reason: what is wrong with the value here, after a comma; empty where the advice says it.
    """

    def __init__(self, field: str, value: Any, advice: str, *, reason: str = "") -> None:
        self.field, self.value, self.advice, self.reason = field, value, advice, reason
        super().__init__(self.named({}, repr(value)))

    def __reduce__(self) -> tuple[Any, ...]:
        """How one process sends it to another."""
        return partial(OptionValueError, reason=self.reason), (self.field, self.value, self.advice)

    def named(self, names: Mapping[str, str], shown: str) -> str:
        """The message for users who know the fields by other names.

        Args:
            names: field to its name there; others keep theirs.
            shown: the value as they gave it.
        """
        rest = f"{self.reason and f', {self.reason}'}; {self.advice}"
        rest = _NAMED_FIELD.sub(lambda named: names.get(named[1], named[1]), rest)
        return f"{names.get(self.field, self.field)} is {shown}{rest}"


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

    def __str__(self) -> str:
        """Allowed values in words: "1 to 8", "1 or more", "a number above 0"."""
        if self.above:
            return f"a number above {self.low:g}" + (f", up to {self.high:g}" if self.high < math.inf else "")
        if math.isinf(self.low):
            return f"{self.high:g} or less"
        return f"{self.low:g} or more" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Option:
    """The command-line option of a field.

    Attributes:
        name: name of the option, with its dashes. One that begins with "--no-" switches off a field that is True by
            default.
        metavar: stands for the value in the help.
        help: help of the command line, where the field's documentation says it from another side; None takes that one.
        unit: factor of the value given, such as 1e6 for megabytes of a field that counts bytes.
        old: former name, still accepted.
        commas: whether a list is also given with commas between its values, not only by repeating the option.
    """

    name: str
    metavar: str | None = None
    help: str | None = None
    unit: float | None = None
    old: str | None = None
    commas: bool = True


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The declaration of a field of an options class.

    Attributes:
        name: name of the field.
        type: type of the field, without None and without what is declared.
        may_be_none: whether None is one of its values.
        choices: values that a `Literal` allows; empty for other types.
        range: None for no limits.
        option: None for a field that the command line does not offer.
        default: `MISSING` for a field that has to be given.
    """

    name: str
    type: Any
    may_be_none: bool
    choices: tuple[Any, ...]
    range: Range | None
    option: Option | None
    default: Any

    @property
    def is_nested(self) -> bool:
        """Whether the field holds options itself."""
        return isinstance(self.type, type) and (is_dataclass(self.type) or _is_model(self.type))


_DECLARED = dict[type[Any], tuple[Declared, ...]]()  # reading type hints takes longer than checking values


def declared(kind: type[Any]) -> tuple[Declared, ...]:
    """The fields of an options class, in order."""
    if kind not in _DECLARED:
        _DECLARED[kind] = tuple(_read_declared(kind))
    return _DECLARED[kind]


def _read_declared(kind: type[Any]) -> Iterator[Declared]:
    for name, bare, extras, default in _dataclass_fields(kind) if is_dataclass(kind) else _model_fields(kind):
        is_union = get_origin(bare) in (Union, UnionType)
        may_be_none = is_union and NoneType in get_args(bare)
        if is_union:
            [bare] = [part for part in get_args(bare) if part is not NoneType]
        yield Declared(
            name=name,
            type=bare,
            may_be_none=may_be_none,
            choices=get_args(bare) if get_origin(bare) is Literal else (),
            range=next((extra for extra in extras if isinstance(extra, Range)), None),
            option=next((extra for extra in extras if isinstance(extra, Option)), None),
            default=default,
        )


def _dataclass_fields(kind: type[Any]) -> Iterator[tuple[str, Any, Sequence[Any], Any]]:
    """Name, type, what is declared beside it, and default."""
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        bare, *extras = (
            get_args(hints[one.name]) if get_origin(hints[one.name]) is Annotated else [hints[one.name]]
        )
        yield one.name, bare, extras, one.default if one.default_factory is MISSING else one.default_factory()


def _model_fields(kind: Any) -> Iterator[tuple[str, Any, Sequence[Any], Any]]:
    """The same of a pydantic model."""
    for name, one in kind.model_fields.items():
        default = MISSING if one.is_required() else one.get_default(call_default_factory=True)
        yield name, one.annotation, [*one.metadata, _range_of(one.metadata)], default


def _range_of(metadata: Sequence[Any]) -> Range | None:
    """The limits of a pydantic field; None for one without, or with an upper one that is excluded."""
    from annotated_types import Ge, Gt, Le, Lt

    low: Any = -math.inf
    high: Any = math.inf
    above = False
    for limit in metadata:
        match limit:
            case Ge(ge=least):
                low = least
            case Gt(gt=bound):
                low, above = bound, True
            case Le(le=most):
                high = most
            case Lt():
                return None  # pydantic refuses what is above, in its own words
    return Range(low, high, above) if (low, high) != (-math.inf, math.inf) else None


def _is_model(kind: type[Any]) -> bool:
    from pydantic import BaseModel  # here, since a start of the command does without it

    return issubclass(kind, BaseModel)


def documented(kind: type[Any]) -> dict[str, str]:
    """Name to text of what stands under "Attributes:" in the docstrings of a class and of those that it inherits from.

    It is empty where Python runs without docstrings.
    """
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        _, _, attributes = inspect.cleandoc(one.__doc__ or "").partition("\nAttributes:\n")
        section = re.split(r"\n(?=\S)", attributes)[0]
        texts |= {name: " ".join(text.split()) for name, text in _ENTRY.findall(section)}
    return texts


def check(options: Any) -> None:
    """Check that every value is of its declared type, lies in its declared range and is among its choices.

    Raises:
        OptionValueError: names the field, its value, and what to give.
    """
    check_values(type(options), vars(options))


def check_values(kind: type[Any], values: Mapping[str, Any]) -> None:
    """The same of values by field, of an options class that is not made yet.

    The range of a tuple is that of each of its values.

    Args:
        kind: the class.
        values: values by field.

    Raises:
        OptionValueError: names the field, its value, and what to give.
    """
    for one in declared(kind):
        if one.name not in values:
            continue
        value = values[one.name]
        if not _is_of_type(one, value):
            raise OptionValueError(one.name, value, _advice(one, value))
        for each in value if isinstance(value, tuple) else (value,):
            if each is None:
                continue
            if one.range is not None and not _lies_in(each, one.range):
                raise OptionValueError(one.name, each, _advice(one, each))
            if one.choices and each not in one.choices:
                raise OptionValueError(one.name, each, _advice(one, each))


# Type of a field to the class of its values, and their name in messages. NumPy's numbers are of these classes, too.
_SIMPLE: Mapping[Any, tuple[type[Any], str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a string"),
}


def _is_of_type(one: Declared, value: Any) -> bool:
    """Whether a value is of the field's type. Values of other types than these are left to what uses them."""
    if value is None:
        return one.may_be_none
    if one.type in _SIMPLE:
        # True and False are whole numbers to Python, and not to people.
        return isinstance(value, _SIMPLE[one.type][0]) and isinstance(value, bool) == (one.type is bool)
    if get_origin(one.type) is tuple:
        return not isinstance(value, str)  # "de" would be the languages "d" and "e"
    return not one.is_nested or isinstance(value, one.type)


def _advice(one: Declared, value: Any) -> str:
    """What to give in place of a value that a field does not allow."""
    if one.choices:
        return f"choose one of {', '.join(map(str, one.choices))}"
    if one.range is not None:
        is_fraction = one.type is int and isinstance(value, Real) and not isinstance(value, Integral)
        return f"give {'a whole number, ' if is_fraction else ''}{one.range}"
    if one.is_nested:
        return f"give {one.type.__name__}"
    if get_origin(one.type) is tuple:
        return f"give a tuple, such as ({value!r},)" if isinstance(value, str) else "give a tuple"
    return f"give {_SIMPLE[one.type][1]}" if one.type in _SIMPLE else "leave it out, or give a value"


def _lies_in(value: Any, allowed: Range) -> bool:
    try:
        return value in allowed
    except TypeError:  # a text, for instance
        return False


def check_known(kind: type[Any], values: Mapping[str, Any], inside: str = "") -> None:
    """Refuse stored values that an options class has no field for.

    Args:
        kind: the class.
        values: values by field.
        inside: what stands before the name of a field, such as "decoding.".

    Raises:
        SprachbundError: names the field.
    """
    known = {one.name for one in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise SprachbundError(f"this version has no option {inside}{unknown[0]}")


def renamed(
    values: Mapping[str, Any], names: Mapping[str, str], source: str, *, once: bool = False
) -> dict[str, Any]:
    """Stored values under the names of today.

    Args:
        values: as they were read.
        names: former name to the name of today.
        source: name of the file or table that holds the values, for the warning.
        once: warn once of each name and source in this process; for a source of many values, such as a corpus.

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
        text = f"{source}: {old} is called {new} now; the next version no longer reads the former name"
        if once:
            _warn_once(text)
        else:
            warnings.warn(text, RenamedWarning, stacklevel=3)
    return current


@cache
def _warn_once(text: str) -> None:
    """Python's own memory of warnings does not do: it is emptied wherever a library changes the filters."""
    warnings.warn(text, RenamedWarning, stacklevel=4)

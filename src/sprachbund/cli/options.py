"""Options of a verb, made from the classes that declare them (`sprachbund.util.options`).

    def listen(file: File = None, *, live: Annotated[LiveOptions, Panel("When text is written")]) -> None: ...

    app.command()(with_options(listen))  # a VerbApp

The command then has an option for every field of `LiveOptions` that declares one, under that title in the help, and
the verb gets a `LiveOptions`, made and checked. Its errors are those of the command line, and so is every
`OptionValueError` that the verb lets out: both name the options that the user typed.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, replace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption
from typer.models import OptionInfo

from sprachbund.cli.completion import completion_of
from sprachbund.cli.console import UsageError, as_usage, listed, say
from sprachbund.errors import SprachbundError
from sprachbund.util.options import (
    Declared,
    Option,
    OptionValueError,
    check_values,
    declared,
    documented,
)

OWN_PANEL = "Options"
"""Title of the options that a verb lists itself."""


@dataclass(frozen=True)
class Panel:
    """Options of a class as a section of the help.

    Attributes:
        title: above them.
        only: fields that are offered, with dots for those of nested classes; None offers all that can be.
        without: fields that are not offered.
        nested: field to the title above the options of the class in it; without, they stand under `title`.
    """

    title: str
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    nested: Mapping[str, str] = field(default_factory=dict)

    def offers(self, path: tuple[str, ...]) -> bool:
        """Whether a field is offered, by its path of names."""
        name = ".".join(path)
        return name not in self.without and (self.only is None or name in self.only)


class VerbCommand(TyperCommand):
    """A command whose help has a section for every panel, and names arguments as its usage does."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The parts of the usage behind the command: that there are options, and the arguments."""
        arguments = [param for param in self.get_params(ctx) if isinstance(param, TyperArgument)]
        return ["[OPTIONS]", *map(_in_usage, arguments)]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the sections in the order in which they first occur."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if isinstance(param, TyperArgument):
                sections.setdefault("Arguments", []).append((_in_usage(param), param.help or ""))
            elif isinstance(param, TyperOption):
                names, text = record
                sections.setdefault(param.rich_help_panel or OWN_PANEL, []).append((names, _in_words(text)))
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _in_usage(argument: TyperArgument) -> str:
    """Name of an argument: in brackets where it may be left out, with dots where it may be repeated."""
    name = argument.metavar or (argument.name or "").upper()
    return f"{name if argument.required else f'[{name}]'}{'...' * (argument.nargs != 1)}"


def _in_words(text: str) -> str:
    """Help of an option with its limits as `Range` has them, in place of the argument parser's "0<=x<=1"."""

    def limits(match: re.Match[str]) -> str:
        low, high = match["low"] or match["least"], match["high"]
        return f"{low} to {high}" if low and high else f"{low} or more" if low else f"{high} or less"

    return re.sub(r"(?:(?P<low>[\d.-]+)<=)?x(?:>=(?P<least>[\d.-]+)|<=(?P<high>[\d.-]+))(?=\])", limits, text)


class VerbApp(typer.Typer):
    """Commands of a file, each a `VerbCommand`."""

    def command(  # type: ignore[override]
        self, name: str | None = None, **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """As `typer.Typer.command`."""
        return super().command(name, cls=VerbCommand, **options)


@dataclass(frozen=True, kw_only=True)
class OfferedField:
    """A field of a verb's options that the command line offers.

    Attributes:
        path: the verb's parameter, then the names of fields down to this one.
        declared: type and range of the field.
        option: declaration of the option.
        default: as the class has it; `MISSING` for a field that has to be given.
        help: help text of the option.
        panel: title of its section.
    """

    path: tuple[str, ...]
    declared: Declared
    option: Option
    default: Any
    help: str
    panel: str

    @property
    def key(self) -> str:
        """Name of the command's parameter."""
        return "__".join(self.path)

    @property
    def is_negated(self) -> bool:
        """Whether the option switches the field off."""
        return self.option.name.startswith("--no-") and self.declared.type is bool

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The command's parameters: the option, and its former name, hidden."""
        choices = f"<{'|'.join(map(str, self.declared.choices))}>" if self.declared.choices else None
        info = typer.Option(
            self.option.name,
            metavar=self.option.metavar or choices,
            help=self.help,
            rich_help_panel=self.panel,
            autocompletion=completion_of(self.option.metavar, self.declared.choices),
        )
        shown = self._shown_default()
        kind = self._command_type()
        if shown is None and kind is not bool:
            kind = kind | None
        yield _parameter(self.key, Annotated[kind, info], shown)
        if self.option.old is not None:
            info = typer.Option(self.option.old, hidden=True, help=f"Former name of {self.option.name}.")
            yield _parameter(f"{self.key}__old", Annotated[self._command_type() | None, info], None)

    def value(self, given: dict[str, Any]) -> Any:
        """The field's value, of the command's parameters. Raises UsageError: given under both names."""
        value = given.pop(self.key)
        if self.option.old is not None and (old := given.pop(f"{self.key}__old")) is not None:
            if value != self._shown_default():
                raise UsageError(
                    f"{self.option.old} is the former name of {self.option.name}; give one of them"
                )
            say(
                f"warning: {self.option.old} is called {self.option.name} now; the next version no longer takes the "
                "former name"
            )
            value = old
        if self.is_negated:
            return not value
        if self._is_number_list():
            return self._numbers(value)
        if self._is_list():
            texts = tuple(listed(value) if self.option.commas else value or ())
            return texts if self.default is MISSING else texts or self.default
        if self.option.unit is not None:
            number = value * self.option.unit
            return round(number) if self.declared.type is int else number
        return value

    def typed(self, value: Any) -> str:
        """A value of the field as the user typed it."""
        if self.declared.type is bool:
            return "given"
        if self._is_list() and isinstance(value, tuple):
            return repr(",".join(map(str, value)))
        return repr(value if self.option.unit is None else value / self.option.unit)

    def _is_list(self) -> bool:
        return get_origin(self.declared.type) is tuple

    def _is_number_list(self) -> bool:
        return self._is_list() and get_args(self.declared.type)[0] is float

    def _numbers(self, value: list[str] | None) -> tuple[float, ...] | None:
        if self.default is None and not value:
            return None
        try:
            return tuple(float(part) for part in listed(value))
        except ValueError as error:
            raise UsageError(
                f"{self.option.name} is {','.join(value or ())!r}; write numbers with commas between, as in "
                f"{self._shown_numbers() or '1,2.5'}"
            ) from error

    def _shown_numbers(self) -> str:
        return ",".join(f"{number:g}" for number in self.default or ())

    def _command_type(self) -> Any:
        if self._is_list():
            return list[str]
        if self.declared.choices:
            return str  # checked by `check_values`, whose message names them
        return float if self.option.unit is not None else self.declared.type

    def _shown_default(self) -> Any:
        """The default as the command line has it; None of lists of texts, whose default the help says in words."""
        if self.default is MISSING:
            return inspect.Parameter.empty
        if self.is_negated:
            return not self.default
        if self._is_number_list() and self.default:
            return [self._shown_numbers()]
        if self._is_list():
            return None
        number = self.default
        if self.option.unit is not None and number is not None:
            number /= self.option.unit
        # 600, not 600.0
        return int(number) if isinstance(number, float) and number.is_integer() else number


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as a function for typer: in place of each parameter with a panel, the options of its class's fields.

    Args:
        verb: such parameters are annotated as `Annotated[Class, Panel(...)]`.
    """
    signature, hints = inspect.signature(verb), get_type_hints(verb, include_extras=True)
    parameters: list[inspect.Parameter] = []
    own: dict[str, str] = {}
    groups: dict[str, tuple[type[Any], list[OfferedField]]] = {}
    for name, parameter in signature.parameters.items():
        kind, *extras = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        panel = next((extra for extra in extras if isinstance(extra, Panel)), None)
        if panel is None:
            parameters.append(_parameter(name, hints[name], parameter.default))
            # typer keeps the name in an annotation as the default.
            own.update((name, str(extra.default)) for extra in extras if isinstance(extra, OptionInfo))
            continue
        offered = list(offered_fields(kind, panel, (name,)))
        groups[name] = (kind, offered)
        parameters += [made for one in offered for made in one.parameters()]

    def command(**given: Any) -> None:
        made = {}
        for name, (kind, offered) in groups.items():
            values = {one.path[1:]: one.value(given) for one in offered}
            with _named_by_option(own, offered), as_usage():
                made[name] = _made(kind, values)
        with _named_by_option(own, [one for _, offered in groups.values() for one in offered]):
            verb(**given, **made)

    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    # typer reads both
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def offered_fields(
    kind: type[Any], panel: Panel, path: tuple[str, ...], instance: Any = None
) -> Iterator[OfferedField]:
    """The fields of an options class, and of those nested in it, that a panel offers.

    Args:
        kind: the class.
        panel: fields that are offered.
        path: the verb's parameter, then the fields above.
        instance: instance whose nested values are the defaults; None takes the defaults of `kind`.
    """
    texts = documented(kind)
    names = {
        one.name: one.option.name
        for one in declared(kind)
        if one.option and panel.offers((*path[1:], one.name))
    }
    for one in declared(kind):
        here = (*path, one.name)
        default = one.default if instance is None else vars(instance)[one.name]
        if one.is_nested:
            title = panel.nested.get(one.name, panel.title)
            yield from offered_fields(one.type, replace(panel, title=title), here, default)
        elif one.option is not None and panel.offers(here[1:]):
            yield OfferedField(
                path=here,
                declared=one,
                option=one.option,
                default=default,
                help=_help(one, one.option, _with_options_named(texts.get(one.name, ""), names)),
                panel=panel.title,
            )


def _made(kind: type[Any], values: dict[tuple[str, ...], Any], instance: Any = None) -> Any:
    """The options with the values given, by path; the rest as in `instance`, or as by default."""
    from pydantic import ValidationError  # here, since help does without it

    own: dict[str, Any] = {}
    for one in declared(kind):
        if one.is_nested:
            below = {path[1:]: value for path, value in values.items() if path[0] == one.name}
            own[one.name] = _made(
                one.type, below, one.default if instance is None else vars(instance)[one.name]
            )
        elif (one.name,) in values:
            own[one.name] = values[(one.name,)]
        elif instance is not None:
            own[one.name] = vars(instance)[one.name]
    check_values(kind, own)
    try:
        return kind(**own)
    except ValidationError as error:
        raise SprachbundError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


@contextmanager
def _named_by_option(own: Mapping[str, str], offered: Sequence[OfferedField]) -> Iterator[None]:
    """Let errors about values of options be usage errors, with the names that the user typed, and in their units.

    Args:
        own: options that the verb lists itself, by parameter.
        offered: those of its classes.
    """
    try:
        yield
    except (UsageError, OptionValueError) as error:
        wrong = error if isinstance(error, OptionValueError) else error.__cause__
        if not isinstance(wrong, OptionValueError):
            raise
        names = {**own, **{one.path[-1]: one.option.name for one in offered}}
        typed = next(
            (one.typed(wrong.value) for one in offered if one.path[-1] == wrong.field), repr(wrong.value)
        )
        named = UsageError(wrong.named(names, typed))
        if isinstance(error, UsageError):
            named.hints = error.hints
        raise named from wrong


def _help(one: Declared, option: Option, text: str) -> str:
    """Help of the option, or the field's documentation as a sentence; with the limits of its values."""
    said = (option.help or f"{text[:1].upper()}{text[1:]}").removesuffix(".")
    shown = one.range is not None and option.unit is None
    limits = f" ({str(one.range).removeprefix('a number ')})" if shown else ""
    return f"{said}{limits}." if said else ""


def _with_options_named(text: str, names: Mapping[str, str]) -> str:
    """A field's documentation with options, by field, in place of other fields that it names."""
    return re.sub(r"`(\w+)`", lambda named: names.get(named[1], named[0]), text)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

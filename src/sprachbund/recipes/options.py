"""Recipes as values: a TOML file, overridden by `--set a.b=c`, checked whole before any work."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sprachbund.errors import SprachbundError
from sprachbund.util.files import read_toml

Recipe = TypeVar("Recipe", bound=BaseModel)


def read_recipe(model: type[Recipe], path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        model: the recipe's pydantic model.
        path: TOML file.
        overrides: "a.b=value" with a TOML value; a bare word counts as a string.

    Raises:
        SprachbundError: naming the file or override, the key, and the nearest known key.
    """
    if not path.exists():
        raise SprachbundError(f"there is no recipe {path}; check the path")
    return make_recipe(model, read_toml(path), overrides, where=f"{path}: ")


def make_recipe(
    model: type[Recipe], values: dict[str, Any], overrides: Sequence[str] = (), *, where: str = ""
) -> Recipe:
    """A recipe of plain values, changed by overrides; what is wrong with it is told after `where`. Errors as above."""
    for override in overrides:
        _override(values, override)
    check_numbers(values, where)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SprachbundError(f"{where}{_explain(error, model)}") from error


def check_numbers(values: Any, where: str = "", key: str = "") -> None:
    """Refuse numbers that no recipe means, before a validator makes a list of so many things.

    Args:
        values: plain values, as TOML or JSON hold them.
        where: what the message begins with.
        key: of the values in the recipe, with dots; empty for all of it.

    Raises:
        SprachbundError: a number that is not finite, is negative, or is larger than `_most` of its key.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            check_numbers(value, where, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            check_numbers(value, where, key)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        most = _most(key.rpartition(".")[2])
        if not 0 <= values <= most:
            raise SprachbundError(f"{where}{key} is {_shown(values)}; give a number from 0 to {most:g}")


def _most(name: str) -> int:
    """The largest number under a name: far above any that was ever used, far below what fills a machine's memory."""
    last = name.rpartition("_")[2]
    if last in ("seed", "seeds"):
        return 2**63 - 1
    if last in ("layers", "blocks", "heads", "workers", "masks", "lower", "upper"):
        return 10_000
    return 10_000_000 if last in ("width", "channels", "rank", "size", "bins", "dimensions") else 10**9


def check_arms(arms: Sequence[str], known: Iterable[str]) -> None:
    """Raise ValueError, as pydantic's validators do, for an arm of a comparison that is not known."""
    names = tuple(known)
    if unknown := [name for name in arms if name not in names]:
        raise ValueError(f"no arm {unknown[0]!r}; there are {'; '.join(names)}")


def _override(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign:
        raise SprachbundError(f"--set {override!r} has no '='; write it as key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # TOMLDecodeError is a ValueError, as is a number of too many digits
        value = text
    *path, last = key.strip().split(".")
    for part in path:
        inside = values.setdefault(part, {})
        if not isinstance(inside, dict):
            raise SprachbundError(
                f"--set {override!r}: {part} is {_shown(inside)}, which has no {last}; set {part} itself"
            )
        values = inside
    values[last] = value


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _keys(model), n=1)
        return f"unknown key {where}" + (f"; did you mean {near[0]}?" if near else "")
    value = first.get("input")
    # What is wrong with a part as a whole names the values itself.
    shown = "" if isinstance(value, Mapping | BaseModel) else f" (value {_shown(value)})"
    return ": ".join(filter(None, (where, first["msg"].removeprefix("Value error, ") + shown)))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _keys(model: type[BaseModel]) -> list[str]:
    keys: list[str] = []
    fields: Mapping[str, Any] = model.model_fields
    for name, field in fields.items():
        keys.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation)
    return keys

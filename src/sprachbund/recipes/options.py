"""Recipes as values: a TOML file, overridden by `--set a.b=c`, checked whole before any work."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sprachbund.errors import SprachbundError

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
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SprachbundError(f"there is no recipe {path}; check the path") from error
    except tomllib.TOMLDecodeError as error:
        raise SprachbundError(f"{path} is not TOML: {error}") from error
    return make_recipe(model, values, overrides, where=f"{path}: ")


def make_recipe(
    model: type[Recipe], values: dict[str, Any], overrides: Sequence[str] = (), *, where: str = ""
) -> Recipe:
    """A recipe of plain values, changed by overrides; what is wrong with it is told after `where`. Errors as above."""
    for override in overrides:
        _override(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SprachbundError(f"{where}{_explain(error, model)}") from error


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
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.strip().split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[last] = value


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _keys(model), n=1)
        return f"unknown key {where}" + (f"; did you mean {near[0]}?" if near else "")
    value = first.get("input")
    # What is wrong with a part as a whole names the values itself.
    shown = "" if isinstance(value, Mapping | BaseModel) else f" (value {value!r})"
    return ": ".join(filter(None, (where, first["msg"].removeprefix("Value error, ") + shown)))


def _keys(model: type[BaseModel]) -> list[str]:
    keys: list[str] = []
    fields: Mapping[str, Any] = model.model_fields
    for name, field in fields.items():
        keys.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation)
    return keys

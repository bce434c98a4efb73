"""Hooks of MkDocs that write the parts of the reference which the code already states.

A page in `docs/` asks for such a part with a comment on a line of its own:

`<!-- generated: commands -->`
    Every verb with its arguments and options, as `sprachbund VERB --help` prints them.
`<!-- generated: options sprachbund.decoding.options.DecodingOptions -->`
    A table of the fields of a class: name, type, default and meaning. A field whose type is an option class itself
    gets a table of its own, under the path that a TOML file writes.

A reader of the Markdown files sees the page without these parts.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.exceptions import PluginError

from sprachbund.cli import build_app

ROOT = Path(__file__).parents[1]
_MARKER = re.compile(r"^<!-- generated: (?P<kind>\w+)(?: (?P<name>[\w.]+))? -->$", re.MULTILINE)
# Elements that a browser fetches from another host when it opens a page. A canonical link is only a name.
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?![^>]*canonical)[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page."""

    def generated(match: re.Match[str]) -> str:
        if match["kind"] == "commands":
            return "\n".join(_commands())
        if match["kind"] == "options" and match["name"]:
            return "\n".join(_options(match["name"]))
        raise PluginError(f"unknown marker {match[0]}; write 'commands' or 'options DOTTED.NAME'")

    return _MARKER.sub(generated, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page for which a browser would contact another host."""
    if fetched := _FETCHED.search(output):
        raise PluginError(f"{page.file.src_path} makes browsers contact another host: {fetched[0]}")
    return output


def _commands() -> Iterator[str]:
    """The command line: for every command a heading, its usage, its help and its options."""
    command = typer.main.get_command(build_app())
    yield from _command(command, command.context_class(command, info_name="sprachbund"))


def _command(command: Any, context: Any) -> Iterator[str]:
    depth = min(4, 1 + len(context.command_path.split()))
    yield f"\n{'#' * depth} {context.command_path}\n"
    yield f"{(command.help or '').strip()}\n"
    yield f"```\n{context.get_usage().removeprefix('Usage: ')}\n```\n"
    records = [record for p in command.get_params(context) if (record := p.get_help_record(context))]
    yield "| option | meaning |\n|---|---|"
    yield from (f"| {_cell(f'`{names}`')} | {_cell(meaning)} |" for names, meaning in records)
    if isinstance(command, typer.core.TyperGroup):
        for name in command.list_commands(context):
            if (child := command.get_command(context, name)) is not None and not child.hidden:
                yield from _command(child, child.context_class(child, info_name=name, parent=context))


@cache
def _package() -> griffe.Module:
    """The package as its files define it; it is read without being imported, so torch is not loaded."""
    package = griffe.load("sprachbund", search_paths=[str(ROOT / "src")], docstring_parser="google")
    assert isinstance(package, griffe.Module)
    return package


def _options(dotted: str) -> Iterator[str]:
    declared = _package()[dotted.removeprefix("sprachbund.")]
    if not isinstance(declared, griffe.Class):
        raise PluginError(f"{dotted} is not a class; name the module that defines it")
    yield from _fields(declared, key="")


def _fields(options: griffe.Class, *, key: str) -> Iterator[str]:
    """A table of the fields. `key` is the table of the TOML file that holds them, "" at the top level."""
    nested: dict[str, griffe.Class] = {}
    meanings = _meanings(options)
    if key:
        yield f"\n### {key}\n"
        if options.docstring is not None:
            yield " ".join(options.docstring.value.split("\n\n")[0].split()) + "\n"
    yield "| name | type | default | meaning |\n|---|---|---|---|"
    for name, field in options.all_members.items():
        if not isinstance(field, griffe.Attribute) or field.annotation is None or "property" in field.labels:
            continue  # methods, computed properties and the configuration of pydantic
        meaning = meanings.get(name, "")
        if (inner := _option_class(field)) is not None:
            path = f"{key}.{name}" if key else name
            nested[path] = inner
            meaning = f"{meaning} See [{path}](#{re.sub(r'[^a-z0-9_-]', '', path)}).".strip()
        yield f"| `{name}` | `{_type(field)}` | {_default(field)} | {_cell(meaning)} |"
    for path, inner in nested.items():
        yield from _fields(inner, key=path)


def _meanings(options: griffe.Class) -> dict[str, str]:
    """Field to its description in the `Attributes:` section of the class, or of a class that it inherits from."""
    descriptions: dict[str, str] = {}
    for one in (*reversed(options.mro()), options):
        for section in one.docstring.parsed if one.docstring is not None else ():
            if isinstance(section, griffe.DocstringSectionAttributes):
                descriptions |= {attribute.name: attribute.description for attribute in section.value}
    return descriptions


def _type(field: griffe.Attribute) -> str | griffe.Expr | None:
    """The type of a field without what is declared beside it: `int` of `Annotated[int, Range(1), Option("--beam")]`."""
    match field.annotation:
        case griffe.ExprSubscript(
            left=griffe.ExprName(name="Annotated"), slice=griffe.ExprTuple(elements=[bare, *_])
        ):
            return bare
        case annotation:
            return annotation


def _option_class(field: griffe.Attribute) -> griffe.Class | None:
    """The class of options that a field holds one or several of, if its type names one."""
    annotation = _type(field)
    names = [annotation] if isinstance(annotation, griffe.ExprName) else []
    if isinstance(annotation, griffe.Expr):
        names += [part for part in annotation.iterate() if isinstance(part, griffe.ExprName)]
    for name in names:
        if not name.canonical_path.startswith("sprachbund."):
            continue
        definition = _package()[name.canonical_path.removeprefix("sprachbund.")]
        definition = definition.final_target if isinstance(definition, griffe.Alias) else definition
        if isinstance(definition, griffe.Class):
            return definition
    return None  # a type of the library, or a name for one such as a Literal


def _default(field: griffe.Attribute) -> str:
    if field.value is None:
        return "required"
    text = str(field.value)
    if written := re.match(r"[Ff]ield\((?:default=)?([^,=()]+|\([^()]*\))(?:,|\))", text):
        return f"`{written[1]}`"
    if text == "Field(default_factory=dict)":
        return "`{}`"
    if text.startswith("Field("):
        return "required"
    # The defaults of nested options stand in a table of their own.
    return "see there" if re.fullmatch(r"\w+\(\)|field\(default_factory=\w+\)", text) else f"`{text}`"


def _cell(text: str) -> str:
    """Text for a cell of a table: one line, its bars escaped outside of code."""
    parts = re.split("(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)

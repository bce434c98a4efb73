"""Completion in shells: models, languages, formats and choices; each call is a start of the command, so it is quick.

A value after the last comma is completed alone, as in `--to de,f`.
"""

from collections.abc import Callable, Iterable, Sequence

from sprachbund.models.catalogue import CATALOGUE, SHIPPED, all_languages, folders_with_config


def models(incomplete: str) -> list[str]:
    """The models of the package, public ones by their aliases, and folders here that may hold one."""
    folders = map(str, folders_with_config())
    return _matching([*SHIPPED, *(one.alias for one in CATALOGUE), *folders], incomplete)


def languages(incomplete: str) -> list[str]:
    """Tags of languages that the bundled model or a public one knows."""
    return _matching(sorted(all_languages()), incomplete)


def formats(incomplete: str) -> list[str]:
    """Names of file formats."""
    from sprachbund.decoding.formats import FORMATS

    return _matching(FORMATS, incomplete)


def _matching(values: Iterable[str], incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",") if comma else []
    return [f"{before}{comma}{value}" for value in values if value.startswith(last) and value not in given]


def completion_of(metavar: str | None, choices: Sequence[object] = ()) -> Callable[[str], list[str]] | None:
    """Return the function that completes an option that a dataclass declares; None for no completion.

    Args:
        metavar: placeholder of its value in the help.
        choices: values that its type allows.
    """
    if choices:
        return lambda incomplete: _matching(map(str, choices), incomplete)
    return _BY_METAVAR.get(metavar or "")


_BY_METAVAR = {"MODEL": models, "LANG": languages, "LANG,…": languages, "FMT,…": formats}

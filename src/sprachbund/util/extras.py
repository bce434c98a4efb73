"""The extras of this package: the packages that each asks for, and the extra that brings a missing module."""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

_PACKAGES = {
    "annotated_types": "pydantic",
    "babel": "Babel",
    "comet": "unbabel-comet",
    "google": "protobuf",
    "h11": "uvicorn",
    "multipart": "python-multipart",
    "pkg_resources": "setuptools",
    "sklearn": "scikit-learn",
    "starlette": "fastapi",
    "threadpoolctl": "scikit-learn",
    "tqdm": "huggingface_hub",
    "yaml": "pyyaml",
}
"""Packages whose module has another name, or that bring a module which no extra asks for by itself."""
_HOMES = {
    "sprachbund.models.punctuation": "translation",
    "sprachbund.models.seamless": "seamless",
    "sprachbund.models.speech_llm": "speech-llm",
    "sprachbund.models.translation": "translation",
    "sprachbund.serving": "serve",
}
"""Code to the extra that is made for it, where several ask for the same package."""
_GENERAL = "train"
"""The extra of all other code, where it asks for the package."""
BASE = ""
"""Name in place of an extra for what is always installed."""
DEVELOPERS = ("dev", "docs")
"""Extras that no command needs."""


def missing_package(error: ImportError) -> str | None:
    """One line that says which package is missing and what installs it; None if that is not what happened.

    Args:
        error: error of an import that failed. Where several extras ask for the package, the code that imported it
            decides.
    """
    # transformers says which of its own classes it could not import; what that was caused by names the package.
    while isinstance(error.__cause__, ImportError):
        error = error.__cause__
    if not isinstance(error, ModuleNotFoundError):
        return None
    said = re.match(r"No module named '([\w.]+)'", str(error))  # some libraries raise it without the name
    module = (error.name or (said[1] if said else "")).partition(".")[0]
    if module in ("", "sprachbund"):
        return None
    package = package_of(module)
    extra = _extra(package, error)
    wanted = f"'sprachbund[{extra}]'" if extra else package
    return f"the package {package} is not installed; run: pip install {wanted}"


def is_installed(extra: str) -> bool:
    """Whether every package of an extra is installed."""
    return not missing_of(extra)


def missing_of(extra: str) -> list[str]:
    """Packages of an extra that are not installed."""
    return [package for package in extras().get(extra, ()) if not is_there(package)]


def is_there(package: str) -> bool:
    """Whether a package is installed."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def package_of(module: str) -> str:
    """The package that brings a module of the top level, by its name in lower case."""
    return _canonical(_PACKAGES.get(module, module))


@cache
def extras() -> dict[str, tuple[str, ...]]:
    """Extra to the packages it asks for, in the order of pyproject.toml; `BASE` to those of the core.

    As the installed package states them; as pyproject.toml does where the sources run without being installed. Empty
    where neither is there.
    """
    packages_of_extra: dict[str, tuple[str, ...]] = {}
    for extra, line in _requirements():
        # "sprachbund[serve]", for what extends another extra
        names = re.match(r"([\w.-]+)(?:\[([^\]]*)\])?", line)
        if names is None:
            continue
        own = _canonical(names[1]) == "sprachbund"
        inner = [part.strip() for part in (names[2] or "").split(",")] if own else []
        packages = [package for part in inner for package in packages_of_extra.get(part, ())]
        packages += [] if own else [_canonical(names[1])]
        packages_of_extra[extra] = tuple(dict.fromkeys([*packages_of_extra.get(extra, ()), *packages]))
    return packages_of_extra


def _requirements() -> Iterator[tuple[str, str]]:
    """Every extra with a requirement of it."""
    try:
        for line in requires("sprachbund") or ():
            extra = re.search(r"""extra\s*==\s*["']([^"']+)""", line)
            yield extra[1] if extra else BASE, line
    except PackageNotFoundError:
        path = Path(__file__).parents[3] / "pyproject.toml"
        if not path.is_file():
            return
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") != "sprachbund":
            return
        for line in project["dependencies"]:
            yield BASE, line
        for extra, lines in project["optional-dependencies"].items():
            for line in lines:
                yield extra, line


def _extra(package: str, error: ImportError) -> str:
    """The extra to install for a package that some code lacks; empty if none asks for it, or all have it."""
    asking = {name: packages for name, packages in extras().items() if name not in DEVELOPERS}
    importers = list(_importers(error))
    if not any(package in packages for packages in asking.values()):
        # What only a library asks for comes with that library.
        known = {one for packages in asking.values() for one in packages}
        package = next((one for one in map(package_of, importers) if one in known), package)
    having = [name for name, packages in asking.items() if package in packages]
    if BASE in having or not having:
        return BASE
    for importer in importers:
        for code, extra in _HOMES.items():
            if f"{importer}.".startswith(f"{code}.") and extra in having:
                return extra
    return _GENERAL if _GENERAL in having else min(having, key=lambda name: len(asking[name]))


def _importers(error: ImportError) -> Iterator[str]:
    """Modules of this package that an error came through, and libraries by their top level; the innermost first."""
    modules = []
    trace = error.__traceback__
    while trace is not None:
        modules.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    for name in reversed(modules):
        top = name.partition(".")[0]
        if top and top != "importlib" and not top.startswith("_"):
            yield name if top == "sprachbund" else top


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

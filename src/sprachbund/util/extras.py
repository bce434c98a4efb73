"""Which extra of this package brings a module that is missing."""

import re
from importlib.metadata import PackageNotFoundError, requires

_PACKAGES = {
    "comet": "unbabel-comet",
    "google": "protobuf",
    "multipart": "python-multipart",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Packages whose module has another name."""
_EVERYTHING = "dev"


def missing_package(error: ImportError) -> str | None:
    """One line that says which package is missing and what installs it; None if that is not what happened.

    Args:
        error: of an import that failed.
    """
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module in ("", "sprachbund"):
        return None
    package = _canonical(_PACKAGES.get(module, module))
    extra = _extra(package)
    wanted = f"'sprachbund[{extra}]'" if extra else package
    return f"the package {package} is not installed; run: pip install {wanted}"


def _extra(package: str) -> str:
    """The first extra, in the order of pyproject.toml, that asks for a package; empty if none does."""
    try:
        lines = requires("sprachbund") or []
    except PackageNotFoundError:  # run from the sources, which were never installed
        return ""
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"""extra\s*==\s*["']([^"']+)""", line)
        if name and extra and _canonical(name[0]) == package and extra[1] != _EVERYTHING:
            return extra[1]
    return ""


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

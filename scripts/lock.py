"""Writes the two lock files from what is installed: what translating needs, and what developing adds.

Run it in an environment that has everything: `.venv/bin/python scripts/lock.py`.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HEADER = "# Written by scripts/lock.py. torch is installed first, by itself: see the Makefile.\n"


def closure(requirements: list[str], own_extras: dict[str, list[str]]) -> dict[str, str]:
    """Every installed package that these need, with its version; those of sprachbund's own extras too."""
    found: dict[str, str] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "sprachbund":
            waiting += [Requirement(text) for extra in requirement.extras for text in own_extras[extra]]
        if name in found or name in ("sprachbund", "torch"):
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # wanted only on another system
        found[name] = package.version
        for text in package.requires or []:
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(needed)
    return found


def main() -> None:
    """Write requirements.lock and requirements-dev.lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    torch_needs = [text for text in distribution("torch").requires or [] if "extra" not in text]
    core = closure([*project["dependencies"], *torch_needs], extras)
    everything = closure(extras["dev"], extras)
    added = {name: version for name, version in everything.items() if name not in core}
    for path, packages in (("requirements.lock", core), ("requirements-dev.lock", added)):
        lines = [f"{name}=={version}\n" for name, version in sorted(packages.items())]
        (ROOT / path).write_text(HEADER + "".join(lines))
        print(f"{path}: {len(lines)} packages")


if __name__ == "__main__":
    main()

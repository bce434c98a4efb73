"""Writes the lock files from the installed packages: those of translating, and those that the service, development and
the documentation's site add.

Each package stands there with the SHA-256 of all its files, for every system and Python, which uv reads from the index.
Run it in an environment that has everything, with uv (`pip install uv`): `.venv/bin/python scripts/lock.py`.
What builds the package (requirements-build.lock) is installed nowhere, so uv chooses its versions.
"""

import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HEADER = "# Written by scripts/lock.py. torch is installed first, by itself: see the Makefile.\n"


def closure(requirements: list[str], own_extras: dict[str, list[str]]) -> dict[str, str]:
    """Every installed package that these need, with its version; those of sprachbund's own extras too."""
    versions: dict[str, str] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "sprachbund":
            waiting += [Requirement(text) for extra in requirement.extras for text in own_extras[extra]]
        if name in versions or name in ("sprachbund", "torch"):
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # wanted only on another system
        versions[name] = package.version
        for text in package.requires or []:
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(needed)
    return versions


def write_lock(path: Path, requirements: list[str], *options: str) -> None:
    """Write requirements with the hashes of their files."""
    command = [
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        *options,
        "-",
    ]
    text = "\n".join(requirements)
    ran = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    path.write_text(HEADER + ran.stdout)
    print(f"{path.name}: {ran.stdout.count('==')} packages, {ran.stdout.count('--hash')} files")


def main() -> None:
    """Write all of them."""
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = written["project"]
    extras = project["optional-dependencies"]
    torch_needs = [text for text in distribution("torch").requires or [] if "extra" not in text]
    core = closure([*project["dependencies"], *torch_needs], extras)
    everything = closure(extras["dev"], extras)
    # The site is built in the environment of a developer, so its lock adds to that one's.
    site = {p: v for p, v in closure(extras["docs"], extras).items() if p not in everything}
    locks = {"": core, "-serve": closure(extras["serve"], extras), "-dev": everything, "-docs": site}
    for name, packages in locks.items():
        pinned = [f"{p}=={version}" for p, version in sorted(packages.items()) if not name or p not in core]
        write_lock(ROOT / f"requirements{name}.lock", pinned, "--no-deps")
    write_lock(ROOT / "requirements-build.lock", written["build-system"]["requires"], "--python-version=3.11")


if __name__ == "__main__":
    main()

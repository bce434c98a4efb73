"""What a measurement says of where it was made."""

import subprocess
from pathlib import Path

import pytest

from sprachbund.util import provenance


def test_the_commit_is_that_of_this_source_tree_and_not_of_a_project_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    module = tmp_path / "env" / "sprachbund" / "util" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.touch()
    (tmp_path / ".gitignore").write_text("env/\n")
    git("init", "-q")
    git("add", ".gitignore")
    git("commit", "-q", "-m", "a project with an environment in it")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.commit() is None

    git("add", "--force", str(module))
    git("commit", "-q", "-m", "the package itself")
    assert provenance.commit() == git("rev-parse", "HEAD")
    module.write_text("changed")
    assert provenance.commit() == f"{git('rev-parse', 'HEAD')}+changes"

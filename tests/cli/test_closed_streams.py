"""Standard streams that are closed when the command begins: one line where there is room for it, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.stories.support import speech, write_wav

CLOSED = "stdin or stdout is closed; open it, or let it be /dev/null"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


def run(redirections: str, folder: Path, *args: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "sprachbund", *args]
    ran = subprocess.run(
        ["sh", "-c", f'"$@" {redirections}', "sh", *command],
        cwd=folder, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.slow
def test_what_would_be_printed_is_said_to_be_lost(tmp_path: Path) -> None:
    for args in (["models", "list"], ["translate", "--help"]):
        code, out, err = run(">&-", tmp_path, *args)
        assert (code, out) == (1, "")
        assert err == f"sprachbund: error: {CLOSED}\n"
    assert run(">&- 2>&-", tmp_path, "--version") == (1, "", "")
    assert run("2>&- <&-", tmp_path, "--version")[0] == 0


@pytest.mark.slow
def test_commands_do_their_work_and_errors_keep_their_codes(tmp_path: Path) -> None:
    write_wav(tmp_path / "talk.wav", speech())
    code, out, err = run(
        "<&- 2>&-", tmp_path, "translate", "talk.wav", "--to", "de", "--no-guard", "--offline"
    )
    assert (code, err) == (0, "")
    assert out
    assert run("2>&-", tmp_path, "translate", "--too", "xx") == (2, "", "")
    code, out, err = run("<&-", tmp_path, "translate", "-", "--to", "de", "--offline")
    assert (code, out) == (1, "")
    assert err == "sprachbund: error: -: <stdin> is empty (0 bytes); record or copy it again\n"
    files = ["--format", "txt", "--no-guard", "--offline"]
    code, out, err = run(">&-", tmp_path, "translate", "talk.wav", "--to", "de", *files)
    assert (code, err) == (1, f"sprachbund: error: talk.wav: {CLOSED}\n")
    assert (tmp_path / "talk.de.txt").read_text()

"""The first minute: help, completion, progress on terminals of all kinds, streams that cannot show every letter."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from sprachbund.cli import VERBS, build_app, completion
from sprachbund.cli.console import Bar
from tests.stories.support import command, speech, write_tiny_model, write_wav

HEAVY = ("torch", "numpy", "rich", "huggingface_hub", "langcodes", "onnxruntime")


def python(code: str, **env: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return ran.stdout


def test_the_help_names_every_verb_once_in_groups_and_imports_nothing_heavy() -> None:
    text = command("--help").out
    for name, verb in VERBS.items():
        assert len(re.findall(rf"^  {name} +{re.escape(verb.help.split()[0])}", text, re.MULTILINE)) == 1
        assert f"\n{verb.panel}:\n" in text
    code = (
        "import sys; from sprachbund.cli import main; main({}); print(sorted(sys.modules.keys() & set({})))"
    )
    for arguments in (["--help"], ["--version"], ["translate", "--help"]):
        assert python(code.format(arguments, [*HEAVY])).splitlines()[-1] == "[]"
    files = python(
        "import sys; from sprachbund.cli import main; main(['--help']); print(*sys.modules)"
    ).splitlines()[-1]
    assert not {f"sprachbund.cli.{verb.file}" for verb in VERBS.values()} & set(files.split())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("train", "small.toml"), "--out"),
        (("train", "--out", "model"), "RECIPE"),
        (("data", "prepare", "folder", "own"), "--out"),
        (("data", "prepare", "folder", "--out", "x"), "DIR"),
    ],
)
def test_what_is_missing_is_named_in_one_line(arguments: tuple[str, ...], name: str) -> None:
    ran = command(*arguments)
    assert (ran.code, ran.out) == (2, "")
    usage, error = ran.err.splitlines()
    verb = " ".join(
        ("sprachbund", *[word for word in arguments if word in ("train", "data", "prepare", "folder")])
    )
    assert usage.startswith(f"Usage: {verb} ")
    assert error == f"sprachbund: error: {name} is missing. See `{verb} --help`."


def helps(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    """Path and help of a command and of all below it."""
    context = typer.Context(command, info_name=name, parent=parent)
    yield context.command_path, command.get_help(context)
    if isinstance(command, TyperGroup):
        for below in command.list_commands(context):
            yield from helps(command.get_command(context, below), below, context)


def test_no_help_shows_types_of_python_or_limits_in_signs() -> None:
    every = dict(helps(typer.main.get_command(build_app()), "sprachbund"))
    assert len(every) > len(VERBS)
    for path, text in every.items():
        assert not re.search(r"<(str|int|float|bool|Path|list)|x[<>]=", text), path
    assert "  DATA...  Corpora" in every["sprachbund evaluate"]
    assert every["sprachbund evaluate"].startswith("Usage: sprachbund evaluate [OPTIONS] DATA...\n")
    assert "[default: 5; 0 or more]" in every["sprachbund data show"]
    assert "0 to 1]" in every["sprachbund data make phrasebook"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("export", "bundled", "--format", "exe"),
            "--format is 'exe'; choose one of onnx, ctranslate2, ggml.",
        ),
        (("data", "make", "phrasebook", "--heldout", "0"), "--heldout is '0'; give 1 or more."),
        (("data", "make", "phrasebook", "--sentence-share", "3"), "--sentence-share is '3'; give 1 or less."),
        (("data", "make", "phrasebook", "--hours", "x"), "--hours is 'x'; it should be a valid number."),
        (
            ("data", "make", "phrasebook", "--edition", "huge"),
            "--edition is 'huge'; choose one of standard, bundled, tiny",
        ),
        (
            ("data", "make", "phrasebook", "--languages", "en,xx"),
            "--languages is 'xx'; choose from en, es, fr, it, de, ru, pt, nl",
        ),
        (
            ("data", "make", "phrasebook", "--utterances", "4", "--hours", "5"),
            "--utterances 4 and --hours 5 both say the size of the training part; leave one out",
        ),
        (
            ("data", "make", "phrasebook", "--sentence-share", "0.9"),
            "--sentence-share 0.9 is of the tables of --sentences, which is not given; add it, or leave both out",
        ),
        (
            ("data", "prepare", "folder", "own", "--language", "xx"),
            "--language 'xx' is not a language; write it like en, de or pt-BR",
        ),
    ],
)
def test_a_refused_value_stands_beside_its_option_and_what_to_give(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    ran = command(*arguments, "--out", str(tmp_path / "out"))
    assert ran.code == 2
    assert ran.err.splitlines()[-1].partition(" See `")[0] == f"sprachbund: error: {message}"
    assert not (tmp_path / "out").exists()


def test_a_verb_that_there_is_not_names_the_nearest() -> None:
    ran = command("trnslate", "talk.wav")
    assert (ran.code, ran.out) == (2, "")
    assert (
        ran.err
        == "sprachbund: error: no verb 'trnslate'; did you mean translate? `sprachbund --help` lists all\n"
    )


def completed(line: str, shell: str = "bash") -> list[str]:
    """What a shell is told for a line whose last word is being typed."""
    words = line.split(" ")
    env = {"_SPRACHBUND_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        env |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    else:
        env |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    code = "import sys; from sprachbund.cli import main; code = main([]); print(sorted(sys.modules.keys() & {'torch'}))"
    *lines, heavy = python(f"{code}; sys.exit(code)", **env).splitlines()
    assert heavy == "[]"
    return lines


@pytest.mark.slow
def test_shells_complete_verbs_options_and_values() -> None:
    assert completed("sprachbund tr") == ["translate", "transcribe", "train"]
    assert "download" in completed("sprachbund models ")
    assert completed("sprachbund translate a.wav --eng") == ["--engine"]
    assert completed("sprachbund translate a.wav --engine nat") == ["native", "native-int4"]
    assert completed("sprachbund translate a.wav --model whisper-large-v3-t") == ["whisper-large-v3-turbo"]
    assert completed("sprachbund translate a.wav --to fr,de") == ["fr,de"]
    assert {"fr,da", "fr,de"} < set(completed("sprachbund translate a.wav --to fr,d"))
    assert completed("sprachbund models download seam") == ["seamless-m4t-medium", "seamless-m4t-v2-large"]
    assert completed("sprachbund translate a.wav --format srt,js") == ["srt,json", "srt,jsonl"]
    assert "translate" in completed("sprachbund tr", "zsh")[0]
    assert completed("sprachbund tr", "fish")[0].startswith("translate\t")


def test_models_that_are_completed_are_those_that_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (".", "one", "runs/two", "runs/deep/three"):
        write_tiny_model(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    listed = [json.loads(line)["model"] for line in command("models", "list", "--json").out.splitlines()]
    completed = completion.models("")
    assert set(completed) <= set(listed)
    for names in (listed, completed):
        assert [name for name in names if Path(name).is_dir()] == [".", "one", "runs/two"]
    assert completion.models("ru") == ["runs/two"]


COMPLETE_VERBS = {
    "bash": """
        source ~/.bashrc
        COMP_WORDS=(sprachbund tr) COMP_CWORD=1
        _sprachbund_completion sprachbund
        echo "${COMPREPLY[@]}"
    """,
    # Outside the line editor there is no completion, so what would be shown is printed.
    "zsh": """
        compdef() { :; }
        _arguments() { print -r -- "$@" }
        source ~/.zfunc/_sprachbund
        words=(sprachbund tr) CURRENT=2
        _sprachbund_completion
    """,
    "fish": "complete -C 'sprachbund tr'",
}
"""What prints the verbs that a shell completes for "tr", by shell."""


@pytest.mark.parametrize("shell", COMPLETE_VERBS)
def test_completion_is_installed_for_the_shell_that_asks(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}; scripts/shells.sh installs it")
    # The shell is found among the parents of the process; it must not replace itself by the command.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run_in_shell(line: str) -> str:
        return subprocess.run(
            [shell, "-c", line],
            env={**os.environ, "HOME": str(tmp_path), "PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    installed = run_in_shell(f"{sys.executable} -m sprachbund --install-completion; true")
    assert f"{shell} completion installed in {tmp_path}" in installed
    words = re.findall(r"[a-z]{5,}", run_in_shell(COMPLETE_VERBS[shell]))
    assert {"translate", "transcribe", "train"} <= set(words)
    assert "evaluate" not in words


def on_terminal(code: str, env: Mapping[str, str]) -> str:
    """What a process writes to a pseudo-terminal of 80 columns."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "COLUMNS": "80", **env},
    )  # fmt: skip
    os.close(slave)
    written = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(master, 65_536)
            except OSError:
                return
            if not data:
                return
            written.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(60) == 0
    reader.join(10)
    os.close(master)
    return written.decode("utf-8", "replace").replace("\r\n", "\n")


WORK = """
import time
from sprachbund.cli.console import Bar
with Bar("counting", 100, delay_s=0.2) as bar:
    bar.update(10)
    time.sleep(0.1)
    bar.update(60)
    deadline = time.monotonic() + 30
    while {going} and time.monotonic() < deadline:
        time.sleep(0.05)
    for done in (61, 62, 63):
        time.sleep(0.3)
        bar.update(done)
    time.sleep(0.3)
print("done")
"""


@pytest.mark.slow
def test_a_terminal_shows_a_bar_with_the_time_left_and_wipes_it() -> None:
    said = on_terminal(WORK.format(going="bar._progress is None"), {"TERM": "xterm"})
    assert "counting" in said
    assert "60 / 100" in said
    assert re.search(r"\d:\d\d left", said)
    assert "\x1b[2K" in said  # the line is wiped
    assert said.rstrip().endswith("done")


@pytest.mark.slow
def test_a_dumb_terminal_gets_plain_lines() -> None:
    said = on_terminal(WORK.format(going="bar._pause_s < 1"), {"TERM": "dumb"})
    assert "\x1b" not in said
    first, *rest = said.splitlines()
    assert re.fullmatch(r"sprachbund: counting, 60 / 100, 60 %, (\d+:)?\d+:\d\d left …", first)
    assert rest[-1] == "done"


@pytest.mark.slow
def test_a_terminal_without_these_letters_gets_others() -> None:
    env = {"TERM": "xterm", "PYTHONIOENCODING": "latin-1"}
    said = on_terminal(WORK.format(going="bar._progress is None"), env)
    assert "60 / 100" in said
    assert "Traceback" not in said


BESIDE = """
import time
from sprachbund.cli import console

def drawn(bar):
    deadline = time.monotonic() + 30
    while bar._progress is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)

with console.Bar("a long account of all that is going on in here", 9, delay_s=0.1) as outer:
    outer.update(1)
    outer.update(2)
    drawn(outer)
    console.say("a note")
    console.show("a result")
    with console.Bar("within", 5, delay_s=0.1) as inner:
        drawn(inner)
        outer.update(3)
        inner.update(4)
    drawn(outer)
    outer.update(0, 7, "another stage")
    time.sleep(0.3)
"""


@pytest.mark.slow
def test_lines_stand_above_the_bar_and_one_bar_in_place_of_another() -> None:
    said = on_terminal(BESIDE, {"TERM": "xterm", "COLUMNS": "40"})
    assert "\x1b[?25l" not in said  # a killed command leaves a cursor
    for line in ("sprachbund: a note\n", "a result\n"):
        assert re.search(rf"\x1b\[2K{line}", said)  # behind a wiped one
    pictures = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]", said)]
    assert all(len(picture) <= 40 for picture in pictures)
    bars = [picture.split()[0] for picture in pictures if "━" in picture]
    assert [label for label, _ in groupby(bars)] == ["a", "within", "a", "another"]
    stage = [picture for picture in pictures if "another stage" in picture]
    assert stage
    assert not any("left" in picture for picture in stage)  # nothing is known of its speed


def test_steps_shorter_than_the_delay_add_up() -> None:
    work = """
import time
from sprachbund.cli import console
console._Progress.silent_since -= 2000
with console.Bar("the last step", delay_s=1000) as bar:
    deadline = time.monotonic() + 30
    while bar._progress is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
"""
    assert "the last step" in on_terminal(work, {"TERM": "xterm"})


def test_output_in_a_file_stays_out_of_the_terminal(tmp_path: Path) -> None:
    work = f"""
import sys
sys.stdout = open({str(tmp_path / "out")!r}, "w")
import time
from sprachbund.cli import console
with console.Bar("counting", delay_s=0.1) as bar:
    deadline = time.monotonic() + 30
    while bar._progress is None and time.monotonic() < deadline:
        time.sleep(0.05)
    print("a result")
sys.stdout.close()
"""
    assert "a result" not in on_terminal(work, {"TERM": "xterm"})
    assert (tmp_path / "out").read_text() == "a result\n"


def test_work_of_a_moment_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("counting", 2) as bar:
        bar.update(1)
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streams")
    write_tiny_model(root / "tiny")
    write_wav(root / "Grüße мир.wav", speech())
    return root


def run(root: Path, env: Mapping[str, str], *args: str) -> tuple[int, bytes, bytes]:
    ran = subprocess.run(
        [sys.executable, "-m", "sprachbund", *args],
        cwd=root,
        env={**os.environ, **env},
        capture_output=True,
        timeout=120,
    )
    return ran.returncode, ran.stdout, ran.stderr


TRANSLATE = (
    "translate",
    "Grüße мир.wav",
    "--to",
    "de",
    "--model",
    "tiny",
    "--no-guard",
    "--json",
    "--offline",
)


@pytest.mark.slow
def test_letters_that_an_encoding_lacks_become_numbers(root: Path) -> None:
    code, out, err = run(root, {"PYTHONIOENCODING": "latin-1"}, *TRANSLATE)
    assert (code, err) == (0, b"")
    assert '"file": "Grüße \\u043c\\u0438\\u0440.wav"'.encode("latin-1") in out
    code, out, err = run(root, {"PYTHONIOENCODING": "latin-1"}, "мир")
    assert code == 2
    assert b"\\u043c\\u0438\\u0440" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONIOENCODING": ""},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
        {"PYTHONIOENCODING": "ascii"},
    ],
)
def test_a_terminal_of_ascii_is_taken_for_utf_8(root: Path, env: dict[str, str]) -> None:
    code, out, err = run(root, env, *TRANSLATE, "--format", "txt", "--out", "texts", "--overwrite")
    assert (code, err) == (0, b"")
    out.decode("utf-8")
    assert (root / "texts" / "Grüße мир.de.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_the_command_quietly(root: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sprachbund", "--help"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 141)
    assert err == b""


def test_no_file_imports_what_windows_lacks_before_it_asks() -> None:
    """Modules that only POSIX has are imported in functions, behind a question for the system."""
    import ast

    posix = {"fcntl", "resource", "termios", "pwd", "grp", "tty", "pty", "syslog"}
    for path in (Path(__file__).parents[2] / "src").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not posix & set(names), path


def test_a_second_process_waits_for_the_lock_of_an_edition(tmp_path: Path) -> None:
    from filelock import FileLock

    code = (
        "import sys; from sprachbund.corpora.editions import LiveEdition, edition\n"
        "live = LiveEdition(edition('tiny'), sys.argv[1]); print(1, flush=True)\n"
        "with live._alone(): pass"
    )
    with FileLock(tmp_path / "lock"):
        other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert other.stdout is not None
        other.stdout.readline()
        time.sleep(0.2)
        assert other.poll() is None
    assert other.wait(60) == 0

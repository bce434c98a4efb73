"""`sprachbund models`: the list, downloads from a hub on this machine, aliases, broken connections, hints."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sprachbund.models.catalogue import CATALOGUE, all_languages, find_checkpoint, fitting
from tests.models.fake_hub import COMMIT, Hub, serve
from tests.models.whisper_support import make_directory
from tests.stories.support import Ran, command, speech, write_tiny_model, write_wav

MIB = 2**20
pytestmark = pytest.mark.slow


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with a Whisper of random weights, and a model that is only large."""
    make_directory(tmp_path / "published")
    large = tmp_path / "large"
    large.mkdir()
    (large / "config.json").write_text('{"model_type": "whisper"}')
    (large / "model.safetensors").write_bytes(os.urandom(MIB) * 24)
    with serve(Hub({"openai/whisper-tiny": tmp_path / "published", "someone/large": large})) as hub:
        yield hub


def run(hub: Hub, place: Path, *lines: str) -> list[Ran]:
    """Commands in one process of their own, since huggingface_hub reads its variables once."""
    ran = subprocess.run(
        [sys.executable, "-c", COMMANDS, *lines],
        cwd=place, env={**os.environ, **hub.environment(place / "home")}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return [Ran(**one) for one in json.loads(ran.stdout)]


COMMANDS = """
import contextlib, io, json, sys
from sprachbund.cli import main
ran = []
for line in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line.split())
    ran.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
print(json.dumps(ran))
"""


def test_an_alias_is_downloaded_once_and_then_loads_offline(hub: Hub, tmp_path: Path) -> None:
    checked, ran = run(hub, tmp_path, "models check whisper-tiny", "models download whisper-tiny --json")
    assert checked.code == 1
    assert ran.code == 0, ran.err
    done = json.loads(ran.out)
    assert (done["family"], Path(done["directory"]).name) == ("whisper", COMMIT)
    published = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
    assert {path.name: path.read_bytes() for path in Path(done["directory"]).iterdir()} == published
    assert "Apache-2.0" in ran.err
    hub.asked.clear()
    write_wav(tmp_path / "talk.wav", speech())
    translate = "translate talk.wav --to en --from fr --no-guard --offline --model"
    *translated, checked, listed = run(
        hub,
        tmp_path,
        f"{translate} whisper-tiny",
        f"{translate} openai/whisper-tiny",
        "models check openai/whisper-tiny",
        "models list --json",
    )
    assert [one.code for one in translated] == [0, 0]
    assert "whole; whisper" in checked.out
    assert not hub.asked
    models = [json.loads(line) for line in listed.out.splitlines()]
    assert [one["model"] for one in models if one.get("here")] == ["whisper-tiny"]
    assert [one["model"] for one in models if "directory" in one][:2] == ["bundled", "openai/whisper-tiny"]


def test_a_connection_that_breaks_is_taken_up_again_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 12 * MIB  # the library writes pieces of ten megabytes, and tries five times more
    [ran] = run(hub, tmp_path, "models download someone/large --json")
    assert ran.code == 0, ran.err
    asked = [wanted for _, path, wanted in hub.asked if path.endswith("model.safetensors") and wanted]
    assert asked == [f"bytes={10 * MIB}-", f"bytes={20 * MIB}-"]
    written = Path(json.loads(ran.out)["directory"], "model.safetensors").read_bytes()
    assert written == (tmp_path / "large" / "model.safetensors").read_bytes()
    assert "Trying" not in ran.err


def test_a_download_that_was_killed_keeps_the_files_that_were_whole(hub: Hub, tmp_path: Path) -> None:
    hub.stall_after = 12 * MIB
    process = subprocess.Popen(
        [sys.executable, "-m", "sprachbund", "models", "download", "someone/large"],
        env={**os.environ, **hub.environment(tmp_path / "home")}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert hub.stalled.wait(120)
    for _ in range(1200):
        if list((tmp_path / "home").rglob("snapshots/*/config.json")):
            break
        time.sleep(0.1)
    process.kill()
    process.wait(60)
    hub.stall_after = None
    hub.asked.clear()
    download = "models download someone/large"
    offline, ran = run(hub, tmp_path, f"{download} --offline", download)
    assert offline.code == 1
    assert "offline, and it was downloaded in part only" in offline.err
    assert ran.code == 0, ran.err
    fetched = [Path(path).name for method, path, _ in hub.asked if method == "GET" and "resolve" in path]
    assert fetched == ["model.safetensors"]


def test_a_hub_that_breaks_off_or_is_not_there_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 50_000
    unknown = "models download nobody/nothing"
    broken, ran = run(hub, tmp_path, "models download openai/whisper-tiny", unknown)
    assert broken.code == 1
    [line] = [line for line in broken.err.splitlines() if "error" in line]
    assert "was broken off" in line
    assert "the same command fetches what is missing" in line
    assert len(broken.err.splitlines()) == 2  # what it is, and the error
    assert (ran.code, len(ran.error_lines)) == (1, 1)
    assert "404" in ran.err
    hub.address = "http://127.0.0.1:9"
    [ran] = run(hub, tmp_path, unknown)
    assert ran.error_lines == [
        "sprachbund: error: nobody/nothing is not a directory here (the hub cannot be reached); check the network, or "
        "give a directory on this disk"
    ]


def test_languages_of_whisper_are_those_of_transformers() -> None:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    tags = {"jw": "jv"}
    large, small = find_checkpoint("whisper-large-v3"), find_checkpoint("whisper-small")
    assert large is not None
    assert small is not None
    assert large.sources == {tags.get(code, code) for code in LANGUAGES}
    assert large.sources - small.sources == {"yue"}
    assert large.targets == {"en"}


def test_languages_of_seamless_are_those_of_its_loader() -> None:
    from sprachbund.models.seamless.tokens import SPOKEN, to_bcp47

    seamless = find_checkpoint("facebook/seamless-m4t-v2-large")
    assert seamless is not None
    assert seamless.sources == set(map(to_bcp47, SPOKEN))
    assert seamless.sources - seamless.targets == {
        to_bcp47(code) for code in ["ast", "kam", "kea", "ltz", "oci", "xho"]
    }


def test_every_public_model_is_of_a_family_that_can_be_loaded() -> None:
    from sprachbund.models.io import LOADERS
    from sprachbund.util.extras import extras

    assert {one.family for one in CATALOGUE} <= LOADERS.keys()
    assert {one.extra for one in CATALOGUE} - {""} <= extras().keys()
    assert len({one.alias for one in CATALOGUE} | {one.id for one in CATALOGUE}) == 2 * len(CATALOGUE)


@pytest.mark.parametrize("source", [None, "fr", "ja", "yue", "ast"])
@pytest.mark.parametrize("target", [None, "en", "de", "ast"])
def test_what_is_recommended_does_it(source: str | None, target: str | None) -> None:
    found = fitting(source, [target])
    assert len(found) <= 3
    for one in found:
        assert source is None or source in one.sources
        assert target in (None, source) or target in one.targets
    if target == "de" and source != "de":
        assert {one.task for one in found} == {"any-to-any"}
    assert bool(found) == any(one.does(source, target) for one in CATALOGUE)
    assert "en" in all_languages()


def test_a_language_that_the_model_lacks_names_models_that_have_it(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    talk = write_wav(tmp_path / "my talk.wav", speech())
    ran = command("translate", talk, "--to", "ja", "--model", model)
    assert (ran.code, len(ran.error_lines)) == (2, 1)
    hints = [line for line in ran.err.splitlines() if line.startswith("sprachbund: hint: ")]
    assert len(hints) == 2
    assert hints[0].startswith(
        f"sprachbund: hint: sprachbund translate '{talk}' --to ja --model seamless-m4t-v2-large"
    )
    assert all("GB" in hint and "CC BY-NC 4.0, no commercial use" in hint for hint in hints)
    ran = command("transcribe", talk, "--from", "ja", "--model", model)
    assert "sprachbund transcribe" in ran.err
    assert "--from ja --model whisper-large-v3-turbo" in ran.err
    assert "hint" not in command("translate", talk, "--to", "klingon", "--model", model).err

"""`sprachbund models`: the list, downloads from a hub on this machine, aliases, broken connections, hints."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sprachbund.engines.packed_cache import VERSION, packed_for
from sprachbund.errors import SprachbundError
from sprachbund.models import publish
from sprachbund.models.catalogue import CATALOGUE, all_languages, find_checkpoint, fitting
from sprachbund.models.hub import bundled_directory
from tests.engines.test_packed_file import example
from tests.models.fake_hub import COMMIT, TOKEN, Hub, serve
from tests.models.whisper_support import make_directory
from tests.stories.support import Ran, command, speech, write_tiny_model, write_wav

MIB = 2**20


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


def environment(hub: Hub, root: Path) -> dict[str, str]:
    return {**os.environ, **hub.environment(root / "home")}


def start(hub: Hub, root: Path, *args: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own, since huggingface_hub reads its variables once."""
    return subprocess.Popen(
        [sys.executable, "-m", "sprachbund", *args],
        cwd=root, env=environment(hub, root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def run(hub: Hub, root: Path, *args: str) -> Ran:
    """The command in a process of its own, and what it printed."""
    ran = subprocess.run(
        [sys.executable, "-m", "sprachbund", *args],
        cwd=root, env=environment(hub, root), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    return Ran(code=ran.returncode, out=ran.stdout, err=ran.stderr)


def partial(root: Path) -> Path:
    """Where a part of the large file is kept."""
    sha256 = hashlib.sha256((root / "large" / "model.safetensors").read_bytes()).hexdigest()
    return root / "home" / "hub" / "models--someone--large" / "blobs" / f"{sha256}.incomplete"


def ranges(hub: Hub) -> list[str]:
    """The bytes of the large file that were asked for, in order; empty for all of it."""
    return [
        wanted for method, path, wanted in hub.asked if method == "GET" and path.endswith("model.safetensors")
    ]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")


@pytest.mark.slow
def test_an_alias_is_downloaded_once_and_then_loads_offline(hub: Hub, tmp_path: Path) -> None:
    assert run(hub, tmp_path, "models", "check", "whisper-tiny").code == 1
    ran = run(hub, tmp_path, "models", "download", "whisper-tiny", "--json")
    assert ran.code == 0, ran.err
    done = json.loads(ran.out)
    assert (done["family"], Path(done["directory"]).name) == ("whisper", COMMIT)
    published = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
    assert {path.name: path.read_bytes() for path in Path(done["directory"]).iterdir()} == published
    assert "Apache-2.0" in ran.err
    hub.asked.clear()
    write_wav(tmp_path / "talk.wav", speech())
    translate = ("translate", "talk.wav", "--to", "en", "--from", "fr", "--no-guard", "--offline", "--model")
    for name in ("whisper-tiny", "openai/whisper-tiny"):
        assert run(hub, tmp_path, *translate, name).code == 0
    assert "whole; whisper" in run(hub, tmp_path, "models", "check", "openai/whisper-tiny").out
    assert not hub.asked
    listed = [json.loads(line) for line in run(hub, tmp_path, "models", "list", "--json").out.splitlines()]
    assert [one["model"] for one in listed if one.get("here")] == ["whisper-tiny"]
    assert [one["model"] for one in listed if "directory" in one][:3] == [
        "bundled",
        "bundled-streaming",
        "openai/whisper-tiny",
    ]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"config.json": '{"lang_ids": [50259]}', "model.bin": ""},
            "CTranslate2's form; run: hf download x/y --",
        ),
        (
            {"README.md": "", "b.nemo": ""},
            "NeMo's form; run: hf download x/y b.nemo --local-dir THERE, then: sprachbund convert THERE/b.nemo --out",
        ),
    ],
)
def test_what_the_hub_has_in_another_form_is_said(tmp_path: Path, files: dict[str, str], said: str) -> None:
    (tmp_path / "theirs").mkdir()
    for name, content in files.items():
        (tmp_path / "theirs" / name).write_text(content)
    with serve(Hub({"x/y": tmp_path / "theirs"})) as hub:
        ran = run(hub, tmp_path, "models", "download", "x/y")
    assert ran.code == 1
    assert len(ran.error_lines) == 1
    assert said in ran.err


def test_a_model_is_not_pushed_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class UnreachableError(Exception):
        """Of the HTTP library below, whose errors are no OSError."""

    def unreachable(*_: object, **__: object) -> None:
        raise UnreachableError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", unreachable)
    with pytest.raises(
        SprachbundError, match=r"a/b was not sent, the hub cannot be reached .*; check the network"
    ):
        publish.push(bundled_directory(), "a/b", private=True, message="A model")


def test_a_page_in_the_directory_is_sent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def commit(_: object, name: str, operations: list[Any], **options: object) -> Any:
        sent.extend(operations)
        return SimpleNamespace(repo_url=f"https://hub/{name}")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", commit)
    shutil.copytree(bundled_directory(), tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("# Ours")
    assert publish.page_to_send(tmp_path / "model", "a/b") == "# Ours"
    publish.push(tmp_path / "model", "a/b", private=True, message="A model")
    pages = [one.path_or_fileobj for one in sent if one.path_in_repo == "README.md"]
    assert pages == [b"# Ours"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("base", "whisper-base, moonshine-base"),
        ("large-v3", "whisper-large-v3, whisper-large-v3-turbo, distil-large-v3"),
        ("bundle", "bundled, bundled-streaming"),
        ("wisper-small", "whisper-small, whisper-base"),
    ],
)
def test_names_of_other_packages_have_the_nearest_alias(name: str, nearest: str) -> None:
    """The hub is not asked: without an owner, nothing there is a model of speech."""
    for command_of in (("show",), ("check",), ("download",)):
        ran = command("models", *command_of, name)
        assert ran.code == 1
        assert (
            f"there is no directory {name}, and names on the hub have an owner; nearest: {nearest}" in ran.err
        )


@pytest.mark.slow
def test_a_connection_that_breaks_is_taken_up_again_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 12 * MIB  # the library writes pieces of ten megabytes, and tries five times more
    ran = run(hub, tmp_path, "models", "download", "someone/large", "--json")
    assert ran.code == 0, ran.err
    assert ranges(hub) == ["", f"bytes={10 * MIB}-", f"bytes={20 * MIB}-"]
    written = Path(json.loads(ran.out)["directory"], "model.safetensors").read_bytes()
    assert written == (tmp_path / "large" / "model.safetensors").read_bytes()
    assert "Trying" not in ran.err


@pytest.mark.slow
def test_a_download_that_was_killed_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.stall_after = 12 * MIB
    process = start(hub, tmp_path, "models", "download", "someone/large")
    assert hub.stalled.wait(120)
    wait_for(lambda: partial(tmp_path).stat().st_size == 10 * MIB)
    process.kill()
    process.wait(60)
    ran = run(hub, tmp_path, "models", "download", "someone/large", "--offline")
    assert ran.code == 1
    assert "offline, and it was downloaded in part only" in ran.err
    hub.stall_after = None
    hub.asked.clear()
    ran = run(hub, tmp_path, "models", "download", "someone/large", "--json")
    assert ran.code == 0, ran.err
    assert ranges(hub) == [f"bytes={10 * MIB}-"]
    assert hub.sent["model.safetensors"] == 12 * MIB + 14 * MIB
    written = Path(json.loads(ran.out)["directory"], "model.safetensors").read_bytes()
    assert written == (tmp_path / "large" / "model.safetensors").read_bytes()
    assert not list(tmp_path.rglob("*.incomplete"))
    hub.asked.clear()
    assert run(hub, tmp_path, "models", "download", "someone/large").code == 0
    assert not ranges(hub)


@pytest.mark.slow
def test_what_is_there_of_a_file_counts_in_the_progress(hub: Hub, tmp_path: Path) -> None:
    content = (tmp_path / "large" / "model.safetensors").read_bytes()
    partial(tmp_path).parent.mkdir(parents=True)
    partial(tmp_path).write_bytes(content[: 20 * MIB])
    program = (
        "from sprachbund.models.io import locate\nlocate('someone/large', progress=lambda *of: print(*of))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(hub, tmp_path), capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    lines = [line.split() for line in ran.stdout.splitlines()]
    done = [int(one) for one, _ in lines]
    assert done == sorted(done)
    assert done[:2] == [20 * MIB, len(content)]
    assert done[-1] == len(content)
    assert int(lines[0][1]) == len(content)
    assert hub.sent["model.safetensors"] == 4 * MIB


@pytest.mark.slow
def test_a_part_of_another_file_is_found_out(hub: Hub, tmp_path: Path) -> None:
    partial(tmp_path).parent.mkdir(parents=True)
    partial(tmp_path).write_bytes(bytes(20 * MIB))
    ran = run(hub, tmp_path, "models", "download", "someone/large")
    assert (ran.code, len(ran.error_lines)) == (1, 1)
    assert "model.safetensors of someone/large arrived damaged" in ran.err
    assert run(hub, tmp_path, "models", "download", "someone/large").code == 0
    assert hub.sent["model.safetensors"] == 4 * MIB + 24 * MIB


@pytest.mark.slow
def test_two_downloads_at_once_fetch_weights_once(hub: Hub, tmp_path: Path) -> None:
    both = [start(hub, tmp_path, "models", "download", "someone/large") for _ in range(2)]
    assert [process.wait(200) for process in both] == [0, 0]
    assert hub.sent["model.safetensors"] == 24 * MIB


@pytest.mark.slow
def test_a_hub_that_breaks_off_or_is_not_there_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 50_000
    ran = run(hub, tmp_path, "models", "download", "openai/whisper-tiny")
    assert ran.code == 1
    [line] = [line for line in ran.err.splitlines() if "error" in line]
    assert "was broken off" in line
    assert "the same command fetches what is missing" in line
    assert len(ran.err.splitlines()) == 2  # what it is, and the error
    ran = run(hub, tmp_path, "models", "download", "nobody/nothing")
    assert (ran.code, len(ran.error_lines)) == (1, 1)
    assert "404" in ran.err
    hub.address = "http://127.0.0.1:9"
    ran = run(hub, tmp_path, "models", "download", "nobody/nothing")
    assert ran.error_lines == [
        "sprachbund: error: nobody/nothing is not a directory here (the hub cannot be reached); check the network, or "
        "give a directory on this disk"
    ]


@pytest.mark.slow
def test_a_model_that_was_pushed_is_downloaded_whole(hub: Hub, tmp_path: Path) -> None:
    """With what lies beside the weights: a draft, and parts in folders; not with what is no part of a model."""
    model = tmp_path / "model"
    shutil.copytree(bundled_directory(), model)
    (model / "draft.safetensors").write_bytes(b"draft")
    (model / "llm").mkdir()
    (model / "llm" / "chat_template.jinja").write_text("{{ messages }}")
    (model / "notes.pkl").write_bytes(b"pickle")
    refused = run(hub, tmp_path, "models", "push", str(model), "someone/prompts")
    assert refused.code == 1
    assert "someone/prompts was not sent" in refused.err
    assert "hf auth login" in refused.err
    shown = run(hub, tmp_path, "models", "push", str(model), "someone/prompts", "--dry-run")
    assert "license: cc-by-sa-3.0\nlanguage:\n- de\n- en" in shown.out
    assert "llm/chat_template.jinja" in shown.out
    as_json = run(hub, tmp_path, "models", "push", str(model), "someone/prompts", "--dry-run", "--json")
    values = json.loads(as_json.out)
    assert values["page"] == shown.out.partition("\nfile")[0]
    assert "llm/chat_template.jinja" in values["files"]
    assert not hub.received

    hub.token = TOKEN
    sent = run(hub, tmp_path, "models", "push", str(model), "someone/prompts", "--json")
    assert sent.code == 0, sent.err
    assert json.loads(sent.out)["address"] == f"{hub.address}/someone/prompts"
    there = tmp_path / "there"
    for name, content in hub.received.items():
        path = there / name.removeprefix("someone/prompts/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert (there / "README.md").read_text() == shown.out.partition("\nfile")[0]
    assert not (there / "notes.pkl").exists()

    hub.repositories["someone/prompts"] = there
    fetched = run(hub, tmp_path, "models", "download", "someone/prompts", "--json")
    assert fetched.code == 0, fetched.err
    directory = Path(json.loads(fetched.out)["directory"])
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert names == {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_halves_of_a_cascade_and_drafts_are_fetched(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "published" / "draft.safetensors").write_bytes(b"draft")
    cascade = tmp_path / "cascade"
    shutil.copytree(tmp_path / "published", cascade / "recogniser")
    shutil.copytree(bundled_directory(), cascade / "translator")
    halves = {"model_type": "cascade", "recogniser": "recogniser", "translator": "translator"}
    (cascade / "config.json").write_text(json.dumps(halves))
    hub.repositories["someone/cascade"] = cascade
    for name, source in hub.repositories.items():
        if name == "someone/large":
            continue
        run(hub, tmp_path, "models", "download", name)
        folder = tmp_path / "home" / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
        fetched = {path.relative_to(folder) for path in folder.rglob("*.safetensors")}
        assert fetched == {path.relative_to(source) for path in source.rglob("*.safetensors")}


@pytest.mark.slow
def test_a_page_needs_a_licence(hub: Hub, tmp_path: Path) -> None:
    ran = run(hub, tmp_path, "models", "push", str(tmp_path / "published"), "someone/whisper")
    assert ran.code == 1
    assert "has no card with a licence" in ran.err
    assert not [path for method, path, _ in hub.asked if method == "POST"]


def test_languages_of_whisper_are_those_of_transformers() -> None:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    tags = {"jw": "jv", "tl": "fil"}
    large, small = find_checkpoint("whisper-large-v3"), find_checkpoint("whisper-small")
    assert large is not None
    assert small is not None
    assert large.sources == {tags.get(code, code) for code in LANGUAGES}
    assert large.sources - small.sources == {"yue"}
    assert large.targets == {"en"}


def test_languages_of_seamless_are_those_of_its_loader() -> None:
    from sprachbund.models.language_codes import to_bcp47
    from sprachbund.models.seamless.tokens import SPOKEN

    seamless = find_checkpoint("facebook/seamless-m4t-v2-large")
    assert seamless is not None
    assert seamless.sources == set(map(to_bcp47, SPOKEN))
    assert seamless.sources - seamless.targets == {
        to_bcp47(code) for code in ["ast", "kam", "kea", "ltz", "oci", "xho"]
    }


def test_languages_of_translators_of_text_are_those_of_their_loaders() -> None:
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M_100
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART_50
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB

    from sprachbund.models.language_codes import Languages, to_bcp47
    from sprachbund.models.translation.tokens import without_scripts

    known = {one.alias: one for one in CATALOGUE if one.task == "text"}
    assert known["m2m100-418m"].sources == {to_bcp47(code) for code in M2M_100["m2m100"]}
    assert known["nllb-200-600m"].sources == {*Languages(NLLB, without_scripts(NLLB)).tags}
    assert known["mbart-50"].sources == {to_bcp47(code.partition("_")[0]) for code in MBART_50}
    for one in known.values():
        assert one.targets == one.sources
        assert not one.does("en", "fr"), "it hears nothing"
        assert one.text.startswith("translates text of ")


def test_languages_of_parakeet_and_canary_are_those_of_their_loader() -> None:
    from sprachbund.models.fastconformer.config import EUROPEAN

    canary = find_checkpoint("nvidia/canary-1b-v2")
    assert canary is not None
    assert canary.sources == canary.targets == set(EUROPEAN)
    assert canary.does("de", "en")
    assert canary.does("en", "de")
    assert canary.does("de", None)
    assert not canary.does("de", "fr")
    assert not canary.does(None, "de")
    parakeet = find_checkpoint("parakeet-tdt-v3")
    assert parakeet is not None
    assert parakeet.sources == set(EUROPEAN)
    assert not parakeet.targets


def test_every_public_model_is_of_a_family_that_can_be_loaded() -> None:
    from sprachbund.models import FAMILIES
    from sprachbund.util.extras import extras

    assert {one.family for one in CATALOGUE} <= set(FAMILIES)
    assert {one.extra for one in CATALOGUE} - {""} <= extras().keys()
    assert len({one.alias for one in CATALOGUE} | {one.id for one in CATALOGUE}) == 2 * len(CATALOGUE)


@pytest.mark.parametrize("source", [None, "fr", "ja", "yue", "ast"])
@pytest.mark.parametrize("target", [None, "en", "de", "ast"])
def test_what_is_recommended_does_it(source: str | None, target: str | None) -> None:
    result = fitting(source, [target])
    assert len(result) <= 3
    for one in result:
        assert source is None or source in one.sources
        assert target in (None, source) or target in one.targets
    if target == "de" and source != "de":
        assert {one.task for one in result} == {"any-to-any"}
    assert bool(result) == any(one.does(source, target) for one in CATALOGUE)
    assert "en" in all_languages()


def test_a_language_that_the_model_lacks_names_models_that_have_it(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    talk = write_wav(tmp_path / "my talk.wav", speech())
    ran = command("translate", talk, "--to", "ja", "--model", model)
    assert (ran.code, len(ran.error_lines)) == (2, 1)
    hints = [line for line in ran.err.splitlines() if line.startswith("sprachbund: hint: ")]
    asked = f"sprachbund: hint: sprachbund translate '{talk}' --to ja --model"
    assert len(hints) == 3
    assert hints[0].startswith(f"{asked} whisper-large-v3-turbo --then m2m100-418m  (transcribes ")
    assert hints[1].startswith(f"{asked} seamless-m4t-v2-large")
    assert all("GB" in hint and "CC BY-NC 4.0, no commercial use" in hint for hint in hints[1:])
    assert "no commercial use" not in hints[0]
    ran = command("transcribe", talk, "--from", "ja", "--model", model)
    assert "sprachbund transcribe" in ran.err
    assert "--from ja --model whisper-large-v3-turbo" in ran.err
    assert "hint" not in command("translate", talk, "--to", "klingon", "--model", model).err


@pytest.mark.slow
def test_packed_weights_are_checked_and_damaged_ones_named_with_what_rebuilds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, model = tmp_path / "cache", write_tiny_model(tmp_path / "my model")
    monkeypatch.setattr("sprachbund.engines.packed_cache.default_cache", lambda: cache)
    assert command("models", "check", model).out.splitlines()[1:] == []
    for weights in ("int8", "int4"):
        packed_for(model, lambda numbers=weights: replace(example(), weights=numbers), cache, weights)
    first, second = command("models", "check", model).out.splitlines()[1:]
    [byte] = cache.glob(f"*-{VERSION}.sbpacked")
    [code] = cache.glob("*-int4.sbpacked")
    assert (first, second) == (
        f"{model}: packed in int8: whole; {byte}",
        f"{model}: packed in int4: whole; {code}",
    )
    content = bytearray(code.read_bytes())
    content[-70] ^= 1
    code.write_bytes(content)
    ran = command("models", "check", model)
    assert ran.code == 1
    whole, first, broken = ran.out.splitlines()
    assert whole.startswith(f"{model}: whole; conformer, ")
    assert first.endswith(f"whole; {byte}")
    assert broken.startswith(f"{model}: packed in int4: broken; {code} is damaged")
    fix = f"rm {code} && sprachbund bench --model '{model}' --engine native-int4 --repeats 1"
    assert broken.endswith(f"; mend it with: {fix}")
    values = json.loads(command("models", "check", model, "--json").out)
    assert [one.get("fix") for one in values["packed"]] == [None, fix]
    [engine] = [
        one
        for one in json.loads(command("doctor", "--model", model, "--json").out)["checks"]
        if one["name"] == "engine"
    ]
    assert (engine["status"], engine["fix"]) == ("problem", fix)

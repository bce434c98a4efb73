"""The files in deploy/ say what the code understands."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from sprachbund.cli import build_app
from sprachbund.serving.ray_serve import settings_from

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_container_starts_the_verb_with_options_it_has():
    text = (DEPLOY / "Dockerfile").read_text()
    lists = re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", text, re.MULTILINE)
    program, verb, *arguments = [part for one in lists for part in json.loads(one)]
    assert (program, verb) == ("sprachbund", "serve")
    app = typer.main.get_command(build_app())
    command = app.get_command(app.context_class(app, info_name="sprachbund"), "serve")
    command.make_context("serve", arguments)
    for line in re.findall(r"^COPY (.*) /source/$", text, re.MULTILINE):
        for copied in line.split():
            assert (DEPLOY.parent / copied).exists()


def test_all_but_torch_is_installed_by_hash():
    """In the container and by make: what a lock file does not know cannot come in."""
    files = {name: (DEPLOY.parent / name).read_text() for name in ("deploy/Dockerfile", "Makefile")}
    locked = set[str]()
    for text in files.values():
        for command in re.findall(r"pip install (?:\\\n|.)*", text):
            assert re.search(r"--require-hashes --no-deps|torch==|\$\(TORCH\)|--no-deps", command), command
            locked |= set(re.findall(r"requirements[\w-]*\.lock", command))
    assert locked == {path.name for path in DEPLOY.parent.glob("requirements*.lock")}
    torch = {re.search(r"torch==([\d.]+)", text)[1] for text in files.values()}
    assert len(torch) == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("index", ["https://download.pytorch.org/whl/cpu", ""])
def test_make_installs_torch_without_cuda_unless_it_is_asked_for(tmp_path: Path, index: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX"}
    command = ["make", "--dry-run", "demo", f"VENV={tmp_path / 'new'}", *([] if index else ["TORCH_INDEX="])]
    ran = subprocess.run(
        command, cwd=DEPLOY.parent, env=environment, capture_output=True, text=True, check=True
    )
    (line,) = [line for line in ran.stdout.splitlines() if " torch==" in line]
    assert line.partition(" --extra-index-url ")[2].strip() == index


@pytest.mark.parametrize("name", ["", "-serve", "-dev", "-build"])
def test_every_package_of_a_lock_file_has_hashes(name):
    text = (DEPLOY.parent / f"requirements{name}.lock").read_text()
    packages = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert packages
    for package in packages:
        assert re.fullmatch(r"[\w.-]+==\S+(?: ; .*)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n", package), (
            package
        )
    assert "://" not in text  # an index is the installing machine's own


def test_the_configuration_of_ray_is_one():
    yaml = pytest.importorskip("yaml")
    (application,) = yaml.safe_load((DEPLOY / "ray.yaml").read_text())["applications"]
    module, name = application["import_path"].split(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    values = {k: v for k, v in application["args"].items() if k not in ("replicas", "actor")}
    assert settings_from(values).limits.max_live == 8


def test_the_compose_file_waits_longer_than_the_service_takes_to_stop():
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["sprachbund"]
    assert (DEPLOY.parent / service["build"]["dockerfile"]).exists()
    assert int(service["stop_grace_period"].rstrip("s")) > settings_from({}).timeouts.stop_s
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def unit() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=True)
    parsed.optionxform = str  # type: ignore[assignment]
    parsed.read_string((DEPLOY / "sprachbund.service").read_text())
    return parsed


def test_the_unit_starts_the_verb_with_options_it_has_and_again_after_a_kill():
    service = unit()["Service"]
    program, verb, *arguments = service["ExecStart"].split()
    assert (program, verb) == ("/opt/sprachbund/bin/sprachbund", "serve")
    app = typer.main.get_command(build_app())
    command = app.get_command(app.context_class(app, info_name="sprachbund"), "serve")
    command.make_context("serve", arguments)
    assert service["Restart"] == "always"
    assert int(service["TimeoutStopSec"]) > settings_from({}).timeouts.stop_s
    assert not {"RestrictNamespaces", "SystemCallFilter", "PrivateNetwork"} & set(service)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    """Its program is looked for, so one that is there stands in."""
    text = (DEPLOY / "sprachbund.service").read_text()
    path = tmp_path / "sprachbund.service"
    path.write_text(text.replace("/opt/sprachbund/bin/sprachbund", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0

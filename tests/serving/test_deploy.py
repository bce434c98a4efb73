"""The files in deploy/ say what the code understands."""

import json
import re
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
    command = typer.main.get_command(build_app()).commands["serve"]
    command.make_context("serve", arguments)
    for copied in re.search(r"^COPY (.*) /source/$", text, re.MULTILINE)[1].split():
        assert (DEPLOY.parent / copied).exists()


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

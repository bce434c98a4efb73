"""The description of the routes in the tree is that of the code, and the page on the service names all of it."""

import json
import re

from sprachbund.serving import live, realtime
from sprachbund.serving.openapi import described
from tests.documented import DOCS

PATH = DOCS / "openapi.json"
PAGE = DOCS / "serve.md"


def test_the_file_in_the_tree_is_not_stale():
    assert PATH.read_text(encoding="utf-8") == described(), (
        "run: python -m sprachbund.serving.openapi docs/openapi.json"
    )


def test_it_describes_what_clients_need():
    paths = json.loads(described())["paths"]
    assert {
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/text/translations",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/languages",
        "/health",
        "/ready",
        "/metrics",
    } == set(paths)
    form = paths["/v1/audio/translations"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "model"]
    assert form["properties"]["target_language"]["default"] == "en"
    assert "timestamp_granularities[]" in form["properties"]


def test_the_page_names_every_route_and_every_field_of_a_request():
    names = set(re.findall(r"`([^`\n]+)`", PAGE.read_text(encoding="utf-8")))
    paths = json.loads(described())["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert routes | {live.PATH, realtime.PATH, realtime.TRANSLATIONS_PATH} <= names
    for path in ("/v1/audio/translations", "/v1/text/translations"):
        (body,) = paths[path]["post"]["requestBody"]["content"].values()
        assert body["schema"]["properties"].keys() <= names


def test_the_page_names_every_field_of_a_realtime_session():
    parts = (realtime.Session, realtime.Audio, realtime.Input, realtime.Output, realtime.Transcription)
    turns = (realtime.ServerVad, realtime.SemanticVad)
    fields = {name for part in (*parts, *turns) for name in part.model_fields}
    section = (
        PAGE.read_text(encoding="utf-8")
        .partition("\n## OpenAI's realtime sessions\n")[2]
        .partition("\n## ")[0]
    )
    named = {name for code in re.findall(r"`([^`\n]+)`", section) for name in re.findall(r"\w+", code)}
    assert fields - {"type"} <= named

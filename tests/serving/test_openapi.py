"""The description of the routes in the tree is that of the code."""

import json
from pathlib import Path

from sprachbund.serving.openapi import described

PATH = Path(__file__).parents[2] / "docs" / "openapi.json"


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

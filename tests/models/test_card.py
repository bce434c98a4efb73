"""The record of the pairs of languages that a model was taught."""

import json
from pathlib import Path
from typing import Any

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.models.card import PAIRS, Card


def test_further_data_add_to_the_record_and_make_none(tmp_path: Path) -> None:
    card = Card(name="m", training={"steps": 3, PAIRS: [["en", "de"]]})
    card.write(tmp_path)
    assert Card.read(tmp_path) == card
    assert card.taught_pairs == {("en", "de")}
    assert card.pairs_with([("de", "de"), ("en", "de")]) == {PAIRS: [["de", "de"], ["en", "de"]]}
    unknown = Card(name="m", training={"steps": 3})
    assert unknown.taught_pairs is None
    assert unknown.pairs_with([("de", "de")]) == {}


@pytest.mark.parametrize("pairs", ["en-de", ["de"], [["en"]], [["en", 1]], None])
def test_a_record_that_is_none_is_refused_in_one_line(tmp_path: Path, pairs: Any) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"name": "m", "training": {PAIRS: pairs}}))
    with pytest.raises(
        SprachbundError, match=r"card\.json: training: .*pairs are no list of \[source, target\]"
    ):
        Card.read(tmp_path)

"""The table that a recipe prints."""

import json
from pathlib import Path

import pytest

from sprachbund.cli.train import _print


def test_small_hours_and_p_values_keep_the_digits_that_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"hours": 0.005, "gap": 1.5, "p": 0.0004}, {"hours": 0.01, "gap": -0.0, "p": 1.0}]
    (tmp_path / "table.json").write_text(json.dumps({"rows": rows}))
    _print(tmp_path / "table.json", as_json=False)
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["0.005", "1.50", "0.0004"]
    assert second.split() == ["0.01", "0.00", "1.00"]

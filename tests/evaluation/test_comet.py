import sys
from types import SimpleNamespace

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.comet import comet_scores


def test_without_the_package_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "comet", None)
    with pytest.raises(SprachbundError, match=r"pip install sprachbund\[comet\]"):
        comet_scores(["a"], ["b"], ["c"])


def test_the_package_is_given_source_hypothesis_and_reference(monkeypatch):
    seen = []

    def predict(rows, **_):
        seen.extend(rows)
        return SimpleNamespace(scores=[0.5, 0.75])

    package = SimpleNamespace(
        download_model=lambda name: name, load_from_checkpoint=lambda path: SimpleNamespace(predict=predict)
    )
    monkeypatch.setitem(sys.modules, "comet", package)
    assert comet_scores(["s", "t"], ["h", "i"], ["r", "q"]) == [50, 75]
    assert seen[1] == {"src": "t", "mt": "i", "ref": "q"}


def test_a_model_that_cannot_be_had(monkeypatch):
    def fail(name):
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "comet", SimpleNamespace(download_model=fail))
    with pytest.raises(SprachbundError, match="no network"):
        comet_scores(["s"], ["h"], ["r"])

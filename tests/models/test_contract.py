"""Every family meets every demand of docs/families.md, and the tables there say what came of it."""

import json

import pytest

from sprachbund import models
from tests.decoding.families import FAMILIES, NOT_BUILT, REGISTERED, SLOW
from tests.models.contract import BUILDERS, DECODING, MODELS, ROOT, TABLES, Subject, make_subject

DEMANDS = {**DECODING, **MODELS}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in BUILDERS],
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(request.param, tmp_path_factory.mktemp("subject"))


AGAIN = (
    "run: python -m tests.models.contract docs/results, then -m sprachbund.evaluation.tables docs/families.md"
)


def rows() -> dict[str, dict[str, str]]:
    result: dict[str, dict[str, str]] = {}
    for name in TABLES:
        for row in json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())["rows"]:
            result.setdefault(row["family"], {}).update(row)
    return result


@pytest.mark.parametrize("demand", DEMANDS)
def test_a_family_meets_a_demand(subject: Subject, demand: str) -> None:
    answer = DEMANDS[demand](subject)
    assert rows().get(subject.name, {}).get(demand) == answer, AGAIN


def test_every_registered_family_is_built_or_excused() -> None:
    assert list(REGISTERED) == list(FAMILIES)
    assert {*REGISTERED.values(), *NOT_BUILT} == set(models.FAMILIES)
    assert not {*REGISTERED.values()} & {*NOT_BUILT}


def test_the_tables_have_every_family_and_demand() -> None:
    assert list(rows()) == list(BUILDERS), AGAIN
    for row in rows().values():
        assert set(row) == {"family", *DEMANDS}

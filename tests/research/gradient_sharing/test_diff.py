"""What differs between two plans."""

from typing import Any

from sprachbund.models.sharing_plan import SharingPlan, Split
from sprachbund.research.gradient_sharing.planning import make_plan
from sprachbund.research.gradient_sharing.report import compare, diff_lines
from tests.research.gradient_sharing.made import planted_rows, sketches

ONE = Split(module="a", groups=(("de", "en"), ("fr",)), shared_ratio=0.5, private_shares=(0.6, 0.4))


def plan(*splits: Split, **fields: Any) -> SharingPlan:
    return SharingPlan(splits=splits, **fields)


def lines(one: SharingPlan, other: SharingPlan) -> list[str]:
    return diff_lines(compare(one, other), "A", "B")


def test_groups_in_another_order_are_the_same_with_their_shares() -> None:
    turned = ONE.model_copy(update={"groups": (("fr",), ("en", "de")), "private_shares": (0.4, 0.6)})
    assert compare(plan(ONE), plan(turned))["same"]
    assert lines(plan(ONE), plan(turned)) == ["both plans ask for the same splits"]
    swapped = ONE.model_copy(update={"groups": (("fr",), ("en", "de"))})
    assert compare(plan(ONE), plan(swapped))["changed"]["a"] == {"private_shares": [[0.6, 0.4], [0.4, 0.6]]}


def test_languages_that_move_are_named() -> None:
    moved = ONE.model_copy(update={"groups": (("de",), ("fr", "en", "it"))})
    difference = compare(plan(ONE), plan(moved))
    assert not difference["same"]
    assert difference["changed"]["a"]["moved"] == {
        "de": [["de", "en"], ["de"]],
        "en": [["de", "en"], ["en", "fr", "it"]],
        "fr": [["fr"], ["en", "fr", "it"]],
        "it": [[], ["en", "fr", "it"]],
    }
    said = lines(plan(ONE), plan(moved))
    assert "  groups de en | fr against de | fr en it" in said
    assert "  en: with de against with fr it" in said
    assert "  it: not known against with en fr" in said
    assert "  fr: alone against with en it" in said


def test_modules_ratios_starts_and_models() -> None:
    changed = ONE.model_copy(update={"shared_ratio": 0.25, "start": "svd"})
    other = Split(module="b", groups=(("de",), ("en", "fr")), shared_ratio=0.5)
    difference = compare(plan(ONE, model_hash="1"), plan(changed, other, model_hash="2"))
    assert difference["changed"] == {"a": {"shared_ratio": [0.5, 0.25], "start": ["neuron", "svd"]}}
    assert difference["only_in_second"] == ["b"]
    assert difference["model_hash"] == ["1", "2"]
    said = diff_lines(difference, "A", "B")
    assert said[0] == "the plans are from gradients of different models"
    assert "only B splits b" in said
    assert "  shared ratio 0.5 against 0.25" in said


def test_measured_numbers_that_differ() -> None:
    one, other = (make_plan(sketches(planted_rows((1, 3), noise=noise))) for noise in (1.0, 3.0))
    measured = compare(one, other)["evidence"]["encoder.layers.0.feed_forward_out"]
    assert measured["delta"][0] > measured["delta"][1]
    assert any(line.startswith("measured in encoder.layers.0") for line in lines(one, other))
    assert compare(one, one) == {
        "same": True,
        "model_hash": None,
        "only_in_first": [],
        "only_in_second": [],
        "changed": {},
        "evidence": {},
    }

"""Plans from gradients: what is chosen, what is told, and that order changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.research.gradient_sharing import analyses as capacity
from sprachbund.research.gradient_sharing.plan_options import THRESHOLDS, SharingPlanOptions
from sprachbund.research.gradient_sharing.planning import make_plan, measure
from sprachbund.research.gradient_sharing.sketches import Sketches
from tests.research.gradient_sharing.made import as_groups, planted_groups, planted_rows, sketches

NAME = "encoder.layers.{}.feed_forward_out"


def layers(parts: tuple[int, ...] = (1, 3), count: int = 4, **options: float) -> Sketches:
    """Layers in which groups stand further apart the higher they are."""
    return sketches(
        *(planted_rows(parts, apart=0.3 + 0.4 * layer, seed=3, **options) for layer in range(count))
    )


@pytest.mark.parametrize("parts", [(1, 3), (2, 2, 2), (4, 4, 4), (3, 3, 3, 3)])
def test_planted_groups_are_planned(parts: tuple[int, ...]) -> None:
    rows = planted_rows(parts)
    plan = make_plan(sketches(rows))
    assert as_groups(plan.splits[0].groups) == planted_groups(parts, rows)
    assert plan.splits[0].evidence == plan.modules[plan.splits[0].module]
    assert plan.notes == ()


def test_the_split_follows_from_its_evidence() -> None:
    made = layers()
    plan = make_plan(made, SharingPlanOptions(num_modules=2, private_widths="energy", start="svd", seed=5))
    assert [split.module for split in plan.splits] == capacity.ranked(plan.modules, "purity")[:2]
    for split in plan.splits:
        assert split.shared_ratio == capacity.shared_ratio(split.evidence.conflict, THRESHOLDS["corrected"])
        assert split.private_shares == split.evidence.energy_shares
        assert (split.start, split.seed) == ("svd", 5)
    assert list(plan.modules) == [NAME.format(i) for i in range(4)]


def test_what_is_asked_for_by_hand_is_done() -> None:
    options = SharingPlanOptions(num_groups=3, shared_ratio=0.4, thresholds=(), ratios=(0.9,), veto=-1.0)
    split = make_plan(layers(), options).splits[0]
    assert len(split.groups) == 3
    assert split.shared_ratio == 0.4
    assert split.private_shares == pytest.approx([1 / 3] * 3)


def test_separation_and_purity_choose_differently() -> None:
    """Gradients agree within the languages equally in both; groups stand further apart in one."""
    agreeing = planted_rows((2, 2), apart=0.0, common=1.5, noise=1.5, own=0.3)
    apart = planted_rows((2, 2), apart=1.5, common=0.0, noise=1.5, own=0.3)
    noise = planted_rows((2, 2), apart=0.0, common=0.1, noise=4.0)
    made = sketches(agreeing, apart, noise, noise)
    chosen = {
        by: make_plan(made, SharingPlanOptions(choose_by=by, num_groups=2, shared_ratio=0.5)).splits[0].module  # type: ignore[arg-type]
        for by in ("purity", "separation")
    }
    assert chosen == {"purity": NAME.format(0), "separation": NAME.format(1)}


def test_the_published_rule_is_an_option() -> None:
    split = make_plan(layers(), SharingPlanOptions(conflict="raw")).splits[0]
    assert split.shared_ratio == capacity.shared_ratio(split.evidence.delta, THRESHOLDS["raw"])


def test_languages_that_agree_are_left_whole_and_it_is_said() -> None:
    agreeing = planted_rows((4,), own=0.1, noise=0.3)
    apart = planted_rows((2, 2), noise=4.0)
    plan = make_plan(sketches(agreeing, apart))
    assert [split.module for split in plan.splits] == [NAME.format(1)]
    assert any(NAME.format(0) in note and "no groups that come out again" in note for note in plan.notes)
    three = planted_rows((2, 2), apart=0.15, own=0.0, noise=0.3)  # apart, but by less than the veto
    joined = make_plan(sketches(three))
    assert joined.modules[NAME.format(0)].merged != ()
    assert any("too alike" in note for note in joined.notes)
    nothing = make_plan(sketches(agreeing))
    assert nothing.splits == ()
    assert any("0 of 1 modules" in note for note in nothing.notes)


def test_modules_below_the_median_are_taken_last_and_noted() -> None:
    plan = make_plan(layers(), SharingPlanOptions(num_modules=4))
    assert sum("not above the median" in note for note in plan.notes) == 2


def shuffled(made: Sketches, seed: int) -> Sketches:
    """The same gradients with modules, languages and vectors in another order."""
    random = np.random.default_rng(seed)
    vectors = {}
    for module in random.permutation(made.modules).tolist():
        vectors[module] = {
            tag: random.permutation(made.vectors[module][tag])
            for tag in random.permutation(made.languages).tolist()
        }
    return Sketches(vectors=vectors)


BLURRED = layers((2, 3), count=1, num_vectors=9, dimensions=16)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_languages_and_vectors_changes_nothing(seed: int) -> None:
    options = SharingPlanOptions(private_widths="energy")
    one, other = make_plan(BLURRED, options), make_plan(shuffled(BLURRED, seed), options)
    assert without_pairing(one) == without_pairing(other)


def test_nor_does_it_with_k_means() -> None:
    made = layers((2, 2), count=1, num_vectors=9, dimensions=16)
    options = SharingPlanOptions(clustering="kmeans")
    assert without_pairing(make_plan(made, options)) == without_pairing(make_plan(shuffled(made, 1), options))


def without_pairing(plan: SharingPlan) -> SharingPlan:
    """The plan without the one number that pairs rows by their place."""
    modules = {
        name: evidence.model_copy(update={"canonical_correlations": ()})
        for name, evidence in plan.modules.items()
    }
    splits = tuple(split.model_copy(update={"evidence": modules[split.module]}) for split in plan.splits)
    return plan.model_copy(update={"modules": modules, "splits": splits})


def test_the_scale_of_external_gradients_changes_nothing() -> None:
    rows = planted_rows((2, 2))
    scaled = {tag: 1e6 * values.astype(np.float64) for tag, values in rows.items()}
    one, other = make_plan(sketches(rows)), make_plan(sketches(scaled))
    assert [split.groups for split in one.splits] == [split.groups for split in other.splits]
    np.testing.assert_allclose(
        one.splits[0].evidence.similarity, other.splits[0].evidence.similarity, atol=2e-6
    )


def test_the_side_is_told_or_read_off_the_names() -> None:
    rows = planted_rows((1, 2))
    by_module = {"encoder.layers.1.ffn": rows, "decoder.layers.1.ffn": rows}
    sides = {
        s.module: s.side
        for s in make_plan(Sketches(vectors=by_module), SharingPlanOptions(num_modules=2)).splits
    }
    assert sides == {"encoder.layers.1.ffn": "source", "decoder.layers.1.ffn": "target"}
    declared = Sketches(vectors={"x": rows}, info={"side": {"x": "target"}, "model_hash": "ff"})
    assert make_plan(declared).splits[0].side == "target"
    assert make_plan(declared).model_hash == "ff"
    pairs = dict(zip(("de>fr", "fr>de", "de>en"), rows.values(), strict=True))
    assert make_plan(Sketches(vectors={"x": pairs})).splits[0].side == "pair"
    wrong = Sketches(vectors={"x": rows}, info={"side": {"x": "middle"}})
    with pytest.raises(SprachbundError, match="must map modules"):
        make_plan(Sketches(vectors={"x": rows}, info={"side": "source"}))
    with pytest.raises(SprachbundError, match=r"side of x .* 'middle'"):
        make_plan(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_modules": 5}, "5 modules to split, but gradients of 4; ask for 1 to 4"),
        ({"num_modules": 0}, "0 modules"),
        ({"num_groups": 5}, "5 groups cannot be made of 4 languages .*ask for 2 to 4"),
        ({"num_groups": 1}, "1 groups"),
        ({"num_groups": 0}, "0 groups"),
        ({"thresholds": (0.2, 0.1)}, "0.2, 0.1; they must rise"),
        ({"thresholds": (0.1, 0.1)}, "must rise"),
        ({"thresholds": (float("nan"),), "ratios": (0.5, 0.2)}, "finite"),
        ({"ratios": (0.5,)}, "2 thresholds need 3 ratios"),
        ({"ratios": (0.5, 1.0, 0.2)}, "0.5, 1, 0.2; each must be at least 0 and below 1"),
        ({"shared_ratio": 1.2}, "1.2"),
        ({"choose_by": "luck"}, "'luck'.*purity, separation"),
        ({"clustering": "luck"}, "ward, kmeans"),
        ({"private_widths": "luck"}, "equal, energy"),
        ({"start": "luck"}, "neuron, svd, random"),
        ({"veto": 1.5}, "veto is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(SprachbundError, match=message):
        make_plan(layers(), SharingPlanOptions(**options))


def test_one_vector_says_nothing_about_self_similarity() -> None:
    rows = planted_rows((2, 2)) | {"de": planted_rows((4,))["de"][:1]}
    with pytest.raises(SprachbundError, match=r"feed_forward_out\|de' has one vector only"):
        make_plan(sketches(rows))


def test_languages_may_have_different_numbers_of_vectors() -> None:
    rows = planted_rows((2, 2))
    rows["aeb"] = rows["aeb"][:7]
    evidence = measure(sketches(rows), NAME.format(0))
    assert evidence.num_vectors == {"aeb": 7, "bem": 50, "cs": 50, "de": 50}
    assert as_groups(evidence.groups) == planted_groups((2, 2), planted_rows((2, 2)))


def test_progress_is_reported() -> None:
    progress = []
    make_plan(layers(), progress=lambda done, total: progress.append((done, total)))
    assert progress == [(i, 4) for i in range(4)]

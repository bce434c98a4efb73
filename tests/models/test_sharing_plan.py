"""The sharing plan as a file and as arithmetic."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import FILE, SharingPlan, Split

GROUPS = (("bem",), ("aeb", "est", "gle"))
MODULE = "encoder.layers.11.feed_forward_out"


def split(**changes: Any) -> Split:
    return Split(**{"module": MODULE, "groups": GROUPS, "shared_ratio": 0.5, **changes})


def num_parameters(width: int, inner_widths: list[int]) -> int:
    """Of branches of two linear maps each, with biases."""
    return sum(2 * width * inner + inner + width for inner in inner_widths)


def test_the_published_widths_and_parameters() -> None:
    shared, private = split().widths(4096)
    assert (shared, private) == (2048, (1024, 1024))
    assert num_parameters(1024, [shared, *private]) == 8_395_776
    assert num_parameters(1024, [4096]) == 8_393_728


@given(
    st.integers(1, 5000),
    st.floats(0, 0.999),
    st.lists(st.floats(0.01, 1), min_size=1, max_size=8),
)
def test_widths_sum_to_the_inner_width(inner_width: int, ratio: float, weights: list[float]) -> None:
    shares = tuple(weight / sum(weights) for weight in weights)
    groups = tuple((f"l{i}",) for i in range(len(weights)))
    made = split(groups=groups, shared_ratio=ratio, private_shares=shares)
    try:
        shared, private = made.widths(inner_width)
    except SprachbundError:
        rest = inner_width - int(inner_width * ratio)
        assert min(shares) * rest < 1.001
        return
    assert shared + sum(private) == inner_width
    assert abs(shared - inner_width * ratio) < 1.001
    rest = inner_width - shared
    assert all(abs(width - rest * share) < 1.001 for width, share in zip(private, shares, strict=True))


def test_widths_that_do_not_divide_and_ratios_that_floats_miss() -> None:
    three = (("a",), ("b",), ("c",))
    assert split(groups=three, shared_ratio=0.29).widths(100) == (29, (24, 24, 23))
    assert split(groups=three, shared_ratio=0).widths(9) == (0, (3, 3, 3))
    assert split(private_shares=(0.2768, 0.7232)).widths(4096) == (2048, (567, 1481))


def test_a_feed_forward_too_narrow_for_its_branches_is_named() -> None:
    with pytest.raises(SprachbundError, match=rf"{MODULE} has an inner width of 3"):
        split(groups=(("a",), ("b",), ("c",)), shared_ratio=0.5).widths(3)


def test_each_language_has_its_group_and_others_are_refused() -> None:
    made = split()
    assert [made.group_of(tag) for tag in ("bem", "aeb", "gle")] == [0, 1, 1]
    with pytest.raises(SprachbundError, match=r"'fr' in .*knows aeb, bem, est, gle; add it"):
        made.group_of("fr")
    pairs = split(side="pair", groups=(("de>fr",), ("fr>de",)))
    assert pairs.group_of("fr>de") == 1


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    plan = SharingPlan(
        model_hash="ab12", splits=(split(), split(module="decoder.layers.0.feed_forward", side="target"))
    )
    plan.write(tmp_path / "deep" / "plan.json")
    assert SharingPlan.read(tmp_path / "deep" / "plan.json") == plan
    plan.write(tmp_path)
    assert SharingPlan.read(tmp_path) == SharingPlan.read(tmp_path / FILE) == plan
    assert not list(tmp_path.rglob("*.partial"))


def test_a_plan_written_by_hand_needs_little(tmp_path: Path) -> None:
    by_hand = {"splits": [{"module": MODULE, "groups": [["bem"], ["aeb", "est"]], "shared_ratio": 0.25}]}
    (tmp_path / FILE).write_text(json.dumps(by_hand))
    made = SharingPlan.read(tmp_path).splits[0]
    assert made.private_shares == (0.5, 0.5)
    assert (made.side, made.start, made.evidence) == ("source", "neuron", None)


BROKEN = {
    "a language twice": ({"groups": [["bem"], ["bem", "gle"]]}, ["bem more than once"]),
    "an empty group": ({"groups": [["bem"], []]}, ["empty group"]),
    "no group": ({"groups": []}, ["groups"]),
    "ratio above": ({"shared_ratio": 1.0}, ["shared_ratio", "less than 1"]),
    "ratio below": ({"shared_ratio": -0.1}, ["shared_ratio"]),
    "shares that miss": ({"private_shares": [0.5, 0.4]}, ["private_shares", "sum to 1"]),
    "a share too many": ({"private_shares": [0.5, 0.25, 0.25]}, ["2 groups and 3 private_shares"]),
    "a share of nothing": ({"private_shares": [1.0, 0.0]}, ["above 0"]),
    "pairs that are none": ({"side": "pair"}, ["de>fr"]),
    "an unknown start": ({"start": "magic"}, ["start"]),
    "an unknown key": ({"colour": "red"}, ["colour"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plan_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    changes, parts = BROKEN[case]
    split_by_hand = {"module": MODULE, "groups": GROUPS, "shared_ratio": 0.5, **changes}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"version": 1, "splits": [split_by_hand]}))
    with pytest.raises(SprachbundError) as error:
        SharingPlan.read(path)
    assert "\n" not in str(error.value)
    for part in [str(path), *parts, f"plan again with `sprachbund share plan GRADIENTS.npz --out {path}`"]:
        assert part in str(error.value)


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(SprachbundError, match="does not exist"):
        SharingPlan.read(path)
    for text, message in (
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"version": 2}', "version 2, known here is 1"),
        (
            '{"version": 0}',
            "version 0, .*; use the release it was written by, or plan again with `sprachbund share",
        ),
        ('{"speed": 3}', "speed: Extra inputs .* plan again with `sprachbund share plan GRADIENTS.npz --out"),
        ('{"version": "one"}', "version 'one'"),
    ):
        path.write_text(text)
        with pytest.raises(SprachbundError, match=message):
            SharingPlan.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SprachbundError, match="not UTF-8"):
        SharingPlan.read(path)
    twice = {"splits": [split().model_dump(mode="json")] * 2}
    path.write_text(json.dumps(twice))
    with pytest.raises(SprachbundError, match="split more than once"):
        SharingPlan.read(path)

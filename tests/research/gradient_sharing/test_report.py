"""What a plan says in words, and the page and picture it makes."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import SharingPlan, Split
from sprachbund.research.gradient_sharing import page, report
from sprachbund.research.gradient_sharing import page as figures
from sprachbund.research.gradient_sharing.plan_options import SharingPlanOptions
from sprachbund.research.gradient_sharing.planning import make_plan
from tests.research.gradient_sharing.made import TAGS, planted_rows, sketches


def layers(common: float = 0.5, parts: tuple[int, ...] = (1, 3), **options: float) -> SharingPlan:
    made = (planted_rows(parts, apart=0.3 + 0.4 * i, seed=3, common=common, **options) for i in range(3))
    return make_plan(sketches(*made))


@pytest.fixture(scope="module")
def plan() -> SharingPlan:
    return layers()


def said(blocks: list[report.Block]) -> str:
    return "\n".join(block for block in blocks if isinstance(block, str))


def test_pairs_that_fight_most_come_first(plan: SharingPlan) -> None:
    result = report.pairs(plan.modules)
    conflicts = [pair.conflict for pair in result]
    assert conflicts == sorted(conflicts, reverse=True)
    assert len(result) == 3 * 6
    lonely = next(group[0] for group in plan.splits[0].groups if len(group) == 1)
    assert all(lonely in pair.languages for pair in result[:3])
    first = result[0]
    s = plan.modules[first.module].mean_cosines
    a, b = (plan.modules[first.module].languages.index(tag) for tag in first.languages)
    assert first.conflict == pytest.approx(1 - s[a][b] / (s[a][a] * s[b][b]) ** 0.5)


@pytest.mark.parametrize(
    ("together", "own", "words"),
    [
        (-0.01, (0.3, 0.3), "pull against each other"),
        (0.1, (0.3, 0.3), "go different ways"),
        (0.2, (0.3, 0.3), "agree in part"),
        (0.29, (0.3, 0.3), "pull together"),
        (0.01, (0.0, 0.3), "cannot be told apart from noise"),
    ],
)
def test_cosines_in_words(together: float, own: tuple[float, float], words: str) -> None:
    assert report.LanguagePair(module="m", languages=("a", "b"), together=together, own=own).words == words


def test_the_text_says_who_fights_where_and_how_sure(plan: SharingPlan) -> None:
    text = said(report.show_blocks(plan))
    worst = report.pairs(plan.modules)[0]
    assert f"{worst.languages[0]} and {worst.languages[1]} {worst.words} in {worst.module}" in text
    assert "clearest conflict: encoder.layers.2.feed_forward_out, 0." in text
    assert re.search(r"sure +yes: the same groups in \d+ of 40 random halves", text)
    assert f"split {plan.splits[0].module}" in text
    table = next(block for block in report.show_blocks(plan) if isinstance(block, report.ReportTable))
    assert [row[0].removesuffix(" *") for row in table.rows] == list(plan.modules)
    assert sum(row[0].endswith(" *") for row in table.rows) == 1


def test_doubt_is_said() -> None:
    blurred = make_plan(sketches(planted_rows((6,), own=0.4, noise=4.0)), SharingPlanOptions(num_groups=3))
    assert "doubtful, more utterances would tell" in said(report.plan_blocks(blurred))
    few = make_plan(
        sketches(planted_rows((1, 3), num_vectors=3)), SharingPlanOptions(num_groups=2, shared_ratio=0.5)
    )
    assert "no: the conflict is not larger than its error" in said(report.plan_blocks(few))


def test_two_languages_need_no_grouping() -> None:
    two = make_plan(sketches(planted_rows((1, 1))))
    assert "nothing to group" in said(report.plan_blocks(two))


def test_nothing_to_split_is_said() -> None:
    alike = make_plan(sketches(planted_rows((4,), own=0.1, noise=0.3)))
    assert "nothing to split" in said(report.plan_blocks(alike))


def test_a_plan_made_by_hand_is_shown_but_not_drawn(tmp_path: Path) -> None:
    by_hand = SharingPlan(splits=(Split(module="m", groups=(("de",), ("en",)), shared_ratio=0.5),))
    text = said(report.show_blocks(by_hand))
    assert "holds no evidence" in text
    assert "split m" in text
    assert "made by hand" in text
    with pytest.raises(SprachbundError, match="no evidence to draw"):
        page.write_report(by_hand, tmp_path / "report.html")


@pytest.mark.parametrize("name", ["report.html", "report.png"])
def test_a_split_that_was_not_measured_is_not_drawn(plan: SharingPlan, name: str, tmp_path: Path) -> None:
    by_hand = plan.splits[0].model_copy(update={"module": "decoder.layers.0.feed_forward"})
    page.write_report(plan.model_copy(update={"splits": (*plan.splits, by_hand)}), tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000


def test_a_module_of_any_name_is_written_into_the_page() -> None:
    assert 'aria-label="purity in &lt;ffn&gt; &quot;a&quot;"' in page.svg(
        lambda axes: None, 'purity in <ffn> "a"', 1, 1
    )


def test_edited_groups_are_not_called_sure(plan: SharingPlan) -> None:
    edited = plan.splits[0].model_copy(update={"groups": (("aeb", "bem"), ("cs", "de"))})
    facts = dict(report.split_facts(edited))
    assert facts["sure"].startswith("not measured: gradients gave the groups")
    assert "energy" not in facts


def test_the_change_between_checkpoints(plan: SharingPlan) -> None:
    before = layers(common=2.0)
    result = report.changes(plan.modules, before.modules)
    assert [change["module"] for change in result] == list(plan.modules)
    for change in result:
        name = change["module"]
        assert change["change"] == pytest.approx(
            plan.modules[name].conflict - before.modules[name].conflict, abs=1e-4
        )
    top = result[-1]
    assert top["clear"]
    assert top["change"] > 0
    assert top["conflict"] > top["conflict_before"]
    same = report.changes(plan.modules, plan.modules)
    assert not any(change["clear"] for change in same)
    assert all(change["same_groups"] for change in same)
    assert "no clear change in 3" in said(report.change_blocks(plan, plan))


def test_checkpoints_with_nothing_in_common(plan: SharingPlan) -> None:
    other = {"elsewhere": next(iter(plan.modules.values()))}
    with pytest.raises(SprachbundError, match="no module in common"):
        report.changes(plan.modules, other)
    others = make_plan(
        sketches(*[{f"x{tag}": rows for tag, rows in planted_rows((1, 3)).items()} for _ in range(3)])
    )
    with pytest.raises(SprachbundError, match="no two languages in common"):
        report.changes(plan.modules, others.modules)
    more = make_plan(sketches(*[planted_rows((1, 3, 2), seed=3) for _ in range(3)]))
    change = report.changes(plan.modules, more.modules)[0]
    assert change["languages"] == ["aeb", "bem", "cs", "de"]
    assert change["clear"] is None
    s = np.array(next(iter(more.modules.values())).mean_cosines)[:4, :4]
    beside = s[~np.eye(4, dtype=bool)].mean()
    assert change["delta_before"] == pytest.approx(np.diag(s).mean() - beside, abs=2e-6)
    assert "only among the languages of both, so without errors: aeb bem cs de" in said(
        report.change_blocks(plan, more)
    )
    one = plan.model_copy(update={"modules": dict(list(plan.modules.items())[:1])})
    assert "only in one of the two" in said(report.change_blocks(plan, one))


def test_the_json_has_plain_names(plan: SharingPlan) -> None:
    result = report.numbers(plan)
    split = result["splits"][0]
    for name in (
        "module",
        "groups",
        "shared_ratio",
        "delta",
        "self_similarity",
        "cross_similarity",
        "purity",
        "separation",
        "energy_shares",
        "similarity",
        "silhouette",
    ):
        assert name in split
    assert list(result["modules"]) == list(plan.modules)
    assert result["version"] == 1


class Page(HTMLParser):
    """Collects what a browser would load, and checks that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        result = dict(attrs)
        self.loads += [
            value
            for key, value in result.items()
            if value and key in {"src", "href", "xlink:href"} and value[0] != "#"
        ]
        if tag == "svg":
            self.pictures.append(result.get("aria-label") or "")
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in {"meta", "br"}:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(plan: SharingPlan, tmp_path: Path) -> None:
    page.write_report(plan, tmp_path / "a" / "report.html", layers(common=2.0))
    text = (tmp_path / "a" / "report.html").read_text()
    parsed = Page()
    parsed.feed(text)
    assert parsed.open == []
    assert all(address.startswith("data:image/png;base64,") for address in parsed.loads)
    assert set(re.findall(r"https?://[^/\"]+", text)) <= {"http://www.w3.org"}  # names of namespaces
    assert "url(" not in re.sub(r"url\(#[^)]*\)", "", text)
    assert len(parsed.pictures) == 4
    assert "Since the other checkpoint" in text
    assert not list((tmp_path / "a").glob("*.partial"))


def test_the_page_is_the_same_every_time(plan: SharingPlan, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        page.write_report(plan, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    rows = dict(zip(('<b>"', "de&", "en", "fr"), planted_rows((1, 3)).values(), strict=True))
    page.write_report(make_plan(sketches(rows)), tmp_path / "report.html")
    parsed = Page()
    parsed.feed((tmp_path / "report.html").read_text())
    assert parsed.open == []


@pytest.mark.parametrize("parts", [(1, 1), (4, 4, 4)])
def test_the_picture_is_a_picture(parts: tuple[int, ...], tmp_path: Path) -> None:
    page.write_report(make_plan(sketches(planted_rows(parts))), tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as image:
        assert image.format == "PNG"
        assert image.size[0] >= 1500
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50


def test_a_report_of_another_kind_is_refused(plan: SharingPlan, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"\.html or \.png"):
        page.write_report(plan, tmp_path / "report.pdf")


def test_the_heat_map_shows_the_numbers_in_the_order_of_the_dendrogram() -> None:
    plan = make_plan(sketches(planted_rows((2, 2, 2))))
    evidence = next(iter(plan.modules.values()))
    axes, tree = Figure().subplots(1, 2)
    figures.heat_map(axes, evidence)
    figures.dendrogram(tree, evidence)
    names = [label.get_text() for label in axes.get_yticklabels()]
    from_top = sorted(tree.get_yticklabels(), key=lambda label: -label.get_position()[1])
    if tree.yaxis_inverted():
        from_top = from_top[::-1]
    assert names == [label.get_text() for label in from_top]
    shown = axes.images[0].get_array()
    for row, one in enumerate(names):
        for column, other in enumerate(names):
            wanted = evidence.corrected[evidence.languages.index(one)][evidence.languages.index(other)]
            assert shown[row, column] == wanted
    assert len(axes.patches) == 3  # a frame around each group


def test_the_bars_are_the_energies() -> None:
    plan = make_plan(sketches(planted_rows((1, 3))))
    evidence = next(iter(plan.modules.values()))
    axes = Figure().subplots()
    figures.energy_bars(axes, evidence)
    widths = {
        label.get_text(): bar.get_width()
        for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)
    }
    assert widths == {tag: pytest.approx(100 * share) for tag, share in evidence.energy_by_language.items()}
    assert set(widths) == set(TAGS[:4])


def test_short_names_keep_what_tells_modules_apart() -> None:
    def short(*names: str) -> list[str]:
        return figures.short_names(names)

    assert short("encoder.layers.1.ffn", "encoder.layers.10.ffn") == ["1", "10"]
    assert short("encoder.layers.1.ffn", "decoder.layers.1.ffn") == ["encoder", "decoder"]
    assert short("a.1.x", "a.2.x", "a.2.y") == ["1.x", "2.x", "2.y"]
    assert short("a.b", "a") == ["a.b", "a"]
    assert short("only.one") == ["only.one"]

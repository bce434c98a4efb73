"""The page for everybody: by keyboard, on a phone, in the dark, without motion."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.serving.page.looking import state, until
from tests.serving.page.server import Script, text

Open = Callable[..., Any]
PHONE = (360, 640)

FOCUSED = """() => {
    const element = document.activeElement;
    const style = getComputedStyle(element);
    const name = element.getAttribute("aria-label") || element.labels?.[0]?.textContent || element.textContent;
    return { id: element.id || element.className, tag: element.tagName, name: name.trim(),
             outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 };
}"""


def test_every_control_is_reached_by_tab_has_a_name_and_shows_its_focus(opened: Open) -> None:
    page = opened(targets=["de", "fr"])
    reached: list[dict[str, Any]] = []
    for _ in range(20):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused["tag"] == "BODY":
            break
        reached.append(focused)
    wanted = "button:not(:disabled), select, input, a, summary"
    visible = page.evaluate(
        f"[...document.querySelectorAll('{wanted}')].filter(e => e.checkVisibility()).length"
    )
    assert len(reached) == visible
    assert [control["id"] for control in reached[:3]] == ["skip", "theme", "stage"]
    assert all(control["outline"] and control["name"] for control in reached), reached


def test_a_whole_session_without_a_mouse(opened: Open, script: Script) -> None:
    script.live = [(0.3, text("Hallo", "", final=True))]
    page = opened()
    page.focus("#add-target")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)  # the list opens
    page.keyboard.press("Tab")
    for _ in range(12):
        if page.evaluate("document.activeElement.value") == "fr":
            break
        page.keyboard.press("Tab")
    page.keyboard.press(" ")
    page.wait_for_timeout(100)
    page.keyboard.press("Escape")
    assert page.evaluate("[...document.querySelectorAll('.chip[data-tag]')].map(e => e.dataset.tag)") == [
        "de",
        "fr",
    ]
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press(" ")
    state(page, "live")
    until(lambda: "Hallo" in page.inner_text("#panes"), "text")
    page.keyboard.press("f")
    assert not page.is_visible(".controls")
    page.keyboard.press("Escape")
    assert page.is_visible(".controls")
    page.keyboard.press("Escape")
    state(page, "idle")
    assert script.firsts[0]["targets"] == ["de", "fr"]


def test_keys_do_nothing_while_a_field_is_used_or_when_switched_off(opened: Open) -> None:
    page = opened()
    page.focus("#source")
    page.keyboard.press("f")
    assert page.is_visible(".controls")
    page.click("#open-settings")
    page.click("#shortcuts")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("f")
    page.keyboard.press(" ")
    assert page.is_visible(".controls")
    assert page.evaluate("document.documentElement.dataset.state") == "idle"


def test_nothing_is_wider_than_a_phone(opened: Open, script: Script) -> None:
    long = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
    script.live = [
        (0.2, text(long, f" {long}", source_language=tag, segment=n))
        for n, tag in enumerate(("en", "es", "fr"))
    ]
    page = opened(size=PHONE, targets=["de", "fr", "ja"])
    for dialog in ("#add-target", "#open-settings"):
        page.click(dialog)
        assert fits(page)
        page.keyboard.press("Escape")
    page.click("#start")
    until(lambda: long in page.inner_text("#panes"), "text")
    assert fits(page)
    page.click(".pane[data-target=de] .menu > button")
    menu = page.locator(".menu [popover]:popover-open").bounding_box()
    assert menu["x"] >= 0
    assert menu["x"] + menu["width"] <= PHONE[0]
    assert menu["y"] + menu["height"] <= PHONE[1]
    page.keyboard.press("Escape")
    assert page.evaluate("document.documentElement.dataset.state") == "live", "Escape closed the menu only"
    for control in ("#start", "#pause", "#open-settings"):
        box = page.query_selector(control).bounding_box()
        assert box["y"] + box["height"] <= PHONE[1]
        assert box["height"] >= 44, "big enough for a finger"
    page.keyboard.press("Escape")
    state(page, "idle")
    assert fits(page)
    assert page.query_selector(".top").bounding_box()["height"] < 80, "one line"


def fits(page: Any) -> bool:
    over = """() => [...document.querySelectorAll("body *")]
        .filter((e) => e.checkVisibility() && !e.closest(".spoken, .skip, svg"))
        .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5 || e.getBoundingClientRect().left < -0.5)
        .map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(over) == []
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


COLOURS = """(names) => {
    const probe = document.body.appendChild(document.createElement("i"));
    const found = Object.fromEntries(names.map((name) => {
        probe.style.color = `var(--${name})`;
        return [name, getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number)];
    }));
    probe.remove();
    return found;
}"""
HUES = [f"hue-{n}" for n in range(8)]
PAIRS = [
    *[(ink, "paper") for ink in ("ink", "ink-2", "accent", "warn", "bad", *HUES)],
    *[("ink", "raised"), ("ink-2", "raised"), ("ink-2", "sunk")],
    *[("warn", "warn-paper"), ("bad", "bad-paper"), ("on-accent", "accent")],
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_can_be_turned_and_are_legible(opened: Open, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    names = sorted({name for pair in PAIRS for name in pair})
    colours = page.evaluate(COLOURS, names)
    assert (luminance(colours["paper"]) < 0.05) == (scheme == "dark")
    for ink, paper in PAIRS:
        assert contrast(colours[ink], colours[paper]) >= 4.5, (scheme, ink, paper)
    assert page.get_attribute("#theme", "aria-pressed") == ("true" if scheme == "dark" else "false")
    page.click("#theme")
    assert (luminance(page.evaluate(COLOURS, names)["paper"]) < 0.05) == (scheme == "light")
    page.reload()
    assert (luminance(page.evaluate(COLOURS, names)["paper"]) < 0.05) == (scheme == "light")


def luminance(colour: list[float]) -> float:
    """Of WCAG 2.2."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_languages_are_told_apart_without_colours(opened: Open, script: Script) -> None:
    script.live = [
        (0.2, text("eins", "", segment=0, source_language="en", final=True)),
        (0.2, text("zwei", "", segment=1, source_language="es", final=True)),
        (0.2, text("drei", "", segment=2, source_language="und", final=True)),
    ]
    page = opened(reduced_motion="reduce")
    page.click("#start")
    until(lambda: "drei" in page.inner_text("#panes"), "text")
    assert page.evaluate("[...document.querySelectorAll('.line .tag')].map(e => e.textContent)") == [
        "en",
        "es",
        "",
    ]
    assert page.evaluate("[...document.querySelectorAll('.line')].map(e => e.dataset.hue ?? '')") == [
        "0",
        "1",
        "",
    ]
    assert page.inner_text("#legend").split()[::3] == ["en", "es"]
    assert page.evaluate("getComputedStyle(document.querySelector('.scroller')).scrollBehavior") == "auto"
    page.keyboard.press("Escape")


def test_pairs_that_the_model_does_not_know_are_said_before_anything_is_sent(
    opened: Open, script: Script
) -> None:
    page = opened(targets=["ja"])
    page.select_option("#source", "es")
    page.click("#start")
    assert "does not turn Spanish into Japanese" in page.inner_text("#messages")
    page.click("#add-target")
    assert page.is_disabled("#picker-options input[value=ja]")
    assert "not from Spanish" in page.inner_text("#picker-options")
    assert [first for first in script.firsts if first["type"] != "disconnected"] == []  # of the page before

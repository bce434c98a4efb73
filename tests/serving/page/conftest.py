"""Debian's Chromium with a microphone that plays a recording, and the stand-in that it talks to."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.serving.page.looking import RECORDINGS, state
from tests.serving.page.server import Script, make_app, serving

CHROMIUM = shutil.which("chromium")


def arguments(recording: Path) -> list[str]:
    """Of a browser whose microphone plays `recording` once."""
    return [
        "--no-sandbox",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={recording}%noloop",
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Not for the session: while it is there an event loop runs, and no other test could begin one.
    if CHROMIUM is None:
        pytest.skip("no chromium here; scripts/browser.sh installs it")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments(RECORDINGS / "en.wav"))
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def stand_in() -> Iterator[tuple[Script, str]]:
    script = Script()
    with serving(make_app(script)) as address:
        yield script, address


@pytest.fixture
def script(stand_in: tuple[Script, str]) -> Script:
    """The stand-in's script, as new."""
    stand_in[0].__dict__.update(Script().__dict__)
    return stand_in[0]


# Under load, the browser's own stand-in for a microphone skips sound. What the page was given is therefore noted, and
# what it sends is compared with that.
RECORDER = """
window.given = [];
window.AudioWorkletNode = class extends AudioWorkletNode {
    constructor(...options) {
        super(...options);
        this.port.addEventListener("message", ({ data }) => window.given.push(Array.from(data.samples)));
    }
};
"""


@pytest.fixture(scope="module")
def only_page(browser: Any) -> Any:
    """One page for all tests: opening another takes longer than most of them."""
    page = browser.new_context(permissions=["microphone"]).new_page()
    page.add_init_script(RECORDER)
    return page


@pytest.fixture
def opened(only_page: Any, stand_in: tuple[Script, str], script: Script) -> Iterator[Callable[..., Any]]:
    """Opens the page with nothing remembered; the test fails if the page had an error or asked another host."""
    page, address = only_page, stand_in[1]
    watch = Watch(page, address)

    def open_page(
        targets: Sequence[str] = ("de",),
        wait: str = "idle",
        size: tuple[int, int] = (1280, 720),
        **media: str,
    ) -> Any:
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(**({"color_scheme": "light", "reduced_motion": "no-preference"} | media))
        page.goto(f"{address}static/favicon.svg")
        remember = "(targets) => { localStorage.clear(); localStorage['choice:targets'] = targets; }"
        page.evaluate(remember, json.dumps(targets))
        page.goto(address)
        state(page, wait)
        return page

    yield open_page
    watch.end()
    assert watch.troubles == []


class Watch:
    """Notes what a page should not do."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.troubles: list[str] = []
        self.listeners: dict[str, Callable[[Any], None]] = {
            "pageerror": lambda error: self.troubles.append(str(error)),
            "console": lambda line: self.troubles.append(line.text) if "Policy" in line.text else None,
            "request": self.asked,
            "dialog": lambda dialog: dialog.accept(),  # of leaving the page with text on it
        }
        for event, listener in self.listeners.items():
            page.on(event, listener)

    def asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, f"blob:{self.address.rstrip('/')}")):
            self.troubles.append(f"asked {request.url}")

    def end(self) -> None:
        for event, listener in self.listeners.items():
            self.page.remove_listener(event, listener)

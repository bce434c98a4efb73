"""The page of the routes: Swagger UI out of a package, under the service's own policy, with keys."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sprachbund.serving.settings import Settings
from tests.serving.page.conftest import Watch
from tests.serving.page.looking import until
from tests.serving.page.test_page_access import PHONE, contrast, fits, luminance
from tests.serving.support import Running, noise, serving, tiny_model, wav

KEY = "a-key-of-some-length-0123456789"
PRESS_AGAIN_S = 5.0
SETTLED_S = 0.5
TRANSCRIPTIONS = "transcriptions_v1_audio_transcriptions_post"
COLOURS = """(names) => names.map((name) => {
    const text = document.querySelector(name);
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const layers = [];  // under the text, the nearest first; some let through what is below them
    for (let e = text; e; e = e.parentElement) layers.push(parts(getComputedStyle(e).backgroundColor));
    const under = layers.reduceRight(
        (below, [r, g, b, a = 1]) => [r, g, b].map((part, i) => a * part + (1 - a) * below[i]), [255, 0, 0]);
    return [parts(getComputedStyle(text).color).slice(0, 3), under];
})"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    with serving(Settings(port=0, key_file=keys), loader=tiny_model) as running:
        yield running


@pytest.fixture
def docs(browser: Any, service: Running) -> Iterator[Callable[..., Any]]:
    """Opens the page, for a visitor who has nothing cached; the test fails if it had an error or asked another host."""
    context = browser.new_context()
    page = context.new_page()
    watch = Watch(page, f"{service.url}/")

    def open_docs(size: tuple[int, int] = (1280, 900), **media: str) -> Any:
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(**({"color_scheme": "light"} | media))
        page.goto("about:blank")  # the same address with another fragment would not load again
        page.goto(f"{service.url}/docs")
        page.wait_for_selector(".opblock")
        return page

    yield open_docs
    watch.end()
    context.close()
    assert [trouble for trouble in watch.troubles if not trouble.startswith("asked data:")] == []


def give_key(page: Any, key: str) -> None:
    """By keyboard alone, as everything here."""
    page.focus("button.authorize")
    page.keyboard.press("Enter")
    page.focus(".auth-container input")
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    page.focus(".modal-ux .close-modal")
    page.keyboard.press("Enter")


def opened(page: Any, operation: str) -> str:
    """Opens a route by keyboard and returns its selector."""
    block = f"[id$={operation}]"
    page.focus(f"{block} .opblock-summary-control")
    page.keyboard.press("Enter")
    until(lambda: page.query_selector(f"{block} .execute"), f"the form of {operation}")
    # A form that is sent while its description still arrives may stay in progress for ever, with no request.
    page.wait_for_load_state("networkidle")
    time.sleep(SETTLED_S)
    return block


def executed(page: Any, block: str) -> tuple[int, str]:
    """Sends a form and returns the status and the body on the screen."""
    row, pressed = f"{block} .live-responses-table tr.response", -PRESS_AGAIN_S
    answers: list[str] = []
    page.on("response", lambda answer: answers.append(f"{answer.status} {answer.url}"))

    def answered() -> Any:
        # A form that is built anew while its description arrives loses a key pressed then, with or without the focus.
        nonlocal pressed
        has_focus = page.evaluate(f"document.activeElement.matches('{block} .execute')")
        if not has_focus or time.monotonic() - pressed > PRESS_AGAIN_S:
            page.focus(f"{block} .execute")
            page.keyboard.press("Enter")
            pressed = time.monotonic()
        return page.query_selector(row)

    until(
        answered,
        f"the answer in {block}",
        also=lambda: f"answers since: {answers}; {page.inner_text(block)!r}",
    )
    status = page.inner_text(f"{row} .response-col_status").split()[0]
    return int(status), page.inner_text(f"{row} .microlight")


def test_every_route_is_listed_and_has_a_form(docs: Callable[..., Any], service: Running) -> None:
    page = docs()
    paths = httpx.get(f"{service.url}/v1/openapi.json").json()["paths"]
    wanted = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    shown = page.evaluate("""[...document.querySelectorAll(".opblock-summary")].map((e) => [
        e.querySelector("[data-path]").dataset.path, e.querySelector(".opblock-summary-method").textContent])""")
    assert {(path, method) for path, method in shown} == wanted
    for control in page.query_selector_all(".opblock-summary-control"):
        control.focus()
        page.keyboard.press("Enter")
    until(lambda: len(page.query_selector_all(".execute")) == len(wanted), "a form for each")


def test_a_recording_is_sent_with_a_key_and_without_a_mouse(
    docs: Callable[..., Any], service: Running, tmp_path: Path
) -> None:
    sound = tmp_path / "a.wav"
    sound.write_bytes(wav(noise(1.0)))
    page = docs()
    block = opened(page, TRANSCRIPTIONS)
    page.set_input_files(f"{block} input[type=file]", sound)
    page.fill(
        f"{block} input[placeholder=model]", "tiny"
    )  # without a key it is not known which models there are
    page.fill(f"{block} input[placeholder=language]", "de")
    status, body = executed(page, block)
    assert (status, json.loads(body)["error"]["code"]) == (401, "no_api_key")
    give_key(page, KEY)
    page.fill(f"{block} input[placeholder=model]", "bundled")
    page.keyboard.press("Tab")
    page.click(f"{block} .btn-clear")
    status, body = executed(page, block)
    direct = httpx.post(
        f"{service.url}/v1/audio/transcriptions",
        data={"model": "bundled", "language": "de"},
        files={"file": ("a.wav", sound.read_bytes())},
        headers={"authorization": f"Bearer {KEY}"},
    )
    assert (status, json.loads(body)) == (200, direct.json())
    assert page.evaluate("Object.keys(localStorage).concat(Object.keys(sessionStorage))") == []
    assert KEY not in page.evaluate("document.cookie")


def test_other_routes_answer(docs: Callable[..., Any]) -> None:
    page = docs()
    assert json.loads(executed(page, opened(page, "health_health_get"))[1]) == {"status": "ok"}
    give_key(page, KEY)
    status, body = executed(page, opened(page, "models_v1_models_get"))
    assert (status, [model["id"] for model in json.loads(body)["data"]]) == (200, ["bundled"])
    assert executed(page, opened(page, "v1_text_translations_post"))[0] in (400, 404)


def test_its_colours_are_those_of_the_captions_and_legible(docs: Callable[..., Any]) -> None:
    texts = [".info .title", ".opblock-tag", ".opblock-summary-path", "p.back a"]
    for scheme, stored in (("light", None), ("dark", None), ("light", "dark")):
        page = docs(color_scheme=scheme)
        if stored:
            page.evaluate("localStorage.setItem('theme', 'dark')")
            page.reload()
            page.wait_for_selector(".opblock")
        pairs = page.evaluate(COLOURS, texts)
        page.evaluate("localStorage.clear()")
        assert all(contrast(text, under) >= 4.5 for text, under in pairs), (scheme, pairs)
        assert all((luminance(under) < 0.1) == ("dark" in (scheme, stored)) for _, under in pairs)


def test_it_fits_a_phone(docs: Callable[..., Any]) -> None:
    page = docs(size=PHONE)
    assert fits(page)
    opened(page, TRANSCRIPTIONS)
    assert fits(page)


def test_it_is_reached_from_the_captions(docs: Callable[..., Any], service: Running) -> None:
    page = docs()
    page.click("p.back a")
    until(lambda: page.query_selector("#docs"), "the captions")
    assert page.url == f"{service.url}/"
    assert page.evaluate("document.querySelector('#docs').href") == f"{service.url}/docs"

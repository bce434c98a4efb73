"""What the page is made of, read as text: no other host, nothing that a strict policy or a hostile text could turn
into code."""

import re
from typing import get_args

import pytest

from sprachbund.streaming.options import Policy
from tests.serving.page.server import PAGE

FILES = sorted(path for path in PAGE.iterdir() if path.suffix in {".html", ".js", ".css", ".svg"})
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, never fetched


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_other_host_is_named(path: object) -> None:
    source = PAGE.joinpath(str(path)).read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert not re.search(r"""(https?|wss?):?//[\w[]|["'(]//\w""", source)


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_there_is_no_inline_code_or_style(name: str) -> None:
    page = (PAGE / name).read_text(encoding="utf-8")
    assert not re.search(r"\son\w+\s*=", page)
    assert not re.search(r"\sstyle\s*=|<style", page)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".js"], ids=lambda path: path.name)
def test_text_never_becomes_markup_or_code(path: object) -> None:
    source = PAGE.joinpath(str(path)).read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", source
    )


def test_everything_the_page_asks_for_is_there() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in FILES}
    asked = set(re.findall(r'static/([\w.]+)"', " ".join(sources.values())))
    asked |= {name for source in sources.values() for name in re.findall(r'from "\./([\w.]+)"', source)}
    assert asked | {"index.html", "docs.html"} == set(sources)


def test_every_control_of_the_page_has_a_label() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    labelled = set(re.findall(r'<label[^>]* for="([\w-]+)"', page)) | {"file", "shortcuts"}
    assert set(re.findall(r'<(?:select|input)[^>]* id="([\w-]+)"', page)) == labelled


def test_the_policies_offered_are_those_there_are() -> None:
    source = (PAGE / "choices.js").read_text(encoding="utf-8")
    listed = source.split("const POLICIES = {")[1].split("};")[0]
    offered = [
        policy for policy in get_args(Policy) if policy != "frames"
    ]  # which "auto" means where it can be
    assert re.findall(r'^  "?([\w-]+)"?: \[', listed, re.MULTILINE) == offered

"""The page with a file, and what can be downloaded: against the commands' own writers, and through the form."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sprachbund.decoding.formats import render
from sprachbund.decoding.result import Segment, Translation
from sprachbund.text.segmentation import PHRASE_WORDS
from tests.decoding.test_cues import SENTENCES
from tests.serving.page.looking import choose, state, until
from tests.serving.page.server import Script

Open = Callable[..., Any]
SOUND = {"name": "a talk.mp3", "mimeType": "audio/mpeg", "buffer": b"not looked at by the page"}


def segment(number: int, text: str, start_s: float, end_s: float, **more: Any) -> str:
    return json.dumps(
        {
            "type": "transcript.text.segment", "id": number, "start": start_s, "end": end_s, "text": text,
            "source_language": "en", "dropped": None, "duration": 40.0, **more,
        }
    )  # fmt: skip


def answer(*segments: str) -> list[str]:
    delta = json.dumps({"type": "transcript.text.delta", "delta": "shown by its segment"})
    done = json.dumps({"type": "transcript.text.done", "text": "all", "duration": 40.0})
    return [*[event for one in segments for event in (delta, one)], done, "[DONE]"]


def test_a_file_goes_up_once_for_each_language_and_its_text_comes_down(opened: Open, script: Script) -> None:
    first = segment(0, "Eins <b>zwei</b>", 1.25, 3.5)
    script.answers = {
        "de": [answer(first, segment(1, "", 5.0, 6.0, dropped="repetition"), segment(2, "Drei", 30.0, 31.0))],
        "fr": [
            (429, {"error": {"message": "all places are taken"}}, {"Retry-After": "1"}),
            answer(segment(0, "Un deux", 1.25, 3.5), segment(1, "Trois", 30.0, 31.0)),
        ],
    }
    page = opened(targets=["de", "fr"])
    page.set_input_files("#file", SOUND)
    until(lambda: "Drei" in page.inner_text("#panes"), "text")
    until(lambda: "Trois" in page.inner_text("#panes"), "the second language, after a refusal")
    state(page, "idle")
    shown = page.evaluate("[...document.querySelectorAll('.committed')].map(e => e.textContent)")
    assert sorted(shown) == sorted(["Eins <b>zwei</b>", "", "Drei", "Un deux", "Trois"])
    assert "not shown: repetition" in page.inner_text("#panes")
    assert {form["target_language"] for form in script.forms} == {"de", "fr"}
    for form in script.forms:
        assert form.pop("target_language")
        assert form == {
            "file": ("a talk.mp3", SOUND["buffer"]),
            "model": "bundled",
            "response_format": "verbose_json",
            "stream": "true",
        }
    assert page.inner_text("#clock") == "0:40 of 0:40"
    with page.expect_download() as download:
        choose(page, ".pane:has(.text[lang=de]) .menu", "json")
    assert download.value.suggested_filename.startswith("a talk.")
    saved = json.loads(download.value.path().read_text())
    assert saved["recording"] == "a talk"
    assert [row["start_s"] for row in saved["segments"]] == [1.25, 5.0, 30.0]
    assert [row["dropped"] for row in saved["segments"]] == [None, "repetition", None]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            (413, {"error": {"message": "a talk.mp3 lasts 90000 s, and 14400 s are the most; cut it"}}, {}),
            "a talk.mp3 lasts 90000 s, and 14400 s are the most; cut it.",
        ),
        ((413, "of a proxy", {}), "The service answered 413. The file is too big. Choose a shorter"),
        (answer(segment(0, "Eins", 0.0, 1.0))[:-2], "broke off before its end"),
        (
            [segment(0, "Eins", 0.0, 1.0), json.dumps({"error": {"message": "half a file; send all of it"}})],
            "half a file; send all of it.",
        ),
        (["this is not JSON"], "JSON"),
    ],
)
def test_what_goes_wrong_is_said_and_text_that_came_stays(
    opened: Open, script: Script, broken: Any, said: str
) -> None:
    script.answers = [broken]
    page = opened()
    page.set_input_files("#file", SOUND)
    until(lambda: said in page.inner_text("#messages"), said)
    state(page, "idle")
    if isinstance(broken, list) and len(broken) > 1:
        assert "Eins" in page.inner_text("#panes")


def test_a_model_that_does_not_understand_is_said_beside_its_text(opened: Open, script: Script) -> None:
    warning = "20 of 24 s of speech were left out; for open speech take a public model"
    whole = answer(segment(0, "", 0.0, 20.0, dropped="out of domain"), segment(1, "Eins", 20.0, 24.0))
    done = json.dumps({**json.loads(whole[-2]), "warnings": [warning]})
    script.answers = [[*whole[:-2], done, "[DONE]"]]
    page = opened()
    page.set_input_files("#file", SOUND)
    until(lambda: f"{warning}." in page.inner_text("#messages"), "the warning")
    state(page, "idle")
    assert "Eins" in page.inner_text("#panes")
    assert "not shown: out of domain" in page.inner_text("#panes")


def test_text_that_was_not_saved_is_not_lost_without_a_question(opened: Open, script: Script) -> None:
    script.answers = [answer(segment(0, "Eins", 0.0, 1.0)), answer(segment(0, "Zwei", 0.0, 1.0))]
    page = opened()
    page.set_input_files("#file", SOUND)
    until(lambda: "Eins" in page.inner_text("#panes"), "text")
    state(page, "idle")
    page.set_input_files("#file", SOUND)
    page.click("#confirm button[value=cancel]")
    assert "Eins" in page.inner_text("#panes")
    page.set_input_files("#file", SOUND)
    page.click("#confirm button[value=ok]")
    until(lambda: "Zwei" in page.inner_text("#panes"), "the other text")
    assert "Eins" not in page.inner_text("#panes")


def test_text_in_a_language_that_was_not_saved_is_not_lost_either(opened: Open, script: Script) -> None:
    script.answers = {tag: [answer(segment(0, "Eins", 0.0, 1.0)) for _ in range(2)] for tag in ("de", "fr")}
    page = opened(targets=["de", "fr"])
    page.set_input_files("#file", SOUND)
    until(lambda: page.inner_text("#panes").count("Eins") == 2, "text")
    state(page, "idle")
    for target, asks in (("de", True), ("fr", False)):
        with page.expect_download():
            choose(page, f".pane:has(.text[lang={target}]) .menu", "txt")
        page.set_input_files("#file", {**SOUND, "buffer": b""})
        assert "a talk.mp3 is empty" in page.inner_text("#messages")
        assert page.inner_text("#panes").count("Eins") == 2
        page.set_input_files("#file", SOUND)
        if asks:
            page.click("#confirm button[value=cancel]")
    until(lambda: len(script.forms) == 4, "the second upload, without a question")
    state(page, "idle")


def test_panes_stand_in_the_order_of_the_languages(opened: Open) -> None:
    orders = """async (orders) => {
        const { Captions } = await import(new URL("static/captions.js", document.baseURI));
        const captions = new Captions(document.createElement("div"), () => {});
        return orders.map((order) => {
            captions.arrange(order, { targets: [] });
            return [...captions.root.children].map((pane) => pane.dataset.target);
        });
    }"""
    wanted = [
        ["de", "fr", "es"],
        ["fr", "es", "de"],
        ["es", "de"],
        ["de", "ja", "es"],
        ["ja", "es", "de", "fr"],
    ]
    assert opened().evaluate(orders, wanted) == wanted


def test_a_dropped_file_is_taken_and_two_are_not(opened: Open, script: Script) -> None:
    script.answers = [answer(segment(0, "Eins", 0.0, 1.0))]
    page = opened()
    drop = """(names) => {
        const transfer = new DataTransfer();
        for (const name of names) transfer.items.add(new File(["sound"], name));
        for (const type of ["dragenter", "dragover", "drop"]) {
            const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent(type, options));
        }
    }"""
    page.evaluate(drop, ["a.wav", "b.wav"])
    assert "2 files were dropped" in page.inner_text("#messages")
    page.evaluate(drop, ["a.wav"])
    until(lambda: "Eins" in page.inner_text("#panes"), "text")
    assert script.forms[0]["file"] == ("a.wav", b"sound")


def test_files_are_written_as_the_commands_write_them(opened: Open) -> None:
    recordings = [made_up(seed) for seed in range(60)]
    rows = [
        [
            {
                "start_s": s.start_s,
                "end_s": s.end_s,
                "committed": s.text,
                "dropped": s.dropped,
                "target": "de",
            }
            for s in recording.segments
        ]
        for recording in recordings
    ]
    page = opened()
    write = """async ([recordings, format]) => {
        const { render } = await import("/static/subtitles.js");
        return recordings.map((segments) => render(format, segments));
    }"""
    for name in ("srt", "vtt", "txt"):
        written = page.evaluate(write, [rows, name])
        assert written == [render(recording, name) for recording in recordings]


def test_lines_end_with_phrases_in_every_language(opened: Open) -> None:
    page = opened()
    words = page.evaluate("""async () => {
        const { PHRASE_WORDS } = await import("/static/phrases.js");
        return Object.entries(PHRASE_WORDS).map(([language, words]) => [language, [...words]]);
    }""")
    assert {language: frozenset(own) for language, own in words} == PHRASE_WORDS
    write = """async ([language, text]) => {
        const { render } = await import("/static/subtitles.js");
        const segment = { start_s: 0, end_s: 12, committed: text, dropped: null, target: language };
        return render("srt", [segment]);
    }"""
    for language, text in SENTENCES.items():
        segment = Segment(
            start_s=0.0, end_s=12.0, source_language=language, target_language=language, text=text
        )
        whole = Translation(
            segments=(segment,),
            source_language=language,
            target_language=language,
            duration_s=12.0,
            dropped=(),
        )
        assert page.evaluate(write, [language, text]) == render(whole, "srt")


def made_up(seed: int) -> Translation:
    """A recording with sentences, long words, other scripts, markup and gaps of every length."""
    rng = np.random.default_rng(seed)
    words = [
        "so",
        "Anfang,",
        "Ende.",
        "Straßenbahnhaltestelle",
        "日本語" * 25,
        "-->",
        "--->",
        "<i>",
        "a&b",
        "ja!",
        "😀😀",
        "und",
    ]
    begin, segments = 0.0, []
    for _ in range(int(rng.integers(1, 9))):
        begin += float(rng.choice([0.0, 0.05, 0.4, 7.0]))
        end = begin + float(rng.choice([0.02, 0.5, 4.0, 25.0]))
        text = " ".join(rng.choice(words, int(rng.integers(1, 40))))
        segments.append(
            Segment(start_s=begin, end_s=end, source_language="en", target_language="de", text=text)
        )
        begin = end
    return Translation(
        target_language="de", source_language="en", duration_s=begin, segments=tuple(segments), dropped=()
    )

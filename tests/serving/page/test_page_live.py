"""The page with a microphone: what is sent, what is shown, and what happens when the connection does not hold."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy.signal import fftconvolve, resample

from tests.serving.page.looking import RECORDINGS, choose, state, until
from tests.serving.page.server import Script, text

Open = Callable[..., Any]


def committed(page: Any, target: str = "de") -> str:
    return str(page.inner_text(f".pane[data-target={target}] .lines"))


def stop(page: Any) -> None:
    page.click("#start")
    state(page, "idle")


def test_sound_is_sent_as_it_was_and_text_is_shown_as_it_comes(opened: Open, script: Script) -> None:
    script.live = [
        (0.3, text("", "Guten Tag")),
        (0.6, text("Guten", " Morgen allerseits", delay_s=0.25)),
        (0.9, text(" Morgen", "", final=True, delay_s=1.25)),
        (0.9, text("", "<img src=x onerror=alert(1)>", segment=1, start_s=2.0, end_s=3.0)),
    ]
    page = opened()
    page.click("#start")
    until(lambda: "onerror" in committed(page), "tentative text")
    line = page.query_selector_all(".line")
    assert line[0].query_selector(".committed").inner_text() == "Guten Morgen"
    assert line[0].query_selector(".tentative").inner_text() == ""
    assert line[0].query_selector(".tag").inner_text() == "en"
    assert line[1].query_selector(".tentative").inner_text() == "<img src=x onerror=alert(1)>"
    assert page.query_selector(".lines img") is None
    assert page.inner_text("#delay-value") == "1.3 s"
    assert page.inner_text("#legend").split() == ["en", "English", "0:02"]
    until(lambda: len(heard(script)) > 2.5 * 16_000, "sound")
    stop(page)
    assert script.firsts == [
        {
            "type": "start", "model": "bundled", "targets": ["de"], "source": None, "languages": None,
            "policy": "auto", "settings": {"step_s": 1}, "encoding": "pcm_s16le", "sample_rate": 16000,
        }
    ]  # fmt: skip
    assert {len(frame) for frame in script.frames[:-1]} == {3200}
    assert is_all_that_was_given(page, script)
    assert is_the_recording(heard(script))


@pytest.mark.parametrize(("model", "settings"), [("bundled", {"step_s": 0.5}), ("other", {})])
def test_seconds_between_looks_are_for_models_that_look(
    opened: Open, script: Script, model: str, settings: dict[str, float]
) -> None:
    page = opened()
    page.click("#open-settings")
    page.select_option("#model", model)
    until(
        lambda: page.is_disabled('#policy option[value="alignatt"]') == (model == "other"),
        "the policies of the model",
    )
    assert page.is_enabled('#policy option[value="auto"]')
    page.fill("#step", "0.5")
    page.keyboard.press("Escape")
    page.click("#start")
    until(lambda: script.firsts, "the first message")
    stop(page)
    assert (script.firsts[0]["policy"], script.firsts[0]["settings"]) == ("auto", settings)


def heard(script: Script) -> np.ndarray:
    """What was sent from its first sound on: a microphone may begin with silence."""
    return np.trim_zeros(np.frombuffer(b"".join(script.frames), "<i2").astype(float), "f")


def is_all_that_was_given(page: Any, script: Script) -> bool:
    """Whether what was sent is what the microphone gave, in its order; the rest of a frame may come after the end."""
    given = b"".join(np.array(samples, "<i2").tobytes() for samples in page.evaluate("window.given"))
    sent = b"".join(script.frames)
    return given.startswith(sent) and len(given) - len(sent) < 3200


def is_the_recording(sent: np.ndarray) -> bool:
    """Whether half a second of what was sent is half a second of the recording, sample by sample but for its loudness.

    One is enough: a browser on a machine with other work gives silence in front and between.
    """
    original, size = spoken("en.wav"), 8000
    energy = np.sqrt(np.maximum(fftconvolve(original**2, np.ones(size), "valid"), 1.0))
    parts = [sent[begin : begin + size] for begin in range(0, len(sent) - size + 1, size // 2)]
    return any(
        (fftconvolve(original, part[::-1], "valid") / energy).max() > 0.9 * np.linalg.norm(part)
        for part in parts
        if np.abs(part).mean() > 100
    )


def spoken(name: str) -> np.ndarray:
    return soundfile.read(RECORDINGS / name, dtype="int16")[0].astype(float)


@pytest.mark.parametrize("rate", [0.5, 0.9, 1.1, 3.0])
def test_the_recording_at_another_rate_or_another_one_is_not_the_recording(rate: float) -> None:
    part = spoken("en.wav")[16_000:60_000]
    assert is_the_recording(np.concatenate([np.zeros(5_000), 0.5 * part]))
    assert not is_the_recording(resample(part, int(rate * len(part))))
    assert not is_the_recording(spoken("es.flac")[:44_000])


def test_settled_text_stays_where_it_is_whatever_is_tentative(opened: Open, script: Script) -> None:
    page = opened(reduced_motion="reduce")
    page.click("#start")
    state(page, "live")
    words = " und dann noch viele andere Worte die niemand behalten muss"
    boxes: list[Any] = []
    for segment in range(8):
        send(
            page,
            script,
            text(f"Das ist der Satz mit der Nummer {segment}.", "", segment=segment, final=segment < 7),
        )
    rows = "[...e.getClientRects()].map(r => [r.x, r.y, r.width])"
    place = f"[...document.querySelectorAll('.committed')].map(e => {rows})"
    for tentative in ("", words, words * 3, words[:20], "", words * 8):
        send(page, script, text("", tentative, segment=7))
        boxes.append(page.evaluate(place))
    assert len(boxes[0]) == 8
    assert all(box == boxes[0] for box in boxes)
    view = page.evaluate(
        "(() => { const s = document.querySelector('.scroller').getBoundingClientRect(); return [s.top, s.bottom]; })()"
    )
    assert view[0] < boxes[0][-1][-1][1] < view[1] - 60, "the last line is in view, with room below it"
    stop(page)


def send(page: Any, script: Script, message: dict[str, Any]) -> None:
    """Has the stand-in send a message now, and waits until the page has it."""
    before = script.seq
    script.live.append((0.0, message))
    until(lambda: script.seq > before, "the next frame")
    until(lambda: message["tentative"] in page.inner_text(".lines"), "its text")


LISTENER = """() => {
    window.heard = [];
    const hear = (changes) => changes.forEach(({ addedNodes }) =>
        addedNodes.forEach((node) => window.heard.push([node.lang, node.textContent])));
    new MutationObserver(hear).observe(document.getElementById("announcer"), { childList: true });
}"""


def test_only_settled_text_is_read_out(opened: Open, script: Script) -> None:
    script.live = [
        (0.2, text("", "Vielleicht")),
        (0.4, text("Sicher", " vielleicht")),
        (0.6, text(" ist sicher.", "", final=True)),
        (0.6, text("Sûr.", "", target="fr", final=True)),
    ]
    page = opened(targets=["de", "fr"])
    page.evaluate(LISTENER)
    page.click("#start")
    until(lambda: "Sûr." in committed(page, "fr"), "text")
    assert page.evaluate("window.heard") == [["de", "Sicher ist sicher."]]
    assert page.get_attribute("#announcer", "aria-live") == "polite"
    hidden = "[...document.querySelectorAll('.tentative')].every(e => e.ariaHidden === 'true')"
    assert page.evaluate(hidden)
    assert page.evaluate("document.querySelectorAll('.panes [aria-live]').length") == 0
    stop(page)


def test_right_to_left_text_runs_right_to_left(opened: Open, script: Script) -> None:
    script.live = [(0.2, text("صباح الخير جميعا", "", target="ar", final=True))]
    page = opened(targets=["ar"])
    page.click("#start")
    line = until(lambda: page.query_selector(".text"), "text")
    assert line.get_attribute("lang") == "ar"
    assert page.evaluate("document.querySelector('.text').matches(':dir(rtl)')")
    stop(page)


def test_after_a_break_no_sound_is_lost_and_no_text_comes_twice(opened: Open, script: Script) -> None:
    script.live = [(0.3, text("Eins", "")), (0.6, text(" zwei", "")), (2.5, text(" drei", "", final=True))]
    script.breaks_at_s = 0.8
    page = opened()
    page.click("#start")
    state(page, "reconnecting")
    assert page.inner_text("#state-text") == "Connection lost, coming back"
    until(lambda: "drei" in committed(page), "text after the break")
    stop(page)
    assert committed(page).split("\n")[-1] == "Eins zwei drei"
    assert [first["type"] for first in script.firsts] == ["start", "resume"]
    assert script.firsts[1] == {"type": "resume", "session": "s1", "after": 2}
    heard_s = int(page.inner_text("#clock").split(":")[1])
    assert heard_s <= script.received_s < heard_s + 1.1
    assert is_all_that_was_given(page, script)


def test_sound_that_had_to_go_is_added_up_until_the_connection_is_back(opened: Open) -> None:
    page = opened()
    lost = page.evaluate(
        """async () => {
        const { Live } = await import("/static/live.js");
        window.WebSocket = class extends EventTarget { send() {} close() {} };
        const lost = [], on = { state() {}, message() {}, closed() {}, lost: (s) => lost.push(s) };
        const live = new Live({ sample_rate: 1000 }, on);
        live.receive({ type: "started", session: "s1" });
        live.ready = false; // gone
        for (let s = 0; s < 78; s++) live.send(new Int16Array(1000));
        live.receive({ type: "started", session: "s1", received_s: 0 });
        return lost;
    }"""
    )
    assert lost == [1, 2, 3, 3]


def test_who_stops_while_the_key_is_asked_for_begins_no_session(opened: Open) -> None:
    """By a microphone that is unplugged, since the dialog is in front of the buttons."""
    page = opened()
    connected, closed = page.evaluate(
        """async () => {
        const { Listening } = await import("/static/session.js");
        const closed = [], on = { state() {}, message() {}, level() {}, lost() {}, closed: (e) => closed.push(e) };
        const listening = new Listening(() => ({ sample_rate: 1000 }), on);
        let connected = 0;
        listening.connect = () => connected++;
        listening.live = { stop() {}, abandon() {} };
        listening.microphone.close = async () => {};
        const asked = listening.againWithKey(new Error("a key is needed"));
        listening.unplugged();
        document.getElementById("key").value = "open sesame";
        document.getElementById("key-dialog").close("ok");
        await asked;
        return [connected, closed];
    }"""
    )
    assert (connected, closed) == (0, [None])


def test_a_session_that_is_gone_is_said_and_the_text_stays(opened: Open, script: Script) -> None:
    script.live, script.breaks_at_s = [(0.3, text("Eins", " zwei"))], 0.6
    page = opened()
    page.click("#start")
    until(lambda: "Eins" in committed(page), "text")
    script.gone = True
    state(page, "idle")
    assert "did not keep this session" in page.inner_text("#messages")
    assert "start again" in page.inner_text("#messages")
    assert committed(page).split("\n")[-1] == "Eins"


def test_sound_waits_while_the_service_says_so(opened: Open, script: Script) -> None:
    script.live = [(0.5, {"type": "pause"})]
    page = opened()
    page.click("#start")
    state(page, "held")
    assert page.inner_text("#state-text") == "Catching up"
    page.wait_for_timeout(300)  # frames may have been on their way
    before = len(script.frames)
    page.wait_for_timeout(600)
    assert len(script.frames) == before
    script.goes_on = True
    state(page, "live")
    until(lambda: len(script.frames) > before + 8 and script.received_s > 2.2, "what waited")
    stop(page)
    assert is_all_that_was_given(page, script)


def test_pause_sends_nothing_and_going_on_goes_on(opened: Open, script: Script) -> None:
    page = opened()
    page.keyboard.press(" ")
    until(lambda: script.received_s > 0.3, "sound")
    page.keyboard.press("p")
    state(page, "paused")
    assert page.get_attribute("#pause", "aria-pressed") == "true"
    page.wait_for_timeout(200)
    before = script.received_s
    page.wait_for_timeout(500)
    assert script.received_s == before
    page.keyboard.press("p")
    until(lambda: script.received_s > before, "sound again")
    page.keyboard.press("Escape")
    state(page, "idle")


def test_the_key_is_asked_for_used_and_kept_nowhere(opened: Open, script: Script) -> None:
    script.key = "open sesame"
    page = opened(wait="loading")
    for key in ("wrong", "open sesame"):
        page.fill("#key", key)
        page.click("#key-dialog button[value=ok]")
        page.wait_for_timeout(150)
    state(page, "idle")
    page.click("#start")
    state(page, "live")
    assert script.firsts[0]["key"] == "open sesame"
    stored = page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert "sesame" not in stored
    assert page.input_value("#key") == ""
    stop(page)


def test_refusals_and_notices_are_said_in_words_with_what_to_do(opened: Open, script: Script) -> None:
    overload = {
        "type": "notice",
        "kind": "overload",
        "message": "speech came too fast",
        "audio_s": 1.0,
        "lost_s": 2.5,
    }
    script.live = [
        (0.2, overload),
        (0.6, {"type": "error", "status": 429, "message": "16 sessions are open; come later"}),
    ]
    page = opened()
    page.click("#start")
    until(lambda: "left out" in page.inner_text("#messages"), "the notice")
    assert "speech came too fast. 2.5 seconds of sound were left out." in page.inner_text("#messages")
    state(page, "idle")
    assert "16 sessions are open; come later." in page.inner_text("#messages")


def test_a_model_that_does_not_understand_is_said_while_it_listens(opened: Open, script: Script) -> None:
    message = "30 of 31 s of speech were left out; for open speech take a public model"
    script.live = [(0.2, {"type": "notice", "kind": "warning", "message": message, "audio_s": 31.0})]
    page = opened()
    page.click("#start")
    until(lambda: f"{message}." in page.inner_text("#messages"), "the warning")
    stop(page)


def test_without_a_microphone_it_says_so(opened: Open) -> None:
    page = opened()
    none = "async () => { throw new DOMException('', 'NotFoundError'); }"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {none}; }}")
    page.click("#start")
    until(lambda: "No microphone was found" in page.inner_text("#messages"), "a message")
    state(page, "idle")


def test_listening_again_goes_on_behind_the_text_with_times_that_count_on(
    opened: Open, script: Script
) -> None:
    page = opened()
    for word in ("eins", "zwei"):
        script.frames = []
        script.live = [(0.3, text(word, "", final=True, start_s=0.1, end_s=0.3))]
        page.click("#start")
        until(lambda word=word: word in committed(page), "text")  # type: ignore[misc]
        stop(page)
    with page.expect_download() as download:
        choose(page, ".menu", "srt")
    starts = re.findall(r"(\d\d:\d\d:\d\d,\d{3}) -->", download.value.path().read_text())
    assert starts[0] == "00:00:00,100"
    assert starts[1] > "00:00:00,400"

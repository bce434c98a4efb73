"""The page and the real service with the bundled model: speech into the microphone, German words on the screen."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import sprachbund
from tests.serving.page.conftest import CHROMIUM, arguments
from tests.serving.page.looking import RECORDINGS, choose, state, until
from tests.serving.support import Running

HEARD_S = 12.0
FROM_S = 4.8  # the sentence before it is nearly out of domain, so that chance would decide
TIMES = r"(\d\d):(\d\d):(\d\d),(\d{3}) --> (\d\d):(\d\d):(\d\d),(\d{3})"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some seconds of one of the examples, behind a second of silence."""
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    samples, rate = soundfile.read(RECORDINGS / "en.wav", dtype="int16")
    silence = np.zeros(rate, np.int16)  # while the page opens the microphone
    spoken = samples[int(FROM_S * rate) :][: int((HEARD_S - 1) * rate)]
    soundfile.write(path, np.concatenate([silence, spoken]), rate)
    return path


@pytest.fixture
def page(browser: Any, recording: Path) -> Iterator[Any]:
    """A page of a browser whose microphone plays the recording."""
    launched = browser.browser_type.launch(executable_path=CHROMIUM, args=arguments(recording))
    yield launched.new_context(permissions=["microphone"]).new_page()
    launched.close()


@pytest.mark.slow
def test_speech_into_the_microphone_and_a_file_become_the_same_german_words(
    page: Any, running: Running, bundled: sprachbund.api.Model, recording: Path
) -> None:
    troubles: list[str] = []
    page.on("console", lambda line: troubles.append(line.text) if line.type == "error" else None)
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(running.url)
    state(page, "idle")
    choose_german(page)

    page.click("#start")
    until(lambda: clock_s(page) >= HEARD_S + 1.5, "all of it to be played", timeout_s=60)
    page.click("#start")
    state(page, "idle", timeout_s=60)
    heard = settled(page)
    offline = bundled.translate(recording, to="de").text.split()
    assert common(heard, offline) >= 0.8 * len(offline) > 4, (heard, offline)
    assert page.evaluate("[...document.querySelectorAll('.tentative')].every(e => e.textContent === '')")
    cues = subtitles(download(page, "srt"))
    assert " ".join(words for _, _, words in cues).split() == heard
    assert all(0 <= start < end <= HEARD_S + 2 for start, end, _ in cues)
    assert all(before[1] <= after[0] for before, after in pairwise(cues))

    page.set_input_files("#file", recording)
    state(page, "file")
    state(page, "idle", timeout_s=60)
    assert settled(page) == offline
    assert page.inner_text("#clock") == "0:12 of 0:12"

    page.set_input_files(
        "#file", {"name": "noise.mp3", "mimeType": "audio/mpeg", "buffer": bytes(range(256)) * 99}
    )
    page.click("#confirm button[value=ok]")
    until(lambda: "noise.mp3" in page.inner_text("#messages"), "why it is refused")
    print(page.inner_text("#messages"))
    assert [trouble for trouble in troubles if "400" not in trouble] == []


def choose_german(page: Any) -> None:
    page.click("#add-target")
    page.check("#picker-options input[value=de]")
    for other in page.query_selector_all("#picker-options input:checked:not([value=de])"):
        other.uncheck()
    page.click("#picker button[value=done]")


def clock_s(page: Any) -> int:
    minutes, seconds = page.inner_text("#clock").split(":")
    return 60 * int(minutes) + int(seconds)


def settled(page: Any) -> list[str]:
    """The words on the screen that stay."""
    texts = page.evaluate("[...document.querySelectorAll('.committed')].map(e => e.textContent)")
    return " ".join(texts).split()


def common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence of words."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row[:]
        for i, against in enumerate(other):
            row[i + 1] = before[i] + 1 if word == against else max(before[i + 1], row[i])
    return row[-1]


def download(page: Any, name: str) -> str:
    with page.expect_download() as result:
        choose(page, ".menu", name)
    assert result.value.suggested_filename == f"captions.de.{name}"
    return str(Path(result.value.path()).read_text(encoding="utf-8"))


def subtitles(text: str) -> list[tuple[float, float, str]]:
    """Cues of an .srt: (start, end, words); fails where it is not one."""
    cues = []
    for number, block in enumerate(text.rstrip("\n").split("\n\n"), 1):
        count, times, *lines = block.split("\n")
        parts = re.fullmatch(TIMES, times)
        assert int(count) == number
        assert parts is not None
        values = [int(part) for part in parts.groups()]
        start, end = (h * 3600 + m * 60 + s + ms / 1000 for h, m, s, ms in (values[:4], values[4:]))
        cues.append((start, end, " ".join(lines)))
    return cues

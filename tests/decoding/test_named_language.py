"""Speech that sounds like another language than the caller named: a warning, and the same text."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import DecodingOptions
from sprachbund.models.base import Memory
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveEvent, LiveNotice, LiveText
from sprachbund.streaming.options import LiveOptions
from tests.decoding.test_translate import LENIENT, SPEECH, Loudness, recording
from tests.decoding.tiny_family import LANGUAGES, TinyFamily

OPTIONS = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1)
FIVE = "5 of 5 spans of speech sound like fr (French), not like en (English), which was named"


class HearsFrench(TinyFamily):
    """A model that hears French, surely, in everything."""

    def __init__(self, *, says_so: bool = True) -> None:
        super().__init__(seed=3)
        self.capabilities = replace(self.capabilities, hears_language=says_so)

    def language_log_probs(self, memory: Memory) -> Tensor:
        assert self.capabilities.hears_language, (
            "what costs something is not asked where the language is known"
        )
        row = torch.full((len(LANGUAGES),), 0.01)
        row[LANGUAGES.index("fr")] = 0.98
        return row.log().expand(len(memory.states), -1)


def translated(family: TinyFamily, source: str):
    samples = recording(*SPEECH)
    return translate(family, samples, ["de"], source, OPTIONS, sample_rate=SAMPLE_RATE, activity=Loudness())[
        "de"
    ]


def live(
    family: TinyFamily, policy: str, source: str | None, allowed: list[str] | None = None
) -> list[LiveEvent]:
    engine = LiveEngine(family, OPTIONS, activity=Loudness())
    session = engine.open(["de"], source, LiveOptions(policy=policy), allowed_languages=allowed)
    events: list[LiveEvent] = []
    samples = recording(*SPEECH)
    for begin in range(0, len(samples), SAMPLE_RATE // 2):
        session.push(samples[begin : begin + SAMPLE_RATE // 2])
        while session.due:
            events += engine.step([session])[0]
    session.finish()
    while not session.finished:
        events += engine.step([session])[0]
    return events


def test_a_file_has_a_warning_and_the_same_text():
    warned, right = translated(HearsFrench(), "en"), translated(HearsFrench(), "fr")
    (warning,) = (one for one in warned.warnings if "sound like" in one)
    assert warning.startswith(FIVE)
    assert not any("sound like" in one for one in right.warnings)
    assert warned.text == translated(HearsFrench(says_so=False), "en").text != ""


@pytest.mark.parametrize("policy", ["span", "local-agreement"])
def test_a_live_session_is_warned_once_after_three_stretches(policy):
    events = live(HearsFrench(), policy, "en")
    notices = [e for e in events if isinstance(e, LiveNotice) and e.kind == "warning"]
    assert [notice.message.startswith(FIVE.replace("5 of 5", "3 of 3")) for notice in notices] == [True]
    before = [e for e in events[: events.index(notices[0])] if isinstance(e, LiveText) and e.final]
    assert len(before) < len(SPEECH)
    assert not [
        e for e in live(HearsFrench(), policy, "fr") if isinstance(e, LiveNotice) and e.kind == "warning"
    ]


@pytest.mark.parametrize("policy", ["span", "local-agreement"])
def test_a_live_session_is_warned_of_languages_that_may_not_be_spoken(policy):
    events = live(HearsFrench(), policy, None, ["de", "en"])
    (notice,) = (e for e in events if isinstance(e, LiveNotice) and e.kind == "warning")
    assert notice.message.startswith(
        "3 of 3 spans of speech sound like fr (French), and may only be de (German)"
    )

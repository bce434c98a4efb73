"""What a calibrated model does with speech that it does not understand: files, live text and warnings."""

import math
from dataclasses import replace

import jiwer
import numpy as np
import pytest
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.domain import LatestSpans, layers_read, span_signals, span_states
from sprachbund.decoding.guard import OUT_OF_DOMAIN, Understanding
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Memory, Target
from sprachbund.models.calibration import Calibration, Domain, HiddenUnit, mean_states
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveEvent, LiveNotice, LiveText
from sprachbund.streaming.options import LiveOptions
from tests.decoding.test_translate import LENIENT, SPEECH, Loudness, recording
from tests.decoding.tiny_family import TinyFamily

OPTIONS = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1)
WEIGHTS = [0.1 * (n - 8) for n in range(16)]
ALL, NONE = 20.0, -20.0


def calibrated(bias: float, threshold: float = 0.5) -> TinyFamily:
    """A model that understands nothing of what it hears (`ALL` is dropped), all of it, or something between."""
    family = TinyFamily(seed=3)
    domain = Domain(threshold=threshold, bias=bias, signals={"mean_log_probability": -0.5}, encoder=WEIGHTS)
    family.calibration = Calibration(domain=domain)
    return family


def translated(family: TinyFamily, options: DecodingOptions = OPTIONS):
    samples = recording(*SPEECH)
    return translate(family, samples, ["de"], "en", options, sample_rate=SAMPLE_RATE, activity=Loudness())[
        "de"
    ]


def live(family: TinyFamily) -> list[LiveEvent]:
    engine = LiveEngine(family, OPTIONS, activity=Loudness())
    session = engine.open(["de"], "en", LiveOptions(policy="local-agreement"))
    session.push(recording(*SPEECH))
    session.finish()
    events: list[LiveEvent] = []
    while not session.finished:
        events += engine.step([session])[0]
    return events


def test_the_probability_is_a_logistic_regression_with_the_last_spans_of_the_recording():
    family = calibrated(1.3, threshold=0.6)
    result, before = translated(family), []
    for segment in sorted(result.segments + result.dropped, key=lambda one: one.start_s):
        span = slice(round(segment.start_s * SAMPLE_RATE), round(segment.end_s * SAMPLE_RATE))
        memory = family.encode(family.features([recording(*SPEECH)[span]]))
        state = memory.states[0, : memory.num_frames[0]].mean(0).double().numpy()
        own = 1.3 + state @ np.array(WEIGHTS) - 0.5 * segment.mean_log_probability
        last = before[-4:]
        mean = np.average([b for b, _ in last], weights=[s for _, s in last]) if last else 0.0
        log_odds = own + np.clip(mean, 0, 3) * len(last) / 4
        assert segment.out_of_domain == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=0.02)
        before.append((own - math.log(0.6 / 0.4), segment.end_s - segment.start_s))
    assert len(before) > 1


def test_hidden_units_add_what_they_give_above_zero():
    units = [
        HiddenUnit(weight=2.0, bias=0.5, signals={"mean_log_probability": 1.0}, encoder=[1.0, 0.0]),
        HiddenUnit(weight=-1.0, bias=-9.0, signals={}, encoder=[0.0, 1.0]),
    ]
    domain = Domain(threshold=0.5, bias=0.25, hidden=units)
    [of_state] = domain.weigh_states(torch.tensor([[3.0, 4.0]]))
    assert of_state == [0.0, 3.0, 4.0]
    assert domain.log_odds(of_state, {"mean_log_probability": -1.0}) == 0.25 + 2 * (0.5 + 3 - 1)
    with pytest.raises(SprachbundError, match=r"mean_log_probability.*calibrate"):
        domain.log_odds(of_state, {})
    with pytest.raises(SprachbundError, match=r"2 weights.*3 values"):
        domain.weigh_states(torch.zeros(1, 3))
    with pytest.raises(SprachbundError, match=r"0 weights.*calibrate the model again"):
        Domain(threshold=0.5, bias=0.0).weigh_states(torch.zeros(1, 3))


def test_spans_of_one_kind_decide_together():
    latest, other = LatestSpans(), LatestSpans()
    assert latest.log_odds("de") == 0.0
    shifts = []
    for _ in range(6):
        latest.add("de", 20.0, 2.0)
        shifts.append(latest.log_odds("de"))
    assert shifts == [0.75, 1.5, 2.25, 3.0, 3.0, 3.0]  # however sure
    assert latest.log_odds("fr") == other.log_odds("de") == 0.0
    for _ in range(3):
        latest.add("de", -1.0, 0.5)
    assert latest.log_odds("de") == 3.0  # 2 s of 20 and 1.5 s of -1
    latest.add("de", -1.0, 0.5)
    assert latest.log_odds("de") == 0.0


def test_attempts_at_speech_that_goes_on_count_until_it_has_ended():
    latest = LatestSpans()
    for _ in range(4):
        latest.add("de", 2.0, 3.0, ended=False)
    assert (latest.log_odds("de", ended=False), latest.log_odds("de")) == (2.0, 0.0)
    assert latest.log_odds("fr", ended=False) == 0.0
    latest.add("de", 1.0, 5.0)
    assert latest.log_odds("de", ended=False) == latest.log_odds("de") == 0.25  # the span alone
    for _ in range(4):
        latest.add("de", -2.0, 3.0, ended=False)
    assert latest.log_odds("de", ended=False) == 0.25, "what is understood takes nothing away"


def test_means_leave_out_padding_and_the_silence_of_a_filled_window():
    states = torch.randn(2, 6, 3)
    by_frames = mean_states(states, torch.tensor([4, 6]), [9.0, 9.0], 0.5)
    by_seconds = mean_states(states, None, [1.8, 30.0], 0.5)
    expected = torch.stack([states[0, :4].mean(0), states[1].mean(0)])
    torch.testing.assert_close(by_frames, expected)
    torch.testing.assert_close(by_seconds, expected)


def test_layers_in_the_middle_of_the_encoder_can_be_read():
    states, means = torch.randn(2, 6, 3), torch.randn(2, 9, 3)
    memory = Memory(states=states, num_frames=torch.tensor([4, 6]), layer_means=means)
    assert layers_read(memory) == [3, 6, 8]
    read = span_states(memory, [9.0, 9.0], 0.5, [3, 8])
    assert torch.equal(read, torch.cat([means[:, 3], means[:, 8]], dim=1))
    last = mean_states(states, memory.num_frames, [9.0, 9.0], 0.5)
    assert torch.equal(span_states(memory, [9.0, 9.0], 0.5, []), last)
    assert torch.equal(memory.select(torch.tensor([1])).layer_means, means[1:])
    with pytest.raises(SprachbundError, match=r"layer 9 of the encoder.*layers 0 to 8; calibrate"):
        span_states(memory, [9.0, 9.0], 0.5, [9])
    none = replace(memory, layer_means=None)
    assert layers_read(none) == []
    with pytest.raises(SprachbundError, match=r"layer 8 of the encoder.*no layers; calibrate"):
        span_states(none, [9.0, 9.0], 0.5, [3, 8])


def test_what_is_not_understood_is_dropped_and_a_public_model_is_named():
    result = translated(calibrated(ALL))
    assert result.text == ""
    assert result.dropped
    assert all(segment.dropped.startswith(OUT_OF_DOMAIN) for segment in result.dropped)
    assert all(segment.out_of_domain > 0.99 for segment in result.dropped)
    advice = [warning for warning in result.warnings if "--model" in warning]
    assert len(advice) == 1
    assert "translate FILE --to de --model whisper-large-v3-turbo --then m2m100-418m" in advice[0]
    assert result.to_dict()["dropped"][0]["out_of_domain"] > 0.99


def test_a_model_without_calibration_and_one_that_understands_write_the_same():
    plain, calm = translated(TinyFamily(seed=3)), translated(calibrated(NONE))
    assert plain.text == calm.text != ""
    assert {segment.out_of_domain for segment in plain.segments} == {None}
    assert not [warning for warning in calm.warnings if "--model" in warning]


def test_the_threshold_is_an_option_and_one_switches_it_off():
    family = calibrated(0.0, threshold=1.0)
    assert not translated(family).dropped
    strict = replace(OPTIONS, guard=replace(LENIENT, max_out_of_domain=0.0))
    assert not translated(family, strict).segments
    off = replace(OPTIONS, guard=replace(LENIENT, max_out_of_domain=1.0))
    assert translated(calibrated(ALL), off).text == translated(TinyFamily(seed=3)).text
    with pytest.raises(SprachbundError, match=r"not calibrated.*sprachbund calibrate"):
        translated(TinyFamily(seed=3), strict)


def test_live_text_of_what_is_not_understood_is_dropped_with_one_warning():
    events = live(calibrated(ALL))
    texts = [event for event in events if isinstance(event, LiveText)]
    assert not any(event.committed or event.tentative for event in texts)
    ends = [event for event in texts if event.final]
    assert ends
    assert all(event.dropped.startswith(OUT_OF_DOMAIN) for event in ends)
    (notice,) = [e for e in events if isinstance(e, LiveNotice) and e.kind != "overload"]
    assert notice.kind == "warning"
    assert "--model whisper-large-v3-turbo" in notice.message
    heard_s = sum(event.end_s - event.start_s for event in ends)
    assert notice.message.startswith(f"of {heard_s:.0f} s of speech, {heard_s:.0f} were left out")
    assert events.index(notice) < events.index(ends[-1])


def test_a_warning_comes_at_the_end_though_the_last_stretch_ended_before():
    engine = LiveEngine(calibrated(ALL), OPTIONS, activity=Loudness())
    session = engine.open(["de"], "en", LiveOptions(policy="span"))
    session.push(recording(*SPEECH))
    events = [event for _ in SPEECH if session.due for event in engine.step([session])[0]]
    assert not session.due
    assert {event.segment for event in events if isinstance(event, LiveText) and event.final} == {
        0,
        1,
        2,
        3,
        4,
    }
    assert not any(event.kind == "warning" for event in events if isinstance(event, LiveNotice))
    session.finish()
    assert session.due
    (notice,) = engine.step([session])[0]
    assert isinstance(notice, LiveNotice)
    assert "were left out: they are not of the kind that this model knows" in notice.message
    assert session.finished


def test_live_text_of_what_is_understood_is_as_without_calibration():
    def words(events):
        return [event.committed for event in events if isinstance(event, LiveText)]

    assert words(live(calibrated(NONE))) == words(live(TinyFamily(seed=3)))


def test_most_speech_has_to_be_left_out_for_a_warning_and_silence_does_not_count():
    family, heard = calibrated(ALL), Understanding(["de"])
    heard.add(5.0, None, 0.2)
    heard.add(4.0, f"{OUT_OF_DOMAIN}: probability 0.99", 0.99)
    heard.add(60.0, "no speech: voice activity 0.10", 0.99)
    assert heard.warning(family) is None
    heard.add(2.0, "guessing: mean log-probability -3.00", 0.1)
    assert heard.warning(TinyFamily()) is None
    assert heard.warning(family).startswith("of 11 s of speech, 6 were left out: they are not")


def test_less_than_a_second_of_speech_is_not_none_in_the_warning():
    heard = Understanding(["de"])
    heard.add(0.42, f"{OUT_OF_DOMAIN}: probability 0.99", 0.99)
    assert heard.warning(calibrated(ALL)).startswith("of 0.4 s of speech, 0.4 were left out")


def test_text_that_is_likely_wrong_is_not_understood_either():
    family, heard = calibrated(ALL), Understanding(["de"])
    heard.add(5.0, None, 0.5)
    heard.add(4.0, None, 0.51)
    assert heard.warning(family) is None
    heard.add(2.0, f"{OUT_OF_DOMAIN}: probability 0.99", 0.99)
    assert heard.warning(family).startswith(
        "of 11 s of speech, 2 were left out and 4 have a text that is likely wrong: they are not"
    )


def test_a_warning_is_of_all_targets_together():
    family = calibrated(ALL)
    written, both = Understanding([TRANSCRIBE]), Understanding(["de", "fr"])
    written.add(4.0, f"{OUT_OF_DOMAIN}: probability 0.99", 0.99)
    for _ in both.targets:
        both.add(4.0, f"{OUT_OF_DOMAIN}: probability 0.99", 0.99)
    assert "transcribe FILE --model whisper" in written.warning(family)
    assert both.warning(family).startswith("of 4 s of speech, 4 were left out")
    assert "translate FILE --to de,fr --model whisper" in both.warning(family)


def test_a_calibration_of_another_width_is_an_error():
    family = calibrated(0.0)
    domain = Domain(threshold=0.5, bias=0, signals={}, encoder=[1.0] * 7)
    family.calibration = Calibration(domain=domain)
    with pytest.raises(SprachbundError, match=r"7 weights.*16 values"):
        translated(family)


def test_a_calibration_with_signals_of_another_model_is_an_error():
    family = calibrated(0.0)
    domain = family.calibration.domain.model_copy(update={"signals": {"ctc_disagreement": 1.0}})
    family.calibration = Calibration(domain=domain)
    with pytest.raises(SprachbundError, match=r"ctc_disagreement.*calibrate"):
        translated(family)


class Head:
    """A CTC head that has no idea, and writes one text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def transcript_log_probs(self, memory):
        return torch.full((*memory.states.shape[:2], 3), 1 / 3).log()

    def decode_transcript(self, tokens):
        return self.text


def test_the_signal_of_a_ctc_head_is_how_far_it_is_from_the_transcript_of_the_decoder():
    family = TinyFamily(seed=3)
    memory = family.encode(family.features([recording(*SPEECH)[:16000], recording(*SPEECH)[:32000]]))
    durations_s = [1.0, 2.0]
    asked = [[Target(language=tag, source=tag)] for tag in ("en", "de")]
    texts = [family.decode_text(h.tokens) for (h,) in search(family, memory, asked, durations_s=durations_s)]
    assert len(set(texts)) == 2
    family.capabilities = replace(family.capabilities, transcript_head=Head(texts[0]))
    first, second = span_signals(family, memory, ["en", "de"], durations_s)
    assert first == {"ctc_disagreement": 0.0}
    out = jiwer.process_characters(texts[1], texts[0])
    edits = out.substitutions + out.deletions + out.insertions
    assert second["ctc_disagreement"] == pytest.approx(edits / max(map(len, texts)))

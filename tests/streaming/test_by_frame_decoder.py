"""A model that writes one token for every frame: live text is that of the whole, alone and together, for any blocks."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions, GuardOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.kyutai import Kyutai
from sprachbund.models.voxtral_realtime import VoxtralRealtime
from sprachbund.streaming.by_frames import TokenStream
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.session import LiveSession
from tests.decoding.test_translate import Loudness, recording
from tests.models.kyutai import support as kyutai
from tests.models.voxtral_realtime import support as voxtral_realtime

Model = VoxtralRealtime | Kyutai
SPEECH = [(1.0, 4.5), (6.0, 7.0), (9.0, 16.0)]
OPEN = DecodingOptions(guard=GuardOptions(enabled=False))


@pytest.fixture(scope="module", params=["Voxtral Realtime", "Kyutai STT"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    root = tmp_path_factory.mktemp("checkpoint")
    if request.param == "Voxtral Realtime":
        return voxtral_realtime.make(root).model
    return kyutai.make(root).model.double()  # no code lies between two entries by as much as sums differ


def opened(engine: LiveEngine) -> LiveSession:
    return engine.open(["fr"], "fr")


def hear(
    engine: LiveEngine, sessions: Sequence[LiveSession], talks: Sequence[np.ndarray], block: int
) -> list[list[str]]:
    """The texts of the stretches of every session, their sound given in blocks."""
    result: list[dict[int, str]] = [defaultdict(str) for _ in sessions]

    def step() -> None:
        for own, events in zip(result, engine.step(sessions), strict=True):
            for event in events:
                assert isinstance(event, LiveText), event
                assert event.tentative == ""
                own[event.segment] += event.committed

    for begin in range(0, max(map(len, talks)), block):
        for session, samples in zip(sessions, talks, strict=True):
            session.push(samples[begin : begin + block])
        step()
    for session in sessions:
        session.finish()
    while not all(session.finished for session in sessions):
        step()
    return [[own[number].strip() for number in sorted(own)] for own in result]


def whole(model: Model, samples: np.ndarray) -> list[str]:
    result = translate(model, samples, ["fr"], "fr", OPEN, sample_rate=SAMPLE_RATE, activity=Loudness())
    return [segment.text for segment in result["fr"].segments]


@pytest.mark.slow
@pytest.mark.parametrize("block", [400, 1777, 40_000])
def test_live_text_is_that_of_the_whole(model: Model, block: int) -> None:
    samples = recording(*SPEECH, seed=4)
    engine = LiveEngine(model, OPEN, activity=Loudness())
    expected = whole(model, samples)
    assert hear(engine, [opened(engine)], [samples], block) == [expected]
    assert all(len(text) > 5 for text in expected)


@pytest.mark.slow
def test_streams_together_write_what_each_writes_alone(model: Model) -> None:
    talks = [recording(*SPEECH[n:], seed=n) for n in range(3)]
    engine = LiveEngine(model, OPEN, activity=Loudness())
    together = hear(engine, [opened(engine) for _ in talks], talks, 3200)
    assert together == [whole(model, samples) for samples in talks]


def test_text_comes_while_somebody_speaks_as_late_as_the_delay_says(model: Model) -> None:
    engine, samples = (
        LiveEngine(model, OPEN, activity=Loudness()),
        recording((0.5, 8.0), duration_s=9.0, seed=3),
    )
    session, first_s = opened(engine), 0.0
    for begin in range(0, len(samples), 1280):
        session.push(samples[begin : begin + 1280])
        if any(isinstance(event, LiveText) and event.committed for event in engine.step([session])[0]):
            first_s = session.audio_s
            break
    begin_s = 0.5
    assert (
        0 < first_s < begin_s + (model.delay + 8) * model.frame_s
    )  # voice activity and a token or so behind it


def test_speech_without_a_pause_holds_a_bounded_memory(model: Model) -> None:
    engine, samples = LiveEngine(model, OPEN, activity=Loudness()), recording((0.5, 20.0), duration_s=21.0)
    session, sizes, most = opened(engine), set[int](), 0
    for begin in range(0, len(samples), 3200):
        session.push(samples[begin : begin + 3200])
        engine.step([session])
        if (stretch := session._open) is not None:
            most = max(most, len(stretch.samples))
            assert stretch.number == 0
            if begin > 5 * SAMPLE_RATE:
                assert isinstance(stretch.stream, TokenStream)
                sizes.add(sum(tensor.numel() for tensor in stretch.stream.state.tensors().values()))
    assert most < 3 * SAMPLE_RATE
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("options", "targets", "message"),
    [
        (LiveOptions(right_context=3), ["fr"], "frames behind"),
        (LiveOptions(policy="alignatt"), ["fr"], "auto, frames, span"),
        (LiveOptions(), ["fr", "en"], "the pair fr to en"),
        (LiveOptions(), [TRANSCRIBE], "name the language spoken"),
    ],
)
def test_what_cannot_be_is_said_when_a_session_opens(
    model: Model, options: LiveOptions, targets: list[str], message: str
) -> None:
    engine = LiveEngine(model, OPEN, activity=Loudness())
    with pytest.raises(SprachbundError, match=message):
        engine.open(targets, "fr", options)


def test_words_get_times_in_recordings_and_are_refused_live(model: Model) -> None:
    engine = LiveEngine(model, OPEN, activity=Loudness())
    with pytest.raises(SprachbundError, match="before words have ended"):
        engine.open(["fr"], "fr", word_timestamps=True)


@pytest.mark.parametrize(
    "field",
    [{"beam_size": 3}, {"min_tokens": 2}, {"prompt": "Zug"}, {"hot_words": ("Zug",)}, {"timestamps": True}],
)
def test_options_that_have_no_place_are_refused(model: Model, field: dict[str, object]) -> None:
    options = DecodingOptions(guard=GuardOptions(enabled=False), **field)  # type: ignore[arg-type]
    with pytest.raises(SprachbundError, match=model.name):
        translate(
            model, recording(*SPEECH), ["fr"], "fr", options, sample_rate=SAMPLE_RATE, activity=Loudness()
        )


@torch.inference_mode()
def test_times_of_words_are_those_of_the_speech(model: Model) -> None:
    options = DecodingOptions(guard=GuardOptions(enabled=False), word_timestamps=True)
    samples = recording((1.0, 4.5), duration_s=6.0, seed=4)
    result = translate(model, samples, ["fr"], "fr", options, sample_rate=SAMPLE_RATE, activity=Loudness())
    (segment,) = result["fr"].segments
    speech = samples[round(segment.start_s * SAMPLE_RATE) : round(segment.end_s * SAMPLE_RATE)]
    memory = model.encode(model.features([speech]))
    written, _ = model.write_frames(memory.states, model.start_frames(1))
    first = model.is_text(written.tokens[0]).nonzero()[0]
    expected = segment.start_s + max(0, int(first) - model.lead - model.delay) * model.frame_s
    assert segment.words[0].start_s == pytest.approx(expected, abs=1e-6)

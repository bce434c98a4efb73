"""Declared languages reach the router, from Python, the command line and evaluation; results say which is where."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sprachbund.api import Model
from sprachbund.audio.spans import Span
from sprachbund.cli import main
from sprachbund.decoding.encoding import encode
from sprachbund.decoding.languages import LanguageTracker, read_request
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.pipeline import translate_spans
from sprachbund.decoding.recordings import RecordedSpan, RecordingState
from sprachbund.decoding.result import Segment
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import BatchDecoder
from sprachbund.models.speech_llm import SpeechLLM, save
from sprachbund.models.speech_llm.objective import RoutedMemory
from sprachbund.serving.schemas import segment_values
from tests.models.speech_llm_support import make_model, speech
from tests.stories.support import speech as spoken
from tests.stories.support import write_wav

KEEP = DecodingOptions(guard=GuardOptions(enabled=False), max_tokens=6)


@pytest.fixture(scope="module")
def model() -> SpeechLLM:
    """Its groups are es, en with de, and zh."""
    return make_model()


@pytest.fixture(scope="module")
def directory(model: SpeechLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("declared")
    save(model, folder / "model")
    write_wav(folder / "talk.wav", spoken())
    return folder


def declared(model: SpeechLLM, tags: list[tuple[str, ...] | None], source: str | None = None) -> RoutedMemory:
    memory = encode(model, model.features(speech(*[1.0] * len(tags))), [source] * len(tags), tags)
    assert isinstance(memory, RoutedMemory)
    return memory


@torch.no_grad()
def test_groups_of_undeclared_languages_get_nothing(model: SpeechLLM) -> None:
    mass = declared(model, [("es",), ("de", "zh"), None]).group_probs.amax(1)
    assert (mass[0, 1:] == 0).all()
    assert mass[1, 0] == 0
    assert (mass[1, 1:] > 0).all()
    assert (mass[2] > 0).all()
    given = declared(model, [("zh",)], source="es").group_probs.amax(1)
    assert (given[0] > 0).tolist() == [True, False, True], "the language given occurs too"
    wanted = model.encode(model.features(speech(1.0)), languages=("es",))
    alone = declared(model, [("es",)])
    torch.testing.assert_close(alone.states, wanted.states)


@torch.no_grad()
def test_neighbours_in_a_batch_do_not_matter(model: SpeechLLM) -> None:
    asked: list[tuple[str, ...] | None] = [("es",), ("zh", "en"), None]
    sounds = speech(1.2, 0.8, 1.5)
    spans = [
        RecordedSpan(
            recording=recording(model, tags),
            span=Span(start_s=3.0, end_s=3.0 + len(x) / 16_000, speech_probability=1.0),
            samples=x,
        )
        for tags, x in zip(asked, sounds, strict=True)
    ]
    together = translate_spans(model, spans)
    for one, row in zip(spans, together, strict=True):
        assert [s.to_dict() for _, s in translate_spans(model, [one])[0]] == [s.to_dict() for _, s in row]
    names = {None: {"es", "en+de", "zh"}, ("es",): {"es"}, ("zh", "en"): {"en+de", "zh"}}
    for tags, one, row in zip(asked, spans, together, strict=True):
        (_, segment), *_ = row
        assert segment.spans[0].start_s == pytest.approx(3.0)
        assert segment.spans[-1].end_s == pytest.approx(one.span.end_s)
        assert {span.language for span in segment.spans} <= names[tags]


def recording(model: SpeechLLM, tags: tuple[str, ...] | None) -> RecordingState:
    request = read_request(model, source=None, targets=["en"], allowed=tags)
    return RecordingState(
        request=request, options=KEEP, tracker=LanguageTracker(model.source_languages, tags, 3)
    )


def test_spans_are_in_the_json_and_come_back(model: SpeechLLM, directory: Path) -> None:
    translation = Model(model, name="tiny").translate(
        directory / "talk.wav", to="en", languages=["es", "zh"], options=KEEP
    )
    (segment,) = (*translation.segments, *translation.dropped)
    assert {span.language for span in segment.spans} <= {"es", "zh"}
    assert segment.source_language in ("es", "zh")
    values = json.loads(translation.to_json())
    (stored,) = (*values["segments"], *values["dropped"])
    assert stored["spans"][0]["start_s"] == pytest.approx(segment.start_s, abs=1e-3)
    assert Segment.from_dict(stored).to_dict() == stored
    assert segment_values(segment, 0)["spans"][-1]["language"] == segment.spans[-1].language
    del stored["spans"]
    assert Segment.from_dict(stored).spans == ()


def test_a_source_is_one_of_the_languages_that_may_be_spoken(model: SpeechLLM) -> None:
    """Beside a source, they say which experts are left; other models have no use for them."""
    both = read_request(model, source="es", targets=["en"], allowed=["zh", "es"])
    assert (both.source, both.allowed) == ("es", ("zh", "es"))
    with pytest.raises(SprachbundError, match=r"the source is es, .* may be spoken are zh; add es to them"):
        read_request(model, source="es", targets=["en"], allowed=["zh"])


def test_languages_in_two_places_have_to_be_the_same(model: SpeechLLM, directory: Path) -> None:
    both = DecodingOptions(allowed_languages=("es",))
    Model(model, name="tiny").transcribe(directory / "talk.wav", languages="es", options=both)
    with pytest.raises(
        SprachbundError, match=r"languages are zh, and options.allowed_languages are es; give one"
    ):
        Model(model, name="tiny").transcribe(directory / "talk.wav", languages=["zh"], options=both)


def test_the_command_line_declares_them(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "translate",
        str(directory / "talk.wav"),
        "--model",
        str(directory / "model"),
        "--to",
        "en",
        "--no-guard",
    ]
    command += ["--max-tokens", "6", "--json"]
    assert main([*command, "--languages", "zh,Spanish"]) == 0
    values = json.loads(capsys.readouterr().out)
    spans = [span for segment in (*values["segments"], *values["dropped"]) for span in segment["spans"]]
    assert {span["language"] for span in spans} <= {"zh", "es"}
    assert main([*command, "--languages", "es,fr"]) != 0
    said = capsys.readouterr().err
    assert (
        "the language 'fr' has no group of experts in this model; it has groups for de (German), en (English)"
        in said
    )


def test_evaluation_declares_them(model: SpeechLLM) -> None:
    decoder = BatchDecoder(model, DecodingOptions(allowed_languages=("zh",), max_tokens=4))
    ((_, evidence),) = decoder.decode(speech(1.0), [["en"]], [None])[0]
    assert {route.language for route in evidence.routes} == {"zh"}
    assert np.isfinite(evidence.mean_log_probability)

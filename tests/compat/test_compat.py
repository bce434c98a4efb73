"""Programs for openai-whisper and faster-whisper: their arguments, their results, and what is refused."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sprachbund
from sprachbund.audio.load import load as load_audio
from sprachbund.compat import faster_whisper, whisper
from sprachbund.compat.arguments import FALLBACK, NAMES, TranscribeArguments, span_options, temperatures
from sprachbund.decoding.guard import drop_reason
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.result import Segment
from sprachbund.errors import SprachbundError
from sprachbund.models.catalogue import CATALOGUE

SEGMENT = Segment(start_s=0.0, end_s=9.0, source_language="en", target_language="en", text="")
RECORDING = Path(__file__).parents[2] / "examples" / "recordings" / "en.wav"


@pytest.fixture(scope="module")
def short() -> np.ndarray:
    return load_audio(RECORDING, 0.0, 12.0)


@pytest.fixture(scope="module")
def openai() -> whisper.Whisper:
    return whisper.load_model("bundled", device="cpu")


@pytest.fixture(scope="module")
def faster() -> faster_whisper.WhisperModel:
    return faster_whisper.WhisperModel("bundled", device="cpu", compute_type="float32")


def test_short_names_are_those_of_the_catalogue() -> None:
    known = {one.alias for one in CATALOGUE} | {one.id for one in CATALOGUE}
    for name in ("tiny", "small", "medium", "large-v2", "large-v3", "large", "turbo", "large-v3-turbo"):
        assert NAMES[name] in known
    assert NAMES["large-v3-turbo"] == NAMES["turbo"] == "whisper-large-v3-turbo"
    assert set(NAMES) == set(whisper.available_models())


def test_faster_whisper_finds_models_and_reads_recordings() -> None:
    assert set(NAMES) == set(faster_whisper.available_models())
    assert Path(faster_whisper.download_model("bundled"), "card.json").is_file()
    with pytest.raises(SprachbundError, match=r"output_dir='models' of faster-whisper is not served"):
        faster_whisper.download_model("tiny", "models")
    with RECORDING.open("rb") as file:
        assert np.array_equal(faster_whisper.decode_audio(file), load_audio(RECORDING))
    assert np.array_equal(faster_whisper.decode_audio(str(RECORDING)), load_audio(RECORDING))
    with pytest.raises(SprachbundError, match="split_stereo=True"):
        faster_whisper.decode_audio(str(RECORDING), split_stereo=True)


def test_openai_whisper_gives_its_dictionary(openai: whisper.Whisper, short: np.ndarray) -> None:
    result = openai.transcribe(short, language="en", word_timestamps=True, fp16=False)
    expected = openai.model.transcribe(short, source="en", sample_rate=16_000)
    assert result.keys() == {"text", "segments", "language"}
    assert result["text"] == f" {expected.text}"
    assert result["language"] == "en"
    assert [segment["id"] for segment in result["segments"]] == list(range(len(expected.segments)))
    for segment, own in zip(result["segments"], expected.segments, strict=True):
        assert (segment["start"], segment["end"]) == (own.start_s, own.end_s)
        assert segment["avg_logprob"] == pytest.approx(own.mean_log_probability, abs=1e-5)
        assert "".join(word["word"] for word in segment["words"]) == segment["text"] == f" {own.text}"
        assert openai.model.family.decode_text(segment["tokens"]).strip() == own.text
        keys = "id seek start end text tokens temperature avg_logprob compression_ratio no_speech_prob words"
        assert segment.keys() == set(keys.split())
    json.dumps(result)


def test_a_tensor_and_a_path_are_heard_as_an_array_is(
    openai: whisper.Whisper, short: np.ndarray, tmp_path: Path
) -> None:
    text = openai.transcribe(short, language="en")["text"]
    assert openai.transcribe(torch.from_numpy(short), language="en")["text"] == text
    integers = (short * 32_767).astype(np.int16)
    own = openai.model.transcribe(integers, source="en", sample_rate=16_000)
    assert openai.transcribe(integers, language="en")["text"] == f" {own.text}"
    with pytest.raises(SprachbundError, match="divide 16-bit numbers by 32768"):
        openai.transcribe(integers.astype(np.float32))
    assert whisper.load_audio(str(RECORDING)).shape == load_audio(RECORDING).shape


def test_translation_is_into_english(openai: whisper.Whisper) -> None:
    spanish = load_audio(RECORDING.with_name("es.flac"), 0.0, 12.0)
    result = openai.transcribe(spanish, language="es", task="translate")
    assert (
        result["text"].strip() == openai.model.translate(spanish, "en", source="es", sample_rate=16_000).text
    )
    assert result["language"] == "es"


def test_segments_are_printed_where_that_is_wanted(
    openai: whisper.Whisper, short: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    result = openai.transcribe(short, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(result["segments"])
    assert lines[0].startswith("[00:0")
    assert lines[0].endswith(result["segments"][0]["text"])


def test_faster_whisper_gives_segments_one_by_one(
    faster: faster_whisper.WhisperModel, short: np.ndarray
) -> None:
    segments, info = faster.transcribe(short, beam_size=1, vad_filter=True, word_timestamps=True)
    assert iter(segments) is segments
    result = list(segments)
    expected = faster.model.transcribe(short, sample_rate=16_000)
    assert [segment.text.strip() for segment in result] == [segment.text for segment in expected.segments]
    assert [segment.id for segment in result] == list(range(1, len(result) + 1))
    assert info.language == expected.source_language == "en"
    assert 0.5 < info.language_probability <= 1
    assert info.duration == pytest.approx(12.0)
    for segment in result:
        assert segment.words is not None
        assert "".join(word.word for word in segment.words) == segment.text
    assert next(faster.transcribe(short, "en", beam_size=1)[0]).words is None


def test_a_batched_pipeline_gives_the_same_text(
    faster: faster_whisper.WhisperModel, short: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    stream = faster.model.stream
    monkeypatch.setattr(
        faster.model,
        "stream",
        lambda *given, options, **others: (
            sizes.append(options.batch_size) or stream(*given, options=options, **others)
        ),
    )
    batched = faster_whisper.BatchedInferencePipeline(model=faster)
    segments, info = batched.transcribe(short, batch_size=3, beam_size=1)
    expected, alone = faster.transcribe(short, beam_size=1, without_timestamps=True)
    assert [segment.text for segment in segments] == [segment.text for segment in expected]
    assert info == replace(alone, transcription_options=info.transcription_options)
    assert sizes == [3, DecodingOptions.batch_size]
    with pytest.raises(SprachbundError, match="batch_size"):
        batched.transcribe(short, batch_size=0)


def test_the_language_spoken_is_detected(faster: faster_whisper.WhisperModel, short: np.ndarray) -> None:
    language, probability, every = faster.detect_language(short)
    assert (language, probability) == every[0]
    assert language == "en"
    assert {tag for tag, _ in every} == set(faster.supported_languages)
    assert sum(p for _, p in every) == pytest.approx(1)
    assert [p for _, p in every] == sorted((p for _, p in every), reverse=True)
    _, info = faster.transcribe(short, beam_size=1)
    assert probability == pytest.approx(info.language_probability)
    averaged = faster.detect_language(short, language_detection_segments=9, language_detection_threshold=1.1)
    assert averaged[0] == "en"
    assert averaged[1] != probability
    with pytest.raises(SprachbundError, match="nobody speaks"):
        faster.detect_language(np.zeros(32_000, np.float32))
    with pytest.raises(SprachbundError, match="no audio is given"):
        faster.detect_language()
    with pytest.raises(SprachbundError, match="features=1 of faster-whisper is not served"):
        faster.detect_language(short, features=1)


def test_silence_has_no_segments(openai: whisper.Whisper, faster: faster_whisper.WhisperModel) -> None:
    silence = np.zeros(32_000, np.float32)
    assert openai.transcribe(silence) == {"text": "", "segments": [], "language": None}
    segments, info = faster.transcribe(silence, language="de")
    assert list(segments) == []
    assert (info.language, info.duration) == ("de", 2.0)


def test_compute_types_choose_the_engine(faster: faster_whisper.WhisperModel) -> None:
    assert faster.model.engine is not None
    assert faster.model.engine.name == "torch-fp32"
    with pytest.raises(SprachbundError, match=r"compute_type='float16' is not served; there are default"):
        faster_whisper.WhisperModel("bundled", compute_type="float16")
    with pytest.raises(SprachbundError, match="device is 'cuda:7', which is not here"):
        faster_whisper.WhisperModel("bundled", device="cuda", device_index=7)


def test_thresholds_are_those_of_the_guard() -> None:
    common: dict[str, Any] = {
        "language": None, "task": "transcribe", "beam_size": 3, "initial_prompt": None, "word_timestamps": False,
        "max_tokens": 20, "without_timestamps": True,
    }  # fmt: skip
    given = TranscribeArguments(
        **common, compression_ratio_threshold=1.5, log_probability_threshold=-0.5, no_speech_threshold=0.25
    ).options()
    assert (given.beam_size, given.max_tokens, given.timestamps) == (3, 20, False)
    assert given.guard.max_compression_ratio == 1.5
    assert given.guard.min_mean_log_probability == -0.5
    assert given.guard.max_no_speech_probability == 0.25
    none = TranscribeArguments(
        **common, compression_ratio_threshold=None, log_probability_threshold=None, no_speech_threshold=None
    ).options()
    assert none.guard.max_compression_ratio > 1e6
    assert none.guard.max_repetition == 1.0
    assert none.guard.min_mean_log_probability < -1e6


@pytest.mark.parametrize(
    ("thresholds", "text", "log_probability", "no_speech", "kept"),
    [
        ((-3.0, 2.4, 0.6), "good morning everybody", -2.7, 0.0, True),  # better than asked for
        ((-3.0, 2.4, 0.6), "good morning everybody", -3.1, 0.0, False),
        ((-1.0, 2.4, 0.6), "good morning everybody", -0.5, 0.99, True),  # sure enough, whatever the doubt
        ((None, 2.4, 0.6), "good morning everybody", -0.5, 0.99, False),  # doubt alone decides
        ((None, 2.4, 0.6), "good morning everybody", -9.0, 0.5, True),
        ((None, 2.4, None), "good morning everybody", -9.0, 0.99, True),
        ((-1.0, None, 0.6), "no no no no no no", -0.1, 0.0, True),  # no limit to loops
        ((-1.0, 2.4, 0.6), "no no no no no no", -0.1, 0.0, False),
    ],
)
def test_thresholds_leave_out_what_the_packages_do(
    thresholds: tuple[Any, Any, Any], text: str, log_probability: float, no_speech: float, kept: bool
) -> None:
    sure, loops, doubt = thresholds
    arguments = TranscribeArguments(
        language="en",
        task="transcribe",
        beam_size=1,
        initial_prompt=None,
        word_timestamps=False,
        max_tokens=None,
        without_timestamps=True,
        log_probability_threshold=sure,
        compression_ratio_threshold=loops,
        no_speech_threshold=doubt,
    )
    dropped = drop_reason(
        text,
        duration_s=9.0,
        speech_probability=1.0,
        no_speech_probability=no_speech,
        mean_log_probability=log_probability,
        options=arguments.options().guard,
    )
    segment = replace(SEGMENT, text=text, dropped=dropped, no_speech_probability=no_speech)
    assert arguments.keeps(segment) == kept


def test_features_are_refused_by_name(faster: faster_whisper.WhisperModel) -> None:
    for features in (np.zeros((80, 3000), np.float32), torch.zeros(80, 3000), 1):
        with pytest.raises(
            SprachbundError, match=r"features=.* of faster-whisper is not served here; leave it out"
        ):
            faster.detect_language(features=features)


def test_a_directory_of_the_name_comes_first_as_in_faster_whisper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(faster_whisper, "load", lambda name, **options: asked.append(name))
    monkeypatch.chdir(tmp_path)
    faster_whisper.WhisperModel("large-v3", device="cpu")
    (tmp_path / "large-v3").mkdir()
    faster_whisper.WhisperModel("large-v3", device="cpu")
    assert asked == ["whisper-large-v3", "large-v3"]


def test_int8_is_computed_on_the_cpu_where_nothing_else_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sprachbund.compat.arguments.available_devices", lambda: ["cpu", "cuda:0"])
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(faster_whisper, "load", lambda name, **options: asked.append(options))
    for compute_type in ("int8", "float32"):
        faster_whisper.WhisperModel("bundled", compute_type=compute_type)
    assert [(one["engine"], one["device"]) for one in asked] == [
        ("torch-int8", "cpu"),
        ("torch-fp32", "cuda:0"),
    ]
    with pytest.raises(
        SprachbundError, match="compute_type='int8' is for CPUs here, and device='cuda'; give"
    ):
        faster_whisper.WhisperModel("bundled", device="cuda", compute_type="int8")


def test_the_beam_by_default_is_one_where_the_model_takes_no_other(
    faster: faster_whisper.WhisperModel, short: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, info = faster.transcribe(short, "en")
    assert info.transcription_options.beam_size == 5
    monkeypatch.setattr(faster_whisper, "why_no_beam", lambda family, *, word_timestamps: "it has durations")
    _, info = faster.transcribe(short, "en")
    assert info.transcription_options.beam_size == 1
    _, info = faster.transcribe(short, "en", beam_size=3)
    assert info.transcription_options.beam_size == 3


def test_a_language_is_identified_in_spans_that_the_model_takes(
    faster: faster_whisper.WhisperModel, short: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []

    def identified(family: Any, samples: np.ndarray) -> torch.Tensor:
        heard.append(len(samples))
        return torch.zeros(len(family.source_languages)).log_softmax(0)

    monkeypatch.setattr(faster_whisper, "spoken_log_probs", identified)
    without_pauses = np.concatenate([short] * 4)
    parameters = {"max_speech_duration_s": 60, "min_silence_duration_ms": 10_000}
    faster.detect_language(without_pauses, vad_parameters=parameters, language_detection_segments=9)
    assert heard
    assert max(heard) <= faster.model.family.max_window_s * 16_000


def test_parameters_of_voice_activity_are_options_of_spans() -> None:
    spans = span_options({"threshold": 0.6, "min_silence_duration_ms": 800, "speech_pad_ms": 300})
    assert (spans.threshold, spans.min_silence_s, spans.padding_s) == (0.6, 0.8, 0.3)
    assert spans.release == pytest.approx(0.45)
    assert span_options({"max_speech_duration_s": float("inf")}) == span_options(None)
    both = span_options({"min_silence_duration_ms": 500, "speech_pad_ms": 400})
    assert (both.min_silence_s, both.padding_s) == (0.5, 0.25)  # of a silence, each side has a half at most
    with pytest.raises(SprachbundError, match="'window', which is not served here; there are threshold"):
        span_options({"window": 1})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"patience": 2.0}, "patience=2.0 of"),
        ({"prefix": "so"}, "prefix='so' of"),
        ({"task": "summarise"}, "task='summarise' is unknown; give transcribe or translate"),
        ({"temperature": 3}, "temperature=3 is not between 0 and 1"),
        ({"beams": 4}, "no argument 'beams'"),
        ({"initial_prompt": [50364, 7]}, "is no text to show to the model; give text"),
        ({"language": "tlh"}, "tlh"),
    ],
)
def test_what_is_not_served_is_an_error(
    openai: whisper.Whisper, faster: faster_whisper.WhisperModel, arguments: dict[str, Any], said: str
) -> None:
    for model in (openai, faster):
        with pytest.raises(SprachbundError, match=said) as caught:
            model.transcribe(np.zeros(16_000, np.float32), **arguments)  # type: ignore[attr-defined]
        assert "\n" not in str(caught.value)


def test_temperatures_are_those_of_the_packages(
    openai: whisper.Whisper, faster: faster_whisper.WhisperModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert temperatures(openai.model, FALLBACK) == FALLBACK
    drawn = openai.transcribe(str(RECORDING), language="en", temperature=0.6)["segments"]
    assert {segment["temperature"] for segment in drawn} == {0.6}
    segments, _ = faster.transcribe(str(RECORDING), language="en", temperature=0.6)
    assert {segment.temperature for segment in segments} == {0.6}
    # Text that nothing can be good enough for is decoded at every temperature, as there.
    last = openai.transcribe(
        str(RECORDING), language="en", temperature=(0.0, 0.1), compression_ratio_threshold=0.0
    )
    assert last["segments"] == []
    monkeypatch.setattr("sprachbund.compat.arguments.draws_tokens", lambda family: False)
    assert temperatures(openai.model, FALLBACK) == (0.0,)
    with pytest.warns(UserWarning, match="draws no tokens, as at 0"):
        assert temperatures(openai.model, 0.4) == (0.0,)


def test_where_downloads_are_kept_is_no_argument_here() -> None:
    with pytest.raises(SprachbundError, match="download_root='/tmp/x' of openai-whisper is not served"):
        whisper.load_model("turbo", download_root="/tmp/x")
    with pytest.raises(SprachbundError, match="download_root='/tmp/x' of faster-whisper is not served"):
        faster_whisper.WhisperModel("turbo", download_root="/tmp/x")


def test_results_have_the_fields_of_faster_whisper() -> None:
    """As of its version 1.2."""
    names = "id seek start end text tokens avg_logprob compression_ratio no_speech_prob words temperature"
    assert [field.name for field in fields(faster_whisper.Segment)] == names.split()
    assert [field.name for field in fields(faster_whisper.Word)] == ["start", "end", "word", "probability"]
    info = "language language_probability duration duration_after_vad all_language_probs"
    info += " transcription_options vad_options"
    assert [field.name for field in fields(faster_whisper.TranscriptionInfo)] == info.split()


def test_the_model_behind_it_has_all_that_is_offered_here(openai: whisper.Whisper) -> None:
    assert isinstance(openai.model, sprachbund.api.Model)
    assert openai.is_multilingual

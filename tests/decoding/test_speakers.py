"""Who speaks when: features as Kaldi's, clusters of planted voices, labels of made conversations, and refusals."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import soundfile
import transformers
from onnx import TensorProto, helper

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import open_audio
from sprachbund.cli.speech import OutputOptions, _label
from sprachbund.decoding.formats import render
from sprachbund.decoding.result import Segment, Translation
from sprachbund.decoding.speakers import (
    SpeakerEncoder,
    cluster,
    kaldi_fbank,
    label_speakers,
    load_speakers,
)
from sprachbund.errors import SprachbundError
from tests.stories.support import command, speech, write_wav


def encoder_file(path: Path, *, bins: int = 80, metadata: dict[str, str] | None = None) -> Path:
    """A graph whose vector is how much each bin of a sound changes, less the mean: it tells made voices apart."""
    nodes = [
        helper.make_node("Abs", ["feats"], ["size"]),
        helper.make_node("ReduceMean", ["size", "time"], ["change"], keepdims=0),
        helper.make_node("ReduceMean", ["change", "bins"], ["level"], keepdims=1),
        helper.make_node("Sub", ["change", "level"], ["embs"]),
    ]
    axes = [helper.make_tensor(name, TensorProto.INT64, [1], [1]) for name in ("time", "bins")]
    graph = helper.make_graph(
        nodes,
        "voices",
        [helper.make_tensor_value_info("feats", TensorProto.FLOAT, ["B", "T", bins])],
        [helper.make_tensor_value_info("embs", TensorProto.FLOAT, ["B", bins])],
        initializer=axes,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return path


def voice(who: int, duration_s: float, seed: int) -> np.ndarray:
    """Noise in which a band of its own comes and goes, every time in another way."""
    rng = np.random.default_rng(seed)
    count = int(duration_s * SAMPLE_RATE)
    time = np.arange(count) / SAMPLE_RATE
    base = 300.0 * 2.2**who
    tones = sum(np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6)) for k in (1.0, 1.1, 1.21))
    swell = np.repeat(rng.uniform(0.0, 1.0, count // 1600 + 1), 1600)[:count] ** 3
    return (0.2 * swell * tones + 0.01 * rng.standard_normal(count)).astype(np.float32)


TURNS = [(0, 2.4), (1, 3.0), (0, 1.7), (2, 2.2), (1, 0.9), (2, 4.0), (0, 0.3)]


def conversation() -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Turns with half a second between them, and their times."""
    pieces, spans, now = [np.zeros(4000, np.float32)], [], 0.25
    for number, (who, duration_s) in enumerate(TURNS):
        pieces += [voice(who, duration_s, number), np.zeros(8000, np.float32)]
        spans.append((now, now + duration_s))
        now += duration_s + 0.5
    return np.concatenate(pieces), spans


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SpeakerEncoder:
    return SpeakerEncoder(encoder_file(tmp_path_factory.mktemp("voices") / "voices.onnx"))


def test_features_are_those_of_kaldi() -> None:
    """transformers has them for SeamlessM4T, of samples of 16 bits."""
    samples = voice(1, 1.3, 5)
    theirs = transformers.SeamlessM4TFeatureExtractor()._extract_fbank_features(samples)
    np.testing.assert_allclose(kaldi_fbank(samples * 32_768), theirs, rtol=1e-3, atol=1e-3)
    assert kaldi_fbank(samples[:399]).shape == (0, 80)
    assert kaldi_fbank(samples[:400]).shape == (1, 80)


@pytest.mark.parametrize("num_speakers", [1, 2, 5])
def test_planted_voices_are_found(num_speakers: int) -> None:
    rng = np.random.default_rng(num_speakers)
    centres = np.linalg.qr(rng.standard_normal((64, num_speakers)))[0].T
    who = [*range(num_speakers), *rng.integers(0, num_speakers, 60)]
    vectors = centres[who] + 0.05 * rng.standard_normal((len(who), 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    for labels in (cluster(vectors), cluster(vectors, num_speakers)):
        assert len(set(labels)) == num_speakers
        assert len(set(zip(who, labels, strict=True))) == num_speakers
    assert len(set(cluster(vectors, 1))) == 1


def test_a_conversation_is_labelled(encoder: SpeakerEncoder) -> None:
    samples, spans = conversation()
    audio = open_audio(samples, SAMPLE_RATE)
    wanted = ["S1", "S2", "S1", "S3", "S2", "S3", None]  # the last turn is too short
    assert label_speakers(encoder, audio, spans) == wanted
    assert label_speakers(encoder, audio, spans, 3) == wanted
    assert set(label_speakers(encoder, audio, spans, 1)) == {"S1", None}
    shuffled = [4, 0, 6, 2, 5, 1, 3]
    assert label_speakers(encoder, audio, [spans[n] for n in shuffled]) == [wanted[n] for n in shuffled]
    assert label_speakers(encoder, audio, []) == []
    assert label_speakers(encoder, audio, [(0.0, 0.2)]) == [None]


def test_labels_stand_in_every_format() -> None:
    segment = Segment(
        start_s=0, end_s=2, source_language="en", target_language="en", text="hi there", speaker="S2"
    )
    other = Segment(start_s=2, end_s=3, source_language="en", target_language="en", text="and you")
    whole = Translation(source_language="en", target_language="en", duration_s=3, segments=(segment, other))
    assert render(whole, "txt") == "S2: hi there\nand you\n"
    for form in ("srt", "vtt"):
        assert "S2: hi there\n" in render(whole, form)
    segments = json.loads(render(whole, "json"))["segments"]
    assert segments[0]["speaker"] == "S2"
    assert "speaker" not in segments[1]
    assert Segment.from_dict(segment.to_dict()) == segment


def test_the_command_labels_and_refuses(tmp_path: Path) -> None:
    model, wav = encoder_file(tmp_path / "voices.onnx"), tmp_path / "a.wav"
    write_wav(wav, speech("one two three"))
    asked = ("transcribe", wav, "--no-guard", "--speakers", model)
    ran = command(*asked, "--json")
    assert ran.code == 0, ran.err
    assert [one["speaker"] for one in json.loads(ran.out)["segments"]] == ["S1"]
    assert command(*asked, "--format", "srt", "--out", tmp_path / "out").code == 0
    assert "S1: " in (tmp_path / "out" / "a.srt").read_text()
    for said, args in (
        ("there is no speaker model", ("transcribe", wav, "--speakers", tmp_path / "none.onnx")),
        ("--num-speakers is for --speakers", ("transcribe", wav, "--num-speakers", "2")),
        ("stdin can be read once", ("transcribe", "-", "--speakers", model)),
    ):
        ran = command(*args)
        assert ran.code == 2, said
        assert len(ran.error_lines) == 1
        assert said in ran.err


def test_models_that_are_none(tmp_path: Path) -> None:
    def refused(said: str, path: Path) -> None:
        with pytest.raises(SprachbundError, match=said) as error:
            load_speakers(path)
        assert "\n" not in str(error.value)

    (tmp_path / "folder").mkdir()
    refused("no ONNX file", tmp_path / "folder")
    encoder_file(tmp_path / "folder" / "a.onnx")
    assert load_speakers(tmp_path / "folder").vector(voice(0, 1.0, 1)).shape == (80,)
    encoder_file(tmp_path / "folder" / "b.onnx")
    refused("2 ONNX files .a.onnx, b.onnx.; give the path of one", tmp_path / "folder")
    (tmp_path / "text.onnx").write_text("text")
    refused("is no ONNX model", tmp_path / "text.onnx")
    refused("features .batch, frames, 80.", encoder_file(tmp_path / "wide.onnx", bins=40))
    refused("sample_rate is '8000'", encoder_file(tmp_path / "slow.onnx", metadata={"sample_rate": "8000"}))
    refused("framework is 'nemo'", encoder_file(tmp_path / "other.onnx", metadata={"framework": "nemo"}))


def test_what_the_guard_dropped_is_no_voice(encoder: SpeakerEncoder, tmp_path: Path) -> None:
    samples, spans = conversation()
    soundfile.write(tmp_path / "talk.wav", samples, SAMPLE_RATE)
    one = Segment(start_s=0, end_s=1, source_language="en", target_language="en", text="a")
    dropped = {0, 2}  # the first voice, as a jingle would be
    segments = {
        "en": [
            replace(one, start_s=start_s, end_s=end_s, dropped="no speech" if n in dropped else None)
            for n, (start_s, end_s) in enumerate(spans)
        ]
    }
    for num_speakers in (None, 2):
        output = OutputOptions(speakers="voices", num_speakers=num_speakers)
        _label(encoder, SimpleNamespace(output=output, untrusted=False), str(tmp_path / "talk.wav"), segments)
        assert [s.speaker for s in segments["en"]] == [None, "S1", None, "S2", "S1", "S2", None]

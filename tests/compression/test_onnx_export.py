"""Exported graphs give what torch gives, chunk by chunk, for every tier; packed layers stay packed."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.compression.onnx_export import check_exportable, export
from sprachbund.compression.options import KQuantOptions
from sprachbund.compression.quantization import quantize_encoder
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.transducer import start_by_frames, transducer_greedy
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.checkpoints import assemble, read_nemo
from sprachbund.models.conformer.config import StreamingPart
from sprachbund.models.io import load
from sprachbund.models.streaming_onnx import OnnxEncoder, OnnxStreamingTransducer
from sprachbund.nn.streaming_conformer import SUBSAMPLING, StreamingEncoder, StreamState
from sprachbund.streaming.by_frames import TransducerWriter
from sprachbund.streaming.engine import LiveEngine, writer_by_frames
from sprachbund.streaming.options import LiveOptions
from tests.models.transducer_checkpoints import (
    made_model,
    nemo_config,
    nemo_weights,
    sentencepiece_model,
    write_nemo,
)
from tests.streaming.test_by_frames import (
    OPEN,
    SPEECH,
    TARGETS,
    Loudness,
    exported,
    hear,
    recording,
    tiny_transducer,
)

Pair = tuple[Conformer, Path]
pytestmark = pytest.mark.slow  # an export is traced for some ten seconds, whatever the size of the model


@pytest.fixture(scope="module")
def plain() -> Pair:
    return tiny_transducer(), exported()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Converted from a made NeMo file of one layer, encoder in 4 bits."""
    folder, theirs = tmp_path_factory.mktemp("packed"), made_model(num_layers=1)
    path = write_nemo(folder / "x.nemo", nemo_config(theirs), nemo_weights(theirs), sentencepiece_model())
    model = assemble(read_nemo(path), ["en"])
    quantize_encoder(model, KQuantOptions(bits=4))
    export(model, folder)
    return model, folder


@pytest.fixture(scope="module")
def chunk(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Convolutions that see their chunk behind the subsampling of the offline encoder."""
    part = StreamingPart(
        left_context=28, right_contexts=(6, 1, 0), convolution="chunk", subsampling="striding_conv1d"
    )
    model, folder = tiny_transducer(streaming=part), tmp_path_factory.mktemp("chunk")
    export(model, folder)
    return model, folder


@pytest.fixture(params=["plain", "packed", "chunk"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(request.param)


def encoders(pair: Pair) -> tuple[StreamingEncoder, OnnxEncoder]:
    model, other = pair[0], load(pair[1])
    assert isinstance(other, OnnxStreamingTransducer)
    assert isinstance(model.encoder, StreamingEncoder)
    assert isinstance(other.encoder, OnnxEncoder)
    return model.encoder, other.encoder


def mels(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_every_tier_over_many_chunks_in_batches_of_streams_of_different_ages(pair):
    ours, graphs = encoders(pair)
    for tier in ours.tiers:
        size = tier.chunk * SUBSAMPLING
        full = torch.tensor([size])
        states = [(ours.start(1, tier), graphs.start(1, tier))] * 3
        for age in (1, 2):  # row n has heard n chunks before they are put together
            for row in range(age, 3):
                chunk = mels(1, size, 40, seed=row)
                states[row] = (
                    ours.stream(chunk, full, states[row][0], tier)[2],
                    graphs.stream(chunk, full, states[row][1], tier)[2],
                )
        a, b = (StreamState.stack(side) for side in zip(*states, strict=True))
        for number in range(30):
            chunk = mels(3, size, 40, seed=100 + number)
            num_mel = full.repeat(3) if number < 29 else torch.tensor([1, size - 1, size])
            expected, count, a = ours.stream(chunk, num_mel, a, tier)
            result, same, b = graphs.stream(chunk, num_mel, b, tier)
            assert torch.equal(count, same)
            for row, valid in enumerate(count.tolist()):
                torch.testing.assert_close(result[row, :valid], expected[row, :valid], atol=1e-4, rtol=1e-4)
        for name, tensor in a.tensors().items():
            torch.testing.assert_close(b.tensors()[name], tensor, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_whole_recording_and_its_language(pair):
    model, other = pair[0], load(pair[1])
    samples = [np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32) for n in (40_000, 23_456)]
    expected, result = model.encode(model.features(samples)), other.encode(other.features(samples))
    assert torch.equal(result.num_frames, expected.num_frames)
    torch.testing.assert_close(result.states[1, :18], expected.states[1, :18], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.states[0], expected.states[0], atol=1e-4, rtol=1e-4)
    languages = other.language_log_probs(result)
    torch.testing.assert_close(languages, model.language_log_probs(expected), atol=1e-4, rtol=1e-4)
    assert other.pairs() == model.pairs()


@torch.no_grad()
def test_the_same_tokens(pair):
    model, other = pair[0], load(pair[1])
    states, num_frames = mels(2, 60, 32, seed=7), torch.tensor([60, 41])
    targets = [Target(language=tag) for tag in (model.config.target_languages * 2)[:2]]
    expected, a = transducer_greedy(model.transducer, states, num_frames, start_by_frames(model, targets))
    result, b = transducer_greedy(other.transducer, states, num_frames, start_by_frames(other, targets))
    assert [each.tokens for each in result] == [each.tokens for each in expected]
    assert [each.frames for each in result] == [each.frames for each in expected]
    assert sum(len(each.tokens) for each in result) > 10
    torch.testing.assert_close(b.hidden, a.hidden, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_beam_finds_the_same(plain):
    model, other = plain[0], load(plain[1])
    samples = [np.random.default_rng(7).normal(0, 0.1, 20_000).astype(np.float32)]
    target, options = [[Target(language="de", source="de")]], DecodingOptions(beam_size=3)
    expected, result = (search(m, m.encode(m.features(samples)), target, options) for m in (model, other))
    assert result[0][0].tokens == expected[0][0].tokens
    assert result[0][0].tokens


def test_graphs_are_not_exported_again(plain):
    with pytest.raises(
        SprachbundError, match="is made of exported graphs; export the model that it was made from"
    ):
        check_exportable(load(plain[1]))


def test_recordings_and_live_text(plain):
    model, other = plain[0], load(plain[1])
    samples = np.random.default_rng(3).normal(0, 0.1, 5 * SAMPLE_RATE).astype(np.float32)
    rows = [[Target(language="de")]]
    expected, result = (
        search(m, m.encode(m.features([samples])), rows, DecodingOptions()) for m in (model, other)
    )
    assert result[0][0].tokens == expected[0][0].tokens != ()
    writer = writer_by_frames(other)
    assert isinstance(writer, TransducerWriter)
    assert isinstance(writer.encoder, OnnxEncoder)
    talk, texts = recording(*SPEECH[:2], seed=4), []
    for each in (model, other):
        engine = LiveEngine(each, OPEN, activity=Loudness())
        session = engine.open(TARGETS, "en", LiveOptions(right_context=1))
        texts.append(hear(engine, session, talk, 1600))
    assert texts[0] == texts[1] != {}


def test_the_description_is_enough(plain):
    """Greedy search through ONNX Runtime with nothing of this package: config.json, numpy and the graphs."""
    model, folder = plain
    description = json.loads((folder / "config.json").read_text())
    run = {
        name: onnxruntime.InferenceSession(folder / g["file"]) for name, g in description["graphs"].items()
    }

    def call(name: str, **values: np.ndarray) -> dict[str, np.ndarray]:
        outputs = [each["name"] for each in description["graphs"][name]["outputs"]]
        return dict(zip(outputs, run[name].run(outputs, values), strict=True))

    def empty(graph: str, skip: int) -> dict[str, np.ndarray]:
        return {
            each["name"]: np.zeros([1, *each["shape"][1:]], each["type"])
            for each in description["graphs"][graph]["inputs"][skip:]
        }

    def forward(result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name[5:]: value for name, value in result.items() if name.startswith("next.")}

    def write(token: int, memory: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        result = call("prediction", tokens=np.array([token]), **memory)
        return result["predicted"], forward(result)

    tier = next(each for each in description["tiers"] if each["right_context"] == 1)
    sound = mels(1, 5 * tier["num_mel"], 40, seed=11).numpy()
    mel = np.pad(sound[:, : -description["lead"]], ((0, 0), (description["lead"], 0), (0, 0)))
    predicted, memory = write(description["blank"], empty("prediction", 1))
    predicted, memory = write(description["language_tokens"]["de"], memory)
    state, tokens = empty("encoder", 2), []
    for begin in range(0, mel.shape[1], tier["num_mel"]):
        chunk = mel[:, begin : begin + tier["num_mel"]]
        result = call("encoder", mel=chunk, num_mel=np.array([tier["num_mel"]]), **state)
        state = forward(result)
        frames = call("projection", states=result["states"])["frames"]
        for frame in np.split(frames, frames.shape[1], axis=1):
            for _ in range(10):
                best = int(call("joint", frames=frame, predicted=predicted)["logits"].argmax())
                if best == description["blank"]:
                    break
                tokens.append(best)
                predicted, memory = write(best, memory)
    encoder = model.encoder
    assert isinstance(encoder, StreamingEncoder)
    (own,) = (each for each in encoder.tiers if each.right == 1)
    with torch.no_grad():
        heard = torch.from_numpy(sound[:, : -description["lead"]])
        states, num_frames = encoder(heard, torch.tensor([heard.shape[1]]), tier=own)
    (expected,), _ = transducer_greedy(
        model.transducer, states, num_frames, start_by_frames(model, [Target(language="de")])
    )
    assert tuple(tokens) == expected.tokens != ()


def test_packed_layers_stay_packed(packed):
    model, folder = packed
    graph = onnx.load(folder / "encoder.onnx").graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    names = {node.name for node in nodes}
    count = sum(1 for n, _ in model.encoder.named_modules() if n.endswith(("query", "key", "expand", "gate")))
    assert len(names) == len(nodes) > count
    sizes = {x.name: int(np.prod(x.dims)) for x in graph.initializer if x.data_type == onnx.TensorProto.FLOAT}
    assert max(sizes.values()) < 32 * 128  # no matrix is there in single precision
    assert json.loads((folder / "config.json").read_text())["packed"]["bits"] == 4


def test_what_cannot_be_exported_is_said(plain):
    with pytest.raises(SprachbundError, match="only streaming encoders"):
        check_exportable(load())
    model = copy.deepcopy(plain[0])
    quantize_encoder(model, KQuantOptions(bits=3))
    with pytest.raises(SprachbundError, match=r"4 or 8 bits .* this model has 3"):
        check_exportable(model)


def damaged(folder: Path, tmp_path: Path, **files: bytes | None) -> Path:
    for path in folder.iterdir():
        content: Any = files.get(path.name.split(".")[0], path.read_bytes())
        if content is not None:
            (tmp_path / path.name).write_bytes(content)
    return tmp_path


def test_damaged_directories(plain, tmp_path):
    folder = plain[1]
    with pytest.raises(SprachbundError, match=r"has no joint.onnx"):
        load(damaged(folder, tmp_path, joint=None))
    other = (folder / "prediction.onnx").read_bytes()
    with pytest.raises(SprachbundError, match=r"joint.onnx is damaged \(its checksum"):
        load(damaged(folder, tmp_path, joint=other))
    described = json.loads((folder / "config.json").read_text())
    old = json.dumps({key: value for key, value in described.items() if key != "sha256"}).encode()
    with pytest.raises(SprachbundError, match=r"joint.onnx cannot be run"):
        load(damaged(folder, tmp_path, config=old, joint=b"nothing of the kind"))
    with pytest.raises(SprachbundError, match=r"not the graph that config.json describes"):
        load(damaged(folder, tmp_path, config=old, joint=other))
    assert load(damaged(folder, tmp_path, config=old)).name == "streaming_onnx"  # as it was exported before
    described["config"]["num_encoder_layers"] = 10**9
    with pytest.raises(
        SprachbundError, match=r"config.json: config.num_encoder_layers: .*than or equal to 512"
    ):
        load(damaged(folder, tmp_path, config=json.dumps(described).encode()))
    broken = (folder / "config.json").read_bytes().replace(b'"blank": 0', b'"blanc": 0')
    with pytest.raises(SprachbundError, match=r"config.json: blank: Field required"):
        load(damaged(folder, tmp_path, config=broken))
    (damaged(folder, tmp_path) / "tokenizer.model").unlink()
    with pytest.raises(SprachbundError, match=r"has no tokenizer.model"):
        load(tmp_path)

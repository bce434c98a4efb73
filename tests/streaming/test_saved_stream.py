"""A stream goes on from bytes as if nothing had happened, and on no other model."""

from pathlib import Path
from typing import cast

import pytest
import torch

from sprachbund.compression.quantization import quantize_encoder
from sprachbund.decoding.transducer import start_by_frames, transducer_greedy
from sprachbund.engines.choice import engine_for
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.conformer import Conformer
from sprachbund.nn.streaming_conformer import SUBSAMPLING, ChunkEncoder, StreamState, Tier
from sprachbund.nn.transducer import TransducerState
from sprachbund.streaming.saved_stream import load_frames, load_stream, save_frames, save_stream
from tests.engines.support import needs_native
from tests.models.voxtral_realtime.support import make
from tests.streaming.test_by_frames import tiny_transducer

States = tuple[StreamState, TransducerState]


def began(model: Conformer) -> States:
    assert isinstance(model.encoder, ChunkEncoder)
    targets = [Target(language="de"), Target(language="ru")]
    return model.encoder.start(2, model.encoder.tiers[0]), start_by_frames(model, targets)


def went_on(model: Conformer, states: States, seed: int) -> tuple[list[tuple[int, ...]], States]:
    encoder = model.encoder
    assert isinstance(encoder, ChunkEncoder)
    tier = encoder.tiers[0]
    mel = torch.randn(2, tier.chunk * SUBSAMPLING, 40, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        result, num_frames, after = encoder.stream(mel, torch.full((2,), mel.shape[1]), states[0], tier)
        hypotheses, writers = transducer_greedy(model.transducer, result, num_frames, states[1])
    return [each.tokens for each in hypotheses], (after, writers)


def tier_of(model: Conformer) -> Tier:
    assert isinstance(model.encoder, ChunkEncoder)
    return model.encoder.tiers[0]


def test_it_goes_on_as_if_nothing_had_happened():
    model = tiny_transducer()
    _, states = went_on(model, began(model), 0)
    again = load_stream(tiny_transducer(), tier_of(model), save_stream(model, tier_of(model), *states))
    for part, other in zip(states, again, strict=True):
        assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in part.tensors().items())
    expected, result = went_on(model, states, 1), went_on(model, again, 1)
    assert result[0] == expected[0]
    assert sum(map(len, result[0])) > 0


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"width": 48}, "that one has width 32, this one has width 48"),
        ({"num_encoder_layers": 3}, "that one has layers 2, this one has layers 3"),
        ({"seed": 1}, "has weights of the digest"),
    ],
)
def test_a_state_of_another_model_is_refused(other, says):
    model = tiny_transducer()
    data = save_stream(model, tier_of(model), *began(model))
    with pytest.raises(SprachbundError, match=says):
        load_stream(tiny_transducer(**other), tier_of(model), data)


def test_a_state_of_a_model_with_one_other_layer_is_refused():
    """As starts are that were spliced of the same two models."""
    models = [tiny_transducer(num_encoder_layers=3) for _ in range(2)]
    with torch.no_grad():
        models[1].encoder.layers[1].feed_forward_in.expand.weight.mul_(2.0)
    data = save_stream(models[0], tier_of(models[0]), *began(models[0]))
    with pytest.raises(SprachbundError, match="has weights of the digest"):
        load_stream(models[1], tier_of(models[1]), data)


def test_a_state_of_another_tier_or_of_other_bits_is_refused():
    model, packed = tiny_transducer(), tiny_transducer()
    data = save_stream(model, tier_of(model), *began(model))
    with pytest.raises(
        SprachbundError, match="keeps frames of the past 28, this one keeps frames of the past 24"
    ):
        load_stream(model, Tier(left=24, right=1), data)
    quantize_encoder(packed)
    with pytest.raises(SprachbundError, match="computes in single precision, this one computes in 4 bits"):
        load_stream(packed, tier_of(model), data)


@needs_native
@pytest.mark.parametrize("bits", ["32", "4"])
@pytest.mark.parametrize("part", ["encoder.layers.1.feed_forward_in.expand", "transducer.joint.out"])
def test_a_stream_goes_on_with_another_engine_but_with_no_other_model(bits: str, part: str) -> None:
    """The kernels hold linear layers in numbers of their own, by which no model could be known with torch."""
    model, other = tiny_transducer(), tiny_transducer()
    with torch.no_grad():
        other.get_parameter(f"{part}.weight").mul_(2.0)
    if bits == "4":
        for family in (model, other):
            quantize_encoder(family)
    native, other_native = (
        cast(Conformer, engine_for(family, "native", threads=1).family) for family in (model, other)
    )
    states = [went_on(family, began(family), 0)[1] for family in (model, native)]
    for family, state in zip((model, native), states, strict=True):
        data = save_stream(family, tier_of(family), *state)
        for again in (model, native):
            went_on(again, load_stream(again, tier_of(again), data), 1)
        for again in (other, other_native):
            with pytest.raises(SprachbundError, match="has weights of the digest"):
                load_stream(again, tier_of(again), data)


def test_damage_is_reported():
    model = tiny_transducer()
    data = save_stream(model, tier_of(model), *began(model))
    for damaged in (b"", b"nothing", data[:-10], data[:40]):
        with pytest.raises(SprachbundError, match="not the whole state of a stream"):
            load_stream(model, tier_of(model), damaged)


@torch.inference_mode()
def test_a_token_for_every_frame_goes_on_from_bytes_and_on_no_other_model(tmp_path: Path) -> None:
    model = make(tmp_path / "one").model
    frames = torch.randn(2, 30, 8 * 16, generator=torch.Generator().manual_seed(0))
    states, state = model.encode_frames(frames, model.start_frames(2))
    _, state = model.write_frames(states, state)
    data = save_frames(model, state)
    written = []
    for now in (state, load_frames(model, data)):
        states, now = model.encode_frames(frames, now)
        written.append(model.write_frames(states, now)[0].tokens)
    assert torch.equal(*written)
    with pytest.raises(SprachbundError, match="not the whole state"):
        load_frames(model, data[:-100])
    with pytest.raises(SprachbundError, match="has weights of the digest"):
        load_frames(make(tmp_path / "two", seed=1).model, data)
    with pytest.raises(SprachbundError, match="that one writes with a delay in frames of 2, this one"):
        load_frames(make(tmp_path / "three", delay=4).model, data)

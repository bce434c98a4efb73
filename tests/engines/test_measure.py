"""What `bench` reports must be what a step reads and what the clock says."""

from pathlib import Path

import pytest
import torch

from sprachbund.engines import benchmark as measure
from sprachbund.engines.benchmark import SpeedJob, bytes_per_token, measure_speed, peak_mib, read_gb_per_s
from sprachbund.engines.choice import engine_for
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.checkpoints import assemble, read_transformers
from sprachbund.models.io import save
from tests.engines.support import needs_native
from tests.models import split_support
from tests.models.transducer_checkpoints import made_model, write_transformers
from tests.models.whisper_support import TINY, make_directory, with_tokens


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_directory(path)
    return path


def job(directory: Path, engine: str = "torch", **more: object) -> SpeedJob:
    sizes = {"window_tokens": 6, "clip_tokens": 2, "clip_s": 0.5, "repeats": 2, **more}
    return SpeedJob(engine=engine, model=str(directory), offline=True, **sizes)  # type: ignore[arg-type]


def test_bytes_of_a_token_are_weights_and_memory_counted_by_hand() -> None:
    model = with_tokens().to_empty(device="cpu")
    cache = model.decoder.start(torch.zeros(1, TINY.max_frames, TINY.width), None)
    width, forward = TINY.width, TINY.decoder_feed_forward_width
    attention = 4 * width**2 + 3 * width  # keys have no bias
    cross = 2 * width**2 + 2 * width  # keys and values are made at the start
    layer = attention + cross + 2 * width * forward + forward + width + 3 * 2 * width
    weights = TINY.decoder_layers * layer + 2 * width + TINY.vocabulary_size * width
    memory = TINY.decoder_layers * 2 * TINY.max_frames * width
    assert bytes_per_token(model, cache) == 4 * (weights + memory)
    half = model.to(torch.bfloat16)
    cache = half.decoder.start(torch.zeros(1, TINY.max_frames, width, dtype=torch.bfloat16), None)
    assert bytes_per_token(half, cache) == 2 * (weights + memory)


@needs_native
def test_native_reads_a_quarter_of_the_weights_and_half_of_the_memory() -> None:
    torch.manual_seed(0)
    model = measure.random_whisper("tiny")
    memory = torch.zeros(1, 1500, 384)
    full = bytes_per_token(model, model.decoder.start(memory, None))
    native = engine_for(model, "native", threads=1).family
    packed = bytes_per_token(native, native.decoder.start(memory, None))
    keys_values = 4 * 2 * 1504 * 384
    # Scales, offsets and biases come on top.
    assert packed - 2 * keys_values == pytest.approx((full - 4 * keys_values) / 4, rel=0.05)


@pytest.mark.parametrize(
    "engine", ["torch", "torch-bf16", "torch-int8", pytest.param("native", marks=needs_native)]
)
def test_every_engine_is_measured(
    directory: Path, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure, "read_gb_per_s", lambda: 10.0)
    monkeypatch.setattr("sprachbund.engines.packed_cache.default_cache", lambda: tmp_path)
    speed = measure_speed(job(directory, engine))
    window = speed.window
    parts = window.features_ms + window.encoder_ms + window.prompt_ms + 6 * window.token_ms
    assert window.whole_ms == pytest.approx(parts, rel=1.0)  # medians of parts, so near the median of sums
    assert min(window.encoder_ms, window.token_ms, speed.clip.whole_ms) > 0
    assert speed.bound_ms == pytest.approx(speed.bytes_per_token / 10e9 * 1000)
    assert speed.as_dict()["share_of_bound"] == pytest.approx(speed.bound_ms / window.token_ms)
    said = {
        "torch": "float32",
        "torch-bf16": "computation in bf16",
        "torch-int8": "8 bits",
        "native": "kernels",
    }
    assert said[engine] in speed.why


def test_reading_is_plausible() -> None:
    assert 0.05 < read_gb_per_s(2**24) < 5000


@pytest.mark.slow
def test_the_most_held_sees_a_large_tensor() -> None:
    before = peak_mib()
    held = torch.ones(int((before + 60) * 2**20 / 4))
    assert peak_mib() > before + 40
    assert held[-1] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "fast"}, "engine is 'fast'; choose one of native, "),
        ({"shape": "huge", "model": None}, "shape is 'huge'; choose one of tiny, "),
        ({"shape": "tiny"}, "shape is 'tiny', and model is 'bundled'; give one of them"),
        ({"model": None}, "neither a model nor a shape"),
        ({"repeats": 0}, "repeats is 0"),
    ],
)
def test_jobs_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SprachbundError, match=message):
        SpeedJob(**{"engine": "torch", "model": "bundled", **fields})  # type: ignore[arg-type]


def test_a_decoder_that_is_split_by_language_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_support.make_split_model(
        split_support.make_split(split_support.DECODER, side="target"), max_tokens=40
    )
    save(split, tmp_path)
    monkeypatch.setattr(measure, "read_gb_per_s", lambda: 10.0)
    assert measure_speed(job(tmp_path)).window.token_ms > 0


def test_a_model_that_writes_by_frames_is_refused(tmp_path: Path) -> None:
    write_transformers(tmp_path / "public", made_model(prompted=True))
    model = assemble(read_transformers(tmp_path / "public"), ["en", "de"])
    save(model, tmp_path / "model")
    with pytest.raises(SprachbundError, match="writes by frames"):
        measure_speed(job(tmp_path / "model"))

"""Bounds: operations counted by hand, and speeds of which no product and no reading is faster."""

import pytest
import torch

from sprachbund.engines import benchmark
from sprachbund.engines.benchmark import encoder_gops, int8_gops_per_s, read_gb_per_s, register_gops
from sprachbund.engines.extension import choose_instruction_set, native
from tests.engines.support import needs_native
from tests.models.whisper_support import TINY, with_tokens


def test_operations_of_whispers_encoder_are_those_counted_by_hand() -> None:
    model = with_tokens()
    frames, width, forward = TINY.max_frames, TINY.width, TINY.encoder_feed_forward_width
    features = model.features([torch.zeros(16000).numpy()])
    mels = features.values.shape[2]
    stem = 2 * 3 * (2 * frames * mels * width + frames * width * width)
    layer = 2 * frames * (4 * width**2 + 2 * width * forward) + 2 * 2 * frames**2 * width
    assert round(encoder_gops(model, features) * 1e9) == stem + TINY.encoder_layers * layer


@needs_native
def test_speeds_are_numbers_and_none_without_the_compiled_part(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = int8_gops_per_s(1, rounds=100)
    assert (speed is None) == (choose_instruction_set() not in benchmark.INT8_LOOPS)
    assert speed is None or speed > 0
    assert read_gb_per_s(2**20) > 0
    monkeypatch.setattr("sprachbund.engines.benchmark.missing_because", lambda: "it was not compiled")
    assert int8_gops_per_s(1) is None
    assert read_gb_per_s(2**20) > 0


@needs_native
def test_register_loops_of_every_instruction_set_run() -> None:
    loops = native().register_loops()
    for name in loops:
        assert register_gops(name, threads=2, rounds=100) > 0
    for isa in native().instruction_sets():
        assert set(benchmark.INT8_LOOPS.get(isa, ())) <= set(loops)
    with pytest.raises(ValueError, match="no loop named vpdpbusd zzz"):
        native().run_register_loop("vpdpbusd zzz", 1)


@needs_native
def test_memory_is_read_in_known_ways_and_aligned() -> None:
    memory, team = benchmark.pages(2**20, large=False), native().Team(2)
    for way in benchmark.READING_WAYS:
        assert benchmark.read_by(team, memory, *way) > 0
    with pytest.raises(ValueError, match="1, 2, 4 or 8 streams"):
        native().seconds_of_reading(team, memory, 3, 0)
    with pytest.raises(ValueError, match="aligned"):
        native().seconds_of_reading(team, memory[1:], 1, 0)

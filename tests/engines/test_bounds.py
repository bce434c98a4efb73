"""Bounds: operations counted by hand, and speeds of which no product and no reading is faster."""

import pytest
import torch

from sprachbund.engines.benchmark import encoder_gops, int8_gops_per_s, read_gb_per_s
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
    speed = int8_gops_per_s(1, products=2)
    assert speed is not None
    assert speed > 0
    assert read_gb_per_s(2**20) > 0
    monkeypatch.setattr("sprachbund.engines.benchmark.missing_because", lambda: "it was not compiled")
    assert int8_gops_per_s(1) is None

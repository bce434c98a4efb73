"""Families whose parts were exchanged for native ones: what fits into them, and what is refused."""

import gc
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sprachbund.engines.choice import engine_for
from sprachbund.engines.extension import enough_memory, instruction_sets, native
from sprachbund.engines.native_engine import pack, with_native_modules
from sprachbund.errors import SprachbundError
from sprachbund.models.io import load
from sprachbund.models.whisper import Whisper
from tests.engines.support import needs_native, relative_error
from tests.models.whisper_support import TINY, make_directory, make_transformers_model, transplanted

pytestmark = needs_native


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return transplanted(make_transformers_model(TINY), TINY)


def test_packed_weights_of_another_shape_are_refused(whisper: Whisper) -> None:
    packed, team = pack(whisper), native().Team(1)
    smaller = replace(TINY, decoder_layers=1)
    other = transplanted(make_transformers_model(smaller), smaller)
    with pytest.raises(SprachbundError, match="other shapes than the model"):
        with_native_modules(other, packed, team, "portable")
    name = "encoder.layers.0.self_heads.values"
    for array in (packed.arrays[name][:-1], packed.arrays[name].int()):
        with pytest.raises(SprachbundError, match="do not fit the model"):
            with_native_modules(
                whisper, replace(packed, arrays={**packed.arrays, name: array}), team, "portable"
            )
    lacking = {key: a for key, a in packed.arrays.items() if key != name}
    with pytest.raises(SprachbundError, match="there is no array"):
        with_native_modules(whisper, replace(packed, arrays=lacking), team, "portable")


@pytest.mark.parametrize("real_length", [False, True])
def test_whisper_is_encoded_near_torch_and_alone_as_in_a_batch(real_length: bool) -> None:
    model = transplanted(make_transformers_model(TINY), TINY, real_length=real_length)
    encoder = with_native_modules(model, pack(model), native().Team(2), instruction_sets()[0]).encoder
    features = torch.randn(3, 2 * TINY.max_frames, TINY.num_mel_bins)
    num_frames = torch.tensor([200, 61, 2]) if real_length else None
    with torch.inference_mode():
        wanted, result = model.encoder(features, num_frames), encoder(features, num_frames)
        assert result.shape == wanted.shape
        for b, count in enumerate([100, 31, 1] if real_length else [100] * 3):
            assert relative_error(result[b, :count], wanted[b, :count]) < 0.05
            alone = encoder(
                features[b : b + 1, : 2 * count], None if num_frames is None else num_frames[b : b + 1]
            )
            if num_frames is None or num_frames[b] == 2 * count:
                assert torch.equal(alone[0], result[b, :count])


def test_too_little_memory_is_an_error_that_says_so() -> None:
    for error in (MemoryError("std::bad_alloc"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(SprachbundError, match="not enough memory"), enough_memory():
            raise error
    with pytest.raises(RuntimeError, match="forked"), enough_memory():
        raise RuntimeError("the model was loaded before this process was forked")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what is mapped")
def test_a_native_model_lets_go_of_the_weights_it_does_not_read(tmp_path: Path) -> None:
    directory, cache = tmp_path / "model", tmp_path / "packed"
    make_directory(directory)
    engine = engine_for(load(directory), "native", threads=1, directory=directory, cache=cache)
    gc.collect()
    mapped = Path("/proc/self/maps").read_text()
    assert str(cache) in mapped
    assert str(directory) not in mapped
    assert engine.name == "native"

"""Eight bits: written is what was there up to half a step of its row; mapped, and refused where it cannot be."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig

from sprachbund.compression.quantization import check_packable, check_quantizable, stored_size, write_packed
from sprachbund.engines.choice import engine_for
from sprachbund.engines.extension import missing_because
from sprachbund.engines.packed_cache import PACKED_FILE
from sprachbund.errors import SprachbundError
from sprachbund.models import whisper
from sprachbund.models.conformer.io import save as save_conformer
from sprachbund.models.io import family_of, load
from sprachbund.models.seamless import Seamless
from sprachbund.models.splitting import split_feed_forwards
from tests.models import split_support
from tests.models.test_splitting import whisper_plan
from tests.models.whisper_support import TINY, make_directory

needs_native = pytest.mark.skipif(missing_because() is not None, reason="the native engine is not here")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Whisper in 32 bits, and in 8."""
    root = tmp_path_factory.mktemp("whisper")
    make_directory(root / "whole")
    whisper.save(whisper.load(root / "whole"), root / "small", bits=8)
    return root / "whole", root / "small"


def test_every_weight_of_a_whisper_is_within_half_a_step_of_its_row(directories: tuple[Path, Path]) -> None:
    whole, small = (load(path).state_dict() for path in directories)  # type: ignore[attr-defined]
    assert whole.keys() == small.keys()
    for name, weight in whole.items():
        rows = weight.flatten(1) if weight.ndim > 1 else weight[None]
        step = rows.abs().amax(1, keepdim=True) / (127 if weight.ndim > 1 else 2**10)
        assert bool(((small[name].reshape(rows.shape) - rows).abs() <= step / 2 + 1e-6).all()), name


def test_a_whisper_of_8_bits_keeps_its_files_pairs_and_layout(directories: tuple[Path, Path]) -> None:
    whole, small = directories
    assert family_of(small) == "whisper"
    first, second = load(whole), load(small)
    assert first.pairs() == second.pairs()
    assert second.features([np.zeros(8000, np.float32)]).values.shape[-1] == TINY.num_mel_bins
    config = json.loads((small / "config.json").read_text())
    assert (config["model_type"], config["dtype"]) == ("sprachbund-whisper", "int8")
    with pytest.raises((ValueError, KeyError), match="sprachbund-whisper"):
        AutoConfig.from_pretrained(small)


def test_a_whisper_of_8_bits_goes_back_to_what_transformers_reads(
    directories: tuple[Path, Path], tmp_path: Path
) -> None:
    small = whisper.load(directories[1])
    whisper.save(small, tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").model_type == "whisper"
    for name, weight in whisper.load(tmp_path / "again").state_dict().items():
        assert torch.equal(weight, small.state_dict()[name]), name


def test_a_split_whisper_has_8_bits_too(directories: tuple[Path, Path], tmp_path: Path) -> None:
    model = whisper.load(directories[0])
    split_feed_forwards(model, whisper_plan())
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    whisper.save(model, tmp_path, bits=8)
    again: Any = load(tmp_path)
    assert again.sharing_plan == model.sharing_plan
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, atol=0.01, rtol=0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_bytes_are_mapped_not_read(directories: tuple[Path, Path]) -> None:
    path = (directories[1] / "model.safetensors").resolve()
    with safe_open(path, "pt") as file:
        values = file.get_tensor("decoder.embedding.weight")
        scale = file.get_tensor("decoder.embedding.weight.scale")
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert (values.dtype, scale.dtype) == (torch.int8, torch.float32)
    assert scale.shape == (TINY.vocabulary_size,)
    assert mapped


def test_sizes_and_bits_are_those_of_the_files(directories: tuple[Path, Path], tmp_path: Path) -> None:
    whole, small = map(stored_size, directories)
    assert (whole.bits, small.bits) == (32, 8)
    assert whole.bytes_on_disk == (directories[0] / "model.safetensors").stat().st_size
    # a byte for every weight of a matrix, four for every row, two for every other weight, and the head
    weights = whisper.load(directories[0]).state_dict().values()
    wanted = sum(w.numel() + 4 * w.shape[0] if w.ndim > 1 else 2 * w.numel() for w in weights)
    assert wanted < small.bytes_on_disk < wanted + 20_000
    save_conformer(split_support.make_model(), tmp_path, bits=16)
    assert stored_size(tmp_path).bits == 16


def test_quantizing_again_changes_nothing_that_can_be_seen(
    directories: tuple[Path, Path], tmp_path: Path
) -> None:
    small = whisper.load(directories[1])
    whisper.save(small, tmp_path / "twice", bits=8)
    with (
        safe_open(directories[1] / "model.safetensors", "pt") as once,
        safe_open(tmp_path / "twice" / "model.safetensors", "pt") as twice,
    ):
        for name in once.keys():  # noqa: SIM118 - no mapping
            first, second = once.get_tensor(name), twice.get_tensor(name)
            if first.dtype == torch.int8:
                assert torch.equal(first, second), name
            else:
                torch.testing.assert_close(first, second, atol=0, rtol=1e-6)


def test_families_without_a_place_for_8_bits_are_refused() -> None:
    check_quantizable(split_support.make_model())
    with pytest.raises(SprachbundError, match="seamless models are written in 16 or 32 bits, not 8"):
        check_quantizable(Seamless.shape("medium"))


@needs_native
def test_the_native_engine_maps_the_packed_file_and_packs_nothing(
    directories: tuple[Path, Path], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    whisper.save(whisper.load(directories[1]), small, bits=8)
    model: Any = load(small)
    path = write_packed(model, small)
    assert path == small / PACKED_FILE
    engine = engine_for(model, "native", directory=small, cache=tmp_path / "cache")
    assert engine.notes == ()
    assert not list((tmp_path / "cache").glob("*.sbpacked"))
    packed_anew = engine_for(model, "native")
    features = model.features([np.zeros(8000, np.float32)])
    with torch.inference_mode():
        result, wanted = (e.family.encode(features).states for e in (engine, packed_anew))
    assert torch.equal(result, wanted)


@needs_native
def test_a_packed_file_of_other_weights_is_told_and_not_used(
    directories: tuple[Path, Path], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    whisper.save(whisper.load(directories[1]), small, bits=8)
    model: Any = load(small)
    write_packed(model, small)
    with torch.no_grad():
        model.decoder.norm.bias.add_(1.0)
    whisper.save(model, tmp_path / "other", bits=8)
    shutil.copyfile(tmp_path / "other" / "model.safetensors", small / "model.safetensors")
    engine = engine_for(model, "native", directory=small, cache=tmp_path / "cache")
    assert "is of another model" in engine.notes[0]
    assert len(list((tmp_path / "cache").glob("*.sbpacked"))) == 1


def test_a_model_that_the_native_engine_cannot_run_is_not_packed() -> None:
    split = split_support.make_split_model(
        split_support.make_split("decoder.layers.0.feed_forward", side="target")
    )
    with pytest.raises(SprachbundError, match=r"the native engine cannot run this model: .* leave --packed"):
        check_packable(split)

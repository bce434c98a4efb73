"""Whisper's weights as published, in 16 bits: engines bring to 32 bits only what they compute with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sprachbund
from sprachbund.engines.choice import engine_for
from sprachbund.errors import SprachbundError
from sprachbund.models.cascade import Cascade
from sprachbund.models.io import load, save
from tests.models.translation.support import make_checkpoint
from tests.models.whisper_support import TINY, make_directory

ENGINES = ("torch", "torch-fp32", "torch-bf16", "torch-int8", "native", "native-int4")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint in 16 bits."""
    path = tmp_path / "whisper"
    make_directory(path, TINY).half().save_pretrained(path)
    return path


def logits_of(family) -> torch.Tensor:
    features = family.features([np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)])
    with torch.inference_mode():
        memory = family.encode(features)
        return family.step(torch.tensor([[256, 257, 258]]), family.start(memory))


def test_weights_stay_as_the_file_has_them(directory: Path) -> None:
    family = load(directory, offline=True, as_stored=True)
    assert family.capabilities.as_stored
    assert {p.dtype for p in family.parameters()} == {torch.float16}
    assert {p.dtype for p in load(directory, offline=True).parameters()} == {torch.float32}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kept", [True, False])
def test_every_engine_computes_what_it_computes_from_32_bits(
    directory: Path, tmp_path: Path, engine: str, kept: bool
) -> None:
    """Packed anew, and from packed weights that were kept."""
    result = []
    for as_stored in (True, False, True):
        family = load(directory, offline=True, as_stored=as_stored)
        where = {"directory": directory, "cache": tmp_path / "cache"} if kept else {}
        chosen = engine_for(family, engine, threads=1, compare=False, **where).family
        assert all(p.dtype != torch.float16 for p in chosen.parameters())
        result.append(logits_of(chosen))
    assert torch.equal(result[0], result[1])
    assert torch.equal(result[2], result[1])


def test_text_is_that_of_32_bits(directory: Path) -> None:
    samples = np.random.default_rng(1).normal(0, 0.1, 32_000).astype(np.float32)
    model = sprachbund.load(directory, engine="native", threads=1)
    before = engine_for(load(directory, offline=True), "native", threads=1)
    options = sprachbund.DecodingOptions(max_tokens=12)
    ours = model.transcribe(samples, source="en", sample_rate=16_000, options=options)
    model.family = before.family
    theirs = model.transcribe(samples, source="en", sample_rate=16_000, options=options)
    assert ours == theirs


def test_halves_of_a_cascade_stay_too(directory: Path, tmp_path: Path) -> None:
    """Named at loading, and as a directory."""
    make_checkpoint(tmp_path / "m2m", "m2m_100")
    named = load(directory, then=tmp_path / "m2m", offline=True, as_stored=True)
    save(load(directory, then=tmp_path / "m2m", offline=True), tmp_path / "both")
    torch_weights = load(tmp_path / "both" / "recogniser", offline=True).half()
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    (tmp_path / "both" / "config.json").write_text(json.dumps({**config, "recogniser": str(directory)}))
    stored = load(tmp_path / "both", offline=True, as_stored=True)
    for cascade in (named, stored):
        assert isinstance(cascade, Cascade)
        assert cascade.recogniser.capabilities.as_stored
        assert not cascade.translator.capabilities.as_stored
    wide = engine_for(stored, "torch").family.recogniser
    assert all(
        torch.equal(a, b.float()) for a, b in zip(wide.parameters(), torch_weights.parameters(), strict=True)
    )


def test_memory_counts_where_weights_are_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped weights need none; torch computes with them in 32 bits, and says so before it takes the memory."""
    monkeypatch.setattr("sprachbund.models.hub.available_memory", lambda: 1000)
    with pytest.raises(SprachbundError, match=r"GB of memory and 0\.0 GB are free"):
        load(directory, offline=True)
    family = load(directory, offline=True, as_stored=True)
    with pytest.raises(SprachbundError, match=r"GB of memory and 0\.0 GB are free"):
        engine_for(family, "torch")
    packed = engine_for(family, "native", threads=1, compare=False)
    assert packed.name == "native"

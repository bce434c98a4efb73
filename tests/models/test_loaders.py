"""Every family that is known by name has a loader, and what does not fit into memory reaches none."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sprachbund.engines.choice import PooledFamily
from sprachbund.errors import SprachbundError
from sprachbund.models import FAMILIES, REGISTERED, io
from sprachbund.models.hub import bytes_of_weights, one_line
from sprachbund.models.io import FILES, Files, load, save
from sprachbund.util.extras import missing_package

NAMED = {"name": "whisper", "drafts": (), "calibration": None}


def directory_of(path: Path, family: str, gigabytes: float, name: str = "model.safetensors") -> Path:
    """A model directory with a file of that size, which takes no room on the disk."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": family}))
    with (path / name).open("wb") as file:
        file.truncate(int(gigabytes * 1e9))
    return path


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded() -> Files:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(io, "FILES", dict.fromkeys(FILES, loaded))


def test_every_family_is_registered_once_with_a_module_that_reads_and_writes_it() -> None:
    assert len(FAMILIES) == len(set(FAMILIES))
    assert [one.module for one in REGISTERED] == [*FILES]
    for one in REGISTERED:
        files = FILES[one.module]()
        assert files.__name__.startswith("sprachbund.models.")
        assert {files.load.__module__, files.save.__module__} == {files.__name__}


def test_a_model_that_runs_from_graphs_or_around_another_is_not_written(tmp_path: Path) -> None:
    for model in (SimpleNamespace(name="nobody's"), PooledFamily(SimpleNamespace(**NAMED), 2)):
        with pytest.raises(SprachbundError, match=r"cannot be written; save the model that it was made from"):
            save(model, tmp_path)
    with pytest.raises(SprachbundError, match=r"kind streaming_onnx cannot be written; save the model"):
        save(SimpleNamespace(name="streaming_onnx"), tmp_path)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "cascade"])
def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprachbund.models.hub.available_memory", lambda: 6 * 10**9)
    directory = directory_of(tmp_path, family, 8.0)
    with pytest.raises(
        SprachbundError, match=r"need 8\.0 GB of memory and 6\.0 GB are free; end other"
    ) as caught:
        load(directory)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.usefixtures("nothing_is_loaded")
def test_halves_that_fit_alone_and_not_together_are_refused_before_one_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprachbund.models.hub.available_memory", lambda: 6 * 10**9)
    halves = [directory_of(tmp_path / "a", "whisper", 4.0), directory_of(tmp_path / "b", "m2m_100", 4.0)]
    with pytest.raises(SprachbundError, match=r"/a and .*/b need 8\.0 GB of memory and 6\.0 GB are free"):
        load(halves[0], then=halves[1])


def test_bytes_of_weights_count_no_weight_twice(tmp_path: Path) -> None:
    directory = directory_of(tmp_path, "whisper", 1e-6)
    directory_of(tmp_path, "whisper", 3e-6, "model.fp32-00001-of-00001.safetensors")
    directory_of(tmp_path / "llm", "llama", 2e-6, "model-00001-of-00002.safetensors")
    directory_of(tmp_path / "llm", "llama", 5e-6, "model-00002-of-00002.safetensors")
    assert bytes_of_weights(directory) == 1000 + 2000 + 5000


def test_a_package_that_is_missing_is_no_fault_of_the_files(tmp_path: Path) -> None:
    """transformers names its own class; what its error was caused by names the package."""

    def load_class() -> None:
        try:
            importlib.import_module("nothing")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Could not import module 'Qwen2ForCausalLM'.") from error

    with pytest.raises(ModuleNotFoundError, match="Could not import") as caught, one_line(tmp_path):
        load_class()
    assert missing_package(caught.value) == "the package nothing is not installed; run: pip install nothing"

"""COMET by a stand-in with the interface of unbabel-comet 2.2.7; `test_comet_itself` has the package, where it is."""

import sys
from collections import UserDict
from types import SimpleNamespace

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.metrics import Comet

SCORES = {"h": 0.5, "i": 0.75}


class Prediction(UserDict):
    """The package's answer: a mapping whose keys are attributes too."""

    def __getattr__(self, name):
        return self.data[name]


class StandIn:
    """The package: its signatures are copied, what it is asked for is kept."""

    def __init__(self):
        self.downloaded, self.loaded, self.samples = [], [], []

    def download_model(self, model, saving_directory=None, local_files_only=False):
        self.downloaded.append(model)
        return f"/cache/{model}/checkpoints/model.ckpt"

    def load_from_checkpoint(
        self, checkpoint_path, reload_hparams=False, strict=False, local_files_only=False
    ):
        self.loaded.append((checkpoint_path, local_files_only))
        return self

    def eval(self):
        return self

    def half(self):
        self.halved = True
        return self

    def predict(
        self,
        samples,
        batch_size=16,
        gpus=1,
        devices=None,
        mc_dropout=0,
        progress_bar=True,
        accelerator="auto",
        num_workers=None,
        length_batching=True,
    ):
        assert (gpus, progress_bar) == (0, False)
        self.samples += samples
        return Prediction(scores=[SCORES[sample["mt"]] for sample in samples], system_score=0.625)


@pytest.fixture
def package(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "comet", stand_in)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.2.7")
    return stand_in


@pytest.fixture
def on_disk(tmp_path):
    (tmp_path / "model" / "checkpoints").mkdir(parents=True)
    (tmp_path / "model" / "hparams.yaml").touch()
    (tmp_path / "model" / "checkpoints" / "model.ckpt").touch()
    return tmp_path / "model"


def test_without_the_package_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "comet", None)
    with pytest.raises(SprachbundError, match=r"pip install 'sprachbund\[comet\]'"):
        Comet()
    monkeypatch.setitem(sys.modules, "comet", SimpleNamespace(__version__="3"))
    with pytest.raises(SprachbundError, match=r"is another one; .*pip install unbabel-comet"):
        Comet()


def test_a_package_that_lacks_something_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "comet.py").write_text("import nothing_of_this_name", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "comet", raising=False)
    with pytest.raises(SprachbundError, match=r"cannot be loaded \(No module named 'nothing_of_this_name'\)"):
        Comet()


def test_the_package_is_given_source_hypothesis_and_reference(package):
    comet = Comet("Unbabel/wmt22-comet-da")
    assert comet.scores(["s", "t"], ["h", "i"], ["r", "q"]) == [50, 75]
    assert package.samples[1] == {"src": "t", "mt": "i", "ref": "q"}
    assert package.loaded == [("/cache/Unbabel/wmt22-comet-da/checkpoints/model.ckpt", False)]
    assert comet.signature == "COMET|model:Unbabel/wmt22-comet-da|version:2.2.7|precision:float16"
    assert package.halved  # as the package's command does


@pytest.mark.parametrize("part", ["", "checkpoints/model.ckpt"])
def test_a_model_on_disk_is_used_without_the_network(package, on_disk, part):
    Comet(str(on_disk / part))
    assert package.loaded == [(str(on_disk / "checkpoints" / "model.ckpt"), True)]
    assert not package.downloaded


def test_a_model_on_disk_that_is_not_whole(package, on_disk, tmp_path):
    (on_disk / "hparams.yaml").unlink()
    with pytest.raises(SprachbundError, match=r"lacks .*hparams\.yaml; download"):
        Comet(str(on_disk))
    (on_disk / "checkpoints" / "model.ckpt").unlink()
    with pytest.raises(SprachbundError, match=r"lacks .*model\.ckpt; download"):
        Comet(str(on_disk))
    with pytest.raises(SprachbundError, match="does not exist; check the path"):
        Comet(str(tmp_path / "none"))


def test_a_model_that_cannot_be_had(package, monkeypatch):
    def fail(name):
        raise KeyError(f"Model '{name}' not supported by COMET.")

    monkeypatch.setattr(package, "download_model", fail)
    with pytest.raises(SprachbundError, match=r"not supported by COMET.*name its directory"):
        Comet("some/model")


def test_offline_a_name_is_looked_up_on_disk_only(package, monkeypatch, on_disk, tmp_path):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options["local_files_only"]))
        return str(on_disk)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    Comet("Unbabel/wmt22-comet-da", offline=True)
    assert set(asked) == {("Unbabel/wmt22-comet-da", True)}
    assert package.loaded == [(str(on_disk / "checkpoints" / "model.ckpt"), True)]
    assert not package.downloaded


def test_offline_a_model_that_was_never_downloaded(package, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SprachbundError, match="offline, and it was not downloaded before"):
        Comet("nobody/comet", offline=True)
    assert not package.downloaded

"""`convert`, `export` and `compress quantize --encoder-bits`, as a user meets them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sprachbund.engines.choice import engine_for
from sprachbund.engines.packed_cache import PACKED_FILE
from sprachbund.models.io import load, save
from tests.engines.support import needs_native
from tests.models.fastconformer.archives import nemo_config as nemo_config_of_parakeet
from tests.models.fastconformer.archives import nemo_weights as nemo_weights_of_parakeet
from tests.models.fastconformer.archives import sentencepiece_model as sentencepiece_model_of_parakeet
from tests.models.fastconformer.archives import write_archive
from tests.models.fastconformer.support import make
from tests.models.transducer_checkpoints import (
    made_model,
    nemo_config,
    nemo_weights,
    sentencepiece_model,
    write_nemo,
    write_transformers,
)
from tests.models.whisper_support import make_directory
from tests.stories.support import command, speech, write_wav
from tests.streaming.test_by_frames import tiny_transducer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, theirs = tmp_path_factory.mktemp("streaming"), made_model()
    write_nemo(folder / "x.nemo", nemo_config(theirs), nemo_weights(theirs), sentencepiece_model())
    (folder / "hf").mkdir()
    write_transformers(folder / "hf", theirs)
    save(tiny_transducer(), folder / "tiny")
    write_wav(folder / "a.wav", speech("one two three"))
    ran = command(
        "convert", folder / "x.nemo", "--out", folder / "model", "--language", "en", "--licence", "MIT"
    )
    assert ran.code == 0
    assert "frames ahead it was trained for: 13, 6, 1, 0" in ran.err
    return folder


@pytest.fixture
def refused(root: Path):
    def check(says: str, *args: str | Path) -> None:
        ran = command(*args)
        assert ran.code in (1, 2)
        assert len(ran.error_lines) == 1
        assert says in ran.err

    return check


@pytest.mark.slow
def test_a_converted_checkpoint_is_a_model_like_any_other(root):
    listed = json.loads(command("models", "show", root / "model", "--json").out)
    assert listed["licence"] == "MIT"
    assert listed["pairs"] == [["en", "en"]]
    assert "NeMo" in listed["description"]
    for verb in (["transcribe"], ["translate", "--to", "en"]):
        ran = command(verb[0], root / "a.wav", "--model", root / "model", *verb[1:], "--no-guard", "--json")
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["text"]
    ran = command("listen", root / "a.wav", "--model", root / "model", "--to", "en", "--tier", "1")
    assert ran.code == 0
    assert "]" in ran.out


def test_transformers_and_nemo_give_the_same_model(root, tmp_path):
    out = tmp_path / "model"
    ran = command("convert", root / "hf", "--out", out, "--language", "en", "--json")
    assert json.loads(ran.out)["right_contexts"] == [13, 6, 1, 0]
    first, second = (load_file(folder / "model.safetensors") for folder in (out, root / "model"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_parakeet_of_nemo_is_converted(tmp_path):
    made = make(tmp_path, "parakeet_tdt")
    archive = write_archive(
        tmp_path / "p.nemo",
        nemo_config_of_parakeet(made),
        nemo_weights_of_parakeet(made),
        {"0a1b_tokenizer.model": sentencepiece_model_of_parakeet(True)},
    )
    ran = command("convert", archive, "--out", tmp_path / "out", "--language", "en,de", "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert (said["kind"], said["languages"]) == ("parakeet_tdt", ["de", "en"])
    write_wav(tmp_path / "a.wav", speech("one two three"))
    ran = command(
        "transcribe",
        tmp_path / "a.wav",
        "--model",
        tmp_path / "out",
        "--from",
        "en",
        "--no-guard",
        "--words",
        "--json",
    )
    assert ran.code == 0, ran.err
    ran = command("convert", archive, "--out", tmp_path / "ctc", "--language", "en", "--head", "ctc")
    assert ran.code == 2
    assert "has no head of the kind ctc" in ran.err
    ran = command("convert", archive, "--out", tmp_path / "none")
    assert ran.code == 2
    assert "does not name the model's languages" in ran.err


def test_what_cannot_be_converted(root, refused, tmp_path):
    out = ("--out", tmp_path / "new")
    refused("is there already", "convert", root / "x.nemo", "--out", root / "model", "--language", "en")
    refused("no language tag", "convert", root / "x.nemo", *out, "--language", "not a tag")
    refused("no file", "convert", root / "y.nemo", *out, "--language", "en")
    refused("not a whole .nemo archive", "convert", root / "a.wav", *out, "--language", "en")
    refused("it streams", "convert", root / "x.nemo", *out, "--language", "en", "--head", "ctc")
    refused("name them with --language", "convert", root / "x.nemo", *out)
    refused(
        "is a conformer model, which is read as it is", "convert", root / "tiny", *out, "--language", "en"
    )
    refused("sprachbund convert", "transcribe", root / "a.wav", "--model", root / "x.nemo")
    refused("sprachbund convert", "transcribe", root / "a.wav", "--model", root / "hf")
    refused(
        "there is no directory ./gone", "convert", "./gone", *out
    )  # and not asked for its languages first
    make_directory(tmp_path / "whisper")
    refused("is a whisper model, which is read as it is", "convert", tmp_path / "whisper", *out)
    assert not (tmp_path / "new").exists()


def test_an_encoder_in_few_bits(root, tmp_path):
    out = tmp_path / "small"
    ran = command(
        *("compress", "quantize", root / "model", "--out", out, "--encoder-bits", "5", "--symmetric"),
        *("--no-speech", "0", "--rounds", "0", "--json"),
    )
    assert ran.code == 0, ran.err
    values = json.loads(ran.out)
    assert (values["encoder_bits"], values["method"], values["symmetric"]) == (5, "k-quant", True)
    assert 5.5 <= values["bits_per_weight"] < 6.5
    assert values["after"]["parameters"] == values["before"]["parameters"]
    assert values["after"]["bytes_on_disk"] < values["before"]["bytes_on_disk"]
    assert json.loads(command("models", "show", out, "--json").out)["bits"] == 5
    before, after = load(root / "model").state_dict(), load(out).state_dict()  # type: ignore[attr-defined]
    assert all((before[name] == after[name]).all() for name in before.keys() & after.keys())


@needs_native
@torch.no_grad()
def test_an_encoder_in_few_bits_with_what_the_native_engine_maps(root, tmp_path):
    outs = {packed: tmp_path / packed for packed in ("without", "--packed")}
    for packed, out in outs.items():
        ran = command(
            *("compress", "quantize", root / "tiny", "--out", out, "--encoder-bits", "4"),
            *("--no-speech", "0", "--rounds", "0", *([packed] if packed == "--packed" else [])),
        )
        assert ran.code == 0, ran.err
    assert (outs["--packed"] / PACKED_FILE).exists()
    mel, num_mel = torch.randn(1, 200, 40, generator=torch.Generator().manual_seed(0)), torch.tensor([200])
    states = []
    for out in outs.values():
        cache = tmp_path / f"cache of {out.name}"
        family = engine_for(load(out), "native", threads=1, directory=out, cache=cache).family
        streaming = family.capabilities.streaming
        assert streaming is not None
        states.append(streaming.encoder(mel, num_mel)[0])
        # What lies beside the weights is mapped from there.
        assert bool(list(cache.glob("*.sbpacked"))) == (out.name == "without")
    assert torch.equal(*states)


def test_what_cannot_be_quantized(root, refused, tmp_path):
    new = ("--out", tmp_path / "new")
    quantize = ("compress", "quantize", root / "tiny", *new)
    refused("in 2 bits are not offered", *quantize, "--encoder-bits", "2")
    refused("give it too", *quantize, "--symmetric")
    refused("does not stream", "compress", "quantize", "bundled", *new, "--encoder-bits", "4")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_exported(root, refused, tmp_path):
    refused("only streaming encoders", "export", "bundled", "--out", tmp_path / "new")
    refused("is there already", "export", root / "tiny", "--out", root / "hf")
    refused("check the path", "export", root / "none", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()

"""Model directories: parts inside or named, and what is said when something is wrong with them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sprachbund.errors import SprachbundError
from sprachbund.models import io as directories
from sprachbund.models.card import Card
from sprachbund.models.speech_llm import SpeechLLM, assemble, load, save
from sprachbund.models.speech_llm.checkpoints import read_llm
from tests.models.seamless.support import VERSIONS, make_checkpoint
from tests.models.speech_llm_support import (
    make_batch,
    make_config,
    make_encoder,
    make_llm,
    make_model,
    move_adapters,
    speech,
    tokenizer,
)
from tests.models.whisper_support import make_directory


def loss_of(model: SpeechLLM) -> float:
    return model.loss(make_batch(model, [0], ["hola"], [0], [0.7])).total.item()


@pytest.mark.parametrize("kind", ["whisper", "conformer", "wavlm", "wav2vec2-bert"])
def test_a_model_with_its_parts_inside_comes_back(kind: str, tmp_path: Path) -> None:
    model = move_adapters(make_model(kind, llm="llama" if kind == "whisper" else "qwen2"))
    directories.save(model, tmp_path, card=Card(name="tiny"))
    again = directories.load(tmp_path, offline=True)
    assert isinstance(again, SpeechLLM)
    wanted, result = model.state_dict(), again.state_dict()
    assert wanted.keys() == result.keys()
    assert all(torch.equal(wanted[name], result[name]) for name in wanted)
    assert again.config == model.config
    assert loss_of(again) == pytest.approx(loss_of(model), rel=1e-6)
    assert Card.read(tmp_path).name == "tiny"
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")  # for others to use
    tokens = torch.tensor([[5, 6, 7]])
    alone = make_llm("llama" if kind == "whisper" else "qwen2")
    torch.testing.assert_close(plain(tokens).logits, alone(tokens).logits)


def test_a_config_that_turns_the_prompts_round_is_refused(tmp_path: Path) -> None:
    save(make_model(), tmp_path)
    config = tmp_path / "config.json"
    entry = json.loads(config.read_text())
    entry["config"]["prompts"]["translate"] = "Say it in {language}."
    config.write_text(json.dumps(entry))
    assert load(tmp_path).prompts.options.translate == "Say it in {language}."
    entry["config"]["prompts"]["order"].reverse()
    config.write_text(json.dumps(entry))
    with pytest.raises(
        SprachbundError, match=r"config\.json: .*speech before text.*trained with text before speech"
    ):
        load(tmp_path)


def test_a_model_written_before_the_order_of_prompts_was_is_read(tmp_path: Path) -> None:
    save(make_model(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load(tmp_path).config.prompts.order == ("text", "speech")


def test_tied_embeddings_and_half_the_bits(tmp_path: Path) -> None:
    model = move_adapters(make_model(llm="gemma2"))
    save(model, tmp_path, bits=16)
    again = load(tmp_path)
    assert loss_of(again) == pytest.approx(loss_of(model), rel=1e-2)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {str(file.get_slice(name).get_dtype()) for name in file.keys()} == {"F16"}  # noqa: SIM118


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """A language model with its tokenizer, and an encoder of transformers, as others publish them."""
    llm, encoder = tmp_path / "some-llm", tmp_path / "some-encoder"
    make_llm().save_pretrained(llm)
    tokenizer().save_pretrained(llm)
    hf_model = make_encoder("wavlm")
    hf_model.encoder.save_pretrained(encoder)
    hf_model.extractor.save_pretrained(encoder)
    return encoder, llm


def test_parts_that_are_named_are_not_copied(parts: tuple[Path, Path], tmp_path: Path) -> None:
    model = move_adapters(assemble(*parts, make_config(), offline=True))
    save(model, tmp_path / "model", inside=False)
    entry = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (entry["encoder"]["source"], entry["llm"]) == (str(parts[0]), str(parts[1]))
    assert not (tmp_path / "model" / "llm").exists()
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert all(name.startswith("projector.") or ".lora_" in name for name in file.keys())  # noqa: SIM118
    again = load(tmp_path / "model")
    assert loss_of(again) == pytest.approx(loss_of(model), rel=1e-6)
    save(again, tmp_path / "copy", inside=False)  # loaded models know where their parts are from
    save(again, tmp_path / "whole")
    assert loss_of(load(tmp_path / "whole")) == pytest.approx(loss_of(model), rel=1e-6)
    (parts[1] / "config.json").unlink()
    with pytest.raises(SprachbundError, match="some-llm cannot be read"):
        load(tmp_path / "model")


def test_an_encoder_of_this_project_by_its_directory(parts: tuple[Path, Path], tmp_path: Path) -> None:
    model = assemble("src/sprachbund/models/assets/bundled", parts[1], make_config(), offline=True)
    assert model.encoder.kind == "conformer"
    family = directories.load()
    memory = family.encode(family.features([torch.ones(8000).numpy()]))
    features = model.features([torch.ones(8000).numpy()])
    states, _ = model.encoder(features.values, features.num_frames)
    torch.testing.assert_close(states, memory.states)
    save(model, tmp_path / "named", inside=False)
    assert loss_of(load(tmp_path / "named")) == pytest.approx(loss_of(model), rel=1e-6)


def test_a_whisper_checkpoint_is_heard_as_whisper_hears(parts: tuple[Path, Path], tmp_path: Path) -> None:
    make_directory(tmp_path / "whisper")
    model = assemble(tmp_path / "whisper", parts[1], make_config(), offline=True)
    family = directories.load(tmp_path / "whisper", offline=True)
    samples = speech(0.5)
    wanted = family.encode(family.features(samples)).states
    features = model.features(samples)
    states, num_states = model.encoder(features.values, features.num_frames)
    assert num_states.tolist() == [25]
    torch.testing.assert_close(states, wanted[:, :25])
    save(model, tmp_path / "inside")
    assert loss_of(load(tmp_path / "inside")) == pytest.approx(loss_of(model), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_seamless_is_named(version: str, parts: tuple[Path, Path], tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "seamless", version)
    family = directories.load(tmp_path / "seamless", offline=True)
    model = move_adapters(assemble(tmp_path / "seamless", parts[1], make_config(), offline=True))
    samples = speech(0.9)
    bare = assemble(tmp_path / "seamless", parts[1], make_config(), offline=True)
    features = bare.features(samples)
    wanted = family.encode(family.features(samples)).states
    torch.testing.assert_close(bare.encoder(features.values, features.num_frames)[0], wanted)
    save(model, tmp_path / "model", inside=False)
    assert loss_of(load(tmp_path / "model")) == pytest.approx(loss_of(model), rel=1e-6)
    with pytest.raises(SprachbundError, match="cannot be saved inside"):
        save(model, tmp_path / "whole")
    model.loss(make_batch(model, [0], ["hola"], [0], [1.5])).total.backward()
    assert not [n for n, p in model.encoder.named_parameters() if ".lora_" in n and not p.grad.abs().max()]


def test_what_is_wrong_is_said(parts: tuple[Path, Path], tmp_path: Path) -> None:
    fresh = make_model()
    with pytest.raises(SprachbundError, match="came from no path or name"):
        save(fresh, tmp_path / "x", inside=False)
    save(fresh, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    entry = json.loads(path.read_text())
    path.write_text(json.dumps({**entry, "colour": 1}))
    with pytest.raises(SprachbundError, match="colour: Extra inputs"):
        load(tmp_path / "model")
    path.write_text(json.dumps({**entry, "encoder": {**entry["encoder"], "kind": "ear"}}))
    with pytest.raises(SprachbundError, match="encoder 'ear' lies inside; that can be whisper"):
        load(tmp_path / "model")
    entry["config"]["projector"]["hidden_width"] = 99
    path.write_text(json.dumps(entry))
    with pytest.raises(SprachbundError, match=r"experts\.branches.* has shape"):
        load(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(SprachbundError, match=r"has no model\.safetensors"):
        load(tmp_path / "model")
    (tmp_path / "model" / "llm" / "config.json").unlink()
    with pytest.raises(SprachbundError, match=r"has no llm/config\.json"):
        load(tmp_path / "model")
    with pytest.raises(SprachbundError, match="there is no directory"):
        assemble(tmp_path / "nowhere at all", parts[1], make_config(), offline=True)
    with pytest.raises(SprachbundError, match="the encoder of the family 'qwen2' is not taken"):
        assemble(parts[1], parts[1], make_config(), offline=True)


def test_code_that_lies_in_a_directory_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does anything ask on the terminal whether to run it."""
    llm = tmp_path / "llm"
    llm.mkdir()
    (llm / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\n")
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}
    (llm / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(SprachbundError, match="contains custom code"):
        read_llm(llm, torch.float32)
    assert not (tmp_path / "ran").exists()

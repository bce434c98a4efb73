"""Directories: read as published, written for transformers, and refused with one line when something is wrong."""

import builtins
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models import io as any_directory
from sprachbund.models.base import Family, Features, Target
from sprachbund.models.seamless import Seamless, from_transformers, load, save
from sprachbund.models.seamless.checkpoints import transformers_name
from sprachbund.models.seamless.tokens import SeamlessTokens
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.models.splitting import split_feed_forwards
from tests.models.seamless.support import (
    SENTENCES,
    VERSIONS,
    make_checkpoint,
    make_transformers_model,
    pieces,
    write_tokenizer,
)


@pytest.fixture(scope="module", params=VERSIONS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory with all parts of a SeamlessM4T, those for speech output too, and transformers' model of it."""
    directory = tmp_path_factory.mktemp(request.param) / "model"
    return directory, make_checkpoint(directory, request.param, kind="Model")


@pytest.fixture
def copied(published: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(published[0], tmp_path / "model"))


def logits_of(model: Any) -> Tensor:
    values = torch.randn(1, 24, 160, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[3, 122, 9, 33, 8]])
    with torch.inference_mode():
        if isinstance(model, Seamless):
            return model(Features(values=values, num_frames=torch.tensor([24])), tokens)
        logits: Tensor = model(input_features=values, decoder_input_ids=tokens).logits
        return logits


def speech_to_text(model: Any) -> Any:
    return getattr(transformers, type(model).__name__.replace("Model", "ForSpeechToText"))


def test_the_speech_to_text_part_of_a_whole_checkpoint_is_loaded_by_any_door(
    published: tuple[Path, Any],
) -> None:
    directory, hf_model = published
    model = any_directory.load(directory)
    assert isinstance(model, Seamless)
    assert isinstance(model, Family)
    assert not model.training
    hf_model.set_modality("speech")
    torch.testing.assert_close(logits_of(model), logits_of(hf_model), rtol=1e-4, atol=1e-4)
    names = [name for name, _ in model.named_modules()]
    assert "encoder.layers.1.feed_forward_out" in names
    assert not any("t2u" in name or "vocoder" in name for name in names)
    assert [model.tokens.languages.code(t) for t in ("fr", "zh-Hant", "ar")] == ["fra", "cmn_Hant", "arb"]


def test_saved_and_loaded_is_the_same_here_and_in_transformers(
    published: tuple[Path, Any], tmp_path: Path
) -> None:
    directory, hf_model = published
    model = load(directory)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert again.pairs() == model.pairs()
    assert again.max_tokens == model.max_tokens
    assert [again.prompt(Target(language=t)) for t in ("fr", "et")] == [
        model.prompt(Target(language=t)) for t in ("fr", "et")
    ]
    theirs, report = speech_to_text(hf_model).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"]
    assert all(name.startswith("text_encoder.") for name in report["unexpected_keys"])
    torch.testing.assert_close(logits_of(theirs.eval()), logits_of(model), rtol=1e-4, atol=1e-4)
    processor = transformers.SeamlessM4TProcessor.from_pretrained(tmp_path / "saved")
    assert processor.tokenizer.convert_tokens_to_ids("__fra__") == model.tokens.language_token("fr")
    save(again, tmp_path / "saved")  # over itself
    with pytest.raises(SprachbundError, match="is not a model directory"):
        save(model, directory.parent)


def test_every_weight_has_its_place_in_transformers(published: tuple[Path, Any]) -> None:
    hf_model = make_transformers_model(published[1].config)
    model = from_transformers(hf_model)
    wanted = {
        n for n in hf_model.state_dict() if n not in ("lm_head.weight", "text_decoder.embed_tokens.weight")
    }
    assert {transformers_name(name) for name in model.state_dict()} == wanted


def test_text_goes_to_tokens_and_back_as_sentencepiece_does(published: tuple[Path, Any]) -> None:
    model = load(published[0])
    reference = sentencepiece.SentencePieceProcessor(model_proto=pieces())
    for text in SENTENCES:
        tokens = model.target_tokens(text)
        assert tokens == [*(piece + 1 for piece in reference.encode(text)), model.end_token]
        assert model.decode_text([3, model.tokens.language_token("fr"), *tokens]) == text
    with pytest.raises(SprachbundError, match="the special token __fra__"):
        model.target_tokens("do __fra__ that")


def test_languages_heard_can_be_told_in_the_configuration(copied: Path) -> None:
    change(copied, "config.json", sprachbund={"source_languages": ["bem", "aeb"]})
    model = load(copied)
    assert model.source_languages == ("bem", "aeb")
    assert ("bem", "en") in model.pairs()
    save(model, copied.parent / "again")
    assert load(copied.parent / "again").source_languages == ("bem", "aeb")
    change(copied, "config.json", sprachbund={"source_languages": "bem"})
    with pytest.raises(SprachbundError, match="has to list language tags, not 'bem'"):
        load(copied)


def test_language_codes_that_transformers_drops_are_read(copied: Path) -> None:
    change(
        copied, "generation_config.json", _from_model_config=True, text_decoder_lang_to_code_id={"fra": 122}
    )
    assert load(copied).tokens.languages.tags == ("fr",)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_precision_asked_for_is_given(published: tuple[Path, Any], dtype: torch.dtype) -> None:
    model = load(published[0], dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.decoder.positions.dtype == dtype


def test_a_model_split_by_language_goes_through_a_directory(
    published: tuple[Path, Any], tmp_path: Path
) -> None:
    model = load(published[0])
    plan = make_plan()
    split_feed_forwards(model, plan)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".private." in name or ".shared." in name:
                value.copy_(torch.randn(value.shape, generator=generator))
    save(model, tmp_path / "split")
    again = any_directory.load(tmp_path / "split")
    assert isinstance(again, Seamless)
    assert again.sharing_plan == plan
    spoken = [model.source_languages.index(tag) for tag in ("fr", "et", "de")]
    features = Features(
        values=torch.randn(3, 24, 160),
        num_frames=torch.tensor([24, 9, 17]),
        source_language=torch.tensor(spoken),
    )
    with torch.inference_mode():
        whole = model.encode(features).states
        torch.testing.assert_close(again.encode(features).states, whole)
        other = model.encode(replace(features, source_language=torch.tensor(spoken[1:] + spoken[:1])))
    assert (other.states[0] - whole[0]).abs().max() > 1e-3, "another branch for another language"
    with pytest.raises(SprachbundError, match="name the source language"):
        model.encode(Features(values=features.values, num_frames=features.num_frames))
    with pytest.raises(Exception, match="sprachbund-seamless"):
        transformers.AutoConfig.from_pretrained(tmp_path / "split")


def make_plan() -> SharingPlan:
    split = {
        "module": "encoder.layers.1.feed_forward_out",
        "side": "source",
        "groups": [["fr"], ["et", "de"]],
        "shared_ratio": 0.5,
        "private_shares": [0.5, 0.5],
        "start": "random",
        "seed": 0,
    }
    return SharingPlan.model_validate({"version": 1, "model_hash": None, "splits": [split]})


def change(directory: Path, name: str, **values: object) -> None:
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("config.json",), "has no config.json"),
        (("model.safetensors",), "has no weights"),
        (("sentencepiece.bpe.model",), "has no tokenizer"),
    ],
)
def test_missing_files_are_named(copied: Path, names: Sequence[str], message: str) -> None:
    for name in names:
        (copied / name).unlink()
    refused(copied, message)


def refused(directory: Path, message: str) -> None:
    with pytest.raises(SprachbundError, match=message) as raised:
        load(directory)
    assert "\n" not in str(raised.value)


def test_broken_files_are_named(copied: Path) -> None:
    good = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(good[:1000])
    refused(copied, "not a whole safetensors file .*copy it again")
    (copied / "model.safetensors").write_bytes(good)
    (copied / "sentencepiece.bpe.model").write_bytes(b"nothing")
    refused(copied, "tokenizer_config.json cannot be read")
    (copied / "config.json").write_text("{")
    refused(copied, "not JSON")


def test_missing_optional_files_fall_back_to_what_was_published(copied: Path) -> None:
    for name in ("generation_config.json", "preprocessor_config.json"):
        (copied / name).unlink()
    model = load(copied)
    assert model.tokens.languages.code("fr") == "fra"
    assert model.extractor.num_mel_bins == 80


def test_a_text_to_text_checkpoint_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "text", "seamless_m4t", kind="ForTextToText")
    refused(tmp_path / "text", "lacks the speech encoder.*text-to-text checkpoint cannot hear")


def test_other_models_and_vocabularies_are_refused(copied: Path) -> None:
    change(copied, "generation_config.json", text_decoder_lang_to_code_id={"fra": 5})
    refused(copied, "disagree on the token of 'fra'")
    change(copied, "config.json", vocab_size=100)
    refused(copied, "cannot be read|numbers its tokens up to")
    change(copied, "config.json", model_type="whisper")
    refused(copied, "of type 'whisper', not Seamless")


def test_weights_of_another_shape_are_refused(copied: Path) -> None:
    change(copied, "config.json", speech_encoder_layers=3)
    refused(copied, "lacks the speech encoder|lacks .* tensors")
    change(copied, "config.json", speech_encoder_layers=2, speech_encoder_hidden_act="gelu")
    refused(copied, "speech_encoder_hidden_act = 'gelu'; only 'swish' is known")


def test_an_unknown_id_is_refused_offline(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="offline"):
        load("facebook/no-such-seamless", offline=True)


def test_without_transformers_the_way_to_install_it_is_reported(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(copied, r"pip install 'sprachbund\[seamless\]'")


def test_a_vocabulary_without_languages_is_refused(published: tuple[Path, Any]) -> None:
    tokenizer = load(published[0]).tokens.tokenizer
    with pytest.raises(SprachbundError, match="no language tokens"):
        SeamlessTokens(tokenizer, {}, len(tokenizer))


def test_words_that_were_added_are_text(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    tokenizer.add_tokens(["Kölsch", "<think>"])
    tokens = SeamlessTokens(tokenizer, None, len(tokenizer))
    word, mark = tokenizer.convert_tokens_to_ids(["Kölsch", "<think>"])
    assert word in tokens.text_to_tokens("ein Kölsch")
    assert word not in tokens.not_text
    assert mark in tokens.not_text

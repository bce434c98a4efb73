import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from sprachbund.errors import SprachbundError
from sprachbund.models import hub, whisper
from sprachbund.models.base import Features, Target
from sprachbund.models.whisper import Whisper, WhisperTokens
from sprachbund.models.whisper import io as directory
from sprachbund.models.whisper.io import transformers_name
from tests.models.whisper_support import (
    TINY,
    make_directory,
    make_tokenizer,
    make_transformers_model,
    special_names,
)

MEL = torch.randn(2, TINY.num_mel_bins, 2 * TINY.max_frames, generator=torch.Generator().manual_seed(5))
TOKENS = torch.randint(0, 2000, (2, 6), generator=torch.Generator().manual_seed(6))
FEATURES = Features(values=MEL.transpose(1, 2), num_frames=torch.full((2,), MEL.shape[2]))


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    make_directory(tmp_path / "whisper")
    return tmp_path / "whisper"


def logits_of(model: Whisper | WhisperForConditionalGeneration) -> torch.Tensor:
    if isinstance(model, Whisper):
        return model(FEATURES, TOKENS)
    return model(input_features=MEL, decoder_input_ids=TOKENS).logits


def edit_config(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(checkpoint: Path, drop: tuple[str, ...] = (), **changes: torch.Tensor) -> None:
    weights = {k: v.clone() for k, v in load_file(checkpoint / "model.safetensors").items() if k not in drop}
    save_file(
        {**weights, **{k.replace("__", "."): v for k, v in changes.items()}}, checkpoint / "model.safetensors"
    )


def test_loads_what_transformers_saved(checkpoint: Path) -> None:
    model = whisper.load(checkpoint)
    assert not model.training
    assert not model.encoder.positions.requires_grad
    assert torch.allclose(logits_of(model), logits_of(make_transformers_model(TINY)), atol=1e-4)


def test_loads_sharded_safetensors(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    make_transformers_model(TINY).save_pretrained(checkpoint, max_shard_size="60KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    assert torch.allclose(
        logits_of(whisper.load(checkpoint)), logits_of(make_transformers_model(TINY)), atol=1e-4
    )


def test_loads_pytorch_model_bin_whole_and_sharded(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    weights = make_transformers_model(TINY).state_dict()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    assert torch.allclose(
        logits_of(whisper.load(checkpoint)), logits_of(make_transformers_model(TINY)), atol=1e-4
    )
    (checkpoint / "pytorch_model.bin").unlink()
    place = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(weights)}
    for shard in set(place.values()):
        torch.save({n: w for n, w in weights.items() if place[n] == shard}, checkpoint / shard)
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
    assert torch.allclose(
        logits_of(whisper.load(checkpoint)), logits_of(make_transformers_model(TINY)), atol=1e-4
    )


def test_loads_a_model_saved_without_its_output_matrix_and_prefix(checkpoint: Path) -> None:
    make_transformers_model(TINY).model.save_pretrained(checkpoint)
    assert not any(name.startswith("model.") for name in load_file(checkpoint / "model.safetensors"))
    assert torch.allclose(
        logits_of(whisper.load(checkpoint)), logits_of(make_transformers_model(TINY)), atol=1e-4
    )


def test_loads_in_the_precision_asked_for(checkpoint: Path) -> None:
    model = whisper.load(checkpoint, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits_of(model).float()).all()


def test_loads_the_older_tokenizer_files(checkpoint: Path) -> None:
    vocabulary = {name: i for name, i in make_tokenizer().get_vocab().items() if i < 257}
    added = {name: 256 + i for i, name in enumerate(special_names()) if i > 0}
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "vocab.json").write_text(json.dumps(vocabulary))
    (checkpoint / "merges.txt").write_text("#version: 0.2\n")
    (checkpoint / "added_tokens.json").write_text(json.dumps(added))
    settings = {"tokenizer_class": "WhisperTokenizer", "additional_special_tokens": list(added)[:20]}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    old, new = whisper.load(checkpoint).tokens, WhisperTokens(make_tokenizer(), TINY.vocabulary_size)
    assert old.languages == new.languages
    assert old.timestamps == new.timestamps
    assert old.text_to_tokens(" hé?") == new.text_to_tokens(" hé?")


def test_transformers_loads_what_was_saved(checkpoint: Path, tmp_path: Path) -> None:
    settings = {"is_multilingual": True, "alignment_heads": [[1, 0]], "suppress_tokens": [3]}
    (checkpoint / "generation_config.json").write_text(json.dumps(settings))
    edit_config(checkpoint, sprachbund={"pairs": [["en", "en"]]})
    model = whisper.load(checkpoint)
    whisper.save(model, tmp_path / "deep" / "saved")
    saved = WhisperForConditionalGeneration.from_pretrained(tmp_path / "deep" / "saved").eval()
    assert torch.allclose(logits_of(saved), logits_of(make_transformers_model(TINY)), atol=1e-4)
    assert json.loads((tmp_path / "deep" / "saved" / "generation_config.json").read_text()) == settings
    again = whisper.load(tmp_path / "deep" / "saved")
    assert torch.equal(logits_of(again), logits_of(model))
    assert again.alignment_heads == [(1, 0)]
    assert again.pairs() == {("en", "en")}
    assert (
        WhisperFeatureExtractor.from_pretrained(tmp_path / "deep" / "saved").feature_size == TINY.num_mel_bins
    )
    tokenizer = "tokenizer.json"
    assert (tmp_path / "deep" / "saved" / tokenizer).read_bytes() == (checkpoint / tokenizer).read_bytes()


def test_a_model_made_here_can_be_saved_and_loaded_by_both(tmp_path: Path) -> None:
    model = Whisper(TINY, tokens=WhisperTokens(make_tokenizer(), TINY.vocabulary_size)).eval()
    whisper.save(model, tmp_path / "new")
    assert torch.equal(logits_of(whisper.load(tmp_path / "new")), logits_of(model))
    theirs = WhisperForConditionalGeneration.from_pretrained(tmp_path / "new").eval()
    assert torch.allclose(logits_of(theirs), logits_of(model), atol=1e-4)
    assert theirs.config.decoder_start_token_id == model.tokens.start


def test_half_precision_survives_saving(checkpoint: Path, tmp_path: Path) -> None:
    whisper.save(whisper.load(checkpoint, dtype=torch.float16), tmp_path / "half")
    assert {w.dtype for w in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    assert WhisperForConditionalGeneration.from_pretrained(tmp_path / "half").dtype == torch.float16


def test_saving_over_the_directory_it_was_loaded_from(checkpoint: Path) -> None:
    model = whisper.load(checkpoint)
    model.decoder.norm.bias.add_(1.0)
    whisper.save(model, checkpoint)
    assert torch.equal(logits_of(whisper.load(checkpoint)), logits_of(model))
    assert [p.name for p in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_a_save_that_fails_leaves_the_old_model_and_nothing_else(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = whisper.load(checkpoint)
    before = {p.name: p.read_bytes() for p in checkpoint.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "write_json", full)
    with pytest.raises(SprachbundError, match="No space left on device"):
        whisper.save(model, checkpoint)
    with pytest.raises(SprachbundError, match="could not be written"):
        whisper.save(model, checkpoint.parent / "other")
    assert {p.name: p.read_bytes() for p in checkpoint.iterdir()} == before
    assert [p.name for p in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_save_does_not_replace_what_is_no_model(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(SprachbundError, match="not a model directory"):
        whisper.save(whisper.load(checkpoint), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_names_go_both_ways_and_cover_transformers() -> None:
    ours = Whisper.shape(TINY).state_dict()
    theirs = set(make_transformers_model(TINY).state_dict()) - {"proj_out.weight"}
    assert {transformers_name(name) for name in ours} == theirs


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


BROKEN = {
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json"),
    "config is no json": (lambda d: (d / "config.json").write_text("{"), "is not JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "no JSON object"),
    "another model": (lambda d: edit_config(d, model_type="bert"), "'bert', not 'whisper'"),
    "no width": (lambda d: edit_config(d, d_model=None), "no usable value for d_model"),
    "text for a number": (lambda d: edit_config(d, d_model="wide"), "no usable value for d_model"),
    "heads that do not fit": (lambda d: edit_config(d, encoder_attention_heads=5), "5 encoder heads"),
    "another activation": (lambda d: edit_config(d, activation_function="relu"), "'relu'; only 'gelu'"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has no weights"),
    "truncated": (
        lambda d: _truncate(d / "model.safetensors"),
        r"model\.safetensors is not a whole safetensors file",
    ),
    "text for weights": (
        lambda d: (d / "model.safetensors").write_text("<html>"),
        "not a whole safetensors file",
    ),
    "missing tensor": (
        lambda d: edit_weights(d, drop=("model.encoder.conv1.weight",)),
        r"lacks 1 tensors .*model\.encoder\.conv1\.weight",
    ),
    "more layers asked for": (lambda d: edit_config(d, decoder_layers=3), r"lacks 24 tensors.*, \.\.\.;"),
    "fewer layers asked for": (lambda d: edit_config(d, decoder_layers=1), "no place for"),
    "other shape": (
        lambda d: edit_weights(d, model__encoder__conv1__bias=torch.zeros(7)),
        "has shape 7, config.json asks for 32",
    ),
    "untied": (lambda d: edit_weights(d, proj_out__weight=torch.zeros(2000, 32)), "proj_out.weight differs"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer"),
    "tokenizer is no json": (
        lambda d: (d / "tokenizer.json").write_text("{"),
        "tokenizer.json cannot be read",
    ),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_broken_directories_get_one_clear_line(checkpoint: Path, case: str) -> None:
    damage, message = BROKEN[case]
    damage(checkpoint)
    with pytest.raises(SprachbundError, match=message) as error:
        whisper.load(checkpoint)
    assert "\n" not in str(error.value)


def test_broken_shards_and_pickles(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    index = checkpoint / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(SprachbundError, match=r"model-1\.safetensors, which is missing"):
        whisper.load(checkpoint)
    index.write_text("[]")
    with pytest.raises(SprachbundError, match="holds a list, not a JSON object"):
        whisper.load(checkpoint)
    index.unlink()
    torch.save({"a": print}, checkpoint / "pytorch_model.bin")  # code in a pickle must not run
    with pytest.raises(SprachbundError, match=r"pytorch_model\.bin cannot be read \(it asks for .*print"):
        whisper.load(checkpoint)
    torch.save([1], checkpoint / "pytorch_model.bin")
    with pytest.raises(SprachbundError, match="no table of tensors"):
        whisper.load(checkpoint)


def no_network(*args: object, **options: object) -> None:
    raise ConnectionError


def test_names_that_are_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def snapshot_download(name: str, *, local_files_only: bool, **_: object) -> str:
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(SprachbundError, match="offline, and it was not downloaded before"):
        whisper.load("openai/whisper-tiny", offline=True)
    with pytest.raises(SprachbundError, match="the hub cannot be reached"):
        whisper.load("openai/whisper-tiny")
    assert asked == [True, True]  # without a network, the cache is all there is
    with pytest.raises(SprachbundError, match="there is no directory"):
        whisper.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(SprachbundError, match="is a file"):
        whisper.load(tmp_path / "file")
    assert len(asked) == 2


def test_a_hub_model_is_asked_for_its_pickle_only_without_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_directory(tmp_path / "hub")
    patterns: list[str] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        patterns.extend(allow_patterns)
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert whisper.load("someone/whisper").prompt(Target(language="de", source="de"))
    assert not any(p.endswith(".bin") for p in patterns)
    shutil.move(tmp_path / "hub" / "model.safetensors", tmp_path / "aside")
    assert hub.find("someone/whisper", offline=False) == tmp_path / "hub"
    assert any(p.endswith(".bin") for p in patterns)

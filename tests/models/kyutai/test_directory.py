"""Directories of Kyutai STT: written as transformers reads them, and refused where something is not built."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sprachbund.errors import SprachbundError
from sprachbund.models.io import load, save
from sprachbund.models.kyutai.config import ExtractorConfig, KyutaiConfig
from sprachbund.models.kyutai.io import sound_weights, to_transformers
from sprachbund.models.kyutai.model import CODEC_RATE, Kyutai
from tests.models.kyutai.support import BEGIN, Checkpoint, make, speech
from tests.models.kyutai.test_model import generated, written_for


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(tmp_path_factory.mktemp("checkpoint"))


@torch.inference_mode()
def test_a_saved_model_is_read_by_transformers_and_by_us(made: Checkpoint, tmp_path: Path) -> None:
    """Codebooks are written divided, and what transformers has for making sound comes along."""
    save(made.model, tmp_path / "saved")
    inputs = made.processor.feature_extractor(
        [speech(2.0, 1), speech(2.0, 2)], sampling_rate=CODEC_RATE, return_tensors="pt"
    )
    theirs, said = transformers.KyutaiSpeechToTextForConditionalGeneration.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = load(tmp_path / "saved")
    assert isinstance(ours, Kyutai)
    assert ours.source_languages == ("en", "fr")  # the name says nothing any more
    expected = written_for(made.model, inputs)
    assert torch.equal(generated(theirs.eval(), inputs), expected)
    assert torch.equal(written_for(ours, inputs), expected)
    before = dict(made.hf_model.named_parameters())
    for name, value in theirs.named_parameters():
        assert torch.equal(value, before[name]), name
    save(ours, tmp_path / "again")
    assert (
        load_file(tmp_path / "again" / "model.safetensors").keys()
        == load_file(made.directory / "model.safetensors").keys()
    )


def test_the_published_shape_has_the_weights_of_transformers(made: Checkpoint) -> None:
    """transformers' classes know the layout of a file by rules; these are what they say of the codec."""
    with torch.device("meta"):
        theirs = transformers.KyutaiSpeechToTextForConditionalGeneration(
            transformers.KyutaiSpeechToTextConfig()
        )
    values = theirs.config.to_dict()
    config = KyutaiConfig.model_validate(values)
    with torch.device("meta"):
        ours = Kyutai(config, ExtractorConfig(), values, made.model.tokens, ["en"])
    shapes = {}
    for name, value in theirs.state_dict().items():
        for half in ("encoder", "decoder"):
            name = name.replace(f"codec_model.{half}.{half}_seanet.", f"codec_model.{half}.")
            name = name.replace(f"codec_model.{half}.{half}_transformer.", f"codec_model.{half}_transformer.")
        name = name.replace(".encoder.downsample.", ".downsample.").replace(
            ".decoder.upsample.", ".upsample."
        )
        shapes[name] = value.shape
    written = {**to_transformers(ours), **sound_weights(ours)}
    assert {name: value.shape for name, value in written.items()} == shapes
    assert (ours.decoder.shape.context, ours.codec.shape.window) == (375, 250)


def test_sixteen_bits_are_those_of_the_decoder(made: Checkpoint, tmp_path: Path) -> None:
    save(made.model, tmp_path / "half", bits=16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.float16
    assert stored["codec_model.downsample.conv.weight"].dtype == torch.float32
    with pytest.raises(SprachbundError, match="16 or 32 bits"):
        save(made.model, tmp_path / "eight", bits=8)


def changed(made: Checkpoint, tmp_path: Path, name: str, **values: Any) -> Path:
    """A copy of the directory with other values in a JSON file; "codec_config." leads into that part."""
    directory = tmp_path / made.directory.name
    shutil.copytree(made.directory, directory)
    path = directory / name
    said = json.loads(path.read_text())
    for key, value in values.items():
        *parts, last = key.split("__")
        place = said
        for part in parts:
            place = place[part]
        place[last] = value
    path.write_text(json.dumps(said))
    return directory


REFUSED: list[tuple[str, Any]] = [
    ("hidden_act", "gelu"),
    ("tie_word_embeddings", True),
    ("eos_token_id", 2),
    ("sliding_window", None),
    ("attention_bias", True),
    ("ffn_dim", 63),
    ("num_codebooks", 3),
    ("num_key_value_heads", 3),
    ("codebook_vocab_size", 12),
    ("audio_bos_token_id", 17),
    ("pad_token_id", 65),
    ("rope_parameters", {"rope_type": "linear", "factor": 2.0}),
    ("rope_scaling", {"type": "yarn"}),
    ("vocab_size", True),
    ("frame_size", 960),
    ("codec_config__use_causal_conv", False),
    ("codec_config__pad_mode", "replicate"),
    ("codec_config__use_conv_shortcut", True),
    ("codec_config__sampling_rate", 16_000),
    ("codec_config__audio_channels", 2),
    ("codec_config__upsampling_ratios", [8, 6, 5]),
    ("codec_config__hidden_act", "relu"),
    ("codec_config__model_type", "encodec"),
    ("codec_config__attention_bias", True),
    ("codec_config__codebook_dim", 4),
    ("codec_config__num_semantic_quantizers", 4),
    ("codec_config__frame_rate", 25.0),
    ("codec_config__upsample_groups", 5),
    ("codec_config__residual_kernel_size", [3, 3]),
]


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=[field for field, _ in REFUSED])
def test_what_is_not_built_is_refused(made: Checkpoint, tmp_path: Path, field: str, value: Any) -> None:
    values = {field: value}
    if field == "rope_scaling":
        values["rope_parameters"] = None
    with pytest.raises(SprachbundError) as raised:
        load(changed(made, tmp_path, "config.json", **values))
    assert "config.json" in str(raised.value)
    assert "\n" not in str(raised.value)
    named = "rope_parameters" if field == "rope_scaling" else field.rpartition("__")[2]
    assert named in str(raised.value)


def test_older_names_mean_the_same(made: Checkpoint, tmp_path: Path) -> None:
    """Releases of transformers before 5 wrote the base of the rotary positions outside."""
    directory = changed(
        made,
        tmp_path,
        "config.json",
        rope_parameters=None,
        rope_theta=100_000.0,
        codec_config__frame_rate=12.5,
    )
    model = load(directory)
    assert isinstance(model, Kyutai)
    assert model.config.shape.rotary.base == 100_000.0
    assert model.config.codec_config.shape.rotary.base == 10_000.0


def test_the_first_token_is_that_of_the_generation(made: Checkpoint, tmp_path: Path) -> None:
    """As transformers reads it; any row of the embedding, those of codes too."""
    model = load(changed(made, tmp_path, "generation_config.json", bos_token_id=BEGIN + 20))
    assert isinstance(model, Kyutai)
    assert model.config.bos_token_id == BEGIN + 20


EXTRACTOR: list[tuple[str, Any]] = [
    ("sampling_rate", 16_000),
    ("feature_size", 2),
    ("audio_delay_seconds", -1.0),
]


@pytest.mark.parametrize(("field", "value"), EXTRACTOR, ids=[field for field, _ in EXTRACTOR])
def test_other_sound_is_refused(made: Checkpoint, tmp_path: Path, field: str, value: Any) -> None:
    name = "processor_config.json"
    with pytest.raises(SprachbundError, match=f"{name}: feature_extractor: {field}"):
        load(changed(made, tmp_path, name, **{f"feature_extractor__{field}": value}))


def test_without_the_delay_nothing_is_loaded(made: Checkpoint, tmp_path: Path) -> None:
    directory = tmp_path / "stt"
    shutil.copytree(made.directory, directory)
    (directory / "processor_config.json").unlink()
    with pytest.raises(SprachbundError, match=r"no preprocessor_config\.json"):
        load(directory)


@pytest.mark.parametrize(("said", "expected"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_of_several_precisions_it_has_the_one_that_is_said(
    made: Checkpoint, tmp_path: Path, said: str, expected: torch.dtype
) -> None:
    """As published models may have it, whose embedding is in single precision and whose layers are not."""
    directory = changed(made, tmp_path, "config.json", dtype=said)
    path = directory / "model.safetensors"
    weights = load_file(path)
    save_file(
        {name: value.bfloat16() if ".layers." in name else value for name, value in weights.items()},
        path,
        {"format": "pt"},
    )
    model = load(directory)
    assert isinstance(model, Kyutai)
    assert {value.dtype for value in model.decoder.parameters()} == {expected}
    assert {value.dtype for value in model.codec.parameters()} == {torch.float32}


def test_damaged_weights_are_refused(made: Checkpoint, tmp_path: Path) -> None:
    directory = tmp_path / "stt"
    shutil.copytree(made.directory, directory)
    path = directory / "model.safetensors"
    whole = load_file(path)
    codebook = "codec_model.quantizer.acoustic_residual_vector_quantizer.layers.1.codebook.embed_sum"
    for name, value, said in (
        (codebook, None, "lacks 1 weights"),
        (codebook, whole[codebook][:-1], "has shape"),
        ("lm_head.weight", torch.full_like(whole["lm_head.weight"], torch.nan), "not finite"),
        ("codec_model.decoder.layers.2.conv.bias", None, "lacks 1 weights"),
        ("codec_model.more", torch.zeros(1), "no place for"),
    ):
        weights = {key: one for key, one in whole.items() if key != name or value is not None}
        if value is not None:
            weights[name] = value.contiguous()
        save_file(weights, path, {"format": "pt"})
        with pytest.raises(SprachbundError, match=said):
            load(directory)

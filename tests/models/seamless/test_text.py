"""Texts read by SeamlessM4T, against transformers' text-to-text model of the same files."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.texts import translate_texts
from sprachbund.engines.choice import engine_for
from sprachbund.errors import SprachbundError
from sprachbund.models.cascade import Cascade
from sprachbund.models.io import load, save
from tests.models.seamless.support import SENTENCES, VERSIONS, make_checkpoint

CODES = {"en": "eng", "fr": "fra", "et": "est"}
PAIRS = (("en", "fr"), ("fr", "et"))
TEXTS = SENTENCES[:4]


@pytest.fixture(scope="module", params=VERSIONS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model, as published."""
    made: Path = tmp_path_factory.mktemp(request.param) / "model"
    make_checkpoint(made, request.param, kind="Model")
    return made


def reference(directory: Path, version: str) -> Any:
    kinds = {
        "seamless_m4t": transformers.SeamlessM4TForTextToText,
        "seamless_m4t_v2": transformers.SeamlessM4Tv2ForTextToText,
    }
    return kinds[version].from_pretrained(directory).eval()


def test_texts_have_the_tokens_of_transformers(directory: Path) -> None:
    model: Any = load(directory)
    hf_model = reference(directory, model.config.model_type)
    tokenizer = model.tokens.tokenizer
    written = set()
    for source, target in PAIRS:
        options = DecodingOptions(draft="none", batch_size=3)
        result = [row[0].text for row in translate_texts(model, TEXTS, [target], source, options)]
        for text, own in zip(TEXTS, result, strict=True):
            inputs = tokenizer(text, src_lang=CODES[source], return_tensors="pt")
            features = model.text_features([text])
            assert features.values[0, 1:].tolist() == inputs["input_ids"][0, 1:].tolist()
            offsets = model.source_offsets([text])[0]
            assert "".join(text[a:b] for a, b in offsets) == "".join(text.split())
            row = hf_model.generate(
                **inputs,
                tgt_lang=CODES[target],
                do_sample=False,
                suppress_tokens=model.suppressed(None).nonzero().flatten().tolist(),
            )[0]
            assert tokenizer.decode(row, skip_special_tokens=True).strip() == own.strip()
            written.add(own)
    assert len(written) > 4


def test_hearing_is_as_without_an_encoder_of_texts(directory: Path, tmp_path: Path) -> None:
    whole: Any = load(directory)
    save(whole, tmp_path / "saved")
    again: Any = load(tmp_path / "saved")
    assert again.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in whole.state_dict().items())
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    speech = {name: value for name, value in stored.items() if not name.startswith("text_encoder.")}
    save_file(speech, tmp_path / "saved" / "model.safetensors", metadata={"format": "pt"})
    deaf_to_text: Any = load(tmp_path / "saved")
    assert deaf_to_text.capabilities.text_input is None
    sound = [torch.randn(9000, generator=torch.Generator().manual_seed(0)).numpy()]
    heard = [model.encode(model.features(sound)).states for model in (whole, deaf_to_text)]
    assert torch.equal(*heard)
    with pytest.raises(SprachbundError, match="has no encoder of texts; give it speech"):
        deaf_to_text.encode(whole.text_features(["the dog"]))


@pytest.mark.parametrize("engine", ["torch-fp32", "torch-bf16", "torch-int8"])
def test_engines_leave_the_encoder_of_texts(directory: Path, engine: Any) -> None:
    family = engine_for(load(directory), engine, compare=False).family
    rows = list(translate_texts(family, TEXTS, ["fr"], "en"))
    plain = list(translate_texts(load(directory), TEXTS, ["fr"], "en"))
    assert engine != "torch-fp32" or [row[0].text for row in rows] == [row[0].text for row in plain]


def test_what_cannot_be_read_is_one_line(directory: Path) -> None:
    model: Any = load(directory)
    with pytest.raises(SprachbundError, match="cannot identify the language of a text; name it"):
        list(translate_texts(model, TEXTS, ["fr"]))
    with pytest.raises(SprachbundError, match="hears 'kam' and does not read it; it reads"):
        list(translate_texts(model, TEXTS, ["fr"], "kam"))
    with pytest.raises(SprachbundError, match=r"a text has \d+ tokens and the model seamless reads 64"):
        list(translate_texts(model, ["the dog runs " * 20], ["fr"], "en"))


def test_it_is_the_second_half_of_a_cascade(directory: Path) -> None:
    model = load(directory)
    assert ("en", "fr") in Cascade(load(directory), model).pairs()


def test_a_part_of_an_encoder_of_texts_is_refused(directory: Path, tmp_path: Path) -> None:
    save(load(directory), tmp_path / "part")
    path = tmp_path / "part" / "model.safetensors"
    weights = load_file(path)
    name = "text_encoder.layers.0.ffn.fc1.weight"
    save_file({n: w for n, w in weights.items() if n != name}, path, metadata={"format": "pt"})
    with pytest.raises(
        SprachbundError, match=r"lacks 1 tensors .* such as text_encoder\.layers\.0\.ffn\.fc1\.weight"
    ):
        load(tmp_path / "part")
    save_file({**weights, "text_encoder.more": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(SprachbundError, match=r"holds 1 tensors .*text_encoder\.more"):
        load(tmp_path / "part")

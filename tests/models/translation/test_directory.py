"""Directories: read as published, written for transformers, and refused with one line when something is wrong."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sprachbund.decoding.drafts.token_map import TokenMap, TokenMapDraft
from sprachbund.errors import SprachbundError
from sprachbund.models import io as any_directory
from sprachbund.models.language_codes import Languages
from sprachbund.models.translation import TextTranslator, load, save
from sprachbund.models.translation.checkpoints import transformers_name
from sprachbund.models.translation.tokens import without_scripts
from tests.models.seamless.test_languages import MEDIUM
from tests.models.translation.support import TEXTS, Checkpoint, make_checkpoint

WEIGHTS = "model.safetensors"


@pytest.fixture
def copied(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint.directory, tmp_path / "model"))


def change(directory: Path, name: str, **values: object) -> None:
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(directory: Path, message: str) -> None:
    with pytest.raises(SprachbundError, match=message) as raised:
        any_directory.load(directory, offline=True)
    assert len(str(raised.value).splitlines()) == 1


def test_every_weight_has_its_place_in_transformers(checkpoint: Checkpoint) -> None:
    computed = r"embed_tokens" + ("" if checkpoint.kind == "t5" else "|lm_head")
    computed += r"|embed_positions" if checkpoint.kind.startswith("marian") else ""
    theirs = {name for name in checkpoint.hf_model.state_dict() if not re.search(computed, name)}
    assert {
        transformers_name(name, checkpoint.model.name) for name in checkpoint.model.state_dict()
    } == theirs


def test_saved_and_loaded_is_the_same_here_and_in_transformers(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = any_directory.load(checkpoint.directory)
    assert isinstance(model, TextTranslator)
    assert not model.training
    any_directory.save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert again.pairs() == model.pairs()
    assert again.max_tokens == model.max_tokens
    assert [again.tokens.source(text) for text in TEXTS] == [model.tokens.source(text) for text in TEXTS]
    theirs, report = type(checkpoint.hf_model).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    wanted = checkpoint.hf_model.state_dict()
    learned = {name: value for name, value in theirs.state_dict().items() if "embed_positions" not in name}
    assert all(torch.equal(value, wanted[name]) for name, value in learned.items())
    tokenizer = type(checkpoint.tokenizer).from_pretrained(tmp_path / "saved")
    other = replace(checkpoint, tokenizer=tokenizer)
    ours, theirs = (one.source([*TEXTS], "de", "en")["input_ids"] for one in (other, checkpoint))
    assert torch.equal(ours, theirs)
    save(again, tmp_path / "saved")  # over itself
    with pytest.raises(SprachbundError, match="is not a model directory"):
        save(model, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_precision_asked_for_is_given(checkpoint: Checkpoint, tmp_path: Path, dtype: torch.dtype) -> None:
    if checkpoint.kind == "t5" and dtype == torch.float16:
        with pytest.raises(SprachbundError, match="too large for float16; take bfloat16"):
            load(checkpoint.directory, dtype=dtype)
        return
    model = load(checkpoint.directory, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.decoder.positions.dtype == model.encoder.positions.dtype == dtype
    save(load(checkpoint.directory), tmp_path / "half", bits=16)
    stored = load_file(tmp_path / "half" / WEIGHTS)
    assert {value.dtype for value in stored.values()} == {torch.float16}


def test_a_draft_beside_the_weights_is_none_of_them(copied: Path) -> None:
    token_map = TokenMap.fit({"de": [[1, 2, 3]]}, 4)
    TokenMapDraft(token_map).save(copied / "draft.safetensors")
    assert set(any_directory.load(copied, offline=True).drafts) == {"token-map"}


def test_sharded_and_pickled_weights_are_read(checkpoint: Checkpoint, copied: Path) -> None:
    (copied / WEIGHTS).unlink()
    checkpoint.hf_model.save_pretrained(copied, max_shard_size="20kB")
    assert len(list(copied.glob("model-*-of-*.safetensors"))) > 1
    wanted = checkpoint.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in load(copied).state_dict().items())
    for path in copied.glob("model*"):
        path.unlink()
    torch.save(checkpoint.hf_model.state_dict(), copied / "pytorch_model.bin")
    assert all(torch.equal(value, wanted[name]) for name, value in load(copied).state_dict().items())


def test_languages_can_be_fewer_by_the_configuration(checkpoint: Checkpoint, copied: Path) -> None:
    if checkpoint.model.tokens.marked != "source":
        return
    change(
        copied, "config.json", sprachbund={"source_languages": ["en"], "target_languages": ["de", "en", "fr"]}
    )
    model = load(copied)
    assert model.pairs() == {("en", "de"), ("en", "fr")}
    encoded = model.encode(model.text_features(["x"]))  # of one language there is no question
    named = model.text_features(["x"])
    named = type(named)(values=named.values, num_frames=named.num_frames, source_language=torch.tensor([0]))
    assert torch.equal(encoded.states, model.encode(named).states)
    save(model, copied.parent / "again")
    assert load(copied.parent / "again").pairs() == model.pairs()
    change(copied, "config.json", sprachbund={"source_languages": "en"})
    refused(
        copied, "'source_languages' in config.json has to list language tags of this model, not 'en'; it has"
    )
    change(copied, "config.json", sprachbund={"target_languages": ["tlh"]})
    refused(copied, "'target_languages' in config.json has to list language tags of this model")


def test_a_language_that_is_forced_is_the_only_one_written(checkpoint: Checkpoint, copied: Path) -> None:
    if checkpoint.model.tokens.marked != "source":
        return
    change(copied, "generation_config.json", forced_bos_token_id=checkpoint.language_token("en"))
    model = load(copied)
    assert model.target_languages == ("en",)
    assert {source for source, _ in model.pairs()} == {*checkpoint.model.source_languages} - {"en"}
    change(copied, "config.json", sprachbund={"target_languages": ["fr"]})
    assert load(copied).target_languages == ("fr",)


def test_marian_that_does_not_name_its_languages_is_told_them(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "model", "marian")
    assert made.model.pairs() == {("de", "en")}
    change(made.directory, "tokenizer_config.json", source_lang="ROMANCE", target_lang=None)
    refused(
        made.directory,
        r'name its source languages; add to .*"sprachbund": \{"source_languages": \["fr", "it"\]\}',
    )
    change(made.directory, "config.json", sprachbund={"source_languages": ["fr", "it"]})
    refused(made.directory, "does not name its target languages")
    change(
        made.directory,
        "config.json",
        sprachbund={"source_languages": ["fr", "it"], "target_languages": ["en"]},
    )
    assert load(made.directory).pairs() == {("fr", "en"), ("it", "en")}
    change(made.directory, "config.json", sprachbund={"source_languages": ["no language"]})
    refused(
        made.directory, r"'source_languages' in config.json has to list language tags .*not \['no language'\]"
    )


_INNER = r"1\.fc1\.weight|block\.1\..*wi_0\.weight"


def without_tensor(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    del weights[next(name for name in weights if re.search(_INNER, name) and "encoder" in name)]
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})


def with_tensor(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    save_file({**weights, "model.more": torch.zeros(1)}, directory / WEIGHTS, metadata={"format": "pt"})


def with_nan(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    weights[next(name for name in weights if re.search(_INNER, name) and "decoder" in name)][0, 0] = torch.nan
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})


def without_tokenizer(directory: Path) -> None:
    for name in ("tokenizer.json", "sentencepiece.bpe.model", "source.spm", "spiece.model"):
        (directory / name).unlink(missing_ok=True)


def config(**values: object) -> Callable[[Path], None]:
    return lambda directory: change(directory, "config.json", **values)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "has no weights"),
    "no tokenizer": (without_tokenizer, "has no tokenizer: neither"),
    "missing": (
        without_tensor,
        r"lacks 1 tensors .* such as (model.encoder.layers.1.fc1|encoder.block.1.layer.1.DenseReluDense.wi_0).weight",
    ),
    "surplus": (with_tensor, r"holds 1 tensors that config.json has no place for \(model.more\)"),
    "nan": (with_nan, "(fc1|wi_0).weight holds values that are not finite"),
    "cut": (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-9]), "model.safetensors"),
    "deeper": (config(encoder_layers=3), "lacks .* tensors"),
    "huge": (config(encoder_ffn_dim=2**20), r"asks for \d+ weights"),
    "no number": (config(d_model="32"), "d_model is '32', not a whole number"),
    "heads": (
        config(encoder_attention_heads=5),
        "config.json: .*num_encoder_heads 5 does not divide width 32",
    ),
    "positions": (
        config(max_position_embeddings=0),
        "max_position_embeddings is 0, not a whole number from 1",
    ),
    "activation": (
        config(activation_function="tanh"),
        "its activation is tanh; silu, gelu, relu are built here",
    ),
    "untied": (config(tie_word_embeddings=False), "its output matrix is not tied"),
    "longest": (
        lambda d: change(d, "generation_config.json", max_length="text"),
        "max_length in generation_config.json is 'text', not a whole number",
    ),
    "no start": (config(decoder_start_token_id=None), "decoder_start_token_id is None"),
    "start": (config(decoder_start_token_id=9999), "decoder_start_token_id is 9999 of"),
    "vocabulary": (
        config(vocab_size=100),
        r"tokens up to \d+ but the model has 100|token_id is \d+ of 100",
    ),
    "experts": (config(model_type="nllb-moe"), "is a mixture of experts .*take a dense NLLB-200"),
    "pieces": (
        lambda d: [
            (d / n).write_bytes(b"none")
            for n in ("tokenizer.json", "sentencepiece.bpe.model", "source.spm", "spiece.model")
        ],
        "tokenizer_config.json cannot be read",
    ),
    "tokenizer": (
        lambda d: change(d, "tokenizer_config.json", tokenizer_class="SMALL100Tokenizer"),
        "the tokenizer is 'SMALL100Tokenizer', which marks languages in another way than [MT]",
    ),
}
T5_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "deeper": (config(num_layers=3), "lacks .* tensors"),
    "huge": (config(d_ff=2**20), r"asks for \d+ weights"),
    "heads": (config(num_heads=5), "cannot be read"),
    "positions": (config(relative_attention_num_buckets=1), "config.json: buckets"),
    "activation": (
        config(feed_forward_proj="relu"),
        "feed_forward_proj is 'relu'; of T5 its version 1.1 is built here",
    ),
    "untied": (config(scale_decoder_outputs=True), "output matrix is tied to the embedding .*version 1.1"),
    "vocabulary": (config(vocab_size=50), r"tokens up to \d+ but the model has 50"),
}
"""In place of the same ones of other kinds, whose configuration has other names."""


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_line(copied: Path, fault: str) -> None:
    damage, said = FAULTS[fault]
    if (copied / "spiece.model").is_file():
        damage, said = T5_FAULTS.get(fault, FAULTS[fault])
    damage(copied)
    refused(copied, said)


def test_tokenizers_without_the_languages_of_their_kind_are_refused(tmp_path: Path) -> None:
    nllb = make_checkpoint(tmp_path / "nllb", "nllb").directory
    (nllb / "tokenizer.json").unlink()
    (nllb / "tokenizer_config.json").write_text('{"tokenizer_class": "NllbTokenizer"}')
    refused(nllb, "has no language tokens such as eng_Latn; it is not NLLB's")
    mbart = make_checkpoint(tmp_path / "mbart", "mbart").directory
    change(mbart, "tokenizer_config.json", tokenizer_class="MBartTokenizer")
    refused(
        mbart, "the tokenizer is 'MBartTokenizer', which marks languages in another way than MBart50Tokenizer"
    )
    path = mbart / "tokenizer.json"
    path.write_text(path.read_text().replace("sl_SI", "sl_XX"))
    change(mbart, "tokenizer_config.json", tokenizer_class="MBart50Tokenizer")
    refused(mbart, "numbers its tokens up to 115 but the model has 115; the tokenizer belongs to another")
    marian = make_checkpoint(tmp_path / "marian", "marian").directory
    shutil.copy(marian / "vocab.json", marian / "target_vocab.json")
    change(marian, "tokenizer_config.json", separate_vocabs=True)
    refused(marian, "source and target have vocabularies of their own")
    change(marian, "config.json", share_encoder_decoder_embeddings=False)
    refused(marian, "source and target have embeddings of their own")


def test_codes_of_nllb_are_the_tags_of_seamless() -> None:
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    languages = Languages(FAIRSEQ_LANGUAGE_CODES, without_scripts(FAIRSEQ_LANGUAGE_CODES))
    assert len(languages.tags) == len(FAIRSEQ_LANGUAGE_CODES)
    tags = dict(zip(languages.codes, languages.tags, strict=True))
    some = (
        "deu_Latn",
        "zho_Hans",
        "zho_Hant",
        "arb_Arab",
        "kor_Hang",
        "pbt_Arab",
        "sat_Beng",
        "taq_Tfng",
        "twi_Latn",
    )
    assert [tags[code] for code in some] == [
        "de",
        "zh",
        "zh-Hant",
        "ar",
        "ko",
        "ps",
        "sat",
        "taq-Tfng",
        "twi",
    ]
    # Where a language has two scripts, Seamless leaves out the other one of three languages.
    assert set(Languages(MEDIUM).tags) - set(languages.tags) == {"ace-Latn", "bjn-Latn", "kr-Latn"}


def test_codes_of_m2m_100_are_bcp47() -> None:
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

    languages = Languages(FAIRSEQ_LANGUAGE_CODES["m2m100"])
    differ = {code: languages.tag(code) for code in languages.codes if languages.tag(code) != code}
    assert differ == {"ns": "nso", "tl": "fil"}


def test_a_published_vocabulary_of_nllb_without_tokenizer_json_has_its_languages(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    from tests.models.translation.support import NLLB_CODES

    made = make_checkpoint(tmp_path / "model", "nllb")
    (tmp_path / "model" / "tokenizer.json").unlink()
    config = {"tokenizer_class": "NllbTokenizer", "additional_special_tokens": [*NLLB_CODES]}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    assert load(tmp_path / "model").pairs() == made.model.pairs()
    assert (
        transformers.NllbTokenizer.from_pretrained(tmp_path / "model").get_vocab()
        == made.tokenizer.get_vocab()
    )

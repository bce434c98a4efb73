"""Public checkpoints: labels are those of transformers' own pipeline, on random weights of the true layouts."""

from pathlib import Path

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.punctuation import load_punctuator
from sprachbund.models.punctuation.token_classification import TokenClassifier
from sprachbund.text.punctuation import Label

FULL_STOP = ("0", ".", ",", "?", "-", ":")
"""Labels of oliverguhr/fullstop-punctuation-multilang-large and of kredor/punctuate-all."""
WITH_CASE = ("OU", "OO", ".O", "!O", ",O", ".U", "!U", ",U", ":O", ";O", ":U", "'O", "-O", "?O", "?U")
"""Labels of felflare/bert-restore-punctuation."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = ["my", "name", "is", "clara", "and", "i", "live", "in", "berkeley", "california"]


def labels_of(names: tuple[str, ...]) -> dict[str, dict[int, str] | dict[str, int]]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}


def save_roberta(directory: Path, names: tuple[str, ...] = FULL_STOP, positions: int = 514) -> Path:
    """A tiny XLM-RoBERTa for token classification, with a tokenizer of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import XLMRobertaConfig, XLMRobertaForTokenClassification, XLMRobertaTokenizerFast

    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    pieces = [*special, ("▁", -2.0), *((letter, -4.0) for letter in LETTERS), ("▁the", -1.0), ("ing", -1.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    XLMRobertaTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    config = XLMRobertaConfig(
        vocab_size=len(pieces),
        max_position_embeddings=positions,
        type_vocab_size=1,
        **SIZES,
        **labels_of(names),
    )
    return with_spread_labels(XLMRobertaForTokenClassification(config), directory)


def save_bert(directory: Path) -> Path:
    """A tiny BERT for token classification, with pieces of words."""
    from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

    directory.mkdir(parents=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (directory / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(directory)
    config = BertConfig(vocab_size=len(pieces), max_position_embeddings=512, **SIZES, **labels_of(WITH_CASE))
    return with_spread_labels(BertForTokenClassification(config), directory)


def with_spread_labels(model, directory: Path) -> Path:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # so that labels differ from word to word
            if "word_embeddings" in name or "classifier.weight" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(directory)
    return directory


def by_pipeline(directory: Path, words: list[str], *, last: bool) -> list[str]:
    """Names of the words' labels, from the offsets of transformers' pipeline."""
    from transformers import pipeline

    text = " ".join(words)
    entities = pipeline("token-classification", str(directory), ignore_labels=[])(text)
    names, start = [], 0
    for word in words:
        own = [one["entity"] for one in entities if start <= one["start"] and one["end"] <= start + len(word)]
        names.append(own[-1 if last else 0])
        start += len(word) + 1
    return names


def test_marks_alone_are_those_of_the_last_piece(tmp_path: Path):
    directory = save_roberta(tmp_path / "roberta")
    names = by_pipeline(directory, WORDS, last=True)
    assert len(set(names)) > 2
    (labels,) = load_punctuator(str(directory)).label([WORDS], "en")
    assert labels == [Label(mark="" if name in ("0", "-") else name) for name in names]


def test_a_mark_and_a_case_are_those_of_the_first_piece(tmp_path: Path):
    directory = save_bert(tmp_path / "bert")
    names = by_pipeline(directory, WORDS, last=False)
    assert len(set(names)) > 2
    (labels,) = TokenClassifier.load(directory, "bert").label([WORDS], "en")
    marks = {"O": "", ";": ",", "-": "", "'": ""}
    assert labels == [
        Label(mark=marks.get(name[0], name[0]), case="capital" if name[1] == "U" else "lower")
        for name in names
    ]


def test_long_texts_are_read_in_windows(tmp_path: Path):
    """Every word has one label, and the first ones are those of the first window alone."""
    classifier = TokenClassifier.load(save_roberta(tmp_path, positions=120), "short")
    words = WORDS * 30
    windows = list(classifier._windows(words))
    assert [n for window in windows for n in range(window.begin, window.end)] == list(range(len(words)))
    assert all(window.first <= window.begin < window.end <= window.last for window in windows)
    (labels,) = classifier.label([words], "en")
    (alone,) = classifier.label([words[: windows[0].last]], "en")
    assert labels[: windows[0].end] == alone[: windows[0].end]
    assert len(labels) == len(words)
    assert classifier.label([[], ["a" * 500, "b"]], "en")[1:][0][1:] != []


def test_labels_that_are_no_marks_are_refused(tmp_path: Path):
    with pytest.raises(SprachbundError, match=r"label 'LABEL_0', which is no mark"):
        load_punctuator(str(save_roberta(tmp_path, names=("LABEL_0", "LABEL_1"))))


def test_a_model_of_another_kind_and_a_damaged_one_are_refused(tmp_path: Path):
    directory = save_roberta(tmp_path)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(SprachbundError, match="safetensors"):
        TokenClassifier.load(directory, "damaged")
    config = directory / "config.json"
    config.write_text(config.read_text().replace("ForTokenClassification", "ForMaskedLM"))
    with pytest.raises(SprachbundError, match="names no model for token classification"):
        TokenClassifier.load(directory, "other")

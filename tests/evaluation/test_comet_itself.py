"""COMET by the package itself, against its own command: a tiny model with random weights, saved as a real one is."""

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.manifest import DataUsed, ModelUsed
from sprachbund.evaluation.metrics import Comet
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate, rescore, write_texts
from tests.evaluation.made import made_lines
from tests.evaluation.scores import summarise
from tests.evaluation.tiny_model import SENTENCES

comet = pytest.importorskip(
    "comet", reason="COMET is not installed: run this in an environment with sprachbund[comet]"
)

SIZES = {"utterances": 60, "scored_utterances": 60}
LETTERS = sorted({letter for sentence in SENTENCES for text in sentence.values() for letter in text} - {" "})


def save_encoder(directory: Path) -> Path:
    """A tiny XLM-RoBERTa's configuration and tokenizer, as its directory on the hub holds them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import XLMRobertaConfig, XLMRobertaTokenizerFast

    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    pieces = [*special, ("▁", -2.0), *((letter, -4.0) for letter in LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    XLMRobertaTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    XLMRobertaConfig(
        vocab_size=len(pieces), max_position_embeddings=514, type_vocab_size=1, **sizes
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def comet_model(tmp_path_factory):
    """A directory with `hparams.yaml` and `checkpoints/model.ckpt`, with the settings of wmt22-comet-da but sizes."""
    import pytorch_lightning as lightning
    from comet.models import RegressionMetric
    from pytorch_lightning.core.saving import save_hparams_to_yaml

    directory = tmp_path_factory.mktemp("comet")
    torch.manual_seed(0)
    model = RegressionMetric(
        pretrained_model=str(save_encoder(directory / "encoder")),
        layer_transformation="sparsemax",
        layer_norm=False,
        hidden_sizes=[96, 32],
        load_pretrained_weights=False,
        local_files_only=True,
    )
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_epochs=0)
    trainer.strategy.connect(model)
    (directory / "model" / "checkpoints").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.save_checkpoint(directory / "model" / "checkpoints" / "model.ckpt")
    save_hparams_to_yaml(directory / "model" / "hparams.yaml", model.hparams)
    return directory / "model"


def test_scores_are_those_of_its_command_to_the_last_digit(comet_model, tmp_path):
    lines = [
        replace(one, transcript=" ".join(reversed(one.reference.split())))
        for one in made_lines(60, 0.4, pairs=[("en", "de"), ("en", "ru")])
    ]
    model, data = ModelUsed(path="m", name="m", sha256=""), DataUsed(path="d", name="d", sha256="", **SIZES)
    result = summarise(lines, model, [data], EvaluationOptions(comet=str(comet_model)))
    write_texts(lines, tmp_path)
    means = []
    for pair in ("en-de", "en-ru"):
        texts = {part: tmp_path / "texts" / f"{pair}.{part}.txt" for part in ("src", "hyp", "ref")}
        scores, system = comet_score(comet_model, texts)
        columns = [path.read_text(encoding="utf-8").split("\n")[:-1] for path in texts.values()]
        ours = Comet(str(comet_model)).scores(*columns)
        assert len({*scores}) > 30
        assert [f"{score / 100:.4f}" for score in ours] == scores
        number = result.number("COMET", pair, group="pair")
        assert f"{number.value / 100:.4f}" == system
        assert number.signature.endswith("|precision:float16")
        means.append(number.value)
    assert result.number("COMET", "all", group="mean").value == pytest.approx(sum(means) / 2)


def comet_score(model, texts):
    """What COMET's command prints: the score of each segment, and of all."""
    command = [Path(sys.executable).parent / "comet-score", "--gpus", "0"]
    command += ["--model", model / "checkpoints" / "model.ckpt"]
    command += ["-s", texts["src"], "-t", texts["hyp"], "-r", texts["ref"]]
    printed = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    *scores, system = [row.rpartition("score: ")[2] for row in printed.splitlines() if "score: " in row]
    return scores, system


def test_an_evaluation_scored_again_without_the_model_is_the_same(
    comet_model, corpus, model_directory, tiny_options, tmp_path
):
    options = replace(tiny_options, comet=str(comet_model), no_speech_per_kind=0)
    result = evaluate([corpus], model_directory, options, out=tmp_path).manifest
    assert result.number("COMET", "en-ru", group="pair").num_lines == 5
    assert rescore(tmp_path, result).numbers == result.numbers


def test_a_model_without_its_encoder(comet_model, tmp_path):
    (tmp_path / "model").symlink_to(comet_model)
    moved = comet_model.parent / "encoder"
    moved.rename(tmp_path / "encoder")
    try:
        with pytest.raises(SprachbundError, match="have its encoder"):
            Comet(str(tmp_path / "model"))
    finally:
        (tmp_path / "encoder").rename(moved)

"""A language model of one's own: its rows, its loss against transformers', what it becomes on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sprachbund.data.loading import Corpus, ExampleOptions, collate
from sprachbund.data.manifest import Manifest
from sprachbund.models.base import Target
from sprachbund.models.speech_llm import PromptOptions
from sprachbund.models.speech_llm.checkpoints import read_llm, read_tokenizer, write_part
from sprachbund.models.speech_llm.llm import (
    Prompts,
    TextExamples,
    TextLLM,
    TextLLMOptions,
    fit_tokenizer,
    make_text_llm,
)
from sprachbund.training.loop import train
from tests.training.made import LANGUAGES, make_corpus, options

SIZES = TextLLMOptions(width=16, num_layers=2, num_heads=2, inner_width=24, vocabulary_size=300, context=128)
TEXTS = ["one two three four", "eins zwei drei vier", "Grüße, ¿qué tal?"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    make_corpus(folder / "data", 16)
    return folder


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    tokenizer = fit_tokenizer(TEXTS, LANGUAGES, PromptOptions(), SIZES.vocabulary_size)
    return Prompts(tokenizer, PromptOptions(), len(tokenizer))


def fresh(prompts: Prompts) -> TextLLM:
    torch.manual_seed(0)
    return TextLLM(make_text_llm(SIZES, prompts.tokenizer), prompts, LANGUAGES, LANGUAGES)


def corpus(directory: Path, prompts: Prompts) -> Corpus:
    chosen = ExampleOptions(rows_per_utterance=2, spoken=True, time_masks=0, frequency_masks=0)
    return Corpus(
        [(Manifest(directory / "data"), 1.0)], TextExamples(prompts, LANGUAGES, LANGUAGES, 64), chosen
    )


def test_its_tokenizer_gives_back_any_text(prompts: Prompts) -> None:
    for text in (*TEXTS, "приве́т 你好 \t x"):
        assert prompts.tokens_to_text(prompts.text_to_tokens(text)) == text
    assert len(prompts.tokenizer) <= SIZES.vocabulary_size
    short = len(prompts.text_to_tokens(PromptOptions().transcribe))
    assert short < len(PromptOptions().transcribe), "instructions are in what it was fitted on"


def test_the_loss_is_that_of_transformers_row_by_row(directory: Path, prompts: Prompts) -> None:
    model, data = fresh(prompts), corpus(directory, prompts)
    places = range(5)
    batch = collate([data[0, i, 1.0] for i in places], 2)
    loss, total, count = model.loss(batch), 0.0, 0
    for b, i in enumerate(places):
        utterance, _ = data.utterance(i)
        for r in (2 * b, 2 * b + 1):
            language = LANGUAGES[int(batch.target_language[r])]
            text = utterance.text_in(language)
            assert text is not None
            before, behind = prompts.around(Target(language=language, source=utterance.language))
            said, wanted = (prompts.text_to_tokens(t) for t in (utterance.text, text))
            ids = torch.tensor([[*before, *said, *behind, *wanted, prompts.end]])
            total += model.llm(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    assert loss.num_tokens == count
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


def test_it_learns_in_the_loop_and_is_read_as_any_model_of_transformers(
    directory: Path, prompts: Prompts
) -> None:
    settings = options(12, learning_rate=1e-2, log_every=3, keep_best=1, evaluate_every=6)
    data, lines = corpus(directory, prompts), []
    model: Any = train(fresh(prompts), data, settings, directory / "run", dev=data, report=lines.append)
    losses = [
        float(line.split(" loss ")[1].split()[0])
        for line in lines
        if line.startswith("step ") and "/" in line.split()[1]
    ]
    assert losses[-1] < losses[0] - 0.5
    write_part(model.llm, directory / "llm")
    prompts.tokenizer.save_pretrained(directory / "llm")
    again, tokenizer = read_llm(directory / "llm", torch.float32), read_tokenizer(directory / "llm")
    ids = torch.tensor([prompts.text_to_tokens(TEXTS[0])])
    torch.testing.assert_close(again(ids).logits, model.llm(ids).logits)
    assert tokenizer.encode(TEXTS[2], add_special_tokens=False) == prompts.text_to_tokens(TEXTS[2])
    assert len(tokenizer) == len(prompts.tokenizer)

"""What `train` says of a recipe and its data before the first step, for a new conformer."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sprachbund.cli.models import describe
from sprachbund.data.loading import Corpus, ExampleOptions, PieceExamples
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.conformer import Conformer
from sprachbund.training.data_checks import check_corpus
from sprachbund.training.recipe import TranslatorRecipe
from sprachbund.training.translator import run
from tests.training import made
from tests.training.owned import make_tones

MODEL = {
    "width": 32,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "feed_forward_width": 32,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tones(tmp_path_factory.mktemp("tones") / "data")


def recipe(data: Path, **changes: Any) -> TranslatorRecipe:
    """One step of a new conformer."""
    return TranslatorRecipe.model_validate(
        {
            "languages": ("en", "de"),
            "train": [{"path": data}],
            "dev": [{"path": data}],
            "vocabulary_size": 40,
            "transcript_vocabulary_size": 30,
            "model": MODEL,
            "training": made.options(1, batch_s=8.0).model_dump(),
            "card": {"name": "new"},
            **changes,
        }
    )


def test_a_recipe_that_was_refused_is_mended_in_the_same_folder(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"data hold speech in de, the model hears only en"):
        run(recipe(data, languages=("en",)), tmp_path, report=lambda line: None)
    assert isinstance(run(recipe(data), tmp_path, report=lambda line: None), Conformer)
    with pytest.raises(
        SprachbundError, match=r"holds a run that differs in languages \(languages: \['en', 'd"
    ):
        run(recipe(data, languages=("en",)), tmp_path, report=lambda line: None)
    assert (tmp_path / "tokenizer.model").exists()


def test_pieces_are_those_of_data_that_were_mended_before_the_first_step(data: Path, tmp_path: Path) -> None:
    """After `--check`, or an error; pieces of a run that has begun, or that a study put there, stay."""
    book, folder = tmp_path / "book", tmp_path / "run"
    shutil.copytree(data, book)

    def run_once(folder: Path, **options: Any) -> bytes:
        run(recipe(book), folder, report=lambda line: None, **options)
        return (folder / "tokenizer.model").read_bytes()

    first = run_once(folder, check=lambda model, corpus, options: None)
    for path in book.glob("shard.*.sha256"):
        path.unlink()
    cuts = book / "cuts.00000.jsonl"
    mended = [json.loads(line) for line in cuts.read_text(encoding="utf-8").splitlines()]
    for cut in mended:
        cut["supervisions"][0]["text"] = cut["supervisions"][0]["text"].upper() + " ŋ"
    cuts.write_text("".join(json.dumps(cut) + "\n" for cut in mended), encoding="utf-8")
    (given := tmp_path / "given").mkdir()
    for name in ("tokenizer.model", "transcript_tokenizer.model"):
        shutil.copy(folder / name, given)
    second = run_once(folder)
    assert first != second == run_once(tmp_path / "new")
    assert run_once(given) == first
    shutil.copy(data / "cuts.00000.jsonl", cuts)
    with pytest.raises(SprachbundError, match=r"was begun with another .*book"):
        run_once(folder)
    assert run_once(folder, accept_changes=True) == second


def test_dev_data_that_are_trained_on_are_said_before_the_first_step(data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    run(recipe(data), tmp_path / "same", report=lines.append)
    said = [number for number, line in enumerate(lines) if "are trained on too" in line]
    assert len(said) == 1
    assert not any(line.startswith("step ") for line in lines[: said[0]])
    others = tmp_path / "others"
    shutil.copytree(data, others)
    run(recipe(data, dev=[{"path": others}]), tmp_path / "other", report=(other := list[str]()).append)
    assert not any("are trained on too" in line for line in other)


def test_a_recipe_without_dev_data_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"rank its checkpoints; add a \[\[dev\]\] with a path"):
        run(recipe(data, dev=()), tmp_path, report=lambda line: None)


def test_languages_without_data_are_named_and_are_not_on_the_card(data: Path, tmp_path: Path) -> None:
    make_tones(tmp_path / "german", ("de",))  # with texts in English
    lines: list[str] = []
    run(recipe(tmp_path / "german", languages=("de", "fr")), tmp_path / "run", report=lines.append)
    assert (
        "warning: the training data have no speech in fr, which the model does not learn to hear, and no text in fr, "
        "which it does not learn to write"
    ) in lines
    assert "texts in en are not used; the recipe does not list them as written" in lines
    card = Card.read(tmp_path / "run" / "model")
    assert card is not None
    assert (card.source_languages, card.target_languages) == (["de"], ["de"])
    assert card.taught_pairs == {("de", "de")}
    shown = describe("run", tmp_path / "run" / "model")
    assert (shown["pairs"], shown["pairs_recorded"]) == ([["de", "de"]], True)
    assert (shown["source_languages"], shown["target_languages"]) == (["de"], ["de"])
    lines.clear()
    run(recipe(data), tmp_path / "whole", report=lines.append)
    assert not [line for line in lines if "not learn" in line or "not used" in line]
    whole = Card.read(tmp_path / "whole" / "model")
    assert whole is not None
    assert whole.taught_pairs == {(source, target) for source in ("en", "de") for target in ("en", "de")}


def test_the_order_of_corpora_with_and_without_texts_does_not_matter(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprachbund.training.data_checks._MOST", 3)
    with ManifestWriter(tmp_path / "noise") as writer:
        for number in range(4):
            writer.add(
                np.full(1600, 0.01, np.float32), text="", language="", speaker="", utterance_id=f"{number}"
            )
    model = made.make_model()
    examples = PieceExamples(model.tokenizer, model.transcript_tokenizer, made.LANGUAGES)
    noise, speech = (Manifest(path) for path in (tmp_path / "noise", data))
    for order in ((noise, speech), (speech, noise)):
        check_corpus(
            Corpus([(one, 1.0) for one in order], examples, ExampleOptions()), 20.0, lambda line: None
        )
    with pytest.raises(
        SprachbundError, match="no utterance of the training data that was looked at has a text"
    ):
        check_corpus(Corpus([(noise, 1.0)] * 2, examples, ExampleOptions()), 20.0, lambda line: None)

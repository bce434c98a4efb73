"""A run from encoded corpora to a model: learns, goes on after a stop to the same bits, says what it leaves out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sprachbund.data.manifest import Manifest
from sprachbund.decoding.search import search
from sprachbund.decoding.texts import translate_texts
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.tokens.config import ReadTokens
from sprachbund.training.options import make_recipe
from sprachbund.training.unit_translator import UnitTranslatorRecipe, run
from sprachbund.units.dataset import within_hours
from tests.training.ranks import fork_ranks
from tests.units.made import words
from tests.units.mbart import write_mbart
from tests.units.translators import Spoken, config, speak


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    return speak(tmp_path_factory.mktemp("runs"))


def recipe(made: Spoken, **changes: Any) -> UnitTranslatorRecipe:
    shape = config().model_dump(exclude=set(ReadTokens.model_fields))
    training = {
        "steps": 6,
        "batch_s": 10,
        "num_workers": 0,
        "log_every": 2,
        "evaluate_every": 3,
        "save_every": 2,
        "keep_best": 10,
        "precision": "no",
        "warmup_steps": 1,
        "learning_rate": 3e-3,
    }
    values = {
        "units": made.units.directory,
        "train": [made.encoded.directory],
        "dev": [made.encoded.directory],
        "pairs": [("de", "fr"), ("en", "fr")],
        "model": {**shape, "head": "ctc_attention", "strides": 1},
        "training": {**training, **changes.pop("training", {})},
        "card": {"name": "tones"},
        **changes,
    }
    return make_recipe(UnitTranslatorRecipe, values)


def outside(directory: Path, text: str = "") -> dict[str, Any]:
    path = directory / "pairs.tsv"
    lines = [f"{word}\t{word.upper()}\n" for word in words(30, seed=5)]
    path.write_text("de\tfr\n" + "".join(lines) + text)
    return {"paths": [path], "source": "de", "target": "fr"}


def test_languages_are_named_as_corpora_and_parallel_text_have_them(made: Spoken, tmp_path: Path) -> None:
    """The model once had a language DE, and the sentences of the text were in de."""
    part = {**outside(tmp_path), "source": "DE"}
    given = recipe(made, pairs=[("EN", "fr")], bitext=[part])
    assert given.all_pairs == (("de", "fr"), ("en", "fr"))
    for changes in ({"bitext": [{**part, "target": "xx"}]}, {"pairs": [("xx", "fr")]}):
        with pytest.raises(SprachbundError, match="'xx' is not a language"):
            recipe(made, **changes)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_bits(made: Spoken, tmp_path: Path) -> None:
    given = recipe(made, bitext=[outside(tmp_path)])
    lines: list[str] = []
    whole = run(given, tmp_path / "whole", report=lines.append)
    run(given, tmp_path / "parts", report=lines.append, stop_after=4)
    parts = run(given, tmp_path / "parts", report=lines.append)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    logged = [line for line in lines if line.startswith("step 6/6")]
    assert len(logged) == 2
    assert any(" speech " in line and " text " in line for line in lines)
    assert any("dropped" in line for line in lines)
    assert any(
        line.startswith("training: 12 sentences of speech, 12 sentences of text, 30") for line in lines
    )


@pytest.mark.slow
def test_two_processes_train_like_one(made: Spoken, tmp_path: Path) -> None:
    """Batches of speech, and batches of text, of which the CTC on transcripts gets no gradient."""
    given = recipe(made, training={"steps": 4, "batch_s": 60, "evaluate_every": 4, "keep_best": 1})
    codes = fork_ranks([2], lambda rank, count: run(given, tmp_path / "two", report=_silent), tmp_path)
    assert not any(codes.values()), codes
    lines: list[str] = []
    run(given, tmp_path / "one", report=lines.append)
    assert any(" speech " in line for line in lines)
    assert any(" text " in line for line in lines)
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=2e-4, rtol=1e-3)


def test_a_model_learns_from_text_alone_and_goes_on_with_speech(made: Spoken, tmp_path: Path) -> None:
    first = run(
        recipe(made, train=(), bitext=[outside(tmp_path)], pairs=()), tmp_path / "text", report=_silent
    )
    assert first.pairs() == {("de", "fr")}
    lines: list[str] = []
    again = run(
        recipe(made, start=tmp_path / "text" / "model", training={"steps": 1}),
        tmp_path / "on",
        report=lines.append,
    )
    assert again.pairs() == {("de", "fr"), ("en", "fr")}
    assert any("weights are new: language_head" in line for line in lines)


@pytest.mark.slow
def test_a_start_from_mbart_learns_at_two_rates_and_goes_on_to_the_same_bits(
    made: Spoken, tmp_path: Path
) -> None:
    rates = {"unit_embedding.*": 1e-2, "language_head.*": 1e-2}
    given = from_mbart(made, tmp_path, training={"learning_rate": 1e-7, "rates": rates})
    lines: list[str] = []
    whole = run(given, tmp_path / "whole", report=lines.append)
    run(given, tmp_path / "parts", report=_silent, stop_after=4)
    parts = run(given, tmp_path / "parts", report=_silent)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert any("of its tokens are kept" in line for line in lines)
    first = run(
        from_mbart(made, tmp_path, training={"steps": 1, "learning_rate": 1e-7, "rates": rates}),
        tmp_path / "first",
        report=_silent,
    )
    moved = {n: float((v - first.state_dict()[n]).abs().max()) for n, v in whole.state_dict().items()}
    new = {name for name in moved if name.startswith(("unit_embedding", "language_head"))}
    assert min(moved[name] for name in new) > 1e-3 > 1e-5 > max(moved[n] for n in moved.keys() - new)
    assert next(translate_texts(whole, ["fade"], ["fr"], "de"))[0].target == "fr"


def test_mbart_says_the_shape(made: Spoken, tmp_path: Path) -> None:
    with pytest.raises(
        SprachbundError, match=r"shape and weights are those of mbart .*; leave out \[model\]"
    ):
        run(recipe(made, mbart=str(tmp_path)), tmp_path, report=_silent)
    with pytest.raises(SprachbundError, match="leave out start"):
        run(recipe(made, mbart=str(tmp_path), start=tmp_path), tmp_path, report=_silent)


def from_mbart(made: Spoken, directory: Path, **changes: Any) -> UnitTranslatorRecipe:
    checkpoint = directory / "mbart"
    if not checkpoint.exists():
        write_mbart(checkpoint)
    values = recipe(made, **changes).model_dump(exclude={"model", "start"}) | {"mbart": str(checkpoint)}
    return make_recipe(UnitTranslatorRecipe, values)


@pytest.mark.slow
def test_one_model_learns_to_translate_speech_and_text(tmp_path: Path) -> None:
    made = speak(tmp_path / "data", hears=True)
    training = {"steps": 70, "evaluate_every": 70, "learning_rate": 5e-3, "keep_best": 1, "batch_s": 100}
    changes = {"head": "attention", "strides": 0, "label_smoothing": 0.0, "width": 32}
    shape = {**recipe(made).model.model_dump(), **changes}
    given = recipe(made, training=training, model=shape, mixing={"sampling": 0.0})
    model = run(given, tmp_path / "run", report=_silent)
    manifest = Manifest(made.corpus)
    numbers = range(0, 12, 2)  # in English
    said = [manifest[i].text for i in numbers]
    texts = [row[0].text for row in translate_texts(model, said, ["fr"], "en")]
    memory = model.encode(model.features([manifest.samples(i) for i in numbers]))
    rows = search(model, memory, [[Target(language="fr")]] * len(said))
    speech = [model.decode_text(row[0].tokens) for row in rows]
    wanted = [text.upper() for text in said]
    for result in (texts, speech):
        assert sum(a == b for a, b in zip(result, wanted, strict=True)) >= 5


def test_bad_data_is_named(made: Spoken, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="has no training data"):
        run(recipe(made, train=()), tmp_path / "a", report=_silent)
    with pytest.raises(SprachbundError, match=r"pairs\.tsv:32: the target side is empty"):
        run(recipe(made, bitext=[outside(tmp_path, "abc\t\n")]), tmp_path / "b", report=_silent)
    lines: list[str] = []
    bad = {**outside(tmp_path, "abc\t\n"), "skip_bad": True}
    run(recipe(made, bitext=[bad], training={"steps": 1}), tmp_path / "c", report=lines.append)
    assert any("1 pairs of" in line and "left out" in line for line in lines)
    with pytest.raises(SprachbundError, match="h of speech in de, en, and 9 are wanted"):
        run(recipe(made, hours=9), tmp_path / "d", report=_silent)


@pytest.mark.slow
def test_text_comes_on_top_of_as_much_speech(made: Spoken, tmp_path: Path) -> None:
    lines: list[str] = []
    given = recipe(made, steps_of="speech", training={"steps": 4, "evaluate_every": 2, "log_every": 1})
    run(given, tmp_path, report=lines.append)
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    steps = [
        line for line in lines if line.startswith("step ") and " loss " in line and "dev loss" not in line
    ]
    spoken = [line for line in steps if " speech " in line]
    assert card["training"]["steps"] == len(steps) > len(spoken)
    assert card["training"]["pairs"] == [list(pair) for pair in given.all_pairs]
    assert len(spoken) == 4
    assert sum("dev loss" in line for line in lines if line.startswith("step ")) == 2


def test_less_speech_is_part_of_more(made: Spoken) -> None:
    hours = sum(u.duration_s for u in made.encoded) / 3600
    less, more = (set(within_hours(made.encoded, {"de", "en"}, share * hours)) for share in (0.3, 0.7))
    assert less < more < set(range(12))


def _silent(line: str) -> None:
    pass

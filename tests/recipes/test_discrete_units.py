"""The recipe from data to tables on the tiny size, by the command; and that a second run does nothing again."""

import csv
import io
import json
from pathlib import Path

import pytest

from sprachbund.cli import main
from sprachbund.data.editions import edition, make_edition
from sprachbund.errors import SprachbundError
from sprachbund.models.directory import load
from sprachbund.models.token_conformer import TokenConformer
from sprachbund.recipes import sizes
from sprachbund.recipes.discrete_units import mbart_training
from sprachbund.recipes.discrete_units_data import phrases, vocabulary_of
from sprachbund.recipes.discrete_units_needs import needs
from sprachbund.recipes.discrete_units_options import ABLATIONS, DiscreteUnitsRecipe, place
from sprachbund.recipes.options import read_recipe

SIZES = Path(sizes.__file__).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recipe")
    make_edition(directory / "data", edition("tiny", train_utterances=60, heldout_sentences=4), workers=1)
    assert main(command(directory)) == 0
    return directory


def command(directory: Path) -> list[str]:
    where = ["--data", str(directory / "data"), "--out", str(directory / "run")]
    return ["recipe", "discrete_units", "--size", "tiny", "--threads", "1", *where]


def rows(run: Path, table: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((run / "run" / f"{table}.json").read_text())["rows"]
    assert all(row.keys() == found[0].keys() for row in found)
    return found


def test_every_arm_has_its_row(run: Path) -> None:
    assert [(row["head"], row["data"]) for row in rows(run, "table")] == [
        ("ctc_attention", "ST only"),
        ("ctc_attention", "+ text start"),
        ("ctc", "ST only"),
        ("ctc", "+ text start"),
    ]
    assert [row["arm"] for row in rows(run, "ablations")] == ["ctc_attention, + MT", "r = 2", "soft sharing"]
    assert [(row["hours"], row["data"]) for row in rows(run, "curve")] == [(0.01, "ST only"), (0.01, "+ MT")]
    log_mel = rows(run, "log-mel")
    assert log_mel[0]["stored data"] == log_mel[0]["training time"] == 1.0
    assert all(isinstance(row["stored data"], float) and row["stored data"] < 0.1 for row in log_mel[1:])


def test_arms_are_what_they_are_called(run: Path) -> None:
    def model(name: str) -> TokenConformer:
        found = load(place(run / "run", 0, name) / "run" / "model")
        assert isinstance(found, TokenConformer)
        return found

    assert model("ctc, ST only").config.head == "ctc"
    assert model("r = 2").config.ratio == 2.0
    assert model("soft sharing").config.soft_sharing
    logged = json.loads((place(run / "run", 0, "0.01 h, + MT") / "run" / "recipe.json").read_text())
    assert (logged["hours"], logged["mixing"]["text"]) == (0.01, True)
    started = json.loads((place(run / "run", 0, "ctc, + text start") / "run" / "recipe.json").read_text())
    assert started["start"].endswith("text-ctc/model")
    assert started["bitext"]


def test_a_second_run_does_nothing_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run / "run").rglob("model.safetensors")}
    assert main([*command(run), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 4
    assert {path: path.stat().st_mtime_ns for path in (run / "run").rglob("model.safetensors")} == before


@pytest.mark.parametrize("size", ["tiny", "small", "paper"])
def test_all_sizes_are_whole_and_fit(size: str) -> None:
    recipe = read_recipe(DiscreteUnitsRecipe, SIZES / f"discrete_units.{size}.toml")
    assert set(recipe.ablations) <= set(ABLATIONS)
    vocabularies = {vocabulary_of(recipe, arm) for arm in recipe.all_arms().values()}
    assert len(vocabularies) >= (1 if size == "tiny" else 3)
    found = needs(recipe)
    assert {one.head for one in found.heads} == set(recipe.heads)
    assert found.trainings >= len(recipe.heads) * len(recipe.texts) * len(recipe.seeds)


def test_the_published_shape_has_the_published_parts() -> None:
    recipe = read_recipe(DiscreteUnitsRecipe, SIZES / "discrete_units.paper.toml")
    found = needs(recipe)
    assert found.vocabulary == 8002
    assert found.written == 4002
    attention = next(one for one in found.heads if one.head == "attention")
    assert attention.parts["source_ctc_head"] == 4002 * 257
    embedding, projection = 8002 * 512, 512 * 256 + 256
    assert attention.parts["encoder"] > embedding + projection + 18 * 10 * 256 * 256


def test_the_command_tells_what_the_published_size_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "discrete_units", "--size", "paper", "--check"]) == 0
    out = capsys.readouterr().out
    assert "8,002 ids are read, 4,002 may be written" in out
    assert all(head in out for head in ("attention", "ctc", "transducer", "ctc_attention"))
    assert "parameters with its 250,054 tokens; with 4,002 of them and 4,000 new rows" in out


def test_the_head_attention_starts_from_mbart_where_one_is_named() -> None:
    recipe = read_recipe(DiscreteUnitsRecipe, SIZES / "discrete_units.paper.toml")
    arms = [arm for arm in recipe.all_arms().values() if arm.text == "start"]
    named = recipe.model_copy(update={"mbart": "facebook/mbart-large-50"})
    assert [arm.head for arm in arms if named.from_mbart(arm)] == ["attention"]
    assert not any(recipe.from_mbart(arm) for arm in arms)
    alone, found = (needs(one.model_copy(update={"heads": ("attention",)})) for one in (recipe, named))
    assert alone.trainings - found.trainings == len(recipe.seeds)
    training = mbart_training(recipe.training)
    assert (training.learning_rate, training.rates["unit_embedding.*"]) == (3e-5, 3e-4)
    assert found.mbart is not None
    # transformers' model has two rows of positions more on each side, and a bias on the keys of 36 attentions
    assert found.mbart.whole == 610_879_488 - 4 * 1024 - 36 * 1024


def test_drawn_text_is_parallel_distinct_and_not_held_out() -> None:
    table = list(csv.reader(io.StringIO(phrases("es", "en", 50)), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert table[0] == ["es", "en"]
    assert len(table) == 51
    assert len({tuple(row) for row in table}) == 51
    assert phrases("es", "en", 20) == phrases("es", "en", 50)[: len(phrases("es", "en", 20))]
    with pytest.raises(SprachbundError, match="the phrasebook has no xx"):
        phrases("xx", "en", 1)

"""The recipe from data to tables on the tiny size, by the command; and that a second run does nothing again."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
import sacrebleu
import torch
from safetensors.torch import load_file

from sprachbund.cli import main
from sprachbund.corpora.editions import edition, make_edition
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.io import load
from sprachbund.models.tokens.conformer import TokenConformer
from sprachbund.research import size_file
from sprachbund.research.discrete_units.data import (
    OTHERS,
    PLANTED,
    halves,
    phrases,
    scored_limit,
    shuffled_parts,
    vocabulary_of,
)
from sprachbund.research.discrete_units.estimate import estimate_memory
from sprachbund.research.discrete_units.options import ABLATIONS, DiscreteUnitsRecipe, run_folder
from sprachbund.research.discrete_units.recipe import _check_rates, mbart_training, recipe_of
from sprachbund.training.options import read_recipe
from sprachbund.units.encoded import EncodedCorpus

pytestmark = pytest.mark.slow

WEIGHTS = Path("run") / "model" / "model.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recipe")
    make_edition(directory / "data", edition("tiny", train_utterances=60, heldout_sentences=4), workers=1)
    assert main(command(directory)) == 0
    return directory


def command(directory: Path) -> list[str]:
    where = ["--data", str(directory / "data"), "--out", str(directory / "run")]
    return ["recipe", "discrete_units", "--size", "tiny", "--threads", "1", *where]


def read_tiny(run: Path) -> DiscreteUnitsRecipe:
    return read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "tiny"), [f'data="{run / "data"}"'])


def rows(run: Path, table: str) -> list[dict[str, object]]:
    result: list[dict[str, object]] = json.loads((run / "run" / f"{table}.json").read_text())["rows"]
    assert all(row.keys() == result[0].keys() for row in result)
    return result


def test_every_arm_has_its_row(run: Path) -> None:
    assert [(row["head"], row["data"]) for row in rows(run, "table")] == [
        ("ctc_attention", "ST only"),
        ("ctc_attention", "+ text start"),
        ("ctc", "ST only"),
        ("ctc", "+ text start"),
    ]
    assert [row["arm"] for row in rows(run, "ablations")] == [
        "ctc_attention, + MT",
        "r = 2",
        "repetitions marked",
        "free embeddings",
        "soft sharing",
    ]
    all_hours = EncodedCorpus(run / "run" / "encoded" / "train").info.hours
    assert [(row["hours"], row["data"]) for row in rows(run, "curve")] == [
        (hours, data) for hours in (0.01, round(all_hours, 2)) for data in ("ST only", "+ MT")
    ]
    assert (run / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    log_mel = rows(run, "log-mel")
    assert log_mel[0]["stored data"] == log_mel[0]["training time"] == 1.0
    assert all(isinstance(row["stored data"], float) and row["stored data"] < 0.1 for row in log_mel[1:])


def test_texts_lie_beside_the_tables_that_are_made_of_them(run: Path) -> None:
    with gzip.open(run / "run" / "texts.jsonl.gz", "rt", encoding="utf-8") as file:
        first, *models = map(json.loads, file)
    references = first["references"]
    for row in rows(run, "table"):
        name = f"{row['head']}, {row['data']}"
        (written,) = (m["hypotheses"] for m in models if (m["arm"], m["seed"]) == (name, 0))
        texts = [[of[key] for key in references] for of in (written, references)]
        assert sacrebleu.corpus_chrf(texts[0], [texts[1]]).score == pytest.approx(row["chrF"], abs=1e-9)


def test_each_arm_has_the_learning_rate_that_was_best_on_dev(run: Path) -> None:
    tried = {str(row["arm"]): row for row in rows(run, "rates")}
    assert list(tried) == [*dict.fromkeys(name for name, _, _ in read_tiny(run).models())]
    for name, row in tried.items():
        folder = run_folder(run / "run", 0, name) / "run"
        losses = {rate: row[f"{rate:g}"] for rate in (1e-3, 3e-3)}
        assert row["best"] == min(losses, key=lambda rate: float(str(losses[rate])))
        of_run = json.loads((folder / "convergence.json").read_text())["best"]["value"]
        assert of_run == losses[row["best"]]  # type: ignore[index]
        assert json.loads((folder / "recipe.json").read_text())["training"]["learning_rate"] == row["best"]


def test_the_estimate_counts_all_trainings(run: Path) -> None:
    made = [path for path in (run / "run").rglob("convergence.json") if path.resolve() == path]
    assert len(made) == estimate_memory(read_tiny(run)).trainings


def test_half_of_the_test_sentences_are_planted_and_each_half_is_scored(run: Path) -> None:
    recipe, test = read_tiny(run), Manifest(run / "data" / "test")
    both = halves(recipe)
    spoken = {u.id: u for u in test if u.language == "de"}
    assert all(both.values())
    assert both[PLANTED] | both[OTHERS] == spoken.keys()
    assert not both[PLANTED] & both[OTHERS]
    translations = {half: {spoken[one].text_in("en") for one in ids} for half, ids in both.items()}
    assert not translations[PLANTED] & translations[OTHERS]

    planted = recipe_of(recipe, 0, recipe.control_arms()["0.01 h, + planted MT"], run / "run").bitext
    outside, sentences = (list(csv.DictReader(part.paths[0].open(), delimiter="\t")) for part in planted)
    assert {(pair["de"], pair["en"]) for pair in sentences} == {
        (spoken[one].text_in("de"), spoken[one].text_in("en")) for one in both[PLANTED]
    }
    assert not {pair["en"] for pair in outside} & translations[OTHERS]
    often = recipe.model_copy(update={"control_copies": (1, 3)})
    assert list(often.control_arms()) == [
        "0.01 h, + external MT",
        "0.01 h, + planted MT",
        "0.01 h, + planted MT 3 times",
    ]
    more = recipe_of(often, 0, often.control_arms()["0.01 h, + planted MT 3 times"], run / "run").bitext
    assert more[0] == planted[0]
    assert [*csv.DictReader(more[1].paths[0].open(), delimiter="\t")] == 3 * sentences

    control = rows(run, "control")
    assert [(row["hours"], row["test"], row["data"]) for row in control] == [
        (0.01, half, data) for half in (PLANTED, OTHERS) for data in ("+ external MT", "+ planted MT")
    ]
    with gzip.open(run / "run" / "texts.jsonl.gz", "rt", encoding="utf-8") as file:
        first, *models = map(json.loads, file)
    written = next(m["hypotheses"] for m in models if m["arm"] == "0.01 h, + planted MT")
    for row in control[1::2]:
        scored = [one for one in first["references"] if one in both[str(row["test"])]]
        texts = [[of[one] for one in scored] for of in (written, first["references"])]
        assert sacrebleu.corpus_chrf(texts[0], [texts[1]]).score == pytest.approx(row["chrF"], abs=1e-9)


def test_shuffled_text_has_the_same_sentences_with_translations_of_others(run: Path) -> None:
    recipe = read_tiny(run)
    arms = recipe.shuffled_arms()
    assert list(arms) == ["0.01 h, + external MT", "0.01 h, + shuffled MT"]
    own, other = (recipe_of(recipe, 0, arm, run / "run") for arm in arms.values())
    assert other.model_copy(update={"bitext": own.bitext}) == own
    pairs, shuffled = (
        [(pair["de"], pair["en"]) for pair in csv.DictReader(one.bitext[0].paths[0].open(), delimiter="\t")]
        for one in (own, other)
    )
    for side in (0, 1):
        assert sorted(pair[side] for pair in pairs) == sorted(pair[side] for pair in shuffled)
    assert not set(pairs) & set(shuffled)
    assert [(row["hours"], row["data"]) for row in rows(run, "shuffled")] == [
        (0.01, "+ external MT"),
        (0.01, "+ shuffled MT"),
    ]


def test_arms_are_what_they_are_called(run: Path) -> None:
    def model(name: str) -> TokenConformer:
        result = load(run_folder(run / "run", 0, name) / "run" / "model")
        assert isinstance(result, TokenConformer)
        return result

    assert model("ctc, ST only").config.head == "ctc"
    assert model("r = 2").config.ratio == 2.0
    assert model("soft sharing").config.soft_sharing
    assert len(model("soft sharing").text_encoder.layers) == 6
    logged = json.loads((run_folder(run / "run", 0, "0.01 h, + MT") / "run" / "recipe.json").read_text())
    assert (logged["hours"], logged["mixing"]["text"]) == (0.01, True)
    started = json.loads(
        (run_folder(run / "run", 0, "ctc, + text start") / "run" / "recipe.json").read_text()
    )
    assert started["start"].endswith("text-ctc/model")
    assert started["bitext"]


def test_a_second_run_does_nothing_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for what a process leaves that is killed while it removes what finished trainings need no more."""
    left = [run / "run" / "seed-0" / name / "best" for name in ("text-ctc", "r-2/run")]
    for folder in left:
        folder.mkdir()
    before = {path: path.stat().st_mtime_ns for path in (run / "run").rglob("model.safetensors")}
    assert main([*command(run), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 4
    assert {path: path.stat().st_mtime_ns for path in (run / "run").rglob("model.safetensors")} == before
    assert not any(folder.exists() for folder in left)


def link_data(run: Path, directory: Path) -> None:
    """Begin a run with the data of another."""
    (directory / "run").mkdir()
    for made in ("units", "encoded", "bitext"):
        (directory / "run" / made).symlink_to(run / "run" / made)
    (directory / "data").symlink_to(run / "data")


def test_two_workers_make_the_same_models(run: Path, tmp_path: Path) -> None:
    link_data(run, tmp_path)
    less = ["workers=2", 'heads=["ctc"]', "ablations=[]", "hours=[]", "control_hours=[]"]
    assert main([*command(tmp_path), *(part for one in less for part in ("--set", one))]) == 0
    for arm in ("ctc, ST only", "ctc, + text start", "log-mel"):
        first, second = (load_file(run_folder(at / "run", 0, arm) / WEIGHTS) for at in (run, tmp_path))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        assert "was best on dev" in (run_folder(tmp_path / "run", 0, arm) / "log.txt").read_text()
    trial = run_folder(tmp_path / "run" / "rates", 0, "log-mel") / "0.001"
    assert "best dev loss" in (trial / "log.txt").read_text()
    assert not list((tmp_path / "run").rglob("resume.pt"))


def test_an_arm_has_the_learning_rate_that_is_known(run: Path, tmp_path: Path) -> None:
    link_data(run, tmp_path)
    less = ['heads=["ctc"]', "ablations=[]", "hours=[]", "control_hours=[]", "learning_rates=[]"]
    less += ['texts=["none", "external"]', 'arm_rates={"ctc, + external MT" = 3e-4}']
    assert main([*command(tmp_path), *(part for one in less for part in ("--set", one))]) == 0
    for arm, rate in {
        "ctc, ST only": read_tiny(run).training.learning_rate,
        "ctc, + external MT": 3e-4,
    }.items():
        trained = json.loads((run_folder(tmp_path / "run", 0, arm) / "run" / "recipe.json").read_text())
        assert trained["training"]["learning_rate"] == rate
    assert not (tmp_path / "run" / "rates.json").exists()


def test_a_folder_with_another_comparison_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(run), "--set", "training.steps=3"]) == 1
    assert "was begun with training.steps 2, not 3" in " ".join(capsys.readouterr().err.split())


def test_arms_change_what_they_name() -> None:
    recipe = read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "paper"))
    arms, base = recipe.ablation_arms(), recipe.base
    assert arms["weight of text 0.25"].mixing(recipe.mixing).text_weight == 0.25
    assert arms["speech alone at the end"].mixing(recipe.mixing).speech_only_share == 0.2
    assert base.mixing(recipe.mixing) == recipe.mixing
    assert not arms["free embeddings"].model(recipe.model).tied
    assert arms["no source CTC"].model(recipe.model).source_ctc_weight == 0
    assert recipe.training.decay == "inverse_sqrt"
    assert arms["linear decay"].training(recipe.training).decay == "linear"
    assert recipe_of(
        recipe.model_copy(update={"data": Path("data")}), 1, arms["repetitions marked"], Path("out")
    ).mark_repeats


def test_ablations_have_seeds_of_their_own_and_equal_arms_are_trained_once() -> None:
    recipe = read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "small"), ["ablation_seeds=[0, 2]"])
    models = recipe.models()
    assert len({(seed, arm) for _, seed, arm in models}) == len(models)
    for name in recipe.ablations:
        assert [seed for one, seed, _ in models if one == name] == [0, 2]
    names = {name for name, _, _ in models}
    assert "base" not in names  # it is one of the main table, and so is an hour of the curve
    assert "1 h, ST only" not in names
    assert {"all, ST only", "0.25 h, + MT"} <= names
    assert [name for name, _, arm in models if arm is None] == ["log-mel"] * 3
    assert len(recipe.text_models()) == len(recipe.heads) * len(recipe.seeds)


def test_as_many_test_utterances_of_each_source_are_scored_as_are_wanted(run: Path) -> None:
    recipe = read_tiny(run)
    languages = Manifest(run / "data" / "test").languages.tolist()
    assert 1 < languages.count("de") < len(languages)
    fewer = recipe.model_copy(update={"test_utterances": languages.count("de") // 2})
    assert scored_limit(fewer) == len(languages) / 2
    assert scored_limit(recipe.model_copy(update={"test_utterances": None})) is None
    with pytest.raises(SprachbundError, match="holds no speech in some of xx; name other sources"):
        scored_limit(recipe.model_copy(update={"sources": ("xx",)}))


@pytest.mark.parametrize("size", ["tiny", "small", "paper"])
def test_all_sizes_are_whole_and_fit(size: str) -> None:
    recipe = read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", size))
    assert set(recipe.ablations) <= set(ABLATIONS)
    vocabularies = {vocabulary_of(recipe, arm) for arm in recipe.all_arms.values()}
    assert len(vocabularies) >= (1 if size == "tiny" else 3)
    result = estimate_memory(recipe)
    assert {one.head for one in result.heads} == set(recipe.heads)
    assert result.trainings >= len(recipe.heads) * len(recipe.texts) * len(recipe.seeds)


def test_the_published_shape_has_the_published_parts() -> None:
    recipe = read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "paper"))
    result = estimate_memory(recipe)
    assert result.vocabulary == 8002
    assert result.written == 4002
    attention = next(one for one in result.heads if one.head == "attention")
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
    recipe = read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "paper"))
    arms = [arm for arm in recipe.all_arms.values() if arm.text == "start"]
    named = recipe.model_copy(update={"mbart": "facebook/mbart-large-50"})
    assert [arm.head for arm in arms if named.from_mbart(arm)] == ["attention"]
    assert not any(recipe.from_mbart(arm) for arm in arms)
    alone, result = (
        estimate_memory(one.model_copy(update={"heads": ("attention",)})) for one in (recipe, named)
    )
    assert alone.trainings - result.trainings == len(recipe.seeds)
    training = mbart_training(recipe.training)
    assert (training.learning_rate, training.rates["unit_embedding.*"]) == (3e-5, 3e-4)
    assert result.mbart is not None
    # transformers' model has two rows of positions more on each side, and a bias on the keys of 36 attentions
    assert result.mbart.whole == 610_879_488 - 4 * 1024 - 36 * 1024


def test_drawn_text_is_parallel_distinct_and_not_held_out() -> None:
    table = list(csv.reader(io.StringIO(phrases("es", "en", 50)), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert table[0] == ["es", "en"]
    assert len(table) == 51
    assert len({tuple(row) for row in table}) == 51
    assert phrases("es", "en", 20) == phrases("es", "en", 50)[: len(phrases("es", "en", 20))]
    with pytest.raises(SprachbundError, match="the phrasebook has no xx"):
        phrases("xx", "en", 1)


def test_a_recipe_of_a_finished_training_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    recipe = read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "tiny"), ["learning_rates=[]"])
    name, seed, _ = recipe.models()[0]
    path = run_folder(tmp_path, seed, name) / "run" / "recipe.json"
    path.parent.mkdir(parents=True)
    whole = json.dumps({"training": {"learning_rate": recipe.training.learning_rate}, "earlier": 1})
    path.write_text(whole)
    _check_rates(recipe, tmp_path)
    for content in ("", whole[:20], "[]", "{}", '{"training": 3}', '{"training": {"learning_rate": "fast"}}'):
        path.write_text(content)
        with pytest.raises(
            SprachbundError, match=r"recipe\.json.*; copy it again, or delete .*, and the arm"
        ):
            _check_rates(recipe, tmp_path)


def test_text_with_one_translation_cannot_be_shuffled(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("de\ten\neins\tone\n")
    recipe = read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "tiny"), [f'bitext=["{path}"]'])
    with pytest.raises(SprachbundError, match=r"pairs\.tsv has one translation alone \(1 pairs\)"):
        shuffled_parts(recipe, tmp_path)
    path.write_text("de\ten\neins\tone\nzwei\ttwo\n")
    [part] = shuffled_parts(recipe, tmp_path)
    assert sorted(part.paths[0].read_text().splitlines()) == ["de\ten", "eins\ttwo", "zwei\tone"]


def test_numbers_that_cannot_be_are_refused_before_any_work() -> None:
    base = [
        f'base={{head="ctc", text="own", {name}=0}}'
        for name in ("ratio", "hours", "text_weight", "planted_copies")
    ]
    for asked in (*base, "hours=[0]", "control_hours=[0]", "shuffled_hours=[0]"):
        with pytest.raises(SprachbundError, match="greater than"):
            read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "tiny"), [asked])

"""Recipes with numbers that cannot be are refused with the key, before anything is computed."""

from itertools import pairwise
from pathlib import Path

import pytest
from scripts import bundled

from sprachbund.errors import SprachbundError
from sprachbund.research import size_file
from sprachbund.research.code_switch.options import CodeSwitchRecipe
from sprachbund.research.discrete_units.options import DiscreteUnitsRecipe
from sprachbund.research.dual_scale.options import DualScaleRecipe
from sprachbund.research.gradient_sharing.options import GradientSharingRecipe
from sprachbund.training.options import Strict, make_recipe, of_path, read_recipe
from sprachbund.training.recipe import TranslatorRecipe
from sprachbund.util.files import read_toml

RECIPE = Path(__file__).parents[2] / "recipes" / "bundled.toml"


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("training.steps=-5", r"training\.steps is -5"),
        ("training.steps=0", r"training\.steps"),
        ("training.learning_rate=nan", r"training\.learning_rate is nan"),
        ("training.learning_rate=1e400", r"training\.learning_rate is inf"),
        ("training.batch_s=0", r"training\.batch_s"),
        ("training.max_utterances=0", r"training\.max_utterances"),
        ("training.log_every=0", r"training\.log_every"),
        ("training.save_every=0", r"training\.save_every"),
        ("training.num_workers=1000000000000", r"training\.num_workers is 1000000000000"),
        ("model.width=1000000000000", r"model\.width is 1000000000000; give a number from 0 to 1e\+07"),
        ("model.num_encoder_layers=1e12", r"model\.num_encoder_layers is 1000000000000"),
        ("model.dropout=-0.1", r"model\.dropout is -0.1"),
        ("vocabulary_size=0", "vocabulary_size"),
        ("examples.speeds=[1.0, 0.0]", r"examples\.speeds\.1"),
        ("examples.speeds=[]", r"examples\.speeds"),
        ("examples.rows_per_utterance=0", r"examples\.rows_per_utterance"),
        ("languages.x=3", "languages is .*which has no x; set languages itself"),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_its_key(override: str, wanted: str) -> None:
    with pytest.raises(SprachbundError, match=wanted) as caught:
        read_recipe(TranslatorRecipe, RECIPE, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"\xff", "line 1: byte 0xff is not UTF-8"),
        (b"a = [", "is not TOML"),
        (b"a = " + b"[" * 9999, "not TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes, wanted: str) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(SprachbundError, match=wanted):
        read_recipe(TranslatorRecipe, tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("left_out", "wanted"),
    [
        ("card", r"there is no \[card\]; add \[card\] with name and licence$"),
        ("training", r"there is no \[training\]; add \[training\] with steps$"),
        ("dev", r"there is no \[\[dev\]\]; add \[\[dev\]\] with path$"),
        ("languages", "languages is missing; add it$"),
    ],
)
def test_what_a_recipe_lacks_is_named_with_what_to_add(left_out: str, wanted: str) -> None:
    values = read_toml(RECIPE)
    del values[left_out]
    with pytest.raises(SprachbundError, match=wanted):
        make_recipe(TranslatorRecipe, values)


def test_sizes_that_do_not_fit_together_are_refused_with_the_recipe() -> None:
    overrides = ["model.width=32", "model.num_heads=3"]
    with pytest.raises(
        SprachbundError, match=r"toml: \[model\]: num_heads 3 does not divide width 32; change"
    ):
        read_recipe(TranslatorRecipe, RECIPE, overrides)


@pytest.mark.parametrize("name", ["plain", r"back\book", 'a "b"', "o'clock", "Übung 😀", "a = [1]"])
def test_a_path_stands_in_an_override_whatever_its_name(name: str) -> None:
    recipe = read_recipe(
        GradientSharingRecipe, size_file("gradient_sharing", "tiny"), [of_path("data", Path(name))]
    )
    assert recipe.data == Path(name)


def test_a_name_of_a_language_is_refused_with_its_tag() -> None:
    with pytest.raises(SprachbundError, match=r"languages: 'english' is a name; write its tag, 'en' \("):
        read_recipe(TranslatorRecipe, RECIPE, ['languages=["english", "de"]'])


def test_a_language_that_is_there_twice_is_refused() -> None:
    with pytest.raises(SprachbundError, match=r"languages: 'gsw' is there twice; remove one \("):
        read_recipe(TranslatorRecipe, RECIPE, ['languages=["gsw", "de", "gsw"]'])


def test_a_seed_may_be_large() -> None:
    assert read_recipe(TranslatorRecipe, RECIPE, ["training.seed=123456789012"]).training.seed == 123456789012


def test_a_misspelt_key_is_named_rather_than_the_one_that_is_missing_by_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.read_text(encoding="utf-8")
    recipe.write_text(text.replace("\nsteps =", "\nstepps ="), encoding="utf-8")
    with pytest.raises(
        SprachbundError, match=r"unknown key training\.stepps; did you mean training\.steps\?"
    ):
        read_recipe(TranslatorRecipe, recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=1e-3", "unknown key learning_rate; did you mean training.learning_rate?"),
        ("model.learning_rate=1e-3", "unknown key model.learning_rate; did you mean training.learning_rate?"),
        ("training.stepps=3", "unknown key training.stepps; did you mean training.steps?"),
        ("widht=3", "unknown key widht; did you mean model.width?"),
        ("zzz=3", "unknown key zzz"),
        ("dev=[{pth = 'x'}]", "unknown key dev.0.pth; did you mean dev.path?"),
        ("languages=3", "languages: give a list, as [A, B] (value 3)"),
        ("training=3", "training: give a table of keys and values (value 3)"),
    ],
)
def test_an_unknown_key_or_kind_is_one_line_with_the_way_out(override: str, message: str) -> None:
    with pytest.raises(SprachbundError) as caught:
        read_recipe(TranslatorRecipe, RECIPE, [override])
    assert str(caught.value).endswith(f": {message}")


@pytest.mark.parametrize(
    ("name", "recipe", "override"),
    [
        ("discrete_units", DiscreteUnitsRecipe, "seeds=[0, 1, 0]"),
        ("discrete_units", DiscreteUnitsRecipe, "learning_rates=[1e-3, 1e-3]"),
        ("code_switch", CodeSwitchRecipe, "seeds=[0, 0]"),
        ("dual_scale", DualScaleRecipe, "seeds=[0, 0]"),
        ("gradient_sharing", GradientSharingRecipe, "seeds=[0, 0]"),
        ("gradient_sharing", GradientSharingRecipe, "languages=['de', 'de']"),
    ],
)
def test_a_seed_that_would_count_twice_is_refused(name: str, recipe: type[Strict], override: str) -> None:
    with pytest.raises(SprachbundError, match="is there twice; name it once"):
        read_recipe(recipe, size_file(name, "tiny"), [override])


@pytest.mark.parametrize("leave_out", [None, "asterisk-it-carlo"])
def test_stages_of_the_bundled_model_are_its_recipe_one_from_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave_out: str | None
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(bundled, "run", lambda command, folder=None: commands.append(list(command[3:])))
    bundled.make_data(tmp_path, 1, leave_out)
    bundled.train(tmp_path, 77, ["training.batch_s=99"], leave_out)
    telephone, *stages = [command for command in commands if command[0] == "train" or "telephone" in command]
    made = {command[command.index("--out") + 1] for command in commands if "make" in command}
    assert ("--leave-out" in telephone) is (leave_out is not None)
    recipes = [
        read_recipe(
            TranslatorRecipe,
            Path(command[1]),
            [value for key, value in pairwise(command) if key == "--set"],
        )
        for command in stages
    ]
    short, whole = recipes
    assert (short.start, str(whole.start)) == (None, str(tmp_path / "short" / "model"))
    assert (short.training.steps, whole.training.steps) == (1000, 77)
    assert short.training.max_duration_s < 4 < whole.training.max_duration_s
    # Tokenizers of a conformer to start from stay, and a recipe that gives a size of them is refused.
    sizes = {"vocabulary_size", "transcript_vocabulary_size", "tokenizer_texts"}
    assert not sizes & whole.model_fields_set
    for recipe in recipes:
        assert recipe.training.batch_s == 99
        assert recipe.live[0].drawn().sentence_share == 0.75
        assert {str(tmp_path / part.path.parent) for part in recipe.train} <= made
        paths = {part.path for part in recipe.dev}
        assert (Path("corpora/telephone/left_out") in paths) is (leave_out is not None)

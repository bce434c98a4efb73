"""The recipe from data to table on the tiny size, by the command; and that a second run does nothing again."""

import gzip
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import sacrebleu
import torch

from sprachbund.cli import main
from sprachbund.corpora.editions import edition, make_edition
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.io import load
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.research import size_file
from sprachbund.research.gradient_sharing import recipe as comparison
from sprachbund.research.gradient_sharing.options import GradientSharingRecipe, run_folder
from sprachbund.research.gradient_sharing.recipe import make_control, other_digits, other_groups
from sprachbund.training.loop import Convergence, DevEvaluation, DivergedError
from sprachbund.training.options import read_recipe
from sprachbund.util.devices import torch_threads
from tests.models.seamless.support import make_checkpoint
from tests.training.owned import make_tones

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recipe")
    make_edition(directory / "data", edition("tiny", heldout_sentences=8), workers=1)
    assert main(command(directory)) == 0
    return directory


def command(directory: Path) -> list[str]:
    return [
        "recipe",
        "gradient_sharing",
        "--size",
        "tiny",
        "--data",
        str(directory / "data"),
        "--out",
        str(directory / "run"),
        "--threads",
        "1",
    ]


def test_every_arm_has_its_row(run: Path) -> None:
    table = json.loads((run / "run" / "table.json").read_text())
    rows = table["rows"]
    assert [row["arm"] for row in rows] == ["uft", "sharing", "one branch a language", "lora"]
    assert all({"chrF all", "chrF starved", "p all", "Holm's p all"} <= row.keys() for row in rows)
    for row in rows:
        seeds = table["recipe"]["seeds"]
        ended = [Convergence.read(run_folder(run / "run", seed, row["arm"]) / "run") for seed in seeds]
        assert row["seeds"] == len(seeds)
        assert row["steps"] == ", ".join(str(one.steps) for one in ended)
    assert table["test"]["different references"] <= table["test"]["references"]
    for measured in table["gradients"]:
        cosines, errors = np.array(measured["corrected cosines"]), np.array(measured["standard errors"])
        assert cosines.shape == errors.shape == (len(measured["languages"]),) * 2
        assert (np.diag(cosines) == 1).all()


def test_texts_lie_beside_the_table_that_is_made_of_them(run: Path) -> None:
    spoken = {
        u.id: u.language
        for part in [Manifest(run / "data" / "test")]
        for u in (part[i] for i in range(len(part)))
    }
    with gzip.open(run / "run" / "texts.jsonl.gz", "rt", encoding="utf-8") as file:
        first, *models = map(json.loads, file)
    references = first["references"]
    pairs = sorted({(spoken[key.split()[0]], key.split()[1]) for key in references})
    for row in json.loads((run / "run" / "table.json").read_text())["rows"]:
        scores = []
        for pair in (pair for pair in pairs if pair[0] != pair[1]):
            keys = [key for key in references if (spoken[key.split()[0]], key.split()[1]) == pair]
            by_seed = [
                sacrebleu.corpus_chrf(
                    [m["hypotheses"][key] for key in keys], [[references[key] for key in keys]]
                ).score
                for m in models
                if m["arm"] == row["arm"]
            ]
            scores.append(sum(by_seed) / len(by_seed))
        assert row["chrF all"] == pytest.approx(sum(scores) / len(scores), abs=1e-9)


def test_arms_are_what_they_are_called(run: Path) -> None:
    seed = run / "run" / "seed-0"
    plans = {
        name: load(seed / name / "run" / "model").sharing_plan
        for name in ("uft", "sharing", "one-branch-a-language", "lora")
    }
    assert plans["uft"] is None
    assert plans["lora"] is None
    for name in ("sharing", "one-branch-a-language"):
        plan = plans[name]
        assert isinstance(plan, SharingPlan)
        assert sorted(tag for group in plan.splits[0].groups for tag in group) == ["de", "en"]
    assert plans["one-branch-a-language"].splits[0].groups == (("de",), ("en",))


def test_frozen_parts_did_not_move(run: Path) -> None:
    """The second stage trains the last two encoder layers and what is new; adapters are merged into the encoder."""
    seed = run / "run" / "seed-0"
    first = load(seed / "first" / "model").state_dict()
    for name, moving in (("uft", ("encoder.layers.1.", "encoder.layers.2.")), ("lora", ("encoder.layers.",))):
        then = load(seed / name / "run" / "model").state_dict()
        assert then.keys() == first.keys()
        moved = {key for key in first if not first[key].equal(then[key])}
        assert moved
        assert all(key.startswith(moving) for key in moved), name


def test_a_second_run_makes_nothing_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")}
    assert main([*command(run), "--json"]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")} == before
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 4


def test_a_folder_of_other_options_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(run), "--set", "second.steps=9"]) != 0
    assert "was begun with second.steps " in capsys.readouterr().err


def test_a_seamless_checkpoint_goes_through_every_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As published: languages that the checkpoint never heard, and one language written."""
    make_checkpoint(tmp_path / "start", "seamless_m4t")
    for part in ("train", "dev", "test"):
        make_tones(tmp_path / "data" / part, ("gsw", "en"))
    changes = {
        "start": f'"{tmp_path / "start"}"',
        "languages": '["gsw", "en"]',
        "targets": '["en"]',
        "shares": "{}",
        "analysis.utterances": "4",
        "analysis.batch": "1",
        "fine_tuning.new_languages": '{gsw="mean"}',
        "first.max_duration_s": "0.9",
        "second.max_duration_s": "0.9",
    }
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    places = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main(["recipe", "gradient_sharing", "--size", "tiny", *sets, *places, "--json"]) == 0
    arms = [row["arm"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert arms == ["uft", "sharing", "one branch a language", "lora"]
    seed = tmp_path / "run" / "seed-0"
    shared, first = (load(seed / name / "model") for name in ("sharing/run", "first"))
    plan = shared.sharing_plan
    assert isinstance(plan, SharingPlan)
    assert plan.splits[0].groups == (("en",), ("gsw",))
    assert plan.splits[0].module.endswith("feed_forward_out")
    assert {key for key in shared.state_dict() if ".private." in key}.isdisjoint(first.state_dict())
    card = Card.read(seed / "first" / "model")
    assert card is not None
    assert card.target_languages == ["en"]


def test_a_conformer_goes_on_with_the_losses_of_the_recipe(run: Path, tmp_path: Path) -> None:
    """It was once refused, since every arm set a label smoothing that only other families take."""
    first = run / "run" / "seed-0" / "first" / "model"
    sets = {
        "start": f'"{first}"',
        "model.label_smoothing": "0.25",
        "model.dropout": "0.05",
        "arms": '["sharing"]',
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    line = [*command(run)[:6], "--out", str(tmp_path), "--threads", "1", *words]
    assert main(line) == 0
    for name in ("first", "uft/run", "sharing/run"):
        config = load(tmp_path / "seed-0" / name / "model").config
        assert (config.label_smoothing, config.dropout, config.width) == (0.25, 0.05, 32)


def test_arms_have_their_own_rates_behind_cached_states_with_a_planted_conflict(
    run: Path, tmp_path: Path
) -> None:
    start = run / "run" / "seed-0" / "first" / "model"
    layers = '["encoder.layers.1.*", "encoder.layers.2.*", "decoder.*"]'
    sets = {
        "start": f'"{start}"',
        "arms": '["uft", "uft, not continued", "sharing"]',
        "targets": '["en"]',
        "cache_states": "true",
        "changed_digits": '["de"]',
        "learning_rates": "[1e-4, 2e-3]",
        "more_learning_rates": "1",
        "branch_dropout": "0.05",
        "analysis.modules": '["encoder.layers.2.feed_forward_out"]',
        "first.trainable": layers,
        "seeds": "[0, 1]",
        "first_seed": "0",
        "workers": "2",
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    assert main([*command(run)[:6], "--out", str(tmp_path), "--threads", "1", *words]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["uft", "uft, not continued", "sharing"]
    # Of one copy of the data there are one file of states of train and one of dev, whatever arm reads them.
    assert len([*(tmp_path / "states").glob("*.f32")]) == 2
    for arm in ("uft", "sharing"):
        losses = json.loads((tmp_path / "rates" / arm / "rates.json").read_text())
        best = min(losses, key=lambda rate: losses[rate])
        assert list(losses) in (["0.0001", "0.002", "0.04"], ["0.0001", "0.002", "5e-06"])
        recipe = json.loads((tmp_path / "seed-1" / arm / "run" / "recipe.json").read_text())
        assert recipe["training"]["learning_rate"] == float(best)
    plan = load(tmp_path / "seed-1" / "sharing" / "run" / "model").sharing_plan
    assert plan is not None
    assert plan.splits[0].dropout == 0.05
    changed = 0
    for part in ("train", "test"):
        plain, control = Manifest(run / "data" / part), Manifest(tmp_path / "control" / part)
        texts = {plain[i].id: plain[i] for i in range(len(plain))}
        for index in range(len(control)):
            utterance = control[index]
            before = texts[utterance.id]
            assert utterance.text == before.text
            if utterance.language == "en":
                assert utterance.translations == before.translations
            else:
                assert utterance.translations["en"] == other_digits(before.translations["en"], "en")
                changed += utterance.translations["en"] != before.translations["en"]
    assert changed > 0
    trained = (tmp_path / "seed-1" / "sharing" / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    words[words.index(f"arms={sets['arms']}")] = (
        f"arms={[*json.loads(sets['arms']), 'one branch a language']}"
    )
    assert main([*command(run)[:6], "--out", str(tmp_path), "--threads", "1", *words]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["uft", "uft, not continued", "sharing", "one branch a language"]
    again = (tmp_path / "seed-1" / "sharing" / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    assert again == trained  # an arm that is added later is trained alone


class Rates:
    """Stands for trainings: a loss for each rate, the rates that were trained, and one at which the process dies."""

    losses: ClassVar = {1e-3: 2.0, 2e-3: 1.0, 4e-3: 3.0}

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dies_at: float | None = None) -> None:
        self.trained: list[float] = []
        self.dies_at = dies_at
        monkeypatch.setattr(comparison, "_started", lambda *given: (Path(), None))
        monkeypatch.setattr(comparison, "_second", lambda *given: given[-1])
        monkeypatch.setattr(comparison, "train_translator", self.train)

    def train(self, rate: float, folder: Path, **given: Any) -> None:
        if rate == self.dies_at:
            raise KeyboardInterrupt
        self.trained.append(rate)
        folder.mkdir(parents=True)
        if rate not in self.losses:
            raise DivergedError("the gradient was not finite")
        best = DevEvaluation(step=1, epoch=1.0, value=self.losses[rate])
        Convergence(
            metric_for_best_model="loss", steps=1, stopped_early=False, best=best, evaluations=(best,)
        ).write(folder)


def tuned(directory: Path, rates: str) -> dict[str, float | None]:
    recipe = read_recipe(
        GradientSharingRecipe, size_file("gradient_sharing", "tiny"), [f"learning_rates={rates}"]
    )
    comparison._tune(recipe, directory, ["uft"], 0)
    losses: dict[str, float | None] = json.loads((directory / "rates" / "uft" / "rates.json").read_text())
    assert [path.name for path in (directory / "rates" / "uft").iterdir() if path.suffix != ".txt"] == [
        "rates.json"
    ]
    return losses


def test_rates_that_were_tried_before_an_interruption_are_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off = Rates(monkeypatch, dies_at=2e-3)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path, "[1e-3, 2e-3, 4e-3]")
    assert broken_off.trained == [1e-3]
    again = Rates(monkeypatch)
    assert tuned(tmp_path, "[1e-3, 2e-3, 4e-3]") == {"0.001": 2.0, "0.002": 1.0, "0.004": 3.0}
    assert again.trained == [2e-3, 4e-3]


def test_a_rate_at_which_a_training_breaks_down_is_one_without_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Rates(monkeypatch)
    assert tuned(tmp_path, "[1.0, 2e-3]") == {"1": None, "0.002": 1.0}
    with pytest.raises(
        SprachbundError, match=r"no training of 'uft' has a finite loss, with learning_rates 1, 2; lower"
    ):
        tuned(tmp_path / "other", "[1.0, 2.0]")


def test_rates_are_tried_with_as_many_threads_as_the_other_trainings_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Rates(monkeypatch)
    seen: list[int] = []
    monkeypatch.setattr(comparison, "_first", lambda *given: Path())
    monkeypatch.setattr(
        comparison, "_second", lambda *given: seen.append(torch.get_num_threads()) or given[-1]
    )
    monkeypatch.setattr(comparison, "_run_seed", lambda *given: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(comparison, "write_table", lambda *given: tmp_path)
    changes = ["learning_rates=[1e-3, 2e-3]", "seeds=[0]", f'data="{tmp_path}"']
    recipe = read_recipe(GradientSharingRecipe, size_file("gradient_sharing", "tiny"), changes)
    with torch_threads(3):
        comparison.run(recipe, tmp_path / "run", report=lambda line: None)
    assert len(seen) > 2
    assert set(seen) == {3}


def test_a_control_without_digits_is_refused_every_time(tmp_path: Path) -> None:
    """Once, the part that was written before the refusal counted as whole the next time."""
    data = tmp_path / "data"
    with ManifestWriter(data / "train") as writer:
        sound = np.zeros(1600, np.float32)
        writer.add(
            sound, text="hallo", language="de", speaker="a", utterance_id="one", translations={"en": "hello"}
        )
    for _ in range(2):
        with pytest.raises(SprachbundError, match="has a digit in words; the control needs some"):
            make_control(data, tmp_path / "control", ["de", "en"], ["de"], lambda line: None)


def test_each_part_of_the_data_leaves_out_its_own_languages(tmp_path: Path) -> None:
    """The parts of a user's data need not hold the same languages besides those that are compared."""
    for part, spoken in (("train", ("de", "en", "fr")), ("dev", ("de", "en", "it"))):
        make_tones(tmp_path / part, spoken)
    changes = ['languages=["de", "en"]', "shares={de = 0.5}", f'data="{tmp_path}"']
    recipe = read_recipe(GradientSharingRecipe, size_file("gradient_sharing", "tiny"), changes)
    translator = comparison._translator(recipe, recipe.first)
    assert translator.train[0].shares == {"fr": 0.0, "de": 0.5}
    assert translator.dev[0].shares == {"it": 0.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("shares={xx = 0.5}", "shares names 'xx', which is not among the languages spoken, "),
        ("shares={en = 2}", "less than or equal to 1"),
        ("second_repeats={xx = 2}", "second_repeats names 'xx', which is not among the languages spoken, "),
        ("second_repeats={en = 0.5}", "greater than or equal to 1"),
    ],
)
def test_shares_and_repeats_that_cannot_be_are_refused_before_any_training(given: str, message: str) -> None:
    with pytest.raises(SprachbundError, match=message):
        read_recipe(GradientSharingRecipe, size_file("gradient_sharing", "tiny"), [given])


def test_digits_are_moved_by_three() -> None:
    assert other_digits("nine two and twenty-two or zero", "en") == "two five and twenty-two or three"


def test_random_groups_have_the_same_sizes_and_are_others() -> None:
    groups = (("a",), ("b", "c"), ("d", "e", "f"))
    drawn = {other_groups(groups, seed) for seed in range(20)}
    assert len(drawn) > 10
    assert groups not in drawn
    assert all([len(group) for group in other] == [1, 2, 3] for other in drawn)
    assert all(sorted(tag for group in other for tag in group) == list("abcdef") for other in drawn)
    with pytest.raises(SprachbundError, match="leave the random arm out"):
        other_groups((("a",), ("b",)), 0)


def test_arms_with_the_same_plan_are_trained_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = run / "run" / "seed-0"
    plan = load(seed / "sharing" / "run" / "model").sharing_plan
    assert isinstance(plan, SharingPlan)
    twin = f"sharing, rho .{plan.splits[0].shared_ratio * 100:.0f}"
    arms = json.dumps(["uft", "sharing", twin])
    assert main([*command(run), "--set", f"arms={arms}", "--json"]) == 0
    printed = capsys.readouterr()
    assert f"{twin} is the same as sharing" in printed.err
    _, one, other = json.loads(printed.out)["rows"]
    assert {**one, "arm": ""} == {**other, "arm": ""}


def test_the_published_size_asks_for_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(["recipe", "gradient_sharing", "--size", "paper", *places]) != 0
    printed = capsys.readouterr()
    assert "name it with --set start=" in printed.err
    assert "821,351,744" in printed.out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["recipe", "gradient"], "no recipe 'gradient'; there are gradient_sharing"),
        (["recipe", "gradient_sharing", "--size", "huge"], "no size 'huge'; there are tiny, small"),
        (["recipe", "gradient_sharing", "--set", "arm=1"], "unknown key arm; did you mean arms?"),
        (["recipe", "gradient_sharing", "--size", "tiny"], "train does not exist; check the path"),
    ],
)
def test_bad_input(changed: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*changed, "--data", str(tmp_path), "--out", str(tmp_path / "run")]) != 0
    err = capsys.readouterr().err
    assert said in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1


def test_one_first_training_serves_all_seeds_and_a_language_is_heard_more_often(run: Path) -> None:
    again = run / "again"
    command_ = [*command(run), "--set", "first_seed=0", "--set", "seeds=[0, 1]", "--set", 'arms=["lora"]']
    command_[command_.index("--out") + 1] = str(again)
    assert main([*command_, "--set", "second_repeats={de=3}"]) == 0
    assert (again / "first" / "model" / "model.safetensors").exists()
    assert not list(again.glob("seed-*/first"))
    for seed in (0, 1):
        recipe = json.loads((again / f"seed-{seed}" / "uft" / "run" / "recipe.json").read_text())
        assert recipe["start"] == str(again / "first" / "model")
        main_part, more = recipe["train"]
        assert (main_part["repeats"], more["repeats"]) == (1.0, 2.0)
        assert {tag for tag, share in more["shares"].items() if share > 0} == {"de"}

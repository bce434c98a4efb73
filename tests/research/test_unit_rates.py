"""Learning rates of the comparison of discrete units, of trainings that are written down and never run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.io import WEIGHTS_FILE
from sprachbund.research import size_file
from sprachbund.research.discrete_units import recipe as comparison
from sprachbund.research.discrete_units.options import DiscreteUnitsRecipe, run_folder
from sprachbund.research.discrete_units.rates import (
    TRIED_FILE,
    RateTrial,
    best_trial,
    losses_of,
    trial_folder,
    trials,
    trials_left,
)
from sprachbund.research.discrete_units.recipe import run
from sprachbund.research.discrete_units.report import _rates
from sprachbund.research.gradient_sharing.options import GradientSharingRecipe
from sprachbund.research.tuning import as_json
from sprachbund.training.loop import Convergence, DevEvaluation, DivergedError
from sprachbund.training.options import read_recipe
from sprachbund.util.files import write_json


def finish(recipe: DiscreteUnitsRecipe, directory: Path, trial: RateTrial, loss: float) -> None:
    folder = trial_folder(recipe, directory, trial)
    folder.mkdir(parents=True)
    write_json(folder / TRIED_FILE, as_json({trial.rate: loss}))


def test_each_arm_goes_on_beyond_the_end_where_its_best_rate_lies(tmp_path: Path) -> None:
    changes = ["learning_rates=[1e-3, 2e-3]", "more_learning_rates=2"]
    recipe = read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "tiny"), changes)
    low, high, *others = recipe.tuned()
    for trial in trials(recipe):
        finish(recipe, tmp_path, trial, -trial.rate if trial.arm == high else trial.rate)
    left = {trial.arm: trial.rate for trial in trials_left(recipe, tmp_path)}
    assert left == {arm: 4e-3 if arm == high else 5e-4 for arm in recipe.tuned()}

    for arm, rate in left.items():
        finish(recipe, tmp_path, RateTrial(arm, rate), -1.0 if arm in (low, high) else 1.0)
    # Those whose best rate lies between others now are done; the others go on, once.
    left = {trial.arm: trial.rate for trial in trials_left(recipe, tmp_path)}
    assert left == {low: 2.5e-4, high: 8e-3}
    finish(recipe, tmp_path, RateTrial(low, 2.5e-4), 1.0)
    finish(recipe, tmp_path, RateTrial(high, 8e-3), -2.0)
    assert trials_left(recipe, tmp_path) == ()

    assert losses_of(recipe, tmp_path, high) == {1e-3: -1e-3, 2e-3: -2e-3, 4e-3: -1.0, 8e-3: -2.0}
    rates = {arm: trial.rate for arm in recipe.tuned() if (trial := best_trial(recipe, tmp_path, arm))}
    assert rates == {low: 5e-4, high: 8e-3} | dict.fromkeys(others, 1e-3)


def test_a_rate_at_which_a_training_breaks_down_has_no_loss_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[float] = []

    def train(*given: Any) -> None:
        _, seed, _, rate, _, folder, _ = given
        assert seed == recipe.seeds[0]
        trained.append(rate)
        if rate > 1e-3:
            raise DivergedError("the gradient was not finite")
        best = DevEvaluation(step=1, epoch=1.0, value=2.5)
        Convergence(
            metric_for_best_model="loss", steps=1, stopped_early=False, best=best, evaluations=(best,)
        ).write(folder / "run")

    monkeypatch.setattr(comparison, "_train_model", train)
    changes = ["learning_rates=[1e-3, 2e-3]", "workers=1"]
    recipe, lines = (
        read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "tiny"), changes),
        list[str](),
    )
    for _ in range(2):
        comparison._try_rates(recipe, tmp_path, lines.append)
    assert sorted(trained) == sorted(recipe.learning_rates * len(recipe.tuned()))
    for arm in recipe.tuned():
        assert losses_of(recipe, tmp_path, arm) == {1e-3: 2.5, 2e-3: math.inf}
        assert best_trial(recipe, tmp_path, arm) == RateTrial(arm, 1e-3)
    table = json.loads(
        json.dumps(_rates(recipe, tmp_path)), parse_constant=pytest.fail
    )  # Infinity is no JSON
    assert table == [
        {"arm": name, "0.001": 2.5, "0.002": None, "best": 0.001} for name in recipe.tuned().values()
    ]
    higher = recipe.model_copy(update={"learning_rates": (2e-3, 4e-3)})
    with pytest.raises(
        SprachbundError, match=r"no training of '.*' has a finite loss, .* 0.002, 0.004; lower"
    ):
        comparison._try_rates(higher, tmp_path / "higher", lines.append)


def test_a_training_that_an_earlier_version_finished_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_train_model", None)
    recipe = read_recipe(DiscreteUnitsRecipe, size_file("discrete_units", "tiny"), ["learning_rates=[1e-3]"])
    best = DevEvaluation(step=1, epoch=1.0, value=2.5)
    for trial in trials(recipe):
        run = trial_folder(recipe, tmp_path, trial) / "run"
        (run / "model").mkdir(parents=True)
        (run / "model" / WEIGHTS_FILE).touch()
        Convergence(
            metric_for_best_model="loss", steps=1, stopped_early=False, best=best, evaluations=(best,)
        ).write(run)
    comparison._try_rates(recipe, tmp_path, lambda line: None)
    assert all(losses_of(recipe, tmp_path, arm) == {1e-3: 2.5} for arm in recipe.tuned())


@pytest.mark.parametrize(
    ("recipe", "name"), [(DiscreteUnitsRecipe, "discrete_units"), (GradientSharingRecipe, "gradient_sharing")]
)
def test_beyond_a_single_rate_nothing_can_be_tried(recipe: type[BaseModel], name: str) -> None:
    for given in ("[]", "[1e-3, 2e-3]"):
        read_recipe(recipe, size_file(name, "tiny"), [f"learning_rates={given}", "more_learning_rates=1"])
    with pytest.raises(
        SprachbundError,
        match=r"more_learning_rates.*beyond 0\.001 is not known; name two or more learning_rates",
    ):
        read_recipe(recipe, size_file(name, "tiny"), ["learning_rates=[1e-3]", "more_learning_rates=1"])


def test_ablations_have_seeds_that_are_trained() -> None:
    tiny = size_file("discrete_units", "tiny")
    changes = ["seeds=[0, 1]", "ablation_seeds=[1]"]
    left_out = ["ablation_seeds=[2]", "ablations=[]"]
    assert read_recipe(DiscreteUnitsRecipe, tiny, left_out).ablation_arms() == {}
    assert read_recipe(DiscreteUnitsRecipe, tiny, changes).seeds_of_ablations == (1,)
    with pytest.raises(
        SprachbundError, match=r"ablation_seeds has 2, and the seeds are 0, 1; add it to seeds"
    ):
        read_recipe(DiscreteUnitsRecipe, tiny, [*changes, "ablation_seeds=[1, 2]"])


def test_known_rates_need_no_trial() -> None:
    path = size_file("discrete_units", "tiny")
    given = [
        "learning_rates=[]",
        'arm_rates={"ctc, ST only" = 4e-3, "0.01 h, + MT" = 2e-3, "all, ST only" = 1e-3}',
    ]
    recipe = read_recipe(DiscreteUnitsRecipe, path, given)
    arms = recipe.all_arms
    assert not trials(recipe)
    assert recipe.rate_of(arms["ctc, ST only"]) == 4e-3
    assert recipe.rate_of(arms["0.01 h, + MT"]) == 2e-3
    assert recipe.rate_of(arms["ctc, + text start"]) is None
    assert recipe.rate_of(None) is None
    less = read_recipe(DiscreteUnitsRecipe, path, [*given, "all_hours=false"])
    assert set(recipe.all_arms) - set(less.all_arms) == {"all, ST only", "all, + MT"}
    left_out = '"log-mel" = 1e-3, "0.5 h, + planted MT 20 times" = 1e-3, "attention, + text start" = 1e-3'
    more = ["learning_rates=[]", f'arm_rates={{"soft sharing" = 2e-4, {left_out}}}']
    with_others = read_recipe(DiscreteUnitsRecipe, path, more)
    assert with_others.rate_of(recipe.ablation_arms()["soft sharing"]) == 2e-4


def test_rates_may_be_given_for_further_arms_and_not_for_trained_ones(tmp_path: Path) -> None:
    path = size_file("discrete_units", "tiny")

    def given(rates: str) -> DiscreteUnitsRecipe:
        absent = f'data="{tmp_path / "nowhere"}"'
        return read_recipe(DiscreteUnitsRecipe, path, ["learning_rates=[]", f"arm_rates={{{rates}}}", absent])

    one, two = '"ctc, ST only" = 4e-3', '"0.01 h, + MT" = 2e-3'
    trained = run_folder(tmp_path, 0, "ctc, ST only") / "run"
    trained.mkdir(parents=True)
    write_json(trained / "recipe.json", {"training": {"learning_rate": 4e-3}})
    for rates in (one, f"{one}, {two}"):
        with pytest.raises(SprachbundError, match="nowhere"):  # which is past what is asked here
            run(given(rates), tmp_path, report=lambda line: None)
    for rates, now in (('"ctc, ST only" = 1e-3', "0.001"), (two, "0.001")):
        with pytest.raises(
            SprachbundError, match=rf"was trained with .* 0.004, and 'ctc, ST only' has {now} now; "
        ):
            run(given(rates), tmp_path, report=lambda line: None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            '{"ctc, MT" = 1e-3}',
            "arm_rates name 'ctc, MT', which is no arm; an arm is called like 'ctc_attention, ST only', ",
        ),
        ('{"0.50 h, + MT" = 1e-3}', "arm_rates name '0.50 h, + MT', which is no arm"),
        ('{"ctc, ST only" = 0}', "arm_rates.ctc, ST only: Input should be greater than 0"),
        (
            '{"ctc_attention, ST only" = 1e-3, "all, ST only" = 2e-3}',
            "arm_rates give 0.001 and 0.002 to one arm, 'all, ST only' by one of its names",
        ),
    ],
)
def test_rates_of_arms_that_are_not_there_are_refused(given: str, message: str) -> None:
    path = size_file("discrete_units", "tiny")
    with pytest.raises(SprachbundError) as error:
        read_recipe(DiscreteUnitsRecipe, path, ["learning_rates=[]", f"arm_rates={given}"])
    assert message in str(error.value)


def test_rates_are_known_or_tried() -> None:
    path = size_file("discrete_units", "tiny")
    with pytest.raises(SprachbundError, match="learning_rates are tried, and arm_rates need no trial"):
        read_recipe(DiscreteUnitsRecipe, path, ['arm_rates={"ctc, ST only" = 1e-3}'])
    mbart = [
        "learning_rates=[]",
        'heads=["attention"]',
        'mbart="m"',
        'arm_rates={"attention, + text start" = 1e-3}',
    ]
    with pytest.raises(SprachbundError, match="starts from mBART-50 and has rates of its own"):
        read_recipe(DiscreteUnitsRecipe, path, mbart)

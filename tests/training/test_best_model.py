"""Early stop, convergence point, schedules and fading masks: values of a run, the same after a resume."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import ExampleOptions, batches, spec_augment
from sprachbund.errors import SprachbundError
from sprachbund.training.loop import Convergence, DevEvaluation, Evaluations, train
from sprachbund.training.options import TrainingOptions
from sprachbund.util.options import RenamedWarning
from tests.training import made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    made.make_corpus(directory)
    return directory


class Scores:
    """Falls to its least at the fourth evaluation; remembers nothing that a resumed run would lack."""

    def __init__(self, best_at: int = 4) -> None:
        self.best_at = best_at
        self.asked = 0

    def __call__(self, model: object) -> float:
        self.asked += 1
        return 10.0 + abs(self.asked - self.best_at)


def options(**changes: object) -> TrainingOptions:
    values = {
        "evaluate_every": 2,
        "patience": 3,
        "metric_for_best_model": "score",
        "keep_best": 1,
        "mask_fade_share": 1.0,
    }
    return made.options(40, **(values | changes))


def test_a_score_stops_the_run_and_the_convergence_point_is_kept(data: Path, tmp_path: Path) -> None:
    corpus, said = made.make_training_data(data), list[str]()
    train(made.make_model(), corpus, options(), tmp_path, score=Scores(), report=said.append)
    result = Convergence.read(tmp_path)
    assert (result.metric_for_best_model, result.steps, result.stopped_early) == ("score", 14, True)
    assert result.best is not None
    assert (result.best.step, result.best.value) == (8, 10.0)
    per_epoch = len(corpus.plan(BatchingOptions(batch_s=6.0), 0))
    assert result.best.epoch == pytest.approx(8 / per_epoch)
    assert [one.step for one in result.evaluations] == [2, 4, 6, 8, 10, 12, 14]
    assert any("than 10.0000 at step 8" in line for line in said)
    assert said[-1].startswith("stopped early after 14 steps; best dev score 10.0000 at step 8, epoch ")


def test_a_model_whose_frozen_weights_have_16_bits_is_scored(data: Path, tmp_path: Path) -> None:
    corpus = made.make_training_data(data)
    features = next(batches(corpus, BatchingOptions(batch_s=6.0), 0, num_workers=0))
    seen = list[float]()

    def score(model: Any) -> float:
        states, _ = model.encoder(features.features, features.num_frames)
        seen.append(float(states.float().sum()))
        return seen[-1]

    wanted = options(frozen_bf16=True, precision="bf16", trainable=("decoder.*",), patience=0)
    train(made.make_model(), corpus, wanted, tmp_path, score=score, stop_after=2)
    assert len(seen) == 1


@pytest.mark.slow
def test_a_stopped_run_stays_stopped_and_a_broken_one_ends_the_same(data: Path, tmp_path: Path) -> None:
    corpus = made.make_training_data(data)
    whole = train(made.make_model(), corpus, options(), tmp_path / "a", score=Scores())
    again = train(made.make_model(), corpus, options(), tmp_path / "a", score=Scores())
    train(made.make_model(), corpus, options(), tmp_path / "b", score=Scores(), stop_after=7)
    assert not (tmp_path / "b" / "convergence.json").exists()
    late = Scores()
    late.asked = 3  # evaluations before the break
    broken = train(made.make_model(), corpus, options(), tmp_path / "b", score=late)
    for other in (again, broken):
        pairs = zip(whole.state_dict().items(), other.state_dict().values(), strict=True)
        assert all(value.equal(same) for (_, value), same in pairs)
    assert Convergence.read(tmp_path / "a") == Convergence.read(tmp_path / "b")


def test_a_score_has_to_be_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="nothing scores here"):
        train(made.make_model(), made.make_training_data(data), options(), tmp_path)
    with pytest.raises(SprachbundError, match="train it to its end"):
        Convergence.read(tmp_path)


@pytest.mark.parametrize("where", ["convergence", "best"])
def test_a_result_with_a_field_that_nobody_knows_is_refused(tmp_path: Path, where: str) -> None:
    best = DevEvaluation(step=2, epoch=0.5, value=1.25)
    Convergence(
        metric_for_best_model="loss", steps=2, stopped_early=False, best=best, evaluations=(best,)
    ).write(tmp_path)
    path = tmp_path / "convergence.json"
    values = json.loads(path.read_text())
    (values if where == "convergence" else values["best"])["worst"] = 3
    path.write_text(json.dumps(values))
    with pytest.raises(SprachbundError, match=r"worst: Unexpected.*it is 3.*copy the file again") as raised:
        Convergence.read(tmp_path)
    assert "\n" not in str(raised.value)


def test_the_published_schedule() -> None:
    """1e-4, by half a cosine to 1e-6 over 25 of 30 epochs, there for the last five."""
    epochs, per_epoch = 30, 10
    schedule = TrainingOptions(
        steps=epochs * per_epoch,
        learning_rate=1e-4,
        warmup_steps=0,
        decay="cosine",
        decay_share=25 / 30,
        final_share=5 / 30,
        final_rate=1e-6,
    )
    rates = [schedule.rate(step) for step in range(schedule.steps)]
    expected = [1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * min(1, n / 250))) / 2 for n in range(300)]
    assert rates == pytest.approx(expected)
    assert rates[250:] == pytest.approx([1e-6] * 50)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decay_share": 0.8, "final_share": 0.3}, "more than the whole run"),
        ({"final_rate": 1.0, "learning_rate": 0.1}, "above learning_rate"),
        ({"metric_for_best_model": "taste"}, "metric_for_best_model"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainingOptions.model_validate({"steps": 10, **changes})


def test_masks_fade_in_number_and_in_width() -> None:
    published = ExampleOptions(
        time_masks=10, max_time_mask_share=0.05, frequency_masks=2, max_frequency_mask=27
    )
    features = torch.randn(400, 80)
    for strength, times, bands in ((1.0, 10, 2), (0.5, 5, 1), (0.2, 2, 0), (0.0, 0, 0)):
        for seed in range(20):
            masked = spec_augment(features, np.random.default_rng(seed), published, strength)
            changed = masked != features
            rows, columns = int(changed.all(1).sum()), int(changed.all(0).sum())
            assert rows <= times * int(0.05 * 400 * strength)
            assert columns <= bands * int(27 * strength)
            assert not changed[~changed.all(1)][:, ~changed.all(0)].any()


def test_strength_is_linear_over_its_share() -> None:
    fading = TrainingOptions(steps=100, mask_fade_share=0.5)
    assert [fading.mask_strength(step) for step in (0, 50, 75, 100, 120)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert TrainingOptions(steps=100).mask_strength(99) == 1.0


def test_a_batch_has_the_masks_of_its_step_wherever_it_is_begun(data: Path) -> None:
    corpus, plan = made.make_training_data(data), BatchingOptions(batch_s=6.0)
    whole = list(batches(corpus, plan, 0, strength=lambda number: 1 - number / 5))
    later = list(batches(corpus, plan, 0, 2, strength=lambda number: 1 - number / 5))
    assert len(later) == len(whole) - 2 > 0
    assert all(a.features.equal(b.features) for a, b in zip(whole[2:], later, strict=True))
    plain = list(batches(corpus, plan, 0))
    assert whole[0].features.equal(plain[0].features)
    assert not whole[2].features.equal(plain[2].features)


def test_an_evaluation_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    evaluations = Evaluations()
    for step, value in enumerate((math.nan, 2.5, 3.0)):
        evaluations.add(DevEvaluation(step=step, epoch=0.5, value=value))
    assert evaluations.best is not None
    assert evaluations.best.value == 2.5
    made = tuple(evaluations.made)
    Convergence(
        metric_for_best_model="loss", steps=2, stopped_early=False, best=made[0], evaluations=made
    ).write(tmp_path)
    read = Convergence.read(tmp_path)
    assert read.best is not None
    assert math.isnan(read.best.value)


def test_a_recipe_a_state_and_a_result_of_the_earlier_version_are_read(tmp_path: Path) -> None:
    with pytest.warns(RenamedWarning, match="training: judge is called metric_for_best_model now"):
        options = TrainingOptions.model_validate({"steps": 10, "judge": "score"})
    assert options.metric_for_best_model == "score"
    best = DevEvaluation(step=2, epoch=0.5, value=1.25)
    resumed = Evaluations()
    with pytest.warns(RenamedWarning, match="judgements is called evaluations now"):
        resumed.load({"lowest": 1.25, "num_worse": 0, "judgements": [[2, 0.5, 1.25]]})
    assert resumed.made == [best]
    written = Convergence(
        metric_for_best_model="loss", steps=2, stopped_early=False, best=best, evaluations=(best,)
    )
    written.write(tmp_path)
    path = tmp_path / "convergence.json"
    former = (
        path.read_text()
        .replace('"metric_for_best_model"', '"judge"')
        .replace('"evaluations"', '"judgements"')
    )
    path.write_text(former)
    with pytest.warns(RenamedWarning):
        assert Convergence.read(tmp_path) == written

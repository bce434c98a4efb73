"""From one kind of data to the next: what each step sees, its loss, and a run taken up."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import Corpus, ExampleOptions, batches
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Loss
from sprachbund.models.speech_llm import STAGES, SpeechLLM
from sprachbund.models.speech_llm.model import SpeechLLMExamples
from sprachbund.models.speech_llm.stages import enter, transition_side
from sprachbund.research.code_switch.transition import Form, Transition
from sprachbund.training.loop import train
from tests.models.speech_llm_support import make_model
from tests.training.made import LANGUAGES, make_corpus, options

PLAN = BatchingOptions(batch_s=6.0)
STEPS = 9
STAGE = STAGES[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("transition")
    make_corpus(directory / "previous", 16)
    make_corpus(directory / "next", 24)
    return directory


def fresh() -> SpeechLLM:
    model = make_model(
        projector={"groups": (("en",), ("de",)), "spliced_frames": 1}, target_languages=LANGUAGES
    )
    enter(model, STAGE)
    return model


def transition(directory: Path, model: SpeechLLM, form: Form, seed: int = 3) -> Transition:
    chosen = ExampleOptions(rows_per_utterance=2, max_tokens=24, mixed=True)
    sides = [
        Corpus([(Manifest(directory / name), 1.0)], SpeechLLMExamples(model, LANGUAGES), chosen)
        for name in ("previous", "next")
    ]
    return Transition(*sides, steps=STEPS, form=form, seed=seed)


def per_token(loss: Loss) -> Tensor:
    return loss.total / max(1, loss.num_tokens)


def test_a_mixed_step_has_half_a_batch_of_each_and_its_loss_is_the_weighted_sum(data: Path) -> None:
    model = fresh()
    supply = transition(data, model, "mixed")
    made = list(batches(supply, PLAN, 0))
    assert len(made) == STEPS
    for step in (0, 4, STEPS - 1):
        batch = made[step]
        assert batch.sides is not None
        assert batch.sides.weights == pytest.approx((1 - step / 8, step / 8))
        own = [(batch.sides.index == side).nonzero().flatten() for side in (0, 1)]
        assert all(len(rows) for rows in own)
        losses = []
        for rows in own:
            part = batch.select(rows)
            losses.append(per_token(model.loss(type(part)(**{**vars(part), "sides": None}))))
        share = step / (STEPS - 1)
        wanted = (1 - share) * losses[0] + share * losses[1]
        assert per_token(model.loss(batch)).item() == pytest.approx(wanted.item(), rel=1e-5)
        if step == 0:
            assert wanted == losses[0]
            assert model.loss(batch.select(own[1])).total == 0, "a share of the batch that counts nothing"


def test_a_sampled_step_is_of_the_side_that_was_drawn(data: Path) -> None:
    supply = transition(data, fresh(), "sampled", seed=5)
    made = list(batches(supply, PLAN, 0))
    assert all(batch.sides is None for batch in made)
    supply.plan(PLAN, 0)
    sides = [{supply._entries[int(i)].side for i in batch} for batch in supply.plan(PLAN, 0)]
    wanted = [{transition_side(step, STEPS - 1, seed=5) == "next"} for step in range(STEPS)]
    assert sides == [{int(is_next)} for (is_next,) in wanted]
    assert (sides[0], sides[-1]) == ({0}, {1})


def test_a_side_that_is_used_up_begins_again_with_other_draws(data: Path) -> None:
    supply = transition(data, fresh(), "mixed")
    supply.plan(PLAN, 0)
    epochs = [entry.epoch for entry in supply._entries if entry.side == 0]
    assert epochs == sorted(epochs)
    assert epochs[-1] > 0
    seen = [entry.index for entry in supply._entries if (entry.side, entry.epoch) == (0, 0)]
    assert sorted(seen) == list(range(16))
    assert np.isfinite(supply.durations_s).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mixed", "sampled"])
def test_a_run_in_two_parts_ends_with_the_same_bits(data: Path, form: Form, tmp_path: Path) -> None:
    settings = options(STEPS, trainable=STAGE.patterns, save_every=4, batch_s=6.0)
    lines: list[str] = []
    models = []
    for name, stops in (("whole", (None,)), ("parts", (4, None))):
        for stop in stops:
            model = fresh()
            train(
                model,
                transition(data, model, form),
                settings,
                tmp_path / name,
                stop_after=stop,
                report=lines.append,
            )
        models.append(model.state_dict())
    assert "resumed at step 4" in lines
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_what_cannot_be(data: Path) -> None:
    supply = transition(data, fresh(), "mixed")
    with pytest.raises(SprachbundError, match="no utterance that is short enough"):
        supply.plan(BatchingOptions(max_duration_s=0.01), 0)
    other = Corpus(
        [(Manifest(data / "next"), 1.0)], supply.sides[1].examples, ExampleOptions(rows_per_utterance=1)
    )
    with pytest.raises(SprachbundError, match="made with the same options"):
        Transition(supply.sides[0], other, steps=3)

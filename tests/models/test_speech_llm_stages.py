"""Four stages: what moves, what does not, and how one leads to the next."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.speech_llm import STAGES, ProjectorOptions, SpeechLLM, Stage
from sprachbund.models.speech_llm.stages import (
    enter,
    frozen_digest,
    stages_without,
    transition_side,
    transition_weights,
)
from sprachbund.research.code_switch.estimate import paper_shape, sizes_of
from sprachbund.training.optimizers import freeze_others
from tests.models.speech_llm_support import make_batch, make_model, move_adapters


def train_a_little(model: SpeechLLM, stage: Stage) -> None:
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=1e-2)
    model.train()
    for _ in range(2):
        result = model.loss(make_batch(model, [0, 1], ["hola", "dog"], [2, 0], [0.7, 0.5]))
        loss = result.total / result.num_tokens
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, stage.clip_norm)
        optimizer.step()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_only_what_a_stage_trains_moves(stage: Stage) -> None:
    model = move_adapters(make_model())
    num_moving = enter(model, stage)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    digest = frozen_digest(model, stage)
    train_a_little(model, stage)
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    parts = {
        "projector": any(n.startswith("projector.") for n in moved),
        "encoder adapters": any(n.startswith("encoder.") and ".lora_" in n for n in moved),
        "llm adapters": any(n.startswith("llm.") and ".lora_" in n for n in moved),
    }
    assert {part for part, did in parts.items() if did} == set(stage.trained)
    assert all(n.startswith("projector.") or ".lora_" in n for n in moved)
    assert frozen_digest(model, stage) == digest
    assert num_moving == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        next(iter(model.llm.model.parameters())).flatten()[0] += 1
    assert frozen_digest(model, stage) != digest


def test_the_first_stage_has_no_adapters_in_it() -> None:
    model = make_model()
    enter(model, STAGES[0])
    train_a_little(model, STAGES[0])
    assert all(p.abs().max() == 0 for n, p in model.named_parameters() if "lora_B" in n)
    enter(model, STAGES[1])
    assert all(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)


def test_patterns_are_what_the_training_loop_takes() -> None:
    for stage in STAGES:
        model, other = make_model(), make_model()
        enter(model, stage)
        other.requires_grad_(True)
        freeze_others(other, stage.patterns)
        wanted = {n: p.requires_grad for n, p in model.named_parameters()}
        assert {n: p.requires_grad for n, p in other.named_parameters()} == wanted


def test_the_stages_are_those_of_the_specification() -> None:
    assert [stage.learning_rate for stage in STAGES] == [1e-4, 5e-5, 5e-5, 2e-5]
    assert [stage.data for stage in STAGES] == [
        ("monolingual asr",),
        ("monolingual st",),
        ("code-switched st",),
        ("code-switched st", "monolingual st"),
    ]
    assert [stage.coming_from for stage in STAGES] == [(), (), ("monolingual st",), ()]
    assert {(s.losses.language, s.losses.balance, s.clip_norm, s.warmup_steps) for s in STAGES} == {
        (0.1, 0.01, 1.0, 1000)
    }


def test_rates_rise_and_fall_to_a_tenth() -> None:
    stage = STAGES[0]
    rates = [stage.rate(step, 5000) for step in range(5001)]
    assert rates[0] == pytest.approx(1e-7)
    assert max(rates) == rates[999] == pytest.approx(1e-4)
    assert rates[3000] == pytest.approx(0.55e-4, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-5)
    assert all(a >= b for a, b in pairwise(rates[999:]))


def test_any_stage_can_be_left_out() -> None:
    names = [stage.name for stage in STAGES]
    for name in names:
        assert [s.name for s in stages_without([name])] == [n for n in names if n != name]
    with pytest.raises(SprachbundError, match="no stage 'warm' to leave out; the stages are align"):
        stages_without(["warm"])


def test_a_model_without_a_part_cannot_train_it() -> None:
    bare = torch.nn.Module()
    bare.projector = torch.nn.Linear(2, 2)
    with pytest.raises(
        SprachbundError, match="'monolingual' trains encoder adapters, but the model has none"
    ):
        enter(bare, STAGES[1])


# The transition.


def test_at_its_ends_one_side_counts_alone() -> None:
    assert transition_weights(0, 10) == (1, 0)
    assert transition_weights(10, 10) == (0, 1)
    assert transition_weights(3, 10) == pytest.approx((0.7, 0.3))
    assert {transition_side(0, 10, seed=s) for s in range(50)} == {"previous"}
    assert {transition_side(10, 10, seed=s) for s in range(50)} == {"next"}
    for wrong in (-1, 11):
        with pytest.raises(ValueError, match="between 0 and 10"):
            transition_weights(wrong, 10)


def test_the_sampled_form_has_the_same_expected_gradient() -> None:
    x = torch.tensor([0.3, -1.2], requires_grad=True)
    before, after = x.square().sum(), x.sin().sum()
    of_before, of_after = transition_weights(3, 10)
    (wanted,) = torch.autograd.grad(of_before * before + of_after * after, x, retain_graph=True)
    gradients = {
        side: torch.autograd.grad(loss, x, retain_graph=True)[0]
        for side, loss in (("previous", before), ("next", after))
    }
    share = np.mean([transition_side(3, 10, seed=seed) == "next" for seed in range(4000)])
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)
    exact = 0.7 * gradients["previous"] + 0.3 * gradients["next"]
    torch.testing.assert_close(exact, wanted)
    assert transition_side(3, 10, seed=5) == transition_side(3, 10, seed=5)


# Sizes on the meta device.


def test_the_paper_shape_without_memory() -> None:
    model = paper_shape()
    assert all(p.is_meta for p in model.parameters())
    sizes = sizes_of(model)
    assert sizes.llm == 7_615_616_512  # the published count of Qwen2.5-7B
    assert sizes.encoder == 636_968_960  # transformers' count of the encoder of Whisper-large-v3
    width, hidden, heard = 3584, 2048, 1280
    expert = 2 * width * hidden + hidden + width
    layer = 2 * width + 8 * width + 8 * expert
    splice = 5 * heard * width + width
    assert sizes.projector == 2 * layer + splice
    assert sizes.active == sizes.projector - 2 * 6 * expert
    assert sizes.encoder_adapters == 32 * 2 * 8 * (heard + heard)
    assert sizes.llm_adapters == 28 * 8 * (2 * (width + width) + 2 * (width + 512))
    assert sizes.total == sizes.encoder + sizes.llm + sizes.trained
    assert sizes.inference_gib() == pytest.approx(2 * sizes.total / 2**30)
    assert model.frame_s == pytest.approx(0.1)
    assert int(model.projector.count(torch.tensor(1500))) == 300
    assert model.llm.context == 32_768
    assert model.max_window_s == 30


def test_more_languages_are_more_groups() -> None:
    two = sizes_of(paper_shape())
    four = sizes_of(paper_shape(ProjectorOptions(groups=(("es",), ("en",), ("zh",), ("de", "fr")))))
    assert four.active - two.active == 2 * 8 * 3584  # the router's rows alone
    assert four.projector > 1.8 * two.projector

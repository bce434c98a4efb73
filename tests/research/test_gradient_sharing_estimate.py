"""What a size needs, against models that are really built; the published shape; plans that do not fit."""

import json
import re
from pathlib import Path

import pytest
import torch

from sprachbund.models.conformer import Conformer, ConformerConfig
from sprachbund.research import size_file
from sprachbund.research.estimate import TrainingEstimate
from sprachbund.research.gradient_sharing.estimate import estimate_memory
from sprachbund.research.gradient_sharing.options import GradientSharingRecipe
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.training.options import read_recipe
from tests.stories.support import command


def recipe(size: str, *overrides: str) -> GradientSharingRecipe:
    return read_recipe(GradientSharingRecipe, size_file("gradient_sharing", size), overrides)


def test_numbers_are_those_of_a_real_model() -> None:
    chosen = recipe("tiny")
    result = {training.name: training for training in estimate_memory(chosen).trainings}
    texts = ["eins zwei drei vier one two three four"] * 20
    tokenizer = Tokenizer.train(texts, chosen.languages, 60)
    config = ConformerConfig(
        source_languages=chosen.languages, target_languages=chosen.languages, **chosen.model.model_dump()
    )
    model = Conformer(config, tokenizer, tokenizer)
    pieces = chosen.vocabulary_size * 32 + chosen.transcript_vocabulary_size * 33 - len(tokenizer) * 65
    total = sum(parameter.numel() for parameter in model.parameters()) + pieces
    assert result["first"].parameters == result["first"].trained == total
    last = sum(p.numel() for layer in model.encoder.layers[1:] for p in layer.parameters())
    assert result["uft"].trained == last
    assert result["uft"].moments_bytes == 12 * last
    # Two branches more have two output biases more.
    assert result["sharing"].parameters == total + 2 * 32
    assert result["sharing"].split == {"encoder.layers.2.feed_forward_out": (24, 4, 4)}
    assert result["lora"].trained == pytest.approx(last, rel=0.1)
    assert result["uft"].kept_bytes < result["first"].kept_bytes


def test_what_is_kept_is_what_a_real_pass_keeps() -> None:
    """Nothing but the largest part is counted by hand: the logits and their softmax."""
    small, large = (
        estimate_memory(recipe("tiny", f"vocabulary_size={size}")).trainings[0].kept_bytes
        for size in (200, 1200)
    )
    rows = 3 * 128  # three rows of an utterance, 128 tokens at most
    count = 20 // 15  # a batch of 20 s holds one utterance of 15 s
    assert large - small == 4 * 1000 * rows * count


@pytest.mark.slow
def test_the_published_shape() -> None:
    pytest.importorskip("transformers")
    result = estimate_memory(recipe("paper", 'arms=["uft","sharing"]'))
    assert not result.worst_case
    first, uft, sharing = result.trainings
    assert first.parameters == uft.parameters == 821_351_744
    assert sharing.split == {"encoder.layers.11.feed_forward_out": (2048, 1024, 1024)}
    assert sharing.parameters - uft.parameters == 8_395_776 - 8_393_728
    assert result.collecting.coordinates == 2 * (8_393_728 + 2 * 1024)
    assert (result.collecting.vectors, result.collecting.passes) == (50, 4 * 50 * 4)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.feed_forward_width=4"], "has an inner width of 4, too little for 2 private branches"),
        (['analysis.modules=["encoder.layers.*.ff"]'], "matches 'encoder.layers.*.ff'"),
        (['arms=["sharring"]'], "no arm 'sharring'; there are uft; uft, not continued; sharing"),
        (["analysis.utterances=3"], "do not divide into vectors"),
    ],
)
def test_what_does_not_fit_is_named(overrides: list[str], said: str) -> None:
    ran = command(
        *("recipe", "gradient_sharing", "--size", "tiny", "--check"),
        *(part for override in overrides for part in ("--set", override)),
    )
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["analysis.utterances=6"], "analysis: utterances is 6, which do not divide into vectors of 2 x 2"),
        (
            ["analysis.utterances=4"],
            "analysis: utterances is 4, which make one vector of 2 x 2, and .* takes two",
        ),
        (
            ["model.transducer.joint_width=8"],
            "model.transducer is set, and gradients are those of a text decoder",
        ),
        (["num_groups=3"], "num_groups is 3, and there are 2 languages; give 2 to 2"),
        (
            ['arms=["uft", "random groups"]'],
            "arms has 'random groups', and 2 groups of 2 languages can be drawn in one way alone; leave it out",
        ),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_trained(
    overrides: list[str], said: str, tmp_path: Path
) -> None:
    """There are no data, which the first training would ask for."""
    ran = command(
        *("recipe", "gradient_sharing", "--size", "tiny"),
        *("--data", str(tmp_path), "--out", str(tmp_path / "run")),
        *(part for override in overrides for part in ("--set", override)),
    )
    assert ran.code == 2
    assert re.search(said, ran.err), ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_given_plan_is_checked() -> None:
    splits = '[{module="encoder.layers.9.feed_forward_out", groups=[["de"],["en"]], shared_ratio=0.5}]'
    ran = command("recipe", "gradient_sharing", "--size", "tiny", "--check", "--set", f"plan.splits={splits}")
    assert ran.code == 2
    assert "no module 'encoder.layers.9.feed_forward_out'" in ran.err


@pytest.mark.slow
def test_by_the_command(tmp_path: Path) -> None:
    ran = command("recipe", "gradient_sharing", "--size", "tiny", "--check", "--json")
    assert json.loads(ran.out)["trainings"][0]["bytes"] > 0
    assert "every plan fits" in command("recipe", "gradient_sharing", "--size", "tiny", "--check").out
    without = command("recipe", "gradient_sharing", "--size", "tiny")
    assert without.code == 2
    assert "--data and --out" in without.err
    assert torch.get_default_device() == torch.device("cpu")


def test_a_batch_is_made_in_as_many_parts_as_fit() -> None:
    one = TrainingEstimate(name="one", fixed_bytes=100, batch_bytes=64, utterances=8, flops=0.0)
    assert [one.accumulate(memory) for memory in (164, 163, 116, 108, 107)] == [1, 2, 4, 8, None]


def test_operations_are_those_of_the_weights() -> None:
    """A position of the decoder costs at least two operations for each of the decoder's weights, forward."""
    chosen = recipe("tiny")
    first = estimate_memory(chosen).trainings[0]
    steps, rows = chosen.first.steps, first.utterances
    least = 3 * 2 * rows * steps * first.parameters  # with one position each
    assert first.flops > least

"""A model split by language trains as any other: alone, by several processes, and on from a model directory."""

from pathlib import Path

import pytest
import torch

from sprachbund.data.batching import BatchingOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.io import load, save
from sprachbund.models.sharing_plan import FILE, SharingPlan
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.training.loop import train
from sprachbund.training.recipe import TranslatorRecipe
from sprachbund.training.translator import run
from tests.training import made, made_split
from tests.training.ranks import fork_ranks

BATCH_S = 1.5


@pytest.mark.slow
def test_two_processes_train_like_one_though_branches_are_absent(tmp_path: Path) -> None:
    made.make_corpus(tmp_path / "data", 24)

    def work(rank: int, count: int) -> None:
        # So few utterances in a batch that a process's share often lacks a language.
        model, chosen = made_split.make_split_model(), made.options(6, batch_s=BATCH_S)
        train(model, made.make_training_data(tmp_path / "data"), chosen, tmp_path / str(count) / "run")
        if rank == 0:
            torch.save(model.state_dict(), tmp_path / f"{count}.pt")

    codes = fork_ranks([1, 2], work, tmp_path)
    assert not any(codes.values()), codes
    one, two = (torch.load(tmp_path / f"{count}.pt") for count in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3)


def test_some_share_of_a_batch_lacks_a_language(tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    made.make_corpus(tmp_path, 24)
    corpus = made.make_training_data(tmp_path)
    plan = corpus.plan(BatchingOptions(batch_s=BATCH_S, max_utterances=128, max_duration_s=20.0, seed=0), 0)
    shares = [batch[rank::2] for batch in plan[:6] for rank in (0, 1)]
    languages = [{corpus.utterance(int(i))[0].language for i in share} for share in shares]
    assert any(len(result) < 2 for result in languages)


def recipe(directory: Path, **changes: object) -> TranslatorRecipe:
    shape = made.make_model().config.model_dump(exclude={"source_languages", "target_languages"})
    data = [{"path": directory / "data"}]
    return TranslatorRecipe.model_validate(
        {
            "languages": made.LANGUAGES,
            "train": data,
            "dev": data,
            "start": directory / "start",
            "bits": 32,
            "model": shape,
            "examples": {"rows_per_utterance": 2, "time_masks": 0, "frequency_masks": 0},
            "training": made.options(4).model_dump(),
            "card": {"name": "split"},
            **changes,
        }
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made.make_corpus(tmp_path / "data", 16)
    save(made_split.make_split_model(), tmp_path / "start")
    return tmp_path


def test_a_recipe_goes_on_from_a_split_model(root: Path) -> None:
    second_stage = {
        "trainable": ("encoder.layers.1.*",),
        "rates": {"*.private.*": 1e-2},
        "learning_rate": 4e-3,
    }
    training = made.options(4, **second_stage).model_dump()
    model = run(recipe(root, training=training), root / "run", report=lambda line: None)
    assert model.sharing_plan == load(root / "start").sharing_plan
    before, after = load(root / "start").state_dict(), load(root / "run" / "model").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("encoder.layers.1.")}
    assert (root / "run" / "model" / FILE).read_bytes() == (root / "start" / FILE).read_bytes()


def test_data_in_a_language_without_a_group_are_refused(root: Path) -> None:
    model = made.make_model()
    plan = {"splits": [{"module": made_split.ENCODER, "groups": [["de"]], "shared_ratio": 0.5}]}
    split_feed_forwards(model, SharingPlan.model_validate(plan))
    save(model, root / "start")
    with pytest.raises(SprachbundError, match=r"no group for 'en' in encoder.layers.1.*knows de"):
        run(recipe(root), root / "run", report=lambda line: None)

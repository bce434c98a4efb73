"""Epochs that are rendered while training: new ones, the same ones again, and only as many as are needed."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sprachbund.corpora.editions import LiveEdition, edition
from sprachbund.errors import SprachbundError
from sprachbund.training.recipe import TranslatorRecipe
from sprachbund.training.translator import run

TINY = edition("tiny", train_utterances=12, no_speech_share=0.0)


def heard(live: LiveEdition, epoch: int | None) -> list[tuple[str, bytes]]:
    manifest = live.at(epoch)
    return [(utterance.text, manifest.samples(i).tobytes()) for i, utterance in enumerate(manifest)]


@pytest.mark.slow
def test_every_epoch_is_new_and_comes_again_the_same(tmp_path: Path) -> None:
    live = LiveEdition(TINY, tmp_path / "live", workers=1)
    first, second = heard(live, 0), heard(live, 1)
    assert len(first) == len(second) == 12
    assert not {sound for _, sound in first} & {sound for _, sound in second}
    assert heard(LiveEdition(TINY, tmp_path / "elsewhere", workers=2), 1) == second
    assert heard(live, 0) == first


def test_one_epoch_is_kept_and_found_again(tmp_path: Path) -> None:
    lines: list[str] = []
    live = LiveEdition(TINY, tmp_path, workers=1, report=lines.append)
    live.at(0)
    live.at(3)
    assert [path.name for path in tmp_path.glob("epoch-*")] == ["epoch-000003"]
    again = LiveEdition(TINY, tmp_path, workers=1, report=lines.append)
    assert again.at().directory.name == again.at(3).directory.name == "epoch-000003"
    assert lines == [f"epoch {n}: rendering 12 utterances of tiny" for n in (0, 3)]


def test_an_epoch_that_was_broken_off_is_made_whole(tmp_path: Path) -> None:
    live = LiveEdition(TINY, tmp_path, workers=1)
    whole = heard(live, 0)
    (tmp_path / "epoch-000000" / "dataset.json").unlink()
    (tmp_path / "epoch-000000" / "cuts.00000.jsonl").unlink()
    assert heard(live, 0) == whole


def test_of_two_that_ask_one_renders(tmp_path: Path) -> None:
    lines: list[str] = []
    lives = [LiveEdition(TINY, tmp_path, workers=1, report=lines.append) for _ in range(2)]
    asking = [threading.Thread(target=live.at, args=(2,)) for live in lives]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(lines) == 1


def test_an_unknown_synthesiser_is_named(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="unknown synthesiser 'siri'"):
        LiveEdition(replace(TINY, synthesizers=("siri",)), tmp_path).at()


def recipe(dev: Path, **changes: object) -> TranslatorRecipe:
    return TranslatorRecipe.model_validate(
        {
            "languages": ["en", "de"],
            "live": [{"edition": "tiny", "utterances": 10}],
            "dev": [{"path": dev}],
            "vocabulary_size": 120,
            "transcript_vocabulary_size": 60,
            "model": {
                "width": 32,
                "num_heads": 2,
                "num_encoder_layers": 1,
                "num_decoder_layers": 1,
                "feed_forward_width": 32,
            },
            "training": {
                "steps": 7,
                "batch_s": 12,
                "num_workers": 0,
                "save_every": 2,
                "log_every": 1,
                "precision": "no",
            },
            "card": {"name": "live"},
            **changes,
        }
    )


@pytest.mark.slow
def test_training_hears_epoch_after_epoch_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    dev = LiveEdition(replace(TINY, name="dev"), tmp_path / "dev").at().directory
    lines: list[str] = []
    whole = run(recipe(dev), tmp_path / "whole", report=lines.append)
    epochs = [line.split(":")[0] for line in lines if "rendering" in line]
    assert len(epochs) >= 2
    assert epochs == [f"epoch {n}" for n in range(len(epochs))]
    run(recipe(dev), tmp_path / "broken", report=lines.append, stop_after=5)
    lines.clear()
    taken_up = run(recipe(dev), tmp_path / "broken", report=lines.append)
    assert any("resumed at step" in line for line in lines)
    assert not any("epoch 0: rendering" in line for line in lines)
    for name, weights in whole.state_dict().items():
        assert np.array_equal(weights.numpy(), taken_up.state_dict()[name].numpy()), name
    assert '"phrasebook/tiny-epoch-' in (tmp_path / "whole" / "model" / "card.json").read_text()


def test_a_recipe_without_training_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"\[\[train\]\] with a path, or a \[\[live\]\]"):
        run(recipe(tmp_path, live=[]), tmp_path / "run")

"""The recipe of a student: a Whisper trained by the one loop, taken up again, and runs that do not mix."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import WhisperConfig as HFWhisperConfig
from transformers import WhisperForConditionalGeneration

from sprachbund.compression.distillation import DistilRecipe, check_models, run
from sprachbund.errors import SprachbundError
from sprachbund.models import hub
from sprachbund.models.card import PAIRS, Card
from sprachbund.models.io import load
from sprachbund.models.pruning import prune_decoder
from sprachbund.models.whisper import save
from tests.models.whisper_support import make_tokenizer
from tests.training import made, owned

SIZES = replace(owned.SIZES, decoder_layers=3)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper of three decoder layers, its student of two, and tones that it may learn from."""
    root = tmp_path_factory.mktemp("distil")
    torch.manual_seed(3)
    ids = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256, "decoder_start_token_id": 257}
    model = WhisperForConditionalGeneration(HFWhisperConfig(**SIZES.to_transformers(), init_std=0.1, **ids))
    model.save_pretrained(root / "teacher")
    make_tokenizer().save(str(root / "teacher" / "tokenizer.json"))
    (root / "teacher" / "generation_config.json").write_text('{"is_multilingual": true}')
    teacher: Any = load(root / "teacher")
    save(prune_decoder(teacher, 2), root / "student")
    Card(name="student", training={PAIRS: [["fr", "en"]]}).write(root / "student")
    owned.make_tones(root / "data")
    return root


def recipe(material: Path, steps: int, **changes: Any) -> DistilRecipe:
    training = made.options(steps, batch_s=8.0, max_duration_s=0.9)
    return DistilRecipe.model_validate(
        {
            "teacher": material / "teacher",
            "student": material / "student",
            "languages": ("en", "de"),
            "train": [{"path": material / "data"}],
            "examples": {
                "rows_per_utterance": 2,
                "time_masks": 0,
                "frequency_masks": 0,
                "speeds": [1.0],
            },
            "training": training.model_dump(),
            **changes,
        }
    )


def test_a_whisper_student_learns_and_keeps_its_pairs(material: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    path = run(recipe(material, 6), tmp_path / "run", report=lines.append)
    student: Any = load(path)
    before: Any = load(material / "student")
    assert student.pairs() == load(material / "teacher").pairs()
    assert len(student.decoder.layers) == 2
    assert not torch.equal(student.decoder.norm.weight, before.decoder.norm.weight)
    assert any("kl" in line and "language_kl" in line for line in lines)
    assert WhisperForConditionalGeneration.from_pretrained(path).config.decoder_layers == 2
    card = Card.read(path)
    assert card is not None
    assert card.training["made_from"]["teacher"] == str(material / "teacher")
    assert card.taught_pairs == {("fr", "en"), ("en", "en"), ("de", "de"), ("de", "en")}


@pytest.mark.slow
def test_broken_off_and_taken_up_it_ends_with_the_same_bits(material: Path, tmp_path: Path) -> None:
    whole: Any = load(run(recipe(material, 4), tmp_path / "whole", report=lambda line: None))
    run(recipe(material, 4), tmp_path / "halves", report=lambda line: None, stop_after=2)
    halves: Any = load(run(recipe(material, 4), tmp_path / "halves", report=lambda line: None))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, halves.state_dict()[name]), name


def test_a_folder_holds_one_run(material: Path, tmp_path: Path) -> None:
    run(recipe(material, 2), tmp_path / "run", report=lambda line: None, stop_after=1)
    wanted = r"holds a run that differs in training\.steps \(training\.steps: 2 there, 3 now\); choose another --out"
    with pytest.raises(SprachbundError, match=wanted):
        run(recipe(material, 3), tmp_path / "run")
    run(recipe(material, 3), tmp_path / "run", report=lambda line: None, accept_changes=True)
    with pytest.raises(SprachbundError, match=r"differs in objective\.temperature \("):
        run(recipe(material, 3, objective={"temperature": 1.0}), tmp_path / "run")


def test_models_are_checked_before_any_work(material: Path) -> None:
    check_models(recipe(material, 1))
    with pytest.raises(SprachbundError, match="does not write xx; it writes de, en, es"):
        check_models(recipe(material, 1, languages=("en", "xx")))
    swapped = recipe(material, 1, teacher=material / "student", student=material / "teacher")
    with pytest.raises(SprachbundError, match="give the larger model as the teacher"):
        check_models(swapped)


def test_without_the_network_neither_model_is_looked_for_there(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def directory(name: str, patterns: Any, *, offline: bool, progress: Any = None) -> Path:
        asked.append(offline)
        return material / name.rpartition("/")[2]

    monkeypatch.setattr(hub, "download", directory)
    named = recipe(material, 2, teacher="nobody/teacher", student="nobody/student")
    run(named, tmp_path / "run", report=lambda line: None, offline=True)
    assert asked
    assert all(asked)

"""What `train` says of a recipe and its data before the first step, for a new conformer."""

from pathlib import Path
from typing import Any

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer
from sprachbund.training.translator import TranslatorRecipe, run
from tests.training import made
from tests.training.owned import make_tones

MODEL = {
    "width": 32,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "feed_forward_width": 32,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tones(tmp_path_factory.mktemp("tones") / "data")


def recipe(data: Path, **changes: Any) -> TranslatorRecipe:
    """One step of a new conformer."""
    return TranslatorRecipe.model_validate(
        {
            "languages": ("en", "de"),
            "train": [{"path": data}],
            "dev": [{"path": data}],
            "vocabulary_size": 40,
            "transcript_vocabulary_size": 30,
            "model": MODEL,
            "training": made.options(1, batch_s=8.0).model_dump(),
            "card": {"name": "new"},
            **changes,
        }
    )


def test_a_recipe_that_was_refused_is_mended_in_the_same_folder(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"data hold speech in de, the model hears only en"):
        run(recipe(data, languages=("en",)), tmp_path, report=lambda line: None)
    assert isinstance(run(recipe(data), tmp_path, report=lambda line: None), Conformer)
    with pytest.raises(
        SprachbundError, match=r"holds a run that differs in languages \(languages: \['en', 'd"
    ):
        run(recipe(data, languages=("en",)), tmp_path, report=lambda line: None)
    assert (tmp_path / "tokenizer.model").exists()


def test_a_recipe_without_dev_data_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"rank its checkpoints; add a \[\[dev\]\] with a path"):
        run(recipe(data, dev=()), tmp_path, report=lambda line: None)

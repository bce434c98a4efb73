"""Checkpoints of every kind, once for all tests."""

from pathlib import Path

import pytest

from tests.models.translation.support import KINDS, Checkpoint, make_checkpoint


@pytest.fixture(scope="session", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A directory, transformers' model and tokenizer in it, and ours."""
    directory: Path = tmp_path_factory.mktemp(request.param) / "model"
    return make_checkpoint(directory, request.param)

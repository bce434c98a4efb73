"""Both versions, once for all tests."""

from typing import Any

import pytest

from sprachbund.models.seamless import Seamless
from tests.models.seamless.support import VERSIONS, make_pair


@pytest.fixture(scope="session", params=VERSIONS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Seamless]:
    """A transformers model and ours with the same weights."""
    return make_pair(tmp_path_factory.mktemp(request.param), request.param)

"""Every family that is known by name has a loader."""

from sprachbund.models.hub import FAMILIES
from sprachbund.models.io import LOADERS


def test_every_family_has_a_loader() -> None:
    assert tuple(LOADERS) == FAMILIES

"""Files of weights: the same bytes for the same weights, readable by all."""

from pathlib import Path

import pytest
import torch

from sprachbund.models.drafts import DraftCard, write_draft
from sprachbund.models.weights import Bits, read_metadata, read_weights, write_weights
from sprachbund.util.tensors import CHECKSUM

_METADATA = dict.fromkeys(("format", "sharing_plan", "order", "made_by", "version"), "x")


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_the_same_weights_are_the_same_bytes(tmp_path: Path, bits: Bits) -> None:
    weights = {name: torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) for name in "cab"}
    for name in ("one", "two"):
        write_weights(tmp_path / name, weights, bits, _METADATA)
    write_weights(tmp_path / "three", dict(sorted(weights.items())), bits, dict(reversed(_METADATA.items())))
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1
    assert read_weights(tmp_path / "one").keys() == weights.keys()
    assert len(read_metadata(tmp_path / "one")[CHECKSUM]) == 64
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o666 & ~_umask(tmp_path)


def test_the_same_draft_is_the_same_bytes(tmp_path: Path) -> None:
    card = DraftCard(kind="tokens", vocabulary_size=3)
    for name in ("one", "two"):
        write_draft(tmp_path / name, card, {"b": torch.ones(2), "a": torch.zeros(3)})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def _umask(folder: Path) -> int:
    probe = folder / "probe"
    probe.touch()
    return 0o666 & ~probe.stat().st_mode

"""Where products are faster in bf16 than in fp32."""

from pathlib import Path

import pytest
import torch

from sprachbund.util import devices
from sprachbund.util.processor import is_intel

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("bf16", "intel", "tiles", "fast"),
    [
        (False, False, False, False),
        (True, False, False, True),
        (True, True, False, False),
        (True, True, True, True),
        (False, True, False, False),
    ],
)
def test_intels_processors_are_fast_in_bf16_by_tiles_alone(
    bf16: bool, intel: bool, tiles: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda device: bf16)
    monkeypatch.setattr(devices, "is_intel", lambda: intel)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert devices.is_fast_in_bf16.__wrapped__(CPU) is fast


def test_the_system_names_the_maker(tmp_path: Path) -> None:
    about = tmp_path / "proc" / "cpuinfo"
    about.parent.mkdir()
    for vendor, intel in (("GenuineIntel", True), ("AuthenticAMD", False)):
        about.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: A processor\n")
        assert is_intel(tmp_path) == intel

"""Models on other devices: refused where there are none; on torch's meta device every step keeps to one device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sprachbund
from sprachbund.cli.console import set_device
from sprachbund.engines.choice import check_choice
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.io import load, move
from sprachbund.util import distributed
from sprachbund.util.devices import available_devices, check_device_name, find_device
from tests.decoding.families import FAMILIES
from tests.stories.support import command

ABSENT = "cuda:99"
ON_ANY = ("conformer", "whisper", "seamless", "Canary")
"""Without those that decide the way of a tensor by numbers, of which the meta device has none."""


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "CPU", ""])
def test_a_name_that_is_no_device_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(SprachbundError, match="give cpu, cuda, cuda:1"):
        check_device_name(name)


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(SprachbundError, match=f"device is {ABSENT!r}, which is not here.*; there is cpu"):
        find_device(ABSENT)
    with pytest.raises(SprachbundError, match=ABSENT):
        sprachbund.load(device=ABSENT)
    with pytest.raises(SprachbundError, match=ABSENT):
        load(device=ABSENT)


def test_devices_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert available_devices() == ["cpu", "cuda:0", "cuda:1", "mps"]
    assert find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)
    for engine in ("native", "native-int4", "torch-int8"):
        with pytest.raises(
            SprachbundError, match=f"device is 'cuda:1', and the engine {engine} computes on cpu"
        ):
            check_choice(engine, None, "cuda:1")  # type: ignore[arg-type]
    check_choice("torch-bf16", None, "cuda:1")


def test_a_family_that_computes_on_cpus_alone_says_so(tmp_path: Path) -> None:
    for name in ("tokens by attention", "streaming transducer", "cascade"):
        (tmp_path / name).mkdir()
        with pytest.raises(SprachbundError, match=r"device is 'cuda', and .* computes on cpu"):
            move(FAMILIES[name](tmp_path / name), "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_ANY)
def test_every_step_keeps_to_the_device(name: str, tmp_path: Path) -> None:
    """The meta device computes shapes alone, and refuses tensors of another device as a GPU does."""
    family: Any = FAMILIES[name](tmp_path)
    assert "cuda" in family.capabilities.devices
    source, language = sorted(family.pairs())[0]
    asked = [Target(language=language, source=source)]
    prompt = family.prompt(asked[0])
    family.to("meta")
    memory = family.encode(family.features([np.zeros(16_000, np.float32)]))
    assert memory.states.is_meta
    assert family.language_log_probs(memory).is_meta
    cache = family.start(memory, capacity=len(prompt) + 4, targets=asked)
    assert family.step(torch.tensor([prompt], device="meta"), cache).is_meta


@pytest.mark.parametrize(
    "verb",
    [
        ("translate", "x.wav", "--to", "de"),
        ("transcribe", "x.wav"),
        ("listen", "x.wav"),
        ("serve",),
        ("evaluate", "corpus"),
    ],
)
def test_every_verb_that_computes_refuses_a_name_that_is_no_device(verb: tuple[str, ...]) -> None:
    done = command(*verb, "--device", "gpu")
    assert done.code == 2
    (line,) = done.error_lines
    assert "--device is 'gpu'; give cpu, cuda" in line
    assert not done.out


def test_training_takes_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRACHBUND_DEVICE", "cpu")  # so that what the test sets is taken back behind it
    monkeypatch.delenv("SPRACHBUND_DEVICE")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert distributed.own_device() == torch.device("cuda", 0)
    for name in ("cuda:1", "cpu"):
        set_device(name)
        assert distributed.own_device() == torch.device(name)
    with pytest.raises(SprachbundError, match="device is 'cuda:2', which is not here"):
        set_device("cuda:2")
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SprachbundError, match="each takes the GPU of its number: leave it out"):
        set_device("cuda:1")

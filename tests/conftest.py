"""Test set-up shared by all packages."""

import gc
import os
import ssl
from collections.abc import Iterator
from functools import cache
from typing import Any

# Tiny models are faster on one thread, and the tests of a busy machine then do not wait for each other. Libraries
# read this when they are loaded, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests import shared

gc.disable()  # until the tests are imported, all of which stays: to look for garbage there takes a third of the time
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # more than there are cores only if told so

# A backward pass starts a thread for each GPU, once, and no forked process computes gradients after that. A build of
# torch with CUDA believes in a GPU from its first export to ONNX on, so the first pass comes before.
torch.ones(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def threads() -> None:
    """As many as at first, whatever the test before has set."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Files need not outlast a power cut; tests/reliability sees that they would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def certificates_are_read_once() -> Iterator[None]:
    """A client of the service reads all certificates of the system for its first request, though there is no TLS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        yield


@pytest.fixture(scope="session", autouse=True)
def prediction_of_memory() -> Iterator[Any]:
    """What predicts the memory of a training; tests go without, for it takes longer than the few steps of most."""
    from sprachbund.training import loop  # imports much, so not before garbage is left alone

    with pytest.MonkeyPatch.context() as patch:
        predicted = loop.measure_shape
        patch.setattr(loop, "measure_shape", lambda *_, **__: None)
        yield predicted


@pytest.fixture
def predicted_memory(monkeypatch: pytest.MonkeyPatch, prediction_of_memory: Any) -> None:
    """Trainings predict how much memory they need, as they do outside of tests."""
    monkeypatch.setattr("sprachbund.training.loop.measure_shape", prediction_of_memory)


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of all processes of pytest-xdist, each of which has a temporary folder inside one of the whole run."""
    own = tmp_path_factory.getbasetemp()
    shared.folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, so that no process works on one while the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported by now is never garbage, and need not be gone through again and again
    gc.enable()

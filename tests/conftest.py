"""Test set-up shared by all rooms."""

import pytest
import torch

# Tiny models are faster on one thread, and the tests of a busy machine then do not wait for each other.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, so that no process works on one while the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)

"""Errors as lines."""

import pytest
import torch

from sprachbund.cli.console import error_line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("unable to mmap 290 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_memory_that_runs_out_is_no_unexpected_error(error: Exception) -> None:
    line = error_line(error)
    assert line.startswith(f"there is not enough memory for this ({error}); end other programs")
    assert "unexpected" not in line


def test_what_was_not_foreseen_points_to_debug() -> None:
    expected = "unexpected RuntimeError: so it is (--debug shows the traceback)"
    assert error_line(RuntimeError("so\nit is")) == expected

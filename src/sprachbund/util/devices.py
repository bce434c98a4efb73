"""The device that computes: its name as torch has it, checked before anything is put there; and torch's threads."""

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from sprachbund.util.options import OptionValueError
from sprachbund.util.processor import is_intel

if TYPE_CHECKING:
    import torch

CPU = "cpu"
ANY_DEVICE = ("cpu", "cuda", "mps")
"""Kinds of devices that plain torch computes on here."""
_NAME = re.compile(r"cpu|mps|cuda(:\d{1,4})?")


def check_device_name(name: str) -> None:
    """Refuse a name that is none, without importing torch.

    Args:
        name: cpu, cuda, cuda:1 …, or mps.

    Raises:
        OptionValueError: it is something else.
    """
    if not _NAME.fullmatch(name):
        raise OptionValueError("device", name, "give cpu, cuda, cuda:1 (the second GPU) or mps")


def find_device(name: str) -> "torch.device":
    """A device of this machine; "cuda" is the first GPU.

    Args:
        name: cpu, cuda, cuda:1 …, or mps.

    Raises:
        OptionValueError: there is none of that name; the message has those that there are.
    """
    import torch

    check_device_name(name)
    there = available_devices()
    if (name if name != "cuda" else "cuda:0") not in there:
        built = (
            ""
            if torch.version.cuda or not name.startswith("cuda")
            else ", and this torch is built without CUDA"
        )
        raise OptionValueError(
            "device", name, f"there is {', '.join(there)}", reason=f"which is not here{built}"
        )
    return torch.device(name)


def available_devices() -> list[str]:
    """Names of all devices of this machine."""
    import torch

    gpus = [
        f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    return [CPU, *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def check_kind(device: str, kinds: tuple[str, ...], what: str) -> None:
    """Check that a device is of one of the kinds that something computes on.

    Args:
        device: name of the device.
        kinds: kinds of `ANY_DEVICE`.
        what: computes, in words.

    Raises:
        OptionValueError: it is of another kind.
    """
    if device.partition(":")[0] not in kinds:
        raise OptionValueError(
            "device", device, "leave it out", reason=f"and {what} computes on {' or '.join(kinds)}"
        )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads inside, and afterwards with as many as before.

    Args:
        count: count of threads, for one operation.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def has_bf16(device: "torch.device") -> bool:
    """Whether a device has instructions for products in bf16. A CPU without them is many times slower than in fp32.

    Args:
        device: any device; of GPUs, this machine's are asked.
    """
    import torch

    if device.type == "cpu":
        if not torch.backends.mkldnn.is_available():
            return False
        # On x86, oneDNN says yes from AVX-512 on, and emulates them.
        if platform.machine().lower() in ("x86_64", "amd64"):
            return torch.cpu._is_avx512_bf16_supported()
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


@cache  # the optimizer asks at every step
def is_fast_in_bf16(device: "torch.device") -> bool:
    """Whether a device computes products faster in bf16 than in fp32.

    Intel's processors do with tiles (AMX) alone, which virtual machines may hide: their vectors take twice as long in
    bf16 (docs/train.md, "Precision").

    Args:
        device: any device; of GPUs, this machine's are asked.
    """
    import torch

    if device.type == "cpu" and is_intel():
        return has_bf16(device) and torch.cpu._is_amx_tile_supported()
    return has_bf16(device)

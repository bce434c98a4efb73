"""Which engine computes a model, and why.

An engine is a family whose parts were exchanged: the native one has a decoder, and encoder layers where it can, that
compute in the compiled kernels with int8 weights; the torch engine is the model itself, or, as torch-fp32, torch-bf16
and torch-int8, the model with its decoder rearranged for speed, in that precision. Searches see no difference.
"""

import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family
from sprachbund.runtime import packed_cache
from sprachbund.runtime.extension import choose_instruction_set, missing_because, native
from sprachbund.runtime.native_model import exchanged, native_parts_of, pack, why_not_family
from sprachbund.runtime.native_options import NativeOptions
from sprachbund.runtime.native_parts import NativeDecoder
from sprachbund.runtime.packed_cache import packed_for
from sprachbund.runtime.thread_choice import fastest_threads
from sprachbund.runtime.torch_linear import Precision
from sprachbund.runtime.torch_model import on_torch
from sprachbund.runtime.torch_parts import TorchDecoder

EngineChoice = Literal["auto", "native", "native-int4", "torch", "torch-fp32", "torch-bf16", "torch-int8"]
CHOICES: tuple[EngineChoice, ...] = get_args(EngineChoice)
_TORCH: dict[EngineChoice, tuple[Precision, str]] = {
    "torch-fp32": ("fp32", "weights as the model has them, decoder rearranged"),
    "torch-bf16": ("bf16", "weights and computation in bf16"),
    "torch-int8": ("int8", "weights in 8 bits, attention in bf16"),
}


def _compute_alone() -> None:
    """In a forked process: torch computes with one thread, as it does in the workers of a DataLoader.

    OpenMP's threads are not there after a fork, and the first computation that shares its work would wait for them
    for ever.
    """
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


if sys.platform != "win32":  # it forks nothing
    os.register_at_fork(after_in_child=_compute_alone)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A family ready to compute.

    Attributes:
        name: "native", "torch", or "torch" with a precision.
        family: to encode, start and step with.
        why: a sentence: what computes with how many threads, or why the native engine does not.
        notes: sentences the user should see, such as about a damaged cache.
    """

    name: str
    family: Family
    why: str
    notes: tuple[str, ...] = ()


def engine_for(
    family: Family,
    engine: EngineChoice = "auto",
    *,
    threads: int | None = None,
    instruction_set: str | None = None,
    directory: Path | None = None,
    cache: Path | None = None,
    options: NativeOptions | None = None,
    cuda_graphs: bool = True,
) -> Engine:
    """An engine for a loaded family.

    Args:
        family: with its weights.
        engine: "native" (int8 weights, CPU), "native-int4" (the same with `weights="int4"` among its options), "torch"
            (the model as it is), "torch-fp32", "torch-bf16" or "torch-int8" (torch in that precision, faster), or
            "auto": native where it is possible, else torch.
        threads: of the native engine. By default the number that a short trial finds fastest, up to those that torch
            uses; it is remembered for this machine and model. Without a directory, as many as torch uses.
        instruction_set: of the kernels, for tests; the best there is by default.
        directory: the model's; its packed weights are then kept and mapped. Without it they are packed in memory.
        cache: where they are kept; the user's cache directory by default.
        options: what of its exactness the native engine may give up; nothing by default.
        cuda_graphs: on a GPU, torch-fp32 and torch-bf16 record the decoder's steps as graphs.

    Raises:
        SprachbundError: the native engine was asked for and cannot be had, options of it with another engine, or more
            threads than cores.
    """
    check_choice(engine, threads)
    options = options or NativeOptions()
    if engine == "native-int4":
        engine, options = "native", replace(options, weights="int4")
    if engine not in ("native", "auto"):
        _check_exact(options, f"the engine {engine}")
    if engine == "torch":
        return Engine(name="torch", family=family, why="it was asked for")
    if engine in _TORCH:
        precision, what = _TORCH[engine]
        return Engine(
            name=engine, family=on_torch(family, precision, cuda_graphs=cuda_graphs), why=f"torch, {what}"
        )
    if (reason := why_not_native(family)) is None:
        return _native(
            family,
            options,
            threads,
            choose_instruction_set(instruction_set),
            directory=directory,
            cache=cache,
        )
    if engine == "native":
        raise SprachbundError(f"the native engine cannot run this model: {reason}; use the torch engine")
    _check_exact(options, f"torch, since {reason},")
    return Engine(name="torch", family=family, why=f"the native engine cannot run this model: {reason}")


def beside(family: Family, other: Family, directory: Path | None = None) -> Family:
    """Another model on the engine that a family is on, by the same threads: a draft guesses as fast as it can.

    Args:
        family: whose engine is meant.
        other: with its weights; given back as it is where the kernels cannot run it.
        directory: the other's; its packed weights are then kept and mapped.

    Raises:
        SprachbundError: the family is on torch in a precision in which the other cannot be run.
    """
    decoder: Any = getattr(family, "decoder", None)
    if isinstance(decoder, TorchDecoder):
        return on_torch(other, decoder.precision)
    if not isinstance(decoder, NativeDecoder) or why_not_family(other) is not None:
        return other
    weights = decoder.options.weights
    if directory is None:
        packed = pack(other, weights)
    else:
        packed, _ = packed_for(directory, lambda: pack(other, weights), weights=weights)
    return exchanged(other, packed, decoder.team, decoder.instruction_set, decoder.options)


def _native(
    family: Family,
    options: NativeOptions,
    threads: int | None,
    kernels: str,
    *,
    directory: Path | None,
    cache: Path | None,
) -> Engine:
    """The native engine, for a family that it can run."""
    weights, notes = options.weights, tuple[str, ...]()
    if directory is None:
        packed = pack(family, weights)
    else:
        packed, notes = packed_for(directory, lambda: pack(family, weights), cache, weights)

    def computed_by(count: int) -> Family:
        return exchanged(family, packed, native().Team(count), kernels, options)

    num_threads = choose_threads(threads)
    if threads is None and directory is not None:
        num_threads = fastest_threads(
            num_threads,
            computed_by,
            model=f"{packed.source} {kernels}" + (f" {weights}" if weights != "int8" else ""),
            cache=cache or packed_cache.default_cache(),
        )
    parts = native_parts_of(family)
    why = f"{kernels} kernels, {num_threads} thread{'s' * (num_threads != 1)}, {weights} {parts}"
    if options.memory == "int8":
        why += "; keys and values of the speech in int8"
    return Engine(name="native", family=computed_by(num_threads), why=why, notes=notes)


def _check_exact(options: NativeOptions, computes: str) -> None:
    """Raise a SprachbundError where options of the native engine would be lost."""
    asked = [
        f"{f.name}={value!r}" for f in fields(options) if (value := getattr(options, f.name)) != f.default
    ]
    if asked:
        raise SprachbundError(f"{' and '.join(asked)} is for the native engine; {computes} has not got it")


def why_not_native(family: Family) -> str | None:
    """Why the native engine cannot run a family here; None when it can."""
    if reason := missing_because():
        return reason
    return why_not_family(family)


def check_choice(engine: EngineChoice, threads: int | None) -> None:
    """Raise the SprachbundError that `engine_for` would, as far as it can be told without a model."""
    if engine not in CHOICES:
        raise SprachbundError(f"there is no engine {engine!r}; choose one of {', '.join(CHOICES)}")
    if engine in ("native", "native-int4"):
        native()
    if engine in ("native", "native-int4", "auto"):
        choose_threads(threads)


def choose_threads(wanted: int | None) -> int:
    """The number of threads to use. Raises SprachbundError for fewer than one or more than there are cores."""
    cores = os.cpu_count() or 1
    if wanted is None:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
        return min(torch.get_num_threads(), usable)
    if not 1 <= wanted <= cores:
        raise SprachbundError(f"{wanted} threads asked for; this machine has {cores}, give 1 to {cores}")
    return wanted

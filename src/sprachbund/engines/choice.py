"""Chooses the engine that computes a model: `engine_for`.

An engine is a family with some modules replaced. In the native one, the decoder, and encoder layers where possible,
compute in the compiled kernels with int8 weights. The torch engine is the model itself, or, as torch-fp32, torch-bf16
and torch-int8, the model with its decoder rearranged for speed, in that precision. Searches see no difference.

Also here: `pooled`, which averages neighbouring frames of the encoder's memory, so that a step of the decoder reads
less (it changes the text; no model was trained on averaged frames); and `fastest_threads`, which times a model with
several numbers of threads once and remembers the best for this machine and model, because threads beyond the cores of
one memory, or beyond what a small model can use, make it slower.

Shapes: B memories, T frames, D width, R rows, Q tokens per step, V vocabulary.
"""

import json
import os
import platform
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.engines import packed_cache
from sprachbund.engines.extension import choose_instruction_set, missing_because, native
from sprachbund.engines.native_engine import (
    NativeDecoder,
    native_parts_of,
    pack,
    why_not_family,
    with_native_modules,
)
from sprachbund.engines.options import CHOICES, EngineChoice, NativeOptions
from sprachbund.engines.packed_cache import packed_for
from sprachbund.engines.torch_layers import (
    FusedEncoderLayer,
    Precision,
    TorchDecoder,
    recast,
    with_submodules,
)
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Capabilities, Family, Features, Memory, Target
from sprachbund.nn.decoder import DecoderCache, TextDecoder
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.util.files import write_text

# Pooled frames.

MOST_POOLED = 4


class PooledFamily:
    """A family whose memories have one frame for every `size`; all else is that family's own.

    Args:
        family: not changed.
        size: frames that are averaged.
    """

    def __init__(self, family: Family, size: int) -> None:
        self._family, self._size = family, size
        self.drafts = family.drafts

    def encode(self, features: Features) -> Memory:
        """Run the encoder and average its frames."""
        memory = self._family.encode(features)
        states, num_frames = pool(memory.states, memory.num_frames, self._size)
        return replace(memory, states=states, num_frames=num_frames)

    @property
    def capabilities(self) -> Capabilities:
        """The family's; words are aligned to the frames that the decoder reads."""
        able = self._family.capabilities
        if able.alignment is None:
            return able
        return replace(able, alignment=replace(able.alignment, frame_s=self._size * able.alignment.frame_s))

    @property
    def name(self) -> str:
        """As the family's; so is all that follows."""
        return self._family.name

    @property
    def source_languages(self) -> tuple[str, ...]:
        """See `Family`."""
        return self._family.source_languages

    @property
    def end_token(self) -> int:
        """See `Family`."""
        return self._family.end_token

    @property
    def max_tokens(self) -> int:
        """See `Family`."""
        return self._family.max_tokens

    @property
    def max_window_s(self) -> float:
        """See `Family`."""
        return self._family.max_window_s

    @property
    def frame_s(self) -> float:
        """Seconds of a frame of the encoder; timestamp tokens count those."""
        return self._family.frame_s

    def pairs(self) -> frozenset[tuple[str, str]]:
        """See `Family`."""
        return self._family.pairs()

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """See `Family`."""
        return self._family.features(samples)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """See `Family`."""
        return self._family.language_log_probs(memory)

    def prompt(self, target: Target) -> list[int]:
        """See `Family`."""
        return self._family.prompt(target)

    def start(
        self,
        memory: Memory,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        targets: Sequence[Target] | None = None,
    ) -> DecoderCache:
        """See `Family`, arguments included."""
        return self._family.start(memory, rows_per_memory=rows_per_memory, capacity=capacity, targets=targets)

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """See `Family`, arguments included."""
        return self._family.step(tokens, cache, weights)

    def suppressed(self, target: Target) -> Tensor:
        """See `Family`."""
        return self._family.suppressed(target)

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        """See `Family`."""
        return self._family.no_speech_log_prob(logits)

    def decode_text(self, tokens: Sequence[int]) -> str:
        """See `Family`."""
        return self._family.decode_text(tokens)


def pooled(family: Family, size: int) -> Family:
    """A family whose memories have one frame for every `size`; with 1 the family itself.

    Raises:
        SprachbundError: a size out of range, or a model whose frames are read by more than an attention decoder.
    """
    if not 1 <= size <= MOST_POOLED:
        raise SprachbundError(f"{size} frames are to be averaged; give 1, which keeps all, to {MOST_POOLED}")
    if size == 1:
        return family
    able = family.capabilities
    if able.transducer or able.ctc or able.joint_ctc or able.experts:
        raise SprachbundError(
            f"pool_frames is {size}, and the text of {family.name} is made frame by frame, not by an attention decoder "
            "alone; give 1, or take a whisper, conformer or seamless model with such a decoder"
        )
    return PooledFamily(family, size)


def pool(states: Tensor, num_frames: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """Means of every `size` frames of states (B, T, D), of which `num_frames` (B,) are valid, and how many are then."""
    length = states.shape[1]
    lengths = torch.full((len(states),), length, device=states.device) if num_frames is None else num_frames
    missing = -length % size
    valid = torch.arange(length + missing, device=states.device) < lengths[:, None]
    padded = torch.nn.functional.pad(states, (0, 0, 0, missing)).masked_fill(~valid[..., None], 0.0)
    counts = valid.unflatten(1, (-1, size)).sum(2).clamp(min=1)
    means = padded.unflatten(1, (-1, size)).sum(2) / counts[..., None].to(states.dtype)
    return means, None if num_frames is None else (num_frames + size - 1) // size


# Number of threads.

_FILE = "threads.json"
_REMEMBERED = 200
_ROUNDS = 3
_WORTH = 0.95
"""More threads have to take less than this of the time of fewer."""
_CLIP_S, _TOKENS = 3.0, 16


def fastest_threads(most: int, family_with: Callable[[int], Family], *, model: str, cache: Path) -> int:
    """The number of threads, from 1 to `most`, with which a family is fastest.

    Args:
        most: threads that may be used.
        family_with: the family computed by so many.
        model: what to remember it under, besides this machine.
        cache: folder of the file that remembers; where it cannot be written, every start measures.
    """
    known = _read(cache / _FILE)
    key = " ".join((platform.node(), platform.machine(), str(os.cpu_count()), str(most), model))
    if 1 <= (remembered := known.get(key, 0)) <= most:
        return remembered
    if most == 1:
        return 1
    works = {count: _work(family_with(count)) for count in candidates(most)}
    chosen = fastest(works)
    _write(cache / _FILE, {**known, key: chosen})
    return chosen


def candidates(most: int) -> list[int]:
    """Powers of two, half of all, and all: the second thread of a core is seldom worth it."""
    powers = {2**i for i in range(most.bit_length()) if 2**i <= most}
    return sorted(powers | {max(1, most // 2), most})


def fastest(works: dict[int, Callable[[], Any]]) -> int:
    """The key of the fastest work, measured in turn; a smaller one where the greater gains next to nothing."""
    times: dict[int, list[float]] = {count: [] for count in works}
    for number in range(_ROUNDS + 1):
        for count, work in works.items():
            begin = time.perf_counter()
            work()
            if number:  # the first time, weights are read from disk
                times[count].append(time.perf_counter() - begin)
    best = min(works)
    for count in sorted(works):
        if median(times[count]) < _WORTH * median(times[best]):
            best = count
    return best


def _work(family: Family) -> Callable[[], None]:
    """A short recording with some tokens; the family is nobody else's."""
    if (window := family.capabilities.fixed_window) is not None:
        window.real_length = True
    num_samples = round(min(_CLIP_S, family.max_window_s) * SAMPLE_RATE)
    noise = np.random.default_rng(0).standard_normal(num_samples).astype(np.float32) * 0.1
    features, num_tokens = family.features([noise]), min(_TOKENS, family.max_tokens)
    token = torch.zeros(1, 1, dtype=torch.long)

    def work() -> None:
        cache = family.start(family.encode(features), capacity=num_tokens)
        for _ in range(num_tokens):
            family.step(token, cache)

    return torch.inference_mode()(work)


def _read(path: Path) -> dict[str, int]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in stored.items() if isinstance(v, int)} if isinstance(stored, dict) else {}


def _write(path: Path, known: dict[str, int]) -> None:
    latest = dict(list(known.items())[-_REMEMBERED:])
    with suppress(OSError):  # nothing is lost but time
        write_text(path, json.dumps(latest, indent=1))


# The torch engine.


def on_torch(family: Family, precision: Precision, *, cuda_graphs: bool = True) -> Family:
    """The family with its modules replaced; the original is left as it is.

    Args:
        family: with its weights.
        precision: see `Precision`.
        cuda_graphs: see `TorchDecoder`.

    Raises:
        SprachbundError: a family without our decoder, or a precision that torch has no kernels for here.
    """
    encoder, decoder = family.capabilities.encoder, family.capabilities.decoder
    if (
        not isinstance(family, nn.Module)
        or encoder is None
        or not isinstance(decoder, TextDecoder)
        or not _computes_alike(type(decoder))
    ):
        raise SprachbundError(
            f"the torch engine in {precision} cannot run a decoder of the kind {type(decoder).__name__}; "
            "use the engine torch"
        )
    on_cpu = decoder.positions.device.type == "cpu"

    def swap(module: nn.Module) -> nn.Module | None:
        if isinstance(module, TextDecoder):
            return TorchDecoder(module, precision, cuda_graphs=cuda_graphs)
        if type(module) is EncoderLayer and precision != "fp32" and on_cpu:
            return FusedEncoderLayer(module, precision)
        return None

    if precision == "bf16":
        whole: Any = recast(family, precision, swap)
        # Features come in fp32; the original, of which this is a copy, must not get the hook.
        whole.encoder._forward_pre_hooks = OrderedDict()
        whole.encoder.register_forward_pre_hook(_first_in_bf16)
        return whole
    # The small heads beside encoder and decoder stay as they are.
    return with_submodules(
        family, encoder=recast(encoder, precision, swap), decoder=recast(decoder, precision, swap)
    )


def _computes_alike(kind: type[TextDecoder]) -> bool:
    """Whether a decoder does before and behind its layers what every other does; mBART's has a norm and a bias more."""
    return kind.embedded is TextDecoder.embedded and kind.outputs is TextDecoder.outputs


def _first_in_bf16(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    read = given[0].to(torch.bfloat16) if given[0].is_floating_point() else given[0]  # or it is tokens
    return (read, *given[1:])


_TORCH: dict[EngineChoice, tuple[Precision, str]] = {
    "torch-fp32": ("fp32", "weights as the model has them, decoder rearranged"),
    "torch-bf16": ("bf16", "weights and computation in bf16"),
    "torch-int8": ("int8", "weights in 8 bits, attention in bf16"),
}


# The choice.


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


def on_same_engine(family: Family, other: Family, directory: Path | None = None) -> Family:
    """Another model on the engine of a family, with the same threads; for draft models.

    Args:
        family: whose engine is meant.
        other: with its weights; given back as it is where the kernels cannot run it.
        directory: the other's; its packed weights are then kept and mapped.

    Raises:
        SprachbundError: the family is on torch in a precision in which the other cannot be run.
    """
    decoder = family.capabilities.decoder
    if isinstance(decoder, TorchDecoder):
        return on_torch(other, decoder.precision)
    if not isinstance(decoder, NativeDecoder) or why_not_family(other) is not None:
        return other
    weights = decoder.options.weights
    if directory is None:
        packed = pack(other, weights)
    else:
        packed, _ = packed_for(directory, lambda: pack(other, weights), weights=weights)
    return with_native_modules(other, packed, decoder.team, decoder.instruction_set, decoder.options)


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
        return with_native_modules(family, packed, native().Team(count), kernels, options)

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
    asked = [f"{f.name}={value!r}" for f in fields(options) if (value := vars(options)[f.name]) != f.default]
    if asked:
        raise SprachbundError(f"{' and '.join(asked)} is for the native engine; {computes} has not got it")


def why_not_native(family: Family) -> str | None:
    """Why the native engine cannot run a family here; None when it can."""
    if reason := missing_because():
        return reason
    return why_not_family(family)


def check_choice(engine: EngineChoice, threads: int | None) -> None:
    """Raise the SprachbundError that `engine_for` would, as far as possible without a model."""
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
        # Which cores a process may use, Linux alone says.
        usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else cores
        return min(torch.get_num_threads(), usable)
    if not 1 <= wanted <= cores:
        raise SprachbundError(f"{wanted} threads asked for; this machine has {cores}, give 1 to {cores}")
    return wanted

"""Chooses the engine that computes a model: `engine_for`.

An engine is a family with some modules replaced. In the native one, the decoder, and encoder layers where possible,
compute in the compiled kernels with int8 weights. The torch engine is the model itself, or, as torch-fp32, torch-bf16
and torch-int8, the model with its decoder rearranged for speed, in that precision. Searches see no difference. "auto"
is the fastest of them here, by a trial that is made once (`sprachbund.engines.trial`).

Also here: `pooled`, which averages neighbouring frames of the encoder's memory, so that a step of the decoder reads
less (it changes the text; no model was trained on averaged frames).

Shapes: B memories, T frames, D width, R rows, Q tokens per step, V vocabulary.
"""

import os
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.engines import packed_cache
from sprachbund.engines.extension import (
    choose_instruction_set,
    instruction_sets,
    missing_because,
    native,
)
from sprachbund.engines.native_engine import (
    NativeDecoder,
    native_parts_of,
    pack,
    why_not_family,
    with_native_modules,
)
from sprachbund.engines.options import CHOICES, ENGINE_DEVICES, NATIVE, EngineChoice, NativeOptions
from sprachbund.engines.packed_cache import Packed, fingerprint, in_large_pages, packed_for
from sprachbund.engines.parts import parts_of
from sprachbund.engines.torch_layers import (
    FusedEncoderLayer,
    Precision,
    TorchDecoder,
    recast,
    with_submodules,
)
from sprachbund.engines.trial import Candidate, Trial, TrialFile, thread_counts, try_candidates
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Capabilities, Family, Features, Memory
from sprachbund.models.cascade import Cascade
from sprachbund.models.hub import check_memory
from sprachbund.models.io import move
from sprachbund.models.wrapped import WrappedFamily
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.nn.quantized import packed_layers
from sprachbund.nn.t5 import T5Decoder
from sprachbund.util.devices import CPU, check_kind, find_device
from sprachbund.util.options import OptionValueError
from sprachbund.util.processor import usable_cores

# Pooled frames.

MOST_POOLED = 4


class PooledFamily(WrappedFamily):
    """A family whose memories have one frame for every `size`; all else is that family's own.

    Args:
        family: not changed.
        size: frames that are averaged.
    """

    def __init__(self, family: Family, size: int) -> None:
        super().__init__(family)
        self._size = size

    def encode(self, features: Features) -> Memory:
        """Run the encoder and average its frames."""
        memory = self._family.encode(features)
        states, num_frames = pool(memory.states, memory.num_frames, self._size)
        return replace(memory, states=states, num_frames=num_frames)

    @property
    def frame_s(self) -> float:
        """Seconds of a memory frame: of so many of the family's."""
        return self._size * self._family.frame_s

    @property
    def capabilities(self) -> Capabilities:
        """The family's; words are aligned to the frames that the decoder reads."""
        able = self._family.capabilities
        if able.alignment is None:
            return able
        return replace(able, alignment=replace(able.alignment, frame_s=self._size * able.alignment.frame_s))


def pooled(family: Family, size: int) -> Family:
    """A family whose memories have one frame for every `size`; with 1 the family itself.

    Raises:
        OptionValueError: a size out of range, or a model whose frames are not read by the cross-attention of a decoder
            alone.
    """
    if not 1 <= size <= MOST_POOLED:
        raise OptionValueError("pool_frames", size, f"give 1, which keeps all, to {MOST_POOLED}")
    if size == 1:
        return family
    able = family.capabilities
    why = None
    if able.writes_by_frames or able.joint_ctc is not None:
        why = f"the text of {family.name} is made frame by frame, not by an attention decoder alone"
    elif able.reads_prefix:
        why = f"the language model of {family.name} reads each frame as a token of its own"
    if why is not None:
        raise OptionValueError(
            "pool_frames",
            size,
            "give 1, or take a whisper, conformer or seamless model with an attention decoder alone",
            reason=f"and {why}",
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


# The torch engine.


def on_torch(family: Family, precision: Precision, *, cuda_graphs: bool = True) -> Family:
    """The family with its modules replaced; the original is left as it is.

    Args:
        family: family with its weights.
        precision: see `Precision`.
        cuda_graphs: see `TorchDecoder`.

    Raises:
        SprachbundError: a family without our decoder, or a precision that torch has no kernels for here.
    """
    if (reason := why_not_on_torch(family)) is not None:
        raise SprachbundError(f"the torch engine in {precision} cannot run {reason}; use the engine torch")
    encoder, decoder = family.capabilities.encoder, family.capabilities.decoder
    assert isinstance(family, nn.Module)
    assert encoder is not None
    assert isinstance(decoder, TextDecoder)
    on_cpu = decoder.positions.device.type == "cpu"

    def swap(module: nn.Module) -> nn.Module | None:
        if isinstance(module, TextDecoder) and not isinstance(module, T5Decoder):
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


def why_not_on_torch(family: Family) -> str | None:
    """Reason why the decoder of a family cannot be rearranged, for any precision; None where it can.

    Of T5's decoder the linear layers alone are exchanged: its positions are part of the scores.
    """
    encoder, decoder = family.capabilities.encoder, family.capabilities.decoder
    if (
        isinstance(family, nn.Module)
        and encoder is not None
        and isinstance(decoder, TextDecoder)
        and (isinstance(decoder, T5Decoder) or _computes_alike(decoder))
    ):
        return None
    return f"a decoder of the kind {type(decoder).__name__}"


def _on_cpu(family: Family) -> bool:
    """Whether a family that is a module computes on a CPU."""
    return not isinstance(family, nn.Module) or all(p.device.type == "cpu" for p in family.parameters())


def _computes_alike(decoder: TextDecoder) -> bool:
    """Whether a decoder does before and behind its layers what every other does; mBART's has a norm and a bias more."""
    return type(decoder).embedded is TextDecoder.embedded and decoder.logits_bias is None


def _first_in_bf16(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    read = given[0].to(torch.bfloat16) if given[0].is_floating_point() else given[0]  # or it is tokens
    return (read, *given[1:])


_TORCH: dict[EngineChoice, tuple[Precision, str]] = {
    "torch-fp32": ("fp32", "weights as the model has them, decoder rearranged"),
    "torch-bf16": ("bf16", "weights and computation in bf16"),
    "torch-int8": ("int8", "weights in 8 bits"),
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
        name: name of the choice: "native", "torch", or "torch" with a precision. What an engine cannot compute stays on
            torch; `parts` has who computes what.
        family: family that encodes, starts and steps with the engine.
        why: engine and threads that compute, and the reason for this engine.
        notes: sentences the user should see, such as about a damaged cache.
        warnings: sentences about an engine that was asked for and is slower here than plain torch.
        translator: translator of a cascade: the engine of its second half; the rest then says what computes the first.
    """

    name: EngineChoice
    family: Family
    why: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    translator: "Engine | None" = None

    def __str__(self) -> str:
        own = f"{self.name}, {self.why}"
        return own if self.translator is None else f"{own}; of the translator: {self.translator}"

    @property
    def parts(self) -> dict[str, str]:
        """Engine and precision of each part, see `sprachbund.engines.parts.parts_of`."""
        return parts_of(self.family)

    def as_dict(self) -> dict[str, Any]:
        """Name, reason and parts, as JSON output has them; of a cascade those of the translator too."""
        second = {} if self.translator is None else {"translator": self.translator.as_dict()}
        return {"name": self.name, "why": self.why, "parts": self.parts, **second}


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
    compare: bool = True,
) -> Engine:
    """An engine for a loaded family.

    Args:
        family: family with its weights.
        engine: "native" (int8 weights, CPU), "native-int4" (the same with `weights="int4"` among its options), "torch"
            (the model as it is), "torch-fp32", "torch-bf16" or "torch-int8" (torch in that precision, faster), or
            "auto": the fastest of them, `native-int4` excepted, by a short trial (`sprachbund.engines.trial`).
        threads: threads of the native engine. By default the number that the trial finds fastest, up to the cores that
            this process may use and the threads of torch. For "native" without a directory, as many as that.
        instruction_set: instruction set of the kernels, for tests; the best there is by default.
        directory: the model's; its packed weights are then kept and mapped, and the trial is remembered. Without it
            they are packed in memory, and every call with "auto" makes a trial. The halves of a cascade have their own.
        cache: folder of packed weights and trials; the user's cache directory by default.
        options: precision of the native engine; exact int8 weights by default.
        cuda_graphs: on a GPU, torch-fp32 and torch-bf16 record the decoder's steps as graphs.
        compare: compare an engine that is named with plain torch, to warn of a slow one; False for measurements, which
            the memory of another engine would disturb.

    Raises:
        SprachbundError: the native engine was asked for and cannot be had, options of it with another engine, or more
            threads than cores.
    """
    if isinstance(family, Cascade):  # by its class: another one is made of the engines of both halves
        halves = [
            engine_for(
                half,
                engine,
                threads=threads,
                instruction_set=instruction_set,
                directory=None if family.directories is None else family.directories[n],
                cache=cache,
                options=options,
                cuda_graphs=cuda_graphs,
                compare=compare,
            )
            for n, half in enumerate((family.recogniser, family.translator))
        ]
        return _joined(family, *halves)
    check_choice(engine, threads)
    options = options or NativeOptions()
    if engine == "native-int4":
        engine, options = "native", replace(options, weights="int4")
    if engine not in ("native", "auto"):
        _check_exact(options, f"the engine {engine}")
    if engine == "torch":
        return Engine(name="torch", family=widened(family), why="it was asked for", notes=_quota_notes())
    without_native = why_not_native(family)
    if engine == "native" and without_native is not None:
        raise SprachbundError(
            f"the native engine cannot run this model: {without_native}; use the torch engine"
        )
    if without_native is not None:
        _check_exact(options, f"torch, since {without_native},")
    builder = _Builder(
        family=family,
        options=options,
        kernels=None if without_native else choose_instruction_set(instruction_set),
        directory=directory,
        cache=cache or packed_cache.default_cache(),
        cuda_graphs=cuda_graphs,
    )
    if engine == "auto":
        return _automatic(builder, threads, without_native)
    return _named(builder, engine, threads, compare)


def _joined(cascade: Cascade, recogniser: Engine, translator: Engine) -> Engine:
    """The engine of a cascade, made of those of its halves."""
    return replace(
        recogniser,
        family=Cascade(recogniser.family, translator.family, cascade.directories),
        notes=(*recogniser.notes, *translator.notes),
        warnings=(*recogniser.warnings, *translator.warnings),
        translator=translator,
    )


def widened(family: Family) -> Family:
    """The family with weights in 32 bits where they were kept as stored; in place.

    Raises:
        SprachbundError: they do not fit into memory.
    """
    if not family.capabilities.as_stored or not isinstance(family, nn.Module):
        return family
    narrow = [p for p in family.parameters() if p.itemsize < torch.float32.itemsize]
    if narrow and narrow[0].device.type == CPU:
        check_memory(sum(p.numel() for p in narrow) * torch.float32.itemsize, f"the model {family.name}")
    return family.float()


# Engines that `auto` chooses from, the exact ones first: a trial prefers the first of equal ones.
_EXACT: tuple[EngineChoice, ...] = ("torch", "torch-fp32")
_ROUNDED: tuple[EngineChoice, ...] = ("native", "torch-bf16", "torch-int8")
_SLOWER = 1.05
"""An engine that takes so many times as long as plain torch is slower, and not by noise."""


@dataclass(kw_only=True)
class _Builder:
    """Builds the engines of a family.

    Attributes:
        family: family with its weights.
        options: options of the native engine.
        kernels: name of the native kernels; None where they cannot run the family.
        directory: directory of the model, or none.
        cache: cache of packed weights and trials.
        cuda_graphs: see `on_torch`.
        notes: warnings about the packed weights.
    """

    family: Family
    options: NativeOptions
    kernels: str | None
    directory: Path | None
    cache: Path
    cuda_graphs: bool
    notes: list[str] = field(default_factory=list)

    def build(self, engine: EngineChoice, threads: int | None = None) -> Family:
        """The family computed by an engine."""
        if engine == "torch":
            return widened(self.family)
        if engine in _TORCH:
            return on_torch(widened(self.family), _TORCH[engine][0], cuda_graphs=self.cuda_graphs)
        assert self.kernels is not None
        assert threads is not None
        team = native().Team(threads)
        native_family = with_native_modules(self.family, self._packed, team, self.kernels, self.options)
        return widened(native_family)  # what the kernels do not compute

    @cached_property
    def _packed(self) -> Packed:
        weights = self.options.weights
        if self.directory is None:
            return in_large_pages(pack(self.family, weights))
        packed, notes = packed_for(self.directory, lambda: pack(self.family, weights), self.cache, weights)
        self.notes += notes
        return packed

    def detail(self, engine: EngineChoice, threads: int | None) -> str:
        """Description of the computation."""
        if engine in _TORCH:
            return f"torch, {_TORCH[engine][1]}"
        if engine == "torch":
            return "weights and computation as the model has them"
        detail = f"{self.kernels} kernels, {threads} thread{'s' * (threads != 1)}, "
        detail += f"{self.options.weights} {native_parts_of(self.family)}"
        return detail + "; keys and values of the speech in int8" * (self.options.memory == "int8")

    def candidates(self, engines: Sequence[EngineChoice], threads: int | None) -> list[Candidate]:
        """One for each engine; of the native one for each number of threads, if none is given."""
        made = []
        weights = 0
        if isinstance(self.family, nn.Module):
            least = torch.float32.itemsize if self.family.capabilities.as_stored else 1
            weights = sum(p.numel() * max(p.itemsize, least) for p in self.family.parameters())
        for engine in engines:
            counts = [threads] if threads is not None else thread_counts(choose_threads(None))
            for number in counts if engine == "native" else [None]:
                build = partial(self.build, engine, number)
                num_bytes = round(weights * _SHARE_OF_FP32.get(engine, 1.0))
                made.append(Candidate(engine=engine, build=build, num_bytes=num_bytes, threads=number))
        return made

    def trial(
        self, engine: EngineChoice, threads: int | None, candidates: Sequence[Candidate]
    ) -> tuple[Trial, Family | None]:
        """The trial that is remembered, or one made now; the fastest family if it was built now.

        Args:
            engine: engine that was asked for.
            threads: threads that were asked for.
            candidates: candidates that are tried.
        """
        if self.directory is None:
            return try_candidates(candidates)
        file = TrialFile(
            folder=self.cache,
            kernels=self.kernels,
            model=fingerprint(self.directory, self.cache),
            asked=f"{engine} {threads or 'any'} threads, {self.options}",
        )
        if (known := file.read()) is not None:
            return known, None
        trial, family = try_candidates(candidates)
        try:
            file.write(trial)
        except OSError as error:
            self.notes.append(f"the choice of the engine could not be kept ({error}); each start tries again")
        return trial, family


_SHARE_OF_FP32: dict[EngineChoice, float] = {"torch-bf16": 0.5, "torch-int8": 0.3, "native": 0.3}
"""Memory of an engine's weights in that of the model's, about."""


def _automatic(builder: _Builder, threads: int | None, without_native: str | None) -> Engine:
    """The fastest engine that can run the family here."""
    if builder.options != NativeOptions():  # options that only the native engine has
        return _named(builder, "native", threads, compare=True)
    family, able = builder.family, builder.family.capabilities
    if builder.kernels and able.streaming is not None and packed_layers(able.streaming.encoder):
        # Unpacking takes several times as long as the products.
        own = builder.candidates(["native"], threads)[-1]
        detail = f"{builder.detail('native', own.threads)} (torch would unpack its weights at every chunk)"
        return Engine(name="native", family=own.build(), why=detail, notes=tuple(builder.notes))
    because = "" if without_native is None else f"the native engine cannot run this model: {without_native}"
    engines = [e for e in (*_EXACT, *_ROUNDED) if e != "native" or builder.kernels]
    if able.writes_by_frames:
        engines = [e for e in engines if e in ("torch", "native")]
        because = (
            because or "the model decodes frame by frame, and the other engines replace attention decoders"
        )
    elif why_not_on_torch(family) is not None or not _on_cpu(family):
        # Elsewhere than on a CPU nothing but plain torch was ever measured.
        engines = [e for e in engines if e not in _TORCH]
    if engines == ["torch"]:
        return Engine(name="torch", family=widened(family), why=because)
    candidates = builder.candidates(engines, threads)
    trial, built = builder.trial("auto", threads, candidates)
    chosen = next((c for c in candidates if c.name == trial.chosen), candidates[0])
    why = [_verdict(trial, chosen.name)]
    if because:
        why.append(because)
    return Engine(
        name=chosen.engine,
        family=chosen.build() if built is None else built,
        why=f"{builder.detail(chosen.engine, chosen.threads)} ({'; '.join(why)})",
        notes=(*builder.notes, *(() if chosen.engine == "native" else _quota_notes())),
    )


def _verdict(trial: Trial, chosen: str) -> str:
    """Reason for the choice, in a few words."""
    if trial.chosen is None:
        return f"no engine could be tried: {next(iter(trial.refused.values()))}"
    verdict = f"fastest of {len(trial.engines)} on this processor"
    ratio = trial.ratio("torch", chosen)
    if ratio is not None and chosen != "torch":
        verdict += f", {ratio:.1f} times as fast as torch"
    failed = (f"{engine} could not be tried: {reason}" for engine, reason in trial.failed.items())
    return "; ".join([verdict, *failed])


def _named(builder: _Builder, engine: EngineChoice, threads: int | None, compare: bool) -> Engine:
    """An engine that was asked for; with `compare`, a model directory's is timed beside plain torch, once."""
    own, warnings, built = builder.candidates([engine], threads), list[str](), None
    chosen = own[-1]
    if compare and builder.directory is not None and _on_cpu(builder.family):
        trial, family = builder.trial(engine, threads, [*builder.candidates(["torch"], None), *own])
        chosen = next((c for c in own if c.name == trial.fastest_of([c.name for c in own])), chosen)
        built = family if trial.chosen == chosen.name else None
        if (ratio := trial.ratio(chosen.name, "torch")) is not None and ratio > _SLOWER:
            warnings.append(
                f"the engine {engine} takes {ratio:.1f} times as long as torch on this processor; leave the engine out "
                "to have the fastest"
            )
    return Engine(
        name=engine,
        family=chosen.build() if built is None else built,
        why=builder.detail(engine, chosen.threads),
        notes=tuple(builder.notes),
        warnings=tuple(warnings),
    )


def on_same_engine(family: Family, other: Family, directory: Path | None = None) -> Family:
    """Another model on the engine of a family, with the same threads; for draft models.

    Args:
        family: family whose engine is meant.
        other: other family with its weights; given back as it is where the kernels cannot run it.
        directory: the other's; its packed weights are then kept and mapped.

    Raises:
        SprachbundError: the family is on torch in a precision in which the other cannot be run.
    """
    decoder = family.capabilities.decoder
    if isinstance(decoder, nn.Module) and (weight := next(decoder.parameters(), None)) is not None:
        other = move(other, str(weight.device))
    if isinstance(decoder, TorchDecoder):
        return on_torch(other, decoder.precision)
    if not isinstance(decoder, NativeDecoder) or why_not_family(other) is not None:
        return other
    weights = decoder.options.weights
    if directory is None:
        packed = in_large_pages(pack(other, weights))
    else:
        packed, _ = packed_for(directory, lambda: pack(other, weights), weights=weights)
    return with_native_modules(other, packed, decoder.team, decoder.instruction_set, decoder.options)


def _quota_notes() -> tuple[str, ...]:
    """Advice where torch has more threads than this process may keep busy."""
    threads, cores = torch.get_num_threads(), usable_cores()
    if threads <= cores:
        return ()
    return (
        f"torch computes with {threads} threads, and this process may use {cores} core{'s' * (cores != 1)}; it is "
        f"faster after torch.set_num_threads({cores}), or with OMP_NUM_THREADS={cores} in the environment",
    )


def _check_exact(options: NativeOptions, computes: str) -> None:
    """Raise a SprachbundError where options of the native engine would be lost."""
    asked = [f"{f.name}={value!r}" for f in fields(options) if (value := vars(options)[f.name]) != f.default]
    if asked:
        raise SprachbundError(f"{' and '.join(asked)} is for the native engine; {computes} has not got it")


def why_not_native(family: Family) -> str | None:
    """Reason why the native engine cannot run a family here; None when it can."""
    if reason := missing_because():
        return reason
    return why_not_family(family)


def check_choice(engine: EngineChoice, threads: int | None, device: str = CPU) -> None:
    """Refuse what `engine_for` would, as far as possible without a model.

    Args:
        engine: asked for.
        threads: asked for, or none.
        device: device that the model is to be on.

    Raises:
        OptionValueError: the engine, the threads or the device, and what there is here.
    """
    if engine not in CHOICES:
        raise OptionValueError("engine", engine, f"choose one of {', '.join(CHOICES)}")
    find_device(device)
    check_kind(device, ENGINE_DEVICES[engine], f"the engine {engine}")
    if engine in NATIVE and (reason := missing_because()) is not None:
        raise OptionValueError("engine", engine, f"{reason}, or use the torch engine")
    if engine in (*NATIVE, "auto"):
        instruction_sets()
    choose_threads(threads)


def choose_threads(wanted: int | None) -> int:
    """The number of threads to use: that wanted, or those of torch, as far as this process may use so many cores.

    Raises:
        OptionValueError: fewer than one, or more than there are cores.
    """
    if wanted is None:
        return min(torch.get_num_threads(), usable_cores())
    cores = os.cpu_count() or 1
    if not 1 <= wanted <= cores:
        raise OptionValueError(
            "threads", wanted, f"give 1 to {cores}", reason=f"and this machine has {cores} cores"
        )
    return wanted

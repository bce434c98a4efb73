"""Gradient sketches of a checkpoint, language by language, resumable and shared out among processes.

The vectors are numbered, and each is a function of its number alone. They are kept in blocks in a folder until all are
made, so an interrupted collection continues with the missing blocks. Every process, of this machine or started by
torchrun on several, loads the model and makes the blocks of its own numbers. Processes exchange nothing but files, so
machines need a common file system. Gradients stay on the model's device: each tensor is made short there while the
backward pass goes on. Shapes: N vectors of a language, d dimensions of a sketch.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError, first_line
from sprachbund.models.io import load
from sprachbund.nn.feed_forward import Branch, FeedForward
from sprachbund.research.gradient_sharing.collect_options import CollectOptions, Cost, Granularity
from sprachbund.research.gradient_sharing.gradients import (
    Fits,
    GradientExample,
    GradientRow,
    Objective,
    Projection,
    check_decoder,
    choose_modules,
    choose_rows,
    counted_tensors,
    decoder_loss,
    fits,
    make_projection,
    probing,
    stream_gradients,
)
from sprachbund.research.gradient_sharing.sketches import Sketches
from sprachbund.util.begun import refuse_others
from sprachbund.util.computing import Computing
from sprachbund.util.distributed import own_device
from sprachbund.util.files import read_object, write_text
from sprachbund.util.jobs import gpus_of, run
from sprachbund.util.memory import keep_freed_memory
from sprachbund.util.progress import Progress, nothing
from sprachbund.util.tensors import load_arrays, write_arrays

# Finished vectors on disk, block by block.

SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Block:
    """Vectors that are made together and kept in one file.

    Attributes:
        key: language or pair.
        vectors: their numbers.
        path: path of the file, there when they are made.
    """

    key: str
    vectors: range
    path: Path

    @property
    def made(self) -> bool:
        """Whether the block is finished."""
        return self.path.exists()

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays by name."""
        write_arrays(self.path, arrays)

    def read(self) -> dict[str, np.ndarray]:
        """The arrays. Raises SprachbundError when they are not there or broken."""
        if not self.made:
            raise SprachbundError(f"{self.path} is missing; run the command again, it goes on")
        return load_arrays(self.path, advice="delete it, and run the command again")


def divide(keys: Sequence[str], num_vectors: int, size: int, directory: Path) -> Iterator[Block]:
    """Blocks of at most `size` vectors, `num_vectors` for every key.

    Args:
        keys: languages, or pairs, of the vectors.
        num_vectors: vectors of each key.
        size: vectors in a block at most.
        directory: folder of the blocks.
    """
    number = 0
    for key in keys:
        for start in range(0, num_vectors, size):
            vectors = range(start, min(start + size, num_vectors))
            yield Block(key=key, vectors=vectors, path=directory / f"block.{number:06d}.npz")
            number += 1


def begin(directory: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder, or see that it was begun with the same settings, so that two collections never mix.

    Raises:
        SprachbundError: begun with others; the first that differs is named.
    """
    path = directory / SETTINGS
    wanted = json.loads(json.dumps(settings))
    advice = f"delete {directory} or name another --out"
    known = read_object(path, advice=advice) if path.exists() else wanted
    refuse_others(directory, known, wanted, advice="delete it or name another --out")
    write_text(path, json.dumps(wanted, indent=1))


_WHAT: Mapping[Granularity, str] = {
    "source": "one language",
    "target": "one language written",
    "pair": "one pair",
}
_SECONDS = "seconds"
_PROBE = 1 << 16
"""Coordinates that the projection is timed on."""


class Collection:
    """A collection of sketches, prepared.

    Args:
        model: satisfies the objective; the default one needs a family with a text decoder.
        manifests: the data.
        options: see `CollectOptions`.
        parts: folder that keeps finished blocks.
        identity: further facts that the result depends on, such as the model's hash.
        objective: the loss that is differentiated.
        fits: whether the model takes an utterance.

    Raises:
        SprachbundError: a model without a text decoder, a pattern without a module, a language unknown or with too few
            utterances, or a folder begun with other settings.
    """

    def __init__(
        self,
        model: Any,
        manifests: Sequence[Manifest],
        options: CollectOptions,
        parts: Path,
        *,
        identity: Mapping[str, Any] | None = None,
        objective: Objective = decoder_loss,
        fits: Fits = fits,
    ) -> None:
        self.model, self.manifests, self.options, self.parts = model, manifests, options, parts
        self.objective, self.identity = objective, dict(identity or {})
        if objective is decoder_loss:
            check_decoder(model)
        side = "decoder" if options.by == "target" else "encoder"
        self.modules = choose_modules(model, options.modules, whole_layers=options.whole_layers, side=side)
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for inside in self.modules.values() for name, parameter in inside.items()
        }
        self.num_coordinates = sum(p.numel() for p in self.parameters.values())
        chosen = choose_rows(
            model,
            manifests,
            by=options.by,
            count=options.utterances,
            seed=options.seed,
            languages=options.languages,
            targets=options.targets,
            fits=fits,
        )
        self.rows, self.passed_over = chosen.rows, chosen.passed_over
        self.projection: Projection = make_projection(options.projection, options.dimensions, options.seed)
        size = self.projection.block(self.num_coordinates)
        self.blocks = list(divide(list(self.rows), options.vectors, size, parts))
        begin(parts, self._settings())

    def check_languages(self) -> None:
        """Check that there are languages to compare, before minutes of passes.

        Raises:
            SprachbundError: there is one alone.
        """
        if len(self.rows) < 2:
            raise SprachbundError(
                f"there is {_WHAT[self.options.by]} only, {next(iter(self.rows))}; conflict needs two: add data of "
                "another, or name more with --languages"
            )

    def cost(self) -> Cost:
        """Return the cost of the passes that are left; makes two passes to measure the time of one."""
        options = self.options
        left = sum(len(block.vectors) for block in self.blocks if not block.made)
        vectors = len(self.rows) * options.vectors
        block = len(self.blocks[0].vectors)
        # Vectors that wait for the others of their block, and the sum of passes; one tensor's copies come on top.
        held = block - 1 + (options.accumulate > 1)
        largest = max(p.numel() for p in self.parameters.values())
        per_vector = options.accumulate * self._pass_s() + self._projection_s(block) if left else 0.0
        return Cost(
            passes=self.passes,
            passes_left=left * options.accumulate,
            parameters=self.num_coordinates,
            seconds=left * per_vector,
            file_bytes=4 * vectors * len(self.modules) * options.dimensions,
            memory_bytes=4 * (held * self.num_coordinates + 3 * largest),
        )

    def run(
        self,
        share: tuple[int, int] = (0, 1),
        *,
        progress: Progress = nothing,
    ) -> None:
        """Make the blocks that are missing, of them every `share[1]`-th from number `share[0]` on.

        Args:
            share: rank and number of processes.
            progress: called with passes made and passes in all, other processes' among them.

        Raises:
            SprachbundError: a gradient that is zero or not finite; the language and the module are named.
        """
        with probing(self.model, self.parameters.values()):
            for block in self.blocks[share[0] :: share[1]]:
                if not block.made:
                    made = self.passes_made
                    self._make(block, lambda inside, made=made: progress(made + inside, self.passes))  # type: ignore[misc]

    def make(self, number: int, progress: Callable[[int], None]) -> None:
        """Make a block.

        Args:
            number: number of the block.
            progress: called with the passes made for it.
        """
        with probing(self.model, self.parameters.values()):
            self._make(self.blocks[number], progress)

    @property
    def passes(self) -> int:
        """Forward and backward, in all."""
        return len(self.rows) * self.options.vectors * self.options.accumulate

    @property
    def passes_made(self) -> int:
        """Passes made by all processes, in finished blocks."""
        return sum(len(block.vectors) for block in self.blocks if block.made) * self.options.accumulate

    def sketches(self, info: Mapping[str, Any] | None = None) -> Sketches:
        """All vectors, when all blocks are there, and how they were made.

        Raises:
            SprachbundError: a block is missing or broken.
        """
        sketched: dict[str, dict[str, list[np.ndarray]]] = {
            m: {k: [] for k in self.rows} for m in self.modules
        }
        seconds = 0.0
        for block in self.blocks:
            arrays = block.read()
            seconds += float(arrays.pop(_SECONDS))
            for module, array in arrays.items():
                sketched[module][block.key].append(array)
        vectors = {m: {k: np.concatenate(parts) for k, parts in keys.items()} for m, keys in sketched.items()}
        return Sketches(vectors=vectors, info={**self._info(seconds), **(info or {})})

    def _settings(self) -> dict[str, Any]:
        """Settings that the vectors depend on."""
        digest = hashlib.sha256()
        for key, rows in self.rows.items():
            for row in rows:
                digest.update(f"{key}\0{row.id}\0{row.target}\n".encode())
        chosen = {"modules": list(self.modules), "chosen": digest.hexdigest()}
        return {**asdict(self.options), **self.identity, **chosen}

    def _make(self, block: Block, progress: Callable[[int], None]) -> None:
        began = time.monotonic()
        waiting: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        norms: dict[str, float] = {}
        sketches: dict[str, np.ndarray] = {}
        counted: dict[str, list[list[str]]] = {module: [] for module in self.modules}

        def take(name: str, gradient: Tensor) -> None:
            """Make a gradient short as soon as all vectors of the block have theirs, so that it need not be kept."""
            if gradient.device.type == "mps":  # which has no float64
                gradient = gradient.cpu()
            norms[name] = norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
            waiting[name].append(gradient / norm if norm else gradient)
            if len(waiting[name]) == len(block.vectors):
                sketches[name] = self.projection.project(name, waiting.pop(name))

        for number, vector in enumerate(block.vectors, start=1):
            batches = self._batches(block.key, vector)
            stream_gradients(self.model, batches, self.parameters, take, self.objective)
            for module, inside in self.modules.items():
                own = {name: norms[name] for name in inside}
                counted[module].append(counted_tensors(own, f"{block.key}, {module}"))
            progress(number * self.options.accumulate)
        arrays = {module: _summed(sketches, names) for module, names in counted.items()}
        block.write({**arrays, _SECONDS: np.array(time.monotonic() - began)})

    def _batches(self, key: str, vector: int) -> Iterator[list[GradientExample]]:
        size, accumulate = self.options.batch, self.options.accumulate
        for number in range(vector * accumulate, (vector + 1) * accumulate):
            rows: Sequence[GradientRow] = self.rows[key][number * size : (number + 1) * size]
            yield [row.read(self.manifests) for row in rows]

    def _pass_s(self) -> float:
        batch = next(self._batches(next(iter(self.rows)), 0))
        with probing(self.model, self.parameters.values()):
            for _ in range(2):  # the first one warms up
                began = time.monotonic()
                stream_gradients(
                    self.model, [batch], self.parameters, lambda name, gradient: None, self.objective
                )
        return time.monotonic() - began

    def _projection_s(self, block: int) -> float:
        """Of a vector, from a few of its coordinates."""
        device = next(iter(self.parameters.values())).device
        probe = torch.ones(block, min(_PROBE, self.num_coordinates), device=device)
        self.projection.project("", list(probe[:, :1]))
        began = time.monotonic()
        self.projection.project("", list(probe))
        return (time.monotonic() - began) * self.num_coordinates / probe.shape[1] / block

    def _info(self, seconds: float) -> dict[str, Any]:
        options, modules = self.options, dict(self.model.named_modules())
        widths = {
            name: module.expand.out_features
            for name in self.modules
            if isinstance(module := modules[name], FeedForward | Branch)
        }
        cost = {"passes": self.passes, "seconds": round(seconds, 1), "parameters": self.num_coordinates}
        return {
            "seed": options.seed,
            "granularity": "pair" if options.by == "pair" else "language",
            "side": {name: _side(name, options.by) for name in self.modules},
            "inner_width": widths,
            "num_utterances": {key: len(rows) for key, rows in self.rows.items()},
            "passed_over": dict(self.passed_over),
            "targets": sorted({row.target for rows in self.rows.values() for row in rows}),
            "projection": options.projection,
            "dimensions": options.dimensions,
            "batch": options.batch,
            "accumulate": options.accumulate,
            "cost": cost,
            **self.identity,
        }


def _summed(sketches: Mapping[str, np.ndarray], counted: Sequence[Sequence[str]]) -> np.ndarray:
    """Sketches (N, d) of a module, of length one: for each vector, the sum over the tensors that count."""
    summed = np.stack(
        [np.sum([sketches[name][vector] for name in names], axis=0) for vector, names in enumerate(counted)]
    )
    sketch: np.ndarray = (summed / np.linalg.norm(summed, axis=1, keepdims=True)).astype(np.float32)
    return sketch


def _side(module: str, by: Granularity) -> str:
    if by != "pair":
        return by
    return "target" if module.split(".")[0] == "decoder" else "source"


# Sharing a collection out among processes.


@dataclass(frozen=True, kw_only=True)
class CollectJob:
    """A collection that any process can prepare for itself.

    Attributes:
        model: path of a model directory, or its name.
        data: corpora.
        options: see `CollectOptions`.
        parts: folder that keeps finished blocks.
        identity: further facts that the result depends on.
        device: device to compute on, as torch names it.
        threads: threads to compute with in each process.
    """

    model: str
    data: tuple[Path, ...]
    options: CollectOptions
    parts: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 1

    def prepare(self) -> Collection:
        """Load what it needs. Raises SprachbundError as `Collection` does, or for a device that is not there."""
        import torch

        torch.set_num_threads(self.threads)
        keep_freed_memory()
        model: Any = load(self.model)
        # Of several processes that torchrun started here, each has a GPU of its own.
        device = own_device() if self.device == "cuda" and torch.cuda.is_available() else self.device
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise SprachbundError(
                f"device {self.device!r} cannot be used ({first_line(error)}); try cpu"
            ) from error
        manifests = [Manifest(path) for path in self.data]
        return Collection(model, manifests, self.options, self.parts, identity=self.identity)


@dataclass(frozen=True, kw_only=True)
class RankedProcess:
    """This process among those that were started from outside.

    Attributes:
        rank: rank of this process, from 0.
        count: count of processes.
        wait: returns when all of them have called it.
    """

    rank: int
    count: int
    wait: Callable[[], object]


@contextmanager
def shared() -> Iterator[RankedProcess]:
    """This process among those of torchrun; alone without it."""
    from torch import distributed

    if not distributed.is_torchelastic_launched():
        yield RankedProcess(rank=0, count=1, wait=lambda: None)
        return
    distributed.init_process_group("gloo")
    try:
        yield RankedProcess(
            rank=distributed.get_rank(), count=distributed.get_world_size(), wait=distributed.barrier
        )
    finally:
        distributed.destroy_process_group()


def run_job(
    job: CollectJob,
    collection: Collection,
    computing: Computing,
    progress: Progress,
    *,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Make all blocks of a job with several processes, of this machine or of a Ray cluster.

    Args:
        job: job that every process prepares for itself.
        collection: the same, prepared here, to watch.
        computing: processes; their threads are the job's.
        progress: called with passes made and passes in all.
        share: rank and number of the processes that were started from outside.

    Raises:
        SprachbundError: the error of the first process that failed, or that one died.
    """
    numbers = tuple(range(len(collection.blocks)))[share[0] :: share[1]]
    passes = [(collection.blocks[n].path, len(collection.blocks[n].vectors)) for n in numbers]
    files = tuple((path, count * job.options.accumulate) for path, count in passes)
    run(
        _Blocks(job=job, numbers=numbers, files=files),
        workers=computing.workers,
        ray_address=computing.ray,
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """Blocks of a collection; a `sprachbund.util.jobs.Job`."""

    job: CollectJob
    numbers: tuple[int, ...]
    files: tuple[tuple[Path, int], ...]

    @property
    def threads(self) -> int:
        return self.job.threads

    @property
    def gpus(self) -> int:
        return gpus_of(self.job.device)

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        collection = self.job.prepare()
        return lambda number, progress: collection.make(self.numbers[number], progress)

"""Gradient sketches of a checkpoint, language by language: the evidence that everything in this room works on.

The vectors are numbered, each a function of its number alone, and kept in blocks in a folder until all are there. So
a collection that was killed goes on with the blocks that are missing, processes and machines share them out by
number, and the vectors come out the same. Shapes: N vectors of a language, d dimensions of a sketch.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.data.manifest import Manifest
from sprachbund.sharing.blocks import Block, begin, divide
from sprachbund.sharing.collect_options import CollectOptions, Cost
from sprachbund.sharing.gradients import (
    Objective,
    Spoken,
    choose_modules,
    decoder_loss,
    gradients,
    normalised,
    probing,
)
from sprachbund.sharing.projection import Projection, make_projection
from sprachbund.sharing.sketches import Sketches
from sprachbund.sharing.utterances import Fits, Granularity, Row, choose_rows, fits

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
        identity: whatever else decides the result, such as the model's hash.
        objective: the loss that is differentiated.
        fits: whether the model takes an utterance.

    Raises:
        SprachbundError: a pattern without a module, a language with too few utterances or unknown, or a folder
            begun with other settings.
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

    def cost(self) -> Cost:
        """What is left to do; makes two passes to see how long one takes."""
        options = self.options
        left = sum(len(block.vectors) for block in self.blocks if not block.made)
        vectors = len(self.rows) * options.vectors
        block = len(self.blocks[0].vectors)
        per_vector = options.accumulate * self._pass_s() + self._projection_s(block) if left else 0.0
        return Cost(
            passes=self.passes,
            passes_left=left * options.accumulate,
            parameters=self.num_coordinates,
            seconds=left * per_vector,
            file_bytes=4 * vectors * len(self.modules) * options.dimensions,
            memory_bytes=4 * self.num_coordinates * (block + 2),
        )

    def run(
        self,
        share: tuple[int, int] = (0, 1),
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
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
                    self._make(block, progress)

    @property
    def passes(self) -> int:
        """Forward and backward, in all."""
        return len(self.rows) * self.options.vectors * self.options.accumulate

    @property
    def passes_made(self) -> int:
        """By all processes, in finished blocks."""
        return sum(len(block.vectors) for block in self.blocks if block.made) * self.options.accumulate

    def sketches(self, info: Mapping[str, Any] | None = None) -> Sketches:
        """All vectors, when all blocks are there, and how they were made.

        Raises:
            SprachbundError: a block is missing or broken.
        """
        found: dict[str, dict[str, list[np.ndarray]]] = {m: {k: [] for k in self.rows} for m in self.modules}
        seconds = 0.0
        for block in self.blocks:
            arrays = block.read()
            seconds += float(arrays.pop(_SECONDS))
            for module, array in arrays.items():
                found[module][block.key].append(array)
        vectors = {m: {k: np.concatenate(parts) for k, parts in keys.items()} for m, keys in found.items()}
        return Sketches(vectors=vectors, info={**self._info(seconds), **(info or {})})

    def _settings(self) -> dict[str, Any]:
        """All that decides the vectors."""
        digest = hashlib.sha256()
        for key, rows in self.rows.items():
            for row in rows:
                digest.update(f"{key}\0{row.id}\0{row.target}\n".encode())
        chosen = {"modules": list(self.modules), "chosen": digest.hexdigest()}
        return {**asdict(self.options), **self.identity, **chosen}

    def _make(self, block: Block, progress: Callable[[int, int], None]) -> None:
        began, made = time.monotonic(), self.passes_made
        held: dict[str, dict[str, list[Tensor]]] = {m: {n: [] for n in p} for m, p in self.modules.items()}
        for number, vector in enumerate(block.vectors, start=1):
            batches = self._batches(block.key, vector)
            gradient = gradients(self.model, batches, self.parameters, self.objective)
            for module, waiting in held.items():
                for name, tensor in normalised(gradient, waiting, f"{block.key}, {module}").items():
                    waiting[name].append(tensor)
            progress(made + number * self.options.accumulate, self.passes)
        arrays = {module: self._project(waiting) for module, waiting in held.items()}
        block.write({**arrays, _SECONDS: np.array(time.monotonic() - began)})

    def _project(self, tensors: Mapping[str, Sequence[Tensor]]) -> np.ndarray:
        """Sketches (N, d) of a module: the sum over its tensors' sketches, of length one."""
        sketches = [self.projection.project(n, torch.stack(list(t)).numpy()) for n, t in tensors.items()]
        summed = np.sum(sketches, axis=0)
        sketch: np.ndarray = (summed / np.linalg.norm(summed, axis=1, keepdims=True)).astype(np.float32)
        return sketch

    def _batches(self, key: str, vector: int) -> Iterator[list[Spoken]]:
        size, accumulate = self.options.batch, self.options.accumulate
        for number in range(vector * accumulate, (vector + 1) * accumulate):
            rows: Sequence[Row] = self.rows[key][number * size : (number + 1) * size]
            yield [row.read(self.manifests) for row in rows]

    def _pass_s(self) -> float:
        batch = next(self._batches(next(iter(self.rows)), 0))
        with probing(self.model, self.parameters.values()):
            for _ in range(2):  # the first one warms up
                began = time.monotonic()
                gradients(self.model, [batch], self.parameters, self.objective)
        return time.monotonic() - began

    def _projection_s(self, block: int) -> float:
        """Of a vector, from a few of its coordinates."""
        probe = np.ones((block, min(_PROBE, self.num_coordinates)), np.float32)
        self.projection.project("", probe[:, :1])
        began = time.monotonic()
        self.projection.project("", probe)
        return (time.monotonic() - began) * self.num_coordinates / probe.shape[1] / block

    def _info(self, seconds: float) -> dict[str, Any]:
        options, modules = self.options, dict(self.model.named_modules())
        widths = {
            name: getattr(getattr(modules[name], "expand", None), "out_features", None)
            for name in self.modules
        }
        cost = {"passes": self.passes, "seconds": round(seconds, 1), "parameters": self.num_coordinates}
        return {
            "seed": options.seed,
            "granularity": "pair" if options.by == "pair" else "language",
            "side": {name: _side(name, options.by) for name in self.modules},
            "inner_width": {name: width for name, width in widths.items() if width is not None},
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


def _side(module: str, by: Granularity) -> str:
    if by != "pair":
        return by
    return "target" if module.split(".")[0] == "decoder" else "source"

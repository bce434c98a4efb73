"""Steps of the torch engine recorded as CUDA graphs: one launch in place of some hundred small ones.

A graph repeats kernels on the same addresses, so all that a step reads and writes has to stay in place and nothing may
be asked of the device meanwhile. Shapes: R rows, Q tokens per step, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Logits = Callable[[Tensor, Tensor], Tensor]
"""Logits (R, Q, V) after tokens (R, Q) in rows that hold `lengths` (R,) already; nothing is read from the host."""

PLAIN_STEPS = 4
"""Of so many tokens at once with a cache before they are recorded: recording takes about as long as some steps."""
_WARM_UPS = 3


class RecordedStep:
    """A step as a CUDA graph, with buffers of its own for what goes in.

    Args:
        step: to be recorded; may be repeated without harm.
        tokens: (R, Q) on the device, as later calls give them.
        lengths: (R,) as later calls give them.
    """

    def __init__(self, step: Logits, tokens: Tensor, lengths: Tensor) -> None:
        self._tokens, self._lengths = tokens.clone(), lengths.clone()
        beside = torch.cuda.Stream(tokens.device)
        beside.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(beside):  # libraries allocate what they need at their first call
            for _ in range(_WARM_UPS):
                step(self._tokens, self._lengths)
        torch.cuda.current_stream(tokens.device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # What other threads do on the device meanwhile, such as loading a model, is no part of it and no error.
        capture = torch.cuda.graph(self._graph, capture_error_mode="thread_local")
        with torch.cuda.device(tokens.device), capture:
            self._logits = step(self._tokens, self._lengths)

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (R, Q, V); the caller's own, the next call does not write to them."""
        self._tokens.copy_(tokens)
        self._lengths.copy_(lengths)
        self._graph.replay()
        return self._logits.clone()


@dataclass(kw_only=True)
class Recorder:
    """The recorded steps of one cache, by the number of tokens at once; `forget` them when its tensors move.

    Attributes:
        record: makes a recorded step of a step; another one in tests, where there is no GPU.
    """

    record: Callable[[Logits, Tensor, Tensor], Logits] = RecordedStep
    _seen: dict[int, int] = field(default_factory=dict)
    _recorded: dict[int, Logits] = field(default_factory=dict)

    def run(self, step: Logits, tokens: Tensor, lengths: Tensor) -> Tensor | None:
        """Logits (R, Q, V) by a recorded step; None as long as there were too few of its kind."""
        num_queries = tokens.shape[1]
        if num_queries not in self._recorded:
            self._seen[num_queries] = self._seen.get(num_queries, 0) + 1
            if self._seen[num_queries] <= PLAIN_STEPS:
                return None
            self._recorded[num_queries] = self.record(step, tokens, lengths)
        return self._recorded[num_queries](tokens, lengths)

    def forget(self) -> None:
        """Tensors of the cache were exchanged for others: record anew."""
        self._seen.clear()
        self._recorded.clear()

"""Fewer frames for the decoder to read: neighbours in the encoder's memory are averaged. It changes the text.

A step reads the keys and values of every frame, which is most of what a small decoder reads with the memory of a long
window. No model was trained on averaged frames, so this is for those who measure what it costs them. Shapes: B
memories, T frames, D width.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family, Features, Memory

MOST_POOLED = 4


def pooled(family: Family, size: int) -> Family:
    """A copy of a family whose memories have one frame for every `size`; with 1 the family itself.

    Raises:
        SprachbundError: a size out of range.
    """
    if not 1 <= size <= MOST_POOLED:
        raise SprachbundError(f"{size} frames are to be averaged; give 1, which keeps all, to {MOST_POOLED}")
    if size == 1:
        return family
    copied: Any = copy.copy(family)

    def encode(features: Features) -> Memory:
        memory = family.encode(features)
        states, num_frames = pool(memory.states, memory.num_frames, size)
        return replace(memory, states=states, num_frames=num_frames)

    copied.encode = encode
    copied.memory_frame_s = size * family.frame_s
    return copied


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

"""A family with random weights and a vocabulary of letters, so that searches can be tested without trained
models.

Vocabulary: 0 end, 1 no-speech, 2.. one per language, then letters (each spelt " a", "b", ...), then
timestamps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Alignment, Capabilities, Features, Memory, Target, TimestampTokens
from sprachbund.models.calibration import Calibration
from sprachbund.nn.decoder import DecoderCache, TextDecoder

LANGUAGES = ("de", "en", "fr")
HOP = 1600  # a frame is 0.1 s


class TinyFamily(nn.Module):
    name = "tiny"
    source_languages = LANGUAGES
    end_token = 0
    frame_s = 0.1

    def __init__(
        self,
        *,
        num_letters: int = 12,
        max_tokens: int = 24,
        num_times: int = 0,
        num_behind: int = 0,
        seed: int = 0,
        sharpness: float = 6.0,
        max_window_s: float = 5.0,
        begin_suppressed: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.first_letter = 2 + len(LANGUAGES)
        self.first_time = self.first_letter + num_letters
        self.times_stop = self.first_time + num_times
        self.vocabulary_size = self.times_stop + num_behind
        self.max_tokens, self.max_window_s = max_tokens, max_window_s
        self.known_pairs = frozenset((s, t) for s in LANGUAGES for t in LANGUAGES)
        self.sharpness = sharpness
        generator = torch.Generator().manual_seed(seed)
        self.decoder = TextDecoder(
            vocabulary_size=self.vocabulary_size, max_tokens=max_tokens, width=16, num_heads=2, num_layers=2
        ).eval()
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
            self.decoder.positions.mul_(3.0)
        self.projection = torch.randn(HOP, 16, generator=generator)
        times = (
            TimestampTokens(first=self.first_time, stop=self.times_stop, step_s=self.frame_s)
            if num_times
            else None
        )
        self.capabilities = Capabilities(
            timestamps=times,
            alignment=Alignment(frame_s=self.frame_s),
            begin_suppressed=tuple(begin_suppressed),
            reads_context=True,
        )
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self.steps: list[tuple[int, int]] = []

    @property
    def capabilities(self) -> Capabilities:
        """Those that were set, so that a test can make another family of it; a copy shows its own decoder."""
        return replace(self._capabilities, decoder=self.decoder)

    @capabilities.setter
    def capabilities(self, capabilities: Capabilities) -> None:
        self._capabilities = capabilities

    def pairs(self) -> frozenset[tuple[str, str]]:
        return self.known_pairs

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        frames = [max(1, len(s) // HOP) for s in samples]
        values = torch.zeros(len(samples), max(frames), HOP)
        for row, (s, n) in enumerate(zip(samples, frames, strict=True)):
            flat = torch.zeros(n * HOP)
            flat[: min(len(s), n * HOP)] = torch.from_numpy(np.asarray(s[: n * HOP], np.float32))
            values[row, :n] = flat.view(n, HOP)
        return Features(values=values, num_frames=torch.tensor(frames))

    def encode(self, features: Features) -> Memory:
        states = torch.tanh(features.values @ self.projection)
        return Memory(states=states, num_frames=features.num_frames)

    def language_log_probs(self, memory: Memory) -> Tensor:
        assert memory.num_frames is not None
        pooled = torch.stack([s[:n].mean(0) for s, n in zip(memory.states, memory.num_frames, strict=True)])
        return (pooled[:, : len(LANGUAGES)] * 30).log_softmax(-1)

    def prompt(self, target: Target) -> list[int]:
        if target.source is not None and (target.source, target.language) not in self.known_pairs:
            raise SprachbundError(f"{target.source} to {target.language}")
        context = [self.first_letter + ord(c) % (self.first_time - self.first_letter) for c in target.context]
        source = [] if target.source is None else [2 + LANGUAGES.index(target.source)]
        return [*context, 2 + LANGUAGES.index(target.language), *source]

    def start(
        self,
        memory: Memory,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        targets: Sequence[Target] | None = None,
    ) -> DecoderCache:
        return self.decoder.start(
            memory.states, memory.num_frames, rows_per_memory=rows_per_memory, capacity=capacity
        )

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        self.steps.append((tokens.shape[0], tokens.shape[1]))
        return self.decoder.step(tokens, cache, weights) * self.sharpness

    def suppressed(self, target: Target) -> Tensor:
        special = list(range(1, self.first_letter))
        times = [] if target.timestamps else list(range(self.first_time, self.times_stop))
        return self._mask(special + times)

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        return logits.log_softmax(-1)[:, 1]

    def decode_text(self, tokens: Sequence[int]) -> str:
        letters = [t - self.first_letter for t in tokens if self.first_letter <= t < self.first_time]
        return "".join((" " if n % 2 else "") + chr(ord("a") + n) for n in letters)

    def _mask(self, tokens: Sequence[int]) -> Tensor:
        mask = torch.zeros(self.vocabulary_size, dtype=torch.bool)
        mask[list(tokens)] = True
        return mask


def random_memory(num_frames: Sequence[int], seed: int = 0) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(len(num_frames), max(num_frames), 16, generator=generator)
    return Memory(states=states, num_frames=torch.tensor(list(num_frames)))


def one_memory(memory: Memory, index: int) -> Memory:
    assert memory.num_frames is not None
    n = int(memory.num_frames[index])
    return Memory(
        states=memory.states[index : index + 1, :n], num_frames=memory.num_frames[index : index + 1]
    )

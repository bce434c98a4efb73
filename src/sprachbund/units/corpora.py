"""Utterances of several corpora as one list, chosen by their ids, cut into blocks that are made one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.manifest import Manifest, Utterance
from sprachbund.errors import SprachbundError


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which utterances of which corpora; a value that any process can open.

    Attributes:
        data: directories of corpora.
        share: of each corpus's utterances; a smaller share is part of a larger one.
        languages: of the speech; all if empty.
    """

    data: tuple[Path, ...]
    share: float = 1.0
    languages: tuple[str, ...] = ()

    @cached_property
    def manifests(self) -> list[Manifest]:
        """The corpora, of each the share. Raises SprachbundError for one that is not there or lacks a language."""
        return [self._open(path) for path in self.data]

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Corpus and number of every utterance."""
        return [(c, i) for c, manifest in enumerate(self.manifests) for i in range(len(manifest))]

    @property
    def num_samples(self) -> np.ndarray:
        """Length of every utterance (N,)."""
        seconds = np.concatenate([manifest.durations_s for manifest in self.manifests]).astype(np.float64)
        return np.round(seconds * SAMPLE_RATE).astype(np.int64)

    @property
    def hours(self) -> float:
        """Of all utterances."""
        return float(sum(manifest.durations_s.sum(dtype=np.float64) for manifest in self.manifests)) / 3600

    def utterance(self, number: int) -> Utterance:
        """One of them, without its sound."""
        corpus, index = self.places[number]
        return self.manifests[corpus][index]

    def samples(self, number: int) -> np.ndarray:
        """Sound of one of them, (num_samples,) float32 at 16 kHz."""
        corpus, index = self.places[number]
        return self.manifests[corpus].samples(index)

    def __getstate__(self) -> dict[str, object]:
        """Only what was given: other processes open the corpora for themselves."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def _open(self, path: Path) -> Manifest:
        manifest = Manifest(path)
        known = set(manifest.languages.tolist())
        if unknown := sorted(set(self.languages) - known):
            raise SprachbundError(
                f"{path} holds no speech in {', '.join(unknown)}; it holds {', '.join(sorted(known))}"
            )
        if self.share == 1 and not self.languages:
            return manifest
        wanted = set(self.languages) or known
        return Manifest(path, shares={tag: self.share if tag in wanted else 0.0 for tag in known})


def blocks(num_utterances: int, size: int) -> Sequence[range]:
    """Numbers of utterances that are made together."""
    return [range(start, min(start + size, num_utterances)) for start in range(0, num_utterances, size)]

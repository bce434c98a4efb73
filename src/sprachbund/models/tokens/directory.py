"""A directory of units: centroids, SentencePiece models, and whose features they are made of, all named by hash.

`sprachbund units fit` writes it, and a model directory holds a copy. Shapes: N frames, K clusters, D width.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.sources import SourceInfo
from sprachbund.models.tokens.unit_options import FitOptions
from sprachbund.models.tokens.vocabulary import JointVocabulary
from sprachbund.util.files import file_sha256, read_model, write_bytes, write_json
from sprachbund.util.tensors import load_array, write_array

CONFIG, KMEANS, MODEL = "units.json", "kmeans.npy", ".model"
MADE_BY = "sprachbund units fit"
_CHUNK = 1 << 14


class Identity(BaseModel):
    """The identity of units: two files go together when it is the same.

    Attributes:
        kmeans: hash of the centroids.
        vocabulary: hash of the SentencePiece models.
        sample_rate: sample rate of the speech.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kmeans: str
    vocabulary: str
    sample_rate: int

    def check(self, other: "Identity", where: str, *, strings_only: bool = False) -> None:
        """Check that something made with `other` can be used with this.

        Args:
            other: identity of that.
            where: name of that, for the message.
            strings_only: whether only strings of units are used of that, which no vocabulary has touched.

        Raises:
            SprachbundError: units of another k-means, vocabulary or sampling rate.
        """
        if difference := self.difference(other, strings_only=strings_only):
            raise SprachbundError(f"{where} is of {difference}; encode the speech again with these units")

    def difference(self, other: "Identity", *, strings_only: bool = False) -> str | None:
        """The first thing in which another differs, in words; see `check`."""
        for name, said in (
            ("kmeans", "k-means"),
            ("vocabulary", "vocabulary"),
            ("sample_rate", "sampling rate"),
        ):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs and not (strings_only and name == "vocabulary"):
                return f"another {said} ({_short(theirs)}, wanted {_short(ours)})"
        return None


class CorpusInfo(BaseModel):
    """A corpus that was used: where it was, the hash of its cuts, and how many utterances of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: str
    hash: str
    utterances: int


class UnitsConfig(BaseModel):
    """The description of a directory of units, written beside its files.

    Attributes:
        format: format of this directory.
        source: source whose features the centroids are made of.
        options: as they were given.
        languages: languages that have a token.
        data: corpora, of each the share that was used.
        num_frames: frames that k-means saw.
        num_steps: batches that k-means took.
        explained: share of the features' variance that the clusters explain.
        no_frames: utterances that were too short for a frame.
        mean_length_ratio: pieces of units for each piece of transcript; None without transcripts.
        files: hash of each file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    source: SourceInfo
    options: FitOptions
    languages: tuple[str, ...]
    data: tuple[CorpusInfo, ...]
    num_frames: int
    num_steps: int
    explained: float
    no_frames: tuple[str, ...]
    mean_length_ratio: float | None
    files: dict[str, str]


class Units:
    """Units that were made, ready for use.

    Args:
        directory: as `fit` writes it.

    Raises:
        SprachbundError: no such directory, or a file that is not the one its hash names.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.config = read_model(self.directory / CONFIG, UnitsConfig, advice=f"make it with `{MADE_BY}`")
        if KMEANS not in self.config.files:
            raise SprachbundError(
                f"{self.directory / CONFIG}: files lacks {KMEANS}; copy the directory again, whole"
            )
        for name, wanted in self.config.files.items():
            path = self.directory / name
            try:
                same = path.is_file() and file_sha256(path) == wanted
            except OSError as error:
                raise SprachbundError(f"{path} cannot be read ({error.strerror}); mend that") from error
            if not same:
                what = (
                    "is missing" if not path.is_file() else "is not the file that was made with these units"
                )
                raise SprachbundError(f"{path} {what}; copy the directory again, whole")

    @cached_property
    def centroids(self) -> np.ndarray:
        """(K, D) float32."""
        path, advice = self.directory / KMEANS, "copy the directory again, whole"
        centroids = load_array(path, advice=advice)
        wanted = (self.num_clusters, self.config.source.width)
        if centroids.shape != wanted or centroids.dtype != np.float32 or not np.isfinite(centroids).all():
            raise SprachbundError(
                f"{path} holds {centroids.dtype} {centroids.shape}, not {wanted} finite numbers of float32; {advice}"
            )
        return centroids

    @cached_property
    def vocabulary(self) -> JointVocabulary:
        """Text and units as ids."""
        names = [name for name in self.config.files if name.endswith(MODEL)]
        models = {name.removesuffix(MODEL): (self.directory / name).read_bytes() for name in names}
        return JointVocabulary(models, self.num_clusters, self.config.languages)

    @property
    def num_clusters(self) -> int:
        """Number K of clusters."""
        return self.config.options.kmeans.clusters

    @property
    def identity(self) -> Identity:
        """Identity of the units: k-means, vocabulary and sampling rate."""
        return identity_of(self.config)


def nearest(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest of centroids (K, D) for each frame (N, D): int64 (N,), the first of several that are equal."""
    half_norms = 0.5 * np.einsum("kd,kd->k", centroids, centroids)
    chunks = [frames[start : start + _CHUNK] for start in range(0, len(frames), _CHUNK)]
    labels = [np.argmin(half_norms - chunk @ centroids.T, axis=1) for chunk in chunks]
    return np.concatenate(labels) if labels else np.zeros(0, np.int64)


def identity_of(config: UnitsConfig) -> Identity:
    """The identity of what a configuration names."""
    models = {name: value for name, value in config.files.items() if name.endswith(MODEL)}
    vocabulary = hashlib.sha256(json.dumps([models, config.languages], sort_keys=True).encode())
    return Identity(
        kmeans=config.files[KMEANS],
        vocabulary=vocabulary.hexdigest(),
        sample_rate=config.source.sample_rate,
    )


def write_units(
    directory: Path, config: UnitsConfig, centroids: np.ndarray, models: Mapping[str, bytes]
) -> Units:
    """Write centroids (K, D), SentencePiece models by name, and last the configuration, which makes it whole.

    Args:
        directory: folder of the units.
        config: their configuration.
        centroids: (K, D).
        models: bytes of SentencePiece models by file name.
    """
    write_array(directory / KMEANS, centroids)
    for name, model in models.items():
        write_bytes(directory / (name + MODEL), model)
    names = [KMEANS, *(name + MODEL for name in models)]
    hashes = {name: file_sha256(directory / name) for name in names}
    write_json(directory / CONFIG, config.model_copy(update={"files": hashes}))
    return Units(directory)


def _short(value: object) -> str:
    return str(value)[:12]

"""States of frozen encoder layers, computed once and read in every epoch.

Where the first layers of an encoder do not move and the sound is the same in every epoch, so are the states behind
those layers. They are computed once, kept in a file of the run's folder, and training begins behind them: an epoch then
costs what the layers that move cost. Shapes: T frames behind the subsampling, D width, U utterances.
"""

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sprachbund.data.batch import Augment
from sprachbund.data.loading import Corpus, ExampleOptions, Examples
from sprachbund.data.manifest import Manifest, Utterances
from sprachbund.errors import SprachbundError
from sprachbund.nn.conformer import ConformerEncoder
from sprachbund.util.distributed import first_rank_first, own_device
from sprachbund.util.files import atomic_path
from sprachbund.util.progress import Progress, Report, nothing
from sprachbund.util.tensors import load_arrays

FOLDER = "states"
_BATCH_S = 60.0
"""Sound that is encoded at a time."""
_DTYPE = np.float32


class States:
    """The states of a corpus, in a file that is read as they are asked for.

    Args:
        path: path of the states (N, D), utterance behind utterance; its index is beside it.

    Raises:
        SprachbundError: one of both files is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        advice = f"delete {path.parent}, and the run makes it again"
        index = load_arrays(_index(path), advice=advice)
        if index.keys() != {"starts", "lengths", "width"}:
            raise SprachbundError(f"{_index(path)} is no index of states; {advice}")
        self._starts, self._lengths, self._width = index["starts"], index["lengths"], int(index["width"])
        self._path = path
        num_bytes = int(self._lengths.sum()) * self._width * _DTYPE().itemsize
        own_bytes = path.stat().st_size if path.exists() else 0
        if own_bytes != num_bytes:
            raise SprachbundError(f"{path} has {own_bytes:,} bytes and not {num_bytes:,}; {advice}")

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Tensor:
        """States (T, D) of an utterance."""
        start, length = int(self._starts[index]), int(self._lengths[index])
        offset = start * self._width * _DTYPE().itemsize
        values = np.fromfile(self._path, _DTYPE, length * self._width, offset=offset)
        return torch.from_numpy(values.reshape(length, self._width))


class CachedCorpus(Corpus):
    """A corpus whose features are states.

    Args:
        parts: as of `Corpus`, of manifests alone.
        examples: as of `Corpus`.
        options: as of `Corpus`, with neither masks nor speeds.
        states: states of every manifest.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Utterances, float]],
        examples: Examples,
        options: ExampleOptions,
        states: Sequence[States],
    ) -> None:
        super().__init__(parts, examples, options)
        self._states = states

    def _features(self, number: int, index: int, speed: float, augment: Augment) -> tuple[Tensor, int]:
        states = self._states[number][index]
        return states, len(states)


def check_cacheable(model: Any, options: ExampleOptions, sources: Sequence[object]) -> None:
    """Check that the states would be the same in every epoch.

    Args:
        model: model that is trained.
        options: options of making an example of an utterance.
        sources: corpora.

    Raises:
        SprachbundError: sound that is changed or drawn anew in every epoch, or a family of another encoder.
    """
    if type(model.encoder) is not ConformerEncoder:
        raise SprachbundError(
            f"cache_states is for conformers that do not stream, and this is a {model.name} model; leave it out"
        )
    if set(options.speeds) != {1.0} or options.time_masks or options.frequency_masks:
        raise SprachbundError(
            "cache_states keeps what the encoder makes of the sound, so the sound has to stay the same: set "
            "examples.speeds = [1.0], examples.time_masks = 0 and examples.frequency_masks = 0"
        )
    if not all(isinstance(source, Manifest) for source in sources):
        raise SprachbundError(
            "cache_states is for corpora on disk; the data are tar shards or are drawn anew in every epoch"
        )


def first_moving_layer(model: nn.Module, encoder: ConformerEncoder, trainable: Sequence[str]) -> int:
    """The first encoder layer that is trained; as many as there are if none is.

    Args:
        model: model that is trained; parameters that need no gradient do not move.
        encoder: encoder of the model.
        trainable: patterns of the names of those that move; all if empty.

    Raises:
        SprachbundError: parameters before the first layer, or of that layer itself, move.
    """
    moving = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (not trainable or any(fnmatchcase(name, p) for p in trainable))
    }
    parts = [name.split(".") for name, parameter in encoder.named_parameters() if id(parameter) in moving]
    first = min((int(part[1]) if part[0] == "layers" else 0 for part in parts), default=len(encoder.layers))
    if first == 0:
        raise SprachbundError(
            "cache_states needs first encoder layers that do not move; name those that do, as in "
            'training.trainable = ["encoder.layers.7.*", "decoder.*"]'
        )
    return first


def cached_corpus(
    encoder: nn.Module,
    corpus: Corpus,
    directory: Path,
    *,
    num_workers: int = 0,
    report: Report = print,
) -> CachedCorpus:
    """A corpus as states of all its manifests, from the folder or computed now; of several processes, by the first.

    Args:
        encoder: as of `cached_states`.
        corpus: corpus of manifests alone.
        directory: keeps the files.
        num_workers: processes that make features.
        report: takes the lines.
    """
    with first_rank_first():
        states = [
            cached_states(
                encoder, corpus.examples, manifest, directory, num_workers=num_workers, report=report
            )
            for manifest in corpus.manifests
        ]
    parts = [*zip(corpus.manifests, corpus.repeats, strict=True)]
    return CachedCorpus(parts, corpus.examples, corpus.options, states)


def cached_states(
    encoder: nn.Module,
    examples: Examples,
    manifest: Utterances,
    directory: Path,
    *,
    num_workers: int = 0,
    report: Report = print,
    progress: Progress = nothing,
) -> States:
    """The states of a corpus, from the folder or computed now.

    Args:
        encoder: from features (B, F, M) and their numbers of frames (B,) to states (B, T, D) and theirs, such as
            `ConformerEncoder.before` the layer that moves. Its name and weights say which files are its own.
        examples: make the features.
        manifest: the corpus.
        directory: keeps the files; one of other weights or utterances is not taken for them.
        num_workers: processes that make features, which take longer than the encoder does on a GPU; 0 makes them in
            this one.
        report: is called with a line before the work, and one behind it.
        progress: called with utterances done and utterances in all.
    """
    path = directory / f"{_digest(encoder, manifest)}.f32"
    if not _index(path).exists():
        report(f"frozen layers: states of {len(manifest)} utterances of {manifest.directory}")
        _write(encoder, examples, manifest, path, num_workers, progress)
        report(f"{path.stat().st_size / 1e6:,.0f} MB of states in {directory}")
    return States(path)


def _index(path: Path) -> Path:
    return path.with_suffix(".npz")


def _digest(encoder: nn.Module, manifest: Utterances) -> str:
    """Of the weights, and of what is heard."""
    digest = hashlib.sha256(
        f"{encoder._get_name()} {manifest.directory.resolve()} {manifest.content_hash()}".encode()
    )
    digest.update(manifest.durations_s.tobytes())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Features(Dataset[tuple[Tensor, int]]):
    """Features of the utterances of a corpus, by index."""

    def __init__(self, examples: Examples, manifest: Utterances) -> None:
        self._examples, self._manifest = examples, manifest

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._examples.features(self._manifest.samples(index), lambda features: features)


def _padded(features: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Features (B, F, M) and their numbers of frames (B,)."""
    values = nn.utils.rnn.pad_sequence([values for values, _ in features], batch_first=True)
    return values, torch.tensor([count for _, count in features])


@torch.inference_mode()
def _write(
    encoder: nn.Module,
    examples: Examples,
    manifest: Utterances,
    path: Path,
    num_workers: int,
    progress: Progress,
) -> None:
    """The file of states and its index, which is written last; computed on the device that trains."""
    before, device = next(encoder.parameters()).device, own_device()
    encoder.to(device)
    was_training = encoder.training
    encoder.eval()
    starts = np.zeros(len(manifest), np.int64)
    lengths = np.zeros(len(manifest), np.int64)
    written = done = width = 0
    plan = _batches(manifest.durations_s)
    loader: DataLoader[tuple[Tensor, int]] = DataLoader(
        _Features(examples, manifest), batch_sampler=plan, num_workers=num_workers, collate_fn=_padded
    )
    with atomic_path(path) as partial, partial.open("wb") as file:
        for batch, (padded, counts) in zip(plan, loader, strict=True):
            states, num_frames = encoder(padded.to(device), counts.to(device))
            for index, values, count in zip(batch, states.float().cpu(), num_frames.tolist(), strict=True):
                file.write(values[:count].numpy().astype(_DTYPE).tobytes())
                starts[index], lengths[index] = written, count
                written += count
            width = states.shape[-1]
            done += len(batch)
            progress(done, len(manifest))
    encoder.to(before).train(was_training)
    with atomic_path(_index(path)) as partial, partial.open("wb") as file:
        np.savez(file, starts=starts, lengths=lengths, width=width)


def _batches(durations_s: np.ndarray) -> list[list[int]]:
    """Indices of utterances of about the same length, so many that they fill a batch."""
    order = np.argsort(durations_s, kind="stable")
    batches, batch = list[list[int]](), list[int]()
    for index in order.tolist():
        if batch and durations_s[index] * (len(batch) + 1) > _BATCH_S:
            batches.append(batch)
            batch = []
        batch.append(index)
    return [*batches, batch] if batch else batches

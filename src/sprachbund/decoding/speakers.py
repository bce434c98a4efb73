"""Speaker diarisation: labels of segments, by a model that turns speech into a vector of its speaker, and clustering.

The model is an ONNX file of WeSpeaker or 3D-Speaker (Kaldi's 80 log-mel features in, a vector out), or another of that
form. Windows of 1.5 s become vectors; those nearer to each other than to others, by the cosine, are of one speaker
(agglomerative clustering, average linkage), and a segment has the speaker of most of its windows. Nobody is recognised:
labels say who is the same within a recording.

Shapes: N samples, T frames, M mel bins, W windows, E width of a vector.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import AudioSource
from sprachbund.errors import SprachbundError, first_line
from sprachbund.models.download import download

WINDOW_S, HOP_S = 1.5, 0.75
LEAST_S = 0.4
"""Speech that is shorter tells no voice, and has no speaker."""
SAME_SPEAKER = 0.5
"""Mean cosine of two clusters from which on they are of one speaker."""
_MOST_WINDOWS = 6000
"""Whose distances are held, 144 MB; of longer recordings, windows lie further apart."""
_BINS = 80
_FULL_SCALE = 32_768.0

Vectors = NDArray[np.float32]


# Log-mel features as Kaldi computes them, which speaker models were trained with.

_FRAME, _SHIFT, _POINTS = 400, 160, 512
"""Samples of a frame, 25 ms, and from one to the next, 10 ms; points of the transform."""
_LOWEST_HZ = 20.0
_EMPHASIS = 0.97
_FLOOR = float(np.finfo(np.float32).eps)


def kaldi_fbank(samples: NDArray[np.float32], num_bins: int = 80) -> NDArray[np.float32]:
    """Natural logarithms of mel energies (T, `num_bins`), a frame every 10 ms; without dither.

    Frames of 25 ms lie whole inside the sound; each loses its mean, is emphasised, and is seen through Povey's window
    (a Hann window to the power of 0.85).

    Args:
        samples: (N,), at 16 kHz; in whole numbers of 16 bits, as Kaldi takes them, or otherwise scaled: that adds a
            constant.
        num_bins: mel bins from 20 Hz to 8 kHz.
    """
    count = 1 + (len(samples) - _FRAME) // _SHIFT if len(samples) >= _FRAME else 0
    if count == 0:
        return np.zeros((0, num_bins), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), _FRAME)[::_SHIFT][:count]
    frames = frames - frames.mean(1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = (0.5 - 0.5 * np.cos(2 * math.pi * np.arange(_FRAME) / (_FRAME - 1))) ** 0.85
    power = np.abs(np.fft.rfft((frames - _EMPHASIS * before) * window, _POINTS)) ** 2
    energies = power[:, :-1] @ _filters(num_bins).T
    return np.log(np.maximum(energies, _FLOOR)).astype(np.float32)


def _filters(num_bins: int) -> NDArray[np.float64]:
    """Triangles on the mel scale (M, bins of the transform without the last)."""
    edges = np.linspace(_mel(_LOWEST_HZ), _mel(SAMPLE_RATE / 2), num_bins + 2)
    mels = _mel(np.arange(_POINTS // 2) * SAMPLE_RATE / _POINTS)
    left, centre, right = (edges[n : n + num_bins, None] for n in range(3))
    filters: NDArray[np.float64] = np.maximum(
        0.0, np.minimum((mels - left) / (centre - left), (right - mels) / (right - centre))
    )
    return filters


def _mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz) / 700.0))


# The model.


class SpeakerEncoder:
    """A model of speakers' voices, run by ONNX Runtime.

    Args:
        path: an ONNX file with one input, features (B, T, 80), and one output, vectors (B, E).

    Raises:
        SprachbundError: no such file, no such graph, or one of other features.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        if not path.is_file():
            raise SprachbundError(f"there is no speaker model {path}; check the path")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own kinds
            raise SprachbundError(f"{path} is no ONNX model that can be run; copy it again") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        # A dimension that is not fixed has a name, or none.
        fits = len(shape) == 3 and (shape[2] == _BINS or not isinstance(shape[2], int))
        if len(outputs) != 1 or not fits:
            raise SprachbundError(
                f"{path} takes {[one.shape for one in inputs]} and gives {len(outputs)} outputs; a speaker model takes "
                f"features (batch, frames, {_BINS}) and gives vectors"
            )
        said = self._session.get_modelmeta().custom_metadata_map
        for key, values in (
            ("sample_rate", (str(SAMPLE_RATE),)),
            ("framework", ("wespeaker", "3d-speaker", "3dspeaker")),
            ("feature_normalize_type", ("global-mean",)),
        ):
            if key in said and said[key] not in values:
                raise SprachbundError(
                    f"{path} says {key} is {said[key][:40]!r}; speaker models with {values[0]!r} are run here"
                )
        self._scale = 1.0 if said.get("normalize_samples") == "1" else _FULL_SCALE
        self._input: str = inputs[0].name
        self._path = path

    def vector(self, samples: NDArray[np.float32]) -> Vectors:
        """The voice (E,) in 16 kHz samples (N,), of length 1.

        Raises:
            SprachbundError: the graph fails, or gives something else than numbers.
        """
        features = kaldi_fbank(samples * np.float32(self._scale), _BINS)
        features = features - features.mean(0, keepdims=True)
        try:
            (output,) = self._session.run(None, {self._input: features[None]})
        except Exception as error:
            raise SprachbundError(
                f"{self._path} cannot be run on features ({first_line(error)[:80]})"
            ) from error
        vector: Vectors = np.asarray(output, np.float32).reshape(-1)
        length = float(np.linalg.norm(vector))
        if not np.isfinite(vector).all() or length == 0:
            raise SprachbundError(f"{self._path} gives a vector that is no number or nought; copy it again")
        return vector / length


def load_speakers(path_or_id: str | os.PathLike[str], *, offline: bool = False) -> SpeakerEncoder:
    """A speaker model.

    Args:
        path_or_id: an ONNX file, a folder with one, or the name of a model on the Hugging Face hub.
        offline: never use the network.

    Raises:
        SprachbundError: there is none, several, or one of another form.
    """
    path = Path(path_or_id)
    if os.path.isfile(path):
        return SpeakerEncoder(path)
    name = str(path_or_id)
    if not os.path.isdir(path):
        if path.suffix or name.count("/") != 1:
            raise SprachbundError(f"there is no speaker model {name}; check the path")
        path = download(name, ["*.onnx"], offline=offline, progress=None)
    files = sorted(path.rglob("*.onnx"))
    if len(files) != 1:
        what = (
            f"{len(files)} ONNX files ({', '.join(file.name for file in files[:4])})"
            if files
            else "no ONNX file"
        )
        raise SprachbundError(f"{name} has {what}; give the path of one")
    return SpeakerEncoder(files[0])


# Labels.


@dataclass(frozen=True, kw_only=True)
class _Window:
    span: int
    start_s: float
    end_s: float


def label_speakers(
    encoder: SpeakerEncoder,
    audio: AudioSource,
    spans: Sequence[tuple[float, float]],
    num_speakers: int | None = None,
) -> list[str | None]:
    """The speaker of each span, "S1" for the one who speaks first; None of one that is too short to tell.

    Args:
        encoder: encoder of voices.
        audio: the recording, which is read once more.
        spans: seconds from and to.
        num_speakers: number of speakers; found by `SAME_SPEAKER` if None.

    Raises:
        SprachbundError: scipy is missing, or the recording cannot be read again.
    """
    windows = _windows(spans)
    if not windows:
        return [None] * len(spans)
    clusters = cluster(_vectors(encoder, audio, windows), num_speakers)
    heard: list[Counter[int]] = [Counter() for _ in spans]
    for window, number in zip(windows, clusters, strict=True):
        heard[window.span][number] += 1
    names: dict[int, str] = {}
    labels: list[str | None] = [None] * len(spans)
    for index in sorted(range(len(spans)), key=spans.__getitem__):
        if heard[index]:
            number = heard[index].most_common(1)[0][0]
            labels[index] = names.setdefault(number, f"S{len(names) + 1}")
    return labels


def _windows(spans: Sequence[tuple[float, float]]) -> list[_Window]:
    """Windows of all spans, in order of time."""
    speech_s = sum(end_s - start_s for start_s, end_s in spans)
    hop_s = max(HOP_S, speech_s / _MOST_WINDOWS)
    windows = []
    for index, (start_s, end_s) in enumerate(spans):
        if end_s - start_s < LEAST_S:
            continue
        count = max(1, 1 + int((end_s - start_s - WINDOW_S) / hop_s + 1e-9))
        for number in range(count):
            begin_s = start_s + number * hop_s
            windows.append(_Window(span=index, start_s=begin_s, end_s=min(begin_s + WINDOW_S, end_s)))
    return sorted(windows, key=lambda window: window.start_s)


def _vectors(encoder: SpeakerEncoder, audio: AudioSource, windows: Sequence[_Window]) -> Vectors:
    """Voices (W, E) in windows, while the recording goes by block by block."""
    vectors: list[Vectors] = []
    held, first = np.zeros(0, np.float32), 0  # samples, and the number of the first of them
    blocks = audio.blocks()
    for window in windows:
        begin, end = (round(second * SAMPLE_RATE) for second in (window.start_s, window.end_s))
        while first + len(held) < end and (block := next(blocks, None)) is not None:
            kept = max(0, min(len(held), begin - first))
            held, first = np.concatenate([held[kept:], block]), first + kept
        samples = held[max(0, begin - first) : end - first]
        shortest = round(LEAST_S * SAMPLE_RATE)
        if len(samples) < shortest:  # the last window of a recording that ends within it
            samples = np.pad(samples, (0, shortest - len(samples)))
        vectors.append(encoder.vector(samples))
    return np.stack(vectors)


def cluster(vectors: Vectors, num_speakers: int | None = None) -> list[int]:
    """Number of the speaker of each vector (W, E) of length 1, by agglomerative clustering with average linkage.

    Args:
        vectors: voices.
        num_speakers: number of clusters to leave; if None, clusters are joined while their mean cosine is
            `SAME_SPEAKER` or more.

    Raises:
        SprachbundError: scipy is missing.
    """
    if len(vectors) == 1:
        return [0]
    try:
        from scipy.cluster.hierarchy import fcluster, linkage
    except ImportError as error:
        raise SprachbundError(
            "labels of speakers need the package scipy; run: pip install 'sprachbund[speakers]'"
        ) from error
    tree = linkage(vectors, method="average", metric="cosine")
    if num_speakers is None:
        numbers = fcluster(tree, 1.0 - SAME_SPEAKER, criterion="distance")
    else:
        numbers = fcluster(tree, num_speakers, criterion="maxclust")
    return [int(number) for number in numbers]

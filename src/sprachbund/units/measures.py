"""How good units are, and how small: purity, mutual information, bits, bytes, lengths beside text.

Purity and normalised mutual information as arXiv 2106.07447, section 5.1, has them; bits per second after
arXiv 2102.01192. Shapes: K clusters, Y labels (phones or characters).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sprachbund.audio.constants import HOP, SAMPLE_RATE
from sprachbund.units.alignment import NOTHING, Aligner, shuffled
from sprachbund.units.directory import Units
from sprachbund.units.encoded import Encoded, UnitUtterance
from sprachbund.units.lengths import TooLong, check_ratio, ctc_places, subsampled
from sprachbund.units.strings import expand, to_units

MEL_BINS = 80
_BYTES = 4  # of float32


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How clusters and labels of frames go together.

    Attributes:
        label_purity: chance to name a frame's label right by its cluster's most frequent one.
        cluster_purity: chance to name a frame's cluster right by its label's most frequent one.
        pnmi: share of the labels' uncertainty (entropy) that the clusters take away.
    """

    label_purity: float
    cluster_purity: float
    pnmi: float


def agreement(counts: np.ndarray) -> Agreement:
    """Of frames counted by cluster and label (K, Y)."""
    joint = counts / max(1, counts.sum())
    of_cluster, of_label = joint.sum(1), joint.sum(0)
    information = _entropy(of_cluster) + _entropy(of_label) - _entropy(joint)
    return Agreement(
        label_purity=float(joint.max(1).sum()),
        cluster_purity=float(joint.max(0).sum()),
        pnmi=float(information / _entropy(of_label)) if (of_label > 0).sum() > 1 else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What units take.

    Attributes:
        units_per_s: repeats removed.
        pieces_per_s: of the vocabulary.
        bits_per_s: of units, by how often each occurs; where they begin is not counted.
        flat_bits_per_s: of units, log2 K each.
        piece_bits_per_s: of pieces, by how often each occurs.
        stored_bytes: of the units as characters in UTF-8.
        file_bytes: of the shards, with durations and texts.
        log_mel_bytes: of log-mel features of the same speech, 80 bins a hundred times a second in float32.
        audio_bytes: of the same speech with 16 bits a sample.
        log_mel_ratio: log-mel against units as characters.
        log_mel_file_ratio: log-mel against the shards.
    """

    units_per_s: float
    pieces_per_s: float
    bits_per_s: float
    flat_bits_per_s: float
    piece_bits_per_s: float
    stored_bytes: int
    file_bytes: int
    log_mel_bytes: int
    audio_bytes: int
    log_mel_ratio: float
    log_mel_file_ratio: float


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Speech beside its transcripts, in pieces, over utterances that have one.

    Attributes:
        ratio: by which text is made longer.
        unit_pieces: mean of an utterance.
        text_pieces: mean of an utterance, made longer.
        off: mean of text made longer, against units: 0.1 is 10% longer.
    """

    ratio: float
    unit_pieces: float
    text_pieces: float
    off: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All of it.

    Attributes:
        counts: frames by cluster and label (K, Y).
        labels: names of the labels.
        frames: number of frames by cluster (K,).
        runs: number of units by how many frames they last, from 1 on.
        against: what the labels are.
        unlabelled: frames without a label.
        agreement: of clusters and labels.
        by_chance: the same with each utterance's labels in another order.
        sizes: see `Sizes`.
        lengths: None without transcripts.
        too_long: targets that CTC cannot align with the units, by language.
        targets: rows by language.
        stride: of the encoder that CTC stands on.
        too_long_examples: a few of them.
    """

    counts: np.ndarray
    labels: list[str]
    frames: np.ndarray
    runs: np.ndarray
    against: str
    unlabelled: int
    agreement: Agreement
    by_chance: Agreement
    sizes: Sizes
    lengths: Lengths | None
    too_long: dict[str, int]
    targets: dict[str, int]
    stride: int
    too_long_examples: list[TooLong]

    def as_json(self) -> dict[str, Any]:
        """Numbers, without the tables."""
        used = self.frames[self.frames > 0] / max(1, self.frames.sum())
        return {
            "frames": int(self.frames.sum()),
            "clusters_used": len(used),
            "clusters": len(self.frames),
            "perplexity": round(float(2 ** _entropy(used)), 2),
            "against": self.against,
            "labels": len(self.labels),
            "unlabelled_frames": self.unlabelled,
            **{name: _rounded(getattr(self, name)) for name in ("agreement", "by_chance", "sizes")},
            "lengths": _rounded(self.lengths) if self.lengths else None,
            "ctc": {"stride": self.stride, "targets": self.targets, "too_long": self.too_long},
        }


class Measuring:
    """Counts over utterances, one at a time.

    Args:
        units: that they are made of.
        aligner: says what is said in each frame.
        stride: of the encoder that CTC stands on.
        ratio: by which text is made longer; the units' own mean ratio if None.
        seed: of the order in which labels are put for comparison.
    """

    def __init__(
        self, units: Units, aligner: Aligner, *, stride: int = 2, ratio: float | None = None, seed: int = 0
    ) -> None:
        self._units, self._aligner, self._stride = units, aligner, stride
        self._ratio = float(check_ratio(ratio or units.config.mean_length_ratio or 1))
        self._rng = np.random.default_rng(seed)
        clusters = units.num_clusters
        self._counts, self._chance = _Table(clusters), _Table(clusters)
        self._units_seen, self._frames = np.zeros(clusters, np.int64), np.zeros(clusters, np.int64)
        self._pieces = np.zeros(len(units.vocabulary), np.int64)
        self._runs = np.zeros(1, np.int64)
        self._unlabelled, self._seconds, self._stored = 0, 0.0, 0
        self._lengths: list[tuple[int, int]] = []
        self._targets: dict[str, int] = {}
        self._too_long: dict[str, int] = {}
        self._examples: list[TooLong] = []

    def add(self, utterance: UnitUtterance) -> None:
        """Count an utterance. Raises SprachbundError for units of another k-means."""
        units = to_units(utterance.units, self._units.num_clusters)
        durations = np.array(utterance.durations, np.int64)
        frames, labels = expand(units, durations), self._aligner.align(utterance)
        known = labels != NOTHING
        self._counts.add(frames[known], labels[known])
        chance = shuffled(labels, self._rng)
        self._chance.add(frames[chance != NOTHING], chance[chance != NOTHING])
        self._unlabelled += int((~known).sum())
        self._units_seen += np.bincount(units, minlength=len(self._units_seen))
        self._frames += np.bincount(frames, minlength=len(self._frames))
        self._runs = _sum(self._runs, np.bincount(durations))
        self._seconds += utterance.duration_s
        self._stored += len(utterance.units.encode())
        self._compare_lengths(utterance)

    def result(self, file_bytes: int) -> Measured:
        """All that was counted; `file_bytes` are those of the shards."""
        counts = self._counts.values(len(self._aligner.labels.numbers))
        return Measured(
            counts=counts,
            labels=list(self._aligner.labels.numbers),
            frames=self._frames,
            runs=self._runs[1:],
            against=self._aligner.kind,
            unlabelled=self._unlabelled,
            agreement=agreement(counts),
            by_chance=agreement(self._chance.values(counts.shape[1])),
            sizes=self._sizes(file_bytes),
            lengths=self._mean_lengths(),
            too_long=self._too_long,
            targets=self._targets,
            stride=self._stride,
            too_long_examples=self._examples,
        )

    def _compare_lengths(self, utterance: UnitUtterance) -> None:
        vocabulary = self._units.vocabulary
        pieces = vocabulary.encode_units(utterance.units)
        self._pieces += np.bincount(pieces, minlength=len(self._pieces))
        if utterance.text:
            self._lengths.append((len(pieces), len(vocabulary.encode_text(utterance.text))))
        available = subsampled(len(pieces), self._stride)
        for language, text in utterance.translations.items():
            needed = ctc_places(vocabulary.encode_text(text))
            self._targets[language] = self._targets.get(language, 0) + 1
            if needed > available:
                self._too_long[language] = self._too_long.get(language, 0) + 1
                name = f"{utterance.id} into {language}"
                if len(self._examples) < 5:
                    self._examples.append(TooLong(name=name, available=available, needed=needed))

    def _sizes(self, file_bytes: int) -> Sizes:
        seconds = max(self._seconds, 1e-9)
        log_mel = round(seconds * SAMPLE_RATE / HOP) * MEL_BINS * _BYTES
        num_units, num_pieces = int(self._units_seen.sum()), int(self._pieces.sum())
        return Sizes(
            units_per_s=num_units / seconds,
            pieces_per_s=num_pieces / seconds,
            bits_per_s=num_units * _entropy(self._units_seen / max(1, num_units)) / seconds,
            flat_bits_per_s=num_units * float(np.log2(len(self._units_seen))) / seconds,
            piece_bits_per_s=num_pieces * _entropy(self._pieces / max(1, num_pieces)) / seconds,
            stored_bytes=self._stored,
            file_bytes=file_bytes,
            log_mel_bytes=log_mel,
            audio_bytes=round(seconds * SAMPLE_RATE) * 2,
            log_mel_ratio=log_mel / max(1, self._stored),
            log_mel_file_ratio=log_mel / max(1, file_bytes),
        )

    def _mean_lengths(self) -> Lengths | None:
        if not self._lengths:
            return None
        units, text = np.mean(self._lengths, axis=0)
        longer = float(text * self._ratio)
        return Lengths(
            ratio=self._ratio,
            unit_pieces=float(units),
            text_pieces=longer,
            off=longer / max(float(units), 1e-9) - 1,
        )


def measure(
    units: Units,
    encoded: Encoded,
    aligner: Aligner,
    *,
    stride: int = 2,
    ratio: float | None = None,
    progress: Any = lambda done, total: None,
) -> Measured:
    """Measure units on a corpus that was encoded with them; arguments as for `Measuring`."""
    measuring = Measuring(units, aligner, stride=stride, ratio=ratio)
    for number, utterance in enumerate(encoded, start=1):
        measuring.add(utterance)
        progress(number, len(encoded))
    sizes = [(encoded.directory / shard.file).stat().st_size for shard in encoded.info.shards]
    return measuring.result(sum(sizes))


class _Table:
    """Frames counted by cluster and label, whose number is not known before."""

    def __init__(self, clusters: int) -> None:
        self._counts = np.zeros((clusters, 64), np.int64)

    def add(self, clusters: np.ndarray, labels: np.ndarray) -> None:
        while len(labels) and labels.max() >= self._counts.shape[1]:
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)], axis=1)
        np.add.at(self._counts, (clusters, labels), 1)

    def values(self, num_labels: int) -> np.ndarray:
        """Counts (K, Y)."""
        return self._counts[:, :num_labels]


def _entropy(probabilities: np.ndarray) -> float:
    """In bits."""
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log2(positive)).sum())


def _sum(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Sum of vectors of different lengths."""
    length = max(len(one), len(other))
    return np.pad(one, (0, length - len(one))) + np.pad(other, (0, length - len(other)))


def _rounded(values: Any) -> dict[str, Any]:
    return {
        name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(values).items()
    }

"""Quality and size of units: purity, mutual information, bits, bytes, lengths beside text, and a figure.

Purity and normalised mutual information as in arXiv 2106.07447, section 5.1; bits per second after arXiv 2102.01192.
Labels of frames are phones from a file, or characters spread evenly over the speech. Spreading keeps the order of the
letters and ignores their lengths, so results against it are lower bounds.
Shapes: K clusters, Y labels (phones or characters).
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.audio.constants import HOP, SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.directory import Units
from sprachbund.models.tokens.strings import check_ratio, expand, to_units
from sprachbund.units.encoded import EncodedCorpus, UnitUtterance
from sprachbund.units.lengths import TooLong, min_ctc_frames, subsampled
from sprachbund.util.files import atomic_path
from sprachbund.util.progress import Progress, nothing

# Labels of frames.

NOTHING = -1
"""Label of frames in which nothing is known to be said."""
COLUMNS = ("id", "start_s", "end_s", "phone")


@dataclass
class Labels:
    """Names as numbers, in the order in which they appear."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """Number of a label's name, a new one if need be."""
        return self.numbers.setdefault(name, len(self.numbers))


def letters(text: str) -> list[str]:
    """Letters and digits of a text, in lower case; marks stay with their letter."""
    kept = "".join(
        c for c in unicodedata.normalize("NFC", text.casefold()) if unicodedata.category(c)[0] in "LNM"
    )
    letters: list[str] = []
    for character in kept:
        if unicodedata.category(character)[0] == "M" and letters:
            letters[-1] += character
        else:
            letters.append(character)
    return letters


class Characters:
    """Letters of the transcript, spread evenly over the frames."""

    kind = "characters, spread evenly over the frames"

    def __init__(self) -> None:
        self.labels = Labels()

    def align(self, utterance: UnitUtterance) -> np.ndarray:
        """Number of the letter of each frame (T,)."""
        num_frames = sum(utterance.durations)
        numbers = [self.labels.number(letter) for letter in letters(utterance.text)]
        if not numbers:
            return np.full(num_frames, NOTHING)
        indices = ((np.arange(num_frames) + 0.5) * len(numbers) / num_frames).astype(np.int64)
        return np.array(numbers)[indices]


class Phones:
    """Phones from a table with the columns id, start_s, end_s and phone, separated by tabs.

    Args:
        path: path of the table.
        frame_s: seconds of the recording that a frame stands for: its own, times the speed of the encoding.

    Raises:
        SprachbundError: no such file, another header, or a line that is not understood.
    """

    kind = "phones"

    def __init__(self, path: Path, frame_s: float) -> None:
        self.labels, self._frame_s = Labels(), frame_s
        self._spans: dict[str, list[tuple[float, float, int]]] = {}
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SprachbundError(f"{path} cannot be read ({error}); check the path") from error
        if not lines or tuple(lines[0].split("\t")) != COLUMNS:
            raise SprachbundError(f"{path}:1: the columns have to be {', '.join(COLUMNS)}, separated by tabs")
        for number, line in enumerate(lines[1:], start=2):
            self._read(line, f"{path}:{number}")

    def align(self, utterance: UnitUtterance) -> np.ndarray:
        """Number of the phone at the middle of each frame (T,); `NOTHING` where none is."""
        middles = (np.arange(sum(utterance.durations)) + 0.5) * self._frame_s
        phones = np.full(len(middles), NOTHING)
        for start_s, end_s, phone in self._spans.get(utterance.id, ()):
            phones[(middles >= start_s) & (middles < end_s)] = phone
        return phones

    def _read(self, line: str, where: str) -> None:
        try:
            name, start_s, end_s, phone = line.split("\t")
            if not 0 <= float(start_s) <= float(end_s) < math.inf:
                raise ValueError("the times are none")
            span = (float(start_s), float(end_s), self.labels.number(phone))
        except ValueError as error:
            raise SprachbundError(f"{where}: {line!r} is not {', '.join(COLUMNS)}; mend the line") from error
        self._spans.setdefault(name, []).append(span)


Aligner = Characters | Phones


def shuffled(aligned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same labels (T,) in another order: what would be found by chance, as runs of equal ones stay together."""
    starts = np.flatnonzero(np.diff(aligned, prepend=NOTHING - 1)) if len(aligned) else np.zeros(0, np.int64)
    runs: Sequence[np.ndarray] = np.split(aligned, starts[1:])
    return np.concatenate([runs[i] for i in rng.permutation(len(runs))])


MEL_BINS = 80
_BYTES = 4  # of float32


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of the clusters and labels of frames.

    Attributes:
        label_purity: chance to name a frame's label right by its cluster's most frequent one.
        cluster_purity: chance to name a frame's cluster right by its label's most frequent one.
        pnmi: share of the labels' uncertainty (entropy) that the clusters take away.
    """

    label_purity: float
    cluster_purity: float
    pnmi: float


def agreement(counts: np.ndarray) -> Agreement:
    """Agreement of frames counted by cluster and label (K, Y); 0 where there are no labels."""
    joint = counts / max(1, counts.sum())
    of_cluster, of_label = joint.sum(1), joint.sum(0)
    information = _entropy(of_cluster) + _entropy(of_label) - _entropy(joint)
    return Agreement(
        label_purity=float(joint.max(1, initial=0.0).sum()),
        cluster_purity=float(joint.max(0, initial=0.0).sum()),
        pnmi=float(information / _entropy(of_label)) if (of_label > 0).sum() > 1 else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class UnitSizes:
    """Rates and sizes of units, beside those of the speech.

    Attributes:
        units_per_s: repeats removed.
        pieces_per_s: pieces of the vocabulary in a second.
        bits_per_s: bits of units in a second, by how often each occurs; where they begin is not counted.
        flat_bits_per_s: bits of units in a second, log2 K each.
        piece_bits_per_s: bits of pieces in a second, by how often each occurs.
        stored_bytes: bytes of the units as characters in UTF-8.
        file_bytes: bytes of the shards, with durations and texts.
        log_mel_bytes: bytes of log-mel features of the same speech, 80 bins a hundred times a second in float32.
        audio_bytes: bytes of the same speech with 16 bits a sample.
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
class UnitMeasures:
    """All of it.

    Attributes:
        counts: frames by cluster and label (K, Y).
        labels: names of the labels.
        frames: number of frames by cluster (K,).
        runs: number of units by how many frames they last, from 1 on.
        against: kind of the labels.
        unlabelled: frames without a label.
        agreement: agreement of clusters and labels.
        by_chance: the same with each utterance's labels in another order.
        sizes: see `UnitSizes`.
        lengths: None without transcripts.
        too_long: targets that CTC cannot align with the units, by language.
        targets: rows by language.
        stride: stride of the encoder that CTC stands on.
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
    sizes: UnitSizes
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
        units: units that they are made of.
        aligner: says what is said in each frame.
        stride: stride of the encoder that CTC stands on.
        ratio: by which text is made longer; the units' own mean ratio if None.
        seed: seed of the order in which labels are put for comparison.
    """

    def __init__(
        self, units: Units, aligner: Aligner, *, stride: int = 2, ratio: float | None = None, seed: int = 0
    ) -> None:
        self._units, self._aligner, self._stride = units, aligner, stride
        usual = units.config.mean_length_ratio or 1
        self._ratio = float(check_ratio(usual if ratio is None else ratio))
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

    def result(self, file_bytes: int) -> UnitMeasures:
        """All counts as a result; `file_bytes` are the bytes of the shards."""
        counts = self._counts.values(len(self._aligner.labels.numbers))
        return UnitMeasures(
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
        available = subsampled(
            len(pieces) + 1, self._stride
        )  # with the token of the end, as a model reads it
        for language, text in utterance.translations.items():
            needed = min_ctc_frames(vocabulary.encode_text(text))
            self._targets[language] = self._targets.get(language, 0) + 1
            if needed > available:
                self._too_long[language] = self._too_long.get(language, 0) + 1
                name = f"{utterance.id} into {language}"
                if len(self._examples) < 5:
                    self._examples.append(TooLong(name=name, available=available, needed=needed))

    def _sizes(self, file_bytes: int) -> UnitSizes:
        seconds = max(self._seconds, 1e-9)
        log_mel = round(seconds * SAMPLE_RATE / HOP) * MEL_BINS * _BYTES
        num_units, num_pieces = int(self._units_seen.sum()), int(self._pieces.sum())
        return UnitSizes(
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
    encoded: EncodedCorpus,
    aligner: Aligner,
    *,
    stride: int = 2,
    ratio: float | None = None,
    progress: Progress = nothing,
) -> UnitMeasures:
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


# The figure: labels, frequency and duration of units.

_INK, _MUTED, _ACCENT = "#1c2b33", "#6c7a80", "#1f6f8b"
_RAMP = ("#ffffff", "#cfe0dc", "#8fc1c9", "#4391a3", "#1f6f8b", "#12455c")
_MOST_LABELS = 48
_MOST_RUN = 12
_DOTS_PER_INCH = 150


def draw(measured: UnitMeasures, path: Path, title: str) -> None:
    """Write a PNG.

    Args:
        measured: measures of the units.
        path: file of the PNG.
        title: title of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, height_ratios=[2.4, 1])
    _heat_map(figure.add_subplot(grid[0, :]), measured)
    _usage(figure.add_subplot(grid[1, 0]), measured)
    _runs(figure.add_subplot(grid[1, 1]), measured)
    figure.suptitle(title, color=_INK, fontsize=12)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=_DOTS_PER_INCH, format=path.suffix[1:].lower())


def ordered(counts: np.ndarray, most_labels: int = _MOST_LABELS) -> tuple[np.ndarray, np.ndarray]:
    """Labels by how many frames they have, the most frequent ones, and used clusters by their most likely label."""
    labels = np.argsort(-counts.sum(0), kind="stable")[:most_labels]
    share = _shares(counts[:, labels])
    used = np.flatnonzero(share.sum(1) > 0)
    if not len(used):  # no frame has a label
        return labels, used
    best = share[used].argmax(1)
    return labels, used[np.lexsort((-share[used, best], best))]


def _shares(counts: np.ndarray) -> np.ndarray:
    """Probability of each label, given the cluster (K, Y)."""
    return counts / np.maximum(1, counts.sum(1, keepdims=True))


def _heat_map(axes: Any, measured: UnitMeasures) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    labels, clusters = ordered(measured.counts)
    if not len(clusters):
        axes.text(0.5, 0.5, "no frame has a label", ha="center", color=_MUTED)
        axes.set_axis_off()
        return
    shares = _shares(measured.counts)[np.ix_(clusters, labels)].T
    colours = LinearSegmentedColormap.from_list("units", _RAMP)
    image = axes.imshow(
        shares,
        aspect="auto",
        cmap=colours,
        vmin=0,
        vmax=max(0.01, shares.max(initial=0)),
        interpolation="nearest",
    )
    axes.set_yticks(range(len(labels)), [measured.labels[i] for i in labels], fontsize=7)
    left = len(measured.labels) - len(labels)
    more = f"; the {left} rarest are not shown" if left else ""
    axes.set_xlabel(f"{len(clusters)} units, by their most likely label{more}", color=_INK)
    axes.set_title(f"share of a unit's frames: {measured.against}", fontsize=10, color=_INK)
    _plain(axes)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.025, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7, colors=_MUTED)


def _usage(axes: Any, measured: UnitMeasures) -> None:
    shares = np.sort(measured.frames)[::-1] / max(1, measured.frames.sum())
    axes.plot(np.arange(1, len(shares) + 1), shares * 100, color=_ACCENT)
    axes.axhline(100 / len(shares), color=_MUTED, linewidth=0.8, linestyle=":")
    axes.text(len(shares), 100 / len(shares), "equal", ha="right", va="bottom", color=_MUTED, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("units, the most frequent first", color=_INK)
    axes.set_ylabel("% of frames", color=_INK)
    _plain(axes)


def _runs(axes: Any, measured: UnitMeasures) -> None:
    runs = measured.runs[:_MOST_RUN].copy()
    if len(measured.runs) > _MOST_RUN:
        runs[-1] += measured.runs[_MOST_RUN:].sum()
    names = [str(n) for n in range(1, len(runs) + 1)]
    if len(measured.runs) > _MOST_RUN:
        names[-1] += "+"
    axes.bar(names, 100 * runs / max(1, runs.sum()), color=_ACCENT)
    axes.set_xlabel("frames that a unit lasts", color=_INK)
    axes.set_ylabel("% of units", color=_INK)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelsize=7, colors=_MUTED)

"""From a speech encoder and a corpus to a directory of units, step by step; each step that is done stays done.

Features of a share of the data go into files, those into one that is mapped and not held, k-means draws from it, the
share's units and all texts make the vocabulary.

Shapes: N frames, K clusters, D width.
"""

import hashlib
import io
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.data.manifest import texts_hash
from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.directory import CONFIG, CorpusInfo, Units, UnitsConfig, nearest, write_units
from sprachbund.models.tokens.strings import collapse, holds_units, to_string
from sprachbund.models.tokens.unit_options import FitOptions, KMeansOptions, VocabularyOptions
from sprachbund.models.tokens.vocabulary import JointVocabulary, marked
from sprachbund.text.tokenizer import language_token
from sprachbund.units.encoded import ChosenUtterances, Extraction, FeatureJob
from sprachbund.units.files import PARTS, begin, check_begun
from sprachbund.units.lengths import mean_length_ratio
from sprachbund.util.computing import Computing
from sprachbund.util.files import atomic_path, files_sha256
from sprachbund.util.jobs import run
from sprachbund.util.progress import StageProgress
from sprachbund.util.tensors import load_array, load_arrays, write_array, write_arrays

_FRAMES, _LENGTHS = "frames.npy", "lengths.npy"
_CHUNK = 1 << 14
_LONGEST_BYTES = 1 << 24
"""Most bytes of a text; SentencePiece would leave longer ones out without a warning."""
_AT_ONCE = 100
"""Units of a line: SentencePiece adds up in single precision, and finds hardly a piece in lines of thousands."""


@dataclass(frozen=True, kw_only=True)
class FitEstimate:
    """Size of the work of making units.

    Attributes:
        utterances: utterances whose features k-means sees.
        hours: hours of them.
        frames: features of them, about.
        disk_bytes: bytes of the features while units are made.
    """

    utterances: int
    hours: float
    frames: int
    disk_bytes: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Units to be made.

    Attributes:
        extraction: extraction of the features.
        data: corpora of the training speech.
        out: directory of the units.
        options: see `FitOptions`.
        texts: files with a text in each line, for the vocabulary, beside the corpora's own texts.
        computing: see `Computing`.
    """

    extraction: Extraction
    data: tuple[Path, ...]
    out: Path
    options: FitOptions = field(default_factory=FitOptions)
    texts: tuple[Path, ...] = ()
    computing: Computing = field(default_factory=Computing)

    @property
    def job(self) -> FeatureJob:
        """The features that are wanted."""
        chosen = ChosenUtterances(data=self.data, share=self.options.share, languages=self.options.languages)
        parts = self.out / PARTS
        return FeatureJob(extraction=self.extraction, chosen=chosen, out=parts, computing=self.computing)


def estimate(fit: Fit) -> FitEstimate:
    """Estimate the work of making units. Raises SprachbundError for an unusable model or data."""
    chosen, info = fit.job.chosen, fit.extraction.info
    frames = round(chosen.hours * 3600 / info.frame_s)
    return FitEstimate(
        utterances=len(chosen.indices),
        hours=chosen.hours,
        frames=frames,
        disk_bytes=2 * 4 * frames * info.width,
    )


def make_units(fit: Fit, report: StageProgress = lambda label, done, total: None) -> Units:
    """Make units; the same call again goes on where it stopped, and gives the same files.

    Raises:
        SprachbundError: data, model or options that cannot be used, too few frames for the clusters, no texts, or
            `out` begun with other settings.
    """
    check_begun(fit.out, _settings(fit))
    if (fit.out / CONFIG).exists():
        shutil.rmtree(fit.out / PARTS, ignore_errors=True)  # a run that was killed amid this has left some
        return Units(fit.out)
    frames, lengths = _features(fit, report)
    report("clustering", 0, 0)
    centroids, num_steps = _centroids(frames, fit)
    labels = _labels(frames, lengths, centroids, report)
    report("finding pieces", 0, 0)
    models, languages, ratio = _vocabulary(fit, labels, lengths)
    chosen = fit.job.chosen
    config = UnitsConfig(
        source=fit.extraction.info,
        options=fit.options,
        languages=languages,
        data=_corpora(fit, chosen),
        num_frames=len(frames),
        num_steps=num_steps,
        explained=round(explained(frames, centroids, labels), 6),
        no_frames=tuple(chosen.utterance(int(i)).id for i in np.flatnonzero(lengths == 0)),
        mean_length_ratio=ratio,
        files={},
    )
    begin(fit.out, _settings(fit))
    units = write_units(fit.out, config, centroids, models)
    shutil.rmtree(fit.out / PARTS)
    return units


def _feature_settings(fit: Fit) -> dict[str, object]:
    """Settings that the features depend on."""
    return {
        "model": fit.extraction.hash,
        "layer": fit.extraction.layer,
        "data": [texts_hash(path) for path in fit.data],
        "share": fit.options.share,
        "languages": fit.options.languages,
        "device": fit.extraction.device,
        "batch_s": fit.extraction.batch_s,
        "threads": fit.computing.threads,
        "block": fit.computing.block,
    }


def _settings(fit: Fit) -> dict[str, object]:
    """Settings that the files depend on."""
    return {
        **_feature_settings(fit),
        "texts": files_sha256(fit.texts),
        **fit.options.model_dump(mode="json"),
        "text_languages": fit.options.text_languages or None,
    }


def _features(fit: Fit, report: StageProgress) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D), mapped from a file, and how many each utterance has."""
    job, parts = fit.job, fit.out / PARTS
    if not job.chosen.indices:
        raise SprachbundError(
            f"a share of {fit.options.share} of the data is no utterance; give a larger --share"
        )
    fit.extraction.info  # noqa: B018 - what cannot be used is to leave no folder behind
    begin(parts, _feature_settings(fit))
    if not (parts / _FRAMES).exists():
        run(
            job,
            workers=fit.computing.workers,
            ray_address=fit.computing.ray,
            progress=lambda done, total: report("extracting features", done, total),
        )
        _gather(parts, [path for path, _ in job.files], fit.extraction.info.width)
    advice = f"delete {parts}, and the features are extracted again"
    frames = load_array(parts / _FRAMES, mapped=True, advice=advice)
    lengths = load_array(parts / _LENGTHS, advice=advice)
    if frames.ndim != 2 or lengths.ndim != 1 or lengths.sum() != len(frames):
        raise SprachbundError(
            f"{parts / _FRAMES} has shape {frames.shape}, {_LENGTHS} sums to {lengths.sum()}; {advice}"
        )
    return frames, lengths


def _gather(parts: Path, blocks: Sequence[Path], width: int) -> None:
    """Put the features of all blocks into one file, a block at a time, and remove the blocks."""
    lengths = [_block(path)["lengths"] for path in blocks]
    write_array(parts / _LENGTHS, np.concatenate(lengths))
    start, shape = 0, (int(sum(each.sum() for each in lengths)), width)
    with atomic_path(parts / _FRAMES) as partial:
        gathered = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        for path, each in zip(blocks, lengths, strict=True):
            gathered[start : start + each.sum()] = _block(path)["frames"]
            start += int(each.sum())
        gathered.flush()
    for path in blocks:
        path.unlink()


def _block(path: Path) -> dict[str, np.ndarray]:
    """The features of a block, `frames` (N, D) and `lengths`."""
    advice = "delete it, and it is extracted again"
    arrays = load_arrays(path, advice=advice)
    if arrays.keys() != {"frames", "lengths"} or len(arrays["frames"]) != arrays["lengths"].sum():
        raise SprachbundError(f"{path} does not hold a block of features; {advice}")
    return arrays


def _centroids(frames: np.ndarray, fit: Fit) -> tuple[np.ndarray, int]:
    """Centroids (K, D), and batches it took."""
    chosen = hashlib.sha256(fit.options.kmeans.model_dump_json().encode()).hexdigest()
    path = fit.out / PARTS / f"kmeans.{chosen[:16]}.npz"
    if not path.exists():
        centroids, num_steps = fit_kmeans(frames, fit.options.kmeans, threads=fit.computing.threads)
        write_arrays(path, {"centroids": centroids, "num_steps": np.array(num_steps)})
    advice = "delete it, and the clusters are sought again"
    known = load_arrays(path, advice=advice)
    if known.keys() != {"centroids", "num_steps"} or known["centroids"].shape[1:] != frames.shape[1:]:
        raise SprachbundError(f"{path} holds no centroids of these features; {advice}")
    return known["centroids"], int(known["num_steps"])


def fit_kmeans(frames: np.ndarray, options: KMeansOptions, *, threads: int = 1) -> tuple[np.ndarray, int]:
    """Centroids (K, D) float32 of frames by k-means, and how many batches it took.

    An array of frames that is mapped from a file is never held in memory: scikit-learn draws batches from it.

    The order in which threads add up decides the last bits, so that equal bits need one thread.

    Args:
        frames: (N, D), float32.
        options: clusters, batches and stopping rule.
        threads: threads to compute with.

    Raises:
        SprachbundError: fewer frames than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    if len(frames) < options.clusters:
        raise SprachbundError(
            f"{len(frames)} frames cannot make {options.clusters} clusters; give a larger --share or fewer --clusters"
        )
    model = MiniBatchKMeans(
        n_clusters=options.clusters,
        init="k-means++",
        n_init=options.n_init,
        batch_size=options.batch_size,
        max_no_improvement=options.max_no_improvement,
        max_iter=options.max_iter,
        random_state=options.seed,
        compute_labels=False,
    )
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of equal frames, which silence has
        model.fit(frames)
    return model.cluster_centers_.astype(np.float32), int(model.n_steps_)


def explained(frames: np.ndarray, centroids: np.ndarray, labels: np.ndarray) -> float:
    """Share of the variance of frames (N, D) that their clusters explain: 1 would be no error.

    Args:
        frames: (N, D).
        centroids: (K, D).
        labels: cluster of every frame (N,).
    """
    mean = np.zeros(frames.shape[1])
    for start in range(0, len(frames), _CHUNK):
        mean += frames[start : start + _CHUNK].sum(0, dtype=np.float64) / len(frames)
    inside = total = 0.0
    for start in range(0, len(frames), _CHUNK):
        chunk = frames[start : start + _CHUNK]
        inside += float(np.square(chunk - centroids[labels[start : start + _CHUNK]]).sum(dtype=np.float64))
        total += float(np.square(chunk - mean).sum(dtype=np.float64))
    return 1 - inside / total if total else 1.0


def _labels(
    frames: np.ndarray, lengths: np.ndarray, centroids: np.ndarray, report: StageProgress
) -> np.ndarray:
    """The nearest centroid of every frame (N,), one utterance at a time as `encode` does it."""
    ends = np.cumsum(lengths)
    labels = []
    for number, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        labels.append(nearest(frames[end - length : end], centroids))
        report("encoding the share", number, len(lengths))
    return np.concatenate(labels)


def _vocabulary(
    fit: Fit, labels: np.ndarray, lengths: np.ndarray
) -> tuple[dict[str, bytes], tuple[str, ...], float | None]:
    """SentencePiece models by name, the languages of the texts, and the mean ratio of lengths."""
    strings = [to_string(collapse(each)[0]) for each in np.split(labels, np.cumsum(lengths)[:-1])]
    languages: set[str] = set()
    texts = [*_corpus_texts(fit, languages), *_lines(fit.texts)]
    tags, clusters = tuple(sorted(languages)), fit.options.kmeans.clusters
    models = train_models(texts, strings, clusters, fit.options.vocabulary, tags)
    ratio = _ratio(fit.job.chosen, strings, JointVocabulary(models, clusters, tags))
    return models, tags, ratio


def _corpus_texts(fit: Fit, languages: set[str]) -> Iterator[str]:
    """Every transcript and translation that is wanted of the data; their languages go into `languages`."""
    wanted = set(fit.options.text_languages)
    chosen = ChosenUtterances(data=fit.data, languages=fit.options.languages)
    for manifest in chosen.manifests:
        for utterance in manifest:
            for tag, text in ((utterance.language, utterance.text), *utterance.translations.items()):
                if tag and text.strip() and (not wanted or tag in wanted):
                    languages.add(tag)
                    yield text


def _lines(files: Sequence[Path]) -> Iterator[str]:
    for path in files:
        try:
            yield from path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise SprachbundError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _ratio(chosen: ChosenUtterances, strings: Sequence[str], vocabulary: JointVocabulary) -> float | None:
    """Ratio of units to transcripts, both in pieces, over the share."""
    lengths = [
        (len(vocabulary.encode_units(string)), len(vocabulary.encode_text(text)))
        for number, string in enumerate(strings)
        if (text := chosen.utterance(number).text).strip()
    ]
    return mean_length_ratio(*zip(*lengths, strict=True)) if lengths else None


def _corpora(fit: Fit, chosen: ChosenUtterances) -> tuple[CorpusInfo, ...]:
    return tuple(
        CorpusInfo(directory=str(path), hash=manifest.texts_hash(), utterances=len(manifest))
        for path, manifest in zip(fit.data, chosen.manifests, strict=True)
    )


# SentencePiece models of a vocabulary, trained on texts and strings of units; the same bits every time.


def train_models(
    texts: Iterable[str],
    strings: Sequence[str],
    clusters: int,
    options: VocabularyOptions,
    languages: Sequence[str] = (),
) -> dict[str, bytes]:
    """The models of a vocabulary by name: `text` and `units`, or `joint` where it is one.

    Args:
        texts: texts of all languages that are read or written.
        strings: units as characters.
        clusters: K; every unit gets a piece, whether it was seen or not.
        options: see `VocabularyOptions`.
        languages: BCP-47 tags that get a token.

    Raises:
        SprachbundError: no texts or units, sizes that cannot be, or, for one model, texts whose characters stand
            for units.
    """
    options.check(clusters)
    lines = [marked(text) for text in texts if text.strip()]
    if not lines or not any(strings):
        what = "texts" if not lines else "units"
        raise SprachbundError(f"there are no {what} to make a vocabulary of; name data that hold some")
    tokens = [language_token(tag) for tag in languages]
    units = [string[i : i + _AT_ONCE] for string in strings for i in range(0, len(string), _AT_ONCE)]
    if options.form == "single":
        _refuse_unit_characters(lines, clusters)
        both = [*lines, *units, *each_unit(clusters)]
        return {"joint": _train(both, options.unit_pieces + options.text_pieces, control_symbols=tokens)}
    seen = [] if not options.unit_pieces else units
    kind = "unigram" if options.unit_pieces else "char"
    return {
        "text": _train(lines, options.text_pieces, control_symbols=tokens),
        "units": _train([*seen, *each_unit(clusters)], options.unit_pieces or clusters + 1, model_type=kind),
    }


def each_unit(clusters: int) -> Iterator[str]:
    """A string for each unit: what is seen gets a piece."""
    return (to_string([unit]) for unit in range(clusters))


def _refuse_unit_characters(texts: Sequence[str], clusters: int) -> None:
    held = [text for text in texts if holds_units(text, clusters)]
    if held:
        raise SprachbundError(
            f"{len(held)} of {len(texts)} texts hold characters that stand for units, the first is "
            f"{held[0].strip()!r}; one vocabulary for both cannot tell them apart, give --form union"
        )


def _train(lines: Sequence[str], size: int, *, model_type: str = "unigram", **options: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=size,
            model_type=model_type,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            hard_vocab_limit=False,
            max_sentence_length=_LONGEST_BYTES,
            num_threads=1,  # several add up in any order
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise SprachbundError(
            f"SentencePiece cannot make {size} pieces ({reason}); ask for another number"
        ) from error
    return model.getvalue()

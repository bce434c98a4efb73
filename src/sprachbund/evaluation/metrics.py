"""Metrics as sums over sentences: whatever is scored, resampled or compared goes through these sums.

BLEU, chrF and TER are sacrebleu's, so that signatures and numbers are those of its command;
word and character error rates are jiwer's counts. Statistics of a corpus are a matrix (N sentences, K
counts); the score of any part of it is a function of the sum of its rows.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import punctuation
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import SprachbundError
from sprachbund.text.languages import CHINESE, primary, writes_spaces

Counts = NDArray[np.float64]

# As the sacrebleu command chooses by its language pair.
_BLEU_TOKENIZERS = dict.fromkeys(CHINESE, "zh")
_CHARACTER_TOKENIZER = "char"  # for other scripts without spaces; sacrebleu's own choice needs more packages


class Metric(Protocol):
    """A corpus score that is a function of summed counts."""

    @property
    def name(self) -> str:
        """Name of the metric as it is printed."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is better."""
        ...

    @property
    def signature(self) -> str:
        """Everything that the number depends on, as one line."""
        ...

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> Counts:
        """Counts (N, K) of N sentences."""
        ...

    def score(self, total: NDArray[Any]) -> float:
        """The score of summed counts (K,)."""
        ...


@dataclass(frozen=True)
class SacrebleuMetric:
    """A metric of sacrebleu with the settings of its command; subclasses know its counts.

    Args:
        name: as it is printed.
        make: sacrebleu's object.
    """

    name: str
    make: Callable[[], Any]
    higher_is_better: bool = True

    @cached_property
    def inner(self) -> Any:
        """The metric object of sacrebleu."""
        return self.make()

    @property
    def signature(self) -> str:
        """sacrebleu's, for one reference."""
        inner = self.make()
        inner.num_refs = 1
        return str(inner.get_signature().format())

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> Counts:
        """Counts (N, K); the arguments are N texts each."""
        rows = [self.counts(h, r) for h, r in zip(hypotheses, references, strict=True)]
        return np.array(rows, dtype=np.float64)

    def counts(self, hypothesis: str, reference: str) -> list[float]:
        """Counts (K,) of a sentence."""
        raise NotImplementedError

    def score(self, total: NDArray[Any]) -> float:
        """Score of summed counts (K,), in their precision: float32 sums give what sacrebleu's draws do."""
        raise NotImplementedError


class Bleu(SacrebleuMetric):
    """Lengths of hypothesis and reference, then matching n-grams and all, of each order."""

    @cached_property
    def _of_sentences(self) -> Any:
        """sacrebleu's object with the setting that it advises for sentences; counts stay as they are."""
        inner = self.make()
        inner.effective_order = True
        return inner

    def counts(self, hypothesis: str, reference: str) -> list[float]:
        """See `SacrebleuMetric`."""
        statistics = self._of_sentences.sentence_score(hypothesis, [reference])
        return [statistics.sys_len, statistics.ref_len, *statistics.counts, *statistics.totals]

    def score(self, total: NDArray[Any]) -> float:
        """See `SacrebleuMetric`."""
        from sacrebleu.metrics.bleu import BLEU

        order = (len(total) - 2) // 2
        counts: Any = total  # numbers of numpy, in whose precision the score is computed
        scored = BLEU.compute_bleu(
            correct=counts[2 : 2 + order],
            total=counts[2 + order :],
            sys_len=int(total[0]),
            ref_len=int(total[1]),
            smooth_method=self.inner.smooth_method,
            smooth_value=self.inner.smooth_value,
            max_ngram_order=order,
        )
        score: float = scored.score
        return score


class ChrF(SacrebleuMetric):
    """N-grams of the hypothesis, of the reference, and matching ones, of each order of characters, then of words.

    sacrebleu gives no counts of chrF, so they are computed here from its n-grams, as arXiv W15-3049 and W17-4770
    define them; orders that either text is too short for do not count.
    """

    def counts(self, hypothesis: str, reference: str) -> list[float]:
        """See `SacrebleuMetric`."""
        counts: list[float] = []
        for ours, theirs in zip(self._ngrams(hypothesis), self._ngrams(reference), strict=True):
            matching = sum(min(count, theirs[ngram]) for ngram, count in ours.items() if ngram in theirs)
            counts += [sum(ours.values()) if theirs else 0, sum(theirs.values()), matching]
        return counts

    def score(self, total: NDArray[Any]) -> float:
        """See `SacrebleuMetric`."""
        precision, recall, orders = 0.0, 0.0, 0
        for ours, theirs, matching in total.reshape(-1, 3):
            if ours > 0 and theirs > 0:
                precision, recall, orders = (
                    precision + matching / ours,
                    recall + matching / theirs,
                    orders + 1,
                )
        if not precision + recall:
            return 0.0
        precision, recall, factor = precision / orders, recall / orders, self.inner.beta**2
        score: float = (1 + factor) * precision * recall
        score /= factor * precision + recall
        return 100 * score

    def _ngrams(self, text: str) -> list[Counter[str]]:
        from sacrebleu.metrics.helpers import extract_all_char_ngrams, extract_word_ngrams

        ngrams: list[Counter[str]] = extract_all_char_ngrams(text, self.inner.char_order)
        words = _words_and_marks(text) if self.inner.word_order else []
        return [*ngrams, *(extract_word_ngrams(words, n + 1) for n in range(self.inner.word_order))]


def _words_and_marks(text: str) -> list[str]:
    """Words of chrF++: a punctuation mark at the end of a word, or else at its beginning, is one of its own."""
    words = []
    for word in text.split():
        if len(word) > 1 and word[-1] in punctuation:
            words += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in punctuation:
            words += [word[0], word[1:]]
        else:
            words.append(word)
    return words


class Ter(SacrebleuMetric):
    """Edits and length of the reference."""

    def counts(self, hypothesis: str, reference: str) -> list[float]:
        """See `SacrebleuMetric`."""
        statistics = self.inner.sentence_score(hypothesis, [reference])
        return [statistics.num_edits, statistics.ref_length]

    def score(self, total: NDArray[Any]) -> float:
        """See `SacrebleuMetric`; text without a reference is wrong as a whole."""
        edits, length = total
        score: float = 100 * (edits / length if length > 0 else float(edits > 0))
        return score


@dataclass(frozen=True)
class ErrorRate:
    """Word or character error rate in percent, by jiwer's alignment; transcripts only make sense of it."""

    unit: str  # "word" or "character"
    higher_is_better: bool = False

    @property
    def name(self) -> str:
        """WER or CER."""
        return "WER" if self.unit == "word" else "CER"

    @property
    def signature(self) -> str:
        """The library and its version."""
        from importlib.metadata import version

        return f"{self.name}|unit:{self.unit}|jiwer:{version('jiwer')}"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> Counts:
        """Errors and reference units (N, 2)."""
        import jiwer

        process = jiwer.process_words if self.unit == "word" else jiwer.process_characters
        counts = np.zeros((len(references), 2))
        if not len(references):
            return counts
        aligned = process(list(references), list(hypotheses))
        for row, chunks in enumerate(aligned.alignments):
            counts[row, 0] = sum(
                max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx)
                for c in chunks
                if c.type != "equal"
            )
            counts[row, 1] = len(aligned.references[row])
        return counts

    def score(self, total: NDArray[Any]) -> float:
        """Errors per hundred reference units."""
        return 100.0 * float(total[0]) / float(total[1]) if total[1] else 0.0


@dataclass(frozen=True)
class ExactMatch:
    """Share of sentences that are right to the letter, in percent, white space aside."""

    name: str = "exact"
    higher_is_better: bool = True

    @property
    def signature(self) -> str:
        """There is nothing to choose."""
        return "exact|case:mixed|space:collapsed"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> Counts:
        """Right ones and sentences (N, 2)."""
        right = [h.split() == r.split() for h, r in zip(hypotheses, references, strict=True)]
        return np.column_stack([np.array(right, float), np.ones(len(right))])

    def score(self, total: NDArray[Any]) -> float:
        """Right ones per hundred sentences."""
        return 100.0 * float(total[0]) / float(total[1]) if total[1] else 0.0


def bleu(target: str = "") -> SacrebleuMetric:
    """BLEU; Chinese is tokenized as sacrebleu does, other scripts without spaces by characters."""
    by_script = _BLEU_TOKENIZERS.get(primary(target), _CHARACTER_TOKENIZER)
    tokenizer = "13a" if writes_spaces(target) else by_script

    def make() -> Any:
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(tokenize=tokenizer, force=True)

    return Bleu(name="BLEU", make=make)


def chrf(word_order: int = 0) -> SacrebleuMetric:
    """The metric chrF2, or chrF2++ for a word order of 2."""

    def make() -> Any:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF(word_order=word_order)

    return ChrF(name="chrF" + "+" * word_order, make=make)


def ter() -> SacrebleuMetric:
    """Translation edit rate; less is better."""

    def make() -> Any:
        from sacrebleu.metrics.ter import TER

        return TER()

    return Ter(name="TER", make=make, higher_is_better=False)


METRICS: Mapping[str, Callable[[str], Metric]] = {
    "chrF": lambda target: chrf(),
    "chrF++": lambda target: chrf(2),
    "BLEU": bleu,
    "TER": lambda target: ter(),
    "WER": lambda target: ErrorRate("word"),
    "CER": lambda target: ErrorRate("character"),
    "exact": lambda target: ExactMatch(),
}
"""Name to a function from target language to metric.

`evaluate` measures the metrics that `QUALITY` and `ERROR_RATES` in `sprachbund.evaluation.quality` name, in the order
of its tables. A new metric belongs here, there, and in the help of `--metrics` of `score` and `compare`, in
`sprachbund.evaluation.options`, where importing this module would take too long. A test compares all three.
"""


def metric(name: str, target: str = "") -> Metric:
    """A metric by name for a target language. Raises SprachbundError for a name unknown here."""
    known = {key.casefold(): key for key in METRICS}
    if name.casefold() not in known:
        raise SprachbundError(f"no metric {name!r}; there are {', '.join(METRICS)}")
    return METRICS[known[name.casefold()]](target)


def corpus_score(metric: Metric, hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """The score of N hypotheses against one reference each.

    Args:
        metric: the metric.
        hypotheses: N texts.
        references: N texts.
    """
    return float(metric.score(metric.statistics(hypotheses, references).sum(0)))


# COMET, a learned metric; an optional dependency that needs its model.
#
# The model is a checkpoint on disk (used without the network), or a name on the Hugging Face hub
# (fetched). Scores are those that the package's own command prints: it computes in half precision, in
# batches of texts of like length taken from all of a file, and both decide the last digits.

MODEL = "Unbabel/wmt22-comet-da"
_CHECKPOINT = Path("checkpoints") / "model.ckpt"  # where a model's directory on the hub has it
_SETTINGS = "hparams.yaml"  # which the package looks for in the folder above the checkpoint's
_BATCH_SIZE = 16  # the command's


class Comet:
    """A loaded COMET model with references.

    Args:
        model: directory as downloaded from the hub (`hparams.yaml`, `checkpoints/model.ckpt`), the checkpoint
            in one, or a name on the hub.
        offline: never use the network; a name is found if it was downloaded before.

    Raises:
        SprachbundError: the package is not installed, or its model cannot be had.
    """

    def __init__(self, model: str = MODEL, *, offline: bool = False) -> None:
        self.signature = comet_signature(model)
        package = _package()
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # its tips would stand in the progress
        local = _on_disk(model)
        if local is None and offline:
            # the package goes on to an older server where the hub has nothing, even with `local_files_only`
            from sprachbund.models.io import locate

            local = _on_disk(str(locate(model, offline=True)))
        try:
            path = str(local or package.download_model(model))
            # Its encoder's settings are looked up by name: without the network, they have to be in the hub's cache.
            self._scorer = (
                package.load_from_checkpoint(path, local_files_only=local is not None).eval().half()
            )
        except Exception as error:  # the package raises bare ones
            raise SprachbundError(
                f"COMET's model {model} cannot be had ({error}); name its directory, with {_SETTINGS} and "
                f"{_CHECKPOINT}, and have its encoder (such as xlm-roberta-large) in the Hugging Face cache"
            ) from error

    def scores(
        self, transcripts: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]
    ) -> list[float]:
        """COMET of each of N translations, in percent; their mean is the corpus score. Given in several parts, the
        same texts get other last digits.

        Args:
            transcripts: transcripts of the speech.
            hypotheses: texts of the model.
            references: correct texts.
        """
        rows = [
            {"src": source, "mt": hypothesis, "ref": reference}
            for source, hypothesis, reference in zip(transcripts, hypotheses, references, strict=True)
        ]
        predicted = self._scorer.predict(rows, batch_size=_BATCH_SIZE, gpus=0, progress_bar=False)
        return [100.0 * float(score) for score in predicted.scores]


def comet_signature(model: str = MODEL) -> str:
    """Model, version of the package, precision. Raises SprachbundError when it is not installed."""
    _package()
    from importlib.metadata import version

    return f"COMET|model:{model}|version:{version('unbabel-comet')}|precision:float16"


def _on_disk(model: str) -> Path | None:
    """The checkpoint of a path; None for a name on the hub. Raises SprachbundError for a path without one."""
    path = Path(model)
    if not path.exists():
        if model.endswith(".ckpt") or model.startswith((".", "/", "~")):
            raise SprachbundError(f"COMET's model {model} does not exist; check the path")
        return None
    checkpoint = path / _CHECKPOINT if path.is_dir() else path
    for needed in (checkpoint, checkpoint.parent.parent / _SETTINGS):
        if not needed.is_file():
            raise SprachbundError(
                f"COMET's model {model} lacks {needed}; download its directory again, whole"
            )
    return checkpoint


def _package() -> Any:
    try:
        import comet
    except ImportError as error:
        if error.name != "comet":
            raise SprachbundError(
                f"COMET is installed and cannot be loaded ({error}); give it an environment of its own, with "
                "`pip install 'sprachbund[comet]'`"
            ) from error
        raise SprachbundError(
            "COMET is not installed; install it with `pip install 'sprachbund[comet]'`, or leave it out"
        ) from error
    if not hasattr(comet, "load_from_checkpoint"):
        raise SprachbundError(
            "the package `comet` here is another one; install COMET with `pip install unbabel-comet`"
        )
    return comet

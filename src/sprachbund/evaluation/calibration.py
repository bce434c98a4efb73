"""Finds out how a model can tell what it does not understand, and writes that into its directory.

`collect` lets the model translate corpora and keeps, of every text that the rest of the guard lets pass, the mean
encoder state, the mean log-probability, and whether the text is right. Utterances without a text are sound
that nobody could translate; for the others, chrF decides. `fit` makes the logistic regression of
`sprachbund.models.domain` from them, and `measure` says what it drops in other corpora, which it was not fitted on.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sprachbund.audio.augment import TRAIN, augment
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.spans import VoiceActivity
from sprachbund.data.manifest import Manifest, Utterance
from sprachbund.decoding.languages import LanguageTracker, Request
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.pipeline import (
    RecordedSpan,
    RecordingState,
    decode_spans,
    encode_spans,
    whole_span,
)
from sprachbund.decoding.result import joined_text
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import corpus_name
from sprachbund.evaluation.metrics import chrf, corpus_score
from sprachbund.evaluation.options import CalibrationOptions
from sprachbund.models.base import Family
from sprachbund.models.domain import Domain, mean_states
from sprachbund.models.io import content_hash
from sprachbund.util.files import write_json
from sprachbund.util.provenance import commit, data_hash

UNDERSTOOD, NOT_UNDERSTOOD = 50.0, 20.0
"""chrF from which a text is right, and below which it is wrong; what lies between is not learned from."""
_LONGEST_S = 15.0
_PAUSE_S = (0.2, 0.7)
_FOLDS = 5
_REGULARISATION = 0.003  # C of scikit-learn; 0.03 kept twice as many wrong texts of open talk


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """A text that a model wrote for an utterance.

    Attributes:
        group: corpus and kind of the utterance.
        has_text: whether the corpus says what is right.
        written: whether the rest of the guard lets it pass.
        chrf: against what is right; 0 where nothing is.
        mean_log_probability: of the text, per token.
        state: mean encoder state (D,).
    """

    group: str
    has_text: bool
    written: bool
    chrf: float
    mean_log_probability: float
    state: npt.NDArray[np.float32]

    @property
    def understood(self) -> bool:
        """Whether the text is not plainly wrong."""
        return self.chrf >= NOT_UNDERSTOOD


Sound = tuple[Utterance, npt.NDArray[np.float32]]


def read_sounds(directory: Path, options: CalibrationOptions, *, vary: bool) -> Iterator[tuple[str, Sound]]:
    """Utterances of a corpus, each with the group it is counted in.

    Args:
        directory: of the corpus.
        options: how many, and the seed.
        vary: half of them in another channel, and every fourth with others of its language behind it, as a recording
            has several sentences in a row; for fitting.
    """
    manifest, rng = Manifest(directory), random.Random(f"{options.seed}/{directory.name}")
    step = max(1, len(manifest) // options.limit)
    name = corpus_name(directory)
    last: dict[str, Sound] = {}
    for index in list(range(0, len(manifest), step))[: options.limit]:
        utterance, samples = manifest[index], manifest.samples(index)
        group = name if utterance.text else f"{name}: {utterance.custom.get('kind', '')}"
        if vary and utterance.text:
            before = last.get(utterance.language)
            last[utterance.language] = utterance, samples
            if before is not None and rng.random() < 0.25:
                utterance, samples = _joined(before, (utterance, samples), rng)
        if vary and rng.random() < 0.5:
            samples = augment(samples, np.random.default_rng(rng.getrandbits(63)), TRAIN, [])
        yield group, (utterance, samples[: round(_LONGEST_S * SAMPLE_RATE)])


def _joined(first: Sound, second: Sound, rng: random.Random) -> Sound:
    pause = np.zeros(round(rng.uniform(*_PAUSE_S) * SAMPLE_RATE), np.float32)
    samples = np.concatenate([first[1], pause, second[1]])
    if len(samples) > _LONGEST_S * SAMPLE_RATE:
        return second
    both = first[0].translations.keys() & second[0].translations.keys()
    translations = {tag: f"{first[0].translations[tag]} {second[0].translations[tag]}" for tag in both}
    text = f"{first[0].text} {second[0].text}"
    return replace(second[0], text=text, translations=translations), samples


def collect(
    model: Family,
    directories: Sequence[Path],
    options: CalibrationOptions,
    *,
    vary: bool,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Observation]:
    """Let a model translate corpora, each utterance into one language.

    Args:
        model: any family.
        directories: of the corpora.
        options: how many utterances.
        vary: see `read_sounds`.
        progress: called with the corpus, utterances done, and in all.
    """
    activity, rng, observations = VoiceActivity(), random.Random(options.seed), list[Observation]()
    for directory in directories:
        total = min(options.limit, len(Manifest(directory)))
        sounds = list(read_sounds(directory, options, vary=vary))
        sounds.sort(key=lambda sound: len(sound[1][1]))  # even lengths in a batch
        for start in range(0, len(sounds), options.batch_size):
            progress(str(directory), start, total)
            batch = sounds[start : start + options.batch_size]
            observations += _observe(model, batch, activity, rng)
    return observations


def _observe(
    model: Family, batch: Sequence[tuple[str, Sound]], activity: VoiceActivity, rng: random.Random
) -> Iterator[Observation]:
    # The threshold of before, if any, must not decide what the next one is fitted on.
    limit = None if model.domain is None else 1.0
    decoding = DecodingOptions(guard=GuardOptions(max_out_of_domain=limit))
    written = sorted({target for _, target in model.pairs()})
    spans, wanted = [], []
    for _, (utterance, samples) in batch:
        known = [t for t in written if (utterance.language, t) in model.pairs() and utterance.text_in(t)]
        target = rng.choice(known or written)
        wanted.append(target)
        recording = RecordingState(
            request=Request(source=None, targets=(target,), allowed=None),
            options=decoding,
            tracker=LanguageTracker(model.source_languages, None, 1),
            unidentified=target,
        )
        span = whole_span(samples, decoding.spans, activity)
        spans.append(RecordedSpan(recording=recording, span=span, samples=samples))
    encoded = encode_spans(model, spans)
    durations_s = [len(span.samples) / SAMPLE_RATE for span in spans]
    memory = encoded.memory
    means = mean_states(memory.states, memory.num_frames, durations_s, model.frame_s).cpu().numpy()
    for (group, (utterance, _)), target, state, (decoded,) in zip(
        batch, wanted, means, decode_spans(model, spans, encoded), strict=True
    ):
        kept = [segment for segment in decoded.segments if segment.dropped is None]
        right = utterance.text_in(target) if utterance.text else None
        text = joined_text(kept)
        yield Observation(
            group=group,
            has_text=bool(utterance.text),
            written=bool(kept),
            chrf=corpus_score(chrf(), [text.lower()], [right.lower()]) if right else 0.0,
            mean_log_probability=decoded.hypothesis.mean_log_probability if decoded.hypothesis else 0.0,
            state=state,
        )


def _inputs(observations: Sequence[Observation]) -> npt.NDArray[np.float64]:
    """(N, 1 + D): log-probability and mean state."""
    return np.array([[one.mean_log_probability, *one.state] for one in observations], np.float64)


def fit(observations: Sequence[Observation], options: CalibrationOptions) -> Domain:
    """The logistic regression, and the threshold that drops a given share of the texts that are right.

    The threshold is found on probabilities of regressions that were fitted without the text in question.

    Args:
        observations: of speech that the model understands, and of sound that it does not.
        options: the share.

    Raises:
        SprachbundError: there are too few texts of one of the two.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen = [one for one in observations if one.written]
    clear = [one for one in seen if one.chrf >= UNDERSTOOD or not one.understood]
    wrong = np.array([not one.understood for one in clear])
    for count, what in ((sum(wrong), "wrong"), (sum(~wrong), "right")):
        if count < 10 * _FOLDS:
            raise SprachbundError(
                f"the model wrote {count} texts that are {what}, and {10 * _FOLDS} are needed; give corpora with more "
                "speech that it understands, and more sound that it does not (`sprachbund data make outside`)"
            )
    regression = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=_REGULARISATION, class_weight="balanced", max_iter=2000),
    )
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=options.seed)
    inputs = _inputs(clear)
    apart = cross_val_predict(regression, inputs, wrong, cv=folds, method="predict_proba")[:, 1]
    threshold = float(np.quantile(apart[~wrong], 1 - options.max_dropped))
    regression.fit(inputs, wrong)
    scaler, logistic = regression[0], regression[1]
    weights = logistic.coef_[0] / scaler.scale_
    return Domain(
        threshold=round(threshold, 4),
        bias=round(float(logistic.intercept_[0] - weights @ scaler.mean_), 5),
        mean_log_probability=round(float(weights[0]), 5),
        encoder=[round(float(weight), 5) for weight in weights[1:]],
    )


def probabilities(observations: Sequence[Observation], domain: Domain) -> npt.NDArray[np.float64]:
    """The probability (N,) that each text is not what was said."""
    log_odds = _inputs(observations) @ np.array([domain.mean_log_probability, *domain.encoder]) + domain.bias
    return np.asarray(1 / (1 + np.exp(-log_odds)))


def measure(observations: Sequence[Observation], domain: Domain) -> dict[str, list[dict[str, Any]]]:
    """What the threshold does to each group, and the trade-off.

    Args:
        observations: that nothing was fitted on.
        domain: of the model.

    Returns:
        rows: for each group, in per cent of its segments: the wrong texts written before and now, and in per cent of
            the texts that are not wrong, those that are dropped.
        signals: the area under the curve of each signal alone and of both.
        curve: the same two rates over all groups, for several thresholds.
    """
    from sklearn.metrics import roc_auc_score

    p = probabilities(observations, domain)
    groups = np.array([one.group for one in observations])
    written = np.array([one.written for one in observations])
    understood = np.array([one.understood for one in observations]) & written
    wrong = written & ~understood
    passes = p <= domain.threshold
    rows: list[dict[str, Any]] = []
    for group in dict.fromkeys(groups.tolist()):
        own = groups == group
        rows.append(
            {
                "sound": group,
                "segments": int(own.sum()),
                "wrong_text_before_%": _share(wrong & own, own),
                "wrong_text_now_%": _share(wrong & own & passes, own),
                "dropped_though_understood_%": _share(understood & own & ~passes, understood & own),
                "dropped_in_all_%": _share(~passes & written & own, own),
            }
        )
    inputs = _inputs(observations)
    alone = {
        "mean log-probability": -inputs[:, 0],
        "mean encoder state": inputs[:, 1:] @ np.array(domain.encoder),
        "both": p,
    }
    signals = [
        {"signal": name, "area_under_curve": round(float(roc_auc_score(wrong[written], x[written])), 3)}
        for name, x in alone.items()
    ]
    foreign = ~np.array([one.has_text for one in observations])
    curve = [
        {
            "threshold": level,
            "foreign_sound_written_%": _share(written & foreign & (p <= level), foreign),
            "dropped_though_understood_%": _share(understood & (p > level), understood),
        }
        for level in sorted({0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, domain.threshold})
    ]
    return {"rows": rows, "signals": signals, "curve": curve}


def provenance(
    model: Path, data: Sequence[Path], test: Sequence[Path], options: CalibrationOptions
) -> dict[str, Any]:
    """What was measured with what, for the written tables.

    Args:
        model: directory, with its new calibration.
        data: corpora of the calibration.
        test: corpora of the measurement.
        options: of both.
    """
    return {
        "model": content_hash(model),
        "data": {corpus_name(one): data_hash(one) for one in data},
        "test": {corpus_name(one): data_hash(one) for one in test},
        "options": asdict(options),
        "commit": commit(),
    }


def write_tables(out: Path, measured: Mapping[str, list[dict[str, Any]]], origin: Mapping[str, Any]) -> None:
    """Write `domain.json`, `domain_signals.json` and `domain_curve.json`, which documents show as tables.

    Args:
        out: folder; it is made if need be.
        measured: of `measure`.
        origin: of `provenance`.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in measured.items():
        file = "domain.json" if name == "rows" else f"domain_{name}.json"
        write_json(out / file, {**origin, "rows": rows})


def _share(some: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_]) -> float | None:
    """In per cent; None of nothing."""
    return round(100 * float(some.sum() / of.sum()), 1) if of.any() else None

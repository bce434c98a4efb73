"""Calibration of what a model does not understand (its out-of-domain score), written into its directory.

`collect` lets the model translate corpora and keeps, of every text that the rest of the guard lets pass, the mean
encoder state, the signals of `sprachbund.models.calibration`, and whether the text is right. Utterances without a text
are sound that nobody could translate; for the others, chrF decides. `fit` makes the `Domain` of that module from them,
and `measure` says what it drops in other corpora, which it was not fitted on.
"""

import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from sprachbund.audio.augment import WIDE, augment
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import VoiceActivity, iter_speech_spans
from sprachbund.audio.tempo import change_tempo
from sprachbund.data.manifest import Manifest, Utterance
from sprachbund.decoding.domain import LatestSpans, layers_read, span_signals, span_states, text_signals
from sprachbund.decoding.encoding import encode_spans
from sprachbund.decoding.languages import LanguageTracker, Request
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.pipeline import decode_spans
from sprachbund.decoding.recordings import RecordedSpan, RecordingState, whole_span
from sprachbund.decoding.result import LIKELY_WRONG, joined_text, likely_wrong
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.failures import Rate
from sprachbund.evaluation.hypotheses import corpus_name
from sprachbund.evaluation.lines import same_language
from sprachbund.evaluation.metrics import chrf, corpus_score
from sprachbund.evaluation.options import CalibrationOptions
from sprachbund.evaluation.significance import units_of
from sprachbund.models.base import Family, use_tier
from sprachbund.models.calibration import Domain, HiddenUnit, Signal, probability
from sprachbund.models.io import content_hash
from sprachbund.util.files import write_json
from sprachbund.util.provenance import commit, data_hash

UNDERSTOOD, NOT_UNDERSTOOD = 50.0, 20.0
"""chrF from which a text is right, and below which it is wrong; what lies between is not learned from.

What is measured counts every text as understood that is not wrong: a text in doubt must not be dropped, and no network
should learn from it.
"""
_LONGEST_S = 15.0
_PAUSE_S = (0.2, 0.7)
_FOLDS = 5
_HIDDEN_UNITS, _WEIGHT_DECAY = 16, 1.0  # alpha of scikit-learn
_NETWORKS = 3  # that begin with other weights; the mean of their log-odds counts
_AT_ONCE, _LEVELS, _SPEAKERS = 0.5, (0.7, 1.4), 20
"""Share of utterances that are heard once more while somebody else speaks, how loud one is over the other, and the
number of speakers who may be the other."""
_FAST, _SLOW = (1.6, 2.2), (0.4, 0.55)
"""Tempos beyond those of training data, of one in ten and of one in twenty of what is varied."""
_RECORDINGS, _SPANS_OF_EACH = 500, 8
_DOUBTFUL: Mapping[Signal, int] = {"mean_log_probability": -1, "ctc_disagreement": 1}
"""The sign of a signal that grows with the doubt."""
_CIRCLES = 20
"""The number of circles that the speakers of a corpus are divided into, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """A text that a model wrote for an utterance.

    Attributes:
        group: corpus and kind of the utterance.
        plain: whether the sound is as the corpus has it.
        has_text: whether the corpus says what is right.
        written: whether the rest of the guard lets it pass.
        chrf: against what is right; 0 where nothing is.
        sources: see `CalibrationSound`.
        signals: signals of the text and its span.
        state: mean encoder state (D,).
        layers: encoder layers that it is of; the last alone if empty.
    """

    group: str
    plain: bool
    has_text: bool
    written: bool
    chrf: float
    sources: tuple[str, ...]
    signals: Mapping[Signal, float]
    state: npt.NDArray[np.float32]
    layers: tuple[int, ...] = ()

    @property
    def understood(self) -> bool:
        """Whether the text is not plainly wrong."""
        return self.chrf >= NOT_UNDERSTOOD


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationSound:
    """A piece of sound that a model is given.

    Attributes:
        group: group in which it is counted.
        utterance: utterance of the corpus.
        samples: (N,) at 16 kHz.
        sources: every speaker who is heard, or where nobody is named, the recording.
        plain: whether it is as the corpus has it.
    """

    group: str
    utterance: Utterance
    samples: npt.NDArray[np.float32]
    sources: tuple[str, ...]
    plain: bool = True


def speaker_circles(directories: Sequence[Path], seed: int) -> dict[str, str]:
    """The circle of every named speaker: two or more who may be heard together, by the name of one of them.

    Speakers who are heard together belong into one fold. If anybody could be heard with anybody, all would belong
    into one. A circle is drawn among speakers who occur in the same corpora; where these are fewer than four,
    everybody stays alone.

    Args:
        directories: directories of the corpora.
        seed: seed of the draw.
    """
    corpora_of = defaultdict[str, set[int]](set)
    for number, directory in enumerate(directories):
        for utterance in Manifest(directory):
            if utterance.speaker:
                corpora_of[utterance.speaker].add(number)
    together = defaultdict[tuple[int, ...], list[str]](list)
    for speaker in sorted(corpora_of):
        together[tuple(sorted(corpora_of[speaker]))].append(speaker)
    circles = dict[str, str]()
    for speakers in together.values():
        random.Random(seed).shuffle(speakers)
        count = len(speakers) if len(speakers) < 4 else min(_CIRCLES, len(speakers) // 2)
        circles |= {speaker: speakers[number % count] for number, speaker in enumerate(speakers)}
    return circles


def read_sounds(
    directory: Path,
    options: CalibrationOptions,
    activity: VoiceActivity,
    *,
    vary: bool,
    circles: Mapping[str, str] | None = None,
) -> Iterator[CalibrationSound]:
    """Utterances of a corpus.

    Sound without a text is cut where a recording would be: a song has many short spans.

    Args:
        directory: directory of the corpus.
        options: number of sounds and seed.
        activity: the voice activity detector.
        vary: every fourth with others of its language behind it, as a recording has several sentences in a row; and
            each once more in another voice, tempo and channel; for fitting.
        circles: circles of speakers; only those of one are heard in one sound. All are of one if None.

    Yields:
        The utterances; and behind every second one with a text, the same while somebody else speaks, without a text.
    """
    manifest, rng = Manifest(directory), random.Random(f"{options.seed}/{directory.name}")
    name = corpus_name(directory)
    last: dict[tuple[str, str], CalibrationSound] = {}  # by language and circle
    latest = defaultdict[str, dict[str, CalibrationSound]](dict)  # by circle and speaker
    groups: dict[str, list[int]] = {}
    for index, utterance in enumerate(manifest):
        group = name if utterance.text else f"{name}: {utterance.custom.get('kind', '')}"
        groups.setdefault(group, []).append(index)
    chosen = [
        (own[number * len(own) // count], group)
        for group, own in groups.items()
        for count in [min(options.limit, len(own))]
        for number in range(count)
    ]
    for index, group in sorted(chosen):
        utterance, samples = manifest[index], manifest.samples(index)
        speaker = utterance.speaker
        source = f"speaker {speaker}" if speaker else f"{directory}/{utterance.id}"
        sound = CalibrationSound(group=group, utterance=utterance, samples=samples, sources=(source,))
        circle = (circles or {}).get(speaker, "")
        if vary and utterance.language:
            key = utterance.language, circle
            before, last[key] = last.get(key), sound
            if before is not None and rng.random() < 0.25:
                sound = _joined(before, sound, rng)
        for one in (sound, _varied(sound, rng)) if vary else (sound,):
            yield from _spans(one, activity)
        if speaker and sound.utterance.text:
            by_speaker = latest[circle]
            others = [one for who, one in by_speaker.items() if who != speaker]
            if others and rng.random() < _AT_ONCE:
                yield _at_once(sound, rng.choice(others), name, rng)
            by_speaker[speaker] = sound
            if len(by_speaker) > _SPEAKERS:
                by_speaker.pop(next(iter(by_speaker)))


def _spans(sound: CalibrationSound, activity: VoiceActivity) -> Iterator[CalibrationSound]:
    """The sound, or its spans where it has no text."""
    sound = replace(sound, samples=sound.samples[: round(_LONGEST_S * SAMPLE_RATE)])
    spans = iter_speech_spans([sound.samples], SpanOptions(), activity=activity)
    cut = [] if sound.utterance.text else [replace(sound, samples=samples) for _, samples in spans]
    yield from cut or [sound]


def _varied(sound: CalibrationSound, rng: random.Random) -> CalibrationSound:
    """As another voice in another channel; now and then so fast or slow that the model hardly understands it."""
    samples = augment(sound.samples, np.random.default_rng(rng.getrandbits(63)), WIDE, [])
    if (drawn := rng.random()) < 0.15:
        samples = change_tempo(samples, rng.uniform(*(_FAST if drawn < 0.1 else _SLOW)))
    return replace(sound, samples=samples, plain=False)


def _at_once(
    first: CalibrationSound, second: CalibrationSound, corpus: str, rng: random.Random
) -> CalibrationSound:
    """Two speakers at the same time, about equally loud; the shorter one begins again until the longer one ends."""
    shorter, longer = sorted((first.samples, second.samples), key=len)
    level = [max(1e-6, float(np.sqrt(np.mean(np.square(one))))) for one in (shorter, longer)]
    mixed = longer / level[1] + rng.uniform(*_LEVELS) * np.resize(shorter, len(longer)) / level[0]
    samples = (0.5 * mixed / np.abs(mixed).max()).astype(np.float32)[: round(_LONGEST_S * SAMPLE_RATE)]
    utterance = replace(first.utterance, text="", translations={}, language="", speaker="")
    group, sources = f"{corpus}: two at once", _sources(first, second)
    return replace(first, group=group, utterance=utterance, samples=samples, sources=sources)


def _joined(first: CalibrationSound, second: CalibrationSound, rng: random.Random) -> CalibrationSound:
    pause = np.zeros(round(rng.uniform(*_PAUSE_S) * SAMPLE_RATE), np.float32)
    samples = np.concatenate([first.samples, pause, second.samples])
    if len(samples) > _LONGEST_S * SAMPLE_RATE:
        return second
    one, other = first.utterance.translations, second.utterance.translations
    translations = {tag: f"{one[tag]} {other[tag]}" for tag in one.keys() & other.keys()}
    text = f"{first.utterance.text} {second.utterance.text}"
    utterance = replace(second.utterance, text=text, translations=translations)
    return replace(second, utterance=utterance, samples=samples, sources=_sources(first, second))


def _sources(first: CalibrationSound, second: CalibrationSound) -> tuple[str, ...]:
    """Those of both, each once."""
    return tuple(dict.fromkeys(first.sources + second.sources))


def collect(
    model: Family,
    directories: Sequence[Path],
    options: CalibrationOptions,
    *,
    vary: bool,
    layers: Sequence[int] | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Observation]:
    """Let a model translate corpora, each utterance into one language.

    A model that streams hears the batches of what is fitted on by all of its tiers in turn, and what is measured by the
    one that it has. Speech that it understands, without a text in a language that it writes it in, is left out: whether
    its text is right, the corpus does not say.

    Args:
        model: any family.
        directories: directories of the corpora.
        options: number of utterances.
        vary: see `read_sounds`.
        layers: encoder layers whose mean states are kept; those of `layers_read` if None.
        progress: called with the corpus, utterances done, and in all.

    Raises:
        SprachbundError: all of a corpus is left out.
    """
    activity, rng, observations = VoiceActivity(), random.Random(options.seed), list[Observation]()
    pairs = model.pairs()
    # Nothing is fitted on what is measured, so there anybody may be heard with anybody.
    circles = speaker_circles(directories, options.seed) if vary else None
    streaming = model.capabilities.streaming if vary else None
    before, tiers = (None, ()) if streaming is None else (streaming.encoder.tier, streaming.encoder.tiers)
    for directory in directories:
        progress(f"reading {directory}", 0, 0)
        every = read_sounds(directory, options, activity, vary=vary, circles=circles)
        sounds = [sound for sound in every if _can_be_scored(model, pairs, sound.utterance)]
        if not sounds:
            raise SprachbundError(
                f"{directory} has no text in a language that the model writes for the speech in it; add translations, "
                "or leave it out"
            )
        sounds.sort(key=lambda sound: len(sound.samples))  # even lengths in a batch
        for number, start in enumerate(range(0, len(sounds), options.batch_size)):
            progress(str(directory), start, len(sounds))
            if tiers:
                use_tier(model, tiers[number % len(tiers)].right)
            batch = sounds[start : start + options.batch_size]
            observations += _observe(model, batch, activity, layers, rng)
    if before is not None:
        use_tier(model, before.right)
    return observations


def _scored_targets(pairs: Collection[tuple[str, str]], utterance: Utterance) -> list[str]:
    """Languages that a model of such pairs writes speech in, of which the corpus has a text."""
    return sorted(
        target for source, target in pairs if source == utterance.language and utterance.text_in(target)
    )


def _can_be_scored(model: Family, pairs: Collection[tuple[str, str]], utterance: Utterance) -> bool:
    """Whether the corpus says what is right: it does of sound without a text, and of speech in unknown languages, too,
    for which no text is right."""
    known = any(same_language(utterance.language, source) for source in model.source_languages)
    return not (utterance.text and known) or bool(_scored_targets(pairs, utterance))


def _observe(
    model: Family,
    batch: Sequence[CalibrationSound],
    activity: VoiceActivity,
    layers: Sequence[int] | None,
    rng: random.Random,
) -> Iterator[Observation]:
    # The threshold of before, if any, must not decide what the next one is fitted on.
    limit = None if model.calibration.domain is None else 1.0
    decoding = DecodingOptions(guard=GuardOptions(max_out_of_domain=limit))
    pairs = model.pairs()
    written = sorted({target for _, target in pairs})
    spans, wanted = [], []
    for sound in batch:
        utterance = sound.utterance
        target = rng.choice(_scored_targets(pairs, utterance) or written)
        wanted.append(target)
        recording = RecordingState(
            request=Request(source=None, targets=(target,), allowed=None),
            options=decoding,
            tracker=LanguageTracker(model.source_languages, None, 1),
            unidentified=target,
        )
        span = whole_span(sound.samples, decoding.spans, activity)
        spans.append(RecordedSpan(recording=recording, span=span, samples=sound.samples))
    encoded = encode_spans(model, spans)
    durations_s = [len(span.samples) / SAMPLE_RATE for span in spans]
    memory = encoded.memory
    layers = layers_read(memory) if layers is None else layers
    means = span_states(memory, durations_s, model.frame_s, layers).cpu().numpy()
    sources = [identified.language for identified in encoded.languages]
    signals = span_signals(model, memory, sources, durations_s)
    for sound, target, state, own, (decoded,) in zip(
        batch, wanted, means, signals, decode_spans(model, spans, encoded), strict=True
    ):
        kept = [segment for segment in decoded.segments if segment.dropped is None]
        right = sound.utterance.text_in(target) if sound.utterance.text else None
        text = joined_text(kept)
        yield Observation(
            group=sound.group,
            plain=sound.plain,
            has_text=bool(sound.utterance.text),
            written=bool(kept),
            chrf=corpus_score(chrf(), [text.lower()], [right.lower()]) if right else 0.0,
            sources=sound.sources,
            signals=own | (text_signals(decoded.hypothesis) if decoded.hypothesis else {}),
            state=state,
            layers=tuple(layers),
        )


def _inputs(observations: Sequence[Observation], names: Sequence[Signal]) -> npt.NDArray[np.float64]:
    """(N, S + D): S signals and the mean state."""
    return np.array([[*(one.signals.get(name, 0.0) for name in names), *one.state] for one in observations])


def clear_cases(observations: Sequence[Observation]) -> list[Observation]:
    """Return the texts written that are right or wrong, without those between."""
    return [one for one in observations if one.written and (one.chrf >= UNDERSTOOD or not one.understood)]


def fit(observations: Sequence[Observation], options: CalibrationOptions) -> Domain:
    """Networks with one hidden layer, and the threshold that drops a given share of the texts that are right.

    The threshold is found on right texts of sound as the corpora have it, by networks that were fitted without any
    sound of the speaker in question.

    Args:
        observations: observations of speech that the model understands, and of sound that it does not.
        options: the share.

    Raises:
        SprachbundError: there are too few texts of one of the two, or all right ones are of one speaker.
    """
    clear = clear_cases(observations)
    wrong = np.array([not one.understood for one in clear])
    for count, what in ((sum(wrong), "wrong"), (sum(~wrong), "right")):
        if count < 10 * _FOLDS:
            raise SprachbundError(
                f"the model wrote {count} texts that are {what}, and {10 * _FOLDS} are needed; give corpora with more "
                "speech that it understands, and more sound that it does not (`sprachbund data make outside`)"
            )
    names, p = held_out(clear, options.seed)
    plain = np.array([one.plain for one in clear])
    threshold = float(np.quantile(p[~wrong & plain], 1 - options.max_dropped))
    networks = _networks(_inputs(clear, names), wrong, options.seed)
    # Rounded up, so that no more are dropped than asked for.
    return _domain(networks, names, clear[0].layers, ceil(threshold * 10_000) / 10_000)


def held_out(clear: Sequence[Observation], seed: int) -> tuple[list[Signal], npt.NDArray[np.float64]]:
    """Signals that all observations have, and probabilities (N,) by networks fitted on other speakers and recordings.

    Args:
        clear: observations whose text is right or wrong.
        seed: seed of folds and networks.

    Raises:
        SprachbundError: all right or all wrong texts are of one speaker.
    """
    from scipy.special import expit, logit

    names = [name for name in get_args(Signal) if all(name in one.signals for one in clear)]
    inputs, wrong = _inputs(clear, names), np.array([not one.understood for one in clear])
    p = np.zeros(len(clear))
    for others, own in folds(clear, seed):
        networks = _networks(inputs[others], wrong[others], seed)
        given = np.array([one.predict_proba(inputs[own])[:, 1] for one in networks])
        p[own] = expit(logit(given.clip(1e-12, 1 - 1e-12)).mean(0))
    return names, p


def folds(
    clear: Sequence[Observation], seed: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Numbers of the observations that are fitted on, and of those held out; no source is in both.

    Args:
        clear: observations whose text is right or wrong.
        seed: seed of the folds.

    Raises:
        SprachbundError: all right or all wrong texts are of one speaker.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups, wrong = units_of(one.sources for one in clear), np.array([not one.understood for one in clear])
    for which, what in ((wrong, "wrong"), (~wrong, "right")):
        if len(np.unique(groups[which])) < 2:
            raise SprachbundError(
                f"all texts that are {what} are of one speaker, or of speakers who are heard together; give corpora "
                "with more speakers"
            )
    split = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed).split(groups, wrong, groups)
    return ((others, own) for others, own in split if len(own))


def _networks(inputs: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_], seed: int) -> list[Any]:
    """Some that begin with other weights."""
    return [_network(inputs, wrong, seed + number) for number in range(_NETWORKS)]


def _network(inputs: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_], seed: int) -> Any:
    """On standardised inputs; all right texts weigh as much as all wrong ones."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils.class_weight import compute_sample_weight

    layers = MLPClassifier((_HIDDEN_UNITS,), alpha=_WEIGHT_DECAY, max_iter=500, random_state=seed)
    weights = compute_sample_weight("balanced", wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many passes are enough
        return make_pipeline(StandardScaler(), layers).fit(
            inputs, wrong, mlpclassifier__sample_weight=weights
        )


def _domain(
    networks: Sequence[Any], names: Sequence[Signal], layers: Sequence[int], threshold: float
) -> Domain:
    """The mean of networks as the model's directory holds it, for inputs as they are."""
    units, count = list[HiddenUnit](), len(networks)
    for scaler, perceptron in networks:
        weights = perceptron.coefs_[0].T / scaler.scale_
        biases = perceptron.intercepts_[0] - weights @ scaler.mean_
        units += [
            HiddenUnit(
                weight=round(float(weight) / count, 5),
                bias=round(float(bias), 5),
                signals={name: round(float(one), 5) for name, one in zip(names, row, strict=False)},
                encoder=[round(float(one), 5) for one in row[len(names) :]],
            )
            for weight, bias, row in zip(perceptron.coefs_[1][:, 0], biases, weights, strict=True)
        ]
    bias = float(np.mean([perceptron.intercepts_[1][0] for _, perceptron in networks]))
    return Domain(threshold=threshold, bias=round(bias, 5), layers=list(layers), hidden=units)


def log_odds(observations: Sequence[Observation], domain: Domain) -> npt.NDArray[np.float64]:
    """The log-odds (N,) that each text is not what was said; minus infinity where none was written."""
    states = torch.from_numpy(np.stack([one.state for one in observations]))
    return np.array(
        [
            domain.log_odds(of_state, one.signals) if one.written else -np.inf
            for of_state, one in zip(domain.weigh_states(states), observations, strict=True)
        ]
    )


def probabilities(observations: Sequence[Observation], domain: Domain) -> npt.NDArray[np.float64]:
    """The same as probabilities (N,)."""
    return np.array([probability(one) for one in log_odds(observations, domain)])


def in_recordings(
    observations: Sequence[Observation], domain: Domain
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Draw recordings whose spans are these observations, and score each span after those before it.

    Args:
        observations: observations of one kind of sound; spans count as equally long.
        domain: domain of the model.

    Returns:
        Which observation each of `_RECORDINGS` times `_SPANS_OF_EACH` spans is, whether its text is dropped, and
        whether a warning names it: it is likely wrong, or most of what was written in its recording is that or dropped.
    """
    rng, doubts, threshold = random.Random(0), log_odds(observations, domain), domain.threshold_log_odds
    drawn, dropped, warned = list[int](), list[bool](), list[bool]()
    for _ in range(_RECORDINGS):
        latest, doubtful, written = LatestSpans(), list[bool](), 0
        for index in rng.choices(range(len(observations)), k=_SPANS_OF_EACH):
            doubt = doubts[index] + latest.log_odds("")
            drawn.append(index)
            dropped.append(doubt > threshold)
            doubtful.append(likely_wrong(probability(doubt)))
            if observations[index].written:
                latest.add("", doubts[index] - threshold, 1.0)
                written += 1
        mostly = 2 * sum(doubtful) > written
        warned += [one or mostly for one in doubtful]
    return np.array(drawn), np.array(dropped), np.array(warned)


def measure(observations: Sequence[Observation], domain: Domain) -> dict[str, list[dict[str, Any]]]:
    """Measure the effect of the threshold on each group, and the trade-off.

    Args:
        observations: observations that nothing was fitted on.
        domain: domain of the model.

    Returns:
        rows: for each group, in per cent of its segments: the wrong texts written before and now, and those of now that
            come without a warning; and in per cent of the texts that are not wrong, those that are dropped, and those
            with a warning; for single spans, with Wilson's intervals, and in recordings of such spans, which are drawn
            from the same and have none.
        signals: the area under the curve of each signal alone, of the state (with the signals at their means), and of
            all; dashes where all texts are right, or all are wrong.
        curve: the same two rates over all groups, for several thresholds.
    """
    p = probabilities(observations, domain)
    groups = np.array([one.group for one in observations])
    written = np.array([one.written for one in observations])
    understood = np.array([one.understood for one in observations]) & written
    wrong = written & ~understood
    passes, sure = p <= domain.threshold, p <= LIKELY_WRONG
    rows: list[dict[str, Any]] = []
    for group in dict.fromkeys(groups.tolist()):
        own = groups == group
        drawn, dropped, warned = in_recordings([one for one in observations if one.group == group], domain)
        wrong_spans, understood_spans = wrong[own][drawn], understood[own][drawn]
        rows.append(
            {
                "sound": group,
                "segments": int(own.sum()),
                "wrong_text_before_%": _share(wrong & own, own),
                "wrong_text_now_%": _share(wrong & own & passes, own),
                "wrong_text_now_95%": _interval(wrong & own & passes, own),
                "wrong_text_in_recordings_%": _share(wrong_spans & ~dropped, np.ones_like(dropped)),
                "wrong_without_warning_%": _share(wrong & own & passes & sure, own),
                "wrong_without_warning_95%": _interval(wrong & own & passes & sure, own),
                "wrong_without_warning_in_recordings_%": _share(
                    wrong_spans & ~dropped & ~warned, np.ones_like(dropped)
                ),
                "dropped_though_understood_%": _share(understood & own & ~passes, understood & own),
                "dropped_though_understood_95%": _interval(understood & own & ~passes, understood & own),
                "dropped_though_understood_in_recordings_%": _share(
                    understood_spans & dropped, understood_spans
                ),
                "understood_with_warning_%": _share(understood & own & passes & ~sure, understood & own),
                "understood_with_warning_in_recordings_%": _share(
                    understood_spans & ~dropped & warned, understood_spans
                ),
            }
        )
    values = {
        name: np.array([one.signals.get(name, 0.0) for one in observations])
        for name in get_args(Signal)
        if name in domain.signal_names
    }
    means = {name: float(value[written].mean()) if written.any() else 0.0 for name, value in values.items()}
    alone = {
        **{name.replace("_", " "): _DOUBTFUL[name] * value for name, value in values.items()},
        "mean encoder state": probabilities([replace(one, signals=means) for one in observations], domain),
        "all": p,
    }
    signals = [
        {"signal": name, "area_under_curve": _area(wrong[written], x[written])} for name, x in alone.items()
    ]
    textless = ~np.array([one.has_text for one in observations])
    curve = [
        {
            "threshold": level,
            "textless_sound_written_%": _share(written & textless & (p <= level), textless),
            "dropped_though_understood_%": _share(understood & (p > level), understood),
        }
        for level in sorted({0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, domain.threshold})
    ]
    return {"rows": rows, "signals": signals, "curve": curve}


def provenance(
    model: Path, data: Sequence[Path], test: Sequence[Path], options: CalibrationOptions
) -> dict[str, Any]:
    """Return the model, data, options and commit of a measurement, for the written tables.

    Args:
        model: directory, with its new calibration.
        data: corpora of the calibration.
        test: corpora of the measurement.
        options: options of both.
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
        measured: result of `measure`.
        origin: result of `provenance`.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in measured.items():
        file = "domain.json" if name == "rows" else f"domain_{name}.json"
        write_json(out / file, {**origin, "rows": rows})


def _area(wrong: npt.NDArray[np.bool_], doubts: npt.NDArray[np.float64]) -> float | str:
    """Under the curve of doubts (N,) about texts that are wrong (N,) or right; a dash where there is one kind only."""
    from sklearn.metrics import roc_auc_score

    return round(float(roc_auc_score(wrong, doubts)), 3) if wrong.any() and not wrong.all() else "-"


def _share(some: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_]) -> float | str:
    """In per cent; a dash of nothing."""
    return round(100 * float(some.sum() / of.sum()), 1) if of.any() else "-"


def _interval(some: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_]) -> str:
    """Of the same share, 95 % in per cent; a dash of nothing."""
    low, high = Rate(failed=int(some.sum()), evaluated=int(of.sum())).interval()
    return f"{low:.1f} to {high:.1f}" if of.any() else "-"

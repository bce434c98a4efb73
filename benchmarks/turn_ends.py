"""Which signal tells that a speaker has finished and does not only pause, and what turns are made by it.

    python -m benchmarks.turn_ends signals --source DEBS --write --out benchmarks/turn_ends.json
    python -m benchmarks.turn_ends turns --source DEBS --out benchmarks/turn_ends_live.json

Sentences are the recorded prompts of Debian's asterisk packages, whole and cut off in front of a word, each with 0.2 s
of silence. `signals` fits on the five speakers that models are trained on, and measures the area under the ROC curve on
the three that no model hears, with intervals of a bootstrap over their sentences. `--write` puts the regression into
the bundled model. `turns` plays a talk of those three speakers, whose ends of sentences are known, to live sessions
that write nothing, window by window, as if computing took no time.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.rows import write

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW
from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import VoiceActivity
from sprachbund.corpora.asterisk.prompts import is_clip, load_clips, load_prompt_set
from sprachbund.decoding.ctc import best_path
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.words import align, attended_s
from sprachbund.evaluation.options import CalibrationOptions
from sprachbund.evaluation.turns import Sentence, TurnSound, collect, cut_off, fit, states_of
from sprachbund.models.base import Family, Target
from sprachbund.streaming.engine import LiveEngine, finished_probabilities
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.session import LiveSession
from sprachbund.util.provenance import commit, versions

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "src" / "sprachbund" / "models" / "assets" / "bundled"
PLAIN = DecodingOptions(draft="none")
SILENCE_S = 0.2
NATURAL_S = 0.1
"""Quiet around a cut from which it is a pause of the speaker."""
DRAWS = 1000
_NEAR_S = 0.2
"""By which the end of a stretch may miss the end of its sentence."""
STATES = "encoder states"
END, END_OF_CTC, LIKELY, UNHEARD = "end token", "end token behind CTC", "log-probability", "words at the end"
STABLE, ENERGY, PITCH = "stable text", "falling energy", "falling pitch"


def sentences_of(source: Path | None, cache: Path, *, held_out: bool) -> list[tuple[str, str, Sentence]]:
    """Prompts that are sentences: name, split of its wording, and the sentence.

    Their documented wording has punctuation, by which sentences are told from parts of sentences.
    """
    prompts = load_prompt_set(source, cache=cache)
    chosen = [
        prompt
        for prompt in prompts.prompts
        if prompt.held_out == held_out
        and not is_clip(prompt.name)
        and 1.0 <= prompt.duration_s <= 9.0
        and len(prompt.text.split()) == len(prompt.raw_text.split()) >= 4
        and prompt.raw_text.strip()[0].isupper()
        and re.search(r"[^.][.!?]$", prompt.raw_text.strip())
    ]
    clips = load_clips(chosen, max_duration_s=10)
    return [
        (
            prompt.name,
            prompts.split_of_prompt(prompt.name),
            Sentence(
                samples=clips[prompt.speaker].samples[prompt.name],
                words=prompt.raw_text.split(),
                spelled=prompt.text.split(),
                language=prompt.language,
                speaker=prompt.speaker,
            ),
        )
        for prompt in chosen
    ]


@torch.inference_mode()
def signals(family: Family, sound: TurnSound) -> dict[str, float]:
    """The signals that need no fitting, each the larger the likelier the speaker has finished."""
    samples, language = sound.samples, sound.sentence.language
    duration_s, target = len(samples) / SAMPLE_RATE, Target(language=language, source=language)
    memory = family.encode(family.features([samples]))
    hypothesis = search(family, memory, [[target]], PLAIN, [duration_s])[0][0]
    encode, head = family.capabilities.encode_text, family.capabilities.transcript_head
    assert encode is not None
    assert head is not None

    def ends(tokens: Sequence[int]) -> float:
        row = [[[*tokens, family.end_token]]]
        return align(family, memory, [[target]], row, [duration_s])[0][0].log_probabilities[-1]

    heard = head.decode_transcript(best_path(head.transcript_log_probs(memory)[0].float().numpy())[0])
    looks = attended_s(family, memory, [[target]], [[hypothesis.tokens]], [duration_s])[0][0]
    earlier = samples[: max(len(samples) - SAMPLE_RATE // 2, SAMPLE_RATE // 2)]
    before = family.encode(family.features([earlier]))
    first = search(family, before, [[target]], PLAIN, [len(earlier) / SAMPLE_RATE])[0][0]
    speech = samples[: len(samples) - round(SILENCE_S * SAMPLE_RATE)]
    return {
        END: ends(hypothesis.tokens),
        END_OF_CTC: ends(encode(heard)),
        LIKELY: hypothesis.mean_log_probability,
        UNHEARD: -float(sum(second >= duration_s - SILENCE_S - 0.12 for second in looks)),
        STABLE: float(first.tokens == hypothesis.tokens),
        ENERGY: -math.log(_loudness(speech[-SAMPLE_RATE // 4 :]) / _loudness(speech)),
        PITCH: -_pitch_slope(speech[-round(0.6 * SAMPLE_RATE) :]),
    }


def _loudness(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples).mean() + 1e-10))


def _pitch_slope(samples: np.ndarray) -> float:
    """Slope of the logarithm of the pitch, by autocorrelation of 40 ms every 10 ms; 0 where little is voiced."""
    width, step, points = SAMPLE_RATE // 25, SAMPLE_RATE // 100, []
    for begin in range(0, len(samples) - width, step):
        piece = samples[begin : begin + width]
        lags = np.correlate(piece - piece.mean(), piece - piece.mean(), "full")[width - 1 :]
        lag = SAMPLE_RATE // 400 + int(lags[SAMPLE_RATE // 400 : SAMPLE_RATE // 70].argmax())
        if _loudness(piece) > 0.02 and lags[lag] > 0.4 * lags[0]:
            points.append((begin / SAMPLE_RATE, math.log(SAMPLE_RATE / lag)))
    return float(np.polyfit(*zip(*points, strict=True), 1)[0]) if len(points) > 5 else 0.0


def auc_with_interval(scores: np.ndarray, finished: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Area under the ROC curve, with the 95 % interval of a bootstrap over sentences."""
    from sklearn.metrics import roc_auc_score

    rng, unique = np.random.default_rng(0), sorted(set(names))
    rows = {name: [n for n, own in enumerate(names) if own == name] for name in unique}
    drawn = []
    for _ in range(DRAWS):
        chosen = np.concatenate([rows[unique[n]] for n in rng.integers(len(unique), size=len(unique))])
        if 0 < finished[chosen].sum() < len(chosen):
            drawn.append(roc_auc_score(finished[chosen], scores[chosen]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"auc": float(roc_auc_score(finished, scores)), "low": float(low), "high": float(high)}


def measure_signals(options: argparse.Namespace) -> dict[str, Any]:
    """Fit on the core speakers, measure on those that are held out."""
    family = sprachbund.load("bundled").family
    known = sentences_of(options.source, options.cache, held_out=False)
    states, finished = collect(family, [sentence for _, _, sentence in known], CalibrationOptions())
    ends = fit(states, finished)
    if options.write:
        ends.write(BUNDLED)
    tested = [
        (name, split, sound)
        for name, split, sentence in sentences_of(options.source, options.cache, held_out=True)
        for sound in cut_off(family, sentence)[: options.sounds]
    ]
    scores: dict[str, list[float]] = {}
    for number, (_, _, sound) in enumerate(tested):
        values = signals(family, sound)
        values[STATES] = ends.probabilities(torch.from_numpy(states_of(family, [sound.samples])))[0]
        for name, value in values.items():
            scores.setdefault(name, []).append(value)
        if number % 100 == 0:
            print(number, len(tested), flush=True)
    whole = np.array([sound.finished for _, _, sound in tested])
    unseen = np.array([split != "train" for _, split, _ in tested])
    natural = np.array([sound.finished or sound.pause_s >= NATURAL_S for _, _, sound in tested])
    rows = []
    for name in (STATES, END, END_OF_CTC, LIKELY, UNHEARD, STABLE, ENERGY, PITCH):
        row: dict[str, Any] = {"signal": name}
        for what, part in (("all", whole | True), ("natural_pauses", natural), ("unseen_wording", unseen)):
            names = [f"{t[0]} {t[2].sentence.speaker}" for t, own in zip(tested, part, strict=True) if own]
            values = auc_with_interval(np.array(scores[name])[part], whole[part], names)
            row[what] = f"{values['auc']:.3f} ({values['low']:.3f} to {values['high']:.3f})"
        rows.append(row)
    return {
        "what": "area under the ROC curve, finished against cut off, speakers held out; 95 % intervals",
        "fitted_on": {"sentences": len(known), "sounds": len(finished), "finished": int(finished.sum())},
        "tested_on": {
            "finished": int(whole.sum()),
            "cut off": int((~whole).sum()),
            "of these at a pause of the speaker": int((natural & ~whole).sum()),
            "with unseen wording": int(unseen.sum()),
        },
        "rows": rows,
    }


# Turns of a talk.


def talk(
    sentences: Sequence[Sentence], family: Family, rng: np.random.Generator
) -> tuple[np.ndarray, list[float], list[float]]:
    """Sentences with pauses inside, and longer ones between them: samples, real ends, and where pauses are inside (s).

    Pauses inside are log-normal with a median of 0.6 s, as of speakers who search for a word; between sentences there
    are 9 to 12 s, so that an end that is found late is still found.
    """
    pieces, ends, inside, now = [], list[float](), list[float](), 0

    def add(samples: np.ndarray) -> None:
        nonlocal now
        pieces.append((samples + rng.normal(size=len(samples)) * 3e-4).astype(np.float32))
        now += len(samples)

    add(np.zeros(SAMPLE_RATE))
    for sentence in sentences:
        cuts = [sound for sound in cut_off(family, sentence) if not sound.finished]
        whole, begin = sentence.samples, 0
        if cuts:
            cut = cuts[int(rng.integers(len(cuts)))]
            begin = len(cut.samples) - 2 * round(SILENCE_S * SAMPLE_RATE)
            add(whole[:begin])
            inside.append(now / SAMPLE_RATE)
            add(np.zeros(round(min(3.0, float(rng.lognormal(math.log(0.6), 0.6))) * SAMPLE_RATE)))
        add(whole[begin:])
        ends.append(now / SAMPLE_RATE)
        add(np.zeros(round(rng.uniform(9, 12) * SAMPLE_RATE)))
    return np.concatenate(pieces), ends, inside


def measure_turns(options: argparse.Namespace) -> dict[str, Any]:
    """Turns cut in the middle, and the delay of the others, by pauses alone and with the model."""
    family = sprachbund.load("bundled").family
    held = [sentence for _, _, sentence in sentences_of(options.source, options.cache, held_out=True)]
    rng = np.random.default_rng(options.seed)
    drawn = [held[n] for n in rng.permutation(len(held))[: options.sentences]]
    samples, ends_s, inside = talk(drawn, family, rng)
    probabilities = VoiceActivity().probabilities(samples)
    voiced_s = (np.flatnonzero(probabilities >= SpanOptions().release) + 1) * VAD_WINDOW / SAMPLE_RATE
    # The last sound of a sentence that the detector can hear.
    ends_s = [float(voiced_s[voiced_s <= end_s + 0.1].max()) for end_s in ends_s]
    activity: Any = Replayed(probabilities)
    engine, rows = LiveEngine(family, activity=activity), list[dict[str, Any]]()
    settings = [
        (
            "pause",
            pause_s,
            SpanOptions(min_silence_s=pause_s, padding_s=min(0.2, pause_s / 2)),
            LiveOptions(policy="span"),
        )
        for pause_s in (0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 2.5)
    ]
    settings += [
        (
            "sentence",
            most_s,
            SpanOptions(),
            LiveOptions(policy="span", turn_end="sentence", max_pause_s=most_s),
        )
        for most_s in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    ]
    for rule, setting_s, spans, live in settings:
        session = engine.open([TRANSCRIBE], None, live, spans=spans)
        marks = turns_of(family, session, samples, spans.padding_s)
        rows.append({"rule": rule, "setting_s": setting_s, **turn_scores(marks, ends_s)})
        print(json.dumps(rows[-1]), flush=True)
    return {
        "what": "turns of a made talk: cut in the middle, and delay from the real end to the end of the turn",
        "minutes": round(len(samples) / SAMPLE_RATE / 60, 1),
        "sentences": len(drawn),
        "with_a_pause_inside": len(inside),
        "seed": options.seed,
        "rows": rows,
    }


class Replayed:
    """Voice activity that was computed before, for blocks of whole windows."""

    def __init__(self, probabilities: np.ndarray) -> None:
        self._probabilities, self._given = probabilities, 0

    def stream(self) -> "Replayed":
        """From the beginning."""
        return Replayed(self._probabilities)

    def feed(self, block: np.ndarray) -> np.ndarray:
        """Of the windows of a block."""
        begin, self._given = self._given, self._given + len(block) // VAD_WINDOW
        return self._probabilities[begin : self._given]

    def finish(self) -> np.ndarray:
        """Nothing is left."""
        return np.zeros(0, np.float32)


def turns_of(
    family: Family, session: LiveSession, samples: np.ndarray, padding_s: float
) -> list[tuple[float, float]]:
    """Where the speech of each stretch ended, and how much sound there was when that was known, in seconds.

    Nothing is written: turns do not depend on the text.
    """
    marks = list[tuple[float, float]]()

    def note(number: int, second: float, begins: bool) -> None:
        if not begins:
            marks.append((second - padding_s, session.audio_s))

    session.on_speech = note
    for begin in range(0, len(samples), VAD_WINDOW):
        session.push(samples[begin : begin + VAD_WINDOW])
        while (stretch := session.paused) is not None:
            known = None if stretch.language is None else stretch.language.language
            session.answer_pause(finished_probabilities(family, [stretch.samples], [known])[0])
        session.take_due()
    return marks


def turn_scores(marks: Sequence[tuple[float, float]], ends_s: Sequence[float]) -> dict[str, float]:
    """Sentences cut in the middle (%), and delays of the ends (s).

    Args:
        marks: of each stretch, where its speech ended, and how much sound there was when that was known.
        ends_s: of the sentences.
    """
    cut, delays, before_s = 0, list[float](), 0.0
    for end_s in ends_s:
        own = [mark for mark in marks if before_s < mark[0] <= end_s + _NEAR_S]
        cut += any(said_s < end_s - _NEAR_S for said_s, _ in own)
        delays += [known_s - end_s for said_s, known_s in own if said_s >= end_s - _NEAR_S]
        before_s = end_s + _NEAR_S
    p50, p95 = np.quantile(delays, [0.5, 0.95])
    return {
        "cut_%": 100 * cut / len(ends_s),
        "delay_mean_s": float(np.mean(delays)),
        "delay_p50_s": float(p50),
        "delay_p95_s": float(p95),
        "ends_found": len(delays),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("signals", "turns"))
    parser.add_argument("--source", type=Path, help="Debian packages of the prompts; fetched if not given")
    parser.add_argument("--cache", type=Path, default=ROOT / "corpora" / "asterisk" / ".packages")
    parser.add_argument("--write", action="store_true", help="put the regression into the bundled model")
    parser.add_argument("--sounds", type=int, default=6, help="of a sentence at most, to measure signals on")
    parser.add_argument("--sentences", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure_signals(options) if options.what == "signals" else measure_turns(options)
    print(json.dumps(result, indent=1))
    if options.out:
        head = {
            "threads": 1,
            "versions": versions(),
            "commit": commit(),
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": "bundled",
        }
        write(options.out, head | result)


if __name__ == "__main__":
    main()

"""The same logs through SimulEval and OmniSTEval: the same numbers."""

import json
import math
import multiprocessing.dummy
import random
from pathlib import Path
from statistics import fmean

import pytest

from sprachbund.evaluation.emissions import EmissionLog, ReferenceSegment
from sprachbund.evaluation.latency import (
    CLOCKS,
    WrittenUnits,
    by_likeness,
    by_word_errors,
    latency,
    score_talk,
    text_quality,
)
from sprachbund.text.languages import text_units
from tests.evaluation.made_talks import log_of, made_log, made_references

POLICIES = Path(__file__).parents[2] / "benchmarks" / "live_policies.json"


def segment(text: str, start_s: float, end_s: float, target: str = "de") -> ReferenceSegment:
    return ReferenceSegment(talk="t", target=target, start_s=start_s, end_s=end_s, text=text)


def by_simuleval(log: EmissionLog, reference: str, name: str, clock: str) -> float:
    scorers = pytest.importorskip("simuleval.evaluator.scorers.latency_scorer")
    instances = pytest.importorskip("simuleval.evaluator.instance")
    units = [(unit, e) for e in log.emissions for unit in text_units(e.text, log.target)]
    entry = {
        "index": 0,
        "prediction": " ".join(unit for unit, _ in units),
        "delays": [1000 * e.audio_s for _, e in units],
        "elapsed": [1000 * e.wall_s for _, e in units],
        "reference": reference,
        "source_length": 1000 * log.duration_s,
    }
    instance = instances.LogInstance(json.dumps(entry), "char" if log.target == "zh" else "word")
    scorer = scorers.LATENCY_SCORERS_DICT[name](computation_aware=clock == "computation")
    return scorer({0: instance})


HAND_PICKED = [
    log_of("eins zwei drei", [1.0, 2.0, 3.0], 4.0),
    log_of("eins zwei drei vier fünf sechs sieben", [1, 1, 1, 1, 4, 4, 4], 4.0),  # several at once, too long
    log_of("eins zwei", [4.5, 5.0], 4.0),  # after the end
    log_of("eins zwei drei", [0.0, 3.0, 6.0], 4.0),
]
RANDOM = [made_log(random.Random(seed), target) for seed in range(40) for target in ("de", "zh")]


@pytest.mark.parametrize("name", ["AL", "LAAL", "DAL", "AP"])
def test_simuleval_says_the_same(name: str) -> None:
    for number, log in enumerate([*HAND_PICKED, *RANDOM]):
        references = made_references(random.Random(number), log.target, duration_s=log.duration_s, num=1)
        result = score_talk(log, references)
        for clock in CLOCKS:
            expected = by_simuleval(log, references[0].text, name, clock)
            assert (result.scores[clock][name] or 0) * (1 if name == "AP" else 1000) == pytest.approx(
                expected, abs=1e-6
            )


def test_simuleval_says_the_same_token_delay_by_the_ideal_clock() -> None:
    for log in [*HAND_PICKED, *RANDOM]:
        result = score_talk(log, [segment("x", 0, log.duration_s, log.target)])
        expected = by_simuleval(log, "x", "ATD", "ideal")
        assert (result.scores["ideal"]["ATD"] or 0) * 1000 == pytest.approx(expected, abs=1e-6)


def by_omnisteval(
    log: EmissionLog, references: list[ReferenceSegment], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], dict[str, float]]:
    alignment = pytest.importorskip("omnisteval.alignment")
    monkeypatch.setattr(alignment, "Pool", multiprocessing.dummy.Pool)
    from benchmarks.with_omnisteval import long_form

    return long_form(log, references)


CASES = [
    (made_log(random.Random(n), t), made_references(random.Random(n + 1), t))
    for n in range(12)
    for t in ("de", "zh")
]


@pytest.mark.parametrize(("log", "references"), CASES)
def test_omnisteval_says_the_same(
    log: EmissionLog, references: list[ReferenceSegment], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, scores = by_omnisteval(log, references, monkeypatch)
    written, result = WrittenUnits(log, references), score_talk(log, references)
    owners = by_likeness(written.units, written.references)
    pairs = written.texts(owners)
    assert [pair.hypothesis for pair in pairs] == texts
    for clock, prefix in zip(CLOCKS, ("long", "ca_long"), strict=True):
        assert _ms(result.scores[clock]["LongYAAL"]) == _near(scores[f"{prefix}_yaal"])
        passages = [p for p in written.passages(clock, owners) if p.delays_s]
        for name in ("AL", "LAAL", "DAL"):
            assert _ms(fmean(latency(name, p) or 0 for p in passages)) == _near(
                scores[f"{prefix}_{name.lower()}"]
            )
        assert fmean(latency("AP", p) or 0 for p in passages) == _near(scores[f"{prefix}_ap"])
    if log.target != "zh":
        quality = text_quality(pairs, log.target)
        assert (quality["chrF"], quality["BLEU"]) == (_near(scores["chrf"]), _near(scores["bleu"]))


def test_omnisteval_loses_a_mark_before_the_first_word_and_this_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = log_of("， 我 们", [1.0, 2.0, 3.0], 4.0, target="zh")
    references = [segment("我们", 0.0, 4.0, "zh")]
    assert by_omnisteval(log, references, monkeypatch)[0] == ["我们"]
    written = WrittenUnits(log, references)
    assert written.texts(by_likeness(written.units, written.references))[0].hypothesis == "，我们"


def test_omnisteval_has_no_latency_without_output_either(monkeypatch: pytest.MonkeyPatch) -> None:
    log = EmissionLog(talk="t", target="de", duration_s=30.0, emissions=())
    references = made_references(random.Random(3))
    texts, scores = by_omnisteval(log, references, monkeypatch)
    assert texts == [""] * len(references)
    assert "long_yaal" not in scores or math.isnan(scores["long_yaal"])
    assert score_talk(log, references).scores["ideal"]["LongYAAL"] is None


def test_stream_laal_is_simulevals_laal_of_each_segment() -> None:
    for seed in range(5):
        log, references = made_log(random.Random(seed)), made_references(random.Random(seed + 1))
        written = WrittenUnits(log, references)
        owners = by_word_errors(written.units, written.references)
        for clock in CLOCKS:
            expected = []
            for place, reference in enumerate(references):
                passage = written.passages(clock, owners)[place]
                if not passage.delays_s:
                    continue
                alone = EmissionLog.model_construct(
                    talk="t",
                    target="de",
                    duration_s=passage.source_s,
                    emissions=[_emission(d) for d in passage.delays_s],
                )
                expected.append(by_simuleval(alone, reference.text, "LAAL", "ideal"))
            assert _ms(score_talk(log, references).scores[clock]["StreamLAAL"]) == _near(fmean(expected))


def test_stream_laal_is_omnistevals_laal_of_each_segment() -> None:
    pytest.importorskip("omnisteval")
    from benchmarks.with_omnisteval import stream_laal_s

    for seed in range(5):
        log, references = made_log(random.Random(seed)), made_references(random.Random(seed + 1))
        result = score_talk(log, references)
        for clock in CLOCKS:
            assert result.scores[clock]["StreamLAAL"] == _near(stream_laal_s(log, references, clock))


def test_omnisteval_says_the_same_of_the_ten_minute_talk() -> None:
    rows = json.loads(POLICIES.read_text())["rows"]
    assert len(rows) > 10
    for row in rows:
        for name in ("StreamLAAL", "LongYAAL"):
            assert row[f"{name}_s"] == _near(row[f"{name}_s_by_OmniSTEval"])


def _emission(delay_s: float):
    from sprachbund.evaluation.emissions import Emission

    return Emission.model_construct(text="x", audio_s=delay_s, wall_s=delay_s)


def _ms(value: float | None) -> float:
    return math.nan if value is None else 1000 * value


def _near(value: float):
    return pytest.approx(value, abs=1e-6, nan_ok=True)

"""A talk's output through OmniSTEval's own code (pip install omnisteval), beside the package's numbers.

OmniSTEval finds the segments of LongYAAL itself. It has no search by least word errors, so StreamLAAL is its LAAL of
the segments that the package finds.
"""

from statistics import fmean

from omnisteval import alignment, resegment, scoring
from omnisteval.data import Instance

from sprachbund.evaluation.emissions import EmissionLog, ReferenceSegment
from sprachbund.evaluation.latency import WrittenUnits, by_word_errors
from sprachbund.text.languages import text_units


def long_form(log: EmissionLog, references: list[ReferenceSegment]) -> tuple[list[str], dict[str, float]]:
    """The text of each segment and the scores, in milliseconds, of `omnisteval longform`.

    Args:
        log: of a talk in one language.
        references: of the talk, in order.
    """
    expected = [
        alignment.Word(unit, emission_cu=1000 * reference.start_s, seq_id=number)
        for number, reference in enumerate(references)
        for unit in text_units(reference.text.lower(), reference.target)
    ]
    written = [
        alignment.Word(unit, emission_cu=1000 * emission.audio_s, emission_ca=1000 * emission.wall_s)
        for emission in log.emissions
        for unit in text_units(emission.text, log.target)
    ]
    end_s = max(reference.end_s for reference in references)
    segments = [
        {
            "offset": 1000 * reference.start_s,
            "duration": 1000 * (reference.end_s - reference.start_s),
            "time_to_recording_end": 1000 * (end_s - reference.start_s),
        }
        for reference in references
    ]
    texts = [reference.text for reference in references]
    chars = log.target == "zh"
    instances, _ = resegment([expected], [written], segments, texts, char_level=chars)
    scores, _, _ = scoring.evaluate_instances(
        instances=instances, is_longform=True, compute_quality=not chars
    )
    return [instance.prediction for instance in instances], scores


def stream_laal_s(log: EmissionLog, references: list[ReferenceSegment], clock: str = "ideal") -> float:
    """OmniSTEval's LAAL of the segments by least word errors, in seconds; arguments as of `long_form`.

    Args:
        log: of a talk in one language.
        references: of the talk, in order.
        clock: "ideal" or "computation".
    """
    written = WrittenUnits(log, references)
    passages = written.passages(clock, by_word_errors(written.units, written.references))
    instances = [
        Instance(
            reference=" ".join("x" * passage.num_reference),
            source_length=1000 * passage.source_s,
            emission_cu=[1000 * delay_s for delay_s in passage.delays_s],
        )
        for passage in passages
    ]
    return float(scoring.LAALScorer()(instances)) / 1000


def beside_ours(logs: list[EmissionLog], references: dict[str, list[ReferenceSegment]]) -> dict[str, float]:
    """Means over the languages, in the names of the package.

    Args:
        logs: one for each language, on the ideal clock.
        references: of each language.
    """
    scores = [long_form(log, references[log.target])[1] for log in logs]
    return {
        "StreamLAAL_s_by_OmniSTEval": fmean(stream_laal_s(log, references[log.target]) for log in logs),
        "LongYAAL_s_by_OmniSTEval": fmean(score["long_yaal"] / 1000 for score in scores),
    }

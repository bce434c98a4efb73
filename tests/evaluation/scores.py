"""Scores of lines and corpora in one call, for tests; the package adds lines up as they come."""

from collections.abc import Iterable, Iterator, Sequence

from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import DecodingOptions
from sprachbund.evaluation.code_switch import SwitchTally
from sprachbund.evaluation.failures import identifier_for, in_wrong_language
from sprachbund.evaluation.hypotheses import BATCH_SIZE, make_plan, translate_plan
from sprachbund.evaluation.lines import Line
from sprachbund.evaluation.manifest import DataUsed, ModelUsed, ResultManifest
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.quality import Score, Tally
from sprachbund.evaluation.scoring import Scoring
from sprachbund.models.base import Family


def score_lines(lines: Sequence[Line], *, text: str = "raw") -> list[Score]:
    """All scores of lines of speech."""
    tally = Tally(text=text)
    for line in lines:
        tally.add([line])
    return tally.scores()


def find_score(scores: Iterable[Score], name: str, member: str, **wanted: str) -> float | None:
    """The value of one score; `wanted` are further fields. None when it is not there."""
    result = [
        score.value
        for score in scores
        if (score.metric, score.member) == (name, member)
        and all(getattr(score, key) == value for key, value in wanted.items())
    ]
    return result[0] if result else None


def switching_scores(lines: Sequence[Line]) -> list[Score]:
    """The scores of code-switching."""
    identifier = identifier_for({line.target for line in lines})
    tally = SwitchTally()
    for line in lines:
        tally.add(line, in_wrong_language(line, identifier))
    return tally.scores()


def summarise(
    lines: Sequence[Line], model: ModelUsed, data: list[DataUsed], options: EvaluationOptions
) -> ResultManifest:
    """All numbers of lines, as a manifest."""
    scoring = Scoring({line.target for line in lines if line.source}, options)
    for line in lines:
        scoring.add(line)
    return scoring.manifest(model, data, None)


def translate_manifest(
    model: Family,
    manifest: Manifest,
    targets: Sequence[str] | None = None,
    options: DecodingOptions | None = None,
    batch_size: int = BATCH_SIZE,
    limit: int | None = None,
) -> Iterator[Line]:
    """A corpus in every target."""
    return translate_plan(model, manifest, make_plan(model, manifest, targets, limit), options, batch_size)

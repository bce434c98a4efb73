"""Options of the measurement that follows every compression; they load no torch, since commands are made of them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.util.options import Option, Range, check


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How much is measured.

    Attributes:
        targets: languages to measure; all with references by default.
        limit: most utterances of a corpus, spread over it.
        no_speech_per_kind: sounds of each kind without speech.
        rounds: in which both are timed in turn; 0 for none.
        batch_size: utterances at a time.
        engine: what computes the models.
    """

    targets: Annotated[tuple[str, ...] | None, Option("--to", metavar="LANG,…")] = None
    limit: Annotated[int | None, Range(1), Option("--limit", metavar="N")] = 200
    no_speech_per_kind: Annotated[int, Range(0), Option("--no-speech", metavar="N")] = 4
    rounds: Annotated[int, Range(0), Option("--rounds", metavar="N")] = 3
    batch_size: Annotated[int, Range(1)] = 16
    engine: Annotated[
        Literal["auto", "native", "torch"], Option("--engine", metavar="<auto|native|torch>")
    ] = "torch"

    def __post_init__(self) -> None:
        check(self)

    def evaluation(self, targets: tuple[str, ...] | None) -> EvaluationOptions:
        """The same for the evaluation; no draft, which would hide what a step costs.

        Args:
            targets: languages that both models know.
        """
        return EvaluationOptions(
            targets=targets,
            limit=self.limit,
            batch_size=self.batch_size,
            decoding=DecodingOptions(draft=NONE),
            no_speech_per_kind=self.no_speech_per_kind,
            engine=self.engine,
        )

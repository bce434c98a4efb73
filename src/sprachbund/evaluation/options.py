"""What is evaluated and how, as one value, and its plain form in result manifests and back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from sprachbund.audio.spans import SpanOptions
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.engines.choice import EngineChoice
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import BATCH_SIZE
from sprachbund.evaluation.no_speech import PER_KIND, SEED


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is evaluated and how.

    Attributes:
        targets: languages wanted; None takes every language with references.
        limit: most utterances of each corpus, spread evenly over it; None takes all.
        batch_size: utterances in a batch; does not change the result.
        decoding: how to decode; its guard is applied to what is scored.
        no_speech_per_kind: sounds of each kind in the no-speech set; 0 leaves it out.
        first_segments: recordings on which the time to the first segment is measured; 0 leaves it out.
        engine: what computes the model, see `sprachbund.engines.choice`.
        comet: name of a COMET model to score with as well; None leaves it out.
        seed: of the no-speech set.
    """

    targets: tuple[str, ...] | None = None
    limit: int | None = None
    batch_size: int = BATCH_SIZE
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    no_speech_per_kind: int = PER_KIND
    first_segments: int = 5
    engine: EngineChoice = "torch"
    comet: str | None = None
    seed: int = SEED


def configuration(options: EvaluationOptions) -> dict[str, Any]:
    """Options as plain values, with what may decide last bits from outside: threads."""
    return {**asdict(options), "num_threads": torch.get_num_threads()}


def options_from(values: dict[str, Any], path: Path | None = None) -> EvaluationOptions:
    """The inverse of `configuration`. Raises SprachbundError for what this version does not know, naming the
    manifest that they stand in, if any."""
    rest = {key: value for key, value in values.items() if key not in {"num_threads", "precision"}}
    try:
        decoding = dict(rest.pop("decoding"))
        guard, spans = GuardOptions(**decoding.pop("guard")), SpanOptions(**decoding.pop("spans"))
        allowed = decoding.pop("allowed_languages")
        return EvaluationOptions(
            **{**rest, "targets": _tuple(rest["targets"])},
            decoding=DecodingOptions(**decoding, allowed_languages=_tuple(allowed), guard=guard, spans=spans),
        )
    except (SprachbundError, TypeError, KeyError, ValueError) as error:
        known = ", ".join(f.name for f in fields(EvaluationOptions))
        raise SprachbundError(
            f"{f'{path}: ' if path else ''}the configuration does not fit this version ({error}); it knows {known}"
        ) from error


def _tuple(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)

"""Options of an evaluation, as one value, and their plain form in result manifests and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from sprachbund.decoding.options import DecodingOptions
from sprachbund.engines.options import EngineChoice
from sprachbund.errors import SprachbundError
from sprachbund.util.devices import CPU, check_device_name
from sprachbund.util.options import Option, OptionValueError, Range, check, check_known

BATCH_SIZE, PER_KIND, SEED = 16, 12, 2024


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of an evaluation.

    Attributes:
        targets: languages wanted; every language with references if not given.
        sources: languages spoken, without which utterances are left out; all if not given.
        limit: most utterances of each corpus, spread evenly over it; all if not given.
        batch_size: utterances in a batch; does not change the result.
        decoding: decoding options, as of `translate`; their guard is applied to the texts that are scored.
        no_speech_per_kind: sounds of each kind in the no-speech set; 0 leaves it out.
        first_segments: recordings on which the time to the first segment is measured; 0 leaves it out.
        engine: computes the model: auto, the fastest here; torch, exact; torch-fp32, torch-bf16, torch-int8; native;
            native-int4. The result manifest names the engine that computed.
        device: computes the model: cpu, cuda, cuda:1 for the second GPU, or mps.
        right_context: transducers that stream: hear recordings by the tier of so many frames ahead, as a live stream
            does; that of the model's first tier if not given.
        comet: a COMET model to score with as well: its directory, or a name.
        seed: seed of the no-speech set.
    """

    targets: Annotated[tuple[str, ...] | None, Option("--to", metavar="LANG,…")] = None
    sources: Annotated[tuple[str, ...] | None, Option("--from", metavar="LANG,…")] = None
    limit: Annotated[int | None, Range(1), Option("--limit", metavar="N")] = None
    batch_size: Annotated[int, Range(1), Option("--batch-size", metavar="N")] = BATCH_SIZE
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    no_speech_per_kind: Annotated[int, Range(0), Option("--no-speech", metavar="N")] = PER_KIND
    first_segments: Annotated[int, Range(0)] = 5
    engine: Annotated[EngineChoice, Option("--engine", metavar="NAME")] = "auto"
    device: Annotated[str, Option("--device", metavar="NAME")] = CPU
    right_context: Annotated[int | None, Range(0), Option("--tier", metavar="N")] = None
    comet: Annotated[str | None, Option("--comet", metavar="MODEL")] = None
    seed: Annotated[int, Option("--seed", metavar="N")] = SEED

    def __post_init__(self) -> None:
        check(self)
        check_device_name(self.device)


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Options of a calibration.

    Attributes:
        limit: most utterances of each corpus, and of each kind of sound without a text, spread evenly over it.
        max_dropped: share of the texts that are right which may be dropped; not of `--turns`.
        batch_size: utterances in a batch.
        seed: seed of channels, pauses and languages, and of the first weights.
        right_context: transducers that stream: hear `--test` by the tier of so many frames ahead; that of the model's
            first tier if not given. What is calibrated with is heard by all tiers in turn.
    """

    limit: Annotated[int, Range(1), Option("--limit", metavar="N")] = 1000
    max_dropped: Annotated[float, Range(0, 1), Option("--max-dropped", metavar="P")] = 0.03
    batch_size: Annotated[int, Range(1), Option("--batch-size", metavar="N")] = 16
    seed: Annotated[int, Option("--seed", metavar="N")] = 1
    right_context: Annotated[int | None, Range(0), Option("--tier", metavar="N")] = None

    def __post_init__(self) -> None:
        check(self)


Test = Literal["bootstrap", "randomization"]
TESTS: Mapping[str, Test] = {
    "bootstrap": "bootstrap",
    "randomization": "randomization",
    "bs": "bootstrap",
    "ar": "randomization",
}
"""Names of a test, sacrebleu's short ones included, to its name in manifests."""
TEST_SEED = 12345  # sacrebleu's


Task = Literal["all", "translation", "transcription"]


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of a comparison of systems.

    Attributes:
        reference: references of text files.
        language: language of text files; decides BLEU's words and case.
        task: translation or transcription compares the pairs of that task alone; all takes both. Text files are of no
            task that is known.
        metrics: some of chrF, chrF++, BLEU, TER, WER, CER, exact; chrF and BLEU if not given.
        test: bootstrap or randomization, in short bs or ar.
        draws: samples drawn; those of the test if not given.
        seed: seed of the draws.
    """

    reference: Annotated[str | None, Option("--reference", metavar="FILE")] = None
    language: Annotated[str, Option("--language", metavar="LANG")] = ""
    task: Annotated[Task, Option("--task", metavar="TASK")] = "all"
    metrics: Annotated[tuple[str, ...], Option("--metrics", metavar="NAME,…")] = ("chrF", "BLEU")
    test: Annotated[Literal["bootstrap", "randomization", "bs", "ar"], Option("--test", metavar="NAME")] = (
        "bootstrap"
    )
    draws: Annotated[int | None, Range(10), Option("--draws", metavar="N")] = None
    seed: Annotated[int, Option("--seed", metavar="N")] = TEST_SEED

    def __post_init__(self) -> None:
        check(self)
        if self.reference is not None and self.task != "all":
            raise OptionValueError(
                "task", self.task, "leave it out", reason="and text files are of no known task"
            )
        object.__setattr__(self, "test", TESTS[self.test])  # so that manifests have one name for it


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Options of the scores of a file of texts.

    Attributes:
        language: language of the texts; decides BLEU's words and case.
        metrics: some of chrF, chrF++, BLEU, TER, WER, CER, exact; all if not given.
        ids: a file with the ids of the lines, of which none may occur twice.
    """

    language: Annotated[str, Option("--language", metavar="LANG")] = ""
    metrics: Annotated[tuple[str, ...], Option("--metrics", metavar="NAME,…")] = ()
    ids: Annotated[str | None, Option("--ids", metavar="FILE")] = None

    def __post_init__(self) -> None:
        check(self)


def configuration(options: EvaluationOptions) -> dict[str, Any]:
    """Options as JSON has them, with what may decide last bits from outside: threads."""
    import torch  # here, since the command line reads the options at its start

    values: dict[str, Any] = json.loads(json.dumps(asdict(options)))
    return {**values, "num_threads": torch.get_num_threads()}


def options_from(values: dict[str, Any], path: Path | None = None) -> EvaluationOptions:
    """The inverse of `configuration`. Raises SprachbundError for what this version does not know, naming the
    manifest that they stand in, if any."""
    rest = {key: value for key, value in values.items() if key not in {"num_threads", "precision"}}
    rest.setdefault("engine", "torch")  # of the manifests that are older than this option
    try:
        decoding = DecodingOptions.from_stored(rest.pop("decoding"), str(path or "a configuration"))
        languages: dict[str, Any] = {
            key: _tuple(rest.pop(key)) for key in ("targets", "sources") if key in rest
        }
        check_known(EvaluationOptions, rest)
        return EvaluationOptions(**rest, **languages, decoding=decoding)
    except (SprachbundError, TypeError, KeyError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise SprachbundError(
            f"{f'{path}: ' if path else ''}the configuration does not fit this version ({reason}); replay it with the "
            "version that wrote it, or evaluate anew"
        ) from error


def _tuple(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)

"""Options of `sprachbund compress`, a section for each command; they load no torch, since commands are made of them."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sprachbund.decoding.options import NONE, DecodingOptions, GuardOptions
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.training.options import TrainingOptions
from sprachbund.util.options import Option, Range, check

Engine = Literal["auto", "native", "torch"]

# The measurement that follows every compression.


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Options of the measurement before and after a compression.

    Attributes:
        targets: languages to measure; all with references by default.
        limit: most utterances of a corpus, spread over it.
        no_speech_per_kind: sounds of each kind without speech.
        rounds: rounds in which both are timed in turn; 0 for none.
        batch_size: utterances at a time.
        engine: computes the models.
    """

    targets: Annotated[tuple[str, ...] | None, Option("--to", metavar="LANG,…")] = None
    limit: Annotated[int | None, Range(1), Option("--limit", metavar="N")] = 200
    no_speech_per_kind: Annotated[int, Range(0), Option("--no-speech", metavar="N")] = 4
    rounds: Annotated[int, Range(0), Option("--rounds", metavar="N")] = 3
    batch_size: Annotated[int, Range(1)] = 16
    engine: Annotated[Engine, Option("--engine")] = "torch"

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


# Quantization.


@dataclass(frozen=True, kw_only=True)
class KQuantOptions:
    """Options of quantizing linear layers; see `sprachbund.nn.quantized.quantize_blocks`.

    Attributes:
        bits: 3, 4, 5, 6 or 8.
        block: inputs that share a scale.
        method: "k-quant", which is closer, or "round".
        symmetric: whether zero points are the middle of the range, and not stored.
    """

    bits: int = 4
    block: int = 32
    method: Annotated[
        Literal["k-quant", "round"], Option("--method", help="How --encoder-bits chooses its numbers.")
    ] = "k-quant"
    symmetric: Annotated[
        bool, Option("--symmetric", help="With --encoder-bits: no zero points are stored.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Options of quantizing the weights of a model.

    Attributes:
        packed: write what the native engine maps beside it: it starts at once.
        encoder_bits: pack a streaming encoder in 8, 6, 5, 4 or 3 bits, and nothing else.
        blocks: blocks of the packed encoder and their method; `encoder_bits` sets its bits.
    """

    packed: Annotated[bool, Option("--packed")] = False
    encoder_bits: Annotated[int | None, Option("--encoder-bits", metavar="BITS")] = None
    blocks: KQuantOptions = field(default_factory=KQuantOptions)

    def __post_init__(self) -> None:
        if self.encoder_bits is None and self.blocks != KQuantOptions():
            raise SprachbundError("--method and --symmetric are for --encoder-bits; give it too")

    @property
    def encoder(self) -> KQuantOptions | None:
        """Options of packing the encoder; None where all matrices get 8 bits."""
        return None if self.encoder_bits is None else replace(self.blocks, bits=self.encoder_bits)


# Pseudo-labels.


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Thresholds that a label has to pass to be kept.

    Attributes:
        guard: thresholds of decoding; a label has to be surer than a caption.
        max_length_ratio: most times that transcript or translation is as long as the other.
        max_other_language: most probability of another language than the one asked for, by letters.
        min_language_probability: least probability of the language that the teacher hears, where the data do not say
            it.
    """

    guard: GuardOptions = field(
        default_factory=lambda: GuardOptions(hopeless_mean_log_probability=-1.0, max_repetition=0.3)
    )
    max_length_ratio: Annotated[float, Range(1), Option("--max-length-ratio", metavar="X")] = 3.0
    max_other_language: Annotated[float, Range(0, 1), Option("--max-other-language", metavar="P")] = 0.95
    min_language_probability: Annotated[float, Range(0, 1), Option("--min-language", metavar="P")] = 0.5

    def __post_init__(self) -> None:
        check(self)


SHARD_S = 1800.0
"""Seconds of speech in a shard of pseudo-labels."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Options of the labels of a corpus.

    Attributes:
        targets: languages to label in, as BCP-47 tags, beside transcripts of what has none.
        replace: write the transcript and the texts in these languages anew, where the teacher knows the pair; what the
            data have of them is not taken over, also where the label is dropped.
        batch_size: utterances at a time; changes no label.
        shard_s: minutes of speech in a shard, which are lost at most when a process ends.
        filters: thresholds that a label has to pass.
    """

    targets: Annotated[tuple[str, ...], Option("--to", metavar="LANG,…")]
    replace: Annotated[bool, Option("--replace")] = False
    batch_size: Annotated[int, Range(1), Option("--batch-size", metavar="N")] = 16
    shard_s: Annotated[float, Range(0, above=True), Option("--shard-minutes", metavar="M", unit=60)] = SHARD_S
    filters: FilterOptions = field(default_factory=FilterOptions)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """Options of a teacher that writes labels.

    Attributes:
        spoken: language of the recordings; the teacher identifies it if not given.
        beam_size: hypotheses kept; 1 is greedy.
        engine: computes the teacher.
        device: computes the teacher: cpu, cuda or cuda:1
    """

    spoken: Annotated[str | None, Option("--from", metavar="LANG")] = None
    beam_size: Annotated[int, Range(1), Option("--beam", metavar="N")] = 1
    engine: Annotated[Engine, Option("--engine")] = "torch"
    device: Annotated[str, Option("--device", metavar="NAME")] = "cpu"

    def __post_init__(self) -> None:
        check(self)


# Distillation.


class DistillationOptions(BaseModel):
    """Weights of the losses; 0 leaves a part out.

    Attributes:
        temperature: T, by which all logits are divided before they are compared (arXiv 1503.02531, section 2).
        kl_weight: weight of T^2 KL(teacher || student) per target token: what else the teacher might write.
        label_weight: weight of the cross-entropy of the texts, the teacher's own or others.
        language_weight: weight of KL(teacher || student) of the language spoken, which no target token asks for.
        label_smoothing: label smoothing of the cross-entropy (arXiv 1512.00567, section 7); the teacher smooths by
            itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, Field(gt=0), Option("--temperature", metavar="T")] = 2.0
    kl_weight: Annotated[float, Field(ge=0), Option("--kl-weight", metavar="X")] = 1.0
    label_weight: Annotated[float, Field(ge=0), Option("--label-weight", metavar="X")] = 1.0
    language_weight: Annotated[float, Field(ge=0), Option("--language-weight", metavar="X")] = 1.0
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _teaches_something(self) -> Self:
        if not (self.label_weight or self.asks_the_teacher):
            raise ValueError(
                "the weights of labels, divergence and language are all 0, so that nothing is learned; give one of them"
            )
        return self

    @property
    def asks_the_teacher(self) -> bool:
        """Whether the teacher has to be run, besides giving its texts."""
        return self.kl_weight > 0 or self.language_weight > 0


class StudentTraining(TrainingOptions):
    """Training of a student; it starts from a model, and so needs fewer and smaller steps.

    Attributes:
        steps: optimizer steps in all.
        learning_rate: highest rate.
    """

    steps: Annotated[int, Field(ge=1), Option("--steps", metavar="N")] = 2000
    learning_rate: Annotated[float, Field(gt=0), Option("--learning-rate", metavar="X")] = 2e-4

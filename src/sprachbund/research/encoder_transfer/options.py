"""Options of the transfer study: models that are trained first, starts that are made of them, and cells."""

import itertools
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import ConformerShape, StreamingPart, TransducerPart
from sprachbund.nn.streaming_conformer import Tier
from sprachbund.research.encoder_transfer.grid import BITS_OF_FLOAT, StudyGrid
from sprachbund.research.encoder_transfer.splice import RANDOM, read_layers
from sprachbund.text.languages import writes_spaces
from sprachbund.training.options import MoreRates, RatesToTry, Strict, TrainingOptions
from sprachbund.training.recipe import ExampleRecipe
from sprachbund.util.options import renamed

FRAME_MS = 80
OFFLINE = "offline"
QUANTIZED = (3, 4, 5, 6, 8)
_TIER = re.compile(r"(\d+) ms")


class Pretrained(Strict):
    """A model that encoder layers are taken from.

    Attributes:
        languages: languages that it is trained on, here or before it became a checkpoint.
        checkpoint: a model directory that is there already; nothing is trained then.
        start: name of another one, whose weights the training goes on from.
        training: training options that differ from `pretraining`, as `{ steps = 3000 }`.
    """

    languages: tuple[str, ...] = ()
    checkpoint: Path | None = None
    start: str | None = None
    training: dict[str, Any] = Field(default_factory=dict)

    @field_validator("checkpoint")
    @classmethod
    def _from_anywhere(cls, checkpoint: Path | None) -> Path | None:
        """Make the path absolute, since a study may be resumed from another folder."""
        return None if checkpoint is None else checkpoint.resolve()

    @model_validator(mode="after")
    def _from_something(self) -> Self:
        if not self.languages and self.checkpoint is None:
            raise ValueError("give languages to train on, or a checkpoint")
        return self


class EncoderTransferRecipe(Strict):
    """Everything the study depends on.

    Attributes:
        data: corpus directory with `train`, `dev` and `test`.
        pretrained: models that encoder layers are taken from, by name.
        shared: name of the one among them that gives decoder, joint network and tokenizer to all starts.
        starts: name of a start to the source of its encoder: "en", "en:0-2 ml:3-5" or "random"; see `splice`.
        grid: combinations of starts, languages, scales and seeds.
        task: whether speech is to be written down, or translated.
        into: language of translations.
        head: head that writes the text.
        metric: metric of the study; WER for transcripts and chrF for translations if None.
        model: shape of models that are trained here.
        attention_layers: layers of the decoder, where the head is attention.
        vocabulary_size: pieces of the tokenizer of models that are trained here.
        transcript_vocabulary_size: pieces of the tokenizer of their CTC head.
        tokenizer_texts: most texts that tokenizers are fitted on.
        examples: options of making an example of an utterance, such as masks and speeds.
        pretraining: training options of the models that encoder layers are taken from.
        tuning: training options of every cell; `steps` is the most, and the interval of evaluations follows from
            `num_evaluations`.
        epochs: passes through a cell's data, as far as `tuning.steps` allow.
        least_steps: fewest steps of a cell.
        num_evaluations: evaluations of a cell on dev, evenly over its steps.
        learning_rates: learning rates that are tried for every start and scale with the first seed, in place of
            `tuning.learning_rate`; the one of the best mean over languages on dev counts.
        more_learning_rates: number of rates beyond these that are tried at most for a start and scale whose best one is
            the smallest or the largest.
        start_rates: names of starts to the learning rates that were best for them in an earlier study, in place of
            `tuning.learning_rate`.
        dev_utterances: dev utterances that a cell is evaluated on.
        test_utterances: test utterances of each language that are scored, evenly over its test data; all if None.
        symmetric: whether quantized weights have their zero point in the middle.
        data_seed: seed of the order in which utterances enter the scales.
        workers: trainings at a time, each with one thread; changes no number.
    """

    data: Path = Path()
    pretrained: dict[str, Pretrained]
    shared: str
    starts: dict[str, str]
    grid: StudyGrid
    task: Literal["transcripts", "translations"] = "transcripts"
    into: str = "en"
    head: Literal["transducer", "attention"] = "transducer"
    metric: Literal["WER", "CER", "chrF"] | None = None
    model: ConformerShape
    attention_layers: int = Field(default=2, ge=0)
    vocabulary_size: int = Field(default=1000, ge=1)
    transcript_vocabulary_size: int = Field(default=300, ge=1)
    tokenizer_texts: int = Field(default=100_000, ge=1)
    examples: ExampleRecipe
    pretraining: TrainingOptions
    tuning: TrainingOptions
    epochs: float = Field(default=30, gt=0)
    least_steps: int = Field(default=1, ge=1)
    num_evaluations: int = Field(default=30, ge=1)
    learning_rates: RatesToTry = ()
    more_learning_rates: MoreRates = 0
    start_rates: dict[str, PositiveFloat] = Field(default_factory=dict)
    dev_utterances: int = Field(default=100, ge=1)
    test_utterances: int | None = Field(default=None, ge=1)
    symmetric: bool = False
    data_seed: int = 0
    workers: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: Any) -> Any:
        former = {"judgements": "num_evaluations"}
        return renamed(values, former, "the recipe") if isinstance(values, dict) else values

    @field_validator("model")
    @classmethod
    def _streams(cls, model: ConformerShape) -> ConformerShape:
        if model.streaming is None:
            raise ValueError("the encoder has to be one that streams; give [model.streaming]")
        return model

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        grid = self.grid
        _check("shared", (self.shared,), tuple(self.pretrained))
        for name in itertools.chain(*self.waves()):
            self.pretraining_of(name)
        _check("grid.starts", grid.starts, tuple(self.starts))
        _check("grid.bits", grid.bits, (*QUANTIZED, BITS_OF_FLOAT))
        for tier in grid.tiers:
            self.tier(tier)
        for encoder in self.starts.values():
            self._check_start(encoder)
        _check("start_rates", tuple(self.start_rates), tuple(self.starts))
        if self.start_rates and self.learning_rates:
            raise ValueError("learning_rates are tried, and start_rates need no trial; remove one of them")
        for language in grid.languages:
            if self.scored_by == "WER" and not writes_spaces(language):
                raise ValueError(f'{language} is written without spaces between words; set metric = "CER"')
        return self

    def waves(self) -> list[list[str]]:
        """Names of what is trained here, in lists that can be made one after the other.

        Raises:
            ValueError: naming those that go on from nothing that is there.
        """
        left = {name: one for name, one in self.pretrained.items() if one.checkpoint is None}
        waves = []
        while left:
            wave = [
                name
                for name, one in left.items()
                if one.start is None or one.start in self.pretrained.keys() - left
            ]
            if not wave:
                raise ValueError(
                    f"pretrained: {', '.join(left)} cannot be trained, as start names "
                    f"{', '.join(sorted({str(one.start) for one in left.values()}))}; there are "
                    f"{', '.join(self.pretrained)}, and no two may start from each other"
                )
            waves.append(wave)
            left = {name: one for name, one in left.items() if name not in wave}
        return waves

    def pretraining_of(self, name: str) -> TrainingOptions:
        """Return the training options of a model that encoder layers are taken from.

        Raises:
            ValueError: values that cannot be.
        """
        return TrainingOptions.model_validate(self.pretraining.model_dump() | self.pretrained[name].training)

    def _check_start(self, encoder: str) -> None:
        """Check a start; the number of a checkpoint's layers is not known before it is read."""
        try:
            layers = read_layers(encoder, self.model.num_encoder_layers)
        except SprachbundError as error:
            if all(one.checkpoint is None for one in self.pretrained.values()):
                raise ValueError(str(error)) from error
            return
        _check("starts", tuple(part.source for part in layers), (*self.pretrained, RANDOM))

    def tier(self, name: str) -> Tier:
        """Return the tier of a name in the grid: "560 ms", or "offline" for that of whole recordings.

        Raises:
            ValueError: for a latency that the model is not trained for.
        """
        if name == OFFLINE:
            return self.streaming.tiers()[0]
        match = _TIER.fullmatch(name)
        rights = self.streaming.right_contexts
        known = [f"{(right + 1) * FRAME_MS} ms" for right in sorted(rights)]
        if match is None or name not in known:
            raise ValueError(f"no tier {name!r}; the model is trained for {', '.join(known)}, and {OFFLINE}")
        return Tier(left=self.streaming.left_context, right=int(match[1]) // FRAME_MS - 1)

    @property
    def streaming(self) -> StreamingPart:
        """The configuration of the streaming encoder."""
        assert self.model.streaming is not None
        return self.model.streaming

    @property
    def start(self) -> Path | None:
        """The checkpoint that all starts share; None where everything is trained here."""
        return self.pretrained[self.shared].checkpoint

    @property
    def scored_by(self) -> str:
        """Name of the metric."""
        return self.metric or ("WER" if self.task == "transcripts" else "chrF")

    @property
    def languages(self) -> tuple[str, ...]:
        """All languages that models trained here know, so that none has to learn a token's name later."""
        own = [tag for one in self.pretrained.values() for tag in one.languages]
        into = [self.into] if self.task == "translations" else []
        return tuple(sorted({*own, *self.grid.languages, *into}))

    @property
    def shape(self) -> ConformerShape:
        """Shape of models that are trained here, with the head that is wanted."""
        changes: dict[str, Any] = {"transducer": self.model.transducer or TransducerPart()}
        if self.head == "attention":
            changes = {"transducer": None, "num_decoder_layers": self.attention_layers}
        return self.model.model_copy(update=changes)

    def target(self, language: str) -> str:
        """Return the language that speech in a language is written in."""
        return language if self.task == "transcripts" else self.into


def _check(key: str, given: tuple[object, ...], known: tuple[object, ...]) -> None:
    for value in given:
        if value not in known:
            raise ValueError(f"{key} has {value!r}; there are {', '.join(map(str, known))}")

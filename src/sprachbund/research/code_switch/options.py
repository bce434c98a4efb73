"""Options of the comparison of code-switched translation (arXiv 2511.10670): arms, stages, sizes."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from sprachbund.models.speech_llm import (
    LoraOptions,
    LossWeights,
    ProjectorOptions,
    SpeechLLMConfig,
    Stage,
    dense,
    plain_mixture,
)
from sprachbund.models.speech_llm.llm import TextLLMOptions
from sprachbund.models.speech_llm.stages import Data, stages_without
from sprachbund.research.code_switch.transition import Form
from sprachbund.training.options import Distinct, RatesToTry, Strict, TrainingOptions, check_arms

BASELINE = "grouped experts"
Projection = Literal["groups", "plain", "active", "total"]


class CodeSwitchArm(Strict):
    """One system of the comparison.

    Attributes:
        projector: experts in groups; as many without groups; one feed-forward of the active or of the total size.
        language: weight of L_lang.
        balance: weight of L_bal.
        by_frame: L_lang of a frame is of its own language, where the data have spans; else of all of the utterance.
        without: names of stages left out.
    """

    projector: Projection = "groups"
    language: float = LossWeights().language
    balance: float = LossWeights().balance
    by_frame: bool = True
    without: tuple[str, ...] = ()


Chain = tuple[int, CodeSwitchArm, tuple[Stage, ...]]
"""Seed, arm, and its stages up to one of them; each chain is trained in a folder of its own."""

_STRONGER = "language loss five times"
"""Not among the arms of a comparison that names none: it is for the router alone, and translations do not gain."""

ARMS: Mapping[str, CodeSwitchArm] = {
    BASELINE: CodeSwitchArm(),
    "dense, equal active size": CodeSwitchArm(projector="active"),
    "dense, equal total size": CodeSwitchArm(projector="total"),
    "plain mixture": CodeSwitchArm(projector="plain"),
    "without language loss": CodeSwitchArm(language=0.0),
    "without balance loss": CodeSwitchArm(balance=0.0),
    "without transition": CodeSwitchArm(without=("transition",)),
    "without stage 1": CodeSwitchArm(without=("align",)),
    "without stage 2": CodeSwitchArm(without=("monolingual",)),
    "languages of the utterance": CodeSwitchArm(by_frame=False),
    _STRONGER: CodeSwitchArm(language=5 * LossWeights().language),
}


class ProjectorSizes(Strict):
    """Sizes of the projector; see `sprachbund.models.speech_llm.ProjectorOptions`.

    Attributes:
        group_size: experts of each group.
        num_chosen: experts that each speech token goes through, out of all groups.
        hidden_width: hidden width of every expert.
        num_layers: layers of experts, one after the other.
        spliced_frames: encoder states that become one speech token.
        encoder_layers: lower encoder layers, counted from 0, whose states are read beside those of the last layer.
        router_context: speech tokens on each side of one that the router reads beside it.
    """

    group_size: PositiveInt = 4
    num_chosen: PositiveInt = 2
    hidden_width: PositiveInt = 2048
    num_layers: PositiveInt = 2
    spliced_frames: int = Field(default=5, ge=1, le=1000)
    encoder_layers: tuple[NonNegativeInt, ...] = ()
    router_context: int = Field(default=0, ge=0, le=1000)


class CodeSwitchRecipe(Strict):
    """Everything the comparison depends on.

    Attributes:
        data: folder that `data make mixed` wrote, or one laid out like it; a check needs none.
        groups: languages of each group of experts.
        targets: languages written.
        seeds: seeds of projector, adapters, data order and transition; one run of every arm each.
        arms: names from `ARMS`; the first is always there.
        encoder: model whose encoder is used: "bundled", a model directory or a name on the Hugging Face hub.
        llm: a causal language model of transformers, by path or name; one is trained on the data's texts if left out.
        text_llm: sizes of a language model that is trained here.
        text_training: training options of that language model.
        projector: sizes of the projector.
        lora: options of the adapters.
        max_new_tokens: longest text in tokens.
        training: training options that all stages share; each sets steps, rates, warm-up, clipping and the parts that
            are trained.
        steps: steps of each stage, by name.
        shares: language to the share of its training speech that is used, by the main language of mixed speech; these
            languages have rows of their own in the table.
        rate_factor: factor of the stages' learning rates; those of `STAGES` are for large models.
        rate_factors: kind of projector to a factor of its own.
        tuning_rate_factors: factors that are tried for each kind of projector before the comparison, in short trainings
            of all stages with the first seed; the one whose last stage has the lowest loss on dev counts. Arms that
            differ in losses or stages alone have the factor of their kind, as they share stages.
        tuning_steps: share of the steps of each stage in those trainings.
        warmup_steps: warm-up steps of each stage.
        embedded_weight: how often a speech token of an embedded span counts in L_lang of arms that go by frame.
        transition: the form of the loss in the third stage.
        rows_per_utterance: target languages drawn for each utterance, in translation.
        transcribed: share of the utterances that the stages of translation transcribe: a model that is no longer asked
            for transcripts forgets to transcribe, and then translates mixed speech where a transcript is wanted.
        cache_states: whether the encoder's states are computed once for all stages and arms; `lora.encoder` has to be
            empty, so that no stage changes the encoder.
        test_utterances: test utterances of each part that are scored, evenly over it; all if None.
        other_models: name in the table to model directories of other systems, which are scored on the same parts: one
            for each seed, or a single one, whose scores have no spread over seeds.
        texts: `texts.jsonl.gz` of a finished comparison, whose arms stand in the table by what they wrote: none is
            trained, and only the other models are evaluated.
        workers: stages, and then evaluations, at a time, each with one thread.
    """

    data: Path = Path()
    groups: tuple[tuple[str, ...], ...] = (("es",), ("en",))
    targets: Distinct[str] = ("en", "es", "de")
    seeds: Distinct[int] = Field(default=(0, 1, 2), min_length=1)
    arms: Distinct[str] = tuple(name for name in ARMS if name != _STRONGER)
    encoder: str = "bundled"
    llm: str | None = None
    text_llm: TextLLMOptions = TextLLMOptions()
    text_training: TrainingOptions
    projector: ProjectorSizes = ProjectorSizes()
    lora: LoraOptions = LoraOptions()
    max_new_tokens: PositiveInt = 96
    training: TrainingOptions
    steps: dict[str, PositiveInt]
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    rate_factor: PositiveFloat = 1.0
    rate_factors: dict[Projection, PositiveFloat] = Field(default_factory=dict)
    tuning_rate_factors: RatesToTry = ()
    tuning_steps: float = Field(default=0.25, gt=0, le=1)
    warmup_steps: PositiveInt = 1000
    embedded_weight: PositiveFloat = 1.0
    transition: Form = "mixed"
    rows_per_utterance: PositiveInt = 2
    transcribed: float = Field(default=0.0, ge=0, lt=1)
    cache_states: bool = False
    test_utterances: PositiveInt | None = None
    other_models: dict[Annotated[str, Field(pattern=r"^[\w ,.-]+$")], tuple[Path, ...]] = Field(
        default_factory=dict
    )
    texts: Path | None = None
    workers: PositiveInt = 1

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        check_arms(arms, ARMS)
        return arms

    @model_validator(mode="after")
    def _check(self) -> Self:
        stages = [stage.name for stage in stages_without(())]
        if missing := [name for name in stages if name not in self.steps]:
            raise ValueError(f"steps has no number for the stage {missing[0]!r}")
        if unknown := [name for name in self.steps if name not in stages]:
            raise ValueError(f"steps names {unknown[0]!r}, which is no stage; these are {', '.join(stages)}")
        if unknown := [tag for tag in self.shares if tag not in self.languages]:
            raise ValueError(
                f"shares names {unknown[0]!r}, which is not among the languages spoken, {', '.join(self.languages)}"
            )
        if lost := [tag for group in self.groups for tag in group if tag not in self.targets]:
            raise ValueError(f"targets lacks {lost[0]!r}, which the first stage transcribes")
        if self.cache_states and self.lora.encoder != ():
            raise ValueError("cache_states needs an encoder that does not move; set lora.encoder = []")
        if self.tuning_rate_factors and self.rate_factors:
            raise ValueError("tuning_rate_factors finds what rate_factors gives; leave one of them out")
        if taken := [name for name in self.other_models if name in ARMS]:
            raise ValueError(f"other_models has {taken[0]!r}, which is an arm; give it another name")
        if self.texts and not self.other_models:
            raise ValueError(
                "texts takes the arms as they wrote; name a model to compare them with in other_models"
            )
        if empty := [name for name, models in self.other_models.items() if not models]:
            raise ValueError(f"other_models names no model directory for {empty[0]!r}; name one or more")
        folders = [as_folder(name) for name in self.other_models]
        if alike := [name for name in self.other_models if folders.count(as_folder(name)) > 1]:
            raise ValueError(
                f"other_models has {' and '.join(map(repr, alike))}, whose folders have one name"
            )
        return self

    @property
    def start(self) -> str | None:
        """The checkpoint that a run of the published shape needs."""
        return self.llm

    @property
    def all_arms(self) -> tuple[str, ...]:
        """Names of the arms, the baseline first."""
        return tuple(dict.fromkeys((BASELINE, *self.arms)))

    @property
    def kinds(self) -> Mapping[Projection, CodeSwitchArm]:
        """Kinds of projector in the comparison, each with the first arm that has it."""
        kinds: dict[Projection, CodeSwitchArm] = {}
        for name in self.all_arms:
            kinds.setdefault(ARMS[name].projector, ARMS[name])
        return kinds

    def in_short(self, rate_factor: float) -> Self:
        """The trainings that try a rate factor, whatever the kind of projector."""
        steps = {name: max(1, round(self.tuning_steps * count)) for name, count in self.steps.items()}
        return self.model_copy(
            update={"steps": steps, "rate_factors": dict.fromkeys(self.kinds, rate_factor)}
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages spoken."""
        return tuple(tag for group in self.groups for tag in group)

    def projector_of(self, arm: CodeSwitchArm) -> ProjectorOptions:
        """An arm's projector."""
        options = ProjectorOptions(groups=self.groups, **self.projector.model_dump())
        if arm.projector == "plain":
            return plain_mixture(options)
        return options if arm.projector == "groups" else dense(options, arm.projector)

    def config_of(self, arm: CodeSwitchArm) -> SpeechLLMConfig:
        """An arm's model."""
        return SpeechLLMConfig(
            projector=self.projector_of(arm),
            target_languages=self.targets,
            lora=self.lora,
            losses=self.losses_of(arm),
            max_new_tokens=self.max_new_tokens,
        )

    def losses_of(self, arm: CodeSwitchArm) -> LossWeights:
        """An arm's weights of losses."""
        return LossWeights(
            language=arm.language,
            balance=arm.balance,
            by_frame=arm.by_frame,
            embedded=self.embedded_weight,
        )

    def stages_of(self, arm: CodeSwitchArm) -> tuple[Stage, ...]:
        """An arm's stages, with its losses."""
        losses, without = self.losses_of(arm), {"encoder adapters"} if self.lora.encoder == () else set[str]()
        return tuple(
            stage.model_copy(
                update={
                    "losses": losses,
                    "trained": tuple(part for part in stage.trained if part not in without),
                }
            )
            for stage in stages_without(arm.without)
        )

    def chains(self, length: int) -> tuple[Chain, ...]:
        """The beginnings of so many stages that arms have, those that several arms share once."""
        by_folder: dict[Path, Chain] = {}
        for seed, name in product(self.seeds, self.all_arms):
            stages = self.stages_of(ARMS[name])[:length]
            if len(stages) == length:
                by_folder.setdefault(run_folder(Path(), seed, ARMS[name], stages), (seed, ARMS[name], stages))
        return tuple(by_folder.values())

    def options_of(self, stage: Stage, seed: int, projector: Projection = "groups") -> TrainingOptions:
        """Training options of a stage: warm-up, then half a cosine down to a tenth.

        Args:
            stage: stage of the model.
            seed: seed of the run.
            projector: kind of the model's.
        """
        steps = self.steps[stage.name]
        rate = self.rate_factors.get(projector, self.rate_factor) * stage.learning_rate
        warmup = min(self.warmup_steps, steps)
        changes: dict[str, Any] = {
            "steps": steps,
            "learning_rate": rate,
            "warmup_steps": warmup,
            "decay": "cosine",
            "decay_share": 1 - warmup / steps,
            "final_rate": rate / 10,
            "clip_norm": stage.clip_norm,
            "trainable": stage.patterns,
            "seed": seed,
        }
        return TrainingOptions.model_validate({**self.training.model_dump(), **changes})


PARTS: Mapping[Data, tuple[str, bool]] = {
    "monolingual asr": ("monolingual-", True),
    "monolingual st": ("monolingual-", False),
    "code-switched st": ("", False),
}
"""Kind of data to the beginning of its parts' names, and whether all of its utterances are transcribed."""


def variant(arm: CodeSwitchArm) -> str:
    """The part of a folder's name that stands for the model and the losses of an arm."""
    usual = LossWeights()
    weights = (("language", arm.language, usual.language), ("balance", arm.balance, usual.balance))
    losses = [
        f"{name}-{weight:g}" if weight else f"no-{name}" for name, weight, own in weights if weight != own
    ]
    return "-".join([arm.projector, *losses])


def as_folder(name: str) -> str:
    """The name of an arm, or of another system, as that of a folder."""
    return name.replace(", ", "-").replace(" ", "-")


def run_folder(directory: Path, seed: int, arm: CodeSwitchArm, stages: tuple[Stage, ...]) -> Path:
    """Folder of what stages, one after the other, made of an arm; arms that begin alike share their beginning.

    Args:
        directory: folder of all runs.
        seed: seed of the run.
        arm: arm of the comparison.
        stages: stages that the arm has passed, in order.
    """
    return directory / f"seed-{seed}" / variant(arm) / "+".join(map(_said, stages))


def _said(stage: Stage) -> str:
    """Its name; only mixed speech has frames of several languages, so only there the flag makes a difference."""
    at_once = not stage.losses.by_frame and "code-switched st" in stage.data
    return f"{stage.name}-by-utterance" if at_once else stage.name

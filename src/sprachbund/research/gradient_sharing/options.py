"""Options of the comparison of gradient-driven sharing (arXiv 2603.25836): arms, stages, sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import ConformerShape
from sprachbund.models.sharing_plan import SharingPlan, Start
from sprachbund.research.gradient_sharing.collect_options import CollectOptions
from sprachbund.research.gradient_sharing.plan_options import Conflict
from sprachbund.training.options import Distinct, MoreRates, RatesToTry, Strict, TrainingOptions, check_arms
from sprachbund.training.recipe import FineTuning

BASELINE = "uft"
ENCODER = ("encoder.layers.*",)
NUM_LAST = 2
"""Encoder layers that the second stage trains besides what is new."""


class SharingArm(Strict):
    """One way to go on from the uniformly trained model.

    Attributes:
        split: nothing; what the gradients say; the same modules and sizes of groups with languages drawn at random, as
            a control; a branch for every language; or adapters (LoRA) of the same size.
        choose_by: measure by which the modules to split are ranked, see `analyses.ranked`.
        shared_ratio: shared ratio in place of the one that the gradients give.
        start: first weights of the branches.
        whole: train every weight, not only the last two encoder layers and what is new.
        goes_on: whether it is trained further at all.
    """

    split: Literal["none", "gradients", "random", "languages", "lora"]
    choose_by: Literal["purity", "separation"] = "purity"
    shared_ratio: float | None = None
    start: Start = "neuron"
    whole: bool = False
    goes_on: bool = True


ARMS: Mapping[str, SharingArm] = {
    BASELINE: SharingArm(split="none"),
    "uft, not continued": SharingArm(split="none", goes_on=False),
    "sharing": SharingArm(split="gradients"),
    "sharing, by separation": SharingArm(split="gradients", choose_by="separation"),
    "random groups": SharingArm(split="random"),
    "one branch a language": SharingArm(split="languages"),
    "lora": SharingArm(split="lora"),
    "sharing, random start": SharingArm(split="gradients", start="random"),
    "sharing, svd start": SharingArm(split="gradients", start="svd"),
    "sharing, rho .25": SharingArm(split="gradients", shared_ratio=0.25),
    "sharing, rho .50": SharingArm(split="gradients", shared_ratio=0.5),
    "sharing, rho .75": SharingArm(split="gradients", shared_ratio=0.75),
    "uft, all weights": SharingArm(split="none", whole=True),
    "sharing, all weights": SharingArm(split="gradients", whole=True),
}


class Analysis(Strict):
    """Options of collecting gradients; see `collect_options.CollectOptions`.

    Attributes:
        modules: patterns of the names of the modules that are analysed; the second feed-forward of every encoder layer
            if empty.
        utterances: utterances of each language; a multiple of `batch` times `accumulate`.
        batch: utterances of a backward pass.
        accumulate: backward passes whose gradients are added up to one vector.
        dimensions: dimensions that a gradient is projected to.
    """

    modules: tuple[str, ...] = ()
    utterances: int = Field(default=320, ge=1)
    batch: int = Field(default=4, ge=1)
    accumulate: int = Field(default=4, ge=1)
    dimensions: int = Field(default=512, ge=1)


class GradientSharingRecipe(Strict):
    """Everything the comparison depends on.

    Attributes:
        data: folder with `train`, `dev` and `test`; a check needs none.
        languages: languages spoken, and written where no targets are named.
        targets: languages written, in training, analysis and test; all of `languages` if empty.
        shares: language to the share of its training speech that is used, for languages with less data than the others.
        seeds: seeds of weights, data order, utterances and branches; one run each.
        first_seed: seed of one training on all languages that every seed goes on from, as from a published checkpoint;
            without it each seed trains its own.
        arms: names from `ARMS`; the baseline is always there.
        vocabulary_size: pieces of a new model's tokenizer, all languages together.
        transcript_vocabulary_size: pieces of the tokenizer of transcripts, for CTC.
        model: shape of a new conformer; of a conformer to start from, its losses alone.
        start: model directory or name on the Hugging Face hub, of any family, that is trained on in its place.
        fine_tuning: changes to such a checkpoint before it is trained on.
        seamless: the published SeamlessM4T shape that is checked; running it needs `start`.
        plan: splits of the arms that go by gradients, made without an analysis.
        first: training options of the model that is trained on all languages.
        second: training options of every arm, from where the first ended.
        learning_rates: learning rates of the second training, tried for every arm with the first seed; the one of the
            lowest loss on dev counts for the arm. That of `second` if empty.
        more_learning_rates: number of rates beyond these that are tried at most for an arm whose best one is the
            smallest or largest, one after another.
        second_repeats: language to the times that its speech is heard in an epoch of the second training.
        private_rate: ratio of the private branches' learning rate to that of the rest.
        branch_dropout: dropout of the hidden units of all branches.
        cache_states: whether the frozen first layers are computed once for all arms, on sound that is the same in every
            epoch; see `sprachbund.training.cached_states`.
        changed_digits: languages whose speech is translated with other digits than are spoken, in all data: a positive
            control, in which groups of languages have something to gain.
        workers: seeds at a time, each with one thread.
        analysis: options of collecting gradients.
        num_modules: modules that are split by the arms that go by gradients.
        num_groups: groups of each of these splits, 2 as published; None finds the number, and where there are no
            groups, the arm is the baseline.
        conflict: measure of conflict that sets the shared ratio, see `SharingPlanOptions`.
        test_utterances: test utterances that are scored, evenly over the test set; all if None.
    """

    data: Path = Path()
    languages: Distinct[str] = Field(min_length=2)
    targets: Distinct[str] = ()
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    seeds: Distinct[int] = Field(default=(0, 1, 2), min_length=1)
    first_seed: int | None = None
    arms: Distinct[str] = tuple(ARMS)
    vocabulary_size: int = Field(default=1000, ge=1)
    transcript_vocabulary_size: int = Field(default=300, ge=1)
    model: ConformerShape = ConformerShape()
    start: str | None = None
    fine_tuning: FineTuning = FineTuning()
    seamless: Literal["medium", "large", "large-v2"] | None = None
    plan: SharingPlan | None = None
    first: TrainingOptions
    second: TrainingOptions
    learning_rates: RatesToTry = ()
    more_learning_rates: MoreRates = 0
    second_repeats: dict[str, Annotated[float, Field(ge=1)]] = Field(default_factory=dict)
    private_rate: float = Field(default=2.5, gt=0)
    branch_dropout: float = Field(default=0.0, ge=0, lt=1)
    cache_states: bool = False
    changed_digits: Distinct[str] = ()
    workers: int = Field(default=1, ge=1)
    analysis: Analysis = Analysis()
    num_modules: int = Field(default=1, ge=1)
    num_groups: int | None = Field(default=2, ge=2)
    conflict: Conflict = "corrected"
    test_utterances: int | None = Field(default=None, ge=1)

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        check_arms(arms, ARMS)
        return arms

    @model_validator(mode="after")
    def _knows_the_languages(self) -> Self:
        for key, given in (("shares", self.shares), ("second_repeats", self.second_repeats)):
            if unknown := [tag for tag in given if tag not in self.languages]:
                raise ValueError(
                    f"{key} names {unknown[0]!r}, which is not among the languages spoken, {', '.join(self.languages)}"
                )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Check what the first training, which comes before it is needed, would be lost over."""
        if self.plan is not None:
            return self
        if self.model.transducer is not None and self.start is None:
            raise ValueError(
                "model.transducer is set, and gradients are those of a text decoder; leave it out"
            )
        count, groups = len(self.languages), self.num_groups
        if groups is not None and groups > count:
            raise ValueError(f"num_groups is {groups}, and there are {count} languages; give 2 to {count}")
        if groups == count and (drawn := [name for name in self.arms if ARMS[name].split == "random"]):
            raise ValueError(
                f"arms has {drawn[0]!r}, and {groups} groups of {count} languages can be drawn in one way alone; "
                "leave it out, or add a language"
            )
        try:
            self.collecting(self.seeds[0]).check_vectors()
        except SprachbundError as error:
            raise ValueError(f"analysis: {error}") from error
        return self

    def collecting(self, seed: int) -> CollectOptions:
        """Options of collecting the gradients of a seed.

        Args:
            seed: seed of the run.
        """
        return CollectOptions(
            languages=self.languages, targets=self.targets, seed=seed, **self.analysis.model_dump()
        )

    @property
    def all_arms(self) -> tuple[str, ...]:
        """Names of the arms, the baseline first."""
        return tuple(dict.fromkeys((BASELINE, *self.arms)))


def last_layers(num_layers: int) -> tuple[str, ...]:
    """Names of the encoder layers that the second stage trains."""
    return tuple(f"encoder.layers.{n}" for n in range(max(0, num_layers - NUM_LAST), num_layers))


def run_folder(directory: Path, seed: int, name: str) -> Path:
    """Folder of an arm's run.

    Args:
        directory: folder of all runs.
        seed: seed of the run.
        name: name of the arm.
    """
    return directory / f"seed-{seed}" / name.replace(", ", "-").replace(" ", "-").replace(".", "")

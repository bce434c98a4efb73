"""Options of the comparison of discrete units (arXiv 2309.15826): arms, data, sizes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from sprachbund.models.catalogue import SHIPPED
from sprachbund.models.conformer import ConformerShape
from sprachbund.models.tokens.config import HEADS, Head, TokenShape
from sprachbund.models.tokens.strings import LEAST, MOST
from sprachbund.models.tokens.unit_options import Form, KMeansOptions
from sprachbund.training.options import Decay, Distinct, MoreRates, RatesToTry, Strict, TrainingOptions
from sprachbund.training.unit_translator import StepsOf
from sprachbund.units.dataset import Mixing

Text = Literal["none", "own", "external", "start", "planted", "shuffled"]
"""Text that is learned beside the speech: none; that of the speech's own triples; sentences from outside too; the same
from a model that has learned text before; and, as positive controls, sentences from outside with half of the test
sentences among them, and sentences from outside each with the translation of another."""
OUTSIDE: frozenset[Text] = frozenset({"external", "start", "planted", "shuffled"})
"""Kinds that need text from outside."""
NAMES: Mapping[Text, str] = {
    "none": "ST only",
    "own": "+ MT",
    "external": "+ external MT",
    "start": "+ text start",
    "planted": "+ planted MT",
    "shuffled": "+ shuffled MT",
}


TEXT_LAYERS = 6
"""Layers of the encoder of text, where it has one of its own."""


class UnitsArm(Strict):
    """One model of the comparison.

    Attributes:
        head: head that writes the text.
        text: text that is learned from beside the speech.
        ratio: factor by which source text is made longer; the corpus's mean if None.
        mark_repeats: whether source text is made longer by marks behind its pieces, and not by repeating these.
        text_weight: weight of the loss of text; the recipe's if None.
        speech_only_share: last share of the steps, which see speech alone; the recipe's if None.
        keep_repeats: whether a unit is read for every frame, repeats included.
        unit_pieces: size of the units' vocabulary; the recipe's if None.
        form: form of the vocabulary; the recipe's if None.
        source_ctc: whether the encoder learns the transcript by CTC.
        soft_sharing: whether text goes through an encoder of its own, of six layers.
        tied: whether the decoder's embedding is its output matrix too.
        decay: decay of the learning rate; the recipe's if None.
        hours: hours of speech; the recipe's if None.
        planted_copies: how often each test sentence of the text "planted" is among the text from outside.
    """

    head: Head
    text: Text
    ratio: float | None = Field(default=None, ge=LEAST, le=MOST)
    mark_repeats: bool = False
    text_weight: PositiveFloat | None = None
    speech_only_share: float | None = Field(default=None, ge=0, le=1)
    keep_repeats: bool = False
    unit_pieces: int | None = Field(default=None, ge=0)
    form: Form | None = None
    source_ctc: bool = True
    soft_sharing: bool = False
    tied: bool = True
    decay: Decay | None = None
    hours: PositiveFloat | None = None
    planted_copies: int = Field(default=1, ge=1)

    def mixing(self, given: Mixing) -> Mixing:
        """A recipe's mixing as this arm has it."""
        own = {"text_weight": self.text_weight, "speech_only_share": self.speech_only_share}
        known = {name: value for name, value in own.items() if value is not None}
        return given.model_copy(update={"text": self.text != "none", **known})

    def model(self, given: TokenShape) -> TokenShape:
        """A recipe's shape as this arm has it."""
        weight = given.source_ctc_weight if self.source_ctc else 0.0
        own = {
            "head": self.head,
            "soft_sharing": self.soft_sharing,
            "text_layers": TEXT_LAYERS if self.soft_sharing else None,
            "tied": self.tied,
        }
        return given.model_copy(update={**own, "source_ctc_weight": weight})

    def training(self, given: TrainingOptions) -> TrainingOptions:
        """A recipe's training as this arm has it."""
        return given if self.decay is None else given.model_copy(update={"decay": self.decay})


class ComparedModel(NamedTuple):
    """One training of the comparison: its name, its seed, and its arm; None is the model on log-mel."""

    name: str
    seed: int
    arm: UnitsArm | None


class UnitsPart(Strict):
    """Options of making units; see `sprachbund.models.tokens.unit_options`.

    Attributes:
        encoder: a model of ours or a checkpoint of transformers, by path or name.
        layer: layer of the encoder whose output is clustered.
        share: share of the speech that k-means sees.
        kmeans: options of k-means.
        unit_pieces: size of the units' vocabulary; 0 makes every unit a piece.
        text_pieces: size of the text's vocabulary.
        form: form of both vocabularies.
    """

    encoder: str = "bundled"
    layer: int = Field(default=2, ge=1)
    share: float = Field(default=0.1, gt=0, le=1)
    kmeans: KMeansOptions = KMeansOptions()
    unit_pieces: int = 4000
    text_pieces: int = Field(default=4000, ge=1)
    form: Form = "union"


class LogMelPart(Strict):
    """The same kind of model on log-mel features, to compare with.

    Attributes:
        model: shape of the model.
        vocabulary_size: pieces of all languages together.
        training: training options of the model.
    """

    model: ConformerShape
    vocabulary_size: int = Field(ge=1)
    training: TrainingOptions


class DiscreteUnitsRecipe(Strict):
    """Everything the comparison depends on.

    Attributes:
        data: corpus with train, dev and test.
        text_start: model with token input and the same units that the arms "+ text start" start from; None trains one
            on the text from outside first.
        mbart: mBART-50 checkpoint, by path or Hugging Face id, that those with the head "attention" start from in place
            of it.
        sources: languages spoken.
        target: language written.
        units: options of making the units.
        seeds: seeds of every arm but the ablations.
        ablation_seeds: those of `seeds` that the ablations and the arm they are compared with have; all if empty.
        workers: models trained at a time, each with one thread; changes no number.
        heads: heads that are compared, each with every one of `texts`.
        texts: text learned beside the speech: "none", "own", "external" or "start"; the first is what the others are
            compared with.
        base: arm that each of `ablations` changes in one point; all heads and texts have its other values.
        ablations: names in `ABLATIONS`.
        hours: hours of speech at which `base` is trained with each of `curve_texts`.
        all_hours: whether it is trained with all speech, too, where there are `hours`.
        curve_texts: text learned beside the speech in these trainings; the first is what the others are compared with.
        control_hours: hours of speech at which a positive control is trained: `base` with half of the test sentences
            among the text from outside. A comparison that can see an effect of text finds a gain on these sentences
            over `base` with text from outside, and none on the others.
        control_copies: how often each of these sentences is among the text from outside, with a control for each
            number. Where there is much text from outside, a sentence that is there once is hardly ever drawn.
        shuffled_hours: hours of speech at which another positive control is trained: `base` with the sentences from
            outside, each with the translation of another. A comparison that can see an effect of text finds that it is
            worse than `base` with text from outside.
        log_mel: a model on log-mel to compare with; None leaves it out.
        bitext: tables of parallel text, one for each source, with a column for each language; drawn from the phrasebook
            where there are none.
        external_pairs: pairs of parallel text that are drawn for each source.
        mixing: options of mixing speech and text.
        steps_of: batches that `training` counts its steps by, as in `UnitTranslatorRecipe`. By "all", arms cost the
            same and those with text see less speech; by "speech", all see as much speech.
        model: shape of every model, but for what its arm changes.
        training: training options of every model.
        learning_rates: learning rates tried for every arm, and for log-mel, with the first seed; the one of the lowest
            loss on dev counts for the arm. That of the training options if empty. An arm that starts from mBART-50
            keeps its own.
        more_learning_rates: number of rates beyond these that are tried at most for an arm whose best one is the
            smallest or largest, one after another.
        arm_rates: names of arms to the learning rates that were best for them in an earlier comparison, in place of
            `learning_rates`; that of the training options for the other arms. Arms that are left out may be named.
        text_training: training options of a model that learns text first.
        beam_size: hypotheses kept in every search.
        test_utterances: test utterances of each source language, about; all if None.
    """

    data: Path = Path()
    text_start: Path | None = None
    mbart: str | None = None
    sources: Distinct[str] = Field(min_length=1)
    target: str
    units: UnitsPart
    seeds: Distinct[int] = Field(default=(0,), min_length=1)
    ablation_seeds: Distinct[int] = ()
    workers: int = Field(default=1, ge=1)
    heads: Distinct[Head] = HEADS
    texts: Distinct[Text] = Field(default=("none", "own", "external", "start"), min_length=1)
    base: UnitsArm = UnitsArm(head="ctc_attention", text="own")
    ablations: Distinct[str] = ()
    hours: Distinct[PositiveFloat] = ()
    all_hours: bool = True
    curve_texts: Distinct[Text] = Field(default=("none", "own"), min_length=1)
    control_hours: Distinct[PositiveFloat] = ()
    control_copies: Distinct[PositiveInt] = (1,)
    shuffled_hours: Distinct[PositiveFloat] = ()
    log_mel: LogMelPart | None = None
    bitext: tuple[Path, ...] = ()
    external_pairs: int = Field(default=0, ge=0)
    mixing: Mixing = Mixing()
    steps_of: StepsOf = "all"
    model: TokenShape = TokenShape()
    training: TrainingOptions
    learning_rates: RatesToTry = ()
    more_learning_rates: MoreRates = 0
    arm_rates: dict[str, PositiveFloat] = Field(default_factory=dict)
    text_training: TrainingOptions
    beam_size: int = Field(default=10, ge=1)
    test_utterances: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _ablates_what_is_trained(self) -> "DiscreteUnitsRecipe":
        """Seeds of ablations are those of a comparison, or their scores would be missed when all else is trained."""
        others = [seed for seed in self.ablation_seeds if self.ablations and seed not in self.seeds]
        if others:
            raise ValueError(
                f"ablation_seeds has {others[0]}, and the seeds are {', '.join(map(str, self.seeds))}; add it to "
                "seeds, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _one_rate_for_each_arm(self) -> "DiscreteUnitsRecipe":
        """Names are those of arms, which may be left out now, and an arm has one rate."""
        if self.arm_rates and self.learning_rates:
            raise ValueError("learning_rates are tried, and arm_rates need no trial; remove one of them")
        arms = self._arms_and_log_mel()
        for name, rate in self.arm_rates.items():
            if name not in arms:
                if not _names_an_arm(name):
                    raise ValueError(
                        f"arm_rates name {name!r}, which is no arm; an arm is called like {', '.join(map(repr, arms))}"
                    )
                continue
            if (arm := arms[name]) is not None and self.from_mbart(arm):
                raise ValueError(
                    f"arm_rates name {name!r}, which starts from mBART-50 and has rates of its own"
                )
            if (other := self.rate_of(arm)) != rate:
                raise ValueError(
                    f"arm_rates give {other:g} and {rate:g} to one arm, {name!r} by one of its names"
                )
        return self

    def _arms_and_log_mel(self) -> dict[str, UnitsArm | None]:
        """All arms by name, with None for log-mel."""
        return {**self.all_arms, **({LOG_MEL: None} if self.log_mel is not None else {})}

    def rate_of(self, arm: UnitsArm | None) -> float | None:
        """The learning rate that `arm_rates` give an arm; None where they do not name it."""
        names = [name for name, one in self._arms_and_log_mel().items() if one == arm]
        return next((self.arm_rates[name] for name in names if name in self.arm_rates), None)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Languages of the speech and of the text wanted."""
        return tuple((source, self.target) for source in self.sources)

    @property
    def start(self) -> str | None:
        """The speech encoder to start from; None where it is on the Hugging Face hub and has to be fetched first."""
        encoder = self.units.encoder
        return encoder if encoder in SHIPPED or Path(encoder).is_dir() else None

    def from_mbart(self, arm: UnitsArm) -> bool:
        """Whether an arm starts from mBART-50, which has one head and one encoder."""
        fits = arm.head == "attention" and not arm.soft_sharing
        return self.mbart is not None and arm.text == "start" and fits

    def main_arms(self) -> dict[str, UnitsArm]:
        """Heads times texts."""
        return {
            _name(head, text): self.base.model_copy(update={"head": head, "text": text})
            for head in self.heads
            for text in self.texts
        }

    def ablation_arms(self) -> dict[str, UnitsArm]:
        """The base, and it with one thing changed."""
        changed = {name: self.base.model_copy(update=ABLATIONS[name]) for name in self.ablations}
        return {BASE: self.base, **changed} if changed else {}

    def curve_arms(self) -> dict[str, UnitsArm]:
        """The base with each text of the curve, for each amount of speech."""
        amounts = (*self.hours, None) if self.hours and self.all_hours else self.hours
        return {
            _name(_amount(hours), text): self.base.model_copy(update={"hours": hours, "text": text})
            for hours in amounts
            for text in self.curve_texts
        }

    def control_arms(self) -> dict[str, UnitsArm]:
        """Text from outside, without and with half of the test sentences, for each amount of the control."""
        arms = {}
        for hours in self.control_hours:
            outside = self.base.model_copy(update={"hours": hours, "text": "external"})
            arms[_name(_amount(hours), "external")] = outside
            for copies in self.control_copies:
                planted = {"text": "planted", "planted_copies": copies}
                name = _name(_amount(hours), "planted", copies)
                arms[name] = outside.model_copy(update=planted)
        return arms

    def shuffled_arms(self) -> dict[str, UnitsArm]:
        """Text from outside, with its own translations and with others, for each amount of this control."""
        texts: tuple[Text, ...] = ("external", "shuffled")
        return {
            _name(_amount(hours), text): self.base.model_copy(update={"hours": hours, "text": text})
            for hours in self.shuffled_hours
            for text in texts
        }

    def arms(self, seed: int) -> dict[str, UnitsArm]:
        """Return the arms of a seed by name; some of them may be equal."""
        changed = self.ablation_arms() if seed in self.seeds_of_ablations else {}
        controls = {**self.control_arms(), **self.shuffled_arms()}
        return {**self.main_arms(), **changed, **self.curve_arms(), **controls}

    @property
    def all_arms(self) -> dict[str, UnitsArm]:
        """The arms of all seeds by name."""
        return {name: arm for seed in self.seeds for name, arm in self.arms(seed).items()}

    @property
    def seeds_of_ablations(self) -> tuple[int, ...]:
        """Seeds of the ablations; see `ablation_seeds`."""
        return self.ablation_seeds or self.seeds

    def models(self) -> tuple[ComparedModel, ...]:
        """The models that are trained and scored, equal arms once, under the first of their names."""
        models = []
        for seed in self.seeds:
            first = {arm: name for name, arm in reversed(self.arms(seed).items())}
            models += [
                ComparedModel(name, seed, arm) for name, arm in self.arms(seed).items() if first[arm] == name
            ]
            models += [ComparedModel(LOG_MEL, seed, None)] if self.log_mel is not None else []
        return tuple(models)

    def tuned(self) -> dict[UnitsArm | None, str]:
        """Each different arm of which learning rates are tried, and None for log-mel, to the first of its names."""
        arms: dict[UnitsArm | None, str] = {}
        for name, arm in self.all_arms.items() if self.learning_rates else ():
            if not self.from_mbart(arm):
                arms.setdefault(arm, name)
        return arms | ({None: LOG_MEL} if self.learning_rates and self.log_mel is not None else {})

    def text_models(self) -> tuple[ComparedModel, ...]:
        """The models that are trained on text first, for arms that begin with one: one for each of their heads."""
        arms = [arm for arm in self.all_arms.values() if arm.text == "start" and not self.from_mbart(arm)]
        heads = dict.fromkeys(arm.head for arm in arms) if self.text_start is None else {}
        return tuple(
            ComparedModel(f"text {head}", seed, self.base.model_copy(update={"head": head, "text": "start"}))
            for seed in self.seeds
            for head in heads
        )


BASE, LOG_MEL = "base", "log-mel"
ABLATIONS: Mapping[str, Mapping[str, object]] = {
    "r = 1": {"ratio": 1.0},
    "r = 2": {"ratio": 2.0},
    "r = 4": {"ratio": 4.0},
    "r = 6": {"ratio": 6.0},
    "repetitions marked": {"mark_repeats": True},
    "weight of text 0.25": {"text_weight": 0.25},
    "weight of text 1": {"text_weight": 1.0},
    "speech alone at the end": {"speech_only_share": 0.2},
    "repeats kept": {"keep_repeats": True},
    "no unit vocabulary": {"unit_pieces": 0},
    "3,000 unit pieces": {"unit_pieces": 3000},
    "4,000 unit pieces": {"unit_pieces": 4000},
    "500 unit pieces": {"unit_pieces": 500},
    "1,000 unit pieces": {"unit_pieces": 1000},
    "one vocabulary": {"form": "single"},
    "no source CTC": {"source_ctc": False},
    "soft sharing": {"soft_sharing": True},
    "free embeddings": {"tied": False},
    "inverse square root": {"decay": "inverse_sqrt"},
    "linear decay": {"decay": "linear"},
}
"""Name of an ablation to what it changes. A vocabulary has to hold every cluster: none is as one of that size."""


def _amount(hours: float | None) -> str:
    """Hours of speech as names of arms have them."""
    return "all" if hours is None else f"{hours:g} h"


def _name(varied: str, text: Text, copies: int = 1) -> str:
    """Name of an arm: its head or its amount of speech, and the text learned beside the speech."""
    return f"{varied}, {NAMES[text]}{'' if copies == 1 else f' {copies} times'}"


def _names_an_arm(name: str) -> bool:
    """Whether a comparison can have an arm of this name: one that is made with the numbers in it is called so."""
    numbers = re.findall(r"\d+(?:\.\d+)?", name)
    amounts = map(_amount, (None, *map(float, numbers)))
    made = {
        _name(varied, text, copies)
        for varied in (*HEADS, *amounts)
        for text in NAMES
        for copies in (1, *(int(number) for number in numbers if number.isdigit()))
    }
    return name in made or name in (BASE, LOG_MEL, *ABLATIONS)


def run_folder(directory: Path, seed: int, name: str) -> Path:
    """Folder of an arm.

    Args:
        directory: folder of all runs.
        seed: seed of the run.
        name: name of the arm.
    """
    kept = "".join(c if c.isalnum() else "-" for c in name.lower())
    return directory / f"seed-{seed}" / "-".join(filter(None, kept.split("-")))

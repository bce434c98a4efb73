"""Options of the comparison of dual-scale training (arXiv 2508.11189): arms, stages, sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from sprachbund.audio.constants import FRAMES_PER_S
from sprachbund.decoding.options import MAX_DRAFT_TOKENS
from sprachbund.engines.options import EngineChoice
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer, ConformerShape
from sprachbund.models.conformer.extension import with_new_decoder
from sprachbund.models.io import load, locate
from sprachbund.models.whisper.config import WhisperConfig
from sprachbund.training.dual_scale import DualScaleOptions
from sprachbund.training.options import Distinct, MoreRates, RatesToTry, Strict, TrainingOptions, check_arms
from sprachbund.training.recipe import ExampleRecipe, FineTuning
from sprachbund.util.options import renamed

TEACHER, MAIN = "teacher", "parasite"
TOKEN_MAP, DRAFT_MODEL, PRUNE_ONLY, UNPRUNED = "token map", "draft model", "prune only", "unpruned"
ARMS: Mapping[str, Mapping[str, Any]] = {
    MAIN: {},
    "medusa": {"draft": "medusa"},
    PRUNE_ONLY: {"draft": "none"},
    UNPRUNED: {"decoder_layers": None, "draft": "none"},
    "no divergence": {"kl_weight": 0.0},
    "divergence from the start": {"gate": False},
    "no text branch": {"text_layers": 0},
    "1 block": {"blocks": 1},
    "2 blocks": {"blocks": 2},
    "3 blocks": {"blocks": 3},
    "detached keys and values": {"detach_kv": True},
    "norm before queries": {"pre_ln_q": True},
}
"""Name of an arm to what it changes in the main one; the prune-only arm has fewer layers besides.

The unpruned arm has all layers and was trained as long as the others: it shows what pruning costs, which the teacher,
trained before them, does not.
"""
OTHER_DRAFTS = (TOKEN_MAP, DRAFT_MODEL)
"""Drafts for the main arm's model that are made after it."""


class WhisperShape(Strict):
    """Sizes of a new Whisper; heads are 64 wide or less, feed-forwards four times the width.

    Attributes:
        width: width D of encoder and decoder.
        num_heads: attention heads of encoder and decoder.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder, before it is pruned.
        max_window_s: longest utterance in seconds.
        max_tokens: longest row of tokens, prompt included.
        vocabulary_size: most tokens of text.
    """

    width: int = Field(default=192, ge=1)
    num_heads: int = Field(default=3, ge=1)
    encoder_layers: int = Field(default=4, ge=1)
    decoder_layers: int = Field(default=12, ge=1)
    max_window_s: float = Field(default=10.0, gt=0)
    max_tokens: int = Field(default=96, ge=1)
    vocabulary_size: int = Field(default=1200, ge=1)

    def config(self, vocabulary_size: int) -> WhisperConfig:
        """Configuration of such a Whisper, with so many tokens of all kinds."""
        return WhisperConfig(
            vocabulary_size=vocabulary_size,
            width=self.width,
            encoder_layers=self.encoder_layers,
            encoder_heads=self.num_heads,
            encoder_feed_forward_width=4 * self.width,
            decoder_layers=self.decoder_layers,
            decoder_heads=self.num_heads,
            decoder_feed_forward_width=4 * self.width,
            max_frames=round(self.max_window_s * FRAMES_PER_S / 2),
            max_tokens=self.max_tokens,
        )


class Timing(Strict):
    """Options of the speed measurement; see `research.dual_scale.speed`.

    Attributes:
        utterances: utterances of each pair, and as many as a batch holds at least.
        batches: sizes of batches.
        repeats: timings of every system, interleaved; one more warms up.
        num_draft_tokens: tokens that every draft proposes at a time.
        engine: engine that all systems are scored and timed with. With a native one, lossy ways of acceptance are left
            out, which its drafts do not have.
        threads: threads of the engine while it is timed; those of the command if None.
    """

    utterances: PositiveInt = 8
    batches: Distinct[PositiveInt] = Field(default=(1, 8), min_length=1)
    repeats: PositiveInt = 3
    num_draft_tokens: int = Field(default=1, ge=1, le=MAX_DRAFT_TOKENS)
    engine: EngineChoice = "torch"
    threads: PositiveInt | None = None

    @field_validator("engine")
    @classmethod
    def _is_named(cls, engine: EngineChoice) -> EngineChoice:
        if engine == "auto":
            raise ValueError('engine is "auto", and systems are compared on one engine; name it')
        return engine

    @property
    def accepts_lossy(self) -> bool:
        """Whether the engine's drafts have lossy ways of acceptance."""
        return not self.engine.startswith("native")

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: Any) -> Any:
        return (
            renamed(values, {"guesses": "num_draft_tokens"}, "timing") if isinstance(values, dict) else values
        )


class DualScaleRecipe(Strict):
    """Everything the comparison depends on.

    Attributes:
        data: folder with `train`, `dev` and `test`; a check needs none.
        languages: languages spoken and written.
        seeds: seeds of new weights and order; every arm is trained with each of them, the teacher with the first.
        arms: names from `ARMS` and `OTHER_DRAFTS`; the main one is always there.
        start: model directory or name on the Hugging Face hub, of any family, that every arm starts from. Without one
            a new model is trained first, and all arms start from that.
        whisper: the published Whisper shape that is checked; running it needs `start`.
        model: shape of a new Whisper.
        conformer: shape of a new conformer in its place.
        encoder: "bundled", a directory or a name of a conformer whose encoder, heads and tokenizers the new model has;
            `conformer` then has the sizes of the decoder alone.
        cache_states: whether the encoder and its heads are frozen, and the encoder's states are computed once for all
            trainings. The sound has to be the same in every epoch, and `dual_scale` may not train the encoder.
        fine_tuning: changes to the model that is started from.
        shallow: training options of a model with `shallow_layers` decoder layers, which a new teacher begins from, each
            layer as often as it takes; the teacher begins from nothing if None.
        shallow_layers: decoder layers of that model; a divisor of the teacher's decoder layers.
        shallow_examples: options of making an example of an utterance there; rows cost a shallow decoder little.
        teacher: training options of the unpruned model.
        training: training options of every arm.
        learning_rates: learning rates that are tried for every arm with the first seed, in place of
            `training.learning_rate`, to which `training.rates` keep their ratio; the one of the lowest loss on dev
            counts. The arm's training with the first seed is the one that was best.
        more_learning_rates: number of rates beyond these that are tried at most for an arm whose best one is the
            smallest or largest.
        drafting: training options of the draft model.
        dual_scale: options of the main arm.
        prune_only_layers: decoder layers of the prune-only arm.
        draft_layers: decoder layers of the draft model.
        examples: options of making an example of an utterance.
        workers: models that are trained or scored at a time, each by a process; one of several has one thread, or its
            share of a GPU. Times are measured one after the other.
        test_utterances: test utterances that are scored, evenly over the test set; all if None.
        timing: options of the speed measurement.
        checked_tokens: tokens of a row for which a check prints the memory.
    """

    data: Path = Path()
    languages: Distinct[str] = Field(min_length=2)
    seeds: Distinct[int] = Field(default=(0, 1, 2), min_length=1)
    arms: Distinct[str] = (*ARMS, *OTHER_DRAFTS)
    start: str | None = None
    whisper: Literal["tiny", "base", "small", "medium", "large-v2", "large-v3"] | None = None
    model: WhisperShape = WhisperShape()
    conformer: ConformerShape | None = None
    encoder: str | None = None
    cache_states: bool = False
    fine_tuning: FineTuning = FineTuning()
    shallow: TrainingOptions | None = None
    shallow_layers: PositiveInt = 2
    shallow_examples: ExampleRecipe = ExampleRecipe()
    teacher: TrainingOptions
    training: TrainingOptions
    learning_rates: RatesToTry = ()
    more_learning_rates: MoreRates = 0
    drafting: TrainingOptions
    dual_scale: DualScaleOptions = DualScaleOptions()
    prune_only_layers: PositiveInt = 8
    draft_layers: PositiveInt = 2
    examples: ExampleRecipe = ExampleRecipe(rows_per_utterance=1)
    workers: PositiveInt = 1
    test_utterances: int | None = Field(default=None, ge=1)
    timing: Timing = Timing()
    checked_tokens: PositiveInt = 128

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        check_arms(arms, (*ARMS, *OTHER_DRAFTS))
        return arms

    @model_validator(mode="after")
    def _drafts_with_a_parasite(self) -> "DualScaleRecipe":
        """Systems of the main arm are named after its draft, and would be missed when all is trained."""
        if self.dual_scale.draft != MAIN:
            raise ValueError(
                f"dual_scale.draft is {self.dual_scale.draft!r}, and the main arm has a {MAIN}; for another or none, "
                f"name medusa or {PRUNE_ONLY} in arms"
            )
        return self

    @model_validator(mode="after")
    def _grows(self) -> "DualScaleRecipe":
        layers = self.new_decoder_layers
        if self.shallow and not self.start and layers % self.shallow_layers:
            raise ValueError(
                f"shallow_layers {self.shallow_layers} do not divide the teacher's {layers} decoder layers"
            )
        return self

    @model_validator(mode="after")
    def _takes_an_encoder(self) -> "DualScaleRecipe":
        if self.encoder is not None and (self.conformer is None or self.start or self.whisper):
            raise ValueError(
                f"encoder is {self.encoder!r}, which is for a new model: give [conformer] with the sizes of its "
                "decoder, and neither start nor whisper"
            )
        if self.cache_states and (self.dual_scale.whole_layers or self.dual_scale.lora_rank):
            raise ValueError(
                "cache_states needs a frozen encoder; set dual_scale.whole_layers = 0 and dual_scale.lora_rank = 0"
            )
        return self

    @property
    def trained_arms(self) -> dict[str, DualScaleOptions]:
        """Arms that are trained, the main one first, without those that are the main one by another name."""
        arms = {MAIN: self.dual_scale}
        for name in self.arms:
            if name in ARMS and (options := self.options_of(name)) not in arms.values():
                arms[name] = options
        return arms

    @property
    def new_decoder_layers(self) -> int:
        """Decoder layers of a teacher that is trained from nothing."""
        return self.conformer.num_decoder_layers if self.conformer else self.model.decoder_layers

    def with_decoder_layers(self, layers: int) -> "DualScaleRecipe":
        """The same with a new model of another depth."""
        if self.conformer:
            shape = self.conformer.model_copy(update={"num_decoder_layers": layers})
            return self.model_copy(update={"conformer": shape})
        return self.model_copy(update={"model": self.model.model_copy(update={"decoder_layers": layers})})

    def moving_parts(self, dual_scale: DualScaleOptions | None = None) -> tuple[str, ...]:
        """Patterns of the parameters that are trained, of a model alone or around it; all if there are none."""
        if not self.cache_states:
            return ()
        if dual_scale is None:
            return ("decoder.*",)
        text = ("text_encoder.*",) if dual_scale.text_layers else ()
        return ("base.decoder.*", *text, *(() if dual_scale.draft == "none" else ("draft_network.*",)))

    def options_of(self, arm: str) -> DualScaleOptions:
        """Training options of an arm."""
        changes = dict(ARMS[arm])
        if arm == PRUNE_ONLY:
            changes["decoder_layers"] = self.prune_only_layers
        return self.dual_scale.model_copy(update=changes)


def on_encoder(name: str, shape: ConformerShape) -> Conformer:
    """A conformer with a new decoder of a shape, on the encoder of one that is named.

    Args:
        name: "bundled", a directory, or a name on the hub.
        shape: sizes of the decoder.

    Raises:
        SprachbundError: another family; see also `with_new_decoder`.
    """
    model = load(locate(name))
    if not isinstance(model, Conformer):
        raise SprachbundError(
            f"encoder {name} is a {model.name} model; a new decoder is trained on that of a conformer"
        )
    return with_new_decoder(model, shape)


def run_folder(directory: Path, name: str, seed: int) -> Path:
    """Folder of an arm's run.

    Args:
        directory: folder of all runs.
        name: name of the arm.
        seed: seed of the run.
    """
    return directory / f"seed-{seed}" / name.replace(" ", "-")

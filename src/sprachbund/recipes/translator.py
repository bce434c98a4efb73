"""Training a speech translator, from manifests to a model directory.

A new conformer, any of its languages to any other, as the bundled model is one; or what one owns already: a
conformer, a Whisper or a Seamless checkpoint, trained on through the same data, loop and options.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from sprachbund.data.editions import Edition, edition
from sprachbund.data.live import LiveEdition
from sprachbund.data.loading import Corpus, ExampleOptions, Source
from sprachbund.data.manifest import Manifest, read_info
from sprachbund.data.nested import nested
from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.conformer import ConformerShape
from sprachbund.models.directory import load
from sprachbund.models.dual_scale import DualScaleOptions
from sprachbund.models.weights import Bits
from sprachbund.recipes.dual_scale_student import drawn_for, dual_scale_student, save_guesser
from sprachbund.recipes.students import Student, make_student
from sprachbund.recipes.texts_taught import texts_taught, told, too_long_for_frames
from sprachbund.training.loop import train
from sprachbund.training.lora import add_lora, merge_lora
from sprachbund.training.options import TrainingOptions
from sprachbund.util.distributed import (
    first_rank_first,
    is_first_rank,
    joined_processes,
    on_first_rank,
    wait_for_all_ranks,
)
from sprachbund.util.files import write_text

_TRIED = 1000  # utterances that are looked at before training begins
NO_MASKS: dict[str, Any] = {"time_masks": 0, "frequency_masks": 0, "speeds": (1.0,)}


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataPart(Strict):
    """A manifest directory and how often an epoch goes through it.

    Attributes:
        path: of the directory.
        repeats: passes of an epoch.
        shares: language to the share of its utterances that is taken; see `sprachbund.data.manifest.Manifest`.
    """

    path: Path
    repeats: float = Field(default=1.0, ge=0)
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}


class Scale(Strict):
    """How much of the training data is taken; see `sprachbund.data.nested`.

    Attributes:
        hours: of all [[train]] together.
        seed: of the order that they are taken in.
    """

    hours: float = Field(gt=0)
    seed: int = 0


class LivePart(Strict):
    """An edition of the phrasebook that every epoch hears anew; see `sprachbund.data.live`.

    Attributes:
        edition: its name.
        utterances: of an epoch.
        languages: spoken and written; those of the edition if empty.
        synthesizers: that speak; those of the edition if empty.
        seed: of everything drawn; that of the edition if None.
        exact: whether a run that is taken up hears the same again to the last bit, at half the speed.
    """

    edition: str = "bundled"
    utterances: int = Field(default=20_000, ge=1)
    languages: tuple[str, ...] = ()
    synthesizers: tuple[str, ...] = ()
    seed: int | None = None
    exact: bool = True

    def drawn(self) -> Edition:
        """The edition to be rendered. Raises SprachbundError for an unknown name."""
        given = {name: getattr(self, name) for name in ("languages", "synthesizers", "seed")}
        changes = {name: value for name, value in given.items() if value not in ((), None)}
        return edition(self.edition, train_utterances=self.utterances, exact=self.exact, **changes)


class ExampleRecipe(Strict):
    """See `sprachbund.data.loading.ExampleOptions`."""

    rows_per_utterance: int = Field(default=3, ge=1)
    targets: tuple[str, ...] = ()
    same_language: float | None = Field(default=None, ge=0, le=1)
    speeds: tuple[PositiveFloat, ...] = Field(default=(0.9, 1.0, 1.1), min_length=1)
    time_masks: int = Field(default=2, ge=0)
    max_time_mask_s: float = Field(default=0.3, ge=0)
    max_time_mask_share: float | None = Field(default=None, ge=0, le=1)
    frequency_masks: int = Field(default=2, ge=0)
    max_frequency_mask: int = Field(default=15, ge=0)


class LoraRecipe(Strict):
    """Train low-rank adapters in place of the weights, and merge them at the end; see `training.lora`.

    Attributes:
        modules: patterns of the names of linear layers.
        rank: of every adapter.
        scale: what an adapter's product is multiplied by (alpha / rank).
        whole: patterns of the names of parameters that are trained themselves, beside the adapters.
    """

    modules: tuple[str, ...]
    rank: int = Field(default=8, ge=1)
    scale: float = 2.0
    whole: tuple[str, ...] = ()


class FineTuning(Strict):
    """What is changed in a model that is there already before it is trained on.

    Attributes:
        prompt: the language that Whisper's prompt names: the one "spoken" (transcription, and translation into
            English), or the one "wanted" (any language of the recipe to any other); "wanted-only" names nothing else,
            no task and no timestamps (arXiv 2508.11189). "wanted" also makes a transducer that writes what is spoken
            one that is told the language. As the checkpoint has it if left out.
        new_languages: BCP-47 tag of a language that the checkpoint lacks to that of the language whose token the new
            token starts from, or "mean" for the mean of all. Seamless hears a new language without a token. Pieces of
            the tokenizer stay as they are.
        real_length: train Whisper, and use it ever after, on utterances at their own length instead of windows of
            30 s; as the checkpoint has it if left out.
        label_smoothing: of the cross-entropy (arXiv 1512.00567, section 7).
    """

    prompt: Literal["spoken", "wanted", "wanted-only"] | None = None
    new_languages: dict[str, str] = {}
    real_length: bool | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class CardRecipe(Strict):
    """What the card says of the model besides what is known from the data."""

    name: str
    description: str = ""
    licence: str = ""
    limits: tuple[str, ...] = ()


class TranslatorRecipe(Strict):
    """Everything a run depends on.

    Attributes:
        languages: heard and written.
        train: training data.
        live: training data that are rendered while training.
        scale: how much of `train` is taken; all if None.
        dev: data whose loss ranks the checkpoints.
        vocabulary_size: pieces of all languages together.
        transcript_vocabulary_size: pieces of the transcripts, for CTC.
        tokenizer_texts: distinct texts the tokenizer is fitted on, at most.
        start: a model directory or a name on the Hugging Face hub, of any family: weights and tokenizer to start
            from.
        fine_tuning: what is changed in the model to start from.
        lora: train adapters only.
        dual_scale: prune the decoder, and train it with a text branch and a network that guesses ahead.
        bits: of the weights in the model directory; 8 for a conformer and 32 for the other families if left out.
    """

    languages: tuple[str, ...]
    train: tuple[DataPart, ...] = ()
    live: tuple[LivePart, ...] = ()
    scale: Scale | None = None
    dev: tuple[DataPart, ...]
    vocabulary_size: int = Field(default=2000, ge=1)
    transcript_vocabulary_size: int = Field(default=400, ge=1)
    tokenizer_texts: int = Field(default=200_000, ge=1)
    start: Path | str | None = None
    fine_tuning: FineTuning = FineTuning()
    lora: LoraRecipe | None = None
    dual_scale: DualScaleOptions | None = None
    bits: Bits | None = None
    model: ConformerShape = ConformerShape()
    examples: ExampleRecipe = ExampleRecipe()
    training: TrainingOptions
    card: CardRecipe


def run(
    recipe: TranslatorRecipe,
    directory: Path,
    *,
    score: Callable[[Any], float] | None = None,
    report: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> Any:
    """Train, or take up, the run in `directory`; its `model` folder is the result, which is returned loaded.

    Args:
        recipe: what is trained, on what.
        directory: of the run.
        score: judges the model on the way, less is better, where `training.judge` is "score".
        report: takes each line of progress.
        stop_after: stop, resumable, after so many steps.
    """
    with joined_processes():
        return _run(recipe, directory, score, on_first_rank(report), stop_after)


def _run(
    recipe: TranslatorRecipe,
    directory: Path,
    score: Callable[[Any], float] | None,
    report: Callable[[str], None],
    stop_after: int | None,
) -> Any:
    torch.manual_seed(recipe.training.seed)
    if is_first_rank():
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / "recipe.json", recipe.model_dump_json(indent=1) + "\n")
    with first_rank_first():  # which renders live data and fits tokenizers
        parts, dev_parts = _training_data(recipe, directory, report), _read(recipe.dev)
        student = make_student(recipe, directory, [source.at() for source, _ in parts])
    if recipe.dual_scale is not None:
        student = dual_scale_student(student, recipe, report)
    model = student.model
    if recipe.lora is not None:
        adapters = recipe.lora
        add_lora(model, adapters.modules, adapters.rank, scale=adapters.scale, whole=adapters.whole)
    if student.drawn and recipe.examples.same_language != 1:
        report(
            'the model writes what is spoken, so it is taught transcripts; fine_tuning.prompt = "wanted" teaches it to '
            "translate"
        )
    drawn = recipe.examples.model_dump() | dict(student.drawn) | drawn_for(recipe.dual_scale)
    masks = {**drawn, **NO_MASKS}
    corpus, dev = (
        Corpus(data, student.examples, ExampleOptions(**options, seed=seed))
        for data, options, seed in (
            (parts, drawn, recipe.training.seed),
            (dev_parts, masks, 0),
        )
    )
    check_corpus(corpus, recipe.training.max_duration_s, report)
    _tell_texts(student, corpus, report)
    train(
        model, corpus, recipe.training, directory, dev=dev, score=score, report=report, stop_after=stop_after
    )
    merge_lora(model)
    if is_first_rank():
        student.save(directory / "model", card=_card(recipe, corpus))
        if recipe.dual_scale is not None:
            save_guesser(model, recipe.training, dev, directory / "model", report)
    wait_for_all_ranks()
    return load(directory / "model")


def _tell_texts(student: Student, corpus: Corpus, report: Callable[[str], None]) -> None:
    """Say which texts cannot be learned as they are."""
    lines: list[str] = []
    if student.tokenizer is not None:
        lines += told(
            texts_taught(corpus), student.tokenizer, corpus.examples.max_tokens - 1
        )  # the end is one
    if student.ctc_frame_s is not None:
        lines += too_long_for_frames(corpus, student.ctc_frame_s)
    for line in lines:
        report(line)


def _read(parts: Sequence[DataPart]) -> list[tuple[Source, float]]:
    return [(Manifest(part.path, part.shares), part.repeats) for part in parts]


def _training_data(
    recipe: TranslatorRecipe, directory: Path, report: Callable[[str], None]
) -> list[tuple[Source, float]]:
    if not recipe.train and not recipe.live:
        raise SprachbundError(
            "the recipe has no training data; give it a [[train]] with a path, or a [[live]]"
        )
    live = [
        LiveEdition(part.drawn(), directory / f"live-{n}", report=report)
        for n, part in enumerate(recipe.live)
    ]
    manifests = [Manifest(part.path, part.shares) for part in recipe.train]
    if recipe.scale is not None:
        manifests = nested(manifests, recipe.scale.hours, recipe.scale.seed)
    repeats = [part.repeats for part in recipe.train]
    return [*zip(manifests, repeats, strict=True), *((part, 1.0) for part in live)]


def check_corpus(corpus: Corpus, max_duration_s: float, report: Callable[[str], None]) -> None:
    """Say what is left out; refuse data of which nothing is left."""
    longest_s, count = corpus.longest_s(max_duration_s), len(corpus.durations_s)
    why = "" if longest_s == max_duration_s else ", which the model takes at once at the slowest speed"
    too_long = int((corpus.durations_s > longest_s).sum())
    if too_long:
        report(f"{too_long} of {count} utterances are longer than {longest_s:g} s{why}: left out")
    if too_long == count:
        raise SprachbundError(
            f"no utterance of the training data is left; cut them into pieces of at most {longest_s:g} s"
        )
    rng = np.random.default_rng(0)
    tried = min(len(corpus.durations_s), _TRIED)
    utterances = (corpus.utterance(i)[0] for i in range(tried))
    if not any(corpus.rows(one, rng) for one in utterances if one.language):
        raise SprachbundError(
            f"none of the first {tried} utterances has a text that this model can be taught: it is to write "
            f"{', '.join(corpus.targets)}; a Whisper that is to translate into other languages than English needs "
            'fine_tuning.prompt = "wanted", and so does a transducer that writes what is spoken'
        )


def _card(recipe: TranslatorRecipe, corpus: Corpus) -> Card:
    data: list[dict[str, Any]] = []
    for manifest in corpus.manifests:
        info: dict[str, Any] = read_info(manifest.directory) or {"name": str(manifest.directory)}
        data.append(
            {
                key: info[key]
                for key in ("name", "licence", "attribution", "hours", "utterances")
                if key in info
            }
        )
    training: dict[str, Any] = {"steps": recipe.training.steps, "batch_s": recipe.training.batch_s}
    if recipe.start is not None:
        training["start"] = str(recipe.start)
    return Card(
        **recipe.card.model_dump(),
        source_languages=list(recipe.languages),
        target_languages=list(corpus.targets),
        data=data,
        training=training,
    )

"""Training a model that reads units of speech and pieces of text alike, from encoded corpora to a model directory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.bitext import read_bitext
from sprachbund.errors import SprachbundError
from sprachbund.models.card import PAIRS, Card
from sprachbund.models.io import load, save
from sprachbund.models.tokens.config import MbartConfig, TokenConfig, TokenShape
from sprachbund.models.tokens.conformer import TokenConformer
from sprachbund.models.tokens.directory import Units
from sprachbund.models.tokens.mbart import TokenMbart
from sprachbund.models.tokens.reader import make
from sprachbund.models.tokens.strings import LEAST, MOST
from sprachbund.models.weights import Bits
from sprachbund.text.languages import tag_of
from sprachbund.training.check import Check
from sprachbund.training.checkpoint import claim_folder
from sprachbund.training.data_checks import report_trained_dev
from sprachbund.training.loop import train
from sprachbund.training.options import Strict, TrainingOptions
from sprachbund.training.recipe import CardRecipe
from sprachbund.units.dataset import (
    Mixing,
    Sentences,
    SpokenSentences,
    TokenDataset,
    WrittenSentences,
    first_epoch_behind,
)
from sprachbund.units.encoded import EncodedCorpus
from sprachbund.units.mbart import start_from_mbart, units_with_mbart
from sprachbund.util.distributed import (
    first_rank_first,
    is_first_rank,
    joined_processes,
    on_first_rank,
    wait_for_all_ranks,
)
from sprachbund.util.progress import Report, nothing

StepsOf = Literal["all", "speech"]
LIKELY_RATIO = 4.0
"""Published; where the units were made without transcripts."""


def _as_tag(language: str) -> str:
    return tag_of(language, "the recipe:")


Tag = Annotated[str, AfterValidator(_as_tag)]
"""A language, as corpora and parallel text have it: "de" for "DE"."""


class BitextPart(Strict):
    """Parallel text from outside; see `sprachbund.data.bitext.read_bitext`.

    Attributes:
        paths: a `.tsv` or `.tmx` file, or two Moses files, source first.
        source: BCP-47 tag.
        target: BCP-47 tag.
        skip_bad: whether pairs that cannot be used are left out and counted, instead of ending the run.
    """

    paths: tuple[Path, ...] = Field(min_length=1, max_length=2)
    source: Tag
    target: Tag
    skip_bad: bool = False


class UnitTranslatorRecipe(Strict):
    """Everything a run depends on.

    Attributes:
        units: directory of the units.
        train: corpora as units; if empty, the model is trained on text alone.
        dev: corpora as units, whose loss ranks the checkpoints.
        pairs: (source, target) languages of the speech and its own texts.
        bitext: parallel text without speech.
        hours: hours of speech taken from each corpus; all if None.
        mixing: options of mixing speech and text.
        ratio: factor by which source text is made longer; the mean of the units' data if None.
        mark_repeats: whether each piece of source text is followed by marks in place of its repetitions.
        keep_repeats: whether a unit is read for every frame, repeats included.
        start: directory of a model with the same units, which gives the first weights where they fit in.
        mbart: an mBART-50 checkpoint of transformers, by path or Hugging Face id, whose shape, weights and pieces of
            text the model has; `model` and `start` are then left out.
        bits: bits of the weights in the model directory.
        steps_of: batches that `training` counts its steps and evaluations by: "all", or those of "speech", so that text
            comes on top of as much speech as a model without text would see.
        model: sizes of a new model, its head, and weights of its losses.
        training: steps, learning rate, batches and evaluations.
        card: fields of the model's card.
    """

    units: Path
    train: tuple[Path, ...] = ()
    dev: tuple[Path, ...]
    pairs: tuple[tuple[Tag, Tag], ...] = ()
    bitext: tuple[BitextPart, ...] = ()
    hours: float | None = Field(default=None, gt=0)
    mixing: Mixing = Mixing()
    ratio: float | None = Field(default=None, ge=LEAST, le=MOST)
    mark_repeats: bool = False
    keep_repeats: bool = False
    start: Path | None = None
    mbart: str | None = None
    bits: Bits = 32
    steps_of: StepsOf = "all"
    model: TokenShape = TokenShape()
    training: TrainingOptions
    card: CardRecipe

    @property
    def all_pairs(self) -> tuple[tuple[str, str], ...]:
        """Pairs of languages of speech and text."""
        return tuple(sorted({*self.pairs, *((part.source, part.target) for part in self.bitext)}))


def run(
    recipe: UnitTranslatorRecipe,
    directory: Path,
    *,
    report: Report = print,
    stop_after: int | None = None,
    on_step: Callable[[int, int], None] = nothing,
    accept_changes: bool = False,
    check: Check | None = None,
) -> Any:
    """Train, or resume, the run in `directory`; its `model` folder is the result, which is returned loaded.

    Args:
        recipe: the model, the units and the data.
        directory: directory of the run.
        report: takes each line of progress.
        stop_after: stop, resumable, after so many steps.
        on_step: called with the steps made, and with all of them.
        accept_changes: go on with a run whose recipe was another one.
        check: is called with model, data and options in place of training, and nothing is returned.

    Raises:
        SprachbundError: units of another k-means or sampling rate, utterances without units, parallel text of unequal
            sides, a shape beside that of mBART, targets of which CTC can align none, or no data.
    """
    if not recipe.train and not recipe.bitext:
        raise SprachbundError("the recipe has no training data; give it train = [DIR] or a [[bitext]]")
    if recipe.mbart is not None and (recipe.start is not None or recipe.model != TokenShape()):
        other = "start" if recipe.start is not None else "[model]"
        raise SprachbundError(f"shape and weights are those of mbart ({recipe.mbart}); leave out {other}")
    with joined_processes():
        return _run(recipe, directory, on_first_rank(report), stop_after, on_step, accept_changes, check)


def _run(
    recipe: UnitTranslatorRecipe,
    directory: Path,
    report: Report,
    stop_after: int | None,
    on_step: Callable[[int, int], None],
    accept_changes: bool,
    check: Check | None,
) -> Any:
    torch.manual_seed(recipe.training.seed)
    texts = [path for part in recipe.bitext for path in part.paths]
    claim_folder(directory, recipe, data=[*recipe.train, *recipe.dev, *texts], accept_changes=accept_changes)
    with first_rank_first():  # which makes the units of an mBART
        units, model = _made(recipe, directory, report)
    corpus, dev, training = _supplies(recipe, units, model, report)
    if check is not None:
        return check(model, corpus, training)
    train(model, corpus, training, directory, dev=dev, report=report, stop_after=stop_after, on_step=on_step)
    if is_first_rank():
        save(model, directory / "model", bits=recipe.bits, card=_card(recipe, corpus, training))
    wait_for_all_ranks()
    return load(directory / "model")


def _made(
    recipe: UnitTranslatorRecipe, directory: Path, report: Report
) -> tuple[Units, TokenConformer | TokenMbart]:
    """The units and the model before its first step."""
    units = Units(recipe.units)
    if recipe.mbart is not None:
        return _from_mbart(recipe, recipe.mbart, units, directory / "units", report)
    model = make(TokenConfig(**recipe.model.model_dump(), **_read(recipe, units)), units)
    if recipe.start is not None:
        _start_from(model, recipe.start, report)
    return units, model


def _from_mbart(
    recipe: UnitTranslatorRecipe, checkpoint: str, units: Units, out: Path, report: Report
) -> tuple[Units, TokenMbart]:
    """Units with the pieces of a checkpoint that occur in the training texts, and a model with its weights."""
    languages = sorted({tag for pair in recipe.all_pairs for tag in pair})
    parts = _parts(recipe, units, lambda line: None)
    with_mbart = units_with_mbart(units, checkpoint, parts, languages, out)
    given = _read(recipe, with_mbart)
    model = start_from_mbart(with_mbart, checkpoint, lambda shape: MbartConfig(**shape.model_dump(), **given))
    report(
        f"{checkpoint}: {len(model.written)} of its tokens are kept, "
        f"{model.unit_embedding.num_embeddings} pieces of units are new"
    )
    return with_mbart, model


def _read(recipe: UnitTranslatorRecipe, units: Units) -> dict[str, Any]:
    """The options of a model's inputs; see `ReadTokens`."""
    return {
        "pairs": recipe.all_pairs,
        "ratio": recipe.ratio or units.config.mean_length_ratio or LIKELY_RATIO,
        "mark_repeats": recipe.mark_repeats,
        "keep_repeats": recipe.keep_repeats,
        "max_window_s": recipe.training.max_duration_s,
    }


def _supplies(
    recipe: UnitTranslatorRecipe, units: Units, model: TokenConformer | TokenMbart, report: Report
) -> tuple[TokenDataset, TokenDataset, TrainingOptions]:
    """Training and dev data, a report of all that is left out of them, and the training with all its steps counted."""
    parts = _parts(recipe, units, report)
    reader: Any = model.reader
    corpus = TokenDataset(parts, model.config, reader, recipe.mixing, seed=recipe.training.seed)
    plan = BatchingOptions(
        batch_s=recipe.training.batch_s,
        max_utterances=recipe.training.max_utterances,
        max_duration_s=recipe.training.max_duration_s,
        seed=recipe.training.seed,
    )
    training = recipe.training
    if recipe.steps_of == "speech" and recipe.train:
        training = _on_top(training, corpus.speech_share(plan))
    if recipe.mixing.speech_only_share:
        step = round((1 - recipe.mixing.speech_only_share) * training.steps)
        corpus.speech_only_from = first_epoch_behind(corpus, plan, step)
    encoded = [EncodedCorpus(path, units) for path in recipe.dev]
    as_text = not recipe.train
    held_out = [
        SpokenSentences(each, recipe.all_pairs, as_text=as_text, keep_repeats=recipe.keep_repeats)
        for each in encoded
    ]
    dev = TokenDataset(held_out, model.config, reader, recipe.mixing, sample=False)
    report_trained_dev(recipe.train, recipe.dev, report)
    for name, dataset in (("training", corpus), ("dev", dev)):
        for line in dataset.lines(training.max_duration_s):
            report(f"{name}: {line}")
    return corpus, dev, training


def _on_top(training: TrainingOptions, speech_share: float) -> TrainingOptions:
    """As many steps on speech, and evaluations, as without text, when only a share of all steps is on speech."""
    counts = {name: round(getattr(training, name) / speech_share) for name in ("steps", "evaluate_every")}
    return training.model_copy(update=counts)


def _parts(recipe: UnitTranslatorRecipe, units: Units, report: Report) -> list[Sentences]:
    parts: list[Sentences] = []
    for path in recipe.train:
        encoded = EncodedCorpus(path, units)
        for skipped in encoded.info.skipped:
            report(f"{path}: {skipped.id} has no units ({skipped.reason})")
        forms = (False, True) if recipe.mixing.text else (False,)
        parts += [
            SpokenSentences(
                encoded, recipe.pairs, as_text=as_text, keep_repeats=recipe.keep_repeats, hours=recipe.hours
            )
            for as_text in forms
        ]
    for part in recipe.bitext:
        bitext = read_bitext(part.paths, part.source, part.target, skip_bad=part.skip_bad)
        if bitext.faults:
            report(
                f"{len(bitext.faults)} pairs of {part.paths[0]} cannot be used, the first: {bitext.faults[0]}: left out"
            )
        parts.append(WrittenSentences(bitext))
    return parts


def _start_from(model: TokenConformer, directory: Path, report: Report) -> None:
    """Take over the weights of a model with the same units, where they are of the same shape."""
    start: Any = load(directory)
    if not isinstance(start, TokenConformer):
        raise SprachbundError(
            f"{directory} is of the family {start.name}; start from a {TokenConformer.name} model"
        )
    if start.config.units != model.config.units:
        raise SprachbundError(
            f"{directory} reads other units than {model.reader.directory}; start from another"
        )
    own, theirs = model.state_dict(), start.state_dict()
    fitting = {n: w for n, w in theirs.items() if n in own and own[n].shape == w.shape}
    model.load_state_dict(fitting, strict=False)
    if missing := sorted(own.keys() - fitting.keys()):
        report(f"{len(missing)} of {len(own)} weights are new: {', '.join(missing[:3])} ...")


def _card(recipe: UnitTranslatorRecipe, corpus: TokenDataset, training: TrainingOptions) -> Card:
    sources: Sequence[str] = sorted({source for source, _ in recipe.all_pairs})
    start = {} if recipe.mbart is None else {"made_from": {"model": recipe.mbart, "by": "train"}}
    return Card(
        **recipe.card.model_dump(),
        source_languages=list(sources),
        target_languages=sorted({target for _, target in recipe.all_pairs}),
        data=[{"name": kind, "utterances": count} for kind, count in corpus.counts().items()],
        training={
            "steps": training.steps,
            "batch_s": training.batch_s,
            PAIRS: sorted(map(list, recipe.all_pairs)),
            **start,
        },
    )

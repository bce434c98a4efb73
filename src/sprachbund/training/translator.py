"""Training a speech translator, from manifests to a model directory: the run of a `TranslatorRecipe`, and the card."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sprachbund.corpora.editions import LiveEdition
from sprachbund.data.batching import nested, tempered
from sprachbund.data.loading import (
    Corpus,
    ExampleOptions,
    Examples,
    ShardedCorpus,
    UtteranceSource,
    source_languages_of,
)
from sprachbund.data.shards import Shards, open_corpus
from sprachbund.errors import SprachbundError
from sprachbund.models.calibration import lost_calibrations
from sprachbund.models.card import PAIRS, Card
from sprachbund.models.io import load as load_model
from sprachbund.models.io import locate
from sprachbund.models.licence import licences_owed
from sprachbund.training.cached_states import (
    FOLDER,
    cached_corpus,
    check_cacheable,
    first_moving_layer,
)
from sprachbund.training.check import Check
from sprachbund.training.checkpoint import claim_folder
from sprachbund.training.data_checks import (
    TaughtLanguages,
    check_corpus,
    length_warnings,
    report_trained_dev,
    taught_languages,
    text_warnings,
    training_texts,
)
from sprachbund.training.dual_scale import DualScale
from sprachbund.training.loop import train
from sprachbund.training.lora import add_lora, merge_lora
from sprachbund.training.options import TrainingOptions
from sprachbund.training.preparation import (
    PreparedModel,
    drawn_for,
    prepare_dual_scale,
    prepare_model,
    save_draft,
)
from sprachbund.training.recipe import NO_MASKS, DataPart, TranslatorRecipe
from sprachbund.util.distributed import (
    first_rank_first,
    is_first_rank,
    joined_processes,
    on_first_rank,
    wait_for_all_ranks,
)
from sprachbund.util.progress import Report, nothing


def run(
    recipe: TranslatorRecipe,
    directory: Path,
    *,
    score: Callable[[Any], float] | None = None,
    report: Report = print,
    stop_after: int | None = None,
    on_step: Callable[[int, int], None] = nothing,
    accept_changes: bool = False,
    check: Check | None = None,
    states: Path | None = None,
) -> Any:
    """Train, or resume, the run in `directory`; its `model` folder is the result, which is returned loaded.

    Args:
        recipe: model, data and options.
        directory: directory of the run.
        score: score of the model on the way, less is better, where `training.metric_for_best_model` is "score".
        report: takes each line of progress.
        stop_after: stop, resumable, after so many steps.
        on_step: called with the steps made, and with all of them.
        accept_changes: go on with a run whose recipe was another one.
        check: is called with model, data and options in place of training, and nothing is returned.
        states: folder of cached states, which runs may share; one of the run's own if None.
    """
    with joined_processes():
        return _run(
            recipe,
            directory,
            score,
            on_first_rank(report),
            stop_after,
            on_step,
            accept_changes,
            check,
            states or directory / FOLDER,
        )


def _run(
    recipe: TranslatorRecipe,
    directory: Path,
    score: Callable[[Any], float] | None,
    report: Report,
    stop_after: int | None,
    on_step: Callable[[int, int], None],
    accept_changes: bool,
    check: Check | None,
    states: Path,
) -> Any:
    torch.manual_seed(recipe.training.seed)
    data = [part.path for part in (*recipe.train, *recipe.dev)]
    claim_folder(directory, recipe, data=data, accept_changes=accept_changes)
    for line in licence_warnings(recipe):
        report(line)
    if recipe.cache_states and score is not None:
        raise SprachbundError("cache_states ranks checkpoints by their loss; leave the score out")
    prepared, corpus, dev = _prepared(recipe, directory, report)
    taught = taught_languages(corpus)
    for line in taught.warnings(corpus.examples.source_languages, corpus.targets):
        report(line)
    model = prepared.model
    if check is not None:
        return check(model, corpus, recipe.training)
    if recipe.cache_states:
        corpus, dev = _cached(model, corpus, dev, recipe.training, states, report)
    train(
        model,
        corpus,
        recipe.training,
        directory,
        dev=dev,
        score=score,
        report=report,
        stop_after=stop_after,
        on_step=on_step,
    )
    if recipe.cache_states:
        _base(model).encoder = _base(model).encoder.behind(0)
    merge_lora(model)
    if is_first_rank():
        prepared.save(directory / "model", card=_card(recipe, corpus, taught))
        if recipe.dual_scale is not None:
            save_draft(model, recipe.training, dev, directory / "model", report)
        if recipe.start is not None:
            start, model_directory = locate(str(recipe.start), offline=True), directory / "model"
            for line in lost_calibrations(str(recipe.start), start, model_directory, model_directory):
                report(line)
    wait_for_all_ranks()
    return load_model(directory / "model")


def _prepared(
    recipe: TranslatorRecipe, directory: Path, report: Report
) -> tuple[PreparedModel, Corpus, Corpus]:
    """The model, and the data that it is trained and evaluated on, once they were found to fit together."""
    with first_rank_first():  # which renders live data and fits tokenizers
        parts, dev_parts = _training_data(recipe, directory, report), _read(recipe.dev)
        prepared = prepare_model(recipe, directory, [source.at() for source, _ in parts])
    if recipe.dual_scale is not None:
        prepared = prepare_dual_scale(prepared, recipe, report)
    model = prepared.model
    if recipe.lora is not None:
        adapters = recipe.lora
        add_lora(model, adapters.modules, adapters.rank, scale=adapters.scale, whole=adapters.whole)
    if prepared.drawn and recipe.examples.same_language != 1:
        report(
            'the model writes what is spoken, so it is trained on transcripts; fine_tuning.prompt = "wanted" trains it '
            "to translate"
        )
    drawn = recipe.examples.model_dump() | dict(prepared.drawn) | drawn_for(recipe.dual_scale)
    masks = {**drawn, **NO_MASKS}
    options, dev_options = ExampleOptions(**drawn, seed=recipe.training.seed), ExampleOptions(**masks, seed=0)
    corpus = _training_corpus(parts, prepared.examples, options, recipe.training.window_shards)
    dev = Corpus(dev_parts, prepared.examples, dev_options)
    check_corpus(corpus, recipe.training.max_duration_s, report)
    report_trained_dev([part.path for part in recipe.train], [part.path for part in recipe.dev], report)
    _report_texts(prepared, corpus, report)
    if recipe.cache_states:
        for sources, wanted in ((parts, options), (dev_parts, dev_options)):
            check_cacheable(_base(model), wanted, [source for source, _ in sources])
    return prepared, corpus, dev


def _base(model: Any) -> Any:
    """The model that has the encoder."""
    return model.base if isinstance(model, DualScale) else model


def _cached(
    model: Any,
    corpus: Corpus,
    dev: Corpus,
    training: TrainingOptions,
    directory: Path,
    report: Report,
) -> tuple[Corpus, Corpus]:
    """Both corpora as states behind the layers that do not move; the model's encoder begins there from now on."""
    base = _base(model)
    layer = first_moving_layer(model, base.encoder, training.trainable)
    before = base.encoder.before(layer)
    train_states, dev_states = (
        cached_corpus(before, part, directory, num_workers=training.num_workers, report=report)
        for part in (corpus, dev)
    )
    base.encoder = base.encoder.behind(layer)
    return train_states, dev_states


def _report_texts(prepared: PreparedModel, corpus: Corpus, report: Report) -> None:
    """Report which texts cannot be learned as they are."""
    lines: list[str] = []
    if prepared.tokenizer is not None:
        lines += text_warnings(
            training_texts(corpus), prepared.tokenizer, corpus.examples.max_tokens - 1
        )  # the end is one
    if prepared.ctc_frame_s is not None:
        lines += length_warnings(corpus, prepared.ctc_frame_s)
    for line in lines:
        report(line)


def _training_corpus(
    parts: Sequence[tuple[UtteranceSource, float]],
    examples: Examples,
    options: ExampleOptions,
    window: int,
) -> Corpus:
    """Training data: all of tar shards, which are read in windows, or none."""
    shards = [(source, repeats) for source, repeats in parts if isinstance(source, Shards)]
    if not shards:
        return Corpus(parts, examples, options)
    if len(shards) < len(parts):
        raise SprachbundError(
            "some training data are tar shards and others are not; pack the others too (`sprachbund data pack`)"
        )
    return ShardedCorpus(shards, examples, options, window)


def _read(parts: Sequence[DataPart]) -> list[tuple[UtteranceSource, float]]:
    return [(open_corpus(part.path, part.shares), part.repeats) for part in parts]


def _training_data(
    recipe: TranslatorRecipe, directory: Path, report: Report
) -> list[tuple[UtteranceSource, float]]:
    if not recipe.train and not recipe.live:
        raise SprachbundError(
            "the recipe has no training data; give it a [[train]] with a path, or a [[live]]"
        )
    if not recipe.dev:
        raise SprachbundError("the recipe has no data that rank its checkpoints; add a [[dev]] with a path")
    live = [
        LiveEdition(part.drawn(), directory / f"live-{n}", report=report)
        for n, part in enumerate(recipe.live)
    ]
    manifests = [open_corpus(part.path, part.shares) for part in recipe.train]
    if recipe.scale is not None:
        manifests = nested(manifests, recipe.scale.hours, recipe.scale.seed)
    hours = [float(manifest.durations_s.sum(dtype=np.float64)) / 3600 for manifest in manifests]
    repeats = tempered([part.repeats for part in recipe.train], hours, recipe.temperature)
    return [*zip(manifests, repeats, strict=True), *((part, 1.0) for part in live)]


# The card.


def _card(recipe: TranslatorRecipe, corpus: Corpus, taught: TaughtLanguages) -> Card:
    """The card of the model; what it started from gives its data, attribution and limits too.

    A new model knows only what its data taught. One that began from another may know more, as may one of live data.
    """
    heard, written = source_languages_of(recipe.languages), list(corpus.targets)
    if recipe.start is None and not recipe.live:
        heard = list(taught.spoken)
        written = list(taught.written) if taught.num_seen == taught.count else written
    data: list[dict[str, Any]] = []
    for manifest in corpus.corpora:
        info: dict[str, Any] = manifest.info() or {"name": str(manifest.directory)}
        data.append(
            {
                key: info[key]
                for key in ("name", "licence", "attribution", "hours", "utterances")
                if key in info
            }
        )
    own, limits = recipe.card.model_dump(), [*recipe.card.limits]
    training: dict[str, Any] = {"steps": recipe.training.steps, "batch_s": recipe.training.batch_s}
    before = Card(name="", training={PAIRS: []})  # a new model was taught nothing
    if recipe.start is not None:
        training["start"] = str(recipe.start)
        training["start_licence"] = " and ".join(one.name for one in licences_owed(str(recipe.start)))
        before = Card.read(locate(str(recipe.start), offline=True)) or Card(name="")
        data = [*before.data, *(entry for entry in data if entry not in before.data)]
        limits += [limit for limit in before.limits if limit not in limits]
    training |= before.pairs_with(taught.pairs)
    return Card(
        **{**own, "limits": limits},
        source_languages=heard,
        target_languages=written,
        data=data,
        training=training,
    )


def licence_warnings(recipe: TranslatorRecipe) -> list[str]:
    """Warnings about a licence on the card that the model to start from does not let one choose.

    Args:
        recipe: recipe of the run.
    """
    if recipe.start is None:
        return []
    stated, lines = recipe.card.licence, []
    for one in licences_owed(str(recipe.start)):
        if not one.binding or one.name.casefold() == stated.casefold():
            continue
        card = f"gives the new model the licence {stated}" if stated else "gives the new model no licence"
        why = "models made from it keep that licence" if one.commercial else "it forbids commercial use"
        lines.append(
            f"warning: the card {card}, but {recipe.start}, which it starts from, has weights under {one.name}: {why}; "
            f'set card.licence = "{one.name}", unless its terms allow another'
        )
    return lines

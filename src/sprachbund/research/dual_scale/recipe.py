"""Dual-scale training (arXiv 2508.11189) beside its baselines, from data to table.

1. A many-to-many model is trained, grown from a shallow one where that is asked for, or a checkpoint fine-tuned: the
   teacher, unpruned.
2. Every arm prunes the decoder of what there was before, and trains it with a text branch and a draft network; arms
   are trained beside each other (`workers`). Learning rates may be tried for each on dev first.
3. Other drafts are made for the main arm's model: a token map, and a smaller decoder on the same encoder.
4. All are scored on the same test sentences, several at a time, and timed interleaved, with and without drafts.

What is finished is not done again, so a broken-off run goes on.
"""

import copy
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from sprachbund.corpora.editions import texts_of
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.models.calibration import Calibration
from sprachbund.models.io import load, save
from sprachbund.models.pruning import Layered, follow_depths, num_layers, prune_decoder
from sprachbund.models.whisper.config import WhisperConfig
from sprachbund.models.whisper.files import TOKENIZER, CheckpointFiles
from sprachbund.models.whisper.model import Whisper
from sprachbund.models.whisper.tokens import WhisperTokens, language_name
from sprachbund.nn.decoder import DecoderLayer
from sprachbund.research.dual_scale.estimate import estimate_memory
from sprachbund.research.dual_scale.options import (
    MAIN,
    OTHER_DRAFTS,
    TEACHER,
    TOKEN_MAP,
    DualScaleRecipe,
    WhisperShape,
    on_encoder,
    run_folder,
)
from sprachbund.research.dual_scale.rates import (
    RATES,
    RATES_FILE,
    TRIED_FILE,
    at_rate,
    rate_of,
    rates_folder,
    tried_rates,
)
from sprachbund.research.dual_scale.report import draw_speed, write_table
from sprachbund.research.dual_scale.speed import LOSSY, is_measured, measure_speed, models_of, systems_of
from sprachbund.research.tasks import make_files, parts_of, remember
from sprachbund.research.tuning import (
    as_json,
    best_rate,
    check_trained,
    loss_with,
    rates_left,
    read_tried,
    report_rates,
)
from sprachbund.training.checkpoint import LOG_FILE, run_log
from sprachbund.training.draft_recipe import DraftRecipe
from sprachbund.training.draft_recipe import run as make_draft
from sprachbund.training.options import TrainingOptions
from sprachbund.training.recipe import CardRecipe, DataPart, TranslatorRecipe
from sprachbund.training.translator import run as train_translator
from sprachbund.util.distributed import refuse_several_processes
from sprachbund.util.files import write_json
from sprachbund.util.progress import Report

__all__ = ["DualScaleRecipe", "estimate_memory", "run"]


# Deep models grown from shallow ones (progressive stacking, Gong et al., ICML 2019).

Model = TypeVar("Model", bound=Layered)


def grow_decoder(model: Model, layers: int) -> Model:
    """A model whose decoder has `layers`: each old layer stands `layers / old` times in a row.

    Every copy adds its part of what the layer added, so that what comes out hardly changes. Drafts are left behind:
    they fit one depth only.

    Raises:
        SprachbundError: no multiple of the layers there are, a family unknown to pruning, or a model that is split by
            languages, where a split belongs to one layer.
    """
    old = num_layers(model, "decoder")
    if layers < old or layers % old:
        raise SprachbundError(f"{old} decoder layers cannot become {layers}: give a multiple of {old}")
    if model.sharing_plan is not None:
        raise SprachbundError(
            "a model that is split by languages does not grow: grow it first, then split it"
        )
    new: Any = copy.deepcopy(model)
    times = layers // old
    for layer in new.decoder.layers:
        _divide(layer, times)
    order = tuple(i // times for i in range(layers))
    new.decoder.layers = nn.ModuleList(copy.deepcopy(new.decoder.layers[i]) for i in order)
    new.drafts, new.calibration = {}, Calibration()
    follow_depths(new, {"encoder": tuple(range(num_layers(new, "encoder"))), "decoder": order})
    return new


@torch.no_grad()
def _divide(layer: DecoderLayer, times: int) -> None:
    for last in (layer.self_attention.out, layer.cross_attention.out, layer.feed_forward.contract):
        last.weight.div_(times)
        last.bias.div_(times)


WEIGHTS = "model.safetensors"
FIGURE = "speed.png"
STATES = "states"
"""Folder of the states of a frozen encoder, for all trainings."""
MAY_CHANGE = ("seeds", "arms", "workers", "data")
"""Options that add trainings, or change no number: `data` may have moved."""
_TEXTS = 50_000  # that a new vocabulary is fitted on, at most


def run(recipe: DualScaleRecipe, directory: Path, *, report: Report = print) -> Path:
    """Run everything, or go on; the file with the table.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        report: called with a line for every step.

    Raises:
        SprachbundError: a recipe without data, with more layers or blocks than there are, or of a published shape
            without the checkpoint to start from; a folder of other options; one that torchrun started several times.
    """
    refuse_several_processes("the recipe dual_scale")
    if recipe.whisper is not None and recipe.start is None:
        raise SprachbundError(
            f"Whisper {recipe.whisper} is not trained from nothing: name the checkpoint, as in "
            f"--set start=openai/whisper-{recipe.whisper}"
        )
    estimate_memory(recipe)  # names layers and blocks that are not there before the teacher is trained
    directory.mkdir(parents=True, exist_ok=True)
    # The teacher that all arms start from has the first seed.
    remember(directory, recipe, may_change=MAY_CHANGE, data=parts_of(recipe.data), first_stays=("seeds",))
    teacher = _teacher(recipe, directory, report)
    _try_rates(recipe, recipe.start or teacher, directory, report)
    _train_arms(recipe, recipe.start or teacher, directory, report)
    _other_drafts(recipe, directory, report)
    _score(recipe, directory, report)
    if not is_measured(recipe, directory):
        measure_speed(recipe, directory, report)
    table = write_table(recipe, directory)
    draw_speed(table, directory / FIGURE)
    return table


def _translator(recipe: DualScaleRecipe, training: TrainingOptions, **changes: Any) -> TranslatorRecipe:
    moving = recipe.moving_parts(changes.get("dual_scale"))
    if moving and not training.trainable:
        training = training.model_copy(update={"trainable": moving})
    changes.setdefault("examples", recipe.examples)
    return TranslatorRecipe(
        languages=recipe.languages,
        train=(_data_part(recipe, "train"),),
        dev=(_data_part(recipe, "dev"),),
        bits=32,
        cache_states=recipe.cache_states,
        training=training,
        card=CardRecipe(name="dual-scale"),
        **changes,
    )


def _data_part(recipe: DualScaleRecipe, name: str) -> DataPart:
    """A part of the data; speech in languages that the comparison leaves out is left out by a share of nothing."""
    path = recipe.data / name
    others = set(Manifest(path).languages.tolist()) - {"", *recipe.languages}
    return DataPart(path=path, shares=dict.fromkeys(sorted(others), 0.0))


def _teacher(recipe: DualScaleRecipe, directory: Path, report: Report) -> Path:
    """The unpruned model, trained on the same data."""
    folder = run_folder(directory, TEACHER, recipe.seeds[0])
    if not (folder / "model" / WEIGHTS).exists():
        report(f"{TEACHER}: training")
        training = _seeded(recipe, recipe.teacher)
        if recipe.start:
            begin = _checkpoint(recipe)
        elif recipe.shallow:
            begin = {"start": _grown(recipe, recipe.shallow, folder, directory, report)}
        else:
            begin = _new_model(recipe, folder)
        _train(_translator(recipe, training, **begin), folder, directory, report)
    return folder / "model"


def _train(recipe: TranslatorRecipe, folder: Path, directory: Path, report: Report) -> None:
    """Train in a folder, or go on there; all runs of the directory share the states of a frozen encoder."""
    train_translator(recipe, folder, report=report, states=directory / STATES)


def _seeded(recipe: DualScaleRecipe, training: TrainingOptions) -> TrainingOptions:
    return training.model_copy(update={"seed": recipe.seeds[0]})


def _grown(
    recipe: DualScaleRecipe, training: TrainingOptions, folder: Path, directory: Path, report: Report
) -> Path:
    """A model as deep as the teacher, grown from a shallow one that is trained here."""
    grown, shallow = folder / "grown", folder / "shallow"
    if not (grown / WEIGHTS).exists():
        report(f"{TEACHER}: training {recipe.shallow_layers} decoder layers first")
        begin = _new_model(recipe.with_decoder_layers(recipe.shallow_layers), shallow)
        begin["examples"] = recipe.shallow_examples
        _train(_translator(recipe, _seeded(recipe, training), **begin), shallow, directory, report)
        deep: Any = grow_decoder(load(shallow / "model"), recipe.new_decoder_layers)  # type: ignore[type-var]
        save(deep, grown, bits=32)
    return grown


def _checkpoint(recipe: DualScaleRecipe) -> dict[str, Any]:
    return {"start": recipe.start, "fine_tuning": recipe.fine_tuning}


def _new_model(recipe: DualScaleRecipe, folder: Path) -> dict[str, Any]:
    """Start of the teacher without a checkpoint: a Whisper of random weights, or a conformer's shape.

    A conformer with the encoder of another one is a model of which the decoder has random weights.
    """
    new = folder / "new"
    torch.manual_seed(recipe.seeds[0])
    if recipe.encoder is not None and recipe.conformer is not None:
        if not (new / WEIGHTS).exists():
            save(on_encoder(recipe.encoder, recipe.conformer), new, bits=32)
        return {"start": new}
    if recipe.conformer is not None:
        return {"model": recipe.conformer, "vocabulary_size": recipe.model.vocabulary_size}
    if not (new / WEIGHTS).exists():
        _make_whisper(recipe.model, recipe.languages, Manifest(recipe.data / "train"), new)
    return {"start": new, "fine_tuning": recipe.fine_tuning}


def _make_whisper(shape: WhisperShape, languages: tuple[str, ...], data: Manifest, directory: Path) -> None:
    from sprachbund.models import whisper

    tokenizer = fit_tokenizer(
        (f" {text}" for text in texts_of([data], _TEXTS)), languages, shape.vocabulary_size
    )
    config = shape.config(tokenizer.get_vocab_size(with_added_tokens=True))
    whisper.save(new_whisper(config, tokenizer), directory)


def _try_rates(recipe: DualScaleRecipe, start: Path | str, directory: Path, report: Report) -> None:
    """Train every arm with every learning rate, where some are to be tried."""
    if not recipe.learning_rates:
        return
    names = list(recipe.trained_arms)
    report(f"learning rates of every arm, on dev; progress is in {directory / RATES / 'ARM' / LOG_FILE}")
    paths = [rates_folder(directory, name) / RATES_FILE for name in names]
    make = partial(tune_arm, recipe, start, directory, names)
    make_files(paths, make, "arms tuned", workers=recipe.workers, report=report)
    report_rates({name: tried_rates(directory, name) for name in names}, report)


def tune_arm(
    recipe: DualScaleRecipe, start: Path | str, directory: Path, names: Sequence[str], number: int
) -> None:
    """Train an arm with every learning rate and the first seed, or go on; the best training becomes that of the seed.

    Losses are written down one by one. A rate at which the training breaks down counts as one without a loss.

    Args:
        recipe: options of the comparison.
        start: model that every arm starts from.
        directory: folder of all runs.
        names: names of the arms.
        number: number of the arm among them.
    """
    name, seed = names[number], recipe.seeds[0]
    folder = rates_folder(directory, name)
    so_far = folder / TRIED_FILE
    tried = read_tried(so_far) if so_far.exists() else {}
    with run_log(folder) as report:
        while left := rates_left(recipe.learning_rates, recipe.more_learning_rates, tried):
            run = folder / f"{left[0]:g}"
            train = partial(_train, _arm(recipe, start, name, seed, left[0]), run, directory, report)
            tried[left[0]] = loss_with(left[0], train, run, report)
            write_json(so_far, as_json(tried))
    check_trained(repr(name), tried, "learning_rates")
    best, target = folder / f"{best_rate(tried):g}", run_folder(directory, name, seed)
    if best.exists():  # or it was moved, and what follows was broken off
        target.parent.mkdir(parents=True, exist_ok=True)
        best.rename(target)
    for rate in tried:
        shutil.rmtree(folder / f"{rate:g}", ignore_errors=True)
    so_far.replace(folder / RATES_FILE)


def _train_arms(recipe: DualScaleRecipe, start: Path | str, directory: Path, report: Report) -> None:
    """Train every arm, several at a time where the recipe says so."""
    # A seed of all arms is finished before the next one begins, so that what a broken-off run has can be compared.
    runs = [(name, seed) for seed in recipe.seeds for name in recipe.trained_arms]
    report(f"what each training says is in {directory / 'seed-N' / 'ARM' / LOG_FILE}")
    paths = [run_folder(directory, name, seed) / "model" / WEIGHTS for name, seed in runs]
    make_files(
        paths,
        partial(make_arm, recipe, start, directory, runs),
        "arms",
        workers=recipe.workers,
        report=report,
    )


def make_arm(
    recipe: DualScaleRecipe,
    start: Path | str,
    directory: Path,
    runs: Sequence[tuple[str, int]],
    number: int,
) -> None:
    """Train an arm, or go on with it.

    Args:
        recipe: options of the comparison.
        start: model that every arm starts from.
        directory: folder of all runs.
        runs: names and seeds of the arms.
        number: number of the arm among them.
    """
    name, seed = runs[number]
    folder = run_folder(directory, name, seed)
    translator = _arm(recipe, start, name, seed, rate_of(recipe, directory, name))
    with run_log(folder) as report:
        _train(translator, folder, directory, report)


def _arm(
    recipe: DualScaleRecipe, start: Path | str, name: str, seed: int, learning_rate: float
) -> TranslatorRecipe:
    training = at_rate(recipe.training, learning_rate).model_copy(update={"seed": seed})
    begin = _checkpoint(recipe) if recipe.start else {"start": start}
    return _translator(recipe, training, **begin, dual_scale=recipe.trained_arms[name])


def _other_drafts(recipe: DualScaleRecipe, directory: Path, report: Report) -> None:
    """Drafts of other kinds for the main models."""
    runs = [(name, seed) for seed in recipe.seeds for name in OTHER_DRAFTS if name in recipe.arms]
    paths = [run_folder(directory, name, seed) / "model" / WEIGHTS for name, seed in runs]
    make_files(
        paths,
        partial(make_other_draft, recipe, directory, runs),
        "other drafts",
        workers=recipe.workers,
        report=report,
    )


def make_other_draft(
    recipe: DualScaleRecipe, directory: Path, runs: Sequence[tuple[str, int]], number: int
) -> None:
    """Make a draft for a main model, which stays as it is, or go on with it.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        runs: kinds of drafts, and seeds of the main models.
        number: number of the draft among them.
    """
    kind, seed = runs[number]
    base, folder = run_folder(directory, MAIN, seed) / "model", run_folder(directory, kind, seed)
    with run_log(folder) as report:
        if kind == TOKEN_MAP:
            data = _translator(recipe, recipe.training)
            wanted = DraftRecipe(
                draft="token-map", model=base, languages=recipe.languages, train=data.train, dev=data.dev
            )
            make_draft(wanted, folder, report=report)
            return
        small: Any = prune_decoder(load(base), recipe.draft_layers)  # type: ignore[type-var]
        save(small, folder / "new", bits=32)
        # The encoder is shared with the model that it drafts for, so it has to stay that one's.
        training = recipe.drafting.model_copy(update={"seed": seed, "trainable": ("decoder.*",)})
        _train(_translator(recipe, training, start=folder / "new"), folder, directory, report)


def _score(recipe: DualScaleRecipe, directory: Path, report: Report) -> None:
    """Score every model once without a draft, and once for each lossy way of accepting."""
    asked = [(folder, DecodingOptions(draft=NONE), "scores") for folder in models_of(recipe, directory)]
    for system in systems_of(recipe, directory):
        if system.accept in LOSSY:
            lossy = DecodingOptions(
                draft=system.draft, num_draft_tokens=system.num_draft_tokens, accept=system.accept
            )
            asked.append((system.model.parent, lossy, system.scores))
    paths = [folder / name / MANIFEST_FILE for folder, _, name in asked]
    make_files(paths, partial(score_model, recipe, asked), "scores", workers=recipe.workers, report=report)


def score_model(
    recipe: DualScaleRecipe, asked: Sequence[tuple[Path, DecodingOptions, str]], number: int
) -> None:
    """Score a model on the test set.

    Args:
        recipe: options of the comparison.
        asked: folders of models, how each decodes, and the name of the folder for its scores.
        number: number of the model among them.
    """
    folder, decoding, name = asked[number]
    options = EvaluationOptions(
        targets=recipe.languages,
        limit=recipe.test_utterances,
        decoding=decoding,
        no_speech_per_kind=0,
        first_segments=0,
        engine=recipe.timing.engine,
    )
    evaluate([recipe.data / "test"], folder / "model", options, out=folder / name)


# A new Whisper with its own vocabulary, for runs without a published one.

_TASKS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>")


def fit_tokenizer(texts: Iterable[str], languages: Sequence[str], num_text_tokens: int) -> Tokenizer:
    """Pairs of bytes (arXiv 1508.07909) fitted on texts, then the special tokens in Whisper's order, without times.

    Args:
        texts: as Whisper writes them, with a space at the beginning of a word.
        languages: BCP-47 tags; each gets a token.
        num_text_tokens: most tokens of text; 256 stand for single bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_text_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = ["<|endoftext|>", "<|startoftranscript|>", *map(language_name, languages), *_TASKS]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def new_whisper(config: WhisperConfig, tokenizer: Tokenizer) -> Whisper:
    """A Whisper of random weights; `config.vocabulary_size` has to be that of the tokenizer."""
    checkpoint_files = CheckpointFiles(
        generation={"is_multilingual": True}, files={TOKENIZER: tokenizer.to_str().encode()}
    )
    return Whisper(
        config, tokens=WhisperTokens(tokenizer, config.vocabulary_size), checkpoint_files=checkpoint_files
    )

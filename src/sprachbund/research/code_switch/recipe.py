"""Code-switched translation with experts by language (arXiv 2511.10670) beside its baselines, from data to table.

1. A small language model is trained on the texts of the data, unless one is named.
2. Each kind of projector is trained in short with some learning rates; the best one on dev is that of its arms.
3. Every arm goes through its stages: speech encoder and language model frozen, projector and adapters trained. First
   stages are trained beside each other (`workers`), each with one thread, then second ones, and so on.
4. All arms are scored on code-switched and monolingual speech, and on spliced recordings of people where there are
   some, and compared with the first arm, over seeds, by paired bootstrap; so are other models that stand beside them.

The paper's formulas and nearly all its sizes are not public; those here are a reconstruction. What is finished is not
done again, so a broken-off run goes on; arms whose first stages are the same share them.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from sprachbund.corpora.editions import texts_of
from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest, read_info
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.manifest import MANIFEST_FILE, read_manifest
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate, model_used
from sprachbund.models.card import PAIRS, Card
from sprachbund.models.io import load as load_model
from sprachbund.models.io import locate
from sprachbund.models.speech_llm import PromptOptions, SpeechLLM, Stage, assemble, load, save
from sprachbund.models.speech_llm.checkpoints import write_part
from sprachbund.models.speech_llm.encoders import CachedSpeech, ReadStates, SpeechEncoder
from sprachbund.models.speech_llm.io import read_encoder
from sprachbund.models.speech_llm.llm import Prompts, TextExamples, TextLLM, fit_tokenizer, make_text_llm
from sprachbund.models.speech_llm.model import SpeechLLMExamples
from sprachbund.models.speech_llm.stages import STAGES, Data, enter, frozen_digest
from sprachbund.research.code_switch.estimate import estimate_memory, training_shape
from sprachbund.research.code_switch.options import (
    ARMS,
    PARTS,
    Chain,
    CodeSwitchRecipe,
    Projection,
    run_folder,
)
from sprachbund.research.code_switch.report import (
    TESTS,
    other_scores_of,
    read_written,
    scores_of,
    write_table,
)
from sprachbund.research.code_switch.transition import Transition
from sprachbund.research.tasks import make_files, remember
from sprachbund.research.tuning import (
    TriedRates,
    as_json,
    best_rate,
    check_trained,
    lowest_loss,
    read_tried,
    report_rates,
)
from sprachbund.text.languages import MIXED
from sprachbund.training.cached_states import cached_corpus
from sprachbund.training.checkpoint import LOG_FILE, forget_run, run_log
from sprachbund.training.data_checks import taught_languages
from sprachbund.training.loop import DivergedError, train
from sprachbund.training.parallel import in_16_bits
from sprachbund.util.distributed import (
    first_rank_first,
    is_first_rank,
    joined_processes,
    on_first_rank,
    wait_for_all_ranks,
    world_size,
)
from sprachbund.util.files import atomic_files, read_object, write_json, write_text
from sprachbund.util.progress import Report

__all__ = ["CodeSwitchRecipe", "estimate_memory", "run", "training_shape"]


# One stage of an arm, and its scores, each in its own folder.

NO_MASKS: dict[str, Any] = {"time_masks": 0, "frequency_masks": 0}
_DEV_SHARE = 0.25
"""Share of the dev parts, for the loss at the end of each of many short stages."""
STATES = "states"
"""Folder of the encoder's states, for all stages and arms."""
STAGE_FILE = "stage.json"
"""Written last: names of the trained weights of a stage, and the digest of the others."""
RATES = "rates"
"""Folder of the short trainings that try learning rates, and of what they found."""


def make_stage(
    recipe: CodeSwitchRecipe,
    llm: Path,
    directory: Path,
    chains: Sequence[Chain],
    number: int,
    *,
    states: Path | None = None,
) -> None:
    """Train the last stage of a chain, or take it up; those before it are finished.

    Args:
        recipe: everything else.
        llm: directory of the language model.
        directory: directory of the comparison.
        chains: chains to be trained.
        number: number of the chain.
        states: folder of the encoder's states; that of the comparison if None.

    Raises:
        SprachbundError: as `run_stage` does.
    """
    seed, arm, stages = chains[number]
    here = run_folder(directory, seed, arm, stages)
    if len(stages) == 1:
        torch.manual_seed(seed)
        model, before = assemble(locate(recipe.encoder), llm, recipe.config_of(arm)), None
    else:
        earlier = run_folder(directory, seed, arm, stages[:-1]) / "model"
        model, before = load(earlier), Card.read(earlier)
    here.mkdir(parents=True, exist_ok=True)
    with run_log(here) as report:
        run_stage(
            recipe,
            model,
            stages[-1],
            seed,
            here,
            on_first_rank(report),
            states=states or directory / STATES,
            projector=arm.projector,
            before=before,
        )
    if is_first_rank():
        forget_run(here)


def run_stage(
    recipe: CodeSwitchRecipe,
    model: SpeechLLM,
    stage: Stage,
    seed: int,
    directory: Path,
    report: Report,
    *,
    stop_after: int | None = None,
    states: Path | None = None,
    projector: Projection = "groups",
    before: Card | None = None,
) -> None:
    """Train one stage, or take it up; its model and `stage.json` are written when it is over.

    Args:
        recipe: everything else.
        model: as the stage before left it.
        stage: trained parts and their data.
        seed: seed of order and transition.
        directory: directory of the stage.
        report: takes each progress line.
        stop_after: stop, resumable, after this many steps.
        states: folder of the encoder's states, where the recipe has `cache_states`; one of the stage's own if None.
        projector: kind of the model's, which may have a learning rate of its own.
        before: card of the model, as the stage before left it; None for a new one.

    Raises:
        SprachbundError: a weight that is frozen has changed.
    """
    num_moving = _enter_rounded(recipe, model, stage)
    options = recipe.options_of(stage, seed, projector)
    digest = frozen_digest(model, stage)
    encoder: SpeechEncoder = model.encoder

    def read(kinds: Sequence[Data], part: str) -> Corpus:
        corpus = corpus_of(recipe, model, kinds, part, seed)
        folder = states or directory / STATES
        return _behind_encoder(corpus, recipe, encoder, folder, report) if recipe.cache_states else corpus

    following = read(stage.data, "train")
    corpus: Corpus | Transition = following
    if stage.coming_from:
        previous = read(stage.coming_from, "train")
        corpus = Transition(previous, following, steps=options.steps, form=recipe.transition, seed=seed)
    dev = read(stage.data, "dev")
    if recipe.cache_states:
        model.encoder = CachedSpeech(encoder)
    train(model, corpus, options, directory, dev=dev, report=report, stop_after=stop_after)
    model.encoder = encoder
    if stop_after is not None and stop_after < options.steps:
        return
    if frozen_digest(model, stage) != digest:
        raise SprachbundError(
            f"the stage {stage.name!r} moved what it has to leave; this is a fault of the program"
        )
    if not is_first_rank():
        return
    save(model, directory / "model", inside=False, card=_card(recipe, stage, corpus, before))
    record = {"stage": stage.model_dump(mode="json"), "trained": num_moving, "frozen_sha256": digest}
    write_text(directory / STAGE_FILE, json.dumps(record, indent=1) + "\n")


def _enter_rounded(recipe: CodeSwitchRecipe, model: SpeechLLM, stage: Stage) -> int:
    """Freeze what a stage leaves, rounded now where training keeps it in 16 bits; the number of weights that move."""
    num_moving = enter(model, stage)
    if recipe.training.frozen_bf16:
        in_16_bits(model)()  # so that training leaves them as they are, and states of the encoder are theirs
    return num_moving


def _behind_encoder(
    corpus: Corpus, recipe: CodeSwitchRecipe, encoder: SpeechEncoder, folder: Path, report: Report
) -> Corpus:
    """A corpus whose features are what the model reads of the encoder."""
    reading = ReadStates(encoder, recipe.projector.encoder_layers)
    return cached_corpus(reading, corpus, folder, num_workers=recipe.training.num_workers, report=report)


def _card(recipe: CodeSwitchRecipe, stage: Stage, corpus: Corpus | Transition, before: Card | None) -> Card:
    """The card of a model after a stage: the data of this one, the language pairs of all."""
    sides = corpus.sides if isinstance(corpus, Transition) else (corpus,)
    infos = [read_info(manifest.directory) for side in sides for manifest in side.manifests]
    data = [info for info in infos if info]
    keys = ("name", "licence", "attribution", "hours", "utterances")
    before = before or Card(name="", training={PAIRS: []})  # a new model was taught nothing
    pairs = [pair for side in sides for pair in taught_languages(side).pairs]
    return Card(
        name=f"code-switch, {stage.name}",
        source_languages=list(recipe.languages),
        target_languages=list(recipe.targets),
        data=[{key: info[key] for key in keys if key in info} for info in data],
        training={
            "encoder": recipe.encoder,
            "stage": stage.name,
            "steps": recipe.steps[stage.name],
            **before.pairs_with(pairs),
        },
    )


def corpus_of(
    recipe: CodeSwitchRecipe, model: SpeechLLM, kinds: Sequence[Data], part: str, seed: int
) -> Corpus:
    """The part of all kinds of data, end to end; a stage has none that is all transcribed beside one that is not.

    Args:
        recipe: options of the comparison.
        model: model whose tokenizer and prompts make the examples.
        kinds: kinds of data, laid end to end.
        part: "train" or "dev".
        seed: seed of every random choice of the corpus.
    """
    share = _DEV_SHARE if part == "dev" else 1.0
    scarce = recipe.shares if part == "train" else {}
    manifests = [
        (Manifest(folder, {tag: scarce[tag] for tag in Manifest(folder).spoken if tag in scarce}), share)
        for folder in (recipe.data / f"{PARTS[kind][0]}{part}" for kind in kinds)
    ]
    transcribed = PARTS[kinds[0]][1]
    examples = SpeechLLMExamples(model, recipe.languages, recipe.targets)
    options = ExampleOptions(
        rows_per_utterance=1 if transcribed else recipe.rows_per_utterance,
        same_language=1.0 if transcribed else recipe.transcribed,
        mixed=True,
        seed=seed,
        **NO_MASKS,
    )
    return Corpus(manifests, examples, options)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation.

    Attributes:
        model: directory of the model.
        parts: parts of the data.
        out: folder of the scores.
        is_other: whether the model is none of the comparison's own.
    """

    model: Path
    parts: tuple[Path, ...]
    out: Path
    is_other: bool = False


def make_scores(recipe: CodeSwitchRecipe, tests: Sequence[Evaluation], number: int) -> None:
    """Evaluate a model on the parts of a test set; one that is asked for mixed speech in a way of its own, in it too.

    Args:
        recipe: options of the comparison.
        tests: all evaluations.
        number: index among them.
    """
    test = tests[number]
    written = {target for _, target in load_model(test.model).pairs()} if test.is_other else set()
    options = EvaluationOptions(
        targets=(*recipe.targets, *({MIXED} & written)),
        limit=recipe.test_utterances,
        no_speech_per_kind=0,
        first_segments=0,
        engine="torch",
    )
    evaluate(test.parts, test.model, options, out=test.out)


MAY_CHANGE = ("seeds", "arms", "other_models", "workers", "data")
"""Options that add trainings or evaluations, or change no number: `data` may have moved."""
_MOST_TEXTS = 60_000
_PARTS = ("train", "dev", "test", "monolingual-train", "monolingual-dev", "monolingual-test")


def run(recipe: CodeSwitchRecipe, directory: Path, *, report: Report = print) -> Path:
    """Run all arms over all seeds, or go on; the file with the table.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        report: called with a line for every step.

    Of several processes that torchrun started, all train every stage together, one after the other, and end when all
    stages are trained; the same call in one process evaluates.

    Raises:
        SprachbundError: a folder without the parts that `data make mixed` writes, or with another comparison; models
            that do not fit each other.
    """
    other_models = {
        name: tuple(path.resolve() for path in models) for name, models in recipe.other_models.items()
    }
    resolved: dict[str, Any] = {"data": recipe.data.resolve(), "other_models": other_models}
    if recipe.texts:
        resolved["texts"] = recipe.texts.resolve()
    recipe = recipe.model_copy(update=resolved)
    _check_data(recipe.data)
    if recipe.texts:
        read_written(recipe, recipe.texts)  # evaluations take longer than a look at the file
    read_encoder(locate(recipe.encoder)).check_layers(recipe.projector.encoder_layers)
    with joined_processes():
        report = on_first_rank(report)
        with first_rank_first():
            data = [recipe.data / name for name in (*_PARTS, "spliced-train", "spliced-test")]
            remember(directory, recipe, may_change=MAY_CHANGE, data=data)
        if not recipe.texts:
            _train_all(recipe, directory, report)
        if world_size() > 1:
            report("all stages are trained; the same command without torchrun evaluates them")
            return directory
    tests = _tests(recipe, directory)
    _check_scored(tests)
    paths = [test.out / MANIFEST_FILE for test in tests]
    make_files(
        paths, partial(make_scores, recipe, tests), "evaluations", workers=recipe.workers, report=report
    )
    return write_table(recipe, directory, {} if recipe.texts else read_rates(recipe, directory))


def _train_all(recipe: CodeSwitchRecipe, directory: Path, report: Report) -> None:
    """Train the language model, and every stage of every arm; first stages before second ones."""
    llm = Path(recipe.llm) if recipe.llm else _text_llm(recipe, directory / "llm", report)
    wait_for_all_ranks()  # the first one writes the language model
    if recipe.cache_states:
        all_states(recipe, llm, directory, report)
    if recipe.tuning_rate_factors:
        try_rates(recipe, llm, directory, report)
        factors = {kind: best_rate(tried) for kind, tried in read_rates(recipe, directory).items()}
        recipe = recipe.model_copy(update={"rate_factors": factors})
    report(f"what each training says is in {directory / 'seed-N' / 'ARM' / 'STAGES' / LOG_FILE}")
    for length in range(1, len(STAGES) + 1):
        chains = recipe.chains(length)
        folders = [run_folder(directory, *chain) for chain in chains]
        make = partial(make_stage, recipe, llm, directory, chains)
        _train_stages(recipe, f"trainings, stage {length}", folders, make, report)


def all_states(recipe: CodeSwitchRecipe, llm: Path, directory: Path, report: Report) -> None:
    """Compute the encoder's states before the first stages, of which several at a time would each begin with that.

    Args:
        recipe: recipe of the comparison.
        llm: directory of the language model.
        directory: directory of the comparison.
        report: takes each progress line.
    """
    seed, arm, stages = recipe.chains(1)[0]
    if (run_folder(directory, seed, arm, stages) / STAGE_FILE).exists():
        return
    model = assemble(locate(recipe.encoder), llm, recipe.config_of(arm))
    _enter_rounded(recipe, model, stages[-1])
    kinds: tuple[Data, ...] = ("monolingual st", "code-switched st")
    for kind, part in product(kinds, ("train", "dev")):
        corpus = corpus_of(recipe, model, [kind], part, seed)
        _behind_encoder(corpus, recipe, model.encoder, directory / STATES, report)


def _train_stages(
    recipe: CodeSwitchRecipe,
    what: str,
    folders: Sequence[Path],
    make: Callable[[int], None],
    report: Report,
) -> None:
    """Train stages that do not need each other: beside each other, or one after the other by all processes."""
    paths = [folder / STAGE_FILE for folder in folders]
    if world_size() > 1:
        for number, path in enumerate(paths):
            if not path.exists():
                make(number)
            wait_for_all_ranks()  # or one could read what another writes
    else:
        make_files(paths, make, what, workers=recipe.workers, report=report)
    if is_first_rank():
        for folder in folders:
            forget_run(folder)


# Learning rates, from short trainings with the first seed.

Trial = tuple[float, Chain]
"""Rate factor, and what is trained with it."""
Rates = Mapping[Projection, TriedRates]
"""Kind of projector to rate factors, each with the loss on dev that it led to."""


def make_trial(
    recipe: CodeSwitchRecipe, llm: Path, directory: Path, trials: Sequence[Trial], number: int
) -> None:
    """Train the last stage of a chain in short with a rate factor; see `make_stage`.

    A training that breaks down has no later stages: their `stage.json` says so, as its own does.

    Args:
        recipe: recipe of the comparison.
        llm: directory of the language model.
        directory: directory of the comparison.
        trials: trials to be trained.
        number: number of the trial.
    """
    factor, chain = trials[number]
    folder, states = _trial_folder(directory, factor), directory / STATES
    seed, arm, stages = chain
    here = run_folder(folder, *chain)
    if len(stages) > 1 and _has_diverged(before := run_folder(folder, seed, arm, stages[:-1])):
        here.mkdir(parents=True, exist_ok=True)
        shutil.copy(before / STAGE_FILE, here)
        return
    try:
        make_stage(recipe.in_short(factor), llm, folder, [chain], 0, states=states)
    except DivergedError as error:
        forget_run(here)
        write_json(here / STAGE_FILE, {_DIVERGED: str(error)})


_DIVERGED = "diverged"
"""Key of `stage.json` of a training that broke down."""


def _has_diverged(stage: Path) -> bool:
    return _DIVERGED in read_object(stage / STAGE_FILE)


def try_rates(recipe: CodeSwitchRecipe, llm: Path, directory: Path, report: Report) -> None:
    """Write down the losses on dev of every rate factor, for each kind of projector that has none yet.

    Args:
        recipe: recipe of the comparison.
        llm: directory of the language model.
        directory: directory of the comparison.
        report: takes each progress line.
    """
    seed, factors = recipe.seeds[0], recipe.tuning_rate_factors
    kinds = {kind: arm for kind, arm in recipe.kinds.items() if not _rate_file(directory, kind).exists()}
    for length in range(1, len(STAGES) + 1):
        trials = [
            (factor, (seed, arm, recipe.stages_of(arm)[:length]))
            for factor, arm in product(factors, kinds.values())
        ]
        folders = [run_folder(_trial_folder(directory, factor), *chain) for factor, chain in trials]
        make = partial(make_trial, recipe, llm, directory, trials)
        _train_stages(recipe, f"trainings that try rates, stage {length}", folders, make, report)
    if kinds and is_first_rank():
        for kind, arm in kinds.items():
            runs = {
                factor: run_folder(_trial_folder(directory, factor), seed, arm, recipe.stages_of(arm))
                for factor in factors
            }
            tried = {
                factor: math.inf if _has_diverged(run) else lowest_loss(run) for factor, run in runs.items()
            }
            check_trained(f"the projector {kind!r}", tried, "tuning_rate_factors")
            write_json(_rate_file(directory, kind), as_json(tried))
        for factor in factors:
            shutil.rmtree(_trial_folder(directory, factor))
    wait_for_all_ranks()
    of_kinds = {f"the projector {kind!r}": losses for kind, losses in read_rates(recipe, directory).items()}
    report_rates(of_kinds, report, what="rate factor")


def read_rates(recipe: CodeSwitchRecipe, directory: Path) -> Rates:
    """Return the losses on dev of the short trainings; empty where no rates are tried."""
    if not recipe.tuning_rate_factors:
        return {}
    return {kind: read_tried(_rate_file(directory, kind)) for kind in recipe.kinds}


def _trial_folder(directory: Path, factor: float) -> Path:
    return directory / RATES / f"{factor:g}"


def _rate_file(directory: Path, kind: Projection) -> Path:
    return directory / RATES / f"{kind}.json"


def _tests(recipe: CodeSwitchRecipe, directory: Path) -> list[Evaluation]:
    """The evaluations: every arm's last model, and the other models, on every test set of which there is a part."""
    arms = [
        (
            run_folder(directory, seed, ARMS[name], recipe.stages_of(ARMS[name])) / "model",
            scores_of(directory, seed, name),
            False,
        )
        for seed, name in product(recipe.seeds, () if recipe.texts else recipe.all_arms)
    ]
    others = [
        (model, other_scores_of(directory, name, number), True)
        for name, models in recipe.other_models.items()
        for number, model in enumerate(models)
    ]
    tests = []
    for test, names in TESTS.items():
        parts = tuple(recipe.data / name for name in names if (recipe.data / name).is_dir())
        if parts:
            tests += [
                Evaluation(model=model, parts=parts, out=out / test, is_other=is_other)
                for model, out, is_other in (*arms, *others)
            ]
    return tests


def _check_scored(tests: Sequence[Evaluation]) -> None:
    """See that the scores of other models are of those that are named now: these may change in a folder."""
    for test in tests:
        if not test.is_other or not (test.out / MANIFEST_FILE).exists():
            continue
        scored, named = read_manifest(test.out).model, model_used(test.model, offline=True)
        if scored.sha256 != named.sha256:
            raise SprachbundError(
                f"{test.out} holds the scores of {scored.path}, and other_models names {named.path} there, which is "
                f"another model or has changed; delete {test.out.parent}, or give the new one a name of its own"
            )


def _check_data(data: Path) -> None:
    for part in _PARTS:
        if not (data / part).is_dir():
            raise SprachbundError(
                f"{data} has no part {part}; make it with `sprachbund data make mixed --out {data}`"
            )


def _text_llm(recipe: CodeSwitchRecipe, directory: Path, report: Report) -> Path:
    """A language model trained on the texts of the training data, in a directory of the Hugging Face layout."""
    target, options = directory / "model", recipe.text_training
    if (target / "model.safetensors").exists():  # written last
        return target
    report("training a language model on the texts")
    manifests = [Manifest(recipe.data / part) for part in ("monolingual-train", "train")]
    said = PromptOptions()
    tokenizer = fit_tokenizer(
        texts_of(manifests, _MOST_TEXTS), recipe.targets, said, recipe.text_llm.vocabulary_size
    )
    torch.manual_seed(options.seed)
    prompts = Prompts(tokenizer, said, len(tokenizer))
    model = TextLLM(make_text_llm(recipe.text_llm, tokenizer), prompts, recipe.languages, recipe.targets)
    examples = TextExamples(prompts, recipe.languages, recipe.targets, recipe.max_new_tokens)
    chosen = ExampleOptions(rows_per_utterance=len(recipe.targets), spoken=True, **NO_MASKS)
    dev = [Manifest(recipe.data / part) for part in ("monolingual-dev", "dev")]
    corpora = [
        Corpus([(manifest, 1.0) for manifest in known], examples, chosen) for known in (manifests, dev)
    ]
    train(model, corpora[0], options, directory, dev=corpora[1], report=report)
    if not is_first_rank():
        return target
    with atomic_files(target, last="tokenizer.json") as draft:
        tokenizer.save_pretrained(draft)
    write_part(model.llm, target)
    return target

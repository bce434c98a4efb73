"""One stage of an arm of the code-switched comparison, and its scores: each in a folder of its own, taken up again.

What a process is to do is told by a number among all that there is, so that several can share the work.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest, read_info
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.models.card import Card
from sprachbund.models.directory import locate
from sprachbund.models.speech_llm import SpeechLLM, Stage, assemble, load, save
from sprachbund.models.speech_llm.objective import SpeechLLMExamples
from sprachbund.models.speech_llm.stages import Data, enter, frozen_digest
from sprachbund.recipes.code_switch_options import ARMS, PARTS, Chain, CodeSwitchRecipe, place
from sprachbund.recipes.code_switch_table import TESTS, scores_of
from sprachbund.recipes.run_folder import forget_run, run_log
from sprachbund.training.loop import train
from sprachbund.training.transition import Transition
from sprachbund.util.files import write_text

Report = Callable[[str], None]
NO_MASKS: dict[str, Any] = {"time_masks": 0, "frequency_masks": 0}
_DEV_SHARE = 0.25
"""Of the dev parts, for the loss at the end of each of many short stages."""
STAGE_FILE = "stage.json"
"""Written last: what a stage trained, and the digest of what it did not."""
Test = tuple[int, str, str]
"""Seed, name of the arm, and folder of the scores."""


def make_stage(
    recipe: CodeSwitchRecipe, llm: Path, directory: Path, chains: Sequence[Chain], number: int
) -> None:
    """Train the last stage of a chain, or take it up; those before it are finished.

    Args:
        recipe: everything else.
        llm: directory of the language model.
        directory: of the comparison.
        chains: what there is to do.
        number: of the chain.

    Raises:
        SprachbundError: as `run_stage` does.
    """
    seed, arm, stages = chains[number]
    here = place(directory, seed, arm, stages)
    if len(stages) == 1:
        torch.manual_seed(seed)
        model = assemble(locate(recipe.encoder), llm, recipe.config_of(arm))
    else:
        model = load(place(directory, seed, arm, stages[:-1]) / "model")
    here.mkdir(parents=True, exist_ok=True)
    with run_log(here) as report:
        run_stage(recipe, model, stages[-1], seed, here, report)
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
) -> None:
    """Train one stage, or take it up; its model and `stage.json` are written when it is over.

    Args:
        recipe: everything else.
        model: as the stage before left it.
        stage: what is trained on what.
        seed: of order and transition.
        directory: of the stage.
        report: takes each progress line.
        stop_after: stop, resumable, after this many steps.

    Raises:
        SprachbundError: what may not move has moved.
    """
    num_moving = enter(model, stage)
    digest = frozen_digest(model, stage)
    options = recipe.options_of(stage, seed)
    following = corpus_of(recipe, model, stage.data, "train", seed)
    corpus: Corpus | Transition = following
    if stage.coming_from:
        previous = corpus_of(recipe, model, stage.coming_from, "train", seed)
        corpus = Transition(previous, following, steps=options.steps, form=recipe.transition, seed=seed)
    dev = corpus_of(recipe, model, stage.data, "dev", seed)
    train(model, corpus, options, directory, dev=dev, report=report, stop_after=stop_after)
    if stop_after is not None and stop_after < options.steps:
        return
    if frozen_digest(model, stage) != digest:
        raise SprachbundError(
            f"the stage {stage.name!r} moved what it has to leave; this is a fault of the program"
        )
    save(model, directory / "model", inside=False, card=_card(recipe, stage, corpus))
    told = {"stage": stage.model_dump(mode="json"), "trained": num_moving, "frozen_sha256": digest}
    write_text(directory / STAGE_FILE, json.dumps(told, indent=1) + "\n")


def _card(recipe: CodeSwitchRecipe, stage: Stage, corpus: Corpus | Transition) -> Card:
    """What is known of a model after a stage; of the data of the last one alone."""
    sides = corpus.sides if isinstance(corpus, Transition) else (corpus,)
    infos = [read_info(manifest.directory) for side in sides for manifest in side.manifests]
    data = [info for info in infos if info]
    told = ("name", "licence", "attribution", "hours", "utterances")
    return Card(
        name=f"code-switch, {stage.name}",
        source_languages=list(recipe.languages),
        target_languages=list(recipe.targets),
        data=[{key: info[key] for key in told if key in info} for info in data],
        training={"encoder": recipe.encoder, "stage": stage.name, "steps": recipe.steps[stage.name]},
    )


def corpus_of(
    recipe: CodeSwitchRecipe, model: SpeechLLM, kinds: Sequence[Data], part: str, seed: int
) -> Corpus:
    """The part of all kinds of data, end to end; a stage has none that is all transcribed beside one that is not."""
    share = _DEV_SHARE if part == "dev" else 1.0
    manifests = [(Manifest(recipe.data / f"{PARTS[kind][0]}{part}"), share) for kind in kinds]
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


def make_scores(recipe: CodeSwitchRecipe, directory: Path, tests: Sequence[Test], number: int) -> None:
    """Evaluate an arm's last model on the parts of a test set that are there."""
    seed, name, test = tests[number]
    arm = ARMS[name]
    options = EvaluationOptions(
        targets=recipe.targets, limit=recipe.test_utterances, no_speech_per_kind=0, first_segments=0
    )
    model = place(directory, seed, arm, recipe.stages_of(arm)) / "model"
    there = [recipe.data / part for part in TESTS[test] if (recipe.data / part).is_dir()]
    evaluate(there, model, options, out=scores_of(directory, seed, name) / test)

"""Code-switched translation with experts by language (arXiv 2511.10670) beside what it has to beat, from data to table.

1. A small language model is trained on the texts of the data, unless one is named.
2. Every arm goes through its stages: speech encoder and language model frozen, projector and adapters trained.
3. All arms are scored on code-switched and monolingual speech, and on spliced recordings of people where there are
   some, and compared with the first arm, over seeds, by paired bootstrap.

The paper's formulas and nearly all its sizes are not public; those here are a reconstruction. What is finished is not
done again, so a broken-off run goes on; arms whose first stages are the same share them.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sprachbund.data.editions import texts_of
from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import INFO_FILE, Manifest
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.models.card import Card
from sprachbund.models.directory import locate
from sprachbund.models.speech_llm import PromptOptions, SpeechLLM, Stage, assemble, load, save
from sprachbund.models.speech_llm.foreign import write_part
from sprachbund.models.speech_llm.objective import SpeechLLMExamples
from sprachbund.models.speech_llm.prompts import Prompts
from sprachbund.models.speech_llm.stages import Data, enter, frozen_digest
from sprachbund.models.speech_llm.text_llm import TextExamples, TextLLM, fit_tokenizer, make_text_llm
from sprachbund.recipes.code_switch_needs import needs
from sprachbund.recipes.code_switch_options import ARMS, PARTS, Arm, CodeSwitchRecipe, place
from sprachbund.recipes.code_switch_table import SPLICED, TESTS, scores_of, write_table
from sprachbund.training.loop import train
from sprachbund.training.transition import Transition

__all__ = ["CodeSwitchRecipe", "needs", "run"]

Report = Callable[[str], None]
_NO_MASKS: dict[str, Any] = {"time_masks": 0, "frequency_masks": 0}
_MOST_TEXTS = 60_000
_DEV_SHARE = 0.25
"""Of the dev parts, for the loss at the end of each of many short stages."""
STAGE_FILE = "stage.json"
"""Written last: what a stage trained, and the digest of what it did not."""


def run(recipe: CodeSwitchRecipe, directory: Path, *, report: Report = print) -> Path:
    """Run all arms over all seeds, or go on; the file with the table.

    Raises:
        SprachbundError: a folder without the parts that `data make mixed` writes; models that do not fit each other.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _check_data(recipe.data)
    llm = Path(recipe.llm) if recipe.llm else _text_llm(recipe, directory / "llm", report)
    for seed in recipe.seeds:
        for name in recipe.all_arms:
            model = _arm(recipe, ARMS[name], seed, llm, directory, report)
            _score(recipe, model, scores_of(directory, seed, name), report)
    return write_table(recipe, directory)


def _check_data(data: Path) -> None:
    for part in ("train", "dev", "test", "monolingual-train", "monolingual-dev", "monolingual-test"):
        if not (data / part).is_dir():
            raise SprachbundError(
                f"{data} has no part {part}; make it with `sprachbund data make mixed --out {data}`"
            )


def _text_llm(recipe: CodeSwitchRecipe, directory: Path, report: Report) -> Path:
    """A language model trained on the texts of the training data, in a directory of the Hugging Face layout."""
    place, options = directory / "model", recipe.text_training
    if (place / "model.safetensors").exists():  # written last
        return place
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
    chosen = ExampleOptions(rows_per_utterance=len(recipe.targets), spoken=True, **_NO_MASKS)
    dev = [Manifest(recipe.data / part) for part in ("monolingual-dev", "dev")]
    corpora = [
        Corpus([(manifest, 1.0) for manifest in found], examples, chosen) for found in (manifests, dev)
    ]
    train(model, corpora[0], options, directory, dev=corpora[1], report=report)
    tokenizer.save_pretrained(place)
    write_part(model.llm, place)
    return place


def _arm(recipe: CodeSwitchRecipe, arm: Arm, seed: int, llm: Path, directory: Path, report: Report) -> Path:
    """Go through an arm's stages; the directory of the last one's model."""
    stages, before = recipe.stages_of(arm), None
    for number, stage in enumerate(stages, start=1):
        here = place(directory, seed, arm, stages[:number])
        if not (here / STAGE_FILE).exists():
            report(f"seed {seed}: {here.parent.name}, {here.name}")
            model = _begun(recipe, arm, seed, llm) if before is None else load(before / "model")
            run_stage(recipe, model, stage, seed, here, report)
        before = here
    assert before is not None
    return before / "model"


def _begun(recipe: CodeSwitchRecipe, arm: Arm, seed: int, llm: Path) -> SpeechLLM:
    torch.manual_seed(seed)
    return assemble(locate(recipe.encoder), llm, recipe.config_of(arm))


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
    following = _corpus(recipe, model, stage.data, "train", seed)
    corpus: Corpus | Transition = following
    if stage.coming_from:
        previous = _corpus(recipe, model, stage.coming_from, "train", seed)
        corpus = Transition(previous, following, steps=options.steps, form=recipe.transition, seed=seed)
    dev = _corpus(recipe, model, stage.data, "dev", seed)
    train(model, corpus, options, directory, dev=dev, report=report, stop_after=stop_after)
    if stop_after is not None and stop_after < options.steps:
        return
    if frozen_digest(model, stage) != digest:
        raise SprachbundError(
            f"the stage {stage.name!r} moved what it has to leave; this is a fault of the program"
        )
    save(model, directory / "model", inside=False, card=_card(recipe, stage, corpus))
    told = {"stage": stage.model_dump(mode="json"), "trained": num_moving, "frozen_sha256": digest}
    (directory / STAGE_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _card(recipe: CodeSwitchRecipe, stage: Stage, corpus: Corpus | Transition) -> Card:
    """What is known of a model after a stage; of the data of the last one alone."""
    sides = corpus.sides if isinstance(corpus, Transition) else (corpus,)
    infos = [manifest.directory / INFO_FILE for side in sides for manifest in side.manifests]
    data = [json.loads(path.read_text(encoding="utf-8")) for path in infos if path.exists()]
    told = ("name", "licence", "attribution", "hours", "utterances")
    return Card(
        name=f"code-switch, {stage.name}",
        source_languages=list(recipe.languages),
        target_languages=list(recipe.targets),
        data=[{key: info[key] for key in told if key in info} for info in data],
        training={"encoder": recipe.encoder, "stage": stage.name, "steps": recipe.steps[stage.name]},
    )


def _corpus(
    recipe: CodeSwitchRecipe, model: SpeechLLM, kinds: Sequence[Data], part: str, seed: int
) -> Corpus:
    """The part of all kinds of data, end to end; a stage has none that is transcribed beside one that is not."""
    share = _DEV_SHARE if part == "dev" else 1.0
    manifests = [(Manifest(recipe.data / f"{PARTS[kind][0]}{part}"), share) for kind in kinds]
    transcribed = PARTS[kinds[0]][1]
    examples = SpeechLLMExamples(model, recipe.languages, recipe.targets)
    options = ExampleOptions(
        rows_per_utterance=1 if transcribed else recipe.rows_per_utterance,
        same_language=transcribed,
        mixed=True,
        seed=seed,
        **_NO_MASKS,
    )
    return Corpus(manifests, examples, options)


def _score(recipe: CodeSwitchRecipe, model: Path, scores: Path, report: Report) -> None:
    """Evaluate a model on every test part that is there."""
    options = EvaluationOptions(
        targets=recipe.targets, limit=recipe.test_utterances, no_speech_per_kind=0, first_segments=0
    )
    for name, parts in TESTS.items():
        there = [recipe.data / part for part in parts if (recipe.data / part).is_dir()]
        if (scores / name / MANIFEST_FILE).exists() or (name == SPLICED and not there):
            continue
        report(f"scoring {scores.name} on {name} speech")
        evaluate(there, model, options, out=scores / name)

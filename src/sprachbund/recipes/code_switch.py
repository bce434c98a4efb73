"""Code-switched translation with experts by language (arXiv 2511.10670) beside what it has to beat, from data to table.

1. A small language model is trained on the texts of the data, unless one is named.
2. Every arm goes through its stages: speech encoder and language model frozen, projector and adapters trained. First
   stages are trained beside each other (`workers`), each with one thread, then second ones, and so on.
3. All arms are scored on code-switched and monolingual speech, and on spliced recordings of people where there are
   some, and compared with the first arm, over seeds, by paired bootstrap.

The paper's formulas and nearly all its sizes are not public; those here are a reconstruction. What is finished is not
done again, so a broken-off run goes on; arms whose first stages are the same share them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from sprachbund.data.editions import texts_of
from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.models.directory import locate
from sprachbund.models.speech_llm import PromptOptions
from sprachbund.models.speech_llm.directory import read_encoder
from sprachbund.models.speech_llm.foreign import write_part
from sprachbund.models.speech_llm.prompts import Prompts
from sprachbund.models.speech_llm.stages import STAGES
from sprachbund.models.speech_llm.text_llm import TextExamples, TextLLM, fit_tokenizer, make_text_llm
from sprachbund.recipes.code_switch_needs import needs
from sprachbund.recipes.code_switch_options import CodeSwitchRecipe, place
from sprachbund.recipes.code_switch_stage import NO_MASKS, STAGE_FILE, Test, make_scores, make_stage
from sprachbund.recipes.code_switch_table import TESTS, scores_of, write_table
from sprachbund.recipes.run_folder import LOG_FILE
from sprachbund.studies.run import Tasks, remember, run_tasks
from sprachbund.training.loop import train
from sprachbund.util.distributed import refuse_several_processes
from sprachbund.util.files import atomic_files

__all__ = ["CodeSwitchRecipe", "needs", "run"]

Report = Callable[[str], None]
MAY_CHANGE = ("seeds", "arms", "workers", "data")
"""What adds trainings, or changes no number: `data` may have moved."""
_MOST_TEXTS = 60_000


def run(recipe: CodeSwitchRecipe, directory: Path, *, report: Report = print) -> Path:
    """Run all arms over all seeds, or go on; the file with the table.

    Raises:
        SprachbundError: a folder without the parts that `data make mixed` writes, or with another comparison; models
            that do not fit each other; a recipe that torchrun started several times.
    """
    refuse_several_processes("the recipe code_switch")
    recipe = recipe.model_copy(update={"data": recipe.data.resolve()})
    _check_data(recipe.data)
    read_encoder(locate(recipe.encoder)).check_layers(recipe.projector.encoder_layers)
    remember(directory, recipe, may_change=MAY_CHANGE)
    llm = Path(recipe.llm) if recipe.llm else _text_llm(recipe, directory / "llm", report)
    report(f"what each training says is in {directory / 'seed-N' / 'ARM' / 'STAGES' / LOG_FILE}")
    for length in range(1, len(STAGES) + 1):
        chains = recipe.chains(length)
        paths = [place(directory, *chain) / STAGE_FILE for chain in chains]
        _share(
            recipe,
            f"trainings, stage {length}",
            paths,
            partial(make_stage, recipe, llm, directory, chains),
            report,
        )
    tests = _tests(recipe)
    paths = [scores_of(directory, seed, name) / test / MANIFEST_FILE for seed, name, test in tests]
    _share(recipe, "evaluations", paths, partial(make_scores, recipe, directory, tests), report)
    return write_table(recipe, directory)


def _share(
    recipe: CodeSwitchRecipe, what: str, paths: Sequence[Path], make: Callable[[int], None], report: Report
) -> None:
    """Make files that do not need each other, by as many processes as there are workers."""
    threads = torch.get_num_threads() if recipe.workers == 1 else 1
    tasks = Tasks(paths=tuple(paths), make=make, threads=threads)
    run_tasks(tasks, what, workers=recipe.workers, report=report)


def _tests(recipe: CodeSwitchRecipe) -> tuple[Test, ...]:
    """What is to be evaluated: every arm's last model on every test set of which there is a part."""
    there = [test for test, parts in TESTS.items() if any((recipe.data / part).is_dir() for part in parts)]
    return tuple((seed, name, test) for seed in recipe.seeds for name in recipe.all_arms for test in there)


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
    chosen = ExampleOptions(rows_per_utterance=len(recipe.targets), spoken=True, **NO_MASKS)
    dev = [Manifest(recipe.data / part) for part in ("monolingual-dev", "dev")]
    corpora = [
        Corpus([(manifest, 1.0) for manifest in found], examples, chosen) for found in (manifests, dev)
    ]
    train(model, corpora[0], options, directory, dev=corpora[1], report=report)
    with atomic_files(place, last="tokenizer.json") as draft:
        tokenizer.save_pretrained(draft)
    write_part(model.llm, place)
    return place

"""The recipe of a draft: a model and data in, the same model with a draft out.

`draft = "parasite"`, "medusa" or "token-map" at the top of a TOML file makes it one of these recipes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.drafts.base import vocabulary_size_of
from sprachbund.decoding.drafts.token_map import ORDERS, TokenMap, TokenMapDraft
from sprachbund.errors import SprachbundError
from sprachbund.models.drafts import DRAFT_FILE
from sprachbund.models.io import load, locate
from sprachbund.training.check import Check
from sprachbund.training.checkpoint import claim_folder
from sprachbund.training.draft import (
    DraftOptions,
    DraftTraining,
    make_network,
    measure_draft,
    train_draft,
)
from sprachbund.training.options import Strict, TrainingOptions
from sprachbund.training.preparation import PreparedModel, prepare_model
from sprachbund.training.recipe import NO_MASKS, CardRecipe, DataPart, ExampleRecipe, TranslatorRecipe
from sprachbund.util.distributed import is_first_rank, joined_processes, on_first_rank, wait_for_all_ranks
from sprachbund.util.files import copy_file
from sprachbund.util.progress import Report, nothing


class DraftRecipe(Strict):
    """Everything a draft depends on.

    Attributes:
        draft: kind of the draft.
        model: directory, "bundled", or a name on the Hugging Face hub.
        languages: languages of the data, heard and written.
        train: data that it learns from; those that the model was trained on serve well.
        dev: data that rank the checkpoints and measure the acceptance.
        network: sizes and losses of a parasite or Medusa heads; its `kind` is `draft`.
        orders: lengths of the contexts of a token map.
        min_count: times that a token has to follow a context to enter a token map.
        examples: options of making an example of an utterance.
        training: training options of a parasite or Medusa heads.
    """

    draft: Literal["parasite", "medusa", "token-map"]
    model: Path | str
    languages: tuple[str, ...]
    train: tuple[DataPart, ...]
    dev: tuple[DataPart, ...] = ()
    network: DraftOptions = DraftOptions()
    orders: tuple[int, ...] = ORDERS
    min_count: int = Field(default=1, ge=1)
    examples: ExampleRecipe = ExampleRecipe()
    training: TrainingOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_the_kind(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("draft") in ("parasite", "medusa"):
            values = {**values, "network": {**values.get("network", {}), "kind": values["draft"]}}
        return values

    @model_validator(mode="after")
    def _check_training(self) -> "DraftRecipe":
        if self.draft != "token-map" and self.training is None:
            raise SprachbundError(
                f"a {self.draft} has to be trained: give [training] with its steps, as in steps = 2000"
            )
        return self


def run(
    recipe: DraftRecipe,
    directory: Path,
    *,
    report: Report = print,
    stop_after: int | None = None,
    on_step: Callable[[int, int], None] = nothing,
    accept_changes: bool = False,
    check: Check | None = None,
) -> Any:
    """Make, or resume, the draft in `directory`; its `model` folder is the model with it, which is returned loaded.

    Args:
        recipe: the model, the draft and the data.
        directory: directory of the run.
        report: takes each line of progress.
        stop_after: stop, resumable, after so many steps.
        on_step: called with the steps made, and with all of them.
        accept_changes: go on with a run whose recipe was another one.
        check: is called with network, data and options in place of training, and nothing is returned.

    Raises:
        SprachbundError: the recipe does not fit the model, or a token map, which is not trained, is checked.
    """
    with joined_processes():
        return _run(recipe, directory, on_first_rank(report), stop_after, on_step, accept_changes, check)


def _run(
    recipe: DraftRecipe,
    directory: Path,
    report: Report,
    stop_after: int | None,
    on_step: Callable[[int, int], None],
    accept_changes: bool,
    check: Check | None,
) -> Any:
    data = [part.path for part in (*recipe.train, *recipe.dev)]
    claim_folder(directory, recipe, data=data, accept_changes=accept_changes)
    source = locate(str(recipe.model))
    prepared = _prepared_model(recipe, source, directory)
    corpus = _corpus(recipe, recipe.train, prepared, recipe.examples.model_dump())
    dev = _corpus(recipe, recipe.dev, prepared, {**recipe.examples.model_dump(), **NO_MASKS})
    if check is not None:
        if recipe.training is None:
            raise SprachbundError("a token map is counted, not trained, so there is no memory to check")
        network = make_network(prepared.model, recipe.network)
        return check(DraftTraining(prepared.model, network, recipe.network), corpus, recipe.training)
    if recipe.draft == "token-map":
        draft: Any = _token_map(recipe, prepared, corpus, dev, report)
    else:
        assert recipe.training is not None
        draft = train_draft(
            prepared.model,
            corpus,
            recipe.network,
            recipe.training,
            directory,
            dev=dev if recipe.dev else None,
            report=report,
            stop_after=stop_after,
            on_step=on_step,
        )
    if is_first_rank():
        _install(source, directory / "model", draft)
    wait_for_all_ranks()
    return load(directory / "model")


def texts_by_language(corpus: Corpus) -> Iterator[tuple[str, list[int]]]:
    """(target language, tokens with their end) of every text that a model may be asked to write for the corpus."""
    for manifest in corpus.manifests:
        for index in range(len(manifest)):
            utterance = manifest[index]
            for target in corpus.examples.target_languages if utterance.language else ():
                text = utterance.text_in(target)
                row = None if text is None else corpus.examples.row(text, utterance.language, target)
                if row is not None:
                    yield target, row[1]


def _prepared_model(recipe: DraftRecipe, source: Path, directory: Path) -> PreparedModel:
    """The model and how its family makes examples."""
    training = recipe.training or TrainingOptions(steps=1)
    asked = TranslatorRecipe(
        languages=recipe.languages,
        train=recipe.train,
        dev=recipe.dev,
        start=source,
        training=training,
        card=CardRecipe(name="draft"),
    )
    return prepare_model(asked, directory, [])


def _corpus(
    recipe: DraftRecipe, parts: tuple[DataPart, ...], prepared: PreparedModel, options: dict[str, Any]
) -> Corpus:
    seed = recipe.training.seed if recipe.training else 0
    manifests = [(Manifest(part.path, part.shares), part.repeats) for part in parts]
    return Corpus(manifests, prepared.examples, ExampleOptions(**options, seed=seed))


def _token_map(
    recipe: DraftRecipe, prepared: PreparedModel, corpus: Corpus, dev: Corpus, report: Report
) -> TokenMapDraft:
    texts: dict[str, list[list[int]]] = {}
    for target, tokens in texts_by_language(corpus):
        texts.setdefault(target, []).append(tokens)
    size = vocabulary_size_of(prepared.model)
    if size is None or not texts:
        raise SprachbundError("the training data hold no text that this model could write; name other data")
    token_map = TokenMap.fit(texts, size, orders=recipe.orders, min_count=recipe.min_count)
    draft = TokenMapDraft(token_map)
    report(f"{len(token_map)} contexts in {len(texts)} languages")
    if recipe.dev:
        measure_draft(prepared.model.eval(), draft, dev, report)
    return draft


def _install(source: Path, directory: Path, draft: Any) -> None:
    """The model's files and the draft's beside them; a draft that the model had is replaced."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name != DRAFT_FILE:
            copy_file(path, directory / path.name)
    draft.save(directory / DRAFT_FILE)

"""The recipe of the bundled model: any of its languages to any other, from manifests to a model directory."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from pydantic import BaseModel, ConfigDict

from sprachbund.data.editions import texts_of
from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest
from sprachbund.models.card import Card
from sprachbund.models.conformer import Conformer, ConformerConfig, ConformerShape
from sprachbund.models.conformer.directory import (
    TOKENIZER_FILE,
    TRANSCRIPT_TOKENIZER_FILE,
    load,
    save,
)
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.models.weights import Bits
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.training.loop import train
from sprachbund.training.lora import add_lora, merge_lora
from sprachbund.training.options import TrainingOptions

NO_MASKS: dict[str, Any] = {"time_masks": 0, "frequency_masks": 0, "speeds": (1.0,)}


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataPart(Strict):
    """A manifest directory and how often an epoch goes through it.

    Attributes:
        path: of the directory.
        repeats: passes of an epoch.
        shares: language to the share of its utterances that is taken; see `sprachbund.data.manifest.Manifest`.
    """

    path: Path
    repeats: float = 1.0
    shares: dict[str, float] = {}


class ExampleRecipe(Strict):
    """See `sprachbund.data.loading.ExampleOptions`."""

    rows_per_utterance: int = 3
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    time_masks: int = 2
    max_time_mask_s: float = 0.3
    frequency_masks: int = 2
    max_frequency_mask: int = 15


class LoraRecipe(Strict):
    """Train low-rank adapters in place of the weights, and merge them at the end; see `training.lora`.

    Attributes:
        modules: patterns of the names of linear layers.
        rank: of every adapter.
    """

    modules: tuple[str, ...]
    rank: int = 8


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
        dev: data whose loss ranks the checkpoints.
        vocabulary_size: pieces of all languages together.
        transcript_vocabulary_size: pieces of the transcripts, for CTC.
        tokenizer_texts: distinct texts the tokenizer is fitted on, at most.
        start: a model directory to start the weights and the tokenizer from.
        lora: train adapters only.
        bits: of the weights in the model directory.
    """

    languages: tuple[str, ...]
    train: tuple[DataPart, ...]
    dev: tuple[DataPart, ...]
    vocabulary_size: int = 2000
    transcript_vocabulary_size: int = 400
    tokenizer_texts: int = 200_000
    start: Path | None = None
    lora: LoraRecipe | None = None
    bits: Bits = 8
    model: ConformerShape = ConformerShape()
    examples: ExampleRecipe = ExampleRecipe()
    training: TrainingOptions
    card: CardRecipe


def run(
    recipe: TranslatorRecipe,
    directory: Path,
    *,
    report: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> Conformer:
    """Train, or take up, the run in `directory`; its `model` folder is the result."""
    torch.manual_seed(recipe.training.seed)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "recipe.json").write_text(recipe.model_dump_json(indent=1) + "\n", encoding="utf-8")
    parts, dev_parts = _read(recipe.train), _read(recipe.dev)
    model = _model(recipe, *_tokenizers(recipe, directory, [manifest for manifest, _ in parts]))
    report(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(model.tokenizer)} pieces"
    )
    if recipe.lora is not None:
        trained = add_lora(model, recipe.lora.modules, recipe.lora.rank)
        report(f"{trained / 1e6:.2f} M parameters of adapters are trained")
    corpus = _corpus(
        recipe, parts, model, ExampleOptions(**recipe.examples.model_dump(), seed=recipe.training.seed)
    )
    masks = {**recipe.examples.model_dump(), **NO_MASKS}
    dev = _corpus(recipe, dev_parts, model, ExampleOptions(**masks, seed=0))
    train(model, corpus, recipe.training, directory, dev=dev, report=report, stop_after=stop_after)
    merge_lora(model)
    state = PartialState()
    if state.is_main_process:
        save(model, directory / "model", bits=recipe.bits, card=_card(recipe, parts))
    state.wait_for_everyone()
    return load(directory / "model")


def _read(parts: Sequence[DataPart]) -> list[tuple[Manifest, float]]:
    return [(Manifest(part.path, part.shares), part.repeats) for part in parts]


def _tokenizers(
    recipe: TranslatorRecipe, directory: Path, manifests: Sequence[Manifest]
) -> tuple[Tokenizer, Tokenizer]:
    """What the model writes with, and the few pieces of its transcripts; fitted once, or taken from the start."""
    wanted = {
        TOKENIZER_FILE: (recipe.vocabulary_size, recipe.languages),
        TRANSCRIPT_TOKENIZER_FILE: (recipe.transcript_vocabulary_size, ()),
    }
    if recipe.start is None and not all((directory / name).exists() for name in wanted):
        texts = texts_of(manifests, recipe.tokenizer_texts)
        for name, (size, languages) in wanted.items():
            Tokenizer.train(texts, languages, size).save(directory / name)
    written, transcripts = (
        Tokenizer.load((recipe.start or directory) / name, languages)
        for name, (_, languages) in wanted.items()
    )
    return written, transcripts


def _model(recipe: TranslatorRecipe, tokenizer: Tokenizer, transcript_tokenizer: Tokenizer) -> Conformer:
    config = ConformerConfig(
        source_languages=recipe.languages, target_languages=recipe.languages, **recipe.model.model_dump()
    )
    model = Conformer(config, tokenizer, transcript_tokenizer)
    if recipe.start is not None:
        start = load(recipe.start)
        if start.sharing_plan is not None:
            split_feed_forwards(model, start.sharing_plan)
        model.load_state_dict(start.state_dict())
    return model


def _corpus(
    recipe: TranslatorRecipe,
    parts: Sequence[tuple[Manifest, float]],
    model: Conformer,
    options: ExampleOptions,
) -> Corpus:
    return Corpus(
        parts, model.tokenizer, model.transcript_tokenizer, recipe.languages, recipe.languages, options
    )


def _card(recipe: TranslatorRecipe, parts: Sequence[tuple[Manifest, float]]) -> Card:
    data = []
    for manifest, _ in parts:
        path = manifest.directory / "dataset.json"
        info = (
            json.loads(path.read_text(encoding="utf-8"))
            if path.exists()
            else {"name": str(manifest.directory)}
        )
        data.append(
            {
                key: info[key]
                for key in ("name", "licence", "attribution", "hours", "utterances")
                if key in info
            }
        )
    return Card(
        **recipe.card.model_dump(),
        source_languages=list(recipe.languages),
        target_languages=list(recipe.languages),
        data=data,
        training={"steps": recipe.training.steps, "batch_s": recipe.training.batch_s},
    )

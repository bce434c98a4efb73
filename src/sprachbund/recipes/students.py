"""What a recipe trains, by family: the model as it is before the first step, its examples, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprachbund.data.editions import texts_of
from sprachbund.data.examples import Examples, PieceExamples
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer, ConformerConfig, ConformerShape
from sprachbund.models.conformer.directory import TOKENIZER_FILE, TRANSCRIPT_TOKENIZER_FILE, load, save
from sprachbund.models.directory import family_of, locate
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sprachbund.recipes.translator import TranslatorRecipe

_LOSSES = {"ctc_weight", "language_weight", "label_smoothing", "dropout"}
"""What `[model]` may change of a conformer that a run starts from."""
_OF_NEW_MODELS = {"model", "vocabulary_size", "transcript_vocabulary_size", "tokenizer_texts"}


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model about to be trained.

    Attributes:
        model: of any family.
        examples: how the family makes features and tokens.
        save: writes the model into a directory, with a `card`.
    """

    model: Any
    examples: Examples
    save: Callable[..., None]


def make_student(recipe: TranslatorRecipe, directory: Path, manifests: Sequence[Manifest]) -> Student:
    """The model that a recipe asks for: a new conformer, or what `recipe.start` names, of whatever family.

    Args:
        recipe: what is wanted.
        directory: of the run; keeps the tokenizers of a new conformer.
        manifests: training data; their texts make those tokenizers.

    Raises:
        SprachbundError: no such model, or one that cannot do what the recipe asks.
    """
    if recipe.start is None:
        return _conformer(recipe, _new_conformer(recipe, directory, manifests))
    start = locate(str(recipe.start))
    family = family_of(start)
    if family == Conformer.name:
        return _conformer(recipe, _started_conformer(recipe, load(start)))
    if useless := sorted(_OF_NEW_MODELS & recipe.model_fields_set):
        raise SprachbundError(
            f"the recipe has {', '.join(useless)}, which a {family} checkpoint brings along; take it out of the recipe"
        )
    if recipe.bits == 8:
        raise SprachbundError(
            f"a {family} model is trained into weights of 16 or 32 bits, not 8; set bits = 16, and make 8 of them with "
            "`sprachbund compress quantize` where the family can"
        )
    return _whisper(recipe, start) if family == "whisper" else _seamless(recipe, start)


def _conformer(recipe: TranslatorRecipe, model: Conformer) -> Student:
    if changed := sorted(recipe.fine_tuning.model_fields_set):
        raise SprachbundError(
            f"fine_tuning.{changed[0]} is for Whisper and Seamless checkpoints; a conformer has [model] for its losses"
        )
    examples = PieceExamples(
        model.tokenizer,
        model.transcript_tokenizer,
        recipe.languages,
        known=model.source_languages,
        num_mel_bins=model.config.num_mel_bins,
        max_tokens=model.config.max_tokens - 1,
    )
    return Student(model=model, examples=examples, save=partial(save, model, bits=recipe.bits or 8))


def _new_conformer(recipe: TranslatorRecipe, directory: Path, manifests: Sequence[Manifest]) -> Conformer:
    """With tokenizers that are fitted once."""
    wanted = {
        TOKENIZER_FILE: (recipe.vocabulary_size, recipe.languages),
        TRANSCRIPT_TOKENIZER_FILE: (recipe.transcript_vocabulary_size, ()),
    }
    if not all((directory / name).exists() for name in wanted):
        texts = texts_of(manifests, recipe.tokenizer_texts)
        for name, (size, languages) in wanted.items():
            Tokenizer.train(texts, languages, size).save(directory / name)
    written, transcripts = (
        Tokenizer.load(directory / name, languages) for name, (_, languages) in wanted.items()
    )
    config = ConformerConfig(
        source_languages=recipe.languages, target_languages=recipe.languages, **recipe.model.model_dump()
    )
    return Conformer(config, written, transcripts)


def _started_conformer(recipe: TranslatorRecipe, start: Conformer) -> Conformer:
    """With the weights, the tokenizers and the languages of another."""
    if unknown := sorted(set(recipe.languages) - set(start.config.source_languages)):
        raise SprachbundError(
            f"{recipe.start} knows {', '.join(start.config.source_languages)}, not {', '.join(unknown)}; a conformer's "
            "languages are those it was made with: train a new one, or fine-tune a Whisper checkpoint"
        )
    shape = recipe.model if "model" in recipe.model_fields_set else None
    config = start.config if shape is None else _with_losses(start.config, shape)
    model = Conformer(config, start.tokenizer, start.transcript_tokenizer)
    if start.sharing_plan is not None:
        split_feed_forwards(model, start.sharing_plan)
    model.load_state_dict(start.state_dict())
    return model


def _with_losses(config: ConformerConfig, shape: ConformerShape) -> ConformerConfig:
    for name in sorted(set(type(shape).model_fields) - _LOSSES):
        if getattr(shape, name) != getattr(config, name):
            raise SprachbundError(
                f"model.{name} is {getattr(shape, name)}, the model to start from has {getattr(config, name)}; "
                "leave [model] out, it is taken from there"
            )
    return config.model_copy(update={name: getattr(shape, name) for name in _LOSSES})


def _whisper(recipe: TranslatorRecipe, start: Path) -> Student:
    from sprachbund.models import whisper
    from sprachbund.models.whisper.extension import add_languages, set_prompt, set_real_length
    from sprachbund.models.whisper.objective import WhisperExamples

    wanted = recipe.fine_tuning
    model = add_languages(whisper.load(start), wanted.new_languages)
    if wanted.prompt is not None:
        model = set_prompt(model, wanted.prompt, recipe.languages)
    if wanted.real_length is not None:
        model = set_real_length(model, wanted.real_length)
    model.label_smoothing = wanted.label_smoothing
    examples = WhisperExamples(model, recipe.languages)
    return Student(model=model, examples=examples, save=partial(whisper.save, model, bits=recipe.bits or 32))


def _seamless(recipe: TranslatorRecipe, start: Path) -> Student:
    from sprachbund.models import seamless
    from sprachbund.models.seamless.objective import SeamlessExamples

    wanted = recipe.fine_tuning
    if wanted.prompt is not None or wanted.real_length is not None:
        raise SprachbundError(
            "fine_tuning.prompt and fine_tuning.real_length are for Whisper; Seamless always names the language wanted "
            "and takes utterances at their own length"
        )
    model = seamless.load(start)
    model.hear(wanted.new_languages)
    model.label_smoothing = wanted.label_smoothing
    examples = SeamlessExamples(model, recipe.languages)
    return Student(model=model, examples=examples, save=partial(seamless.save, model, bits=recipe.bits or 32))

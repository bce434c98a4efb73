"""What a recipe trains, by family: the model as it is before the first step, its examples, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprachbund.data.editions import texts_of
from sprachbund.data.examples import Examples, PieceExamples
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer, ConformerConfig, ConformerShape
from sprachbund.models.conformer.directory import TOKENIZER_FILE, TRANSCRIPT_TOKENIZER_FILE, load, save
from sprachbund.models.conformer.extension import (
    LOSSES,
    LOSSES_OF_TRANSDUCER,
    add_languages,
    rebuilt,
    tell_language,
    with_losses,
)
from sprachbund.models.directory import family_of, locate
from sprachbund.models.packed_linears import packed_linears
from sprachbund.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sprachbund.recipes.translator import TranslatorRecipe

_OF_NEW_MODELS = {"model", "vocabulary_size", "transcript_vocabulary_size", "tokenizer_texts"}
_ONLY_SPOKEN: dict[str, Any] = {"rows_per_utterance": 1, "same_language": 1.0}
"""How texts are drawn for a model that writes what is spoken: it can be taught transcripts alone."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model about to be trained.

    Attributes:
        model: of any family.
        examples: how the family makes features and tokens.
        save: writes the model into a directory, with a `card`.
        drawn: what the model changes of how texts are drawn (`ExampleOptions`).
        tokenizer: whose pieces may not be enough for a text; None where they always are.
        ctc_frame_s: seconds of a frame that CTC aligns transcripts to; None without CTC.
    """

    model: Any
    examples: Examples
    save: Callable[..., None]
    drawn: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    ctc_frame_s: float | None = None


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
        if changed := sorted(recipe.fine_tuning.model_fields_set):
            raise SprachbundError(
                f"fine_tuning.{changed[0]} is for models that are there already; give start, or leave it out"
            )
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
    only_spoken = model.writes_what_is_spoken
    examples = PieceExamples(
        model.tokenizer,
        model.transcript_tokenizer,
        recipe.languages,
        known=model.source_languages,
        num_mel_bins=model.config.num_mel_bins,
        front_end=model.front_end,
        max_tokens=model.config.max_tokens - 1,
        only_spoken=only_spoken,
    )
    return Student(
        model=model,
        examples=examples,
        save=partial(save, model, bits=recipe.bits or 8),
        drawn=_ONLY_SPOKEN if only_spoken else {},
        tokenizer=model.tokenizer,
        ctc_frame_s=model.frame_s if model.config.ctc_weight else None,
    )


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
    """With the weights and the tokenizers of another; with its languages, and those that it is to learn."""
    _check_start(recipe, start)
    wanted = recipe.fine_tuning
    model = add_languages(start, wanted.new_languages)
    if unknown := sorted(set(recipe.languages) - set(model.config.source_languages)):
        raise SprachbundError(
            f"{recipe.start} knows {', '.join(model.config.source_languages)}, not {', '.join(unknown)}; to teach it a "
            f'language, set fine_tuning.new_languages = {{{unknown[0]} = "mean"}}, or name one that it resembles'
        )
    if wanted.prompt is not None:
        model = tell_language(model)
    if "model" not in recipe.model_fields_set:
        return rebuilt(model)
    _check_sizes(model.config, recipe.model)
    return rebuilt(model, config=with_losses(model.config, recipe.model))


def _check_start(recipe: TranslatorRecipe, start: Conformer) -> None:
    if (packed := packed_linears(start)) is not None:
        raise SprachbundError(
            f"{recipe.start} has an encoder in {packed.bits} bits, which is not trained; start from the model that it "
            "was made of"
        )
    wanted = recipe.fine_tuning
    if changed := sorted(wanted.model_fields_set & {"label_smoothing", "real_length"}):
        raise SprachbundError(
            f"fine_tuning.{changed[0]} is for Whisper and Seamless checkpoints; a conformer has [model] for its losses"
        )
    if wanted.prompt not in (None, "wanted"):
        raise SprachbundError(
            f'fine_tuning.prompt is {wanted.prompt!r}; a conformer can be told the language "wanted" alone'
        )


def _check_sizes(config: ConformerConfig, shape: ConformerShape) -> None:
    """See that what `[model]` gives beside losses is what the model to start from has."""
    for key, own, given, free in (
        ("model", config, shape, LOSSES | {"streaming", "transducer"}),
        ("model.streaming", config.streaming, shape.streaming, frozenset()),
        ("model.transducer", config.transducer, shape.transducer, LOSSES_OF_TRANSDUCER),
    ):
        for name in () if given is None else sorted(given.model_fields_set - free):
            if (value := getattr(given, name)) != (seen := getattr(own, name, None)):
                raise SprachbundError(
                    f"{key}.{name} is {value}, the model to start from has {seen}; leave it out, it is taken from there"
                )


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

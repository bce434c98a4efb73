"""The model of a recipe, by family: as it is before the first step, its examples, and how it is saved."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sprachbund.corpora.editions import texts_of
from sprachbund.data.loading import Corpus, Examples, PieceExamples
from sprachbund.data.manifest import Utterances
from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.conformer import Conformer, ConformerConfig, ConformerShape
from sprachbund.models.conformer.extension import (
    LOSSES,
    LOSSES_OF_TRANSDUCER,
    add_languages,
    check_kept,
    rebuilt,
    with_losses,
    with_streaming_encoder,
    with_target_language_prompt,
)
from sprachbund.models.conformer.io import TOKENIZER_FILE, TRANSCRIPT_TOKENIZER_FILE, load, save
from sprachbund.models.drafts import DRAFT_FILE
from sprachbund.models.io import family_of, locate
from sprachbund.models.io import load as load_model
from sprachbund.models.io import save as save_model
from sprachbund.models.weights import Bits, packed_linears
from sprachbund.text.languages import MIXED
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.training.checkpoint import has_begun
from sprachbund.training.draft import finished_draft
from sprachbund.training.dual_scale import DualScale, DualScaleOptions, make_dual_scale
from sprachbund.training.options import TrainingOptions
from sprachbund.training.recipe import AUDIO_LLMS, FINE_TUNED, PARAKEET, TranslatorRecipe
from sprachbund.util.files import read_text, write_text
from sprachbund.util.progress import Report

_FITTED_ON = "tokenizer_texts.sha256"
"""File with the hash of the texts that the tokenizers of a run were fitted on."""
_OF_NEW_MODELS = {"model", "vocabulary_size", "transcript_vocabulary_size", "tokenizer_texts"}
_ONLY_SPOKEN: dict[str, Any] = {"rows_per_utterance": 1, "same_language": 1.0}
"""Draws of texts for a model that writes the language spoken: it learns transcripts alone."""


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """The model of a recipe, ready for its first step.

    Attributes:
        model: model of any family.
        examples: maker of features and tokens of the family.
        save: writes the model into a directory, with a `card`.
        drawn: changes that the model makes to the draw of texts (`ExampleOptions`).
        tokenizer: tokenizer whose pieces may not be enough for a text; None where they always are.
        ctc_frame_s: seconds of a frame that CTC aligns transcripts to; None without CTC.
    """

    model: Any
    examples: Examples
    save: Callable[..., None]
    drawn: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    ctc_frame_s: float | None = None


def prepare_model(
    recipe: TranslatorRecipe, directory: Path, manifests: Sequence[Utterances]
) -> PreparedModel:
    """The model that a recipe asks for: a new conformer, or what `recipe.start` names, of whatever family.

    Args:
        recipe: recipe of the run.
        directory: directory of the run; keeps the tokenizers of a new conformer.
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
        return _conformer(recipe, _started_conformer(recipe, load(start), directory, manifests))
    if family not in FINE_TUNED:
        raise SprachbundError(
            f"a {family} model is not trained here (start is {recipe.start}); start from one of {', '.join(FINE_TUNED)}"
        )
    if MIXED in recipe.languages:
        raise SprachbundError(
            f"{MIXED!r}, the transcript of mixed speech, is a target of conformers, not of a {family} model; take it "
            "out of languages"
        )
    if useless := sorted(_OF_NEW_MODELS & recipe.model_fields_set):
        raise SprachbundError(
            f"the recipe has {', '.join(useless)}, which a {family} checkpoint brings along; take it out of the recipe"
        )
    if recipe.bits == 8:
        raise SprachbundError(
            f"a {family} model is trained into weights of 16 or 32 bits, not 8; set bits = 16, and make 8 of them with "
            "`sprachbund compress quantize` where the family can"
        )
    if family in ("canary", "cohere_asr"):
        return _canary(recipe, start)
    if family in PARAKEET:
        return _parakeet(recipe, start)
    if family in AUDIO_LLMS:
        return _audio_llm(recipe, start)
    return _whisper(recipe, start) if family == "whisper" else _seamless(recipe, start)


def _conformer(recipe: TranslatorRecipe, model: Conformer) -> PreparedModel:
    only_spoken, with_ctc = model.writes_what_is_spoken, model.config.ctc_weight > 0
    examples = PieceExamples(
        model.tokenizer,
        model.transcript_tokenizer if with_ctc else None,
        recipe.languages,
        known=model.source_languages,
        num_mel_bins=model.config.num_mel_bins,
        front_end=model.front_end,
        max_tokens=model.config.max_tokens - 1,
        only_spoken=only_spoken,
    )
    return PreparedModel(
        model=model,
        examples=examples,
        save=partial(save, model, bits=recipe.bits or 8),
        drawn=_ONLY_SPOKEN if only_spoken else {},
        tokenizer=model.tokenizer,
        ctc_frame_s=model.frame_s if with_ctc else None,
    )


def _new_conformer(recipe: TranslatorRecipe, directory: Path, manifests: Sequence[Utterances]) -> Conformer:
    written, transcripts = _fitted_tokenizers(
        {
            TOKENIZER_FILE: (recipe.vocabulary_size, recipe.languages),
            TRANSCRIPT_TOKENIZER_FILE: (recipe.transcript_vocabulary_size, ()),
        },
        directory,
        manifests,
        recipe.tokenizer_texts,
    )
    return Conformer(recipe.new_config(), written, transcripts)


def _fitted_tokenizers(
    wanted: Mapping[str, tuple[int, tuple[str, ...]]],
    directory: Path,
    manifests: Sequence[Utterances],
    most_texts: int,
) -> list[Tokenizer]:
    """Tokenizers by file, each of so many pieces and languages; they are fitted once, and then read.

    Before the first step they are fitted again where the texts are others by now; those that a command put there stay.
    """
    fitted_on = directory / _FITTED_ON
    are_there = all((directory / name).exists() for name in wanted)
    if not are_there or (fitted_on.exists() and not has_begun(directory)):
        texts = texts_of(manifests, most_texts)
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        if not are_there or read_text(fitted_on).strip() != digest:
            for name in wanted:
                (directory / name).unlink(missing_ok=True)  # a run that is killed here fits them again
            write_text(fitted_on, digest + "\n")
            for name, (size, languages) in wanted.items():
                Tokenizer.train(texts, languages, size).save(directory / name)
    return [Tokenizer.load(directory / name, languages) for name, (_, languages) in wanted.items()]


def _started_conformer(
    recipe: TranslatorRecipe, start: Conformer, directory: Path, manifests: Sequence[Utterances]
) -> Conformer:
    """With the weights and the tokenizers of another; with its languages, and those that it is to learn.

    An offline one that becomes a streaming one may have a new tokenizer of its texts.
    """
    becomes_streaming = recipe.model.streaming is not None and start.config.streaming is None
    _check_start(recipe, start)
    kept = {"transcript_vocabulary_size"}
    if not becomes_streaming:
        kept |= {"vocabulary_size", "tokenizer_texts"}
    if useless := sorted(kept & recipe.model_fields_set):
        raise SprachbundError(
            f"the recipe has {', '.join(useless)}, and the tokenizers are those of {recipe.start}; take it out of the "
            "recipe"
        )
    wanted = recipe.fine_tuning
    model = add_languages(start, wanted.new_languages)
    known = {*model.config.source_languages, *({MIXED} & set(model.config.target_languages))}
    if unknown := sorted(set(recipe.languages) - known):
        raise SprachbundError(
            f"{recipe.start} knows {', '.join(model.config.source_languages)}, not {', '.join(unknown)}; to add a "
            f'language, set fine_tuning.new_languages = {{{unknown[0]} = "mean"}}, or name one that it resembles'
        )
    if wanted.prompt is not None:
        model = with_target_language_prompt(model)
    if "model" not in recipe.model_fields_set:
        return rebuilt(model)
    if becomes_streaming:
        tokenizer = model.tokenizer
        if "vocabulary_size" in recipe.model_fields_set:
            pieces = {TOKENIZER_FILE: (recipe.vocabulary_size, model.config.target_languages)}
            [tokenizer] = _fitted_tokenizers(pieces, directory, manifests, recipe.tokenizer_texts)
        return with_streaming_encoder(model, recipe.model, tokenizer)
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
            f'fine_tuning.prompt is {wanted.prompt!r}; a conformer can be given the language "wanted" alone'
        )


def _check_sizes(config: ConformerConfig, shape: ConformerShape) -> None:
    """Raise SprachbundError where `[model]` contradicts the model to start from in more than losses."""
    check_kept("model", config, shape, LOSSES | {"streaming", "transducer"})
    check_kept("model.streaming", config.streaming, shape.streaming, frozenset())
    check_kept("model.transducer", config.transducer, shape.transducer, LOSSES_OF_TRANSDUCER)


def _whisper(recipe: TranslatorRecipe, start: Path) -> PreparedModel:
    from sprachbund.models import whisper
    from sprachbund.models.whisper.extension import add_languages, set_prompt, set_real_length
    from sprachbund.models.whisper.model import WhisperExamples

    wanted = recipe.fine_tuning
    model = add_languages(whisper.load(start), wanted.new_languages)
    if wanted.prompt is not None:
        model = set_prompt(model, wanted.prompt, recipe.languages)
    if wanted.real_length is not None:
        model = set_real_length(model, wanted.real_length)
    model.label_smoothing = wanted.label_smoothing
    examples = WhisperExamples(model, recipe.languages)
    return PreparedModel(
        model=model, examples=examples, save=partial(whisper.save, model, bits=recipe.bits or 32)
    )


def _seamless(recipe: TranslatorRecipe, start: Path) -> PreparedModel:
    from sprachbund.models import seamless
    from sprachbund.models.seamless.model import SeamlessExamples

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
    return PreparedModel(
        model=model, examples=examples, save=partial(seamless.save, model, bits=recipe.bits or 32)
    )


def _canary(recipe: TranslatorRecipe, start: Path) -> PreparedModel:
    from sprachbund.models import fastconformer
    from sprachbund.models.fastconformer.model import Canary, CanaryExamples

    wanted = recipe.fine_tuning
    if wanted.prompt is not None or wanted.real_length is not None or wanted.new_languages:
        raise SprachbundError(
            "fine_tuning.prompt, real_length and new_languages are not for Canary: its prompt names both languages by "
            "tokens of its vocabulary, and it takes utterances at their own length; leave them out"
        )
    model = fastconformer.load(start)
    assert isinstance(model, Canary)
    model.label_smoothing = wanted.label_smoothing
    examples = CanaryExamples(model, recipe.languages)
    return PreparedModel(
        model=model, examples=examples, save=partial(fastconformer.save, model, bits=recipe.bits or 32)
    )


def _parakeet(recipe: TranslatorRecipe, start: Path) -> PreparedModel:
    from sprachbund.models import fastconformer
    from sprachbund.models.fastconformer.model import Parakeet, ParakeetExamples

    if changed := sorted(recipe.fine_tuning.model_fields_set):
        raise SprachbundError(
            f"fine_tuning.{changed[0]} is not for Parakeet, which is given no language and has no attention decoder; "
            "leave it out"
        )
    model = fastconformer.load(start)
    assert isinstance(model, Parakeet)
    examples = ParakeetExamples(model, recipe.languages)
    return PreparedModel(
        model=model, examples=examples, save=partial(fastconformer.save, model, bits=recipe.bits or 32)
    )


def _audio_llm(recipe: TranslatorRecipe, start: Path) -> PreparedModel:
    from sprachbund.models import audio_llm

    wanted = recipe.fine_tuning
    if wanted.prompt is not None or wanted.real_length is not None or wanted.new_languages:
        raise SprachbundError(
            "fine_tuning.prompt, real_length and new_languages are not for speech LLMs: their instructions are "
            "sprachbund.transcribe and sprachbund.translate of config.json, their languages sprachbund.pairs; leave "
            "them out"
        )
    model = audio_llm.load(start).float()  # steps are smaller than what bfloat16 tells apart
    model.label_smoothing = wanted.label_smoothing
    examples = audio_llm.AudioLLMExamples(model, recipe.languages)
    return PreparedModel(
        model=model, examples=examples, save=partial(audio_llm.save, model, bits=recipe.bits or 32)
    )


# Dual-scale training (arXiv 2508.11189).

_NO_TRANSCRIPTION = "It was trained to translate, not to transcribe."


def drawn_for(options: DualScaleOptions | None) -> dict[str, Any]:
    """Return the options of examples that dual-scale training needs; see `sprachbund.data.loading.ExampleOptions`."""
    if options is None:
        return {}
    return {"same_language": options.same_language, "spoken": options.text_layers > 0}


def prepare_dual_scale(prepared: PreparedModel, recipe: TranslatorRecipe, report: Report) -> PreparedModel:
    """The model with its decoder pruned, a text encoder and a draft network.

    Args:
        prepared: the model as it is, with its examples.
        recipe: recipe with `dual_scale`.
        report: takes each line of progress.

    Raises:
        SprachbundError: adapters that are asked for twice, or layers that are not there.
    """
    options = recipe.dual_scale
    assert options is not None
    if recipe.lora is not None:
        raise SprachbundError(
            "dual_scale has its own adapters (whole_layers, lora_rank); take lora out of the recipe"
        )
    if options.same_language == 0:
        report("the result will not transcribe; dual_scale.same_language = 0.1 keeps that")
    whole = make_dual_scale(prepared.model, options)
    bits = recipe.bits or (8 if whole.base.name == "conformer" else 32)
    return PreparedModel(model=whole, examples=prepared.examples, save=partial(_save, whole, bits))


def save_draft(
    whole: DualScale, training: TrainingOptions, dev: Corpus, directory: Path, report: Report
) -> None:
    """Write the draft network beside the saved model, with its acceptance on the dev data; nothing without one.

    Args:
        whole: as trained.
        training: its steps are noted in the draft's file.
        dev: data that acceptance is measured on.
        directory: directory of the saved model.
        report: takes each line of progress.
    """
    if whole.draft_network is None:
        return
    how = {"training": {"steps": training.steps, **whole.options.model_dump(mode="json")}}
    # As it is saved: in fewer bits, perhaps, and without the pairs that it was not trained on.
    draft = finished_draft(load_model(directory), whole.draft_network.eval(), dev, report, **how)
    draft.save(directory / DRAFT_FILE)


def _save(whole: DualScale, bits: Bits, directory: Path, *, card: Card) -> None:
    base = whole.cpu().base
    if whole.options.same_language == 0:
        card = card.model_copy(update={"limits": [*card.limits, _NO_TRANSCRIPTION]})
    if whole.options.same_language == 0 and base.name == "whisper":
        from sprachbund.models.whisper.extension import without_transcription

        base = without_transcription(base)
    save_model(base, directory, bits=bits, card=card)

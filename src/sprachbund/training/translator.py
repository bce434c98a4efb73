"""Training a speech translator, from manifests to a model directory.

A recipe trains a new conformer, any of its languages to any other, as the bundled model is one; or it fine-tunes a
conformer, a Whisper or a Seamless checkpoint through the same data, loop and options. The sections are the recipe, the
model that it prepares for each family, dual-scale training, the checks of the texts, and the run.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, PositiveFloat, ValidationError, field_validator, model_validator

from sprachbund.corpora.editions import Edition, LiveEdition, edition, texts_of
from sprachbund.data.batching import nested, tempered
from sprachbund.data.loading import (
    Corpus,
    ExampleOptions,
    Examples,
    PieceExamples,
    ShardedCorpus,
    UtteranceSource,
    source_languages_of,
)
from sprachbund.data.manifest import Utterances
from sprachbund.data.shards import Shards, open_corpus
from sprachbund.errors import SprachbundError
from sprachbund.models.calibration import DOMAIN_FILE, TURNS_FILE
from sprachbund.models.card import PAIRS, Card
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
from sprachbund.models.licence import licences_owed
from sprachbund.models.weights import Bits, packed_linears
from sprachbund.text.languages import MIXED, tag_of
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.training.cached_states import (
    FOLDER,
    cached_corpus,
    check_cacheable,
    first_moving_layer,
)
from sprachbund.training.check import Check
from sprachbund.training.checkpoint import claim_folder, free_if_refused
from sprachbund.training.draft import finished_draft
from sprachbund.training.dual_scale import DualScale, DualScaleOptions, make_dual_scale
from sprachbund.training.loop import train
from sprachbund.training.lora import add_lora, merge_lora
from sprachbund.training.options import Strict, TrainingOptions
from sprachbund.units.lengths import min_ctc_frames
from sprachbund.util.distributed import (
    first_rank_first,
    is_first_rank,
    joined_processes,
    on_first_rank,
    wait_for_all_ranks,
)
from sprachbund.util.jobs import nothing

# The recipe.

NO_MASKS: dict[str, Any] = {"time_masks": 0, "frequency_masks": 0, "speeds": (1.0,)}


PARAKEET = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt")
_AUDIO_LLMS = ("voxtral", "granite_speech", "granite_speech_plus", "qwen3_asr")
FINE_TUNED = (
    *("conformer", "whisper", "seamless_m4t", "seamless_m4t_v2", "canary", "cohere_asr"),
    *PARAKEET,
    *_AUDIO_LLMS,
)
"""Families that `train` goes on from; those of units and of language models have recipes of their own."""


class DataPart(Strict):
    """A corpus and how often an epoch goes through it.

    Attributes:
        path: directory of the corpus, or a URL of tar shards.
        repeats: passes through the corpus in an epoch.
        shares: language to the share of its utterances that is taken; see `sprachbund.data.manifest.Manifest`.
    """

    path: Path
    repeats: float = Field(default=1.0, ge=0)
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)


class Scale(Strict):
    """The amount of training data that is taken; see `sprachbund.data.batching`.

    Attributes:
        hours: hours of all [[train]] together.
        seed: seed of the order in which utterances are taken.
    """

    hours: float = Field(gt=0)
    seed: int = 0


class LivePart(Strict):
    """An edition of the phrasebook that every epoch hears anew; see `sprachbund.corpora.editions`.

    Attributes:
        edition: name of the edition.
        utterances: utterances of an epoch.
        languages: languages spoken and written; those of the edition if empty.
        synthesizers: speech synthesizers; those of the edition if empty.
        seed: seed of everything drawn; that of the edition if None.
        exact: whether a resumed run hears the same utterances again to the last bit, at half the speed.
        sentences: folder of tables of sentences besides the phrasebook's own (`sprachbund data make sentences`).
        sentence_share: share of the utterances that say a sentence of these tables.
    """

    edition: str = "bundled"
    utterances: int = Field(default=20_000, ge=1)
    languages: tuple[str, ...] = ()
    synthesizers: tuple[str, ...] = ()
    seed: int | None = None
    exact: bool = True
    sentences: Path | None = None
    sentence_share: float = Field(default=0.0, ge=0, le=1)

    def drawn(self) -> Edition:
        """The edition to be rendered. Raises SprachbundError for an unknown name."""
        given = {name: getattr(self, name) for name in ("languages", "synthesizers", "seed", "sentences")}
        changes = {name: value for name, value in given.items() if value not in ((), None)}
        return edition(
            self.edition,
            train_utterances=self.utterances,
            exact=self.exact,
            sentence_share=self.sentence_share,
            **changes,
        )


class ExampleRecipe(Strict):
    """Options of making an example of an utterance; see `sprachbund.data.loading.ExampleOptions`.

    Attributes:
        rows_per_utterance: target languages drawn for each utterance.
        targets: target languages to draw from; all that the model writes if empty.
        same_language: share of the utterances that are transcribed instead of translated; if left out, the language
            spoken is drawn like any other.
        speeds: factors of tempo and pitch; one is drawn for each batch.
        time_masks: time masks for each utterance (SpecAugment, arXiv 1904.08779).
        max_time_mask_s: longest time mask in seconds; never more than a sixth of the utterance.
        max_time_mask_share: longest time mask as a share of the utterance, in place of `max_time_mask_s` and the sixth
            (arXiv 1912.05533).
        frequency_masks: frequency masks for each utterance.
        max_frequency_mask: widest frequency mask in mel bins.
    """

    rows_per_utterance: int = Field(default=3, ge=1)
    targets: tuple[str, ...] = ()
    same_language: float | None = Field(default=None, ge=0, le=1)
    speeds: tuple[PositiveFloat, ...] = Field(default=(0.9, 1.0, 1.1), min_length=1)
    time_masks: int = Field(default=2, ge=0)
    max_time_mask_s: float = Field(default=0.3, ge=0)
    max_time_mask_share: float | None = Field(default=None, ge=0, le=1)
    frequency_masks: int = Field(default=2, ge=0)
    max_frequency_mask: int = Field(default=15, ge=0)


class LoraRecipe(Strict):
    """Train low-rank adapters in place of the weights, and merge them at the end; see `training.lora`.

    Attributes:
        modules: patterns of the names of linear layers.
        rank: rank of every adapter.
        scale: factor of an adapter's product (alpha / rank).
        whole: patterns of the names of parameters that are trained themselves, beside the adapters.
    """

    modules: tuple[str, ...]
    rank: int = Field(default=8, ge=1)
    scale: float = 2.0
    whole: tuple[str, ...] = ()


class FineTuning(Strict):
    """Changes to an existing model before it is trained on.

    Attributes:
        prompt: the language that Whisper's prompt names: the one "spoken" (transcription, and translation into
            English), or the one "wanted" (any language of the recipe to any other); "wanted-only" names nothing else,
            no task and no timestamps (arXiv 2508.11189). "wanted" also makes a transducer that writes what is spoken
            one that reads the language. As the checkpoint has it if left out.
        new_languages: BCP-47 tag of a language that the checkpoint lacks to that of the language whose token the new
            token starts from, or "mean" for the mean of all. Seamless hears a new language without a token. Pieces of
            the tokenizer stay as they are. "mul" is the transcript of speech that mixes languages; a conformer's alone.
        real_length: whether Whisper is trained, and used from then on, on utterances at their own length instead of
            windows of 30 s; as the checkpoint has it if left out.
        label_smoothing: label smoothing of the cross-entropy (arXiv 1512.00567, section 7).
    """

    prompt: Literal["spoken", "wanted", "wanted-only"] | None = None
    new_languages: dict[str, str] = Field(default_factory=dict)
    real_length: bool | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class CardRecipe(Strict):
    """Fields of the model's card that the data do not give.

    Attributes:
        name: name of the model.
        description: one or two sentences about the model.
        licence: licence of the weights.
        limits: sentences that state what the model cannot do.
    """

    name: str
    description: str = ""
    licence: str = ""
    limits: tuple[str, ...] = ()


class TranslatorRecipe(Strict):
    """Everything a run depends on.

    Attributes:
        languages: languages heard and written; "mul" is written alone: the transcript of speech that mixes languages.
        train: training data.
        live: training data that are rendered while training.
        temperature: temperature of the mixture of `train`: a corpus of h hours is drawn in proportion to h^(1 /
            temperature) (arXiv 1907.05019, section 4), times its `repeats`; an epoch is as long as with 1.
        scale: amount of `train` that is taken; all if None.
        dev: data whose loss ranks the checkpoints.
        vocabulary_size: pieces of a new model's tokenizer, all languages together; a conformer to start from keeps its
            own, unless it is offline and becomes a streaming one.
        transcript_vocabulary_size: pieces of the tokenizer of transcripts, for CTC.
        tokenizer_texts: most distinct texts that the tokenizer is fitted on.
        start: model directory or name on the Hugging Face hub, of any family, that gives weights and tokenizer to start
            from; a new conformer if None.
        fine_tuning: changes to the model to start from.
        lora: options of training low-rank adapters only; the weights themselves if None.
        dual_scale: options of pruning the decoder and of training it with a text branch and a draft network.
        bits: bits of the weights in the model directory; 8 for a conformer and 32 for the other families if left out.
        cache_states: whether the frozen first layers of the encoder are computed once and not in every epoch; see
            `training.cached_states`.
        model: sizes of a new conformer and weights of its losses; of a conformer to start from, the losses alone, or
            what makes a streaming model of an offline one (`models.conformer.extension.with_streaming_encoder`).
        examples: options of making an example of an utterance.
        training: steps, learning rate, batches and evaluations.
        card: fields of the model's card.
    """

    languages: tuple[str, ...]
    train: tuple[DataPart, ...] = ()
    live: tuple[LivePart, ...] = ()
    temperature: float = Field(default=1.0, ge=1)
    scale: Scale | None = None
    dev: tuple[DataPart, ...]
    vocabulary_size: int = Field(default=2000, ge=1)
    transcript_vocabulary_size: int = Field(default=400, ge=1)
    tokenizer_texts: int = Field(default=200_000, ge=1)
    start: Path | str | None = None
    fine_tuning: FineTuning = FineTuning()
    lora: LoraRecipe | None = None
    dual_scale: DualScaleOptions | None = None
    bits: Bits | None = None
    cache_states: bool = False
    model: ConformerShape = ConformerShape()
    examples: ExampleRecipe = ExampleRecipe()
    training: TrainingOptions
    card: CardRecipe

    @field_validator("languages")
    @classmethod
    def _check_languages(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse names of languages, which no data has."""
        import langcodes

        for language in languages:
            if not langcodes.tag_is_valid(language):
                try:
                    tag = tag_of(language, "")
                except SprachbundError:
                    continue  # no name either; data and models decide what they know
                raise ValueError(f"{language!r} is a name; write its tag, {tag!r}")
        return languages

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        """Refuse sizes of a new model that do not fit together, before any data are read."""
        if self.start is None:
            try:
                self.new_config()
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                raise ValueError(f"[model]: {first['msg'].removeprefix('Value error, ')}") from None
        return self

    def new_config(self) -> ConformerConfig:
        """The configuration of a new conformer. Raises pydantic's error where the sizes do not fit together."""
        return ConformerConfig(
            source_languages=tuple(source_languages_of(self.languages)),
            target_languages=self.languages,
            **self.model.model_dump(),
        )


# The model that is trained, by family: as it is before the first step, its examples, and how it is saved.

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
    if family in _AUDIO_LLMS:
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
    """Tokenizers by file, each of so many pieces and languages; they are fitted once, and then read."""
    if not all((directory / name).exists() for name in wanted):
        texts = texts_of(manifests, most_texts)
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
    if becomes_streaming and "transcript_vocabulary_size" in recipe.model_fields_set:
        raise SprachbundError(
            f"transcript_vocabulary_size is that of {recipe.start}, whose CTC head is kept; take it out of the recipe"
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


def prepare_dual_scale(
    prepared: PreparedModel, recipe: TranslatorRecipe, report: Callable[[str], None]
) -> PreparedModel:
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
    whole: DualScale, training: TrainingOptions, dev: Corpus, directory: Path, report: Callable[[str], None]
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


# Texts that cannot be learned as they are.
#
# A model that was trained on other languages keeps its tokenizer, since its weights know its pieces. A letter of a new
# language that the pieces lack is learned as unknown, and a reader sees "⁇" at most.

_MOST = 20_000
_SHOWN = 12
_WORD_BEGINS = "\u2581"


def training_texts(corpus: Corpus) -> Iterator[str]:
    """Texts that a corpus trains with: of all utterances, or of 20,000 evenly over it."""
    for manifest in corpus.manifests:
        for index in manifest.every(-(-len(manifest) * len(corpus.manifests) // _MOST) or 1):
            utterance = manifest[index]
            for language in corpus.targets:
                text = utterance.text_in(language) if utterance.language else None
                if text and corpus.examples.row(text, utterance.language, language) is not None:
                    yield text


@dataclass(frozen=True, kw_only=True)
class TaughtLanguages:
    """The languages of a recipe that its data hold.

    Attributes:
        spoken: languages that are heard.
        written: target languages with a text.
        pairs: (source, target) languages of the rows that utterances may get; (x, x) is transcription of x.
        unused: other languages that the data have texts in.
        num_seen: utterances whose texts were looked at.
        count: utterances in all.
    """

    spoken: Sequence[str]
    written: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    unused: Sequence[str]
    num_seen: int
    count: int

    def warnings(self, heard: Sequence[str], targets: Sequence[str]) -> list[str]:
        """A line about languages without data, and one about texts that nothing is made of.

        Args:
            heard: languages that the recipe lists as spoken.
            targets: languages that it lists as written.
        """
        among = "" if self.num_seen == self.count else f" among {self.num_seen} of {self.count} utterances"
        silent = [tag for tag in heard if tag not in self.spoken]
        wordless = [tag for tag in targets if tag not in self.written]
        parts = [f"no speech in {', '.join(silent)}"] if silent else []
        parts += [f"no text in {', '.join(wordless)}{among}"] if wordless else []
        lines = [f"warning: the training data have {' and '.join(parts)}; it is not learned"] if parts else []
        if self.unused:
            lines.append(
                f"texts in {', '.join(self.unused)} are not used; the recipe does not list them as written"
            )
        return lines


def taught_languages(corpus: Corpus) -> TaughtLanguages:
    """The languages that a corpus trains; texts are those of all utterances, or of 20,000 evenly over it.

    Args:
        corpus: training data.
    """
    texts, pairs, num_seen = set[str](), set[tuple[str, str]](), 0
    for manifest in corpus.manifests:
        for index in manifest.every(-(-len(manifest) * len(corpus.manifests) // _MOST) or 1):
            utterance, num_seen = manifest[index], num_seen + 1
            if utterance.language:
                texts |= {
                    tag for tag in (utterance.language, *utterance.translations) if utterance.text_in(tag)
                }
                pairs |= {(utterance.language, target) for target in corpus.targets_of(utterance)}
    spoken = {tag for manifest in corpus.manifests for tag in manifest.spoken}
    return TaughtLanguages(
        spoken=[tag for tag in corpus.examples.source_languages if tag in spoken],
        written=[tag for tag in corpus.targets if tag in texts],
        pairs=sorted(pairs),
        unused=sorted(texts - {*corpus.targets}),
        num_seen=num_seen,
        count=sum(len(manifest) for manifest in corpus.manifests),
    )


def length_warnings(corpus: Corpus, frame_s: float) -> list[str]:
    """Warnings about transcripts that CTC cannot align.

    They are most of the speech where frames are long and pieces short, and the encoder then learns next to nothing.

    Args:
        corpus: all of its utterances are looked at, or 20,000 evenly over it.
        frame_s: seconds of an encoder's frame.
    """
    count, num_too_long, first = 0, 0, ""
    for manifest in corpus.manifests:
        for index in manifest.every(-(-len(manifest) * len(corpus.manifests) // _MOST) or 1):
            utterance = manifest[index]
            needed = min_ctc_frames(corpus.examples.transcript(utterance.text) or [])
            there = math.ceil(float(manifest.durations_s[index]) / frame_s)
            count += needed > 0
            if needed > there:
                num_too_long += 1
                first = first or f"{utterance.id}, {needed} frames wanted and {there} there"
    if not num_too_long:
        return []
    return [
        f"{num_too_long} of {count} transcripts are longer than CTC can align in frames of {1000 * frame_s:g} ms "
        f"(the first is {first}): it learns nothing from them; a larger transcript_vocabulary_size makes shorter ones"
    ]


def text_warnings(texts: Iterable[str], tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Warnings about texts that cannot be learned as they are.

    Args:
        texts: texts that are learned.
        tokenizer: tokenizer of the model.
        max_tokens: most tokens of a text.
    """
    count, partly, too_long, lacking = 0, 0, 0, Counter[str]()
    for text in texts:
        count += 1
        unknown = "".join(tokenizer.unknown(text))
        lacking.update(unknown.replace(_WORD_BEGINS, ""))
        partly += bool(unknown)
        too_long += len(tokenizer.encode(text)) > max_tokens
    lines = []
    if partly:
        most = " ".join(letter for letter, _ in lacking.most_common(_SHOWN)) + " …" * (len(lacking) > _SHOWN)
        lines.append(
            f"{partly} of {count} texts hold what the tokenizer has no piece for ({most}): it is learned as "
            "unknown (⁇) and cannot be written"
        )
    if too_long:
        lines.append(f"{too_long} of {count} texts are longer than {max_tokens} tokens: left out")
    return lines


# The run.

_TRIED = 1000  # utterances that are looked at before training begins


def run(
    recipe: TranslatorRecipe,
    directory: Path,
    *,
    score: Callable[[Any], float] | None = None,
    report: Callable[[str], None] = print,
    stop_after: int | None = None,
    on_step: Callable[[int, int], None] = nothing,
    accept_changes: bool = False,
    check: Check | None = None,
    states: Path | None = None,
) -> Any:
    """Train, or resume, the run in `directory`; its `model` folder is the result, which is returned loaded.

    Args:
        recipe: model, data and options.
        directory: directory of the run.
        score: score of the model on the way, less is better, where `training.metric_for_best_model` is "score".
        report: takes each line of progress.
        stop_after: stop, resumable, after so many steps.
        on_step: called with the steps made, and with all of them.
        accept_changes: go on with a run whose recipe was another one.
        check: is called with model, data and options in place of training, and nothing is returned.
        states: folder of cached states, which runs may share; one of the run's own if None.
    """
    with joined_processes():
        return _run(
            recipe,
            directory,
            score,
            on_first_rank(report),
            stop_after,
            on_step,
            accept_changes,
            check,
            states or directory / FOLDER,
        )


def _run(
    recipe: TranslatorRecipe,
    directory: Path,
    score: Callable[[Any], float] | None,
    report: Callable[[str], None],
    stop_after: int | None,
    on_step: Callable[[int, int], None],
    accept_changes: bool,
    check: Check | None,
    states: Path,
) -> Any:
    torch.manual_seed(recipe.training.seed)
    claim_folder(directory, recipe, accept_changes=accept_changes)
    for line in licence_warnings(recipe):
        report(line)
    with free_if_refused(directory):
        prepared, corpus, dev = _prepared(recipe, directory, report)
        if recipe.cache_states and score is not None:
            raise SprachbundError("cache_states ranks checkpoints by their loss; leave the score out")
    taught = taught_languages(corpus)
    for line in taught.warnings(corpus.examples.source_languages, corpus.targets):
        report(line)
    model = prepared.model
    if check is not None:
        return check(model, corpus, recipe.training)
    if recipe.cache_states:
        corpus, dev = _cached(model, corpus, dev, recipe.training, states, report)
    train(
        model,
        corpus,
        recipe.training,
        directory,
        dev=dev,
        score=score,
        report=report,
        stop_after=stop_after,
        on_step=on_step,
    )
    if recipe.cache_states:
        _base(model).encoder = _base(model).encoder.behind(0)
    merge_lora(model)
    if is_first_rank():
        prepared.save(directory / "model", card=_card(recipe, corpus, taught))
        if recipe.dual_scale is not None:
            save_draft(model, recipe.training, dev, directory / "model", report)
        for line in _calibrations_lost(recipe, directory / "model"):
            report(line)
    wait_for_all_ranks()
    return load_model(directory / "model")


def _calibrations_lost(recipe: TranslatorRecipe, directory: Path) -> list[str]:
    """What is said of the start's calibrations, which were fitted on other weights and are not in the new model."""
    if recipe.start is None:
        return []
    start = locate(str(recipe.start), offline=True)
    return [
        f"the calibration of {recipe.start} ({name}) is not carried over, since it was fitted on other weights; run "
        f"`sprachbund calibrate CORPUS… --model {directory}{option}`"
        for name, option in ((DOMAIN_FILE, ""), (TURNS_FILE, " --turns"))
        if (start / name).exists() and not (directory / name).exists()
    ]


def _prepared(
    recipe: TranslatorRecipe, directory: Path, report: Callable[[str], None]
) -> tuple[PreparedModel, Corpus, Corpus]:
    """The model, and the data that it is trained and evaluated on, once they were found to fit together."""
    with first_rank_first():  # which renders live data and fits tokenizers
        parts, dev_parts = _training_data(recipe, directory, report), _read(recipe.dev)
        prepared = prepare_model(recipe, directory, [source.at() for source, _ in parts])
    if recipe.dual_scale is not None:
        prepared = prepare_dual_scale(prepared, recipe, report)
    model = prepared.model
    if recipe.lora is not None:
        adapters = recipe.lora
        add_lora(model, adapters.modules, adapters.rank, scale=adapters.scale, whole=adapters.whole)
    if prepared.drawn and recipe.examples.same_language != 1:
        report(
            'the model writes what is spoken, so it is trained on transcripts; fine_tuning.prompt = "wanted" trains it '
            "to translate"
        )
    drawn = recipe.examples.model_dump() | dict(prepared.drawn) | drawn_for(recipe.dual_scale)
    masks = {**drawn, **NO_MASKS}
    options, dev_options = ExampleOptions(**drawn, seed=recipe.training.seed), ExampleOptions(**masks, seed=0)
    corpus = _training_corpus(parts, prepared.examples, options, recipe.training.window_shards)
    dev = Corpus(dev_parts, prepared.examples, dev_options)
    check_corpus(corpus, recipe.training.max_duration_s, report)
    _report_texts(prepared, corpus, report)
    if recipe.cache_states:
        for sources, wanted in ((parts, options), (dev_parts, dev_options)):
            check_cacheable(_base(model), wanted, [source for source, _ in sources])
    return prepared, corpus, dev


def _base(model: Any) -> Any:
    """The model that has the encoder."""
    return model.base if isinstance(model, DualScale) else model


def _cached(
    model: Any,
    corpus: Corpus,
    dev: Corpus,
    training: TrainingOptions,
    directory: Path,
    report: Callable[[str], None],
) -> tuple[Corpus, Corpus]:
    """Both corpora as states behind the layers that do not move; the model's encoder begins there from now on."""
    base = _base(model)
    layer = first_moving_layer(model, base.encoder, training.trainable)
    before = base.encoder.before(layer)
    train_states, dev_states = (
        cached_corpus(before, part, directory, num_workers=training.num_workers, report=report)
        for part in (corpus, dev)
    )
    base.encoder = base.encoder.behind(layer)
    return train_states, dev_states


def _report_texts(prepared: PreparedModel, corpus: Corpus, report: Callable[[str], None]) -> None:
    """Report which texts cannot be learned as they are."""
    lines: list[str] = []
    if prepared.tokenizer is not None:
        lines += text_warnings(
            training_texts(corpus), prepared.tokenizer, corpus.examples.max_tokens - 1
        )  # the end is one
    if prepared.ctc_frame_s is not None:
        lines += length_warnings(corpus, prepared.ctc_frame_s)
    for line in lines:
        report(line)


def _training_corpus(
    parts: Sequence[tuple[UtteranceSource, float]],
    examples: Examples,
    options: ExampleOptions,
    window: int,
) -> Corpus:
    """Training data: all of tar shards, which are read in windows, or none."""
    shards = [(source, repeats) for source, repeats in parts if isinstance(source, Shards)]
    if not shards:
        return Corpus(parts, examples, options)
    if len(shards) < len(parts):
        raise SprachbundError(
            "some training data are tar shards and others are not; pack the others too (`sprachbund data pack`)"
        )
    return ShardedCorpus(shards, examples, options, window)


def _read(parts: Sequence[DataPart]) -> list[tuple[UtteranceSource, float]]:
    return [(open_corpus(part.path, part.shares), part.repeats) for part in parts]


def _training_data(
    recipe: TranslatorRecipe, directory: Path, report: Callable[[str], None]
) -> list[tuple[UtteranceSource, float]]:
    if not recipe.train and not recipe.live:
        raise SprachbundError(
            "the recipe has no training data; give it a [[train]] with a path, or a [[live]]"
        )
    if not recipe.dev:
        raise SprachbundError("the recipe has no data that rank its checkpoints; add a [[dev]] with a path")
    live = [
        LiveEdition(part.drawn(), directory / f"live-{n}", report=report)
        for n, part in enumerate(recipe.live)
    ]
    manifests = [open_corpus(part.path, part.shares) for part in recipe.train]
    if recipe.scale is not None:
        manifests = nested(manifests, recipe.scale.hours, recipe.scale.seed)
    hours = [float(manifest.durations_s.sum(dtype=np.float64)) / 3600 for manifest in manifests]
    repeats = tempered([part.repeats for part in recipe.train], hours, recipe.temperature)
    return [*zip(manifests, repeats, strict=True), *((part, 1.0) for part in live)]


def check_corpus(corpus: Corpus, max_duration_s: float, report: Callable[[str], None]) -> None:
    """Report the utterances that are left out, and refuse data of which nothing is left.

    Args:
        corpus: training data.
        max_duration_s: longest utterance that is trained on.
        report: takes the line.

    Raises:
        SprachbundError: nothing is left, or no text of the first utterances can be learned.
    """
    longest_s, count = corpus.longest_s(max_duration_s), len(corpus.durations_s)
    why = "" if longest_s == max_duration_s else ", which the model takes at once at the slowest speed"
    too_long = int((corpus.durations_s > longest_s).sum())
    if too_long:
        report(f"{too_long} of {count} utterances are longer than {longest_s:g} s{why}: left out")
    if too_long == count:
        raise SprachbundError(
            f"no utterance of the training data is left; cut them into pieces of at most {longest_s:g} s"
        )
    rng = np.random.default_rng(0)
    tried = min(len(corpus.durations_s), _TRIED)
    utterances = (corpus.utterance(i)[0] for i in range(tried))
    if not any(corpus.rows(one, rng) for one in utterances if one.language):
        raise SprachbundError(
            f"none of the first {tried} utterances has a text that this model can be trained on: it is to write "
            f"{', '.join(corpus.targets)}; a Whisper that is to translate into other languages than English needs "
            'fine_tuning.prompt = "wanted", and so does a transducer that writes what is spoken'
        )


# The card.


def _card(recipe: TranslatorRecipe, corpus: Corpus, taught: TaughtLanguages) -> Card:
    """The card of the model; what it started from gives its data, attribution and limits too.

    A new model knows only what its data taught. One that began from another may know more, as may one of live data.
    """
    heard, written = source_languages_of(recipe.languages), list(corpus.targets)
    if recipe.start is None and not recipe.live:
        heard = list(taught.spoken)
        written = list(taught.written) if taught.num_seen == taught.count else written
    data: list[dict[str, Any]] = []
    for manifest in corpus.corpora:
        info: dict[str, Any] = manifest.info() or {"name": str(manifest.directory)}
        data.append(
            {
                key: info[key]
                for key in ("name", "licence", "attribution", "hours", "utterances")
                if key in info
            }
        )
    own, limits = recipe.card.model_dump(), [*recipe.card.limits]
    training: dict[str, Any] = {"steps": recipe.training.steps, "batch_s": recipe.training.batch_s}
    before = Card(name="", training={PAIRS: []})  # a new model was taught nothing
    if recipe.start is not None:
        training["start"] = str(recipe.start)
        training["start_licence"] = " and ".join(one.name for one in licences_owed(str(recipe.start)))
        before = Card.read(locate(str(recipe.start), offline=True)) or Card(name="")
        data = [*before.data, *(entry for entry in data if entry not in before.data)]
        limits += [limit for limit in before.limits if limit not in limits]
    training |= before.pairs_with(taught.pairs)
    return Card(
        **{**own, "limits": limits},
        source_languages=heard,
        target_languages=written,
        data=data,
        training=training,
    )


def licence_warnings(recipe: TranslatorRecipe) -> list[str]:
    """Warnings about a licence on the card that the model to start from does not let one choose.

    Args:
        recipe: recipe of the run.
    """
    if recipe.start is None:
        return []
    stated, lines = recipe.card.licence, []
    for one in licences_owed(str(recipe.start)):
        if not one.binding or one.name.casefold() == stated.casefold():
            continue
        card = f"gives the new model the licence {stated}" if stated else "gives the new model no licence"
        why = "models made from it keep that licence" if one.commercial else "it forbids commercial use"
        lines.append(
            f"warning: the card {card}, but {recipe.start}, which it starts from, has weights under {one.name}: {why}; "
            f'set card.licence = "{one.name}", unless its terms allow another'
        )
    return lines

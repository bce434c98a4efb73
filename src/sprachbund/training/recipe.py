"""The recipe of a speech translator: data, model, options of training, and what its card says.

It trains a new conformer, any of its languages to any other, as the bundled model is one; or it goes on from a
checkpoint of another family.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, ValidationError, field_validator, model_validator

from sprachbund.corpora.editions import Edition, edition
from sprachbund.data.loading import source_languages_of
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import ConformerConfig, ConformerShape
from sprachbund.models.weights import Bits
from sprachbund.text.languages import tag_of
from sprachbund.training.dual_scale import DualScaleOptions
from sprachbund.training.options import Strict, TrainingOptions

NO_MASKS: dict[str, Any] = {"time_masks": 0, "frequency_masks": 0, "speeds": (1.0,)}
PARAKEET = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt")
AUDIO_LLMS = ("voxtral", "granite_speech", "granite_speech_plus", "qwen3_asr")
FINE_TUNED = (
    *("conformer", "whisper", "seamless_m4t", "seamless_m4t_v2", "canary", "cohere_asr"),
    *PARAKEET,
    *AUDIO_LLMS,
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
    scale: float = Field(default=2.0, gt=0)
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
        """Refuse names of languages, which no data has, and a language that is there twice."""
        import langcodes

        if twice := [language for language in languages if languages.count(language) > 1]:
            raise ValueError(f"{twice[0]!r} is there twice; remove one")
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

"""Options of decoding, checked before any work starts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sprachbund.audio.span_options import SpanOptions
from sprachbund.errors import SprachbundError
from sprachbund.text.glossary import read_glossary
from sprachbund.util.options import Option, OptionValueError, Range, check, check_known, renamed

if TYPE_CHECKING:  # commands make their options of these without loading torch
    from sprachbund.models.base import Family

AUTO: Literal["auto"] = "auto"
NONE = "none"
TRANSCRIBE = "transcribe"
"""Value in place of a target language: text in the language spoken."""
MAX_DRAFT_TOKENS = 8
Accept = Literal["exact", "top-2", "top-3", "unchecked"]
"""Draft tokens that are accepted: the model's own choice; its best two or three; or all that it may emit.

All but the first change the text.
"""
_PROBABILITY = Range(0, 1)
GUARD_THRESHOLDS = (
    "guard.min_speech_probability",
    "guard.max_no_speech_probability",
    "guard.min_mean_log_probability",
    "guard.max_compression_ratio",
    "guard.max_repetition",
    "guard.max_characters_per_s",
)
"""Fields that pseudo-labels have options for and captions do not: there the published values hold."""


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """Thresholds of the guard that keeps text off silence, music and noise.

    The defaults of the log-probability, no-speech and compression thresholds are those of arXiv 2212.04356,
    section 4.5; the others were chosen so that a failure of any one signal alone does not drop real speech.

    Attributes:
        enabled: False keeps every segment; the evidence is recorded all the same.
        min_speech_probability: voice activity below which a span holds no speech.
        max_no_speech_probability: probability of no speech above which the model itself doubts that it heard speech; a
            segment is dropped for it only when its mean log-probability is below `min_mean_log_probability` too.
        min_mean_log_probability: mean log-probability (natural logarithm, per token) below which the model is unsure.
        hopeless_mean_log_probability: mean log-probability below which a segment is dropped without any second sign.
        max_compression_ratio: bytes of text over bytes after zlib; above this the text is a loop.
        max_repetition: share of the text that repeats what stands directly before it; above this it is a loop.
        max_characters_per_s: most characters of text in a second of speech; nobody speaks faster.
        max_out_of_domain: probability that a text is not what was said, above which it is dropped, for models that were
            calibrated; the model's own threshold if not given, 1 to drop nothing for it.
        max_length_ratio: longest translation of a cascade, as a multiple of the transcript's length; a longer one is a
            loop or an answer.
    """

    enabled: Annotated[
        bool, Option("--no-guard", help="Keep text even where there seems to be no speech.")
    ] = True
    min_speech_probability: Annotated[float, _PROBABILITY, Option("--min-speech", metavar="P")] = 0.5
    max_no_speech_probability: Annotated[
        float,
        _PROBABILITY,
        Option(
            "--max-no-speech",
            metavar="P",
            help="Most of the teacher's doubt that it heard speech, where it is unsure too.",
        ),
    ] = 0.6
    min_mean_log_probability: Annotated[
        float,
        Range(high=0),
        Option(
            "--min-log-probability", metavar="X", help="Least mean of a label per token, natural logarithm."
        ),
    ] = -1.0
    hopeless_mean_log_probability: Annotated[float, Range(high=0)] = -2.5
    max_compression_ratio: Annotated[float, Range(0), Option("--max-compression", metavar="X")] = 2.4
    max_repetition: Annotated[float, _PROBABILITY, Option("--max-repetition", metavar="P")] = 0.6
    max_characters_per_s: Annotated[float, Range(0), Option("--max-characters-per-s", metavar="X")] = 60.0
    max_out_of_domain: Annotated[float | None, _PROBABILITY, Option("--max-out-of-domain", metavar="P")] = (
        None
    )
    max_length_ratio: Annotated[float, Range(0)] = 3.0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Options of turning speech into text; the defaults are greedy and deterministic.

    Attributes:
        beam_size: hypotheses kept per row; 1 is greedy.
        length_penalty: p in score = log-probability / ((5 + n) / 6) ** p for n tokens, the end token included
            (arXiv 1609.08144, equation 14); 0 ranks by log-probability alone. Only beam search ranks.
        min_tokens: fewest tokens of a segment, with its timestamps and without its prompt (`min_new_tokens` of
            transformers); the end token is forbidden before.
        max_tokens: most tokens of a segment; the limit of the model if not given.
        max_symbols: most tokens of a transducer at one frame, so that it cannot write without end; those of the
            model if not given.
        allowed_languages: languages that may be spoken, from which language identification chooses, as BCP-47 tags; all
            of them in mixed speech. All of the model's if not given.
        language_windows: speech spans, the present one and those before it, whose language log-probabilities
            are averaged when the present one alone does not decide.
        prompt: context or glossary shown to the model before each span, where the family has room for it.
        glossary: terms and their translations, "term = translation; ...", for translators of texts that are language
            models; entries that do not occur in a text are not shown to them.
        nbest: texts of a span that results have, the best first; more than one needs a beam of as many. A cascade
            translates so many transcripts of a span, and takes the best pair of transcript and translation.
        translation_weight: weight of the translation's log-probability beside the transcript's, in that choice.
        hot_words: words that the speech is expected to hold, names for example; the search prefers them. Models that
            write by CTC need a beam for them.
        hot_words_weight: bonus of each token of a hot word, as a natural logarithm.
        batch_size: most speech spans that go through the encoder together; does not change the result.
        timestamps: whether segments are cut by timestamp tokens: "auto" in models that write them; True is an error for
            those that do not.
        word_timestamps: times for every word, which JSON output shows; costs a second pass of the decoder.
        digits: numbers, dates, clock times and amounts in digits, in English, Spanish, French, Italian, German and
            Russian; the guard and its evidence see the words.
        punctuate: restores punctuation and capitals, for models that write words only: bundled, the package's own
            punctuator; rule, a full stop and a capital for every span; a directory or a name on the hub of a model for
            token classification. The guard sees the text without.
        draft: proposes tokens ahead, which the model confirms, for speed: none; auto, a draft among the model's files
            where it is to gain speed; the name of such a draft; a draft's file; a text (.txt) in the languages wanted;
            a smaller model; a smaller model+text. It does not change the text.
        num_draft_tokens: tokens that the draft proposes at a time; as many as are to gain most if not given.
        translator_draft: draft of a cascade's translator, as `draft` is of its recogniser: none; auto; a name, a file,
            a text or a smaller model with the translator's encoder.
        accept: draft tokens that are accepted: exact; top-2, top-3, unchecked: faster, change the text, and need a
            draft that is named.
        temperature: 0 is greedy or beam search, above it tokens are drawn. Of several, as in Whisper, each is tried in
            turn while the text repeats itself or is unlikely by the thresholds of the guard, as in 0,0.2,0.4,0.6,0.8,1.
            Beams and drafts work at 0 alone.
        sampling_seed: seed of the tokens drawn; the same seed gives the same text.
        tempos: tempos at which a span is heard again if its text is in doubt; the text of the least doubt is kept. 1.3
            is 1.3 times as fast. For models that were calibrated.
        guard: thresholds of the hallucination guard.
        spans: options of cutting speech out of a recording.
    """

    beam_size: Annotated[int, Range(1), Option("--beam", metavar="N")] = 1
    length_penalty: Annotated[float, Range(0)] = 1.0
    min_tokens: Annotated[int, Range(0), Option("--min-tokens", metavar="N")] = 0
    max_tokens: Annotated[int | None, Range(1), Option("--max-tokens", metavar="N")] = None
    max_symbols: Annotated[int | None, Range(1), Option("--max-symbols", metavar="N")] = None
    allowed_languages: Annotated[tuple[str, ...] | None, Option("--languages", metavar="LANG,…")] = None
    language_windows: Annotated[int, Range(1)] = 3
    prompt: Annotated[str | None, Option("--prompt", metavar="TEXT")] = None
    glossary: Annotated[str | None, Option("--glossary", metavar="TERMS")] = None
    nbest: Annotated[int, Range(1), Option("--nbest", metavar="N")] = 1
    translation_weight: Annotated[float, Range(0, 1), Option("--translation-weight", metavar="X")] = 1.0
    hot_words: Annotated[tuple[str, ...] | None, Option("--hot-words", metavar="WORD,…")] = None
    hot_words_weight: Annotated[float, Range(0, 20), Option("--hot-words-weight", metavar="X")] = 1.5
    batch_size: Annotated[int, Range(1)] = 8
    timestamps: Literal[True, False, "auto"] = AUTO
    word_timestamps: Annotated[bool, Option("--words")] = False
    digits: Annotated[bool, Option("--digits")] = False
    punctuate: Annotated[str | None, Option("--punctuate", metavar="NAME")] = None
    draft: Annotated[str, Option("--draft", metavar="NAME")] = AUTO
    num_draft_tokens: Annotated[
        int | None,
        Range(1, MAX_DRAFT_TOKENS),
        Option("--num-draft-tokens", metavar="K", old="--guesses"),
    ] = None
    translator_draft: Annotated[str, Option("--translator-draft", metavar="NAME")] = AUTO
    accept: Annotated[Accept, Option("--accept", metavar="HOW")] = "exact"
    temperature: Annotated[tuple[float, ...], Option("--temperature", metavar="T,…")] = (0.0,)
    sampling_seed: Annotated[int, Range(0), Option("--sampling-seed", metavar="N")] = 0
    tempos: Annotated[tuple[float, ...], Option("--tempos", metavar="X,…")] = ()
    guard: GuardOptions = field(default_factory=GuardOptions)
    spans: SpanOptions = field(default_factory=SpanOptions)

    def __post_init__(self) -> None:
        check(self)
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise OptionValueError(
                "max_tokens",
                self.max_tokens,
                f"give {self.min_tokens} or more, the fewest tokens of a segment",
            )
        self._check_accept()
        self._check_numbers("temperature", "(0.0,) or (0.0, 0.5, 1.0)")
        self._check_temperature()
        self._check_numbers("tempos", "(1.3, 1.6)")
        if not all(0.5 <= one <= 2 and one != 1 for one in self.tempos):
            raise OptionValueError(
                "tempos", self.tempos, "give numbers from 0.5 to 2 other than 1, such as 1.3,1.6"
            )
        if self.nbest > self.beam_size:
            raise OptionValueError(
                "nbest",
                self.nbest,
                f"set `beam_size` to {self.nbest}",
                reason=f"and a beam of {self.beam_size} has no more texts",
            )
        if self.glossary:
            read_glossary(self.glossary)
        if not all(word.strip() for word in self.hot_words or ()):
            raise OptionValueError("hot_words", self.hot_words, "give a tuple of words, none of them empty")
        if self.allowed_languages is not None and not self.allowed_languages:
            raise OptionValueError(
                "allowed_languages", (), "name at least one language, or pass None for all"
            )

    def _check_accept(self) -> None:
        if self.accept == "exact":
            return
        if self.draft in (AUTO, NONE):
            raise OptionValueError(
                "accept",
                self.accept,
                "name a draft",
                reason=f"which changes the text for a draft that is named, and `draft` is {self.draft}",
            )
        if self.beam_size > 1:
            raise OptionValueError(
                "accept",
                self.accept,
                "set `beam_size` to 1, or leave `accept` out",
                reason=f"which is for greedy search, and `beam_size` is {self.beam_size}",
            )

    def _check_numbers(self, name: str, example: str) -> None:
        values = vars(self)[name]
        if not isinstance(values, tuple | list) or not all(isinstance(one, int | float) for one in values):
            raise OptionValueError(name, values, f"give a tuple of numbers, such as {example}")

    def _check_temperature(self) -> None:
        if not self.temperature or not all(0 <= one <= 1 for one in self.temperature):
            raise OptionValueError(
                "temperature", self.temperature, "give numbers from 0 to 1, such as 0 or 0,0.5,1"
            )
        if any(after <= before for before, after in pairwise(self.temperature)):
            raise OptionValueError(
                "temperature", self.temperature, "each has to be higher than the one before"
            )
        if not self.temperature[0]:
            return
        for name, wanted in (("a beam", self.beam_size > 1), ("a draft", self.draft not in (AUTO, NONE))):
            if wanted:
                raise OptionValueError(
                    "temperature",
                    self.temperature,
                    "leave one of them out, or begin with 0, as in 0,0.5,1",
                    reason=f"at which tokens are drawn, and {name} works at 0 alone",
                )

    @staticmethod
    def from_stored(values: Mapping[str, Any], source: str) -> "DecodingOptions":
        """Options as `dataclasses.asdict` wrote them, also of earlier versions.

        Args:
            values: values of every field, as JSON has them.
            source: name of the file or table that holds them, for warnings and errors.

        Raises:
            SprachbundError: a value that cannot be, or a field that this version does not know.
            KeyError: `guard`, `spans` or `allowed_languages` is missing.
        """
        rest = renamed(values, {"guesses": "num_draft_tokens"}, source)
        check_known(DecodingOptions, rest, "decoding.")
        check_known(GuardOptions, rest["guard"], "decoding.guard.")
        check_known(SpanOptions, rest["spans"], "decoding.spans.")
        guard, spans = GuardOptions(**rest.pop("guard")), SpanOptions(**rest.pop("spans"))
        allowed = rest.pop("allowed_languages")
        languages = None if allowed is None else tuple(allowed)
        if (words := rest.get("hot_words")) is not None:
            rest["hot_words"] = tuple(words)
        for name in ("temperature", "tempos"):
            if name in rest:
                rest[name] = tuple(rest[name])
        return DecodingOptions(**rest, allowed_languages=languages, guard=guard, spans=spans)


_ATTENTION_FAMILIES = "whisper, conformer or seamless"


def check_options(family: "Family", options: DecodingOptions) -> None:
    """Refuse what a model cannot serve; an option at its default is served as far as the model goes.

    Raises:
        SprachbundError: the option, the model, and which models can serve it.
    """
    for check_subject in (
        _check_by_frames,
        _check_joint_ctc,
        _check_abilities,
        _check_hot_words,
        _check_cascade,
        _check_calibrated,
        _check_asked_with,
    ):
        check_subject(family, options)


def _check_by_frames(family: "Family", options: DecodingOptions) -> None:
    """Refuse what a model that writes by frames has no place for, and what is for transducers elsewhere."""
    able = family.capabilities
    if able.writes_by_frames:
        how = "by CTC" if able.ctc is not None else "frame by frame"
        for name, value in _of_attention_decoders(options, able.alignment is not None):
            raise OptionValueError(
                name,
                value,
                f"leave it out, or take a model with an attention decoder, such as {_ATTENTION_FAMILIES}",
                reason=f"and the model {family.name} writes {how}, which has no place for it",
            )
    why = why_no_beam(family, word_timestamps=options.word_timestamps)
    if options.beam_size > 1 and why is not None:
        raise OptionValueError(
            "beam_size",
            options.beam_size,
            f"set it to 1, or take a model with an attention decoder, such as {_ATTENTION_FAMILIES}",
            reason=f"and {why}",
        )
    if able.transducer is None and options.max_symbols is not None:
        raise OptionValueError(
            "max_symbols",
            options.max_symbols,
            "leave it out, or take a model with one, such as parakeet_tdt",
            reason=f"and the model {family.name} has no transducer, which alone may write several tokens at one frame",
        )


def why_no_beam(family: "Family", *, word_timestamps: bool) -> str | None:
    """The reason why a model is searched greedily alone; None where it takes a beam.

    Args:
        family: any model.
        word_timestamps: whether words are to have times.
    """
    able = family.capabilities
    if able.transducer is not None and able.transducer.shape.durations:
        return f"the model {family.name} writes tokens with durations, which are searched greedily"
    if able.frame_decoder is not None:
        return f"the model {family.name} writes one token for every frame, the likeliest"
    if able.ctc is not None and word_timestamps:
        return f"a beam over the texts of {family.name} adds up many paths, so words get no times"
    return None


def _check_joint_ctc(family: "Family", options: DecodingOptions) -> None:
    """Refuse what the scores of CTC beside those of the decoder leave no place for."""
    if family.capabilities.joint_ctc is None:
        return
    instead = f"leave it out, or take a model that writes by its attention decoder alone, such as {_ATTENTION_FAMILIES}"
    if options.draft not in (AUTO, NONE):
        raise OptionValueError(
            "draft",
            options.draft,
            instead,
            reason=f"and the model {family.name} is searched with CTC, which has no place for a draft",
        )
    if options.temperature[-1] > 0:
        raise OptionValueError(
            "temperature",
            options.temperature,
            instead,
            reason=f"and the model {family.name} is searched with CTC, whose scores are no probabilities to draw "
            "tokens by",
        )


def _check_abilities(family: "Family", options: DecodingOptions) -> None:
    """Refuse what a model does not read, show or write."""
    able = family.capabilities
    if options.prompt and not able.reads_context:
        raise SprachbundError(
            f"{no_room_for_prompt(family)}; leave it out, or take a whisper or qwen3_asr model"
        )
    if options.word_timestamps and able.alignment is None:
        raise OptionValueError(
            "word_timestamps",
            True,
            f"leave it out, or take a model that shows it, such as {_ATTENTION_FAMILIES}",
            reason=f"and the model {family.name} does not show which speech it reads, so words get no times",
        )
    if options.timestamps is True and able.timestamps is None:
        raise OptionValueError(
            "timestamps",
            True,
            f'give "{AUTO}" or False, or take a whisper model that was trained with them',
            reason=f"and the model {family.name} writes none",
        )
    if options.punctuate is not None and not able.words_only:
        raise OptionValueError(
            "punctuate",
            options.punctuate,
            "leave it out",
            reason=f"and the model {family.name} writes punctuation and capitals itself (its vocabulary has a full "
            "stop), so there is nothing to restore",
        )


def _check_hot_words(family: "Family", options: DecodingOptions) -> None:
    """Refuse hot words that the search cannot prefer, or the model cannot spell."""
    if not options.hot_words:
        return
    if family.capabilities.encode_text is None:
        raise SprachbundError(
            f"the model {family.name} cannot spell words, so it takes no hot words; leave them out, or take another "
            f"model, such as {_ATTENTION_FAMILIES}"
        )
    if family.capabilities.ctc is not None and options.beam_size == 1:
        raise OptionValueError(
            "hot_words",
            options.hot_words,
            "set `beam_size` to 8, for example, or leave them out",
            reason=f"and the model {family.name} writes by CTC, whose likeliest path takes no hot words",
        )
    from sprachbund.decoding.spelling import spellings  # here, since it loads torch

    for word in options.hot_words:
        spellings(family, word)


def _check_cascade(family: "Family", options: DecodingOptions) -> None:
    """Refuse what the translator of a cascade does not give, and what is for translators elsewhere."""
    translator = family.capabilities.translator
    if translator is not None and options.word_timestamps:
        if translator.family.capabilities.token_offsets is None:
            raise OptionValueError(
                "word_timestamps",
                True,
                "leave it out, or take a translator such as M2M-100",
                reason=f"and the translator {translator.family.name} does not show which words of a text it reads, so "
                "words of a translation get no times",
            )
        if options.nbest > 1:
            raise OptionValueError(
                "nbest",
                options.nbest,
                "leave `word_timestamps` out, or set `nbest` to 1",
                reason="and a cascade gives words no times in the next best transcripts",
            )
    reader = family if translator is None else translator.family
    if options.glossary and not reader.capabilities.follows_requests:
        raise SprachbundError(
            f"the model {reader.name} takes no glossary; leave it out, or take a cascade with a language model as its "
            "translator, such as --then Qwen/Qwen3-4B-Instruct-2507"
        )
    if options.translator_draft not in (AUTO, NONE) and translator is None:
        raise OptionValueError(
            "translator_draft",
            options.translator_draft,
            "give it as `draft`, or leave it out",
            reason=f"and the model {family.name} is no cascade",
        )


def _check_calibrated(family: "Family", options: DecodingOptions) -> None:
    """Refuse what needs a calibration of a model without one."""
    check_guard(family, options.guard)
    if options.tempos and family.calibration.domain is None:
        raise OptionValueError(
            "tempos",
            options.tempos,
            "leave it out, or calibrate the model with `sprachbund calibrate`",
            reason=f"and the model {family.name} was not calibrated to know when to hear speech again",
        )


def check_guard(family: "Family", guard: GuardOptions) -> None:
    """Refuse a threshold of what a model does not understand, where it was not calibrated to know that.

    Raises:
        OptionValueError: `max_out_of_domain` is below 1.
    """
    limit = guard.max_out_of_domain
    if limit is not None and limit < 1 and family.calibration.domain is None:
        raise OptionValueError(
            "max_out_of_domain",
            limit,
            "leave it out, or calibrate the model with `sprachbund calibrate`",
            reason=f"and the model {family.name} was not calibrated to know what it does not understand",
        )


def _check_asked_with(family: "Family", options: DecodingOptions) -> None:
    """Refuse options that qualify another one, where that is not asked for or the model has none of it."""
    able, default = family.capabilities, DecodingOptions
    drafted = options.draft != NONE
    if options.draft == AUTO:
        drafted = bool(family.drafts) and able.joint_ctc is None
    if options.num_draft_tokens is not None and not drafted:
        why = (
            "`draft` is none" if options.draft == NONE else f"the model {family.name} has no draft of its own"
        )
        raise OptionValueError(
            "num_draft_tokens",
            options.num_draft_tokens,
            "name a draft, or leave `num_draft_tokens` out",
            reason=f"and {why}",
        )
    if options.length_penalty != default.length_penalty and options.beam_size == 1:
        raise OptionValueError(
            "length_penalty",
            options.length_penalty,
            "set `beam_size` to 8, for example, or leave `length_penalty` out",
            reason="and greedy search ranks nothing",
        )
    if options.translation_weight != default.translation_weight and able.translator is None:
        raise OptionValueError(
            "translation_weight",
            options.translation_weight,
            "leave it out, or add a translator with --then",
            reason=f"and the model {family.name} is no cascade, which alone chooses among transcripts by their "
            "translations",
        )
    if options.translation_weight != default.translation_weight and options.nbest == 1:
        raise OptionValueError(
            "translation_weight",
            options.translation_weight,
            "set `nbest` and `beam_size` to 4, for example, or leave `translation_weight` out",
            reason="and `nbest` is 1, so that there is one transcript to choose",
        )
    if options.hot_words_weight != default.hot_words_weight and not options.hot_words:
        raise OptionValueError(
            "hot_words_weight",
            options.hot_words_weight,
            "name some, or leave `hot_words_weight` out",
            reason="and there are no `hot_words`",
        )
    if options.sampling_seed != default.sampling_seed and not options.temperature[-1]:
        raise OptionValueError(
            "sampling_seed",
            options.sampling_seed,
            "set `temperature` to 0.5, for example, or leave `sampling_seed` out",
            reason="and no token is drawn at temperature 0",
        )
    limit = options.guard.max_out_of_domain
    if limit is not None and limit < 1 and not options.guard.enabled:
        raise OptionValueError(
            "max_out_of_domain",
            limit,
            "leave one of them out",
            reason="and the guard, which drops text for it, is off",
        )


def only_transcribes(targets: Sequence[str], source: str | None) -> bool:
    """Whether no text is wanted but that in the language spoken, where `source` may name it."""
    return all(target in (TRANSCRIBE, source) for target in targets)


def no_room_for_prompt(family: "Family") -> str:
    """The sentence about a prompt that is given to a family which does not read one."""
    return f"the model {family.name} has no room for a prompt"


def draws_tokens(family: "Family") -> bool:
    """Whether a temperature above 0 has a meaning: an attention decoder alone gives tokens their probabilities."""
    able = family.capabilities
    return not able.writes_by_frames and able.joint_ctc is None


def _of_attention_decoders(options: DecodingOptions, times: bool) -> Iterator[tuple[str, Any]]:
    """Field and value of requests that only an attention decoder can serve; `times`: words get theirs from frames."""
    if options.word_timestamps and not times:
        yield "word_timestamps", True
    if options.draft not in (AUTO, NONE):
        yield "draft", options.draft
    if options.num_draft_tokens is not None:
        yield "num_draft_tokens", options.num_draft_tokens
    if options.min_tokens:
        yield "min_tokens", options.min_tokens
    if options.length_penalty != DecodingOptions.length_penalty:
        yield "length_penalty", options.length_penalty
    if options.temperature[-1] > 0:
        yield "temperature", options.temperature

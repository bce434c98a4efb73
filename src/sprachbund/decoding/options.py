"""What a caller may ask of decoding, in one value that is checked before any work starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from sprachbund.audio.span_options import SpanOptions
from sprachbund.errors import SprachbundError
from sprachbund.util.options import Option, OptionValueError, Range, check, renamed

AUTO, NONE = "auto", "none"
MAX_DRAFT_TOKENS = 8
Accept = Literal["exact", "top-2", "top-3", "unchecked"]
"""What a draft token has to be to stand: the model's own choice; among its best two or three; or allowed by the rules.

All but the first change the text.
"""
_PROBABILITY = Range(0, 1)


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """Thresholds of the guard that keeps text off silence, music and noise.

    The defaults of the log-probability, no-speech and compression thresholds are those of arXiv 2212.04356,
    section 4.5; the others were chosen so that a failure of any one signal alone does not drop real speech.

    Attributes:
        enabled: False keeps every segment; the evidence is recorded all the same.
        min_speech_probability: a span whose voice activity is below this holds no speech.
        max_no_speech_probability: above this the model itself doubts that it heard speech; a segment is
            dropped for it only when its mean log-probability is below `min_mean_log_probability` too.
        min_mean_log_probability: below this (natural logarithm, per token) the model is guessing.
        hopeless_mean_log_probability: below this a segment is dropped without any second sign.
        max_compression_ratio: bytes of text over bytes after zlib; above this the text is a loop.
        max_repetition: share of the text, from 0 to 1, that repeats what stands directly before it.
        max_characters_per_s: more text than anyone can say in the time.
    """

    enabled: Annotated[
        bool, Option("--no-guard", help="Keep text even where there seems to be no speech.")
    ] = True
    min_speech_probability: Annotated[float, _PROBABILITY] = 0.5
    max_no_speech_probability: Annotated[float, _PROBABILITY] = 0.6
    min_mean_log_probability: Annotated[float, Range(high=0)] = -1.0
    hopeless_mean_log_probability: Annotated[float, Range(high=0)] = -2.5
    max_compression_ratio: Annotated[float, Range(0)] = 2.4
    max_repetition: Annotated[float, _PROBABILITY] = 0.6
    max_characters_per_s: Annotated[float, Range(0)] = 60.0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How speech is turned into text; the defaults are greedy and deterministic.

    Attributes:
        beam_size: hypotheses kept per row; 1 is greedy.
        length_penalty: p in score = log-probability / ((5 + n) / 6) ** p for n tokens, the end token included
            (arXiv 1609.08144, equation 14); 0 ranks by log-probability alone. Only beam search ranks.
        min_tokens: fewest tokens of a segment; the end token is forbidden before.
        max_tokens: most tokens of a segment; the limit of the model if not given.
        allowed_languages: languages that may be spoken, from which language identification chooses, as BCP-47 tags; all
            of them in mixed speech. All of the model's if not given.
        language_windows: speech spans, the present one and those before it, whose language log-probabilities
            are averaged when the present one alone does not decide.
        prompt: context or glossary shown to the model before each span, where the family has room for it.
        batch_size: most speech spans that go through the encoder together; does not change the result.
        timestamps: whether segments are cut by timestamp tokens in families that have them.
        word_timestamps: times for every word (json, jsonl, --json); costs a second pass of the decoder.
        draft: proposes tokens ahead, which the model confirms, for speed: none; auto, a draft among the model's files
            where it is to gain speed; the name of such a draft; a draft's file; a text (.txt) in the languages wanted;
            a smaller model; a smaller model+text. It does not change the text.
        num_draft_tokens: tokens that the draft proposes at a time; as many as are to gain most if not given.
        accept: which draft tokens stand: exact; top-2, top-3, unchecked: faster, change the text, and need a draft that
            is named.
        guard: thresholds of the hallucination guard.
        spans: how speech is cut out of a recording.
    """

    beam_size: Annotated[int, Range(1), Option("--beam", metavar="N")] = 1
    length_penalty: Annotated[float, Range(0)] = 1.0
    min_tokens: Annotated[int, Range(0), Option("--min-tokens", metavar="N")] = 0
    max_tokens: Annotated[int | None, Range(1), Option("--max-tokens", metavar="N")] = None
    allowed_languages: Annotated[tuple[str, ...] | None, Option("--languages", metavar="LANG,…")] = None
    language_windows: Annotated[int, Range(1)] = 3
    prompt: Annotated[str | None, Option("--prompt", metavar="TEXT")] = None
    batch_size: Annotated[int, Range(1)] = 8
    timestamps: bool = True
    word_timestamps: Annotated[bool, Option("--words")] = False
    draft: Annotated[str, Option("--draft", metavar="NAME")] = AUTO
    num_draft_tokens: Annotated[
        int | None,
        Range(1, MAX_DRAFT_TOKENS),
        Option("--num-draft-tokens", metavar="K", old="--guesses"),
    ] = None
    accept: Annotated[Accept, Option("--accept", metavar="HOW")] = "exact"
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
        if isinstance(self.allowed_languages, str):
            raise SprachbundError(
                f"allowed_languages is the text {self.allowed_languages!r}; give a tuple of language tags"
            )
        if self.allowed_languages is not None and not self.allowed_languages:
            raise SprachbundError(
                "allowed_languages is empty; name at least one language, or pass None for all"
            )

    def _check_accept(self) -> None:
        if self.accept == "exact":
            return
        if self.draft in (AUTO, NONE):
            raise SprachbundError(
                f"accept {self.accept!r} changes the text, so the draft has to be named too; draft is {self.draft!r}"
            )
        if self.beam_size > 1:
            raise SprachbundError(
                f"accept {self.accept!r} is for greedy search; beam_size is {self.beam_size}, give 1"
            )

    @staticmethod
    def from_stored(values: Mapping[str, Any], source: str) -> "DecodingOptions":
        """Options as `dataclasses.asdict` wrote them, also of earlier versions.

        Args:
            values: of every field, as JSON has them.
            source: what they stand in, for warnings and errors.

        Raises:
            SprachbundError: a value that cannot be.
            TypeError: a field that this version does not know.
            KeyError: `guard`, `spans` or `allowed_languages` is missing.
        """
        rest = renamed(values, {"guesses": "num_draft_tokens"}, source)
        guard, spans = GuardOptions(**rest.pop("guard")), SpanOptions(**rest.pop("spans"))
        allowed = rest.pop("allowed_languages")
        languages = None if allowed is None else tuple(allowed)
        return DecodingOptions(**rest, allowed_languages=languages, guard=guard, spans=spans)

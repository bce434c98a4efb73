"""What a caller may ask of decoding, in one value that is checked before any work starts."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from sprachbund.audio.spans import SpanOptions
from sprachbund.errors import SprachbundError

AUTO, NONE = "auto", "none"
MAX_GUESSES = 8
Accept = Literal["exact", "top-2", "top-3", "unchecked"]
"""What a guess has to be to stand: the model's own choice; among its best two or three; or allowed by the rules.

All but the first change the text.
"""


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

    enabled: bool = True
    min_speech_probability: float = 0.5
    max_no_speech_probability: float = 0.6
    min_mean_log_probability: float = -1.0
    hopeless_mean_log_probability: float = -2.5
    max_compression_ratio: float = 2.4
    max_repetition: float = 0.6
    max_characters_per_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("min_speech_probability", "max_no_speech_probability", "max_repetition"):
            _within(name, getattr(self, name), 0.0, 1.0)
        for name in ("min_mean_log_probability", "hopeless_mean_log_probability"):
            _within(name, getattr(self, name), -math.inf, 0.0)
        for name in ("max_compression_ratio", "max_characters_per_s"):
            _within(name, getattr(self, name), 0.0, math.inf)


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How speech is turned into text; the defaults are greedy and deterministic.

    Attributes:
        beam_size: hypotheses kept per row; 1 is greedy.
        length_penalty: p in score = log-probability / ((5 + n) / 6) ** p for n tokens, the end token included
            (arXiv 1609.08144, equation 14); 0 ranks by log-probability alone. Only beam search ranks.
        min_tokens: the end token is forbidden before this many tokens.
        max_tokens: most tokens of a row; None leaves the limit to the model.
        allowed_languages: BCP-47 tags that language identification chooses from; None allows all of the
            model's.
        language_windows: speech spans, the present one and those before it, whose language log-probabilities
            are averaged when the present one alone does not decide.
        prompt: text or glossary shown to the model before each span, where the family has room for it.
        batch_size: most speech spans that go through the encoder together; does not change the result.
        timestamps: whether segments are cut by timestamp tokens in families that have them.
        word_timestamps: whether every segment gets words with times; costs a second pass of the decoder.
        draft: what guesses tokens ahead, to be confirmed by the model: "none"; "auto", a draft that lies beside the
            model where it is to gain speed; the name of such a draft, the path of a draft's file or of a text (.txt)
            in the languages wanted, or the directory of a smaller model, which may have "+" and a text's path behind
            it. It does not change the text.
        guesses: tokens guessed ahead; None takes as many as are to gain most.
        accept: which guesses stand; all but "exact" change the text, and need a draft that is named.
        guard: thresholds of the hallucination guard.
        spans: how speech is cut out of a recording.
    """

    beam_size: int = 1
    length_penalty: float = 1.0
    min_tokens: int = 0
    max_tokens: int | None = None
    allowed_languages: tuple[str, ...] | None = None
    language_windows: int = 3
    prompt: str | None = None
    batch_size: int = 8
    timestamps: bool = True
    word_timestamps: bool = False
    draft: str = AUTO
    guesses: int | None = None
    accept: Accept = "exact"
    guard: GuardOptions = field(default_factory=GuardOptions)
    spans: SpanOptions = field(default_factory=SpanOptions)

    def __post_init__(self) -> None:
        for name in ("beam_size", "batch_size", "language_windows"):
            _within(name, getattr(self, name), 1, math.inf)
        _within("min_tokens", self.min_tokens, 0, math.inf)
        _within("length_penalty", self.length_penalty, 0.0, math.inf)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, max(1, self.min_tokens), math.inf)
        if self.guesses is not None:
            _within("guesses", self.guesses, 1, MAX_GUESSES)
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
        if self.accept not in get_args(Accept):
            raise SprachbundError(f"accept is {self.accept!r}; choose one of {', '.join(get_args(Accept))}")
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


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SprachbundError(f"{name} is {value}; it must lie between {low} and {high}")

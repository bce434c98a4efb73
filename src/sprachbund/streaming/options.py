"""Options of a live session, checked before any audio comes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from sprachbund.audio.span_options import SpanOptions
from sprachbund.util.options import Option, OptionValueError, Range, check

Policy = Literal["auto", "local-agreement", "alignatt", "wait-k", "retranslation", "span", "frames"]
Overload = Literal["coarsen", "drop", "refuse"]
TurnEnd = Literal["pause", "sentence", "auto"]
_LEAST_S = 0.05
_LEAST_PAUSE_S = 2 * SpanOptions.padding_s  # what is kept of it on either side must not overlap
_COMMITTING: tuple[Policy, ...] = ("local-agreement", "alignatt", "wait-k")
_ATTEMPTING: tuple[Policy, ...] = (*_COMMITTING, "retranslation")
_READ_BY: Mapping[str, tuple[Policy, ...]] = {
    "right_context": ("frames",),
    "step_s": _ATTEMPTING,
    "agreement": ("local-agreement",),
    "border_s": ("alignatt",),
    "border_words": ("alignatt",),
    "wait_k": ("wait-k",),
    "mask_words": _ATTEMPTING,
    "max_open_s": _COMMITTING,
}
"""The policies that an option is for, of those that are not for all."""
_OF_CASCADES: Mapping[str, bool] = {"border_s": False, "border_words": True, "max_open_s": False}
"""Whether an option is for cascades alone, or for all other models."""


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """Options of live translation: when text is written, and what happens when audio comes faster than it is decoded.

    Attributes:
        policy: policy of writing text. local-agreement (arXiv 2005.11185): words that several attempts agree on;
            alignatt (2305.11408): words that do not look at the newest audio, or in a cascade at the newest words;
            wait-k (1810.08398): a word for every step, some steps behind; retranslation (1912.03393): the whole text at
            once, replaced where it was wrong; span: the text of each stretch of speech at its end, as for a recording;
            frames: for models that write frame by frame, whose text is final at once; auto: the first of these that the
            model can use.
        right_context: frames of 80 ms that a chunk waits for (frames); those of the model's first tier if not given.
        step_s: seconds of new audio between two attempts at the same speech.
        agreement: attempts that have to agree (local-agreement).
        border_s: seconds at the end of the audio; a word that attends to them has to wait (alignatt).
        border_words: last words of the transcript; a word that attends to one of them has to wait (alignatt, of
            cascades).
        wait_k: steps heard before the first word (wait-k).
        mask_words: last words of an attempt that are not shown, because they change most; committed words are.
        steady: attempts in a row that have to agree on a masked word, and on all words before, for it to be shown all
            the same.
        max_open_s: longest speech without a pause in seconds; longer speech is cut behind written text. Not for
            cascades, where a stretch is as long as in a recording at most.
        pause_s: shortest pause that ends a stretch of speech; that of recordings, usually 0.4 s, if not given. A model
            that writes frame by frame (frames) hears on through shorter pauses, with all that it remembers.
        turn_end: end of a stretch of speech. pause: a pause as long as `pause_s`; sentence: such a pause where the
            model, calibrated for it, hears that the speaker has finished, and a longer one where not; auto: sentence
            where the model is calibrated for it, else pause.
        max_pause_s: pause that ends a stretch although its sentence is surely not finished (sentence).
        max_behind_s: seconds of speech that may wait, the stretch that ended last aside; more is an overload.
        overload: response when computing cannot keep up. coarsen: leave out attempts at unfinished speech until it has
            caught up; drop: leave out the oldest speech that waits, and say how much; refuse: take no more audio in.
        max_waiting_s: most seconds of audio that are taken in; more has to wait at its sender.
    """

    policy: Annotated[Policy, Option("--policy", metavar="NAME")] = "auto"
    right_context: Annotated[int | None, Range(0), Option("--tier", metavar="N")] = None
    step_s: Annotated[float, Range(_LEAST_S), Option("--step", metavar="S")] = 1.0
    agreement: Annotated[int, Range(2), Option("--agreement", metavar="N")] = 2
    border_s: Annotated[float, Range(0), Option("--border", metavar="S")] = 0.4
    border_words: Annotated[int, Range(1), Option("--border-words", metavar="N")] = 4
    wait_k: Annotated[int, Range(1), Option("--wait-k", metavar="K")] = 3
    mask_words: Annotated[int, Range(0), Option("--mask-words", metavar="N")] = 0
    steady: Annotated[int | None, Range(2), Option("--steady", metavar="K")] = None
    max_open_s: Annotated[float, Range(4), Option("--max-open", metavar="S")] = 12.0
    pause_s: Annotated[float | None, Range(_LEAST_PAUSE_S), Option("--pause", metavar="S")] = None
    turn_end: Annotated[TurnEnd, Option("--turn-end", metavar="WHAT")] = "pause"
    max_pause_s: Annotated[float, Range(_LEAST_S), Option("--max-pause", metavar="S")] = 4.0
    max_behind_s: Annotated[float, Range(_LEAST_S)] = 10.0
    overload: Annotated[Overload, Option("--overload", metavar="HOW")] = "coarsen"
    max_waiting_s: Annotated[float, Range(_LEAST_S)] = 120.0

    def __post_init__(self) -> None:
        check(self)
        if self.max_waiting_s < self.max_behind_s:
            raise OptionValueError(
                "max_waiting_s",
                self.max_waiting_s,
                "give at least as much, so that an overload comes before audio is refused",
                reason=f"and `max_behind_s` is {self.max_behind_s}",
            )
        if self.steady is not None and not self.mask_words:
            raise OptionValueError(
                "steady",
                self.steady,
                "give `mask_words`, the words that wait until they are steady",
                reason="and `mask_words` is 0",
            )

    def check_used(self, policy: Policy, *, cascade: bool) -> None:
        """Refuse options that change nothing; those at their defaults need not.

        Args:
            policy: policy of the session, which "auto" leaves to the model.
            cascade: whether the model is one.

        Raises:
            OptionValueError: an option of other policies, of other models, or of another end of turns.
        """
        default = LiveOptions()
        for name in (name for name in _READ_BY if getattr(self, name) != getattr(default, name)):
            if policy not in (policies := _READ_BY[name]):
                raise OptionValueError(
                    name,
                    getattr(self, name),
                    "leave it out, or take another policy",
                    reason=f"which is for the policy {' or '.join(policies)}, and the policy here is {policy}",
                )
            if _OF_CASCADES.get(name, cascade) != cascade:
                which = "cascades alone" if _OF_CASCADES[name] else "models that are no cascade"
                raise OptionValueError(
                    name, getattr(self, name), "leave it out", reason=f"which is for {which}"
                )
        if self.max_pause_s != default.max_pause_s and self.turn_end == "pause":
            raise OptionValueError(
                "max_pause_s",
                self.max_pause_s,
                "leave it out, or set `turn_end` to sentence",
                reason="which is for turns that end with a sentence, and `turn_end` is pause",
            )

    @property
    def commits(self) -> bool:
        """Whether text is committed before its stretch of speech has ended."""
        return self.policy in _COMMITTING

"""What a live session may be asked for, in one value that is checked before any audio comes."""

from dataclasses import dataclass
from typing import Literal, get_args

from sprachbund.errors import SprachbundError

Policy = Literal["auto", "local-agreement", "alignatt", "wait-k", "retranslation", "span", "frames"]
Overload = Literal["coarsen", "drop", "refuse"]
POLICIES: tuple[str, ...] = get_args(Policy)
OVERLOADS: tuple[str, ...] = get_args(Overload)
_LEAST_S = 0.05


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """When text is written, and what happens when the audio comes faster than it can be worked on.

    Attributes:
        policy: "local-agreement" (arXiv 2005.11185) writes what several attempts agree on; "alignatt" (2305.11408) what
            does not look at the newest audio; "wait-k" (1810.08398) a word for every step, some steps behind;
            "retranslation" (1912.03393) shows all at once and takes it back where it was wrong; "span" waits for the
            end of each stretch of speech and writes what a recording would give; "frames" is for models that write
            frame by frame, whose text stands at once; "auto" is the first that a model can work by, see `policies_of`.
        right_context: frames of 80 ms that a chunk waits for (frames); those of the model's first tier if None.
        step_s: seconds of new audio between two attempts at the same speech.
        agreement: attempts that have to agree (local-agreement).
        border_s: a word that looks this close to the end of the audio has to wait (alignatt).
        wait_k: steps heard before the first word (wait-k).
        mask_words: last words of an attempt that are not shown (retranslation).
        max_open_s: speech without a pause is cut behind written text when it gets longer than this.
        max_behind_s: seconds of audio that may wait; more is an overload.
        overload: "coarsen" leaves out attempts at unfinished speech until it has caught up; "drop" the oldest speech
            that waits, and it says how much; "refuse" takes no more audio in.
        max_waiting_s: more audio than this is not taken in: whoever sends it has to wait.
    """

    policy: Policy = "auto"
    right_context: int | None = None
    step_s: float = 1.0
    agreement: int = 2
    border_s: float = 0.4
    wait_k: int = 3
    mask_words: int = 0
    max_open_s: float = 12.0
    max_behind_s: float = 10.0
    overload: Overload = "coarsen"
    max_waiting_s: float = 120.0

    def __post_init__(self) -> None:
        if self.right_context is not None:
            _at_least("right_context", self.right_context, 0)
        _one_of("policy", self.policy, POLICIES)
        _one_of("overload", self.overload, OVERLOADS)
        for name in ("step_s", "max_behind_s", "max_waiting_s"):
            _at_least(name, getattr(self, name), _LEAST_S)
        _at_least("max_open_s", self.max_open_s, 4.0)
        _at_least("border_s", self.border_s, 0.0)
        _at_least("mask_words", self.mask_words, 0)
        _at_least("wait_k", self.wait_k, 1)
        _at_least("agreement", self.agreement, 2)
        if self.max_waiting_s < self.max_behind_s:
            raise SprachbundError(
                f"max_waiting_s is {self.max_waiting_s} and max_behind_s {self.max_behind_s}; "
                "an overload has to come before audio is refused"
            )

    @property
    def commits(self) -> bool:
        """Whether text is written for good before its stretch of speech has ended."""
        return self.policy in ("local-agreement", "alignatt", "wait-k")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SprachbundError(f"{name} is {value!r}; choose one of {', '.join(known)}")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:  # NaN is not
        raise SprachbundError(f"{name} is {value}; give {least:g} or more")

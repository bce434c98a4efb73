"""Drafts that propose what a test asks for: what greedy search will write, its opposite, or anything."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sprachbund.decoding.drafts.base import NO_DRAFT_TOKEN, DecodingState, StatelessRun
from sprachbund.decoding.state import Hypothesis, whole_prompt
from sprachbund.models.base import Family, Memory, Target

Script = Callable[[int, int], int]
"""Row at the start, and position behind the prompt, to a draft token."""


@dataclass(kw_only=True)
class ScriptedRun(StatelessRun):
    """Proposes by a function of the row and the position; keeps what it was shown."""

    script: Script
    prompts: list[int]
    family: Family
    original: list[int] = field(default_factory=list)
    seen: list[DecodingState] = field(default_factory=list)
    check: Callable[[DecodingState], None] | None = None

    def __post_init__(self) -> None:
        self.original = list(range(len(self.prompts)))

    def propose(self, state: DecodingState, count: int) -> Tensor:
        if self.check is not None:
            self.check(state)
        written = [int(n) - self.prompts[o] for n, o in zip(state.lengths, self.original, strict=True)]
        drafted = [
            [self.script(o, n + k) if n > 0 else NO_DRAFT_TOKEN for k in range(count)]
            for o, n in zip(self.original, written, strict=True)
        ]
        return torch.tensor(drafted)

    def reorder(self, rows: Tensor) -> None:
        self.original = [self.original[r] for r in rows.tolist()]

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        self.reorder(rows)


@dataclass(kw_only=True, eq=False)
class ScriptedDraft:
    """A draft for whatever family."""

    script: Script
    name: str = "scripted"
    acceptance: dict[str, float] = field(default_factory=dict)
    num_draft_tokens: int | None = None
    typical_length: int | None = None
    check_rows: Callable[[DecodingState], None] | None = None

    def check(self, family: Family) -> None:
        """Fits everything."""

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> ScriptedRun:
        prompts = [len(whole_prompt(family, target)) for target in targets]
        return ScriptedRun(script=self.script, prompts=prompts, family=family, check=self.check_rows)


def knowing(rows: Sequence[Hypothesis], end_token: int) -> Script:
    """Always right: what the rows hold, and their end."""
    return lambda row, at: rows[row].tokens[at] if at < len(rows[row].tokens) else end_token


def wrong(rows: Sequence[Hypothesis], end_token: int, vocabulary_size: int) -> Script:
    """Never right."""
    right = knowing(rows, end_token)
    return lambda row, at: (right(row, at) + 1) % vocabulary_size

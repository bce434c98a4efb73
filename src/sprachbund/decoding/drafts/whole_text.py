"""Whole texts as drafts, one for each row: text that was written before is likely to be written again.

Drafting is looking up. Where the model writes something else, the draft goes on behind the position at which both agree
again. The native engine has the same rules in its kernels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sprachbund.decoding.drafts.base import NO_DRAFT_TOKEN, DecodingState
from sprachbund.decoding.state import whole_prompt
from sprachbund.engines.extension import native
from sprachbund.models.base import Family, Memory, Target

_AGREE = 2
"""Tokens by which the position in a text is found again; one, where two occur nowhere."""


class WholeTextDraft:
    """The texts of the next search; whoever searches sets them before it.

    Attributes:
        texts: tokens for each row of the next search, behind its prefix.
    """

    name = "whole-text"
    num_draft_tokens: int | None = None
    typical_length: int | None = None

    def __init__(self) -> None:
        self.texts: Sequence[Sequence[int]] = ()
        self.acceptance: dict[str, float] = {}

    def check(self, family: Family) -> None:
        """Tokens of the model's own texts fit it."""

    def start(
        self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int
    ) -> "WholeTextRun":
        """See `sprachbund.decoding.drafts.base.Draft`, arguments included."""
        return WholeTextRun(self.texts, [len(whole_prompt(family, target)) for target in targets])


class WholeTextRun:
    """Whole texts on the rows of one search.

    Args:
        texts: tokens for each of the R rows, without their prompts.
        prompts: (R,) tokens of their prompts; only a search outside the native engine needs them.
    """

    def __init__(self, texts: Sequence[Sequence[int]], prompts: Sequence[int] = ()) -> None:
        self._texts, self._prompts = [list(text) for text in texts], list(prompts)
        self._positions = [0] * len(self._texts)  # of the next draft token of each row
        self._read = list(prompts)  # tokens of each row that its position takes into account

    def native_draft(self, prompts: Sequence[int]) -> Any:
        """See `sprachbund.decoding.drafts.base.NativeRun`."""
        return native().TextDraft(self._texts, list(prompts))

    def propose(self, state: DecodingState, count: int) -> Tensor:
        """Draft tokens (R, k) behind the position of each row in its text."""
        rows = [
            self._behind(r, state.tokens[r, : state.lengths[r]].tolist(), count)
            for r in range(len(self._texts))
        ]
        longest = max(map(len, rows), default=0)
        padded = [[*row, *[NO_DRAFT_TOKEN] * (longest - len(row))] for row in rows]
        return state.on_device(np.array(padded, np.int64).reshape(len(rows), longest))

    def observe(self, last_query: Any) -> None:
        """Do nothing: the draft reads the text written so far."""

    def reorder(self, rows: Tensor) -> None:
        """Follow the rows."""
        order = rows.tolist()
        self._texts, self._prompts = [self._texts[r] for r in order], [self._prompts[r] for r in order]
        self._positions, self._read = [self._positions[r] for r in order], [self._read[r] for r in order]

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Follow the rows."""
        self.reorder(rows)

    def close(self) -> None:
        """Nothing to give back."""

    def _behind(self, row: int, tokens: list[int], count: int) -> list[int]:
        for end in range(self._read[row] + 1, len(tokens) + 1):
            self._positions[row] = self._find(row, tokens[self._prompts[row] : end])
        self._read[row] = max(self._read[row], len(tokens))
        return self._texts[row][self._positions[row] :][:count]

    def _find(self, row: int, written: list[int]) -> int:
        """The position in the text behind the last token written; the nearest to the expected one of several."""
        text, expected = self._texts[row], self._positions[row] + 1
        if text[expected - 1 : expected] == written[-1:]:
            return expected
        for many in range(min(_AGREE, len(written)), 0, -1):
            positions = [
                end for end in range(many, len(text) + 1) if text[end - many : end] == written[-many:]
            ]
            if positions:
                return min(positions, key=lambda position: (abs(position - expected), position))
        return expected  # as if the token stood in the place of the one that was expected

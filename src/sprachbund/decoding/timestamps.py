"""Timestamp tokens: which may come next, and how they cut a row of tokens into segments.

Rules of the Whisper decoder (arXiv 2212.04356, section 2.3 and 4.5): timestamps come in pairs around each
segment's text, never run backwards, and the first lies within the first second. Ours adds that none lies
behind the audio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sprachbund.models.family import Family

MAX_INITIAL_S = 1.0
"""Latest first timestamp; a later one tends to skip speech."""


@dataclass(frozen=True, kw_only=True)
class TimestampTokens:
    """The part of a vocabulary that means times: token `first + n` is n * `step_s` seconds."""

    first: int
    step_s: float

    def seconds(self, token: int) -> float:
        """Time that a timestamp token stands for."""
        return (token - self.first) * self.step_s

    def last_within(self, duration_s: float) -> int:
        """Token of the latest time inside `duration_s`."""
        return self.first + int(duration_s / self.step_s + 1e-6)


def timestamp_tokens(family: Family) -> TimestampTokens | None:
    """The timestamp tokens of a family; None when it has none.

    A family that has them offers, besides the protocol, `tokens.timestamps`: a range with one token per
    memory frame. One that has them and was not taught to write them says so by `has_timestamps`.
    """
    if not getattr(family, "has_timestamps", True):
        return None
    tokens = getattr(getattr(family, "tokens", None), "timestamps", None)
    return TimestampTokens(first=tokens[0], step_s=family.frame_s) if tokens else None


def forbid_timestamps(
    logits: Tensor, tokens: Tensor, *, times: TimestampTokens, latest: Tensor, end_token: int
) -> Tensor:
    """Logits (R, V), in which everything was set to -inf that the rules forbid after `tokens` (R, U).

    Args:
        logits: (R, V), other rules already applied; they are written to.
        tokens: (R, U) emitted so far.
        times: the timestamp tokens; they end the vocabulary.
        latest: (R,) last timestamp token allowed; a row with a value below `times.first` is without
            timestamps.
        end_token: id of the end token.
    """
    text, stamps = logits[:, : times.first], logits[:, times.first :]
    ids = torch.arange(times.first, logits.shape[1], device=logits.device)
    state = _PairState(tokens, times.first)
    bad = (ids < state.earliest(times.first)[:, None]) | (ids > latest[:, None]) | state.text_due[:, None]
    if tokens.shape[1] == 0:
        bad = bad | (ids > times.last_within(MAX_INITIAL_S))
    stamps.masked_fill_(bad, -torch.inf)
    timed = latest >= times.first
    no_text = timed & (state.opening | state.time_or_end_due)
    ends = logits[:, end_token].masked_fill(no_text & ~state.time_or_end_due, -torch.inf)
    _forbid(text, no_text)
    logits[:, end_token] = ends
    # Text is forbidden too where all timestamps together are likelier than the likeliest text token.
    _forbid(text, timed & (stamps.logsumexp(-1) > text.amax(-1)))
    return logits


def _forbid(logits: Tensor, rows: Tensor) -> None:
    if bool(rows.any()):  # most steps have none, and a pass over all logits is dear
        logits.masked_fill_(rows[:, None], -torch.inf)


class _PairState:
    """Where each row stands within its timestamp pairs."""

    def __init__(self, tokens: Tensor, first: int) -> None:
        num_rows, length = tokens.shape
        yes = torch.ones(num_rows, dtype=torch.bool, device=tokens.device)
        last = tokens[:, -1] >= first if length else ~yes
        second_last = tokens[:, -2] >= first if length > 1 else yes
        self.opening = yes if length == 0 else ~yes
        self.text_due = last & second_last
        self.time_or_end_due = last & ~second_last
        self._tokens = tokens

    def earliest(self, first: int) -> Tensor:
        """First timestamp (R,) that does not run backwards; segments are never empty."""
        if self._tokens.shape[1] == 0:
            return torch.full((self._tokens.shape[0],), first, device=self._tokens.device)
        latest_seen = self._tokens.clamp(min=first - 1).amax(1)
        return (latest_seen + (~self.time_or_end_due).long()).clamp(min=first)


def cut_by_timestamps(
    tokens: Sequence[int], times: TimestampTokens, duration_s: float
) -> list[tuple[float, float, list[int]]]:
    """Pieces (start_s, end_s, text tokens) of a row, in order, inside [0, `duration_s`], not overlapping.

    Text without a closing timestamp lasts to `duration_s`; text without an opening one starts where the last
    ended.
    """
    pieces: list[tuple[float, float, list[int]]] = []
    start_s, text = 0.0, list[int]()
    for token in tokens:
        if token < times.first:
            text.append(token)
            continue
        time_s = min(max(times.seconds(token), start_s), duration_s)
        if text:
            pieces.append((start_s, time_s, text))
            text = []
        start_s = time_s
    if text:
        pieces.append((start_s, duration_s, text))
    return pieces

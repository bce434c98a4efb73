"""The batch of hypotheses that a search extends, from their prompts to finished rows.

Shared by greedy, beam and speculative search. Rows of one memory are neighbours, and rows of one target within it.

Shapes: B memories, R rows, U tokens so far, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.decoding.hot_words import HotWords
from sprachbund.decoding.logits_process import LogitsProcessor, Suppressed
from sprachbund.decoding.options import DecodingOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.nn.decoder import DecoderCache

PROMPT_CHUNK = 16
"""Prompt tokens per step: logits of a whole long prompt over a large vocabulary would fill the memory."""


@dataclass(frozen=True, kw_only=True)
class TokenFrames:
    """Frames at which a search by frames wrote the tokens of a row (N).

    Attributes:
        begins: the frame of the memory at which each was written.
        ends: the frame behind its last; its own where it has no duration.
        log_probabilities: log-probability of each token.
    """

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    log_probabilities: tuple[float, ...]

    def first(self, count: int) -> "TokenFrames":
        """Return the frames of the first `count` tokens."""
        return TokenFrames(
            begins=self.begins[:count],
            ends=self.ends[:count],
            log_probabilities=self.log_probabilities[:count],
        )


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A finished row.

    Attributes:
        tokens: tokens of the text, without prompt, the target's prefix and end token.
        log_probability: sum over the tokens and the end token, over the tokens that the logits processor allowed.
        finished: whether the row ended by itself; False when the limit on tokens cut it.
        no_speech_log_probability: log-probability of no speech, by the memory as seen at the first step; None in
            families without.
        score: score that a beam ranks by.
        frames: frames at which its tokens were written; None of attention decoders, and of a beam of CTC.
        others: the next best of a beam, best first, where they are wanted.
        temperature: temperature at which its tokens were drawn; 0 of greedy and beam search.
    """

    tokens: tuple[int, ...]
    log_probability: float
    finished: bool
    no_speech_log_probability: float | None
    score: float
    frames: TokenFrames | None = None
    others: "tuple[Hypothesis, ...]" = ()
    temperature: float = 0.0

    @property
    def mean_log_probability(self) -> float:
        """Per token, the end token included when there is one."""
        return self.log_probability / max(1, len(self.tokens) + self.finished)


def first_tokens(whole: Hypothesis, max_tokens: int | None) -> Hypothesis:
    """The first tokens of a text that was searched by frames, which know no limit, with the evidence for these alone.

    Args:
        whole: the whole text.
        max_tokens: most tokens; None for all. A text that has no more comes back as it is.
    """
    if max_tokens is None or len(whole.tokens) <= max_tokens:
        return whole
    if whole.frames is None:  # a beam adds up paths, in which no token has a log-probability of its own
        frames, log_probability = None, whole.mean_log_probability * max_tokens
    else:
        frames = whole.frames.first(max_tokens)
        log_probability = sum(frames.log_probabilities)
    return replace(
        whole,
        tokens=whole.tokens[:max_tokens],
        log_probability=log_probability,
        finished=False,
        frames=frames,
    )


def without_bonus(hypothesis: Hypothesis, hot_words: HotWords) -> Hypothesis:
    """The same with what the model thinks of it as its log-probability; the score that it was ranked by stays."""
    bonus = hot_words.bonus(hypothesis.tokens, ended=hypothesis.finished)
    others = tuple(without_bonus(other, hot_words) for other in hypothesis.others)
    return replace(hypothesis, log_probability=hypothesis.log_probability - bonus, others=others)


@dataclass(kw_only=True)
class HypothesisBatch:
    """Unfinished hypotheses: one row per memory and target, or several after `repeat`.

    Attributes:
        cache: holds the prompts and, from the second step on, the tokens.
        logits: (R, V) after the last token; after `reorder` and `keep` not before the next `advance`.
        tokens: (R, U) emitted so far.
        processor: masks the tokens that may not come next.
        no_speech: one entry per row at the start.
        num_memories: not yet dropped.
    """

    cache: DecoderCache
    logits: Tensor
    tokens: Tensor
    processor: LogitsProcessor
    no_speech: list[float | None]
    num_memories: int

    def advance(self, family: Family, tokens: Tensor, finished: NDArray[np.bool_]) -> None:
        """Append a token to every row and run the decoder on it.

        Args:
            family: the model.
            tokens: (R,).
            finished: (R,) rows for which the cache does not grow.
        """
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)
        self.logits = family.step(tokens[:, None], self.cache)[:, -1]
        if finished.any():
            self.cache.rewind(self.cache.lengths - torch.from_numpy(finished).to(self.tokens.device).long())

    def repeat(self, times: int) -> None:
        """Make `times` neighbouring rows of every row."""
        if times > 1:
            rows = torch.arange(self.cache.num_rows, device=self.tokens.device).repeat_interleave(times)
            self.reorder(rows)
            self.logits = self.logits[rows]

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by row `rows[r]`; rows may only come from the same memory."""
        self.cache.reorder(rows)
        self._take(rows)

    def keep(self, memories: Tensor) -> None:
        """Drop every memory that is not among the indices `memories` (b,), with its rows."""
        group = self.cache.num_rows // self.num_memories
        rows = (memories[:, None] * group + torch.arange(group, device=memories.device)).flatten()
        self.cache.keep(memories)
        self.num_memories = len(memories)
        self._take(rows)

    def _take(self, rows: Tensor) -> None:
        self.tokens = self.tokens[rows]
        self.processor.take(rows)


def whole_prompt(family: Family, target: Target) -> list[int]:
    """Tokens that come before the first new one: the family's prompt, and the prefix of the text."""
    return [*family.prompt(target), *target.prefix]


def should_drop(finished: Tensor | NDArray[np.bool_]) -> bool:
    """Whether so many memories (B,) are finished that copying the others costs less than computing them all."""
    return int(finished.sum()) * 4 >= finished.shape[0]


def unfinished_rows(
    finished: NDArray[np.bool_], num_memories: int, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """The memories to keep when finished ones are dropped.

    Args:
        finished: (R,).
        num_memories: B.
        device: device of the result.

    Returns:
        Memories (b,) with an unfinished row, and their rows (r,); None where dropping the others does not pay.
    """
    by_memory = finished.reshape(num_memories, -1)
    done = np.asarray(by_memory.all(1))
    if not should_drop(done):
        return None
    left = (~done).nonzero()[0]
    rows = np.arange(finished.size).reshape(by_memory.shape)[left].flatten()
    return torch.from_numpy(left).to(device), torch.from_numpy(rows).to(device)


def start_batch(
    family: Family,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions,
    durations_s: Sequence[float] | None,
) -> HypothesisBatch:
    """Run the prompts over the memory; one row per memory and target.

    Args:
        family: the model.
        memory: memory of B utterances.
        targets: B lists of equal length.
        options: limits and suppressed tokens.
        durations_s: (B,) seconds of audio, which bound the timestamps; the model's window if None.

    Raises:
        SprachbundError: a prompt that leaves no room for text.
    """
    flat = [target for group in targets for target in group]
    num_targets = len(targets[0])
    prompts = [whole_prompt(family, target) for target in flat]
    limits = [_token_limit(family, prompt, options) for prompt in prompts]
    capacity = max(len(p) + n for p, n in zip(prompts, limits, strict=True))
    cache = family.start(memory, rows_per_memory=num_targets, capacity=capacity, targets=flat)
    device = memory.states.device
    # Length of each prompt without the caller's context: the no-speech probability is read at its first token.
    own = [
        len(family.prompt(_without_context(t))) + len(t.prefix) if t.context else len(p)
        for t, p in zip(flat, prompts, strict=True)
    ]
    firsts = [len(prompt) - n for prompt, n in zip(prompts, own, strict=True)]
    logits, first_logits = _run_prompts(family, cache, prompts, firsts)
    no_speech = family.no_speech_log_prob(first_logits)
    seconds = [
        durations_s[i // num_targets] if durations_s else family.max_window_s for i in range(len(flat))
    ]
    return HypothesisBatch(
        cache=cache,
        logits=logits,
        tokens=torch.zeros(len(flat), 0, dtype=torch.long, device=device),
        processor=_logits_processor(family, flat, limits, seconds, options, device),
        no_speech=[None] * len(flat) if no_speech is None else no_speech.tolist(),
        num_memories=len(targets),
    )


def _logits_processor(
    family: Family,
    targets: Sequence[Target],
    limits: Sequence[int],
    seconds: Sequence[float],
    options: DecodingOptions,
    device: torch.device,
) -> LogitsProcessor:
    masks = {target: family.suppressed(target) for target in set(targets)}
    times = family.capabilities.timestamps if any(target.timestamps for target in targets) else None
    latest = [
        times.last_within(duration_s) if times and target.timestamps else -1
        for target, duration_s in zip(targets, seconds, strict=True)
    ]
    return LogitsProcessor(
        begin_suppressed=_begin_suppressed(family, masks[targets[0]], device),
        begun=torch.tensor([bool(target.prefix) for target in targets], device=device),
        suppressed=Suppressed.of([masks[target] for target in targets], device),
        limits=torch.tensor(limits, device=device),
        latest=torch.tensor(latest, device=device),
        times=times,
        end_token=family.end_token,
        min_tokens=options.min_tokens,
        hot_words=HotWords.of(family, options),
    )


def _begin_suppressed(family: Family, like: Tensor, device: torch.device) -> Tensor | None:
    """Tokens (V,) that a row never begins with, of as many as the mask `like` has."""
    tokens = family.capabilities.begin_suppressed
    if not tokens:
        return None
    mask = torch.zeros_like(like, device=device)
    mask[list(tokens)] = True
    return mask


def _run_prompts(
    family: Family, cache: DecoderCache, prompts: Sequence[Sequence[int]], firsts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Logits (R, V) after each row's prompt, and after the token at index `firsts[r]` of it.

    Prompts of different lengths run together, padded on the right; what the padding wrote is rewound.
    """
    device = cache.lengths.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(p)) for p in prompts], batch_first=True).to(
        device
    )
    wanted = {"last": lengths - 1, "first": torch.tensor(list(firsts), device=device)}
    logits_at: dict[str, Tensor] = {}
    for begin in range(0, padded.shape[1], PROMPT_CHUNK):
        logits = family.step(padded[:, begin : begin + PROMPT_CHUNK], cache)
        for name, positions in wanted.items():
            inside = (positions >= begin) & (positions < begin + logits.shape[1])
            index = (positions - begin).clamp(0, logits.shape[1] - 1)
            here = logits[torch.arange(len(prompts), device=device), index]
            logits_at[name] = torch.where(inside[:, None], here, logits_at.get(name, here))
    cache.rewind(lengths)
    return logits_at["last"], logits_at["first"]


def _token_limit(family: Family, prompt: Sequence[int], options: DecodingOptions) -> int:
    room = family.max_tokens - len(prompt)
    if room < max(1, options.min_tokens):
        raise SprachbundError(
            f"the prompt takes {len(prompt)} of the model's {family.max_tokens} tokens and leaves {room}; "
            "shorten the prompt, or ask for fewer tokens at least"
        )
    return room if options.max_tokens is None else min(room, options.max_tokens)


def _without_context(target: Target) -> Target:
    return Target(language=target.language, source=target.source, timestamps=target.timestamps)

"""Times of words: dynamic time warping over the decoder's cross-attention, as in the code of arXiv 2212.04356.

Shapes: B memories, R rows, N tokens of a row with its end token, T memory frames, H chosen heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.decoding.result import Word
from sprachbund.decoding.state import Hypothesis, whole_prompt
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Alignment, Family, Memory, Target
from sprachbund.nn.decoder import DecoderCache
from sprachbund.text.languages import writes_spaces

MEDIAN_WIDTH = 7
"""Frames of the median filter over attention weights."""

_CHUNK = 16  # tokens per step; bounds the memory of logits over a large vocabulary


@dataclass(frozen=True, kw_only=True)
class AlignedTokens:
    """Text tokens of a row with the second each begins at (one more entry: the end) and its log-probability.

    `ends_s` are the seconds at which they end, where these are known; else each ends where the next begins.
    """

    tokens: tuple[int, ...]
    starts_s: tuple[float, ...]
    log_probabilities: tuple[float, ...]
    ends_s: tuple[float, ...] | None = None


def warp(cost: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cheapest monotone path through `cost` (N, T) from the first corner to the last.

    Steps go one down, one right, or both. Works along anti-diagonals, whose cells do not depend on each
    other.

    Returns:
        Row indices and column indices of the path, both (P,).
    """
    num_rows, num_columns = cost.shape
    total = np.full((num_rows + num_columns + 1, num_rows + 1), np.inf)
    step = np.zeros((num_rows + num_columns - 1, num_rows), np.int8)
    total[0, 0] = 0.0  # total[d + 2, i + 1] is the cost of reaching cell (i, d - i)
    for d in range(num_rows + num_columns - 1):
        i = np.arange(max(0, d - num_columns + 1), min(num_rows - 1, d) + 1)
        before = np.stack([total[d, i], total[d + 1, i], total[d + 1, i + 1]])
        step[d, i] = before.argmin(0)
        total[d + 2, i + 1] = cost[i, d - i] + before.min(0)
    return _trace(step, num_rows, num_columns)


def _trace(
    step: NDArray[np.int8], num_rows: int, num_columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    i, j = num_rows - 1, num_columns - 1
    path = [(i, j)]
    while i > 0 or j > 0:
        move = step[i + j, i]
        i, j = i - (move != 2), j - (move != 1)
        path.append((i, j))
    rows, columns = np.array(path[::-1], np.int64).T
    return rows, columns


@torch.inference_mode()
def align(
    family: Family,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    tokens: Sequence[Sequence[Sequence[int]]],
    durations_s: Sequence[float],
) -> list[list[AlignedTokens]]:
    """Times of the text tokens of every row; one more pass of the decoder for all rows together.

    Args:
        family: the model; heads that are known to follow the speech are used where it has a list of them.
        memory: B encoded utterances.
        targets: B lists of n, asked without timestamps.
        tokens: B lists of n rows of text tokens, no timestamps among them.
        durations_s: (B,) seconds of audio in each memory.

    Raises:
        SprachbundError: a decoder that does not show which speech it reads.
    """
    num_targets = len(targets[0])
    rows = [tuple(row) for group in tokens for row in group]
    weights, log_probs = _read(family, memory, targets, rows)
    frame_s = alignment_of(family).frame_s
    aligned = []
    for r, row in enumerate(rows):
        starts_s = _start_times(weights[r], durations_s[r // num_targets], frame_s)
        spoken = tuple(log_probs[r][:-1].tolist())
        aligned.append(AlignedTokens(tokens=row, starts_s=starts_s, log_probabilities=spoken))
    return [aligned[i : i + num_targets] for i in range(0, len(aligned), num_targets)]


def aligned_by_frames(family: Family, hypothesis: Hypothesis, duration_s: float) -> AlignedTokens:
    """Times of the tokens of a row that a search by frames has written: those of the frames.

    Args:
        family: family that wrote it.
        hypothesis: hypothesis of a transducer, of greedy CTC, or of a frame decoder.
        duration_s: seconds of audio in the memory.

    Raises:
        SprachbundError: the family gives words no times.
    """
    frame_s, frames = alignment_of(family).frame_s, hypothesis.frames
    assert frames is not None  # `check_options` has refused a beam of CTC
    starts = [min(frame * frame_s, duration_s) for frame in frames.begins]
    return AlignedTokens(
        tokens=hypothesis.tokens,
        starts_s=(*starts, duration_s),
        log_probabilities=frames.log_probabilities,
        ends_s=tuple(min(frame * frame_s, duration_s) for frame in frames.ends),
    )


@torch.inference_mode()
def attended_s(
    family: Family,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    tokens: Sequence[Sequence[Sequence[int]]],
    durations_s: Sequence[float],
) -> list[list[tuple[float, ...]]]:
    """The second of the audio with the most attention as the decoder writes each token (arXiv 2305.11408).

    Arguments are those of `align`. Heads are averaged first; only frames within the audio count.
    """
    num_targets = len(targets[0])
    rows = [tuple(row) for group in tokens for row in group]
    weights, _ = _read(family, memory, targets, rows)
    frame_s = alignment_of(family).frame_s
    seconds = []
    for r, row in enumerate(rows):
        num_frames = max(1, min(weights[r].shape[2], round(durations_s[r // num_targets] / frame_s)))
        frames = weights[r][:, : len(row), :num_frames].mean(0).argmax(-1)
        seconds.append(tuple((frames * frame_s).tolist()))
    return [seconds[i : i + num_targets] for i in range(0, len(seconds), num_targets)]


@dataclass(frozen=True, kw_only=True)
class AttendedWord:
    """A word of a translated text, and the character of the source text that it was translated from."""

    text: str
    probability: float
    character: int


@torch.inference_mode()
def attended_words(
    family: Family,
    memory: Memory,
    targets: Sequence[Target],
    tokens: Sequence[Sequence[int]],
    texts: Sequence[str],
) -> list[list[AttendedWord]]:
    """Words of the source text that got the most attention as each word of the translated texts was written.

    Args:
        family: a model with `Capabilities.token_offsets`; heads are averaged, those of the upper half of the layers.
        memory: B encoded texts.
        targets: (B,), what each was translated to.
        tokens: (B,) rows of the translations.
        texts: (B,), as they were encoded.
    """
    weights, log_probs, offsets = _read_texts(family, memory, targets, tokens, texts)
    attended = []
    for r, target in enumerate(targets):
        words, token = [], 0
        for text, count in split_words(family, tokens[r], target.language):
            own = slice(token, token + count)
            character = offsets[r][int(weights[r][own].mean(0).argmax())][0]
            probability = float(log_probs[r][own].mean().exp())
            words.append(AttendedWord(text=text, probability=probability, character=character))
            token += count
        attended.append(words)
    return attended


@torch.inference_mode()
def attended_characters(
    family: Family,
    memory: Memory,
    targets: Sequence[Target],
    tokens: Sequence[Sequence[int]],
    texts: Sequence[str],
) -> list[list[int]]:
    """Ends of the parts of the text that got the most attention as each token of the translated texts was written.

    That is the index of the last character of the part. Arguments are those of `attended_words`; tokens are those
    behind the prefix of their target.
    """
    weights, _, offsets = _read_texts(family, memory, targets, tokens, texts)
    return [
        [max(0, own[index][1] - 1) for index in read[: len(row)].argmax(-1).tolist()]
        for read, row, own in zip(weights, tokens, offsets, strict=True)
    ]


def _read_texts(
    family: Family,
    memory: Memory,
    targets: Sequence[Target],
    tokens: Sequence[Sequence[int]],
    texts: Sequence[str],
) -> tuple[list[Tensor], list[Tensor], list[list[tuple[int, int]]]]:
    """As `_read`, the attention (N, S) averaged over heads and 0 off the text, and the characters of its S frames."""
    offsets_of = family.capabilities.token_offsets
    assert offsets_of is not None  # whoever asks for words with times, or for AlignAtt, has seen to it
    weights, log_probs = _read(family, memory, [[target] for target in targets], tokens)
    offsets = offsets_of.source_offsets(texts)
    read = []
    for own, pieces in zip(weights, offsets, strict=True):
        in_text = torch.tensor([end > begin for begin, end in pieces])
        read.append(own.mean(0)[:, : len(pieces)].masked_fill(~in_text, 0.0))
    return read, log_probs, offsets


def alignment_of(family: Family) -> Alignment:
    """The alignment of a family. Raises SprachbundError where it has none."""
    if (alignment := family.capabilities.alignment) is None:
        raise SprachbundError(
            f"the model {family.name} does not show which speech it reads, so words get no times; leave them out"
        )
    return alignment


def _read(
    family: Family, memory: Memory, targets: Sequence[Sequence[Target]], rows: Sequence[Sequence[int]]
) -> tuple[list[Tensor], list[Tensor]]:
    """For every row of N - 1 text tokens the cross-attention (H, N, T) and log-probabilities (N,) as it was written.

    The last of the N is the end, whose log-probability means nothing.
    """
    flat = [target for group in targets for target in group]
    prompts = [whole_prompt(family, target) for target in flat]
    wholes = [[*prompt, *row] for prompt, row in zip(prompts, rows, strict=True)]
    cache = family.start(
        memory, rows_per_memory=len(targets[0]), capacity=max(map(len, wholes)), targets=flat
    )
    weights, log_probs = _teacher_forced(family, cache, wholes)
    written = [slice(len(p) - 1, len(whole)) for p, whole in zip(prompts, wholes, strict=True)]
    return (
        [weights[r, :, positions] for r, positions in enumerate(written)],
        [log_probs[r, positions] for r, positions in enumerate(written)],
    )


def _teacher_forced(family: Family, cache: DecoderCache, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Cross-attention (R, H, Q, T) at every position of `rows`, and the log-probability (R, Q) of what
    follows."""
    device = cache.lengths.device
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    following = torch.cat([padded[:, 1:], padded[:, :1]], dim=1)
    weights, log_probs = [], []
    for begin in range(0, padded.shape[1], _CHUNK):
        layers: list[Tensor] = []
        logits = family.step(padded[:, begin : begin + _CHUNK], cache, layers)
        nexts = following[:, begin : begin + _CHUNK, None]
        log_probs.append(logits.float().log_softmax(-1).gather(-1, nexts)[..., 0])
        weights.append(chosen_heads(family, layers, len(rows)))
    return torch.cat(weights, dim=2).cpu(), torch.cat(log_probs, dim=1).cpu()


def chosen_heads(family: Family, layers: list[Tensor], num_rows: int) -> Tensor:
    """Attention of the heads that align (R, H, Q, T); of all heads of the upper half of layers where none are listed.

    Args:
        family: the model, which may list its heads.
        layers: of each layer (B, all heads, R/B * Q, T).
        num_rows: R.
    """
    by_row = [_by_row(w, num_rows) for w in layers]
    alignment = family.capabilities.alignment  # a translator of texts has none
    if alignment is not None and (listed := alignment.heads):
        return torch.stack([by_row[layer][:, head] for layer, head in listed], dim=1)
    return torch.cat(by_row[len(by_row) // 2 :], dim=1)


def _by_row(weights: Tensor, num_rows: int) -> Tensor:
    num_memories, num_heads, _, num_frames = weights.shape
    group = num_rows // num_memories
    split = weights.float().reshape(num_memories, num_heads, group, -1, num_frames)
    return split.transpose(1, 2).reshape(num_rows, num_heads, -1, num_frames)


def _start_times(weights: Tensor, duration_s: float, frame_s: float) -> tuple[float, ...]:
    """Seconds at which each of the N tokens begins, from attention weights (H, N, T)."""
    num_frames = min(weights.shape[2], max(1, round(duration_s / frame_s)))
    heard = weights[:, :, :num_frames]
    heard = heard / heard.sum(-1, keepdim=True).clamp(min=1e-12)
    deviation, mean = torch.std_mean(heard, dim=1, keepdim=True, correction=0)
    smooth = median_filter((heard - mean) / deviation.clamp(min=1e-12), MEDIAN_WIDTH)
    rows, columns = warp(-smooth.mean(0).double().numpy())
    first = columns[np.searchsorted(rows, np.arange(weights.shape[1]))]
    return tuple(min(float(frame) * frame_s, duration_s) for frame in first)


def median_filter(x: Tensor, width: int) -> Tensor:
    """Median over `width` (odd) neighbours along the last dimension; the edges are repeated outwards."""
    before = x[..., :1].expand(*x.shape[:-1], width // 2)
    after = x[..., -1:].expand(*x.shape[:-1], width // 2)
    return torch.cat([before, x, after], dim=-1).unfold(-1, width, 1).median(-1).values


def split_words(family: Family, tokens: Sequence[int], language: str) -> list[tuple[str, int]]:
    """Split text tokens into words: (text, number of tokens), in order; every token belongs to a word.

    A word starts at a space, or, in languages written without spaces, at every piece of text; punctuation belongs to
    the word before it. Works on decoded prefixes, and so with every tokenizer.

    Args:
        family: decodes the tokens.
        tokens: tokens of the text, no timestamps among them.
        language: language of the text, as a BCP-47 tag.
    """
    spaced = writes_spaces(language)
    words: list[list[str | int]] = []
    seen, pending = "", 0
    for end in range(1, len(tokens) + 1):
        text, pending = family.decode_text(tokens[:end]), pending + 1
        piece = text[len(seen) :]
        if not piece.strip() or text.endswith("\ufffd"):  # bytes of a character still to come
            continue
        new = piece[0].isspace() or (not spaced and any(c.isalnum() for c in piece))
        if new or not words:
            words.append([piece, pending])
        else:
            words[-1] = [str(words[-1][0]) + piece, int(words[-1][1]) + pending]
        seen, pending = text, 0
    if words:
        words[-1][1] = int(words[-1][1]) + pending
    return [(str(text).strip(), int(count)) for text, count in words]


def timed_words(
    family: Family,
    aligned: AlignedTokens,
    language: str,
    *,
    first: int,
    count: int,
    start_s: float,
    end_s: float,
) -> tuple[Word, ...]:
    """Words of some of the aligned tokens, with monotone times in seconds from the start of the memory.

    Args:
        family: decodes the tokens.
        aligned: all text tokens of the row.
        language: language of the text, as a BCP-47 tag.
        first: index of the first token.
        count: number of tokens.
        start_s: no word begins before.
        end_s: no word ends after.
    """
    words = []
    latest_s, token = start_s, first
    for text, num_tokens in split_words(family, aligned.tokens[first : first + count], language):
        begin_s = min(max(aligned.starts_s[token], latest_s), end_s)
        log_probs = aligned.log_probabilities[token : token + num_tokens]
        token += num_tokens
        until_s = aligned.starts_s[token] if aligned.ends_s is None else aligned.ends_s[token - 1]
        latest_s = min(max(until_s, begin_s), end_s)
        probability = float(np.exp(np.mean(log_probs)))
        words.append(Word(start_s=begin_s, end_s=latest_s, text=text, probability=probability))
    return tuple(words)

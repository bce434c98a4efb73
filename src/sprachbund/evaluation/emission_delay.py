"""The delay between the end of a word and the text of a streaming transducer, measured; its tier promises a part.

A token comes at a frame, and the frame is there when its chunk is whole. So the delay behind the end of a word has two
parts: how many frames the model waits, which training decides (and FastEmit, arXiv 2010.11148, shortens), and what is
missing of the chunk, which is at most the tier's latency (arXiv 2312.17279). The clock is that of the stream; what
computing adds is not in it. Shapes: D width of the encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray

from sprachbund.audio.constants import HOP, SAMPLE_RATE, WINDOW
from sprachbund.decoding.transducer import TransducerHypothesis, start_by_frames, transducer_greedy
from sprachbund.errors import SprachbundError
from sprachbund.models.base import StreamingTransducer, Target
from sprachbund.models.conformer.model import Conformer
from sprachbund.nn.streaming_conformer import SUBSAMPLING, Tier

_WORD_BEGINS = "\u2581"
_AHEAD_S = WINDOW / 2 / SAMPLE_RATE  # of a mel frame's centre


@dataclass(frozen=True, kw_only=True)
class SpokenWord:
    """A word and when it ends, as an alignment of the speech says."""

    text: str
    end_s: float


@dataclass(frozen=True, kw_only=True)
class TokenDelay:
    """A token of a word that was written as it was said.

    Attributes:
        word: it belongs to.
        spoken_s: end of the word.
        frame_s: time at which the frame of the token has been heard.
        heard_s: time at which the whole chunk has been heard, which the text waits for.
    """

    word: str
    spoken_s: float
    frame_s: float
    heard_s: float

    @property
    def delay_s(self) -> float:
        """Seconds from the end of the word to the token; negative where the model knew before."""
        return self.heard_s - self.spoken_s

    @property
    def chunk_s(self) -> float:
        """Part of the delay that is due to the chunk."""
        return self.heard_s - self.frame_s


@dataclass(frozen=True, kw_only=True)
class EmissionDelay:
    """Delays of many tokens under one tier.

    Attributes:
        right_context: right context of the tier.
        promised_s: the tier's latency.
        num_words: words that were spoken.
        num_written: words of these, written as they were said; the others have no delay.
        tokens: tokens of the words written.
    """

    right_context: int
    promised_s: float
    num_words: int
    num_written: int
    tokens: tuple[TokenDelay, ...]

    def to_dict(self) -> dict[str, float | int | None]:
        """Means and quantiles in seconds; None where nothing was written."""
        delays = [token.delay_s for token in self.tokens]
        quantiles = np.quantile(delays, (0.5, 0.9)) if delays else (None, None)
        return {
            "right_context": self.right_context,
            "promised_s": self.promised_s,
            "num_words": self.num_words,
            "num_written": self.num_written,
            "num_tokens": len(delays),
            "mean_s": fmean(delays) if delays else None,
            "median_s": None if quantiles[0] is None else float(quantiles[0]),
            "p90_s": None if quantiles[1] is None else float(quantiles[1]),
            "mean_chunk_s": fmean(token.chunk_s for token in self.tokens) if delays else None,
            "most_chunk_s": max((token.chunk_s for token in self.tokens), default=None),
        }


def chunk_latency_s(tier: Tier) -> float:
    """Return the latency that a tier promises: seconds of a chunk."""
    return tier.chunk * SUBSAMPLING * HOP / SAMPLE_RATE


def emission_delay(
    model: Conformer,
    speech: Sequence[tuple[NDArray[np.float32], Sequence[SpokenWord]]],
    target: Target,
    tier: Tier,
) -> EmissionDelay:
    """Measure when tokens come, by greedy search.

    Args:
        model: a conformer with a streaming encoder and a transducer.
        speech: 16 kHz samples (num_samples,) of recordings, and their words in order.
        target: the language spoken: delays are of words that were said.
        tier: one of the model's.

    Raises:
        SprachbundError: a model that does not write by frames, or words after the end of a recording.
    """
    if (streaming := model.capabilities.streaming) is None:
        raise SprachbundError("emission delay is of streaming transducers; this model is another kind")
    delays, num_words, num_written = list[TokenDelay](), 0, 0
    for samples, words in speech:
        duration_s = len(samples) / SAMPLE_RATE
        if words and words[-1].end_s > duration_s + 1e-6:
            raise SprachbundError(
                f"{words[-1].text!r} ends at {words[-1].end_s} s, after its recording of {duration_s} s"
            )
        hypothesis = _written(model, streaming, samples, target, tier)
        pairs = _same_words(model, hypothesis, words)
        delays += [_token_delay(word, frame, tier, duration_s) for word, frames in pairs for frame in frames]
        num_words, num_written = num_words + len(words), num_written + len(pairs)
    return EmissionDelay(
        right_context=tier.right,
        promised_s=chunk_latency_s(tier),
        num_words=num_words,
        num_written=num_written,
        tokens=tuple(delays),
    )


@torch.inference_mode()
def _written(
    model: Conformer,
    streaming: StreamingTransducer,
    samples: NDArray[np.float32],
    target: Target,
    tier: Tier,
) -> TransducerHypothesis:
    """Of one pass over the whole, which is what the stream gives under this tier."""
    features = model.features([samples])
    states, num_frames = streaming.encoder(features.values, features.num_frames, tier=tier)
    start = start_by_frames(model, [target])
    if (fuse := model.capabilities.fuse_language) is not None:
        states = fuse(states, [target])
    (path,), _ = transducer_greedy(streaming.transducer, states, num_frames, start)
    return path


def _token_delay(word: SpokenWord, frame: int, tier: Tier, duration_s: float) -> TokenDelay:
    last = (
        (frame // tier.chunk + 1) * tier.chunk - 1
    ) * SUBSAMPLING  # mel frame that the chunk's last frame needs
    frame_s, heard_s = (n * HOP / SAMPLE_RATE + _AHEAD_S for n in (frame * SUBSAMPLING, last))
    return TokenDelay(
        word=word.text,
        spoken_s=word.end_s,
        frame_s=min(frame_s, duration_s),
        heard_s=min(heard_s, duration_s),  # the end of a recording ends its last chunk
    )


def _same_words(
    model: Conformer, hypothesis: TransducerHypothesis, words: Sequence[SpokenWord]
) -> list[tuple[SpokenWord, tuple[int, ...]]]:
    """Words that were written as they were said, and the frames of their tokens."""
    import jiwer

    written = _words(model, hypothesis)
    if not written or not words:
        return []
    said = [_folded(word.text) for word in words]
    pairs = jiwer.process_words(" ".join(said), " ".join(_folded(text) for text, _ in written)).alignments[0]
    return [
        (words[pair.ref_start_idx + i], written[pair.hyp_start_idx + i][1])
        for pair in pairs
        if pair.type == "equal"
        for i in range(pair.ref_end_idx - pair.ref_start_idx)
    ]


def _folded(word: str) -> str:
    """In small letters without punctuation, and one word whatever it holds."""
    kept = "".join(letter for letter in word.casefold() if letter.isalnum())
    return kept or "_"


def _words(model: Conformer, hypothesis: TransducerHypothesis) -> list[tuple[str, tuple[int, ...]]]:
    """Written words and the frames of their tokens; language tokens and the like are left out."""
    grouped: list[tuple[list[int], list[int]]] = []
    for token, frame in zip(hypothesis.tokens, hypothesis.frames, strict=True):
        if not grouped or model.tokenizer.piece(token).startswith(_WORD_BEGINS):
            grouped.append(([], []))
        grouped[-1][0].append(token)
        grouped[-1][1].append(frame)
    texts = [(model.decode_text(tokens).strip(), tuple(frames)) for tokens, frames in grouped]
    return [(text, frames) for text, frames in texts if text]

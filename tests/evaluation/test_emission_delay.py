"""Delays planted by hand, and the moment of every token against a stream that is fed a few samples at a time."""

import numpy as np
import pytest
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.features import LogMelStream
from sprachbund.decoding.transducer import TransducerHypothesis, start_by_frames, transducer_greedy
from sprachbund.errors import SprachbundError
from sprachbund.evaluation import emission_delay as module
from sprachbund.evaluation.emission_delay import SpokenWord, chunk_latency_s, emission_delay
from sprachbund.models.base import Target
from sprachbund.models.io import load
from sprachbund.nn.streaming_conformer import LEAD, SUBSAMPLING, StreamingEncoder
from tests.streaming.test_by_frames import tiny_transducer

TARGET = Target(language="de")
SILENCE = np.zeros(4 * SAMPLE_RATE, np.float32)


def planted(model, monkeypatch, *words: tuple[str, int]) -> None:
    """Let the model write these words, all tokens of a word at a frame."""
    tokens, frames = [], []
    for text, frame in words:
        own = model.tokenizer.encode(text)
        tokens, frames = tokens + own, frames + [frame] * len(own)
    result = TransducerHypothesis(tokens=tuple(tokens), frames=tuple(frames))
    monkeypatch.setattr(module, "_written", lambda *_: result)


def test_delays_that_were_planted(monkeypatch):
    """Frame 9 is heard at 9 * 80 + 12.5 ms; the last frame of its chunk of 7 at 1040 + 12.5 ms, with mel frame 104."""
    model = tiny_transducer()
    planted(model, monkeypatch, ("Sie", 9), ("Montag", 20), ("zwei", 30))
    words = [
        SpokenWord(text=text, end_s=end) for text, end in (("sie,", 0.5), ("Mittag", 1.5), ("Zwei", 2.0))
    ]
    (tier,) = (each for each in model.encoder.tiers if each.right == 6)
    result = emission_delay(model, [(SILENCE, words)], TARGET, tier)
    assert (result.num_words, result.num_written, result.promised_s) == (3, 2, 0.56)
    first, last = result.tokens[0], result.tokens[-1]
    assert first.frame_s == pytest.approx(0.7325)
    assert first.delay_s == pytest.approx(1.0525 - 0.5)
    assert first.chunk_s == pytest.approx(0.32)
    assert last.delay_s == pytest.approx(34 * 8 * 0.01 + 0.0125 - 2.0)
    scores = result.to_dict()
    assert scores["mean_s"] == pytest.approx(np.mean([token.delay_s for token in result.tokens]))
    assert scores["num_tokens"] == len(result.tokens)


def test_nothing_written_has_no_delay(monkeypatch):
    model = tiny_transducer()
    planted(model, monkeypatch)
    words = [SpokenWord(text="guten", end_s=0.5)]
    scores = emission_delay(model, [(SILENCE, words)], TARGET, model.encoder.tiers[0]).to_dict()
    assert (scores["num_words"], scores["num_written"], scores["mean_s"], scores["most_chunk_s"]) == (
        1,
        0,
        None,
        None,
    )


@pytest.mark.parametrize("right", [6, 1, 0])
@torch.no_grad()
def test_moments_are_those_of_a_stream(right):
    """Fed 40 samples at a time: a token is there at the block with which its chunk is whole."""
    model = tiny_transducer()
    encoder = model.encoder
    assert isinstance(encoder, StreamingEncoder)
    (tier,) = (each for each in encoder.tiers if each.right == right)
    samples = np.random.default_rng(5).normal(0, 0.1, 2 * SAMPLE_RATE).astype(np.float32)
    stream, waiting, block = LogMelStream(40), torch.zeros(LEAD, 40), 40
    state, writer, size = encoder.start(1, tier), start_by_frames(model, [TARGET]), tier.chunk * SUBSAMPLING
    moments = []
    for begin in range(0, len(samples), block):
        waiting = torch.cat([waiting, stream.push(samples[begin : begin + block])])
        while len(waiting) >= size:
            states, n, state = encoder.stream(waiting[None, :size], torch.tensor([size]), state, tier)
            (result,), writer = transducer_greedy(model.transducer, states, n, writer)
            moments += [(begin + block) / SAMPLE_RATE] * len(result.tokens)
            waiting = waiting[size:]
    hypothesis = module._written(model, model.streaming, samples, TARGET, tier)
    word = SpokenWord(text="x", end_s=0.0)
    expected = [module._token_delay(word, frame, tier, 2.0).heard_s for frame in hypothesis.frames]
    assert len(moments) > 5
    np.testing.assert_allclose(moments, expected[: len(moments)], atol=block / SAMPLE_RATE)
    wait = [module._token_delay(word, frame, tier, 2.0).chunk_s for frame in hypothesis.frames]
    assert max(wait) == pytest.approx(right * 0.08)  # of the first frame of a chunk for the last one
    assert max(wait) < chunk_latency_s(tier)


def test_what_cannot_be_measured_is_said():
    model = tiny_transducer()
    with pytest.raises(SprachbundError, match=r"ends at 5.0 s, after its recording of 4.0 s"):
        emission_delay(
            model, [(SILENCE, [SpokenWord(text="Tag", end_s=5.0)])], TARGET, model.encoder.tiers[0]
        )
    with pytest.raises(SprachbundError, match="another kind"):
        emission_delay(load(), [], TARGET, model.encoder.tiers[0])
